//! What lies in a replica, before walrust goes on with it.

use std::fmt;
use walrust::base::clock;
use walrust::replica::{Point, place, plan};
use walrust::store::{ReplicaUrl, Store, block_on};

/// What was seen.
pub enum Seen {
    /// A replica of Litestream 0.5, or of walrust.
    Replica {
        /// Its newest TXID.
        txid: u64,
        /// When that was.
        time: String,
    },
    /// Nothing.
    Nothing,
    /// Something that cannot be gone on with, or nobody who answers.
    Unusable(String),
}

impl Seen {
    /// Whether walrust can go on there, or begin.
    pub fn is_well(&self) -> bool {
        !matches!(self, Seen::Unusable(_))
    }

    /// In one word.
    pub fn word(&self) -> &'static str {
        match self {
            Seen::Replica { .. } => "readable",
            Seen::Nothing => "empty",
            Seen::Unusable(_) => "unusable",
        }
    }

    /// When the newest TXID was.
    pub fn time(&self) -> Option<&str> {
        match self {
            Seen::Replica { time, .. } => Some(time),
            _ => None,
        }
    }

    /// The newest TXID.
    pub fn txid(&self) -> Option<u64> {
        match self {
            Seen::Replica { txid, .. } => Some(*txid),
            _ => None,
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Replica { txid, time } => write!(
                f,
                "readable, newest TXID {txid:016x} of {time}; walrust goes on from it if the database is that state at the first watch (it restores \
                 it once, and compares), else it asks for takeover"
            ),
            Seen::Nothing => f.write_str("nothing lies there yet; walrust begins with a snapshot"),
            Seen::Unusable(why) => f.write_str(why),
        }
    }
}

/// Looks at the replica at `url`. A pattern's place cannot be looked at, since each database has its own.
pub fn look(url: &str) -> Seen {
    if url.contains('{') {
        return Seen::Nothing;
    }
    let found = ReplicaUrl::parse(url)
        .and_then(|url| Store::open(&url))
        .and_then(|store| block_on(async move { place::find(&store).await })?);
    match found {
        Ok(found) if found.inventory.is_empty() => Seen::Nothing,
        Ok(found) => match plan(&found.inventory.files, Point::Latest, clock::now()) {
            Ok(way) => Seen::Replica { txid: way.txid.0, time: way.time.rfc3339() },
            Err(e) => Seen::Unusable(e.to_string()),
        },
        Err(e) => Seen::Unusable(e.to_string()),
    }
}
