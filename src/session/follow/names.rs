//! What a followed file's companions are called, and how a look at the file comes out.

use crate::base::{Error, Result, beside, durable};
use crate::replica::follow::{Place, Record};
use std::fs;
use std::path::Path;
use std::time::Duration;

pub(super) const RECORD: &str = "-walrust-follow.json";
pub(super) const LOCK: &str = "-walrust-follow.lock";
pub(super) const IMAGE: &str = "-walrust-follow.new";
pub(super) const PART: &str = "-walrust-follow.part";

/// Where the file stands.
pub(super) enum Here {
    Absent,
    At(Place),
    /// Written by somebody else.
    Foreign(String),
}

/// How following began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// It was followed by this process already.
    Already,
    /// With a first copy.
    Copied,
    /// From where it stood.
    Continued,
}

pub(super) fn load(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(beside(path, RECORD)).ok()?).ok()
}

pub(super) fn sync_dir(file: &Path) -> Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    durable::sync_dir(dir).map_err(|e| Error::io("sync the directory", dir, e))
}

pub(super) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
