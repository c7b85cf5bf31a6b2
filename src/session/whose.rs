//! Whose spool, whose replica: what one process and another may take for theirs.
//!
//! A replica is known by its place, not by the text of its URL ([`same_replica`]); a spool by its directory, not by its name.
//! What another process ships is in *its* replica: this one believes of the spool's records only those of its own
//! ([`Watched::shipped`]).

use super::phase::Role;
use super::watched::Watched;
use crate::base::{Lineage, Result, TxId, clock};
use crate::config::replica_key;
use crate::spool::{Growth, Shipped, Shipping};
use std::time::Duration;

/// How long the entries of what was just uploaded may take.
const NAMED_WITHIN: Duration = Duration::from_secs(5);

/// Whether two canonical URLs name one replica, as far as their text and this machine's directories tell.
pub fn same_replica(a: &str, b: &str) -> bool {
    a == b || replica_key(a) == replica_key(b)
}

impl Watched {
    /// Whether a canonical URL names this watch's replica ([`same_replica`]).
    pub(super) fn ships_to(&self, replica: &str) -> bool {
        self.replica() == replica || self.replica_key == replica_key(replica)
    }

    /// Has the manifest of the replica name what this process has put there, and waits a moment for that.
    pub fn have_named(&self) {
        self.link.have_all_named(NAMED_WITHIN);
    }

    /// What the spool says is in *this* watch's replica.
    pub(super) fn shipped(&self) -> Result<Option<Shipped>> {
        Ok(self.spool.shipped()?.filter(|s| self.ships_to(&s.replica)))
    }

    /// What is known of the replica when a power cut took the record of what was shipped: that it is ours.
    pub(super) fn identified(&self) -> Result<Option<Shipped>> {
        let identity = self.spool.identity()?.filter(|i| self.ships_to(&i.replica));
        Ok(identity.map(|i| Shipped {
            replica: i.replica,
            lineage: Lineage::default(),
            txid: TxId::ZERO,
            snapshot: TxId::ZERO,
            snapshot_time: None,
            time: clock::now(),
            change: Growth::default(),
        }))
    }

    /// Says to other processes where this one ships. Whom it does not reach waits, and is told nothing untrue.
    pub(super) fn note_shipping(&self) {
        if let Err(e) = self.spool.note_shipping(self.replica()) {
            log::warn!("walrust: {}: {e}", self.path().display());
        }
    }

    /// The process that ships this database to another replica than this watch's.
    fn rival(&self) -> Option<Shipping> {
        let rival = || self.spool.shipping().ok().flatten();
        (self.role() == Role::Standby).then(rival).flatten().filter(|s| !self.ships_to(&s.replica))
    }

    /// Why nothing of this database reaches the replica although another process of this machine ships.
    pub fn ships_elsewhere(&self) -> Option<String> {
        let rival = self.rival()?;
        Some(format!(
            "{} of this machine ships this database to {}, and one process ships at a time: nothing of it is in {} until \
             that one ends; give both the same replica",
            rival.process(),
            rival.replica,
            self.replica()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::same_replica;

    #[test]
    fn one_replica_has_many_spellings() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("r")).unwrap();
        std::os::unix::fs::symlink("r", root.join("too")).unwrap();
        let at = |name: &str| format!("file://{}/{name}", root.display());
        let plain = format!("{}/r/", root.display());
        let s3 = "s3://b/p?endpoint=http://h:9000";
        let table = [
            (at("r"), at("too"), true),
            (at("r"), plain, true),
            (at("r"), at("r2"), false),
            ("s3://b/p".into(), "s3://b/p?region=eu-west-1".into(), true),
            ("s3://b/p".into(), "s3://b//p/".into(), true),
            ("s3://b/p".into(), "s3://b/q".into(), false),
            ("s3://b/p".into(), s3.into(), false),
            ("s3://b/p?region=x&endpoint=http://H:9000/".into(), s3.into(), true),
            ("s3://b/p".into(), "gs://b/p".into(), false),
        ];
        for (a, b, same) in table {
            assert_eq!(same_replica(&a, &b), same, "{a} {b}");
            assert_eq!(same_replica(&b, &a), same, "{b} {a}");
        }
    }
}
