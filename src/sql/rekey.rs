//! `walrust_rekey`

use super::common;
use crate::base::{Error, Result};
use crate::config::{OptionSpec, Options, WithSettings};
use crate::replica::Action;
use crate::session::engine;
use crate::sqlite::{Connection, Value};
use crate::store::Recipients;

const OPTIONS: &[OptionSpec] =
    &[OptionSpec::flag("force"), OptionSpec::flag("json"), OptionSpec::texts("encrypt")];

/// Encrypts the files of a replica for other recipients: a dry run unless forced.
pub(super) fn rekey(conn: &Connection, args: &[Value]) -> Result<Value> {
    let url = common::text(args, 0, "the replica URL")?;
    let options = Options::parse("options", common::text(args, 1, "options")?, OPTIONS, WithSettings::No)?;
    let store = common::named(common::store(conn, url)?);
    let settings = common::settings_of_replica(conn, store.url())?;
    let keys = match options.texts("encrypt") {
        [] => settings.encrypt.as_slice(),
        named => named,
    };
    let recipients = Recipients::parse(keys)?.ok_or_else(|| {
        Error::config(
            "for whom? name the public keys: {\"encrypt\":[\"age1...\"]}, or set encrypt for the database",
        )
    })?;
    let action = if options.flag("force") { Action::Force } else { Action::DryRun };
    let done = engine().rekey(&store, conn.main_db_path().as_deref(), &settings, &recipients, action)?;
    Ok(Value::Text(match options.flag("json") {
        true => done.json(store.url(), action).to_string(),
        false => done.text(store.url(), action),
    }))
}
