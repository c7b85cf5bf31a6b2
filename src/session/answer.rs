//! Answering what other processes of this machine ask of the one that ships ([`super::asked`] is the other side).
//!
//! * I-ANS-1: no thread that captures or ships waits for a request: each is answered by a thread of its own, `walrust-answer`.
//! * I-ANS-2: a request is taken up once by a process, and again by the next one that ships: a snapshot that was answered is not taken
//!   again, a loan is made anew.

use super::alone::alone;
use super::phase::Role;
use super::registry::Engine;
use super::reread;
use super::watched::Watched;
use crate::base::{Error, Kind, Result, clock, lock, panics, thread};
use crate::spool::requests::{Answer, Waiting, Wanted, waiting};
use crate::store::ReplicaUrl;
use std::sync::Arc;
use std::time::Duration;

/// How long a snapshot may take: as long as any asker waits, whose own patience may be shorter.
const SNAPSHOT: Duration = Duration::from_secs(24 * 3600);
/// Between two looks whether what is lent is still used.
const LOOK: Duration = Duration::from_millis(100);
/// Stack of a thread that answers.
const STACK: usize = 1 << 20;

/// Has threads answer what lies in the spool of a database that this process ships.
pub(super) fn answer_all(engine: &'static Engine, w: &Arc<Watched>) {
    for one in waiting(w.spool.dir()) {
        let is_done = one.is_answered() && one.wanted != Wanted::Manifest;
        if is_done || !lock(&w.at_requests).insert(one.number().to_string()) {
            continue;
        }
        let (mine, number) = (w.clone(), one.number().to_string());
        let started = thread::spawn("walrust-answer", STACK, move || {
            let done = panics::caught(|| answer(engine, &mine, &one))
                .unwrap_or_else(|said| Err(Error::new(Kind::Bug, format!("an internal error: {said}"))));
            if let Err(e) = done.or_else(|e| one.answer(&Answer::refused(&e))) {
                log::warn!("walrust: {}: a request cannot be answered: {e}", mine.path().display());
            }
            lock(&mine.at_requests).remove(one.number());
        });
        if let Err(e) = started {
            log::warn!("walrust: {}: a request waits: no thread can be started: {e}", w.path().display());
            lock(&w.at_requests).remove(&number);
        }
    }
}

/// Does what is wanted, and says so. Errors with what keeps it from being done.
fn answer(engine: &'static Engine, w: &Arc<Watched>, one: &Waiting) -> Result<()> {
    match &one.wanted {
        Wanted::Snapshot { to: None } => one.answer(&Answer::Snapshot(reread::snapshot_now(w, SNAPSHOT)?.0)),
        Wanted::Snapshot { to: Some(url) } => {
            let url = ReplicaUrl::parse(url)?;
            let there = engine.find_by_replica(&url.to_string());
            one.answer(&Answer::Snapshot(w.copy_to(&url, there.as_ref(), SNAPSHOT)?.0))
        }
        Wanted::Face => one.answer(&Answer::Face(engine.face().rows_json())),
        Wanted::Manifest => {
            let _lent = alone(&w.store, Some(w), &[])?;
            one.answer(&Answer::Lent)?;
            while one.is_alive() && w.role() == Role::Shipper && !w.link.is_stopped() {
                clock::sleep(LOOK);
            }
            Ok(())
        }
    }
}
