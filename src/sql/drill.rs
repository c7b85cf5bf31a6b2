//! `walrust_drill`, `walrust_drills`

use super::common::{self, int, point, time};
use crate::base::{Error, Result, Timestamp, clock};
use crate::config::{OptionSpec, Options, WithSettings};
use crate::replica::drill::{Aim, Reads};
use crate::replica::{Point, labels};
use crate::session::{self, DrillRequest, engine};
use crate::sqlite::{Connection, Rows, Value};
use crate::store::{Store, block_on};
use std::path::{Path, PathBuf};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::texts("assert"),
    OptionSpec::text_or_count("point"),
    OptionSpec::flag("random"),
    OptionSpec::flag("full"),
    OptionSpec::flag("json"),
];

/// Restores and checks: the report.
pub(super) fn drill(conn: &Connection, args: &[Value]) -> Result<Value> {
    let url = common::text(args, 0, "the replica URL")?;
    let options = Options::parse("options", common::text(args, 1, "options")?, OPTIONS, WithSettings::No)?;
    let assertions = options.texts("assert").to_vec();
    if assertions.iter().any(|sql| sql.trim().is_empty()) {
        return Err(Error::config(
            "option assert holds an empty statement; give a SELECT that must give one true row",
        ));
    }
    let said = match (options.text("point"), options.flag("random")) {
        (Some(_), true) => {
            return Err(Error::config("options point and random exclude each other; give one"));
        }
        (Some(text), false) => Some(point(Some(&Value::Text(text.to_string())))?),
        (None, _) => None,
    };
    let store = match url {
        Some(_) => Store::open(&common::replica_url(conn, url)?)?,
        None => common::store(conn, None)?,
    };
    let aim = match said {
        Some(named) => Aim::At(block_on(labels::point_of(&store, &named))??),
        None if options.flag("random") => Aim::Drawn(clock::random_u64()),
        None => Aim::At(Point::Latest),
    };
    let reads = if options.flag("full") { Reads::All } else { Reads::BySize };
    let watched = engine().find_by_replica(store.url());
    let own = of_database(conn, url)?;
    let spool_dir = own.as_ref().map(|(_, dir)| dir.as_path());
    let request = DrillRequest { aim, reads, assertions };
    let done = session::drill(&store, watched.as_ref(), spool_dir, &request)?;
    Ok(Value::Text(match options.flag("json") {
        true => done.json().to_string(),
        false => done.text().trim_end().to_string(),
    }))
}

/// The database file that is meant, and where its spool lies by the configuration.
fn of_database(conn: &Connection, url: Option<&str>) -> Result<Option<(PathBuf, PathBuf)>> {
    let path = match url {
        None => conn.main_db_path(),
        Some(text) if !text.contains("://") && Path::new(text).is_file() => {
            Some(std::path::absolute(text).map_err(|e| Error::io("resolve", Path::new(text), e))?)
        }
        Some(_) => None,
    };
    path.map(|p| Ok((engine().spool_dir(&p)?, p))).transpose().map(|o| o.map(|(dir, p)| (p, dir)))
}

/// One row per drill that is remembered, oldest first.
pub(super) fn drills(conn: &Connection, _args: &[Option<Value>]) -> Result<Rows> {
    let own = of_database(conn, None)?;
    let own = own.as_ref().map(|(path, dir)| (path.as_path(), dir.as_path()));
    let rows = session::drills(&engine().watched(), own)?;
    Ok(Box::new(rows.into_iter().map(|r| {
        let n = r.note;
        let text = |t: String| if t.is_empty() { Value::Null } else { Value::Text(t) };
        Ok(vec![
            r.database.map_or(Value::Null, |p| Value::Text(p.display().to_string())),
            Value::Text(n.replica),
            time(Some(Timestamp(n.time))),
            n.txid.map_or(Value::Null, int),
            if n.txid.is_some() { Value::Real(n.seconds) } else { Value::Null },
            if n.txid.is_some() { int(n.bytes) } else { Value::Null },
            Value::Text(n.result),
            text(n.message),
        ])
    })))
}
