//! What this process has of the past of the databases that it watches: the database's file, its WAL and its spool, as room `reader` asks
//! for them. What is found is of no state that is known: the asker proves it.
//!
//! A handle of ours on the database's file exists for the time of one read (I-HND-1), so neither a close of the app's nor a fork waits.

use super::engine::engine;
use super::handles::Handles;
use super::watched::{Watched, ended};
use crate::base::{Error, Pgno, Result, TxId};
use crate::config::default_cache;
use crate::reader::{CacheAt, Changed, Changes, Nearby, Now, State, Vicinity};
use crate::replica::FileId;
use crate::spool::{LocalFile, Moment};
use crate::sqlite::RawDb;
use crate::store::ReplicaUrl;
use crate::wal::{self, ReadAt};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Frames of a WAL that are looked through at most. Of a longer one, what is not in the database's file comes from elsewhere.
const MOST_FRAMES: u32 = 1 << 18;

/// The watched databases of this process.
#[derive(Debug, Default)]
pub struct Neighbourhood;

impl Vicinity for Neighbourhood {
    fn find(&self, path: &Path) -> Result<Arc<dyn Nearby>> {
        let w = engine().find(path).ok_or_else(|| {
            Error::config(format!(
                "{}: it is not watched in this process, so its past cannot be read through it; open its replica's URL",
                path.display()
            ))
        })?;
        Ok(near(&w))
    }

    fn cache(&self) -> Option<CacheAt> {
        let settings = engine().config().and_then(|c| c.process()).map(|r| r.settings);
        let settings = settings.inspect_err(|e| log::warn!("walrust: no cache of what is read: {e}")).ok()?;
        let dir = settings.cache_dir.or_else(default_cache)?;
        (settings.cache_size.0 > 0).then_some(CacheAt { dir, bytes: settings.cache_size.0 })
    }
}

/// What there is here of a watched database's past.
pub fn near(w: &Arc<Watched>) -> Arc<dyn Nearby> {
    Arc::new(Neighbour(Arc::downgrade(w)))
}

/// A watched database, for as long as it is watched.
struct Neighbour(Weak<Watched>);

impl Neighbour {
    fn watched(&self) -> Result<Arc<Watched>> {
        self.0.upgrade().ok_or_else(ended)
    }
}

impl Nearby for Neighbour {
    fn replica(&self) -> Result<ReplicaUrl> {
        ReplicaUrl::parse(self.watched()?.store.url())
    }

    fn now(&self) -> Result<Option<Box<dyn Now>>> {
        let w = self.watched()?;
        let Some(moment) = w.spool.moment()? else { return Ok(None) };
        let wal = w.tracker.wal_path().to_path_buf();
        Ok(Some(Box::new(Here { watched: Arc::downgrade(&w), moment, wal, frames: None })))
    }

    fn copy(&self, id: FileId) -> Option<File> {
        self.watched().ok()?.spool.local_copy(id.level, &id.name())
    }
}

/// A watched database at a moment of its spool.
struct Here {
    watched: Weak<Watched>,
    moment: Moment,
    wal: PathBuf,
    /// Which frame holds which page at that moment; looked up when it is wanted.
    frames: Option<Frames>,
}

struct Frames {
    /// `None` where no frame is wanted.
    file: Option<File>,
    of_page: HashMap<Pgno, u32>,
}

impl Now for Here {
    fn state(&self) -> State {
        let p = &self.moment.position;
        State { lineage: p.lineage, txid: p.txid, page_size: p.page_size, commit: p.commit }
    }

    fn files(&self, since: TxId) -> Result<Vec<Box<dyn Changes>>> {
        let w = self.watched.upgrade().ok_or_else(ended)?;
        let mut files = w.spool.files_since(since)?;
        files.retain(|f| f.name.max <= self.moment.position.txid);
        Ok(files.into_iter().map(|f| Box::new(Told(f)) as Box<dyn Changes>).collect())
    }

    fn uncut(&self) -> &[Pgno] {
        &self.moment.pieces
    }

    fn sums(&self, first: Pgno, n: usize) -> Result<Vec<u64>> {
        self.moment.sums.run(first, n)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let w = self.watched.upgrade().ok_or_else(ended)?;
        let permit = w.handles.permit_own()?;
        let read = RawDb::open(w.handles.path())?.read_at(buf, offset).map(drop);
        drop(permit);
        read
    }

    fn frame(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<bool> {
        if self.frames.is_none() {
            let w = self.watched.upgrade().ok_or_else(ended)?;
            self.frames = Some(frames(&w.handles, &self.moment, &self.wal));
        }
        let size = self.moment.position.page_size;
        let found = self.frames.as_ref().and_then(|f| Some((f.file.as_ref()?, *f.of_page.get(&pgno)?)));
        let Some((file, n)) = found else { return Ok(false) };
        file.read_exact_at(page, wal::page_offset(n, size)).map_err(|e| Error::io("read", &self.wal, e))?;
        Ok(true)
    }
}

/// The frames up to the moment, while the WAL is still the one that it was sealed from. Where it is another, all of them are in the
/// database's file.
fn frames(handles: &Handles, moment: &Moment, wal: &Path) -> Frames {
    let none = Frames { file: None, of_page: HashMap::new() };
    let (Some(point), Some(header)) = (moment.position.wal.point(), handles.header()) else { return none };
    let is_same = (header.salt.salt1, header.salt.salt2) == (point.salt1, point.salt2);
    if !is_same || point.frame == 0 || point.frame > MOST_FRAMES || point.frame > header.max_frame {
        return none;
    }
    let (Some(pages), Ok(file)) = (handles.frame_pages(0, point.frame), File::open(wal)) else { return none };
    let of_page = pages.into_iter().zip(1..).filter_map(|(p, n)| Some((Pgno::new(p)?, n))).collect();
    Frames { file: Some(file), of_page }
}

/// A file of the spool that tells what was changed.
struct Told(LocalFile);

impl Changes for Told {
    fn range(&self) -> (TxId, TxId) {
        (self.0.name.min, self.0.name.max)
    }

    fn read(&self) -> Result<Changed> {
        let (header, pages) = self.0.pages()?;
        Ok(Changed {
            lineage: header.lineage,
            min: header.min,
            max: header.max,
            page_size: header.page_size,
            attest: header.attest.map(|a| (a.before, a.after)),
            pages,
        })
    }
}
