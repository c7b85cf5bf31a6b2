//! `serve`: the page, `/health` and `/metrics` of replicas, without the process that streams to them.
//!
//! * I-SERVE-1: it says what a replica alone can say. Whether a process streams to it, how far that is behind, what waits: no word, no
//!   series, `null` in JSON.
//! * I-SERVE-2: a replica is read when somebody looks at it (a browser, a scraper), once in [`FRESH`] at most; nobody who looks waits for a
//!   store. What was read last stays shown, with its time, while the store does not answer.
//!
//! Nothing is written, and nothing outlives the process. Refused: reading at an interval of its own (requests that nobody asked for cost
//! money); the lease as a sign of life (it lives on for a minute after its holder, and is rested where databases are idle).

use crate::args::Serve;
use crate::failure::{Failure, Outcome};
use crate::host;
use crate::look::exit_of_findings;
use crate::show::{self, Form, Object, Table};
use crate::stream::Signals;
use futures_util::StreamExt;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use walrust::base::{Error, Timestamp, TxId, clock, lock, panics, thread};
use walrust::config::{Config, Place, parse_duration};
use walrust::metrics::{
    self, DatabaseFace, Face, HealthStatus, Points, ReplicaFace, RowKind, SeenFace, Teller,
};
use walrust::replica::list as list_replicas;
use walrust::replica::list::holdings;
use walrust::session::replica_face;
use walrust::store::{ReplicaUrl, Store, block_on};

/// How long what was read is shown without asking again.
const FRESH: Duration = Duration::from_secs(30);
/// How long the names of the replicas below a URL are.
const NAMES_FRESH: Duration = Duration::from_secs(300);
/// How long a store is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Replicas that are asked at once.
const AT_ONCE: usize = 8;
/// Of a thread of ours.
const STACK: usize = 2 << 20;

/// What is known of a replica.
#[derive(Clone, Default)]
struct Known {
    /// Uptime of the last answer, or failure.
    asked: Option<Duration>,
    held: Option<Arc<ReplicaFace>>,
    wrong: Option<String>,
    /// Exit status and time of the last check here.
    verified: Option<(u8, Timestamp)>,
    last_good: Option<Timestamp>,
    verify_wrong: Option<String>,
}

/// What a replica is, as far as it can be told from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Asking,
    Readable,
    Empty,
    Unreadable,
    Damaged,
}

impl State {
    fn of(known: &Known) -> State {
        match (&known.held, &known.wrong, known.verified) {
            (_, Some(_), _) => State::Unreadable,
            (None, None, _) => State::Asking,
            (Some(_), _, Some((1.., _))) => State::Damaged,
            (Some(held), ..) if held.points.is_empty() => State::Empty,
            (Some(_), ..) => State::Readable,
        }
    }

    fn word(self) -> &'static str {
        match self {
            State::Asking => "being asked",
            State::Readable => "readable",
            State::Empty => "empty",
            State::Unreadable => "cannot be read",
            State::Damaged => "damaged",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            State::Asking => "The store has not answered yet.",
            State::Readable => {
                "Its points can be restored. Whether a process streams to it now, and how far it is behind, is not known from here."
            }
            State::Empty => "Nothing that could be restored lies there.",
            State::Unreadable => {
                "The store did not give what was asked for. What is shown is of the last time that it did."
            }
            State::Damaged => "The last check that was made here found something wrong.",
        }
    }

    fn health(self, verified: Option<(u8, Timestamp)>) -> HealthStatus {
        match (self, verified) {
            (State::Readable, _) => HealthStatus::Healthy,
            (State::Asking, _) | (State::Damaged, Some((1, _))) => HealthStatus::Degraded,
            (State::Empty | State::Unreadable | State::Damaged, _) => HealthStatus::Unhealthy,
        }
    }
}

/// The replicas, and what is known of them.
#[derive(Default)]
struct Desk {
    rows: BTreeMap<String, Known>,
    /// Uptime of the last search for names.
    named: Option<Duration>,
    is_looked_at: bool,
    is_ending: bool,
}

struct Board {
    places: Vec<Place>,
    /// A URL of which it is not known whether it is a replica.
    searched: Option<String>,
    desk: Mutex<Desk>,
    wake: Condvar,
    verify_every: Duration,
    /// Uptime of the beginning.
    begun: Duration,
}

/// `serve`
pub fn serve(a: &Serve, form: Form) -> Outcome {
    host::start(host::Hooks::None)?;
    let verify_every = match a.verify.as_deref().map(parse_duration).transpose() {
        Ok(every) => every.unwrap_or_default(),
        Err(e) => return Err(Failure::new(format!("--verify: {e}"))),
    };
    let (places, searched) = what_to_serve(&a.target)?;
    let mut rows = BTreeMap::new();
    for place in &places {
        if let Place::At(url) = place {
            rows.insert(url.clone(), Known::default());
        }
    }
    let desk = Mutex::new(Desk { rows, ..Desk::default() });
    let board = Arc::new(Board {
        places,
        searched,
        desk,
        wake: Condvar::new(),
        verify_every,
        begun: clock::uptime(),
    });
    let mut signals = Signals::new()?;
    let server = metrics::serve(&a.listen, Arc::new(Window(board.clone()))).map_err(|e| {
        Failure::new(
            e.to_string().replace("metrics_listen: ", "").replace("name a free", "give --listen a free"),
        )
    })?;
    let asking = board.clone();
    let asker = thread::spawn_joined("walrust-serve", STACK, move || asking.ask_while_looked_at())?;
    if !verify_every.is_zero() {
        let checking = board.clone();
        thread::spawn("walrust-check", STACK, move || checking.verify_by_and_by())?;
    }
    let page = format!("http://{}/", server.address());
    match form {
        Form::Text => show::text(&format!("{} at {page}", a.target))?,
        Form::Json => show::json_line(&Object(vec![("target", json!(a.target)), ("page", json!(page))]))?,
    }
    while !signals.within(Duration::from_secs(3600)) {}
    drop(server);
    lock(&board.desk).is_ending = true;
    board.wake.notify_all();
    drop(asker);
    Ok(0)
}

/// The places that the target names; or the URL that is to be searched.
fn what_to_serve(target: &str) -> Result<(Vec<Place>, Option<String>), Failure> {
    let path = Path::new(target);
    if target.contains("://") || path.is_dir() || !(path.is_file() || target.ends_with(".toml")) {
        return Ok((Vec::new(), Some(ReplicaUrl::parse(target)?.to_string())));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(format!("{target}: {e}")))?;
    let config = Config::from_text(Some((&text, path)), std::env::vars_os())?;
    let mut places = Vec::new();
    for place in config.places()? {
        places.push(match place {
            Place::At(url) => Place::At(ReplicaUrl::parse(&url)?.to_string()),
            below => below,
        });
    }
    if places.is_empty() {
        return Err(Failure::new(format!(
            "{target} names no replica; give its URL: walrust serve s3://bucket/path"
        )));
    }
    Ok((places, None))
}

async fn names(url: &str) -> Result<Vec<String>, Error> {
    let url = ReplicaUrl::parse(url)?;
    let rows = list_replicas::list(&Store::open(&url)?, &url).await?;
    Ok(rows.into_iter().map(|r| r.replica).collect())
}

async fn look(url: &str) -> Result<ReplicaFace, String> {
    let asked = clock::now();
    let held = async { holdings(&Store::open(&ReplicaUrl::parse(url)?)?).await };
    match tokio::time::timeout(PATIENCE, held).await {
        Ok(Ok(held)) => Ok(replica_face(held, asked)),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("the store has not answered within {} seconds", PATIENCE.as_secs())),
    }
}

fn is_stale(at: Option<Duration>, fresh: Duration) -> bool {
    at.is_none_or(|at| clock::uptime().saturating_sub(at) >= fresh)
}

impl Board {
    /// Somebody looks: what is stale is asked for.
    fn looked_at(&self) {
        lock(&self.desk).is_looked_at = true;
        self.wake.notify_all();
    }

    fn ask_while_looked_at(&self) {
        loop {
            let mut desk = lock(&self.desk);
            while !desk.is_looked_at && !desk.is_ending {
                desk = self.wake.wait(desk).unwrap_or_else(PoisonError::into_inner);
            }
            if desk.is_ending {
                return;
            }
            desk.is_looked_at = false;
            drop(desk);
            if let Err(said) = panics::caught(|| self.refresh()) {
                show::complain(&format!("internal error: {said}"));
                clock::sleep(Duration::from_secs(1));
            }
        }
    }

    fn refresh(&self) {
        if is_stale(lock(&self.desk).named, NAMES_FRESH) {
            self.search();
        }
        let stale: Vec<String> = {
            let desk = lock(&self.desk);
            desk.rows.iter().filter(|(_, k)| is_stale(k.asked, FRESH)).map(|(url, _)| url.clone()).collect()
        };
        let looks = futures_util::stream::iter(stale).map(|url| async move {
            let said = look(&url).await;
            (url, said)
        });
        let looked = block_on(async move {
            let mut looks = std::pin::pin!(looks.buffer_unordered(AT_ONCE));
            while let Some((url, said)) = looks.next().await {
                self.keep(&url, said);
            }
        });
        if let Err(e) = looked {
            show::complain(&e.to_string());
        }
    }

    fn keep(&self, url: &str, said: Result<ReplicaFace, String>) {
        let mut desk = lock(&self.desk);
        let Some(known) = desk.rows.get_mut(url) else { return };
        known.asked = Some(clock::uptime());
        match said {
            Ok(held) => (known.held, known.wrong) = (Some(Arc::new(held)), None),
            Err(why) => known.wrong = Some(why),
        }
    }

    /// Which replicas there are.
    fn search(&self) {
        let below = self.places.iter().filter_map(|p| match p {
            Place::Below(url) => Some(url),
            Place::At(_) => None,
        });
        for url in below.chain(&self.searched) {
            let found = block_on(async move { tokio::time::timeout(PATIENCE, names(url)).await });
            let found = match found {
                Ok(Ok(Ok(found))) => Ok(found),
                Ok(Ok(Err(e))) | Err(e) => Err(e.to_string()),
                Ok(Err(_)) => {
                    Err(format!("the store has not answered within {} seconds", PATIENCE.as_secs()))
                }
            };
            let mut desk = lock(&self.desk);
            match found {
                Ok(found) => {
                    desk.named = Some(clock::uptime());
                    // (What was there before and is not listed now is looked at, and says so itself.)
                    if !found.is_empty() && !found.contains(url) {
                        desk.rows.remove(url);
                    }
                    let found = if found.is_empty() { vec![url.clone()] } else { found };
                    for url in found {
                        desk.rows.entry(url).or_default();
                    }
                }
                Err(why) => {
                    let known = desk.rows.entry(url.clone()).or_default();
                    (known.asked, known.wrong) = (Some(clock::uptime()), Some(why));
                }
            }
        }
        let mut desk = lock(&self.desk);
        if self.searched.is_none() && !self.places.iter().any(|p| matches!(p, Place::Below(_))) {
            desk.named = Some(clock::uptime());
        }
    }

    fn verify_by_and_by(&self) {
        loop {
            if is_stale(lock(&self.desk).named, NAMES_FRESH) {
                self.search();
            }
            let urls: Vec<String> = lock(&self.desk).rows.keys().cloned().collect();
            for url in urls {
                let said = panics::caught(|| verify(&url)).unwrap_or_else(|said| Err(Failure::new(said)));
                let mut desk = lock(&self.desk);
                let Some(known) = desk.rows.get_mut(&url) else { continue };
                match said {
                    Ok((exit, wrong)) => {
                        known.verified = Some((exit, clock::now()));
                        known.verify_wrong = wrong;
                        if exit == 0 {
                            known.last_good = Some(clock::now());
                        }
                    }
                    // (That it could not be judged is no judgement: what was found before stands.)
                    Err(e) => known.verify_wrong = Some(format!("the check could not be made: {e}")),
                }
            }
            let begun = clock::uptime();
            let mut desk = lock(&self.desk);
            loop {
                let rest = self.verify_every.saturating_sub(clock::uptime().saturating_sub(begun));
                if desk.is_ending {
                    return;
                }
                if rest.is_zero() {
                    break;
                }
                desk = self.wake.wait_timeout(desk, rest).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// Exit status of a check, and the worst finding of a replica that is not good.
fn verify(url: &str) -> Result<(u8, Option<String>), Failure> {
    let conn = host::in_memory()?;
    let found = Table::query(&conn, "SELECT * FROM walrust_verify(?1, 'quick')", (url,))?;
    let exit = exit_of_findings(&found);
    let text = |v: Option<&rusqlite::types::Value>| match v {
        Some(rusqlite::types::Value::Text(t)) => t.clone(),
        _ => String::new(),
    };
    let worst = ["critical", "warning"].into_iter().find_map(|severity| {
        let at = found.column("severity").position(|v| text(Some(v)) == severity)?;
        Some(text(found.column("message").nth(at)))
    });
    Ok((exit, worst.filter(|_| exit > 0)))
}

/// What the server shows.
struct Window(Arc<Board>);

impl metrics::Pages for Window {
    fn metrics(&self) -> String {
        metrics::replicas_text(&self.face())
    }

    fn face(&self) -> Face {
        self.0.looked_at();
        let desk = lock(&self.0.desk);
        let databases = desk.rows.iter().map(|(url, known)| row(url, known, self.0.verify_every)).collect();
        Face { now: clock::now(), uptime: clock::uptime().saturating_sub(self.0.begun), databases }
    }

    fn points(&self, database: &str) -> Points {
        self.0.looked_at();
        let desk = lock(&self.0.desk);
        match desk.rows.get(database) {
            None => Points::Unknown,
            Some(Known { wrong: Some(why), .. }) => Points::Failed(why.clone()),
            Some(Known { held: Some(held), .. }) => Points::Known(held.clone()),
            Some(_) => Points::Asking,
        }
    }
}

fn row(url: &str, known: &Known, verify_every: Duration) -> DatabaseFace {
    let state = State::of(known);
    let seen = known.held.as_ref().map(|held| SeenFace {
        asked: held.asked,
        oldest: held.points.first().map(|p| p.time),
        newest: held.points.iter().map(|p| p.time).max(),
        points: held.points.len(),
        labels: held.points.iter().map(|p| p.labels.len()).sum(),
        files: held.files,
        bytes: held.bytes,
    });
    let newest = known.held.as_ref().and_then(|h| h.points.last()).map_or(TxId::ZERO, |p| p.txid);
    DatabaseFace {
        database: url.to_string(),
        kind: RowKind::Replica,
        mirror_of: None,
        told_by: Teller::Own,
        replica: Some(url.to_string()),
        state: state.word(),
        explained: state.sentence(),
        health: state.health(known.verified),
        lag: None,
        pending_bytes: 0,
        txid: newest,
        replicated: newest,
        database_bytes: 0,
        wal_bytes: 0,
        spool_bytes: 0,
        breaker: "",
        uploaded_bytes: None,
        requests: None,
        last_upload: None,
        last_verified: known.last_good,
        verify_every,
        last_error: known.wrong.clone().or_else(|| known.verify_wrong.clone()),
        seen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replica_is_told_to_be() {
        use HealthStatus::{Degraded, Healthy, Unhealthy};
        let point = |ms| metrics::PointFace {
            txid: TxId(1),
            time: Timestamp(ms),
            level: 9,
            bytes: 1,
            pages: None,
            labels: Vec::new(),
        };
        let held = |n: i64| {
            let points = (0..n).map(point).collect();
            Some(Arc::new(ReplicaFace { asked: Timestamp(9), points, files: 1, bytes: 1 }))
        };
        let wrong = Some("no store".to_string());
        let checked = |exit| Some((exit, Timestamp(1)));
        for (known, state, health) in [
            (Known::default(), State::Asking, Degraded),
            (Known { held: held(2), ..Known::default() }, State::Readable, Healthy),
            (Known { held: held(0), ..Known::default() }, State::Empty, Unhealthy),
            (Known { held: held(2), wrong: wrong.clone(), ..Known::default() }, State::Unreadable, Unhealthy),
            (Known { wrong, ..Known::default() }, State::Unreadable, Unhealthy),
            (Known { held: held(2), verified: checked(0), ..Known::default() }, State::Readable, Healthy),
            (Known { held: held(2), verified: checked(1), ..Known::default() }, State::Damaged, Degraded),
            (Known { held: held(2), verified: checked(2), ..Known::default() }, State::Damaged, Unhealthy),
        ] {
            let row = row("s3://b/app", &known, Duration::ZERO);
            assert_eq!((State::of(&known), row.health), (state, health));
            assert_eq!((row.lag, row.kind), (None, RowKind::Replica));
            for word in ["streaming", "standby", "behind by", "lag"] {
                assert!(!row.state.contains(word) && !row.explained.contains(word), "{state:?}");
            }
        }
    }
}
