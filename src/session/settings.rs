//! What follows when the settings of a watched database are said anew: pure.

use crate::config::{Durability, RetainMode, Settings};
use crate::ship::Keeping;
use crate::store::LockMode;
use std::sync::Arc;
use std::time::Duration;

/// How long, and how, files are kept from removal.
pub(super) fn locks(s: &Settings) -> Option<(Duration, LockMode)> {
    let mode = match s.retain_mode {
        RetainMode::Governance => LockMode::Governance,
        RetainMode::Compliance => LockMode::Compliance,
    };
    (!s.retain.is_zero()).then_some((s.retain, mode))
}

/// How files are put.
pub(super) fn keeping(s: &Settings) -> Keeping {
    let class = |c: &Option<String>| c.as_deref().map(Arc::from);
    let c = &s.storage_class;
    Keeping { classes: [class(&c.level0), class(&c.merged), class(&c.snapshot)], retain: locks(s) }
}

/// What other settings ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: they are the same.
    None,
    /// They can be in force from the next moment on.
    AtOnce,
    /// COMMITs wait for the replica from now on: those of each connection that is open must know.
    ToSync,
    /// They are built into the shipper or the spool: the watch ends, and begins again with them.
    Renew,
}

/// How `new` differs from `old`. The replica, which makes another watch, is not looked at.
pub(super) fn change(old: &Settings, new: &Settings) -> Change {
    let built_in = |s: &Settings| {
        let class = s.storage_class.clone();
        let put = (
            s.append_only,
            s.retain,
            s.retain_mode,
            class,
            s.sse.clone(),
            s.sse_kms_key.clone(),
            s.encrypt.clone(),
        );
        (s.spool_dir.clone(), s.spool_limit, s.levels.clone(), s.retry, s.mirrors.clone(), put)
    };
    let same_replica = Settings { replica: old.replica.clone(), ..new.clone() };
    if *old == same_replica {
        Change::None
    } else if built_in(old) != built_in(new) {
        Change::Renew
    } else if old.durability == Durability::Async && new.durability == Durability::Sync {
        Change::ToSync
    } else {
        Change::AtOnce
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ByteCount, Config};

    #[test]
    fn what_each_setting_asks_for() {
        let old = Config::empty().process().unwrap().settings;
        let with = |f: &dyn Fn(&mut Settings)| {
            let mut new = old.clone();
            f(&mut new);
            change(&old, &new)
        };
        assert_eq!(with(&|_| {}), Change::None);
        assert_eq!(with(&|s| s.replica = Some("s3://b/p".into())), Change::None);
        assert_eq!(with(&|s| s.interval = Duration::from_secs(9)), Change::AtOnce);
        assert_eq!(with(&|s| s.sync_timeout = Duration::from_secs(9)), Change::AtOnce);
        assert_eq!(with(&|s| s.snapshot_interval = Duration::from_secs(9)), Change::AtOnce);
        assert_eq!(with(&|s| s.retention.hourly = 1), Change::AtOnce);
        assert_eq!(with(&|s| s.validation_interval = Duration::from_secs(9)), Change::AtOnce);
        assert_eq!(with(&|s| s.durability = Durability::Sync), Change::ToSync);
        assert_eq!(with(&|s| s.spool_dir = Some("/elsewhere".into())), Change::Renew);
        assert_eq!(with(&|s| s.spool_limit = ByteCount(1)), Change::Renew);
        assert_eq!(with(&|s| s.levels = Vec::new()), Change::Renew);
        assert_eq!(
            with(&|s| s.mirrors = vec![crate::config::MirrorSettings::at("/elsewhere")]),
            Change::Renew
        );
        assert_eq!(with(&|s| s.retry.breaker_threshold = 99), Change::Renew);
        assert_eq!(with(&|s| s.append_only = true), Change::Renew);
        assert_eq!(with(&|s| s.encrypt = vec!["age1".into()]), Change::Renew);
        assert_eq!(with(&|s| s.retain = Duration::from_secs(9)), Change::Renew);
        assert_eq!(with(&|s| s.storage_class.snapshot = Some("STANDARD_IA".into())), Change::Renew);
        let both = with(&|s| (s.durability, s.levels) = (Durability::Sync, Vec::new()));
        assert_eq!(both, Change::Renew);
        let sync = Settings { durability: Durability::Sync, ..old.clone() };
        assert_eq!(change(&sync, &old), Change::AtOnce, "no longer waiting needs nobody's knowledge");
    }
}
