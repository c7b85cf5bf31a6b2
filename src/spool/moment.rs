//! What the spool knows of the database at its position: the checksum of each page then, and which pages the files that are
//! still here changed on the way to it. Takes no lock: what is read is proved by what it adds up to, and begun anew where somebody
//! changed it meanwhile.

use super::dir::Spool;
use super::files::parse_txid;
use super::position::Position;
use super::sums::FrozenSums;
use crate::base::{Error, Kind, Pgno, Result, TxId, clock};
use crate::ltx::{self, FileName, Header};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it is begun anew, with a pause between two tries that grows to a tenth of a second.
const TRIES: u32 = 12;
/// Larger files are not read for the numbers of their pages: the replica tells them in less time.
const LARGEST: u64 = 64 << 20;

/// The database at the spool's position.
#[derive(Debug)]
pub struct Moment {
    /// The position.
    pub position: Position,
    /// The checksum of each page at it.
    pub sums: FrozenSums,
    /// Pages in the pieces of the TXID that is not cut yet, up to the position.
    pub pieces: Vec<Pgno>,
}

/// A shipped or cut file that is still here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFile {
    /// Its TXIDs.
    pub name: FileName,
    /// Where it lies. It may be gone by the time that it is opened.
    pub path: PathBuf,
}

impl LocalFile {
    /// Its header and the numbers of its pages, all of it proved. Errors with `Corrupt` for a damaged one, `Missing` for one that is gone.
    pub fn pages(&self) -> Result<(Header, Vec<Pgno>)> {
        let file = open(&self.path)?;
        let (header, pages) = read(ltx::Decoder::new(BufReader::with_capacity(64 << 10, file))?)?;
        if header.file_name() != self.name {
            let (path, says) = (self.path.display(), header.file_name());
            return Err(Error::corrupt(format!("{path}: its header says {says}: a renamed or swapped file")));
        }
        Ok((header, pages))
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("open", path, e))
}

fn read<R: std::io::Read>(mut d: ltx::Decoder<R>) -> Result<(Header, Vec<Pgno>)> {
    let header = d.header().clone();
    let (mut page, mut pages) = (vec![0; header.page_size.len()], Vec::new());
    while let Some(pgno) = d.next_page(&mut page)? {
        pages.push(pgno);
    }
    d.finish()?;
    Ok((header, pages))
}

impl Spool {
    /// The database at the position; `None` where there is no position, or the page sums do not belong to it. Errors with `Retry` where
    /// the spool was changed each time it was read, and as the file system does.
    pub fn moment(&self) -> Result<Option<Moment>> {
        let mut last = Error::new(Kind::Retry, "the spool changes all the time");
        for n in 0..TRIES {
            clock::sleep(Duration::from_millis(u64::from(n * n)).min(Duration::from_millis(100)));
            let Some(position) = self.position()? else { return Ok(None) };
            let Some(sums) = self.sums().frozen(&position)? else { continue };
            match self.pages_of_pieces(&position) {
                Ok(pieces) => return Ok(Some(Moment { position, sums, pieces })),
                // Cut or folded meanwhile.
                Err(e) if e.is_missing() => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    fn pages_of_pieces(&self, p: &Position) -> Result<Vec<Pgno>> {
        let mut all = Vec::new();
        for k in 0..p.pieces {
            let file = open(&self.piece_path(p.txid.next(), k))?;
            let (header, pages) = read(ltx::Decoder::piece(BufReader::with_capacity(64 << 10, file))?)?;
            if header.lineage != p.lineage {
                return Err(Error::corrupt("a piece of another history lies in the spool"));
            }
            all.extend(pages);
        }
        Ok(all)
    }

    /// Files that go beyond `since` and are still here, in no order: what waits for the replica, and what is kept to be merged. Very
    /// large ones are left out. Errors as the file system does.
    pub fn files_since(&self, since: TxId) -> Result<Vec<LocalFile>> {
        let mut found = Vec::new();
        // Pending files first: they go on to `merge`.
        let mut dirs = vec![self.dir().join("pending")];
        let merge = self.dir().join("merge");
        for level in entries(&merge)? {
            if level.parse::<u8>().is_ok() {
                dirs.push(merge.join(level));
            }
        }
        for dir in dirs {
            for name in entries(&dir)? {
                let stem = name.strip_suffix(".ltx").and_then(parse_txid);
                let parsed =
                    stem.map_or_else(|| FileName::parse(&name), |t| Some(FileName { min: t, max: t }));
                let path = dir.join(&name);
                if let Some(name) = parsed.filter(|f| f.max > since)
                    && fs::metadata(&path).is_ok_and(|m| m.len() <= LARGEST)
                {
                    found.push(LocalFile { name, path });
                }
            }
        }
        Ok(found)
    }

    /// The file of a level and TXIDs, if it is still here and not very large.
    pub fn local_copy(&self, level: ltx::Level, name: &FileName) -> Option<File> {
        let pending = (level == ltx::Level::L0 && name.min == name.max).then(|| self.pending_path(name.max));
        let paths = pending.into_iter().chain([self.merge_path(level, name)]);
        let mut opened = paths.filter_map(|p| File::open(p).ok());
        opened.find(|f| f.metadata().is_ok_and(|m| m.len() <= LARGEST))
    }
}

/// Names in a directory; none if it is not there.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let read = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|e| Error::io("list", dir, e))?,
    };
    Ok(read.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
}
