//! `walrust_replicate`, `walrust_unreplicate`

use super::common;
use super::once::Done;
use crate::base::{Error, Kind, Result, TxId};
use crate::config::{OptionSpec, Options, WithSettings};
use crate::replica::Overwrite;
use crate::session::{Begun, FollowRequest, engine};
use crate::sqlite::{Connection, Value};
use crate::store::ReplicaUrl;
use std::path::{Path, PathBuf};
use std::time::Duration;

const OPTIONS: &[OptionSpec] = &[OptionSpec::duration("interval"), OptionSpec::flag("overwrite")];
const INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(10);

/// Copies that were given up, and their TXIDs.
static UNFOLLOWED: Done<TxId> = Done::new();

/// Keeps a file up to date from a replica.
pub(super) fn replicate(_conn: &Connection, args: &[Value]) -> Result<Value> {
    let url = common::needed(args, 0, "the replica URL")?;
    let path = common::file(args, 1, "the path")?;
    let options = Options::parse("options", common::text(args, 2, "options")?, OPTIONS, WithSettings::No)?;
    let interval = options.duration("interval").unwrap_or(INTERVAL);
    if interval < SHORTEST {
        return Err(Error::config("option interval must be 10ms or longer"));
    }
    let overwrite = if options.flag("overwrite") { Overwrite::Replace } else { Overwrite::Refuse };
    let req = FollowRequest { path, replica: ReplicaUrl::parse(url)?, interval, overwrite };
    let absolute = absolute(path)?;
    let (f, begun) = engine().follow(req)?;
    UNFOLLOWED.forget(&absolute);
    let how = match begun {
        Begun::Already => "already following, at",
        Begun::Copied => "first copy, at",
        Begun::Continued => "continuing at",
    };
    let (from, to, at) = (f.replica(), f.path().display(), f.txid());
    Ok(Value::Text(format!("{from} -> {to} ({how} TXID {at})")))
}

/// Stops that.
pub(super) fn unreplicate(_conn: &Connection, args: &[Value]) -> Result<Value> {
    let path = common::file(args, 0, "the path")?;
    let absolute = absolute(path)?;
    let txid = match (engine().unfollow(path), UNFOLLOWED.known(&absolute)) {
        (Err(e), Some(before)) if e.kind() == Kind::Config => before,
        (done, _) => done?,
    };
    UNFOLLOWED.note(&absolute, txid);
    Ok(Value::Integer(txid.as_i64()))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))
}
