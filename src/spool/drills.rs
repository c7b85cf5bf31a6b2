//! The history of drills: one line of JSON each, oldest first, the newest [`KEPT`].

use super::dir::Spool;
use super::files::{is_missing, replace};
use crate::base::{Error, Result, Timestamp};
use std::fs;

/// Lines that stay when there are twice as many.
const KEPT: usize = 200;
/// The result of the line that only begins the count.
const BEGUN: &str = "begun";

/// What is remembered of a drill.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)] // as the columns of `walrust_drills`
pub struct DrillNote {
    pub replica: String,
    /// Milliseconds since 1970.
    pub time: i64,
    pub txid: Option<u64>,
    pub seconds: f64,
    pub bytes: u64,
    pub result: String,
    pub message: String,
}

impl DrillNote {
    /// No drill: the count of the time until the first one begins.
    pub fn begun(replica: &str, now: Timestamp) -> DrillNote {
        DrillNote {
            replica: replica.to_string(),
            time: now.0,
            txid: None,
            seconds: 0.0,
            bytes: 0,
            result: BEGUN.to_string(),
            message: String::new(),
        }
    }
}

impl Spool {
    fn drill_notes(&self) -> Result<Vec<DrillNote>> {
        let path = self.dir.join("drills");
        match fs::read(&path) {
            // (A line that a power cut left half written is left out.)
            Ok(text) => Ok(String::from_utf8_lossy(&text)
                .lines()
                .filter_map(|l| serde_json::from_str(l).ok())
                .collect()),
            Err(e) if is_missing(&e) => Ok(Vec::new()),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// The drills that were made, oldest first. Errors as the file system does.
    pub fn drills(&self) -> Result<Vec<DrillNote>> {
        let mut all = self.drill_notes()?;
        all.retain(|n| n.result != BEGUN);
        Ok(all)
    }

    /// When `replica` was last drilled, or the count begun; `None` if neither. Errors as the file system does.
    pub fn last_drill(&self, replica: &str) -> Result<Option<Timestamp>> {
        let all = self.drill_notes()?;
        Ok(all.iter().rev().find(|n| n.replica == replica).map(|n| Timestamp(n.time)))
    }

    /// One line more. Errors as the file system does.
    pub fn note_drill(&self, note: &DrillNote) -> Result<()> {
        let mut all = self.drill_notes()?;
        all.push(note.clone());
        let from = if all.len() > 2 * KEPT { all.len() - KEPT } else { 0 };
        let mut text = String::new();
        for n in all.get(from..).unwrap_or_default() {
            text.push_str(&serde_json::to_string(n).unwrap_or_default());
            text.push('\n');
        }
        replace(&self.dir.join("drills"), text.as_bytes(), |_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_the_beginning_is_no_drill() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        assert_eq!(spool.last_drill("r").unwrap(), None);
        spool.note_drill(&DrillNote::begun("r", Timestamp(7))).unwrap();
        assert_eq!((spool.last_drill("r").unwrap(), spool.drills().unwrap().len()), (Some(Timestamp(7)), 0));
        for n in 0..450 {
            let note = DrillNote { result: "passed".into(), ..DrillNote::begun("r", Timestamp(n)) };
            spool.note_drill(&note).unwrap();
        }
        let kept = spool.drills().unwrap();
        assert!((200..=400).contains(&kept.len()) && kept.last().unwrap().time == 449, "{}", kept.len());
        assert_eq!(spool.last_drill("other").unwrap(), None);
        std::fs::write(dir.path().join("drills"), b"{\n\xff\n").unwrap();
        assert!(spool.drills().unwrap().is_empty());
    }
}
