//! The entries that the manifest of the replica is owed: of files that are there and that it does not name yet.
//!
//! `owed` is one line with the replica's URL, and one line for each file: what the manifest will say of it. What the lines hold is
//! their reader's; a line that a power cut left half written is one that the reader does not understand, and who misses one reads the
//! object.

use super::dir::Spool;
use super::files::{is_missing, replace};
use crate::base::{Error, Result};
use std::fs::{self, File};
use std::io::Write;

impl Spool {
    /// The lines that are owed to `replica`; `None` when nothing is recorded about that one. Errors as the file system does.
    pub fn owed(&self, replica: &str) -> Result<Option<Vec<String>>> {
        let path = self.dir.join("owed");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if is_missing(&e) => return Ok(None),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let is_its = lines.next() == Some(replica);
        Ok(is_its.then(|| lines.filter(|l| !l.is_empty()).map(ToString::to_string).collect()))
    }

    /// One line more. Errors as the file system does, also where [`Spool::set_owed`] was never called.
    pub fn owe(&self, line: &str) -> Result<()> {
        let path = self.dir.join("owed");
        #[cfg(feature = "sim")]
        crate::base::sim::disk(&path)?;
        let file = File::options().append(true).open(&path);
        let done = file.and_then(|mut f| f.write_all(format!("{line}\n").as_bytes()));
        done.map_err(|e| Error::io("write", &path, e))
    }

    /// These and no others are owed to `replica`. Errors as the file system does; then the record is as it was.
    pub fn set_owed(&self, replica: &str, lines: &[String]) -> Result<()> {
        let mut text = format!("{replica}\n");
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        replace(&self.dir.join("owed"), text.as_bytes(), |_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_owed_to_one_replica() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool")).unwrap();
        assert_eq!(spool.owed("s3://a").unwrap(), None);
        assert!(spool.owe("[1]").is_err(), "to whom?");
        spool.set_owed("s3://a", &[]).unwrap();
        assert_eq!(spool.owed("s3://a").unwrap(), Some(vec![]));
        spool.owe("[1]").unwrap();
        spool.owe("[2]").unwrap();
        assert_eq!(spool.owed("s3://a").unwrap(), Some(vec!["[1]".to_string(), "[2]".to_string()]));
        assert_eq!(spool.owed("s3://b").unwrap(), None);
        spool.set_owed("s3://a", &["[2]".to_string()]).unwrap();
        assert_eq!(spool.owed("s3://a").unwrap(), Some(vec!["[2]".to_string()]));
        // A power cut: half a line, and bytes that are no text.
        std::fs::write(dir.path().join("spool/owed"), b"s3://a\n[2]\n[3,\xff\0").unwrap();
        assert_eq!(spool.owed("s3://a").unwrap().unwrap().first().map(String::as_str), Some("[2]"));
    }
}
