//! The past of a database that is watched here: pages that are what they were come from its own file.
//!
//! What proves that a page which lies here is that of TXID *t*:
//!
//! * I-PAST-1 The spool has the checksum of each page at its position *p* (`pages.sum`), and these add up to the checksum of the database
//!   that the history attests there. They are copied once, when the past is opened.
//! * I-PAST-2 A page that no file of (*t*, *p*] holds, nor a piece of the TXID after it, was the same at *t* as at *p*. The files are of
//!   the history that the state at *t* is of, no TXID is left out, the first one attests to begin with the state at *t*, and each is
//!   proved: those here whole, those of the replica as `replica::contents` does. So the checksum at *p* of such a page is its checksum at *t*.
//! * I-PAST-3 Bytes that have this checksum are the page, wherever they were found and whatever was written there since: in the
//!   database's file, or in a frame of its WAL. All others are not given out. Page 1 too is proved before it is shown as `image` shows it.
//! * I-PAST-4 Whatever is not proved so is read as any point of a replica is: out of a copy of its file in the spool, else out of the
//!   replica. So where nothing can be proved, because the history was begun anew or retention has removed what lay between, the past
//!   is slower, and not another one.
//!
//! No lock of the database's is taken, and no read mark: writers, checkpoints and resets of the WAL go on, and what they write over
//! has another checksum. A crash leaves nothing behind.
//!
//! Refused: a read mark on the database for as long as the past is open (the WAL would grow with it); to ask which pages were
//! changed up to the moment of each read (what is sealed meanwhile would have to be seen before it is written); to compare the file's
//! page with the page in the replica (that is the request which is to be saved).

use super::cover::{PageSet, Span, cover};
use super::image::{ReplicaImage, fill, localized};
use super::nearby::{Changed, Changes, Nearby, Now, State};
use super::replica::Replica;
use super::view::Way;
use crate::base::{Error, Kind, PageSize, Pgno, Result, TxId, fork};
use crate::ltx::{Header, Level, page_checksum};
use crate::replica::contents::Contents;
use crate::replica::{FileInfo, Point};
use crate::sqlite::{Image, ReadExtent};
use std::sync::Arc;

/// How often it is begun anew because files went on their way meanwhile.
const TRIES: usize = 4;
/// Checksums that are read at once.
const SUMS: usize = 512;
/// Bytes of the database's file that are read at once at most.
const WINDOW: usize = 256 << 10;

/// A past state, opened.
pub(super) struct PastImage {
    replica: Arc<Replica>,
    near: Arc<dyn Nearby>,
    way: Arc<Way>,
    txid: TxId,
    page_size: PageSize,
    pages: u32,
    local: Option<Local>,
    /// For what is not to be had here; opened when it is needed.
    remote: Option<ReplicaImage>,
    generation: usize,
}

impl PastImage {
    /// Opens the database of `near` at `point`. Errors where its replica does not hold that.
    pub(super) fn open(replica: Arc<Replica>, near: Arc<dyn Nearby>, point: Point) -> Result<PastImage> {
        let way = replica.way(point)?;
        let newest = way.plan.files.last().cloned().into_iter().collect();
        let (header, remote) = match replica.contents(&way, newest, Some(&near)).map(|c| c.first().cloned()) {
            Ok(Some(contents)) => (contents.header.clone(), None),
            // Merged away since the way was looked up, or damaged.
            _ => {
                let image = ReplicaImage::open(replica.clone(), Point::TxId(way.plan.txid))?;
                let header = image.state().ok_or_else(|| Error::new(Kind::Bug, "a state without files"))?;
                (header, Some(image))
            }
        };
        let local = Local::of(&replica, &near, &way, &header).unwrap_or_else(|e| {
            log::info!("walrust: nothing of the past is taken from the database's own file: {e}");
            None
        });
        Ok(PastImage {
            replica,
            near,
            txid: header.max,
            page_size: header.page_size,
            pages: header.commit,
            local,
            remote,
            generation: fork::generation(),
            way,
        })
    }

    fn is_ours(&self) -> Result<()> {
        if self.generation == fork::generation() {
            return Ok(());
        }
        Err(Error::new(Kind::Io, "the past was opened before a fork, by the parent: open it again"))
    }

    /// I-PAST-3, I-PAST-4. Errors where the page is neither here nor to be had from the replica.
    pub(super) fn page(&mut self, pgno: Pgno) -> Result<Arc<[u8]>> {
        if let Some(page) = self.local.as_mut().and_then(|l| l.page(pgno)) {
            return Ok(page);
        }
        let remote = match &mut self.remote {
            Some(remote) => remote,
            none => {
                let view = self.replica.along(&self.way, &self.near)?;
                none.insert(ReplicaImage::at(self.replica.clone(), view))
            }
        };
        remote.page(pgno)
    }
}

impl Image for PastImage {
    fn begin(&mut self) -> Result<()> {
        self.is_ours()
    }

    fn end(&mut self) {}

    fn size(&mut self) -> Result<u64> {
        Ok(u64::from(self.pages) * u64::from(self.page_size.get()))
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<ReadExtent> {
        self.is_ours()?;
        let (size, pages, txid) = (self.page_size, self.pages, self.txid);
        fill(buf, offset, size, pages, |pgno| {
            let page = self.page(pgno)?;
            Ok(if pgno == Pgno::ONE { localized(&page, txid, pages, 0).into() } else { page })
        })
    }
}

/// What of the past lies in the database's own files.
struct Local {
    now: Box<dyn Now>,
    page_size: PageSize,
    /// Pages that both states have.
    pages: u32,
    changed: PageSet,
    sums: (u32, Vec<u64>),
    window: Window,
}

impl Local {
    /// I-PAST-1, I-PAST-2. `None` where that cannot be proved. `then` is the newest file of the past state. Errors as the replica and the
    /// file system do.
    fn of(
        replica: &Arc<Replica>,
        near: &Arc<dyn Nearby>,
        way: &Arc<Way>,
        then: &Header,
    ) -> Result<Option<Local>> {
        let mut way = way.clone();
        for n in 0..TRIES {
            let Some(now) = near.now()? else { return Ok(None) };
            let state = now.state();
            if state.lineage != then.lineage || state.page_size != then.page_size || state.txid < then.max {
                return Ok(None);
            }
            match changed_since(replica, &way, now.as_ref(), &state, then) {
                Ok(Some(changed)) => {
                    return Ok(Some(Local {
                        now,
                        page_size: state.page_size,
                        pages: state.commit.min(then.commit),
                        changed,
                        sums: (0, Vec::new()),
                        window: Window::default(),
                    }));
                }
                // The way may have been looked up before the newest files were put.
                Ok(None) if n == 0 => way = replica.way_anew(then.max)?,
                Ok(None) => return Ok(None),
                Err(e) if e.is_missing() => way = replica.way_anew(then.max)?,
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The page, if it is one that was not changed, and its bytes are found.
    fn page(&mut self, pgno: Pgno) -> Option<Arc<[u8]>> {
        if pgno.get() > self.pages || self.changed.has(pgno) || pgno == self.page_size.lock_page() {
            return None;
        }
        let sum = self.sum(pgno).filter(|s| *s != 0)?;
        let is_it = |page: &[u8]| page_checksum(pgno, page) == sum;
        let (now, size) = (self.now.as_mut(), self.page_size);
        if let Some(page) = self.window.page(now, pgno, size, self.pages).filter(|p| is_it(p)) {
            return Some(page.into());
        }
        let mut page = vec![0; size.len()];
        if now.frame(pgno, &mut page).unwrap_or(false) && is_it(&page) {
            return Some(page.into());
        }
        // The window may be older than a checkpoint.
        (now.read(&mut page, pgno.offset(size)).is_ok() && is_it(&page)).then(|| page.into())
    }

    fn sum(&mut self, pgno: Pgno) -> Option<u64> {
        let (first, sums) = &self.sums;
        let at = pgno.get().checked_sub(*first).map(|n| n as usize);
        if let Some(sum) = at.and_then(|at| sums.get(at)).filter(|_| *first > 0) {
            return Some(*sum);
        }
        let run = self.now.sums(pgno, SUMS).ok()?;
        let sum = run.first().copied();
        self.sums = (pgno.get(), run);
        sum
    }
}

/// A run of pages of the database's file, as it was when it was read.
#[derive(Default)]
struct Window {
    first: u32,
    bytes: Vec<u8>,
    /// The page after that which was asked for last.
    next: u32,
    wanted: usize,
}

impl Window {
    /// What lies at the place of a page: read with what follows it, more each time, where reading goes on where it was.
    fn page(&mut self, now: &dyn Now, pgno: Pgno, size: PageSize, pages: u32) -> Option<&[u8]> {
        let n = pgno.get();
        let goes_on = (self.next..self.next.saturating_add(64)).contains(&n);
        self.next = n.saturating_add(1);
        let at = n.checked_sub(self.first).map(|n| n as usize * size.len());
        let is_here = self.first > 0 && at.is_some_and(|at| at + size.len() <= self.bytes.len());
        if !is_here {
            self.wanted = if goes_on { (self.wanted * 4).clamp(1, (WINDOW / size.len()).max(1)) } else { 1 };
            let run = self.wanted.min((pages - n.min(pages)) as usize + 1);
            self.bytes.resize(run * size.len(), 0);
            self.first = if now.read(&mut self.bytes, pgno.offset(size)).is_ok() { n } else { 0 };
        }
        let at = n.checked_sub(self.first).filter(|_| self.first > 0)? as usize * size.len();
        self.bytes.get(at..at + size.len())
    }
}

/// A file that tells what was changed.
enum Teller {
    Near(Box<dyn Changes>),
    Far(FileInfo),
}

/// I-PAST-2: the pages that were changed after `then`; `None` where it cannot be told. Errors with `Missing` where a file went on its way
/// meanwhile, and as the replica and the file system do.
fn changed_since(
    replica: &Arc<Replica>,
    way: &Arc<Way>,
    now: &dyn Now,
    state: &State,
    then: &Header,
) -> Result<Option<PageSet>> {
    let mut tellers: Vec<Teller> = now.files(then.max)?.into_iter().map(Teller::Near).collect();
    let tells = |f: &&FileInfo| f.level != Level::SNAPSHOT && f.min > TxId(1) && f.max > then.max;
    tellers.extend(way.found.inventory.files.iter().filter(tells).cloned().map(Teller::Far));
    let span = |t: &Teller| match t {
        Teller::Near(f) => Span { min: f.range().0, max: f.range().1, is_near: true },
        Teller::Far(f) => Span { min: f.min, max: f.max, is_near: false },
    };
    let spans: Vec<Span> = tellers.iter().map(span).collect();
    let Some(chosen) = cover(then.max, state.txid, &spans) else { return Ok(None) };
    let chosen: Vec<&Teller> = chosen.into_iter().filter_map(|n| tellers.get(n)).collect();
    let far = chosen.iter().filter_map(|t| if let Teller::Far(f) = t { Some(f.clone()) } else { None });
    let mut far = replica.contents(way, far.collect(), None)?.into_iter();
    let mut changed = PageSet::new(state.commit.max(then.commit));
    let mut before = (then.max, then.attest.map(|a| a.after));
    for teller in chosen {
        let told = match teller {
            Teller::Near(file) => file.read()?,
            Teller::Far(_) => {
                far.next().map(|c| told_by(&c)).ok_or_else(|| Error::new(Kind::Bug, "a file is missing"))?
            }
        };
        if !goes_on(&told, before, state) {
            return Ok(None);
        }
        told.pages.iter().for_each(|p| changed.add(*p));
        before = (told.max, told.attest.map(|(_, after)| after));
    }
    now.uncut().iter().for_each(|p| changed.add(*p));
    Ok(Some(changed))
}

fn told_by(contents: &Contents) -> Changed {
    let h = &contents.header;
    Changed {
        lineage: h.lineage,
        min: h.min,
        max: h.max,
        page_size: h.page_size,
        attest: h.attest.map(|a| (a.before, a.after)),
        pages: contents.index.pages().collect(),
    }
}

/// Whether what `told` tells goes on from `before`, the TXID reached so far and the checksum of the database there, in the history of
/// `state`. A file that begins earlier has that TXID within it, and so in its history; one that begins right after it has to attest it.
fn goes_on(told: &Changed, before: (TxId, Option<crate::base::DbChecksum>), state: &State) -> bool {
    let (txid, checksum) = before;
    let begins_there = told.min == txid.next();
    let attests = matches!((told.attest, checksum), (Some((first, _)), Some(last)) if first == last);
    told.lineage == state.lineage
        && told.page_size == state.page_size
        && told.min <= txid.next()
        && told.max > txid
        && (!begins_there || attests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DbChecksum, Lineage};

    #[test]
    fn only_what_goes_on_in_the_same_history_tells_what_was_changed() {
        let size = PageSize::new(4096).unwrap();
        let state = State { lineage: Lineage(7), txid: TxId(9), page_size: size, commit: 100 };
        let sum = |n: u64| DbChecksum(DbChecksum::FLAG | n);
        let good = Changed {
            lineage: Lineage(7),
            min: TxId(6),
            max: TxId(8),
            page_size: size,
            attest: Some((sum(5), sum(8))),
            pages: vec![],
        };
        let at = (TxId(5), Some(sum(5)));
        assert!(goes_on(&good, at, &state));
        assert!(
            goes_on(&Changed { min: TxId(3), attest: None, ..good.clone() }, at, &state),
            "it has TXID 5 within it"
        );
        for (what, told, at) in [
            ("another history", Changed { lineage: Lineage(8), ..good.clone() }, at),
            ("another page size", Changed { page_size: PageSize::new(512).unwrap(), ..good.clone() }, at),
            ("a hole", Changed { min: TxId(7), ..good.clone() }, at),
            ("nothing new", Changed { max: TxId(5), min: TxId(5), ..good.clone() }, at),
            // The first file after the snapshot of a history that was begun anew: it attests that one, not the state before.
            ("another state before", Changed { attest: Some((sum(6), sum(8))), ..good.clone() }, at),
            ("no word on the state before", Changed { attest: None, ..good.clone() }, at),
            ("no checksum of the state", good.clone(), (TxId(5), None)),
        ] {
            assert!(!goes_on(&told, at, &state), "{what}");
        }
    }
}
