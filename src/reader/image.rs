//! One connection's open replica: what SQLite takes for a file.
//!
//! Page 1 is shown with a few bytes changed, as a follower's file has them (`replica::follow`): rollback mode instead of WAL, so that SQLite
//! looks for no WAL; a change counter that is the TXID's, so that it drops its cache when the state moves on; the size of this
//! state. Where the state moves on into another history, the schema cookie is shifted, so that no statement of the old schema
//! goes on.

use super::ahead::Ahead;
use super::cache;
use super::fetch::{self, Wanted};
use super::limits::PARALLEL;
use super::replica::Replica;
use super::runtime;
use super::view::{About, Fetched, View, keep_of};
use crate::base::{Error, Kind, PageSize, Pgno, Result, TxId, fork};
use crate::ltx::Header;
use crate::replica::contents::Contents;
use crate::replica::pages::Place;
use crate::replica::{FileId, Point};
use crate::sqlite::{Image, ReadExtent};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How often a read begins anew because a file of the state was merged away or is damaged.
const TRIES: usize = 4;

/// A database of a replica, opened.
pub(super) struct ReplicaImage {
    replica: Arc<Replica>,
    view: Arc<View>,
    moves: Moves,
    /// Whether a transaction is under way.
    within: bool,
    /// Files of the replica that were found damaged, or gone.
    bad: BTreeSet<FileId>,
    ahead: Ahead,
    cookie_shift: u32,
    /// Number of forks before this process, when it was opened.
    generation: usize,
}

/// Whether what is read stays what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moves {
    /// At a point.
    Never,
    /// To the newest state.
    BetweenTransactions,
}

impl ReplicaImage {
    /// Opens the database at `point`. Errors where the replica does not hold it.
    pub(super) fn open(replica: Arc<Replica>, point: Point) -> Result<ReplicaImage> {
        let view = replica.view(point)?;
        let moves = if point == Point::Latest { Moves::BetweenTransactions } else { Moves::Never };
        Ok(ReplicaImage { moves, ..ReplicaImage::at(replica, view) })
    }

    /// The database in the state of `view`, in which it stays.
    pub(super) fn at(replica: Arc<Replica>, view: Arc<View>) -> ReplicaImage {
        ReplicaImage {
            replica,
            view,
            moves: Moves::Never,
            within: false,
            bad: BTreeSet::new(),
            ahead: Ahead::default(),
            cookie_shift: 0,
            generation: fork::generation(),
        }
    }

    /// The header of the newest file of the state.
    pub(super) fn state(&self) -> Option<Header> {
        self.view.map.files().last().map(|f| f.header.clone())
    }

    /// Errors in a child of the process that opened it.
    fn is_ours(&self) -> Result<()> {
        if self.generation == fork::generation() {
            return Ok(());
        }
        Err(Error::new(Kind::Io, "the replica was opened before a fork, by the parent: open it again"))
    }

    fn page_size(&self) -> Result<PageSize> {
        self.view.map.page_size().ok_or_else(|| Error::new(Kind::Bug, "a state without files"))
    }

    /// The page, from memory or from the replica. I-READ-3. Errors with `Missing` where the state is gone, `Corrupt` where it cannot be
    /// believed, and as the store does.
    pub(super) fn page(&mut self, pgno: Pgno) -> Result<Arc<[u8]>> {
        for _ in 0..TRIES {
            let (id, e) = match self.page_of_view(pgno) {
                Ok(page) => return Ok(page),
                Err((id, e)) if e.is_missing() || (e.is_corrupt() && id.is_some()) => (id, e),
                Err((_, e)) => return Err(e),
            };
            // (What is gone does not come again: names are not used twice.)
            self.bad.extend(id);
            let txid = self.view.map.txid();
            match self.replica.anew(txid, id, self.bad.clone()) {
                Ok(view) => self.view = view,
                Err(_) if e.is_corrupt() => return Err(e),
                Err(gone) if gone.is_missing() || gone.is_corrupt() => {
                    let text = format!("TXID {txid} is gone from the replica since it was opened");
                    return Err(Error::new(Kind::Missing, text).because(gone));
                }
                Err(other) => return Err(other),
            }
        }
        Err(Error::new(Kind::Retry, "the replica changed each time it was read; try again"))
    }

    fn page_of_view(&mut self, pgno: Pgno) -> Result<Arc<[u8]>, About> {
        let plain = |e| (None, e);
        let view = self.view.clone();
        let file = match view.map.place(pgno).map_err(plain)? {
            Place::Nowhere => return Ok(vec![0; self.page_size().map_err(plain)?.len()].into()),
            Place::In(file) => file,
        };
        self.ahead.reads(pgno);
        let (mut fetched, mut page) = (Vec::new(), here(&view, file, pgno, &[])?);
        // Once, but where what seemed to be here was not: damaged on disk, or given up in memory for what another thread fetched.
        for _ in 0..TRIES {
            if page.is_some() {
                break;
            }
            fetched.extend(self.fetch(&view, pgno)?);
            page = here(&view, file, pgno, &fetched)?;
        }
        let page =
            page.ok_or_else(|| plain(Error::new(Kind::Bug, "a page that was fetched is not there")))?;
        if self.ahead.was(pgno, &page)
            && let Some(number) = view.numbers.get(file)
        {
            cache::put_page((*number, pgno), page.clone());
        }
        Ok(page)
    }

    /// Fetches the page, and what is likely to be read after it.
    fn fetch(&mut self, view: &Arc<View>, pgno: Pgno) -> Result<Vec<Fetched>, About> {
        let foretold = self.ahead.wants(pgno);
        let place = |pgno: Pgno| match view.map.place(pgno) {
            Ok(Place::In(file)) => Some((file, view.map.files().get(file)?.blocks_of(pgno)?)),
            _ => None,
        };
        let disk = keep_of(&view.store);
        let is_here = |file: usize, block: u64| {
            let (Some(number), Some(contents)) = (view.numbers.get(file), view.map.files().get(file)) else {
                return false;
            };
            let is_on_disk = || Some(disk.as_ref()?.has_block(contents.sha256.as_ref()?, block));
            // (What cannot be proved by itself is fetched with all of its file.)
            let is_on_disk = || is_on_disk().filter(|_| contents.can_prove_blocks());
            cache::has_block((*number, block)) || is_on_disk().unwrap_or(false)
        };
        let pages = foretold.pages.iter().copied();
        let (wanted, done) = fetch::plan(pages, foretold.bytes, PARALLEL, place, is_here);
        let fetched = get(view, wanted)?;
        if let Some(last) = done.checked_sub(1).and_then(|n| foretold.pages.get(n)) {
            self.ahead.fetched(*last);
        }
        Ok(fetched)
    }
}

impl Image for ReplicaImage {
    fn begin(&mut self) -> Result<()> {
        self.is_ours()?;
        if self.moves == Moves::BetweenTransactions && !self.within {
            let newest = self.replica.view(Point::Latest)?;
            if newest.map.lineage() != self.view.map.lineage() {
                self.cookie_shift = self.cookie_shift.wrapping_add(0x0100_0001);
            }
            self.view = newest;
        }
        self.within = true;
        Ok(())
    }

    fn end(&mut self) {
        self.within = false;
    }

    fn size(&mut self) -> Result<u64> {
        self.is_ours()?;
        Ok(u64::from(self.view.map.pages()) * u64::from(self.page_size()?.get()))
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<ReadExtent> {
        self.is_ours()?;
        let (txid, pages) = (self.view.map.txid(), self.view.map.pages());
        let (size, shift) = (self.page_size()?, self.cookie_shift);
        fill(buf, offset, size, pages, |pgno| {
            let page = self.page(pgno)?;
            Ok(if pgno == Pgno::ONE { localized(&page, txid, pages, shift).into() } else { page })
        })
    }
}

/// Fills `buf` from `offset` on out of a database of `pages` pages, of which `page` gives each. Errors as `page` does.
pub(super) fn fill(
    buf: &mut [u8],
    offset: u64,
    size: PageSize,
    pages: u32,
    mut page: impl FnMut(Pgno) -> Result<Arc<[u8]>>,
) -> Result<ReadExtent> {
    let (mut at, mut rest) = (offset, buf);
    while !rest.is_empty() {
        let n = at / u64::from(size.get()) + 1;
        let Some(pgno) = u32::try_from(n).ok().filter(|n| *n <= pages).and_then(Pgno::new) else {
            return Ok(ReadExtent::Short);
        };
        let page = page(pgno)?;
        let within = page.get((at - pgno.offset(size)) as usize..).unwrap_or_default();
        let len = within.len().min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        now.copy_from_slice(within.get(..len).unwrap_or_default());
        rest = later;
        at += len as u64;
    }
    Ok(ReadExtent::Full)
}

/// The first page of the state `txid`, of `pages` pages, as SQLite is to see it.
pub(super) fn localized(page: &[u8], txid: TxId, pages: u32, cookie_shift: u32) -> Vec<u8> {
    const VERSIONS: std::ops::Range<usize> = 18..20;
    const COUNTER: std::ops::Range<usize> = 24..28;
    const PAGES: std::ops::Range<usize> = 28..32;
    const COOKIE: std::ops::Range<usize> = 40..44;
    const VALID_FOR: std::ops::Range<usize> = 92..96;
    let mut out = page.to_vec();
    if !out.starts_with(b"SQLite format 3\0") {
        return out;
    }
    let mut put = |at: std::ops::Range<usize>, bytes: &[u8]| {
        if let Some(to) = out.get_mut(at) {
            to.copy_from_slice(bytes);
        }
    };
    let counter = (txid.0 as u32).to_be_bytes();
    put(VERSIONS, &[1, 1]);
    put(COUNTER, &counter);
    put(VALID_FOR, &counter);
    put(PAGES, &pages.to_be_bytes());
    if cookie_shift != 0 {
        let cookie =
            page.get(COOKIE).and_then(|c| c.first_chunk::<4>()).map_or(0, |c| u32::from_be_bytes(*c));
        put(COOKIE, &cookie.wrapping_add(cookie_shift).to_be_bytes());
    }
    out
}

/// The page, if it need not be fetched, or was.
fn here(view: &View, file: usize, pgno: Pgno, fetched: &[Fetched]) -> Result<Option<Arc<[u8]>>, About> {
    let (Some(contents), Some(number)) = (view.map.files().get(file), view.numbers.get(file)) else {
        return Ok(None);
    };
    if let Some(page) = cache::page((*number, pgno)) {
        return Ok(Some(page));
    }
    let of_file = |e: Error| (e.is_corrupt().then_some(contents.id), e);
    let Some(range) = contents.blocks_of(pgno) else {
        return Ok(contents.at_hand(pgno).map_err(of_file)?.map(Arc::from));
    };
    let block = |n: u64| {
        let fetched =
            fetched.iter().find(|(f, block, _)| (*f, *block) == (file, n)).map(|(_, _, b)| b.clone());
        let in_memory = || cache::block((*number, n));
        fetched.or_else(in_memory).or_else(|| on_disk(view, contents, *number, n))
    };
    let blocks: Option<Vec<Arc<[u8]>>> = range.clone().map(block).collect();
    let page = match blocks.as_deref() {
        None => return Ok(None),
        Some([one]) => contents.page_of(pgno, range.start, one),
        Some(some) => contents.page_of(pgno, range.start, &some.concat()),
    };
    Ok(Some(page.map_err(of_file)?.into()))
}

/// A block that is on disk, proved.
fn on_disk(view: &View, contents: &Contents, number: u64, block: u64) -> Option<Arc<[u8]>> {
    let (disk, of) = (keep_of(&view.store)?, contents.sha256.as_ref()?);
    if !contents.can_prove_blocks() {
        return None;
    }
    let found: Arc<[u8]> = disk.block(of, block, |b| contents.is_block(block, b))?.into();
    cache::put_block((number, block), found.clone(), true);
    Some(found)
}

/// Fetches what is wanted, and keeps it.
fn get(view: &Arc<View>, wanted: Vec<Wanted>) -> Result<Vec<Fetched>, About> {
    let work = {
        let view = view.clone();
        async move {
            let one = |w: Wanted| {
                let view = view.clone();
                async move { view.fetch(w.file, w.blocks).await }
            };
            let all = futures_util::stream::iter(wanted.into_iter().map(one)).buffer_unordered(PARALLEL);
            Ok(all.try_collect::<Vec<Vec<Fetched>>>().await.map(|all| all.concat()))
        }
    };
    runtime::run(work).map_err(|e| (None, e))?
}
