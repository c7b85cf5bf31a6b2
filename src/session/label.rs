//! Labels that `auto_label` makes: of the point before a change of the schema.
//!
//! Of each file that has arrived, where it has page 1, the schema cookie is read. Where that is another than before (or it is the first that this
//! process ships), that, and the TXID that the replica had before, is written into the spool (`labels.json`), and `walrust-care` does
//! the rest: it reads the cookie of that TXID in the replica, and where it was another one, labels it. So no commit and no upload waits,
//! and what a process that ends leaves undone the next one does.
//!
//! The point is the newest that the replica had before the file with the change. Under load a file holds the commits of `interval`; the
//! first commit after a quiet spell has one of its own.
//!
//! Refused: a cut just before the change (the sealer knows the newest version of a page, not which commit brought it, and a COMMIT would
//! wait for the cut).

use super::events::note_trouble;
use super::labelling::{MOST, is_within};
use super::watched::{Ask, Watched};
use crate::base::{Result, TxId, clock, lock};
use crate::config::AutoLabel;
use crate::reader;
use crate::replica::label::By;
use crate::replica::{LabelName, Point, labels};
use crate::ship::{Course, Duty, schema_cookie};
use crate::spool::SchemaSeen;
use crate::store::{ReplicaUrl, Retry, block_on};
use std::path::Path;
use std::time::Duration;

/// The longest rest after a failure.
const LONGEST_REST: Duration = Duration::from_secs(300);

impl Watched {
    /// The file at `path` is in the replica, which had `before` before it. Called on the runtime's thread.
    pub(super) fn look_at_schema(&self, before: TxId, path: &Path) {
        if self.settings().auto_label == AutoLabel::Off {
            return;
        }
        let Some(cookie) = schema_cookie(path) else { return };
        let was = lock(&self.labelling.shipped).replace(cookie);
        if was == Some(cookie) || before == TxId::ZERO {
            return;
        }
        let mut owed = lock(&self.labelling.owed);
        let list = owed.get_or_insert_with(|| self.owed_in_spool());
        // (Of a crowd, the first are worth most: they are before what the others are in the middle of.)
        if list.len() < MOST && list.last().is_none_or(|s| s.before != before.0) {
            list.push(SchemaSeen { before: before.0, cookie });
            self.note_owed(list);
        }
        drop(owed);
        self.ask(Ask::Care);
    }

    /// Whether there is something to label now.
    pub(super) fn owes_labels(&self) -> bool {
        let mut owed = lock(&self.labelling.owed);
        let is_owed = !owed.get_or_insert_with(|| self.owed_in_spool()).is_empty();
        is_owed && self.link.course(Duty::Label).is_due(clock::uptime())
    }

    fn owed_in_spool(&self) -> Vec<SchemaSeen> {
        self.spool.schema_seen(self.replica()).unwrap_or_default()
    }

    /// (A record that cannot be written is lost with the process, and nothing else.)
    fn note_owed(&self, list: &[SchemaSeen]) {
        if let Err(e) = self.spool.note_schema_seen(self.replica(), list) {
            log::debug!("walrust: {}: {e}", self.path().display());
        }
    }

    /// Makes what is owed, the oldest first. What fails is tried again after a rest.
    pub(super) fn make_labels(&self) {
        loop {
            let first = lock(&self.labelling.owed).as_ref().and_then(|l| l.first().copied());
            let Some(seen) = first else { return };
            match self.label(seen) {
                Ok(()) => self.link.set_course(Duty::Label, Course::Well),
                // It is not there any more, or somebody's label has the name.
                Err(e) if e.is_missing() || e.kind() == crate::base::Kind::Exists => {
                    log::warn!("walrust: {}: auto_label: {e}", self.path().display());
                }
                Err(e) => {
                    let retry = Retry::without_end(self.settings().retry.base, LONGEST_REST);
                    let course = self.link.course(Duty::Label);
                    let course = course.failed(&e, clock::uptime(), &retry, clock::random_u64());
                    let attempts = course.failures();
                    self.link.set_course(Duty::Label, course);
                    note_trouble(self, Duty::Label, e.kind(), &e.to_string(), attempts);
                    return;
                }
            }
            let mut owed = lock(&self.labelling.owed);
            if let Some(list) = owed.as_mut() {
                list.retain(|s| *s != seen);
                self.note_owed(list);
            }
        }
    }

    fn label(&self, seen: SchemaSeen) -> Result<()> {
        let before = TxId(seen.before);
        let url = ReplicaUrl::parse(self.store.url())?;
        if self.settings().auto_label == AutoLabel::Off || reader::schema_cookie(&url, before)? == seen.cookie
        {
            return Ok(());
        }
        if !is_within(&mut lock(&self.labelling.made), clock::uptime()) {
            log::warn!(
                "walrust: {}: auto_label has made {MOST} labels today; TXID {} gets none",
                self.path().display(),
                before
            );
            return Ok(());
        }
        let name = LabelName::before_change(before);
        let made = block_on(labels::make(&self.store, &name, Point::TxId(before), By::Schema))??;
        log::info!(
            "walrust: {}: the schema changes after TXID {}: labelled {name}",
            self.path().display(),
            made.txid
        );
        Ok(())
    }
}
