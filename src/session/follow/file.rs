//! The followed file itself, and the record beside it: looked at, changed, put in place.

use super::follower::Follower;
use super::names::{Here, RECORD, sync_dir};
use crate::base::{Error, Kind, Manners, PageSize, Pgno, Result, beside, crash, lock};
use crate::replica::follow::{Disk, Image, Incoming, Place, Record};
use crate::replica::{Overwrite, Restored};
use crate::sqlite::{Rewrite, despite_forks, peek};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long one change waits for readers before it is put off; new readers wait as long.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for a rebuild, which is dearer to put off.
const REBUILD_PATIENCE: Duration = Duration::from_secs(5);

impl Follower {
    /// Applies one file in one transaction. The inner error says why a rebuild is needed.
    pub(super) fn apply(&self, file: &Incoming, at: &Place) -> Result<std::result::Result<(), String>> {
        despite_forks(|| self.apply_once(file, at))
    }

    fn apply_once(&self, file: &Incoming, at: &Place) -> Result<std::result::Result<(), String>> {
        let mut tx = Rewrite::begin(&self.path)?;
        if !at.is(&tx.before().header, tx.before().size) {
            // Written meanwhile: the next look at the file finds out.
            return Ok(Ok(()));
        }
        let to = match file.judge(at, &mut Open { tx: &mut tx, size: at.page_size }) {
            Ok(to) => to,
            Err(e) if e.is_corrupt() => return Ok(Err(e.to_string())),
            Err(e) => return Err(e),
        };
        tx.seal()?;
        self.save(Some(at), &to)?;
        crash::point("follow.recorded");
        tx.exclude(PATIENCE)?;
        file.write(&to, &mut Open { tx: &mut tx, size: to.page_size })?;
        tx.commit()?;
        crash::point("follow.applied");
        let mut v = lock(&self.view);
        v.newest = v.newest.max(to.txid);
        v.pending = v.pending.saturating_sub(file.bytes());
        v.at = Some(to);
        Ok(Ok(()))
    }

    /// Makes the file what was restored to `new`: by a link if there is none, else in a transaction (I-SFOL-1).
    pub(super) fn put(&self, new: &Path, restored: &Restored) -> Result<()> {
        let mut image = Image::open(new, restored)?;
        if fs::symlink_metadata(&self.path).is_ok() {
            despite_forks(|| self.put_into(&mut image))?;
        } else {
            image.localize()?;
            let inode = fs::metadata(new).map_err(|e| Error::io("look at", new, e))?.ino();
            self.store_record(Record {
                replica: self.replica.clone(),
                inode,
                now: Some(image.place().clone()),
                next: None,
            })?;
            crash::point("follow.copied");
            if let Err(e) = fs::hard_link(new, &self.path) {
                // A file system without links; one that appeared meanwhile is not replaced.
                if fs::symlink_metadata(&self.path).is_ok() {
                    return Err(Error::io("put the copy at", &self.path, e));
                }
                fs::rename(new, &self.path).map_err(|e| Error::io("put the copy at", &self.path, e))?;
            }
            sync_dir(&self.path)?;
            crash::point("follow.linked");
        }
        let mut v = lock(&self.view);
        v.newest = v.newest.max(image.place().txid);
        if v.newest > image.place().txid && v.at.as_ref().is_some_and(|p| p.txid > image.place().txid) {
            // Another history, that is shorter.
            v.newest = image.place().txid;
        }
        v.at = Some(image.place().clone());
        Ok(())
    }

    fn put_into(&self, image: &mut Image) -> Result<()> {
        let mut tx = Rewrite::begin(&self.path)?;
        let before = *tx.before();
        if before.size > 0 && !before.header.starts_with(b"SQLite format 3\0") {
            let text =
                format!("{} is no SQLite database; remove it, or choose another path", self.path.display());
            return Err(Error::config(text));
        }
        let size = image.place().page_size;
        if before.size == 0 || tx.page_size() == size.get() {
            let pages = tx.pages();
            image.compare(&before.header, pages, &mut Open { tx: &mut tx, size })?;
        } else {
            keep_all(&mut tx)?;
            image.replaces_all(&before.header);
        }
        tx.seal()?;
        let now = lock(&self.record).as_ref().and_then(|r| r.place(&before.header, before.size).cloned());
        self.save(now.as_ref(), image.place())?;
        crash::point("follow.recorded");
        tx.exclude(REBUILD_PATIENCE)?;
        image.write(&mut Open { tx: &mut tx, size })?;
        tx.commit()
    }

    /// Where the file stands.
    pub(super) fn here(&self, overwrite: Overwrite) -> Result<Here> {
        let seen = match peek(&self.path) {
            Ok(p) => p,
            Err(e) if e.is_missing() => return Ok(Here::Absent),
            Err(e) => return Err(e),
        };
        let record = lock(&self.record).clone();
        let Some(record) = record else { return Ok(Here::Foreign("the file was not made here".to_string())) };
        if let Some(place) = record.place(&seen.header, seen.size) {
            return Ok(Here::At(place.clone()));
        }
        let inode = fs::metadata(&self.path).map_err(|e| Error::io("look at", &self.path, e))?.ino();
        if inode != record.inode && seen.size > 0 && overwrite == Overwrite::Refuse {
            let shown = self.path.display();
            let text = format!(
                "{shown} is another file than the one kept up to date; remove it, or call walrust_unreplicate() and \
                 walrust_replicate() with overwrite"
            );
            return Err(Error::new(Kind::Exists, text));
        }
        Ok(Here::Foreign(format!("something else wrote into {}", self.path.display())))
    }

    /// I-SFOL-2.
    fn save(&self, now: Option<&Place>, next: &Place) -> Result<()> {
        let inode = fs::metadata(&self.path).map_err(|e| Error::io("look at", &self.path, e))?.ino();
        self.store_record(Record {
            replica: self.replica.clone(),
            inode,
            now: now.cloned(),
            next: Some(next.clone()),
        })
    }

    fn store_record(&self, record: Record) -> Result<()> {
        let path = beside(&self.path, RECORD);
        let temp = beside(&path, ".tmp");
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|e| Error::new(Kind::Bug, "cannot encode a record").because(e))?;
        let io = |e| Error::io("write", &path, e);
        let mut file = File::create(&temp).map_err(io)?;
        if let Some(manners) = Manners::of(&self.path) {
            manners.dress(&file);
        }
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(io)?;
        fs::rename(&temp, &path).map_err(io)?;
        sync_dir(&path)?;
        *lock(&self.record) = Some(record);
        Ok(())
    }
}

/// The file, inside a transaction.
struct Open<'a> {
    tx: &'a mut Rewrite,
    size: PageSize,
}

impl Disk for Open<'_> {
    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        self.tx.read_at(page, pgno.offset(self.size))
    }
    fn keep(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.tx.keep(pgno, page)
    }
    fn write(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        self.tx.write_at(page, pgno.offset(self.size))
    }
    fn resize(&mut self, pages: u32) -> Result<()> {
        self.tx.cut(u64::from(pages) * u64::from(self.size.get()))
    }
}

/// Keeps every page, in the page size the file has.
fn keep_all(tx: &mut Rewrite) -> Result<()> {
    let size = PageSize::new(tx.page_size())?;
    let mut page = vec![0; size.len()];
    for pgno in (1..=tx.pages()).filter_map(Pgno::new).filter(|p| *p != size.lock_page()) {
        tx.read_at(&mut page, pgno.offset(size))?;
        tx.keep(pgno, &page)?;
    }
    Ok(())
}
