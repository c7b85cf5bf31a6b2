//! The databases of this machine that other processes stream: one picture of several workers, at whichever's port somebody looks.
//!
//! * I-NEI-1: which databases there are is what this process's own configuration names, and what it is a standby of; of a database that
//!   has no spool there is nothing to tell.
//! * I-NEI-2: of each process that ships one of them its own word is asked for, by a request in a spool (`spool::requests`): one process,
//!   one question, whatever the number of its databases. Where it does not answer within [`PATIENCE`], the spool tells, and that is said.
//! * I-NEI-3: nobody who looks waits for that: a thread asks, as long as somebody looks and [`LINGERS`] longer, so that who comes once a
//!   minute finds what is fresh. While nobody looks it costs nothing.
//!
//! Refused: a record that each shipper writes at an interval (a write to disk per database and second, for nobody); a port for each worker
//! (nobody knows how many there are).

use super::asked::{Asking, ask};
use super::registry::Engine;
use super::spooled::{SpoolState, Spooled};
use super::told;
use super::watched::series;
use crate::base::{Timestamp, TxId, clock, lock, panics, thread};
use crate::metrics::{DatabaseFace, Face, HealthStatus, RequestsFace, RowKind, Teller};
use crate::ship::State;
use crate::spool::requests::{Answer, Wanted};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

/// Between two times that the others are asked.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a process is waited for: it looks for requests once a second.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long they are asked after the last look.
const LINGERS: Duration = Duration::from_secs(120);
/// What was told longer ago is not shown.
const STALE: Duration = Duration::from_secs(15);
/// Between two searches for what the configuration names; longer where a search takes long, as a pattern over a whole disk does.
const NAMES_AGAIN: Duration = Duration::from_secs(10);
/// A search takes at most one part in so many of the time.
const NAMES_SHARE: u32 = 20;
/// Databases that are told of.
const MOST: usize = 1000;

/// What the configuration names, as of the last search.
#[derive(Default)]
struct Named {
    paths: Vec<PathBuf>,
    /// Uptime of the next search.
    due: Duration,
}

impl Named {
    fn search(&mut self, engine: &Engine) {
        let begun = clock::uptime();
        if begun < self.due {
            return;
        }
        let found = engine.config().and_then(|c| c.present()).unwrap_or_default();
        self.paths = found.into_iter().map(|(path, _)| path.canonicalize().unwrap_or(path)).collect();
        let now = clock::uptime();
        self.due = now + NAMES_AGAIN.max(now.saturating_sub(begun) * NAMES_SHARE);
    }
}

impl Engine {
    /// What this process shows of itself, and of the other processes of this machine.
    pub(super) fn face_of_machine(&'static self) -> Face {
        let mut face = self.face();
        let now = clock::uptime();
        let mut desk = lock(&self.others.at);
        desk.looked = Some(now);
        if !desk.is_asking {
            match thread::spawn("walrust-workers", 1 << 20, || self.ask_neighbours()) {
                Ok(()) => desk.is_asking = true,
                Err(e) => {
                    log::warn!("walrust: other processes cannot be asked: no thread can be started: {e}")
                }
            }
        }
        let fresh = desk.rows.values().filter(|(at, _)| now.saturating_sub(*at) < STALE);
        merge(&mut face, fresh.map(|(_, row)| row));
        face
    }

    /// The replica of a database that another process tells of.
    pub(super) fn replica_of_neighbour(&self, database: &str) -> Option<String> {
        lock(&self.others.at).rows.get(database)?.1.replica.clone()
    }

    fn ask_neighbours(&'static self) {
        let mut named = Named::default();
        loop {
            let begun = clock::uptime();
            let found = panics::caught(|| {
                named.search(self);
                self.rows_of_others(&named.paths)
            })
            .unwrap_or_else(|said| {
                log::error!("walrust: other processes cannot be asked: internal error: {said}");
                BTreeMap::new()
            });
            let mut desk = lock(&self.others.at);
            let now = clock::uptime();
            desk.rows = found.into_iter().map(|(name, row)| (name, (now, row))).collect();
            if desk.looked.is_none_or(|at| now.saturating_sub(at) >= LINGERS) {
                desk.is_asking = false;
                desk.rows.clear();
                return;
            }
            let rest = AGAIN.saturating_sub(now.saturating_sub(begun)).max(AGAIN / 4);
            drop(self.others.wake.wait_timeout(desk, rest).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The databases that this process does not ship, as whoever does tells of them.
    fn rows_of_others(&'static self, named: &[PathBuf]) -> BTreeMap<String, DatabaseFace> {
        let (watched, unwatched) = self.all();
        let own: HashSet<PathBuf> = watched
            .iter()
            .filter(|w| w.role() == super::phase::Role::Shipper)
            .map(|w| w.path().to_path_buf())
            .chain(unwatched.into_iter().map(|w| w.database))
            .collect();
        let standby = watched.iter().map(|w| w.path().to_path_buf());
        let mut paths: Vec<PathBuf> = standby.chain(named.iter().cloned()).collect();
        paths.sort();
        paths.dedup();
        paths.retain(|p| !own.contains(p));
        paths.truncate(MOST);
        let spooled: Vec<Spooled> = paths.iter().filter_map(|p| self.spooled(p).ok().flatten()).collect();
        // One question for each process.
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        let mut said: HashMap<i32, Option<Value>> = HashMap::new();
        let mut rows = BTreeMap::new();
        for s in spooled {
            let name = series(&s.database);
            let process = s.shipper.filter(|pid| *pid > 0 && *pid != me);
            let answer = process.and_then(|pid| {
                let told = said.entry(pid).or_insert_with(|| self.word_of(&s));
                told.as_ref()?.as_array()?.iter().find(|d| d["database"] == name.as_str())
            });
            let row = match (process, answer) {
                (Some(pid), Some(d)) => of_process(&name, pid, d),
                _ => None,
            };
            rows.insert(name.clone(), row.unwrap_or_else(|| of_spool(&name, s)));
        }
        rows
    }

    /// What the process that ships a database says of all of its own.
    fn word_of(&self, s: &Spooled) -> Option<Value> {
        let dir = self.spool_dir(&s.database).ok()?;
        match ask(&dir, &Wanted::Face, PATIENCE, || false) {
            Ok(Asking::Answered(_, Answer::Face(said))) => Some(said),
            Ok(_) => None,
            Err(e) => {
                log::debug!("walrust: {}: {e}", s.database.display());
                None
            }
        }
    }
}

/// Puts the rows of others beside and in place of those of this process: of a database that this process does not ship, the shipper's word
/// counts.
fn merge<'a>(face: &mut Face, others: impl Iterator<Item = &'a DatabaseFace>) {
    for row in others {
        match face.databases.iter_mut().find(|d| d.database == row.database) {
            // (By the spool alone nothing is known that this process does not know better.)
            Some(own) if own.state == State::Standby.as_str() && row.told_by != Teller::Spool => {
                *own = row.clone()
            }
            Some(_) => {}
            None => face.databases.push(row.clone()),
        }
    }
    face.databases.sort_by(|a, b| a.database.cmp(&b.database));
}

const STATES: [State; 7] = [
    State::Streaming,
    State::CatchingUp,
    State::Snapshotting,
    State::Paused,
    State::Standby,
    State::Fenced,
    State::Failed,
];

/// A time as the rows have it.
fn moment(text: &str) -> Option<Timestamp> {
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| Timestamp(t.timestamp_millis()))
}

/// A row as another process says it; `None` if it cannot be read.
fn of_process(name: &str, pid: i32, d: &Value) -> Option<DatabaseFace> {
    let state = STATES.into_iter().find(|s| d["state"] == s.as_str())?;
    let health = [HealthStatus::Healthy, HealthStatus::Degraded, HealthStatus::Unhealthy]
        .into_iter()
        .find(|h| d["health"] == h.as_str())?;
    let whole = |field: &str| d[field].as_u64().unwrap_or(0);
    let text = |field: &str| d[field].as_str().map(str::to_string);
    let time = |field: &str| d[field].as_str().and_then(moment);
    let seconds = |s: f64| Duration::try_from_secs_f64(s).ok();
    Some(DatabaseFace {
        database: name.to_string(),
        kind: RowKind::Source,
        mirror_of: None,
        told_by: Teller::Process(pid),
        replica: text("replica"),
        state: state.as_str(),
        explained: told::sentence(state),
        health,
        lag: d["lag_seconds"].as_f64().and_then(seconds),
        pending_bytes: whole("pending_bytes"),
        txid: TxId(whole("txid")),
        replicated: TxId(whole("replicated_txid")),
        database_bytes: whole("database_bytes"),
        wal_bytes: whole("wal_bytes"),
        spool_bytes: whole("spool_bytes"),
        breaker: ["open", "half-open"].into_iter().find(|b| d["breaker"] == *b).unwrap_or("closed"),
        uploaded_bytes: d["uploaded_bytes"].as_u64(),
        requests: requests(&d["requests"]),
        last_upload: time("last_upload"),
        last_verified: time("last_verified"),
        verify_every: Duration::from_secs(whole("verify_every_seconds")),
        last_error: text("last_error"),
        seen: None,
    })
}

/// What the process counted, as its row says it.
fn requests(said: &Value) -> Option<RequestsFace> {
    Some(RequestsFace {
        since: said["since"].as_str().and_then(moment)?,
        puts: said["put_and_list"].as_u64()?,
        gets: said["get_and_head"].as_u64()?,
        cost: said["dollars"].as_f64().zip(said["prices"].as_str().map(str::to_string)),
    })
}

/// A row of which only the spool tells.
fn of_spool(name: &str, s: Spooled) -> DatabaseFace {
    let explained = match s.state {
        SpoolState::Stopped => "No process of this machine streams it at the moment.",
        SpoolState::CatchingUp => told::sentence(State::CatchingUp),
        SpoolState::Streaming => {
            "Another process of this machine streams it, and nothing waits in the spool."
        }
        SpoolState::Failed => told::sentence(State::Failed),
    };
    // (Somebody may open it in a moment: no reason to have this process restarted.)
    let health = if s.is_well { HealthStatus::Healthy } else { HealthStatus::Degraded };
    DatabaseFace {
        database: name.to_string(),
        kind: RowKind::Source,
        mirror_of: None,
        told_by: Teller::Spool,
        replica: s.replica,
        state: s.state.as_str(),
        explained,
        health,
        lag: s.is_even.then_some(Duration::ZERO),
        pending_bytes: s.pending_bytes,
        txid: s.txid,
        replicated: s.replicated,
        database_bytes: std::fs::metadata(&s.database).map_or(0, |m| m.len()),
        wal_bytes: s.wal_bytes,
        spool_bytes: s.spool_bytes,
        breaker: "closed",
        uploaded_bytes: None,
        requests: None,
        last_upload: s.last_upload,
        last_verified: None,
        verify_every: Duration::ZERO,
        last_error: s.why,
        seen: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_processs_word_counts_of_what_it_ships() {
        let said = json!({"database": "/a.db", "state": "paused", "health": "unhealthy", "lag_seconds": 7.5, "txid": 9, "breaker": "open",
                          "replica": "s3://b/a", "last_error": "no store", "last_upload": "2026-11-30T10:00:00Z"});
        let shipper = of_process("/a.db", 77, &said).unwrap();
        assert_eq!(
            (shipper.state, shipper.health, shipper.breaker),
            ("paused", HealthStatus::Unhealthy, "open")
        );
        assert_eq!((shipper.lag, shipper.txid), (Some(Duration::from_millis(7500)), TxId(9)));
        assert!(
            shipper.last_upload.is_some()
                && shipper.told_by.text().as_deref() == Some("process 77 of this machine")
        );
        for bad in [
            json!({}),
            json!({"state": "happy", "health": "healthy"}),
            json!({"state": "paused", "health": "fine"}),
            json!(7),
        ] {
            assert!(of_process("/a.db", 1, &bad).is_none(), "{bad}");
        }
        let own =
            |state: State| DatabaseFace { state: state.as_str(), told_by: Teller::Own, ..shipper.clone() };
        let face = |rows| Face { now: Timestamp(0), uptime: Duration::ZERO, databases: rows };
        let other = DatabaseFace { database: "/0.db".to_string(), ..shipper.clone() };
        let mut merged = face(vec![own(State::Standby)]);
        merge(&mut merged, [&shipper, &other].into_iter());
        let states: Vec<_> = merged.databases.iter().map(|d| (d.database.as_str(), d.state)).collect();
        assert_eq!(states, [("/0.db", "paused"), ("/a.db", "paused")], "a standby is told as its shipper");
        let mut mine = face(vec![own(State::Streaming)]);
        merge(&mut mine, [&shipper].into_iter());
        assert_eq!(mine.databases[0].state, "streaming", "who ships knows better");
        let mut by_spool = face(vec![own(State::Standby)]);
        merge(
            &mut by_spool,
            [&DatabaseFace { told_by: Teller::Spool, state: "stopped", ..shipper.clone() }].into_iter(),
        );
        assert_eq!(by_spool.databases[0].state, "standby");
    }
}
