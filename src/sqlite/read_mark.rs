//! A pinned read snapshot, taken as SQLite's `walTryBeginRead` takes one, without an SQL connection.
//!
//! Holding SHARED on a read slot whose mark is `m` keeps every checkpointer from copying frames past `m`
//! into the database file, and keeps every writer from resetting the WAL
//! (<https://sqlite.org/walformat.html#wal_locks>). So while a [`ReadMark`] lives, database file plus the
//! WAL frames up to its `mxFrame` are one state of the database that nobody changes under us.
//!
//! When the WAL is wholly checkpointed the snapshot is the database file alone, slot READ0 is held, and
//! the WAL *may* be reset: then frames must not be read ([`Pins::DbOnly`]).
//!
//! Refused: `BEGIN; SELECT` on a connection of ours, which also pins, but tells neither header nor slot.
//!
//! I-MARK-1: the header given out is what shared memory held after the lock was taken, both copies equal
//! and its checksum right.

use super::fork::recalled;
use super::methods::ReadExtent;
use super::raw::RawDb;
use super::shm::WAL_INDEX_HEADER;
use super::vocab::{FileLock, LockOp, SlotRange};
use crate::base::{Error, Kind, Result, clock};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// What a snapshot may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pins {
    /// The database file alone; it holds everything, and the WAL may be reset meanwhile.
    DbOnly,
    /// The database file and the WAL frames up to the header's `mxFrame`.
    DbAndWal,
}

/// A pinned snapshot. Dropping it lets go.
pub struct ReadMark {
    db: RawDb,
    header: [u8; WAL_INDEX_HEADER],
    slot: SlotRange,
    pins: Pins,
}

/// Tries before giving up; with the pauses between them, about two seconds.
const TRIES: u32 = 60;
const WRITTEN_HEADER: usize = 48;
const INIT_WORD: usize = 3;
const MX_FRAME_WORD: usize = 4;
const BACKFILL_WORD: usize = 24;
const FIRST_MARK_WORD: usize = 25;

impl ReadMark {
    /// Pins the newest snapshot of the database at `path`.
    /// Errors: [`Kind::Missing`]: no wal-index, or it is not recovered (any SQL read through SQLite
    /// recovers it); [`Kind::Retry`]: locks were busy for two seconds; else what the VFS said.
    pub fn begin(path: &Path) -> Result<ReadMark> {
        let mut db = RawDb::open(path)?;
        db.lock(FileLock::Shared)?;
        let mut last = Error::new(Kind::Retry, format!("{} is busy", path.display()));
        for n in 0..TRIES {
            recalled()?;
            if n > 4 {
                clock::sleep(Duration::from_micros(u64::from(n) * u64::from(n) * 30));
            }
            match try_begin(&mut db) {
                Ok((header, slot, pins)) => return Ok(ReadMark { db, header, slot, pins }),
                Err(e) if e.is_retry() || e.is_missing() && n < 8 => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    /// The 136 bytes of wal-index header and checkpoint information of this snapshot, in the machine's byte
    /// order. Both header copies agree and the checksum is right.
    pub fn header(&self) -> &[u8; WAL_INDEX_HEADER] {
        &self.header
    }

    /// Whether WAL frames belong to the snapshot.
    pub fn pins(&self) -> Pins {
        self.pins
    }

    /// The read slot held.
    pub fn slot(&self) -> SlotRange {
        self.slot
    }

    /// Reads the database file.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<ReadExtent> {
        self.db.read_at(buf, offset)
    }

    /// Size of the database file in bytes (the snapshot's own size is in its header).
    pub fn file_size(&self) -> Result<u64> {
        self.db.size()
    }

    /// Path of the database.
    pub fn path(&self) -> &Path {
        self.db.path()
    }
}

fn word(header: &[u8], n: usize) -> u32 {
    header.get(n * 4..n * 4 + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map_or(0, u32::from_ne_bytes)
}

/// The header as `walIndexTryHdr` accepts it.
fn valid_header(db: &RawDb) -> Result<[u8; WAL_INDEX_HEADER]> {
    let bad =
        |what: &str| Error::new(Kind::Missing, format!("the wal-index of {} is {what}", db.path().display()));
    let header = db.wal_index_header().ok_or_else(|| bad("not mapped"))?;
    let (first, rest) = header.split_at(WRITTEN_HEADER);
    if first != rest.split_at(WRITTEN_HEADER).0 {
        return Err(Error::new(
            Kind::Retry,
            format!("{}: the wal-index is being written", db.path().display()),
        ));
    }
    // isInit is one byte, the first of its word in memory.
    if first.get(INIT_WORD * 4) == Some(&0) {
        return Err(bad("not initialised"));
    }
    if checksum(first.split_at(WRITTEN_HEADER - 8).0) != (word(first, 10), word(first, 11)) {
        return Err(bad("damaged"));
    }
    Ok(header)
}

/// `walChecksumBytes` in the machine's byte order (<https://sqlite.org/fileformat2.html#checksum_algorithm>).
fn checksum(bytes: &[u8]) -> (u32, u32) {
    let (mut s0, mut s1) = (0u32, 0u32);
    for pair in bytes.chunks_exact(8) {
        s0 = s0.wrapping_add(word(pair, 0)).wrapping_add(s1);
        s1 = s1.wrapping_add(word(pair, 1)).wrapping_add(s0);
    }
    (s0, s1)
}

/// One attempt. [`Kind::Retry`]: something moved, try again.
fn try_begin(db: &mut RawDb) -> Result<([u8; WAL_INDEX_HEADER], SlotRange, Pins)> {
    db.open_wal_index()?;
    let header = valid_header(db)?;
    let mx_frame = word(&header, MX_FRAME_WORD);
    if word(&header, BACKFILL_WORD) == mx_frame {
        let slot = SlotRange::read(0);
        match db.shm_lock(slot, LockOp::LockShared) {
            Ok(()) => {
                fence(Ordering::SeqCst);
                return confirm(db, &header, slot, Pins::DbOnly, None);
            }
            // A checkpoint is at work on it: use a mark.
            Err(e) if e.is_retry() => {}
            Err(e) => return Err(e),
        }
    }
    let (mark, at) = choose_mark(db, &header, mx_frame)?;
    let slot = SlotRange::read(mark);
    db.shm_lock(slot, LockOp::LockShared)?;
    fence(Ordering::SeqCst);
    confirm(db, &header, slot, Pins::DbAndWal, Some((mark, at)))
}

/// The read mark nearest to, but not past, `mx_frame`; one is raised to it where a slot is free.
fn choose_mark(db: &mut RawDb, header: &[u8], mx_frame: u32) -> Result<(u8, u32)> {
    let marks = || (1u8..=4).map(|i| (i, word(header, FIRST_MARK_WORD + usize::from(i))));
    let best = marks().filter(|(_, m)| *m <= mx_frame).max_by_key(|(_, m)| *m);
    if let Some((i, m)) = best
        && (m == mx_frame || !db.wal_index_writable())
    {
        return Ok((i, m));
    }
    if db.wal_index_writable() {
        for i in 1..=4 {
            match db.shm_lock(SlotRange::read(i), LockOp::LockExclusive) {
                Ok(()) => {
                    let set = db.set_read_mark(i, mx_frame);
                    db.shm_lock(SlotRange::read(i), LockOp::UnlockExclusive)?;
                    set?;
                    return Ok((i, mx_frame));
                }
                Err(e) if e.is_retry() => {}
                Err(e) => return Err(e),
            }
        }
    }
    best.ok_or_else(|| Error::new(Kind::Retry, format!("{}: no read mark is free", db.path().display())))
}

/// With the lock held: nothing moved meanwhile, else let go and try again.
fn confirm(
    db: &mut RawDb,
    before: &[u8; WAL_INDEX_HEADER],
    slot: SlotRange,
    pins: Pins,
    mark: Option<(u8, u32)>,
) -> Result<([u8; WAL_INDEX_HEADER], SlotRange, Pins)> {
    let now = db.wal_index_header();
    let same = now.filter(|now| {
        now.split_at(2 * WRITTEN_HEADER).0 == before.split_at(2 * WRITTEN_HEADER).0
            && mark.is_none_or(|(i, at)| word(now, FIRST_MARK_WORD + usize::from(i)) == at)
    });
    match same {
        Some(now) => Ok((now, slot, pins)),
        None => {
            db.shm_lock(slot, LockOp::UnlockShared)?;
            Err(Error::new(Kind::Retry, format!("{}: the wal-index changed", db.path().display())))
        }
    }
}
