//! Whose spool this is: one database has one spool, and a spool one database (I-CONFIG-3).
//!
//! The spool names its database in `database.json`: by path, by directory and name, and by device and inode. A name alone would
//! take two containers that mount different volumes at one place for one database; an inode alone would lose a database that
//! was restored. Whoever begins to write the spool for another database is refused before anything is changed
//! ([`Owner::check`], and once more under the seal lock, where the record is written: [`super::Spool::claim`]).
//!
//! A record that binds nobody any more is replaced: that of a copy (a record names the file it stands in, which no copy is), and
//! that of a database which is gone from its path, as long as no process ships it.
//!
//! Refused: an owner that lives in the replica or the database. The first is not asked before capture begins, the second is
//! the app's.

use super::dir::{Spool, real_dir};
use super::files::{is_missing, read_json, temp_beside};
use super::lock::{LockFile, process};
use crate::base::{Error, Kind, Result, manners};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) const RECORD: &str = "database.json";
const SHIPPING: &str = "shipper.json";
/// How deep below a spool another one is looked for, and how many names are looked at.
const DEPTH: u32 = 3;
const NAMES: usize = 20_000;

/// A file, as the system knows it.
type DevIno = (u64, u64);

/// The database that a spool belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    database: Name,
    /// Of the database file; `None` if it was not there yet.
    file: Option<DevIno>,
    /// Of its directory.
    dir: Option<DevIno>,
    /// Inode of the record itself.
    #[serde(default)]
    record: u64,
}

/// A path; most are text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Bytes(Vec<u8>),
}

/// What is found where the record says the database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    /// No file.
    Gone,
    /// A file, or one that we may not look at.
    Present,
}

/// What a record means for a database that asks for the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It is that database's.
    Same,
    /// It is that database's, which was moved or mounted elsewhere.
    Moved,
    /// The record came here with a copy of the spool, and binds nobody.
    Copied,
    /// The database it names is gone, and nobody ships it.
    Stale,
    /// It is another database's.
    Foreign,
    /// Another process ships another database from it.
    InUse,
}

/// What the record `known` means for `me`. `copied`: it is not the file that was written. `there`: what lies at its path.
/// `shipped`: another process holds the ship lock.
fn judge(known: &Owner, me: &Owner, copied: bool, there: There, shipped: bool) -> Claim {
    let same_dir = known.dir.is_some() && known.dir == me.dir;
    let same_file = known.file.is_some() && known.file == me.file;
    let same_path = known.database == me.database;
    if same_dir && known.path().file_name() == me.path().file_name() {
        return Claim::Same;
    }
    match (same_path, copied, there) {
        // Another directory has come to its place: moved there, or that of another container.
        (true, _, _) if shipped => Claim::InUse,
        (true, _, _) => Claim::Moved,
        (false, true, _) => Claim::Copied,
        // (A second name of the same file, too: SQLite gives it another WAL.)
        (false, false, There::Present) => Claim::Foreign,
        (false, false, There::Gone) if shipped => Claim::InUse,
        (false, false, There::Gone) if same_file => Claim::Moved,
        (false, false, There::Gone) => Claim::Stale,
    }
}

impl Owner {
    /// The database at `path`, which is absolute and without links, as SQLite names it.
    pub fn of(path: &Path) -> Owner {
        let id = |p: &Path| fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
        let database = match path.to_str() {
            Some(text) => Name::Text(text.to_string()),
            None => Name::Bytes(path.as_os_str().as_bytes().to_vec()),
        };
        Owner { database, file: id(path), dir: path.parent().and_then(id), record: 0 }
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        match &self.database {
            Name::Text(t) => PathBuf::from(t),
            Name::Bytes(b) => PathBuf::from(OsString::from_vec(b.clone())),
        }
    }

    /// Errors with [`Kind::Config`] unless this database may have the spool in `dir`, which need not exist: it is another
    /// database's, or lies in another database's, or has one of those in it. Changes nothing.
    pub fn check(&self, dir: &Path) -> Result<()> {
        let at = |d: &Path| record_in(d).map(|(known, copied)| (known, copied, d.to_path_buf()));
        // (Beside the links of its path: the record is found under any name of the directory.)
        let real = real_dir(dir);
        if let Some((known, copied, d)) = at(&real) {
            self.judged(&known, copied, &d)?;
        }
        let foreign = |(known, copied, d): &(Owner, bool, PathBuf)| {
            let shipped = shipper_of(d).unwrap_or_default().is_some();
            matches!(judge(known, self, *copied, known.there(), shipped), Claim::Foreign | Claim::InUse)
        };
        if let Some((known, _, d)) = real.ancestors().skip(1).filter_map(at).find(foreign) {
            return Err(nested(&real, &d, "lies in", &known));
        }
        let mut names = NAMES;
        if let Some((known, _, d)) = records_below(&real, DEPTH, &mut names).into_iter().find(foreign) {
            return Err(nested(&real, &d, "has in it", &known));
        }
        Ok(())
    }

    fn judged(&self, known: &Owner, copied: bool, dir: &Path) -> Result<Claim> {
        let shipper = shipper_of(dir)?;
        let claim = judge(known, self, copied, known.there(), shipper.is_some());
        match claim {
            Claim::Foreign => Err(foreign(dir, &known.path())),
            Claim::InUse => Err(Error::config(format!(
                "the spool {} is in use for another database, {}, by {}; {REMEDY}",
                dir.display(),
                known.path().display(),
                process(shipper.unwrap_or_default())
            ))),
            claim => Ok(claim),
        }
    }

    fn there(&self) -> There {
        match fs::metadata(self.path()) {
            Ok(m) if m.is_file() => There::Present,
            Ok(_) => There::Gone,
            Err(e) if is_missing(&e) || e.kind() == std::io::ErrorKind::NotADirectory => There::Gone,
            Err(_) => There::Present,
        }
    }
}

impl Spool {
    /// From now on the spool is `me`'s: written down, and on disk before anything leaves it ([`Spool::vouch`]). Errors with
    /// [`Kind::Config`] if it is another database's, as [`Owner::check`] does; then nothing is changed.
    pub fn claim(&self, me: &Owner) -> Result<()> {
        let _held = self.hold_unsettled()?;
        let path = self.dir().join(RECORD);
        if let Some((known, copied)) = record_in(self.dir()) {
            match me.judged(&known, copied, self.dir())? {
                Claim::Same if !copied && (Owner { record: 0, ..known.clone() }) == *me => return Ok(()),
                Claim::Stale => log::warn!(
                    "walrust: the spool {} was that of {}, which is gone; it is taken over for {}",
                    self.dir().display(),
                    known.path().display(),
                    me.path().display()
                ),
                _ => {}
            }
        }
        let tmp = temp_beside(&path);
        let failed = |e| {
            drop(fs::remove_file(&tmp));
            Error::io("write", &path, e)
        };
        let mut file = manners::create(&tmp).map_err(failed)?;
        let record = file.metadata().map_err(failed)?.ino();
        let text = serde_json::to_vec(&Owner { record, ..me.clone() })
            .map_err(|e| Error::new(Kind::Bug, "cannot write whose spool it is").because(e))?;
        file.write_all(&text).and_then(|()| fs::rename(&tmp, &path)).map_err(failed)
    }

    /// Errors with [`Kind::Config`] if the spool has become another database's.
    pub fn check_owner(&self, me: &Owner) -> Result<()> {
        match record_in(self.dir()) {
            Some((known, copied)) => me.judged(&known, copied, self.dir()).map(drop),
            None => Ok(()),
        }
    }
}

/// Who ships from a spool, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipping {
    /// The process; 0 where the system does not say which.
    pub pid: i32,
    /// The replica, in its canonical form.
    pub replica: String,
}

impl Shipping {
    /// "process 17", or that there is one.
    pub fn process(&self) -> String {
        process(self.pid)
    }

    /// What it says is so if `pid` holds the ship lock. (In another container it has another number, and the system says 0.)
    fn confirmed(self, pid: i32) -> Option<Shipping> {
        (self.pid == pid || pid == 0).then_some(Shipping { pid, ..self })
    }
}

impl Spool {
    /// Says to other processes where this one ships. Caller holds the ship lock.
    pub fn note_shipping(&self, replica: &str) -> Result<()> {
        let pid = std::process::id().cast_signed();
        self.write_json(SHIPPING, &Shipping { pid, replica: replica.to_string() })
    }

    /// This process is about to give the ship lock back.
    pub fn forget_shipping(&self) {
        drop(fs::remove_file(self.dir().join(SHIPPING)));
    }

    /// Where another process ships from this spool; `None` if none does, or it has not said yet.
    pub fn shipping(&self) -> Result<Option<Shipping>> {
        let Some(pid) = self.ship_lock().holder()? else { return Ok(None) };
        Ok(match read_json::<Shipping>(&self.dir().join(SHIPPING))? {
            Some(s) => s.confirmed(pid),
            // An older walrust tells with its first record only.
            None => self.shipped()?.map(|s| Shipping { pid, replica: s.replica }),
        })
    }
}

/// Where another process ships from the spool in `dir`, which nothing is made of; `None` if none does, or it has not said yet. Errors
/// with [`Kind::Io`](crate::base::Kind::Io).
pub fn shipping_in(dir: &Path) -> Result<Option<Shipping>> {
    let Some(pid) = shipper_of(dir)? else { return Ok(None) };
    Ok(read_json::<Shipping>(&dir.join(SHIPPING))?.and_then(|s| s.confirmed(pid)))
}

/// The record of a directory, and whether it is a copy.
fn record_in(dir: &Path) -> Option<(Owner, bool)> {
    let path = dir.join(RECORD);
    let known: Owner = read_json(&path).ok().flatten()?;
    let ino = fs::metadata(&path).ok()?.ino();
    let copied = known.record != ino;
    Some((known, copied))
}

/// The other process that ships from the spool in `dir`, if one does; 0 where the system does not say which.
fn shipper_of(dir: &Path) -> Result<Option<i32>> {
    let lock = dir.join("lock.ship");
    if !lock.exists() {
        return Ok(None);
    }
    // (Not by a handle of its own: closing that would free the lock of this process.)
    LockFile::open(&lock)?.holder()
}

/// Who else holds a lock file, in words. One that is not there or cannot be opened tells nothing.
pub fn holder_of(lock_file: &Path) -> Option<String> {
    if !lock_file.exists() {
        return None;
    }
    super::LockFile::open(lock_file).ok()?.holder().ok()?.map(process)
}

/// Why `dir` cannot be the spool of a database: the directory `theirs` is the spool of the database `owner`, and is `dir`, lies in `dir`, or
/// has `dir` in it.
pub fn other_database(dir: &Path, theirs: &Path, owner: &Path) -> Error {
    let (real, theirs) = (real_dir(dir), real_dir(theirs));
    let owner = Owner::of(owner);
    if real == theirs {
        return foreign(dir, &owner.path());
    }
    let how = if real.starts_with(&theirs) { "lies in" } else { "has in it" };
    nested(dir, &theirs, how, &owner)
}

const REMEDY: &str = "give each database its own spool_dir, e.g. with {name}, {file} or {dir}";

fn foreign(dir: &Path, owner: &Path) -> Error {
    let (dir, owner) = (dir.display(), owner.display());
    Error::config(format!("the spool {dir} is that of another database, {owner}; {REMEDY}"))
}

fn nested(dir: &Path, other: &Path, how: &str, owner: &Owner) -> Error {
    Error::config(format!(
        "the spool {} {how} the spool {} of another database, {}; give each database a spool_dir of its own, beside the \
         other",
        dir.display(),
        other.display(),
        owner.path().display()
    ))
}

/// The records in the directories below `dir`; links are not followed.
fn records_below(dir: &Path, depth: u32, names: &mut usize) -> Vec<(Owner, bool, PathBuf)> {
    let mut out = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return out };
    for e in entries.flatten() {
        if *names == 0 {
            break;
        }
        *names -= 1;
        if e.file_type().is_ok_and(|t| t.is_dir()) {
            let d = e.path();
            out.extend(record_in(&d).map(|(known, copied)| (known, copied, d.clone())));
            if depth > 1 {
                out.extend(records_below(&d, depth - 1, names));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(path: &str, file: u64, dir: u64) -> Owner {
        Owner { database: Name::Text(path.into()), file: Some((1, file)), dir: Some((1, dir)), record: 7 }
    }

    #[test]
    fn whose_spool_it_is() {
        use Claim::*;
        use There::*;
        let known = owner("/d/a.db", 10, 2);
        let table = [
            // who asks, the record is a copy, what lies at its path, a process ships, what it means
            ("the same", owner("/d/a.db", 10, 2), false, Present, false, Same),
            ("the same, shipped by another process", owner("/d/a.db", 10, 2), false, Present, true, Same),
            ("restored over its path", owner("/d/a.db", 11, 2), false, Present, true, Same),
            ("the same directory, mounted elsewhere", owner("/mnt/a.db", 10, 2), false, Gone, true, Same),
            (
                "the same directory, seen at both places",
                owner("/mnt/a.db", 10, 2),
                false,
                Present,
                true,
                Same,
            ),
            ("copied to its path on another machine", owner("/d/a.db", 33, 44), true, Present, false, Moved),
            ("its directory was replaced", owner("/d/a.db", 33, 44), false, Present, false, Moved),
            ("the same path in another container", owner("/d/a.db", 33, 44), false, Present, true, InUse),
            ("renamed", owner("/d/b.db", 10, 2), false, Gone, false, Moved),
            ("renamed while a process ships it", owner("/d/b.db", 10, 2), false, Gone, true, InUse),
            ("a second name of the file", owner("/d/b.db", 10, 2), false, Present, false, Foreign),
            ("a copy beside the original", owner("/e/a.db", 20, 3), true, Present, false, Copied),
            ("a copy on another machine", owner("/e/a.db", 20, 3), true, Gone, false, Copied),
            ("moved to another disk", owner("/e/a.db", 20, 3), false, Gone, false, Stale),
            ("another, the first is gone", owner("/d/b.db", 20, 2), false, Gone, false, Stale),
            ("another, the first is gone and shipped", owner("/d/b.db", 20, 2), false, Gone, true, InUse),
            ("another", owner("/d/b.db", 20, 2), false, Present, false, Foreign),
            ("another, shipped", owner("/d/b.db", 20, 2), false, Present, true, Foreign),
        ];
        for (what, me, copied, there, shipped, means) in table {
            assert_eq!(judge(&known, &me, copied, there, shipped), means, "{what}");
        }
        let nobody = Owner { file: None, dir: None, ..owner("/x/b.db", 0, 0) };
        let nowhere = Owner { file: None, dir: None, ..known };
        assert_eq!(
            judge(&nowhere, &nobody, false, Present, false),
            Foreign,
            "what is not known is not equal"
        );
    }

    #[test]
    fn a_spool_is_one_databases() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        for name in ["a.db", "b.db"] {
            fs::write(at(name), "").unwrap();
        }
        let (a, b) = (Owner::of(&at("a.db")), Owner::of(&at("b.db")));
        a.check(&at("spool")).unwrap();
        assert!(!at("spool").exists(), "a check makes nothing");
        let spool = super::super::Spool::open(&at("spool")).unwrap();
        spool.claim(&a).unwrap();
        let written = fs::metadata(at("spool/database.json")).unwrap().ino();
        spool.claim(&a).unwrap();
        assert_eq!(fs::metadata(at("spool/database.json")).unwrap().ino(), written, "not written again");

        let refused = b.check(&at("spool")).unwrap_err().to_string();
        assert!(refused.contains("that of another database") && refused.contains("a.db"), "{refused}");
        assert_eq!(spool.claim(&b).unwrap_err().to_string(), refused);
        std::os::unix::fs::symlink(at("spool"), at("link")).unwrap();
        for other in ["link", "spool/", "spool/../spool", "./spool"] {
            assert!(b.check(&at(other)).is_err(), "{other}");
        }
        for (other, how) in [("spool/b", "lies in"), ("link/x/y", "lies in"), (".", "has in it")] {
            let e = b.check(&at(other)).unwrap_err().to_string();
            assert!(e.contains(how) && e.contains("a.db"), "{other}: {e}");
            a.check(&at(other)).unwrap();
        }

        // The whole directory is copied: the copy is another's to take, the original is not.
        fs::create_dir(at("copy")).unwrap();
        fs::copy(at("spool/database.json"), at("copy/database.json")).unwrap();
        b.check(&at("copy")).unwrap();
        // The database is gone: so is its claim.
        fs::remove_file(at("a.db")).unwrap();
        spool.claim(&b).unwrap();
        fs::write(at("a.db"), "").unwrap();
        assert!(Owner::of(&at("a.db")).check(&at("spool")).is_err());
    }
}
