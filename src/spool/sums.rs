//! The checksum of every page, 8 bytes each, in a file: so that the checksum of a whole database follows
//! each batch at the cost of the pages it changed.
//!
//! Never trusted by itself: a crash may leave it a batch ahead, power loss a batch torn. What it adds up to is compared
//! with the attested checksum at each start (I-SPOOL-5), at 8 bytes a page a matter of milliseconds.
//! Refused: mmap (a truncated file would kill the host with SIGBUS), and memory (a terabyte database would
//! take 2 GiB of it).

use super::files::temp_beside;
use super::position::Position;
use crate::base::{DbChecksum, Error, PageSize, Pgno, Result, manners};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ENTRY: u64 = 8;

/// The table. 0 = no such page. Open only while it is read or written: a thousand databases at rest take no descriptor.
#[derive(Debug)]
pub struct PageSums {
    path: PathBuf,
}

impl PageSums {
    /// Opens or creates it.
    pub fn open(path: &Path) -> Result<PageSums> {
        let file = manners::open_or_create(path).map_err(|e| Error::io("open page sums", path, e))?;
        drop(file);
        Ok(PageSums { path: path.to_path_buf() })
    }

    /// (Not made anew: sums that are all 0 are wrong ones.)
    fn file(&self) -> Result<File> {
        let opened = File::options().read(true).write(true).open(&self.path);
        opened.map_err(|e| Error::io("open page sums", &self.path, e))
    }

    /// Whether it was deleted.
    pub(super) fn is_missing(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }

    /// The sums of these pages (ascending), 0 for a page that has none. One read a run of near neighbours.
    pub fn load(&self, pages: &[Pgno]) -> Result<Vec<u64>> {
        let mut out = Vec::with_capacity(pages.len());
        if pages.is_empty() {
            return Ok(out);
        }
        let file = self.file()?;
        for run in pages.chunk_by(|a, b| b.get().wrapping_sub(a.get()) <= 64) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let n = (last.get() - first.get() + 1) as usize;
            let bytes = self.read_run(&file, first.get(), n)?;
            for p in run {
                out.push(entry(&bytes, (p.get() - first.get()) as usize));
            }
        }
        Ok(out)
    }

    /// Stores sums (ascending by page).
    pub fn store(&self, sums: &[(Pgno, u64)]) -> Result<()> {
        if sums.is_empty() {
            return Ok(());
        }
        let file = self.file()?;
        for run in sums.chunk_by(|a, b| b.0.get() == a.0.get() + 1) {
            let Some((first, _)) = run.first() else { continue };
            let bytes: Vec<u8> = run.iter().flat_map(|(_, s)| s.to_ne_bytes()).collect();
            file.write_all_at(&bytes, u64::from(first.get() - 1) * ENTRY)
                .map_err(|e| Error::io("write page sums", &self.path, e))?;
        }
        Ok(())
    }

    /// What pages `from..=to` add to a [`DbChecksum`], the lock page aside: the XOR of their scrambled sums.
    pub fn scrambled(&self, from: u32, to: u32, page_size: PageSize) -> Result<u64> {
        self.scrambled_in(&self.file()?, from, to, page_size)
    }

    fn scrambled_in(&self, file: &File, from: u32, to: u32, page_size: PageSize) -> Result<u64> {
        const STEP: u32 = 8192;
        let lock_page = page_size.lock_page().get();
        let mut x = 0;
        let mut at = from;
        while at <= to {
            let n = STEP.min(to - at + 1);
            let bytes = self.read_run(file, at, n as usize)?;
            for i in 0..n {
                if at + i != lock_page {
                    x ^= DbChecksum::scramble(entry(&bytes, i as usize));
                }
            }
            match at.checked_add(n) {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(x)
    }

    /// The sums as they are at `p`, kept in a file without a name: what the table becomes later does not change them. `None` where the
    /// table is not that of `p`: what it adds up to says so (I-SPOOL-5), so no lock is needed. Errors as the file system does.
    pub fn frozen(&self, p: &Position) -> Result<Option<FrozenSums>> {
        let path = temp_beside(&self.path);
        let mut copy = manners::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let copied = self.file().and_then(|file| {
            let wanted = u64::from(p.commit) * ENTRY;
            let copied = std::io::copy(&mut std::io::Read::take(file, wanted), &mut copy);
            copied.map_err(|e| Error::io("copy page sums to", &path, e))
        });
        // (Opened anew for reading, as long as it has its name.)
        let opened = File::open(&path).map_err(|e| Error::io("open", &path, e));
        let removed = std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e));
        copied?;
        removed?;
        let frozen = FrozenSums { file: opened?, sums: PageSums { path: self.path.clone() } };
        let all = match p.commit {
            0 => 0,
            n => self.scrambled_in(&frozen.file, 1, n, p.page_size)?,
        };
        Ok((DbChecksum::EMPTY.toggle_all(all) == p.checksum).then_some(frozen))
    }

    /// The checksum of a database of `commit` pages.
    pub fn checksum(&self, commit: u32, page_size: PageSize) -> Result<DbChecksum> {
        let all = if commit == 0 { 0 } else { self.scrambled(1, commit, page_size)? };
        Ok(DbChecksum::EMPTY.toggle_all(all))
    }

    /// Reads `n` entries from page `first` on; what lies past the end is 0.
    fn read_run(&self, file: &File, first: u32, n: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n * ENTRY as usize];
        let mut done = 0;
        while done < bytes.len() {
            let at = u64::from(first - 1) * ENTRY + done as u64;
            match file.read_at(bytes.get_mut(done..).unwrap_or_default(), at) {
                Ok(0) => break,
                Ok(k) => done += k,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read page sums", &self.path, e)),
            }
        }
        Ok(bytes)
    }
}

/// The sums as they were at a position.
#[derive(Debug)]
pub struct FrozenSums {
    file: File,
    sums: PageSums,
}

impl FrozenSums {
    /// The sums of `n` pages from `first` on, 0 for a page that has none. Errors as the file system does.
    pub fn run(&self, first: Pgno, n: usize) -> Result<Vec<u64>> {
        let bytes = self.sums.read_run(&self.file, first.get(), n)?;
        Ok((0..n).map(|i| entry(&bytes, i)).collect())
    }
}

fn entry(bytes: &[u8], i: usize) -> u64 {
    let at = i * ENTRY as usize;
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
