//! What the pages at `metrics_listen` show of this process: every watched database, every followed file, and every configured database
//! that is not watched yet.

use super::follow::FollowerRow;
use super::registry::Engine;
use super::status::Row;
use super::told;
use super::watched::{Watched, series};
use super::wish::WishRow;
use crate::base::{Result, Timestamp, TxId, clock};
use crate::metrics::{DatabaseFace, Face, Points, RequestsFace, RowKind, Teller};
use crate::replica::explain::price_of_requests;
use crate::store::{ReplicaUrl, Store, requests_of};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

impl Engine {
    /// What the pages show: the one place that says whether this process is well.
    pub(super) fn face(&self) -> Face {
        let (watched, unwatched) = self.all();
        let mut databases: Vec<DatabaseFace> = watched.iter().map(|w| of_watched(w)).collect();
        databases.extend(watched.iter().flat_map(|w| w.mirror_rows()).map(of_mirror));
        databases.extend(self.followers().into_iter().map(of_follower));
        databases.extend(unwatched.into_iter().map(of_unwatched));
        databases.sort_by(|a, b| a.database.cmp(&b.database));
        Face { now: clock::now(), uptime: self.metrics().uptime(), databases }
    }

    /// The points of the replica of a database of the page. Does not wait for the store.
    pub(super) fn points_of(&'static self, database: &str) -> Points {
        match self.source_of(database) {
            Some(open) => self.points.look(database, open),
            None => Points::Unknown,
        }
    }

    /// How to come by the replica of a database of the page.
    fn source_of(&self, database: &str) -> Option<super::points::Open> {
        if let Some(w) = self.watched().into_iter().find(|w| series(w.path()) == database) {
            let w = Arc::downgrade(&w);
            return Some(Box::new(move || {
                let w = w.upgrade().ok_or_else(super::watched::ended)?;
                w.have_named();
                Ok(w.store.clone())
            }));
        }
        let followed = self.followers().into_iter().find(|f| series(&f.path) == database).map(|f| f.replica);
        let replica = followed.or_else(|| self.replica_of_neighbour(database))?;
        Some(Box::new(move || open(&replica)))
    }
}

fn open(replica: &str) -> Result<Store> {
    Store::open(&ReplicaUrl::parse(replica)?)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |f| f.len())
}

fn of_watched(w: &Watched) -> DatabaseFace {
    let row = w.show();
    let verified = w.metrics.last_validation.get();
    DatabaseFace {
        uploaded_bytes: Some(w.metrics.uploaded.get()),
        requests: requests(w.replica(), w.settings().price_per_1000_put),
        last_verified: (verified > 0.0).then_some(Timestamp((verified * 1000.0) as i64)),
        verify_every: w.settings().validation_interval,
        ..of_row(row)
    }
}

/// What this process asked of the store of the replica, and what that costs.
fn requests(replica: &str, price_per_1000_put: Option<f64>) -> Option<RequestsFace> {
    let counted = requests_of(replica)?;
    let url = ReplicaUrl::parse(replica).ok()?;
    Some(RequestsFace {
        since: counted.since,
        puts: counted.puts,
        gets: counted.gets,
        cost: price_of_requests(&url, &counted, price_per_1000_put),
    })
}

fn of_mirror(row: Row) -> DatabaseFace {
    let of = series(&row.database);
    let database = format!("{of} (mirror {})", row.replica);
    DatabaseFace { database, kind: RowKind::Mirror, mirror_of: Some(of), ..of_row(row) }
}

/// What a row of the status tells of a database, or of one of its mirrors.
fn of_row(row: Row) -> DatabaseFace {
    let requests = requests(&row.replica, None);
    DatabaseFace {
        database: series(&row.database),
        kind: RowKind::Source,
        mirror_of: None,
        told_by: Teller::Own,
        replica: Some(row.replica),
        state: row.state.as_str(),
        explained: told::sentence(row.state),
        health: row.health,
        lag: Some(row.lag),
        pending_bytes: row.pending_bytes,
        txid: row.txid,
        replicated: row.replicated,
        database_bytes: size(&row.database),
        wal_bytes: row.wal_bytes,
        spool_bytes: row.spool_bytes,
        breaker: row.breaker.as_str(),
        uploaded_bytes: None,
        requests,
        last_upload: row.last_upload,
        last_verified: None,
        verify_every: Duration::ZERO,
        last_error: row.last_error,
        seen: None,
    }
}

fn of_follower(f: FollowerRow) -> DatabaseFace {
    let requests = requests(&f.replica, None);
    DatabaseFace {
        database: series(&f.path),
        kind: RowKind::Copy,
        mirror_of: None,
        told_by: Teller::Own,
        replica: Some(f.replica),
        state: f.state.as_str(),
        explained: told::sentence_of_copy(f.state),
        health: told::health_of_copy(f.state),
        lag: Some(f.lag),
        pending_bytes: f.pending_bytes,
        txid: f.txid,
        replicated: f.newest,
        database_bytes: size(&f.path),
        wal_bytes: 0,
        spool_bytes: 0,
        breaker: "closed",
        uploaded_bytes: None,
        requests,
        last_upload: f.time,
        last_verified: None,
        verify_every: Duration::ZERO,
        last_error: f.last_error,
        seen: None,
    }
}

fn of_unwatched(wish: WishRow) -> DatabaseFace {
    let state = wish.state();
    DatabaseFace {
        database: series(&wish.database),
        kind: RowKind::Source,
        mirror_of: None,
        told_by: Teller::Own,
        replica: None,
        state: state.as_str(),
        explained: told::sentence(state),
        health: told::health_of_unwatched(state),
        lag: None,
        pending_bytes: 0,
        txid: TxId::ZERO,
        replicated: TxId::ZERO,
        database_bytes: size(&wish.database),
        wal_bytes: 0,
        spool_bytes: 0,
        breaker: "closed",
        uploaded_bytes: None,
        requests: None,
        last_upload: None,
        last_verified: None,
        verify_every: Duration::ZERO,
        last_error: Some(wish.why),
        seen: None,
    }
}
