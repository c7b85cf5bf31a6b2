//! Working on a replica's manifest from outside the shipper's loop: for retention and for `walrust_verify` with
//! `fix`, whoever calls them and wherever the replica is streamed from.

use super::asked::{self, Asking};
use super::phase::Role;
use super::watched::Watched;
use super::whose::same_replica;
use crate::base::{Error, Kind, Result, clock};
use crate::ship::{Borrowed, Observed, lives_for, observe};
use crate::spool::requests::{Request, Wanted};
use crate::spool::{Shipping, shipping_in};
use crate::store::{Store, block_on};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long the shipper may take to hand the manifest over: as long as one large upload takes.
const HAND_OVER: Duration = Duration::from_secs(600);
/// A writer that is alive renews its lease within this time, and some.
const ONE_LIFE: Duration = Duration::from_secs(75);
/// Between two looks at a lease.
const LOOK: Duration = Duration::from_millis(500);

/// The right to change the manifest of one replica, until dropped.
#[derive(Debug)]
pub struct Alone {
    _from: Lender,
}

/// Whom it was borrowed from, held for its drop.
#[derive(Debug)]
enum Lender {
    Nobody,
    Here { _lent: Borrowed },
    AnotherProcess { _lent: Request },
}

/// Makes sure that nobody else writes the replica's manifest meanwhile: borrows it from `shipping`, which this process streams there,
/// or from the process of this machine that does (`spools`: of the databases that may be streamed there), or
/// sees that no writer holds the replica's lease. A lease that a dead process left is waited out, a minute at
/// most; one that is renewed meanwhile is a live writer's, and an error that names it ([`Kind::Fenced`]).
pub(super) fn alone(store: &Store, shipping: Option<&Arc<Watched>>, spools: &[PathBuf]) -> Result<Alone> {
    if let Some(w) = shipping {
        if w.role() == Role::Standby
            && let Asking::Answered(request, _) =
                asked::ask(w.spool.dir(), &Wanted::Manifest, HAND_OVER, || w.role() == Role::Shipper)?
        {
            return Ok(Alone { _from: Lender::AnotherProcess { _lent: request } });
        }
        return Ok(Alone { _from: Lender::Here { _lent: w.link.borrow_manifest(HAND_OVER)? } });
    }
    let elsewhere = spools.iter().find(|dir| streams_there(dir, store.url()));
    if let Some(dir) = elsewhere
        && let Asking::Answered(request, _) = asked::ask(dir, &Wanted::Manifest, HAND_OVER, || false)?
    {
        return Ok(Alone { _from: Lender::AnotherProcess { _lent: request } });
    }
    block_on(until_nobody_writes(store))??;
    Ok(Alone { _from: Lender::Nobody })
}

/// Whether a process streams from the spool in `dir` to `replica` at this moment.
fn streams_there(dir: &Path, replica: &str) -> bool {
    let is_it = |s: Shipping| same_replica(&s.replica, replica);
    shipping_in(dir).ok().flatten().is_some_and(is_it)
}

/// No lease is taken: an app that starts at this moment must not find the replica held by a passing visitor.
async fn until_nobody_writes(store: &Store) -> Result<()> {
    let end = clock::uptime() + ONE_LIFE;
    let mut first: Option<Observed> = None;
    loop {
        let Some(now) = observe(store).await? else { return Ok(()) };
        // By observation alone: two machines' clocks are not compared (I-LEASE-1).
        if lives_for(store.url(), &now).is_none() {
            return Ok(());
        }
        let renewed = first.as_ref().is_some_and(|f| *f != now);
        if renewed || clock::uptime() >= end {
            return Err(Error::new(
                Kind::Fenced,
                format!(
                    "{} streams to it; call it in that process, or stop that one first",
                    now.lease.holder
                ),
            ));
        }
        first.get_or_insert(now);
        tokio::time::sleep(LOOK).await;
    }
}
