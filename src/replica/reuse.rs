//! A restore that takes what is at hand: the pages that an interrupted restore left in its temporary file, and those of the target itself
//! (`delta`). What is not at hand is fetched, page by page.
//!
//! The files of a plan are gone through from the newest to the oldest, and each page is that of the first file that holds it. A small file
//! is fetched whole. Of a large one with sums of its pages beside it ([`super::blocks`]) only page index and sums come at first: they
//! tell which pages at hand are those of the file, and where the others lie in it.
//!
//! Rules
//! * I-REUSE-1 A page is taken from a file at hand, or out of a large file, only where its sum is the one that was uploaded with it.
//! * I-REUSE-2 That proves no page, and the SHA-256 of a file cannot be held against what is not fetched. So the whole is proved: the
//!   checksum of the database, read back from the disk, is the one that the newest file attests, which the manifest's entry for it repeats.
//!   Where it is not, or no file attests one (Litestream's), all is restored anew in the way of [`super::restore`].
//! * I-REUSE-3 Where the oldest file, the full copy, has no sums of its pages, nothing would be saved: then likewise.
//! * I-REUSE-4 The target is read while nobody else may open it, its pages are in the temporary file before it is let go of, and it is
//!   not written to: whatever becomes of this restore, the target is what it was.
//! * I-REUSE-5 Memory is bounded: page index and sums of one large file, or two (`blocks::MOST_PAGES`), a bit for each page, and what is
//!   fetched ahead.
//!
//! A crash leaves the temporary file, with more of its pages in place. Nothing is noted beside it: what a page is worth is asked of the
//! replica, so that another point, or a replica that was merged meanwhile, takes from it as well.
//!
//! Refused: a note of what is in place (it would have to be as durable as the pages, and says nothing of what somebody changed);
//! to apply what lies between the target's TXID and the one wanted (which TXID a file has is known of an untouched one only).

mod missing;

use self::missing::{Missing, Piece, Window};
use super::apply::{Applier, agrees_with_manifest};
use super::blocks::{MOST_PAGES, PageSums};
use super::contents::Contents;
use super::fetch::{Ahead, Arrived};
use super::inventory::FileInfo;
use super::large::{Done, Large, Work};
use super::layout::FileId;
use super::manifest::Manifest;
use super::plan::Plan;
use super::target::{Occupied, Occupier, Target};
use crate::base::{Error, Kind, PageSize, Pgno, Result, crash, lock, manners, panics};
use crate::ltx::{Batch, Header, Sink};
use crate::store::Store;
use futures_util::{StreamExt, TryStreamExt};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// What may be taken from this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reuse {
    /// Nothing.
    #[default]
    Nothing,
    /// What an interrupted restore to the same target left.
    Left,
    /// That, and what the target has.
    LeftAndTarget,
}

/// Requests for parts of a large file at once.
const PARALLEL: usize = 16;

/// The files that may have pages already.
pub(super) struct AtHand<'a> {
    /// The temporary file that is written.
    temp: Arc<File>,
    /// Whether another restore left it.
    is_left: bool,
    /// Who lets the target be read; `None`: it is not to be.
    ask: Option<Occupier<'a>>,
}

impl<'a> AtHand<'a> {
    /// Takes up what is there; `None` if nothing is. Errors with `Io` where the temporary file cannot be made.
    pub(super) fn find(
        reuse: Reuse,
        target: &mut Target,
        occupier: Option<Occupier<'a>>,
    ) -> Result<Option<AtHand<'a>>> {
        if reuse == Reuse::Nothing {
            return Ok(None);
        }
        let ask = occupier.filter(|_| reuse == Reuse::LeftAndTarget && target.path().is_file());
        match target.take_up() {
            Some(left) => Ok(Some(AtHand { temp: Arc::new(left), is_left: true, ask })),
            None if ask.is_none() => Ok(None),
            None => {
                let made = manners::create_private(target.temp());
                let temp = made.map_err(|e| Error::io("create", target.temp(), e))?;
                drop(temp.try_lock());
                Ok(Some(AtHand { temp: Arc::new(temp), is_left: false, ask }))
            }
        }
    }
}

/// What came of it.
pub(super) struct Reused {
    /// The file, whose content is still to be proved (I-REUSE-2).
    pub(super) applier: Applier,
    /// The header of the newest file.
    pub(super) header: Header,
    /// Bytes of files that were fetched.
    pub(super) bytes: u64,
}

/// Builds the temporary file of `target` out of what is at hand and what is fetched. `None` where nothing would be saved, or the whole
/// could not be proved (I-REUSE-2, I-REUSE-3). `tell`: bytes of the plan's files that are settled.
///
/// Errors: `Corrupt` and `Missing` where the files do not give the state; `Config` if the target is in use; `Io`; the store's.
pub(super) async fn build(
    store: &Store,
    manifest: &Manifest,
    way: &Plan,
    target: &Target,
    at_hand: AtHand<'_>,
    parallel: usize,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<Option<Reused>> {
    let in_place = |f: FileInfo| async move { Contents::in_place(store, &f, manifest.get(f.id())).await };
    let Some(oldest) = way.files.first().cloned() else { return Ok(None) };
    let Some(base) = in_place(oldest.clone()).await? else { return Ok(None) };
    let all = Arc::new(Rebuild::new(at_hand.temp.clone(), target.temp()));
    let (mut parts, mut whole, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut pages = base.0.pages_known();
    for file in way.files.iter().skip(1).rev() {
        let found = match manifest.get(file.id()) {
            Some(e) if pages + e.pages as usize <= 2 * MOST_PAGES as usize => in_place(file.clone()).await?,
            _ => None,
        };
        let Some((contents, sums)) = found else {
            whole.push(file.clone());
            continue;
        };
        bytes += all.place(store, manifest, std::mem::take(&mut whole), parallel, tell).await?;
        pages += contents.pages_known();
        parts.push(all.claim(contents, sums)?);
    }
    bytes += all.place(store, manifest, whole, parallel, tell).await?;
    parts.push(all.claim(base.0, base.1)?);
    let header = all.newest()?;
    let Some(attest) = header.attest else { return Ok(None) };
    let jobs = all.look(parts, &at_hand, target.path())?;
    crash::point("restore.looked");
    for job in jobs {
        bytes += job.fetch(store, &all, parallel, tell).await?;
    }
    all.end(&header)?;
    let applier = Applier::of_content(all.out.clone(), &all.path, &header, attest.after);
    Ok(Some(Reused { applier, header, bytes }))
}

/// The target, which nobody else may open meanwhile.
struct Old {
    // (In this order: to close a file drops this process's locks on it, and the other one's drop expects that.)
    file: File,
    _occupied: Box<dyn Occupied>,
}

impl Old {
    /// `None` if it is gone. Errors with `Config` if it is in use.
    fn take(ask: Occupier<'_>, path: &Path) -> Result<Option<Old>> {
        let occupied = ask(path)?;
        let file = File::open(path).ok().filter(|_| occupied.is_there());
        Ok(file.map(|file| Old { file, _occupied: occupied }))
    }
}

/// The temporary file, and which of its pages are settled.
struct Rebuild {
    out: Arc<File>,
    path: Arc<Path>,
    shape: Mutex<Option<Shape>>,
    settled: OnceLock<Vec<AtomicU64>>,
}

/// As far as the files went that were looked at.
#[derive(Clone, Debug)]
struct Shape {
    newest: Header,
    /// Pages beyond are no page of an older file (I-PAGE-3).
    limit: u32,
}

impl Rebuild {
    fn new(out: Arc<File>, path: &Path) -> Rebuild {
        Rebuild { out, path: path.into(), shape: Mutex::default(), settled: OnceLock::new() }
    }

    /// The next older file: what of it counts.
    fn begins(&self, id: FileId, header: &Header) -> Result<Limit> {
        if header.file_name() != id.name() {
            let text = format!("its header says {}: a renamed or swapped file", header.file_name());
            return Err(Error::corrupt(text));
        }
        let mut at = lock(&self.shape);
        let newest = at.as_ref().map_or(header, |s| &s.newest).clone();
        if newest.page_size != header.page_size {
            let (was, is) = (header.page_size.get(), newest.page_size.get());
            return Err(Error::corrupt(format!("page size {was} before {is}: a file of another history")));
        }
        let limit = at.as_ref().map_or(u32::MAX, |s| s.limit).min(header.commit);
        let words = newest.commit as usize / 64 + 1;
        self.settled.get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect());
        *at = Some(Shape { newest, limit });
        Ok(Limit { size: header.page_size, pages: limit })
    }

    fn shape(&self) -> Result<Shape> {
        lock(&self.shape).clone().ok_or_else(|| Error::new(Kind::Bug, "no file was begun"))
    }

    fn newest(&self) -> Result<Header> {
        self.shape().map(|s| s.newest)
    }

    fn word(&self, pgno: Pgno) -> Option<(&AtomicU64, u64)> {
        let n = pgno.get();
        Some((self.settled.get()?.get(n as usize / 64)?, 1 << (n % 64)))
    }

    /// Whether `pgno` is still wanted of a file that counts so far.
    fn is_wanted(&self, pgno: Pgno, limit: Limit) -> bool {
        let is_settled = self.word(pgno).is_none_or(|(w, bit)| w.load(Ordering::Relaxed) & bit != 0);
        pgno.get() <= limit.pages && pgno != limit.size.lock_page() && !is_settled
    }

    fn settle(&self, pgno: Pgno) {
        if let Some((word, bit)) = self.word(pgno) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn write(&self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let offset = u64::from(pgno.get() - 1) * page.len() as u64;
        self.out.write_all_at(page, offset).map_err(|e| Error::io("write", &self.path, e))
    }

    /// Fetches whole files, newest first, and puts those of their pages in place that are wanted. Gives their bytes.
    async fn place(
        self: &Arc<Self>,
        store: &Store,
        manifest: &Manifest,
        files: Vec<FileInfo>,
        parallel: usize,
        tell: &(dyn Fn(u64) + Sync),
    ) -> Result<u64> {
        let mut ahead = Ahead::new(store, files, parallel);
        let (mut coming, mut bytes): (Option<Large<Placing>>, u64) = (None, 0);
        while let Some(arrived) = ahead.next().await {
            let (id, is_last) = (arrived.file.id(), arrived.is_last());
            let about = |e: Error| if e.is_corrupt() { e.context(id) } else { e };
            let Arrived { range, piece, .. } = arrived;
            let mut file = coming.take().unwrap_or_else(|| Large::new(Placing { all: self.clone(), id }));
            file.push(piece?).await.map_err(about)?;
            match is_last {
                false => coming = Some(file),
                true => {
                    let (_, trailer, _) = file.finish().await.map_err(about)?;
                    agrees_with_manifest(&trailer, manifest.get(id)).map_err(about)?;
                }
            }
            bytes += range.end - range.start;
            tell(range.end - range.start);
        }
        Ok(bytes)
    }

    /// The next older file is a large one: those of its pages that are wanted are its to bring. Errors with `Corrupt`.
    fn claim(&self, contents: Contents, sums: PageSums) -> Result<Part> {
        let limit = self.begins(contents.id, &contents.header).map_err(|e| e.context(contents.id))?;
        let mut wanted = vec![0u64; contents.pages_known() / 64 + 1];
        for (n, entry) in contents.pages() {
            if self.is_wanted(entry.pgno, limit) {
                self.settle(entry.pgno);
                if let Some(word) = wanted.get_mut(n / 64) {
                    *word |= 1 << (n % 64);
                }
            }
        }
        Ok(Part { contents, sums, wanted })
    }

    /// Looks which pages are at hand, and puts those of the target in place, which nobody opens meanwhile (I-REUSE-4). What is left to
    /// fetch. Errors: `Config` if the target is in use; `Io`.
    fn look(&self, parts: Vec<Part>, at_hand: &AtHand<'_>, target: &Path) -> Result<Vec<Job>> {
        let old = at_hand.ask.map(|ask| Old::take(ask, target)).transpose()?.flatten();
        let mut left = at_hand.is_left.then(|| Window::new(&at_hand.temp));
        let mut old = old.as_ref().map(|old| Window::new(&old.file));
        let mut jobs = Vec::new();
        for part in parts {
            let missing = self.missing(&part, left.as_mut(), old.as_mut())?;
            let Part { contents, sums, .. } = part;
            jobs.push(Job { contents: Arc::new(contents), sums: Arc::new(sums), missing: Arc::new(missing) });
        }
        Ok(jobs)
    }

    fn missing(
        &self,
        part: &Part,
        mut left: Option<&mut Window<'_>>,
        mut old: Option<&mut Window<'_>>,
    ) -> Result<Missing> {
        let size = part.contents.header.page_size;
        let mut missing = Missing::default();
        for (n, entry) in part.contents.pages().filter(|(n, _)| part.wants(*n)) {
            let pgno = entry.pgno;
            let is_it = |page: &&[u8]| part.sums.may_be(n, pgno, page);
            if left.as_mut().and_then(|w| w.page(pgno, size)).filter(is_it).is_some() {
                continue;
            }
            match old.as_mut().and_then(|w| w.page(pgno, size)).filter(is_it) {
                Some(page) => self.write(pgno, page)?,
                None => missing.add(n, pgno, entry.range()),
            }
        }
        Ok(missing)
    }

    /// Each page is settled: the file has its size.
    fn end(&self, header: &Header) -> Result<()> {
        let words = self.settled.get().map(Vec::as_slice).unwrap_or_default();
        let settled: u32 = words.iter().map(|w| w.load(Ordering::Relaxed).count_ones()).sum();
        if settled != header.full_pages() {
            let text =
                format!("of {} pages of TXID {} the files hold {settled}", header.full_pages(), header.max);
            return Err(Error::corrupt(text));
        }
        let bytes = u64::from(header.commit) * u64::from(header.page_size.get());
        self.out.set_len(bytes).map_err(|e| Error::io("resize", &self.path, e))
    }
}

/// What of a file counts.
#[derive(Clone, Copy, Debug)]
struct Limit {
    size: PageSize,
    pages: u32,
}

/// The pages of a whole file on their way to their places.
struct Placing {
    all: Arc<Rebuild>,
    id: FileId,
}

impl Work for Placing {
    fn begins(&self, header: &Header) -> Result<()> {
        self.all.begins(self.id, header).map(drop)
    }

    fn unpack(&self, batch: &Batch) -> Result<Done> {
        let limit = Limit { size: batch.page_size(), pages: self.all.shape()?.limit };
        let mut wanted = Wanted { all: &self.all, limit, page: vec![0; limit.size.len()] };
        let unpacked = batch.unpack(&mut wanted)?;
        Ok(Done { unpacked, ..Done::default() })
    }
}

struct Wanted<'a> {
    all: &'a Rebuild,
    limit: Limit,
    page: Vec<u8>,
}

impl Sink for Wanted<'_> {
    fn place(&mut self, _: Pgno) -> Result<&mut [u8]> {
        Ok(&mut self.page)
    }

    fn placed(&mut self, pgno: Pgno) -> Result<()> {
        if !self.all.is_wanted(pgno, self.limit) {
            return Ok(());
        }
        self.all.settle(pgno);
        self.all.write(pgno, &self.page)
    }
}

/// A large file, and which of its pages it brings.
struct Part {
    contents: Contents,
    sums: PageSums,
    /// One bit for each, in the order of the file.
    wanted: Vec<u64>,
}

impl Part {
    fn wants(&self, n: usize) -> bool {
        self.wanted.get(n / 64).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }
}

/// What is left to fetch of one large file.
struct Job {
    contents: Arc<Contents>,
    sums: Arc<PageSums>,
    missing: Arc<Missing>,
}

impl Job {
    /// Fetches it, and puts it in place. Gives its bytes.
    async fn fetch(
        &self,
        store: &Store,
        all: &Arc<Rebuild>,
        parallel: usize,
        tell: &(dyn Fn(u64) + Sync),
    ) -> Result<u64> {
        let key = self.contents.id.key(store.layout());
        let bytes: u64 = self.missing.pieces.iter().map(|p| p.bytes.end - p.bytes.start).sum();
        tell(self.contents.bytes.saturating_sub(bytes));
        let pieces = futures_util::stream::iter(self.missing.pieces.clone()).map(|piece| {
            let (key, all, job) = (key.clone(), all.clone(), self.shared());
            async move {
                let came = store.get_range(&key, piece.bytes.clone()).await?;
                let length = piece.bytes.end - piece.bytes.start;
                if came.len() as u64 != length {
                    let text = format!("{}: it is shorter than the store's listing says", job.contents.id);
                    return Err(Error::corrupt(text));
                }
                panics::blocking(move || job.put(&all, &piece, &came)).await??;
                crash::point("restore.fetched");
                tell(length);
                Ok(())
            }
        });
        pieces.buffer_unordered(parallel.clamp(1, PARALLEL)).try_collect::<()>().await?;
        Ok(bytes)
    }

    fn shared(&self) -> Job {
        Job { contents: self.contents.clone(), sums: self.sums.clone(), missing: self.missing.clone() }
    }

    fn put(&self, all: &Rebuild, piece: &Piece, came: &[u8]) -> Result<()> {
        let mut wanted = self.missing.pages.get(piece.pages.clone()).unwrap_or_default().iter().peekable();
        for (i, entry) in self.contents.within(&piece.bytes).enumerate() {
            if wanted.next_if(|p| **p == entry.pgno).is_none() {
                continue;
            }
            let at = usize::try_from(entry.offset - piece.bytes.start).unwrap_or(usize::MAX);
            let frame = came.get(at..at.saturating_add(entry.len as usize)).unwrap_or_default();
            let page = self.contents.page(&entry, frame)?;
            self.sums.hold(piece.first + i, entry.pgno, &page).map_err(|e| e.context(self.contents.id))?;
            all.write(entry.pgno, &page)?;
        }
        match wanted.next() {
            None => Ok(()),
            Some(p) => Err(Error::new(Kind::Bug, format!("page {p} was not in what was fetched for it"))),
        }
    }
}

#[cfg(test)]
mod tests;
