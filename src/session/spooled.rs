//! What a spool tells of a database that another process of this machine streams, or none does.
//!
//! Small records are read, and it is asked who holds the ship lock; no lock is taken, nothing is written. What only the shipping process
//! knows (breaker, last error) is not told: that one can be asked ([`super::neighbours`]).

use super::begin::request;
use super::registry::Engine;
use super::whose::same_replica;
use crate::base::{Result, Timestamp, TxId};
use crate::spool::{FileStamp, Handoff, Owner, Position, Spool};
use std::path::{Path, PathBuf};

/// What is known from the spool alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpoolState {
    /// No process of this machine ships it.
    Stopped,
    /// A process ships it, and something waits.
    CatchingUp,
    /// A process ships it, and nothing waits in the spool.
    Streaming,
    /// The spool is another database's.
    Failed,
}

impl SpoolState {
    /// As `walrust status` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            SpoolState::Stopped => "stopped",
            SpoolState::CatchingUp => "catching up",
            SpoolState::Streaming => "streaming",
            SpoolState::Failed => "failed",
        }
    }
}

/// A row of `walrust status`.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// The database.
    pub database: PathBuf,
    /// Where it went, else where it is configured to go.
    pub replica: Option<String>,
    /// See there.
    pub state: SpoolState,
    /// The process that ships it; 0 if the system does not name it.
    pub shipper: Option<i32>,
    /// The newest transaction in the spool.
    pub txid: TxId,
    /// The newest in the replica.
    pub replicated: TxId,
    /// Whether the replica has all that is known here.
    pub is_even: bool,
    /// Whether it is well. Where nobody streams it, that is as long as the replica has all that its last close left.
    pub is_well: bool,
    /// Bytes that wait.
    pub pending_bytes: u64,
    /// Size of the write-ahead log.
    pub wal_bytes: u64,
    /// Size of the spool.
    pub spool_bytes: u64,
    /// When the last upload succeeded.
    pub last_upload: Option<Timestamp>,
    /// What is wrong.
    pub why: Option<String>,
    /// When the spool's records were last written.
    pub changed: Option<Timestamp>,
}

impl Engine {
    /// What the spool of the database at `path` tells; `None` where there is none. Errors as the file system, and the configuration.
    pub fn spooled(&self, path: &Path) -> Result<Option<Spooled>> {
        let dir = self.spool_dir(path)?;
        if !dir.is_dir() {
            return Ok(None);
        }
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let wal = Path::new(&wal);
        let mut told = Spooled {
            database: path.to_path_buf(),
            replica: None,
            state: SpoolState::Failed,
            shipper: None,
            txid: TxId::ZERO,
            replicated: TxId::ZERO,
            is_even: false,
            is_well: false,
            pending_bytes: 0,
            wal_bytes: 0,
            spool_bytes: 0,
            last_upload: None,
            why: None,
            changed: None,
        };
        if let Err(e) = Owner::of(path).check(&dir) {
            told.why = Some(e.to_string());
            return Ok(Some(told));
        }
        let spool = Spool::open(&dir)?;
        let position = spool.position()?;
        let wanted = self.wanted(path)?;
        let is_wanted = |replica: &str| wanted.as_ref().is_none_or(|w| same_replica(w, replica));
        let shipped = spool.shipped()?.filter(|s| is_wanted(&s.replica));
        let elsewhere = spool.shipping()?.filter(|s| !is_wanted(&s.replica));
        told.txid = position.as_ref().map(|p| p.txid).unwrap_or_default();
        told.replicated = shipped.as_ref().map(|s| s.txid).unwrap_or_default();
        let waits = told.txid > told.replicated || position.as_ref().is_some_and(|p| p.pieces > 0);
        told.shipper = spool.ship_lock().holder()?.filter(|_| elsewhere.is_none());
        told.state = match (told.shipper, waits) {
            (None, _) => SpoolState::Stopped,
            (Some(_), true) => SpoolState::CatchingUp,
            (Some(_), false) => SpoolState::Streaming,
        };
        let is_as_left = position.as_ref().is_some_and(|p| is_as_closed(p, path, wal));
        // Who does not stream it knows of no commit that is in no file of the spool yet.
        told.is_even = !waits && (told.shipper.is_some() || is_as_left);
        told.is_well = elsewhere.is_none() && (told.shipper.is_some() || told.is_even);
        told.why = match elsewhere {
            Some(s) => Some(format!("{} of this machine ships this database to {}", s.process(), s.replica)),
            None if told.shipper.is_none() && !is_as_left => Some(
                "nobody streams it, and it was changed since it last was, or its last program did not close it: what the replica lacks is \
                 known when it is streamed again"
                    .to_string(),
            ),
            None => None,
        };
        told.replica = shipped.as_ref().map(|s| s.replica.clone()).or(wanted);
        told.pending_bytes = spool.bytes_waiting();
        told.wal_bytes = std::fs::metadata(wal).map_or(0, |m| m.len());
        told.spool_bytes = spool.bytes();
        told.last_upload = shipped.map(|s| s.time);
        told.changed = changed(&dir);
        Ok(Some(told))
    }

    /// The replica that the configuration names for the database, in its canonical form.
    fn wanted(&self, path: &Path) -> Result<Option<String>> {
        let resolved = self.resolve(path, None)?;
        if resolved.settings.replica.is_none() {
            return Ok(None);
        }
        Ok(Some(request(path, &resolved, false)?.replica.to_string()))
    }
}

/// When the records of a spool were last written.
fn changed(dir: &Path) -> Option<Timestamp> {
    let records = std::fs::read_dir(dir).ok()?.filter_map(|e| e.ok()?.metadata().ok()?.modified().ok());
    records.max().map(Timestamp::from)
}

/// Whether the database is as the last close of a program with walrust left it: everything in the file, and that unchanged.
fn is_as_closed(p: &Position, path: &Path, wal: &Path) -> bool {
    let Handoff::Closed(stamp) = p.handoff else { return false };
    std::fs::metadata(wal).map_or(true, |m| m.len() == 0) && FileStamp::of(path).is_ok_and(|now| now == stamp)
}
