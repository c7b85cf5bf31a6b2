//! The age file of an LTX file that is to leave, under `encrypt`: made once, kept in the spool until the replica has it.
//!
//! Rules
//! * I-AGE-1 Of one LTX file one age file is put: it is written and synced before its PUT begins, and a PUT that is tried again, resumed, or
//!   made once more after a crash takes the same. (Two age files of one content are never alike, and the second would be taken for a
//!   rival's.) It goes after the file has left the queue.
//! * I-AGE-2 What the manifest says of it is of the object (bytes, SHA-256) or visible anyway (TXIDs, pages, time): no checksum of the
//!   content in the clear, by which a guess at it could be confirmed. Nothing is put beside it.
//! * I-AGE-3 No identity is read here: for all that this machine uploads it has the content in its spool.
//!
//! A crash leaves an age file, which the next try takes up; one of which nothing comes any more is removed after a week. Refused: to encrypt
//! while uploading (I-AGE-1 would not hold); a nonce made of the content (that would be cryptography of our own).

use crate::base::{Error, Manners, Result, Timestamp, TxId, clock, crash};
use crate::replica::FileId;
use crate::replica::manifest::ManifestEntry;
use crate::spool::Spool;
use crate::store::{Body, Recipients};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where they lie in the spool.
pub(super) const DIR: &str = "sealed";
/// One that is as old as this is nobody's.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// What all age files of one LTX file for one replica begin with.
fn stem(replica: &str, id: FileId) -> String {
    let place = Sha256::digest(replica);
    format!(
        "{}-{}-{}-{}-",
        id.level.get(),
        id.min,
        id.max,
        crate::store::hex(place.get(..4).unwrap_or_default())
    )
}

/// The age file of the file at `from`, of which `entry` tells, for `replica`; and what the manifest will say of it. Takes as long as the
/// bytes take. Errors as reading and writing files does.
pub(super) fn make(
    spool: &Spool,
    replica: &str,
    recipients: &Recipients,
    from: &Path,
    entry: &ManifestEntry,
) -> Result<(PathBuf, ManifestEntry)> {
    let dir = spool.dir().join(DIR);
    // (Not by the recipients: what may be there already was made for those of then.)
    let path = dir.join(format!("{}{:016x}.age", stem(replica, entry.id), entry.crc));
    if path.exists() {
        let body = Body::File(path.clone());
        let sealed = entry.sealed(body.len()?, body.sha256()?);
        return Ok((path, sealed));
    }
    let made = match Manners::of(spool.dir()) {
        Some(manners) => manners.make_dir(&dir).map(drop),
        None => std::fs::create_dir_all(&dir),
    };
    made.map_err(|e| Error::io("create", &dir, e))?;
    let (bytes, sha256) = spool.write_file(&path, |w| {
        let sums = recipients.seal(from, w)?;
        w.flush().map_err(|e| Error::io("write", &path, e))?;
        w.get_ref().sync_all().map_err(|e| Error::io("sync", &path, e))?;
        Ok(sums)
    })?;
    sync_dir(&dir)?;
    crash::point("ship.sealed");
    Ok((path, entry.sealed(bytes, sha256)))
}

fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", dir, e))
}

/// The upload of that file is recorded. (What stays behind is swept.)
pub(super) fn done(spool: &Spool, replica: &str, id: FileId) {
    let stem = stem(replica, id);
    remove(spool, |name, _| name.starts_with(&stem));
}

/// Removes age files of which nothing came: old ones of TXIDs that the replica has.
pub(super) fn sweep(spool: &Spool, replicated: TxId) {
    let now = clock::now();
    remove(spool, |name, made| {
        let max = name.split('-').nth(2).and_then(|n| u64::from_str_radix(n, 16).ok());
        now.since(made) > FORGOTTEN && max.is_some_and(|n| TxId(n) <= replicated)
    });
}

fn remove(spool: &Spool, is_done: impl Fn(&str, Timestamp) -> bool) {
    let Ok(all) = std::fs::read_dir(spool.dir().join(DIR)) else { return };
    for file in all.flatten() {
        let made = file.metadata().and_then(|m| m.modified()).map(Timestamp::from);
        if file.file_name().to_str().is_some_and(|name| is_done(name, made.unwrap_or(clock::now()))) {
            drop(std::fs::remove_file(file.path()));
        }
    }
}
