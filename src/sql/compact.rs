//! `walrust_compact`

use super::common;
use crate::base::Result;
use crate::config::{OptionSpec, Options, Settings, WithSettings};
use crate::replica::compact::Action;
use crate::replica::retention::Policy;
use crate::session::{self, engine};
use crate::sqlite::{Connection, Value};

/// More of a tier than anybody can mean: 100 years of hours.
const MOST: u64 = 876_600;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::flag("force"),
    OptionSpec::flag("json"),
    OptionSpec::count("hourly", 0, MOST),
    OptionSpec::count("daily", 0, MOST),
    OptionSpec::count("weekly", 0, MOST),
    OptionSpec::count("monthly", 0, MOST),
];

/// Applies retention to a replica: a dry run unless forced.
pub(super) fn compact(conn: &Connection, args: &[Value]) -> Result<Value> {
    let url = common::text(args, 0, "the replica URL")?;
    let options = Options::parse("options", common::text(args, 1, "options")?, OPTIONS, WithSettings::No)?;
    let store = common::store(conn, url)?;
    let action = if options.flag("force") { Action::Force } else { Action::DryRun };
    let settings = common::settings_of_replica(conn, store.url())?;
    let done =
        engine().compact(&store, conn.main_db_path().as_deref(), &policy(&settings, &options), action)?;
    Ok(Value::Text(match options.flag("json") {
        true => done.json.to_string(),
        false => done.text.trim_end().to_string(),
    }))
}

fn policy(settings: &Settings, options: &Options) -> Policy {
    let p = session::policy(settings);
    let tier = |name: &str, otherwise: u32| {
        options.count(name).map_or(otherwise, |n| u32::try_from(n).unwrap_or(u32::MAX))
    };
    Policy {
        hourly: tier("hourly", p.hourly),
        daily: tier("daily", p.daily),
        weekly: tier("weekly", p.weekly),
        monthly: tier("monthly", p.monthly),
        pitr_window: p.pitr_window,
        retain: p.retain,
    }
}
