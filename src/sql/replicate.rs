//! `walrust_replicate`, `walrust_unreplicate`

use super::common;
use crate::base::{Error, Result};
use crate::config::{OptionSpec, Options, WithSettings};
use crate::replica::Overwrite;
use crate::session::{Begun, FollowRequest, engine};
use crate::sqlite::{Connection, Value};
use crate::store::ReplicaUrl;
use std::time::Duration;

const OPTIONS: &[OptionSpec] = &[OptionSpec::duration("interval"), OptionSpec::flag("overwrite")];
const INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(10);

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
    let (f, begun) = engine().follow(req)?;
    let how = match begun {
        Begun::Already => "already following, at",
        Begun::Copied => "first copy, at",
        Begun::Continued => "continuing at",
    };
    let (from, to, at) = (f.replica(), f.path().display(), f.txid().0);
    Ok(Value::Text(format!("{from} → {to} ({how} TXID {at})")))
}

/// Stops that.
pub(super) fn unreplicate(_conn: &Connection, args: &[Value]) -> Result<Value> {
    Ok(Value::Integer(engine().unfollow(common::file(args, 0, "the path")?)?.as_i64()))
}
