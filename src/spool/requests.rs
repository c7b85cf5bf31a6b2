//! What a process asks of the one that ships its database: two files in `requests/`, and the answer beside them.
//!
//! `<number>.lock` is locked by the asker for as long as it waits; then `<number>.json` says what it wants. The shipper writes
//! `<number>.answer`. The folder is made by the first request, so that a spool of which nobody asks anything costs nothing.
//!
//! * I-REQ-1: a request is alive while its asker holds its lock. What a dead asker left is removed by whoever ships, unanswered.
//! * I-REQ-2: a request is answered once, and all of it is removed by its asker. A shipper that dies leaves it to the next one.
//! * I-REQ-3: what is lent stays lent while the request is alive, whoever ships: the next shipper lends it anew.
//!
//! A crash between the lock and the wish leaves an empty lock file, which means nothing.
//! Refused: a socket (a process of another container shares the spool, not the network); the asker's own upload (two processes would
//! write one replica).

use super::dir::create_dir;
use super::files::{read_json, remove_if_there, replace_json};
use super::lock::LockFile;
use crate::base::{Error, Kind, Result, clock};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FOLDER: &str = "requests";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// A full snapshot in the replica, or a copy of the database at another URL.
    Snapshot {
        /// That URL.
        to: Option<String>,
    },
    /// The right to remove files from the replica.
    Manifest,
    /// What the process shows of its databases.
    Face,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The snapshot of this TXID is there.
    Snapshot(u64),
    /// The manifest is the asker's while the request is alive.
    Lent,
    /// The rows of its page.
    Face(serde_json::Value),
    /// It cannot be done.
    Refused(Refusal),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    kind: Kind,
    error: String,
}

impl Answer {
    /// It failed with `e`.
    pub fn refused(e: &Error) -> Answer {
        Answer::Refused(Refusal { kind: e.kind(), error: e.to_string() })
    }
}

impl Refusal {
    /// The error that the shipper met.
    pub fn error(self) -> Error {
        Error::new(self.kind, self.error)
    }
}

/// A request of this process, until dropped.
#[derive(Debug)]
pub struct Request {
    files: Files,
    lock: Arc<LockFile>,
}

/// Where a request lies.
#[derive(Clone, Debug)]
struct Files {
    folder: PathBuf,
    number: String,
}

impl Files {
    fn at(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{suffix}", self.number))
    }

    /// The wish first: without it the others mean nothing.
    fn remove(&self) {
        for suffix in ["json", "answer", "lock"] {
            drop(remove_if_there(&self.at(suffix)));
        }
    }

    fn write<T: Serialize>(&self, suffix: &str, value: &T) -> Result<()> {
        replace_json(&self.at(suffix), value, |_| Ok(()))
    }
}

impl Request {
    /// Asks whoever ships from the spool in `dir`. Errors with [`Kind::Io`] where that cannot be written.
    pub fn ask(dir: &Path, wanted: &Wanted) -> Result<Request> {
        let folder = dir.join(FOLDER);
        create_dir(&folder, None).map_err(|e| Error::io("create spool directory", &folder, e))?;
        let files = Files { folder, number: format!("{:016x}", clock::random_u64()) };
        let lock = LockFile::open(&files.at("lock"))?;
        let request = Request { files, lock };
        if !request.lock.try_process()? {
            return Err(Error::new(Kind::Io, format!("cannot lock {}", request.files.at("lock").display())));
        }
        request.files.write("json", wanted)?;
        Ok(request)
    }

    /// The answer, when there is one. Errors with [`Kind::Io`], and with [`Kind::Retry`] where the request was removed.
    pub fn answer(&self) -> Result<Option<Answer>> {
        let answer = read_json(&self.files.at("answer"))?;
        if answer.is_none() && !self.files.at("json").exists() {
            return Err(Error::new(Kind::Retry, "the request was removed from the spool; call again"));
        }
        Ok(answer)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.files.remove();
        self.lock.release();
    }
}

/// A request of another process.
#[derive(Clone, Debug)]
pub struct Waiting {
    files: Files,
    /// What it wants.
    pub wanted: Wanted,
}

impl Waiting {
    /// Which one it is, among all of this spool.
    pub fn number(&self) -> &str {
        &self.files.number
    }

    /// Whether its asker still waits for it, or uses what was lent (I-REQ-1).
    pub fn is_alive(&self) -> bool {
        let lock = self.files.at("lock");
        self.files.at("json").exists()
            && lock.exists()
            && LockFile::open(&lock).and_then(|l| l.is_held_elsewhere()).unwrap_or(false)
    }

    /// Whether it was answered.
    pub fn is_answered(&self) -> bool {
        self.files.at("answer").exists()
    }

    /// Answers it. Errors with [`Kind::Io`].
    pub fn answer(&self, answer: &Answer) -> Result<()> {
        self.files.write("answer", answer)
    }
}

/// The requests that lie in the spool in `dir` and are alive; what dead askers left is removed (I-REQ-1).
pub fn waiting(dir: &Path) -> Vec<Waiting> {
    let Ok(entries) = fs::read_dir(dir.join(FOLDER)) else { return Vec::new() };
    let mut alive = Vec::new();
    for path in entries.flatten().map(|e| e.path()) {
        let is_wish = path.extension().is_some_and(|x| x == "json");
        let Some(number) =
            path.file_stem().and_then(|s| s.to_str()).filter(|n| is_wish && !n.starts_with('.'))
        else {
            continue;
        };
        let Ok(Some(wanted)) = read_json(&path) else { continue };
        let files = Files { folder: dir.join(FOLDER), number: number.to_string() };
        let one = Waiting { files, wanted };
        if one.is_alive() {
            alive.push(one);
        } else {
            one.files.remove();
        }
    }
    alive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_any_more_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(waiting(dir.path()).is_empty());
        let request = Request::ask(dir.path(), &Wanted::Manifest).unwrap();
        assert_eq!(request.answer().unwrap(), None);
        let folder = dir.path().join(FOLDER);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        // (A lock of this process is no other's: so this looks like a request of a dead process.)
        assert!(waiting(dir.path()).is_empty());
        assert_eq!(request.answer().unwrap_err().kind(), Kind::Retry);
        drop(request);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn answers_keep_the_kind_of_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request::ask(dir.path(), &Wanted::Snapshot { to: Some("s3://b/c".into()) }).unwrap();
        let shipper = Waiting { files: request.files.clone(), wanted: Wanted::Manifest };
        assert!(!shipper.is_answered());
        shipper.answer(&Answer::refused(&Error::new(Kind::Timeout, "too late"))).unwrap();
        assert!(shipper.is_answered());
        let Some(Answer::Refused(why)) = request.answer().unwrap() else { panic!() };
        let e = why.error();
        assert_eq!((e.kind(), e.to_string()), (Kind::Timeout, "too late".to_string()));
    }
}
