//! Naming in the manifest what is in the replica: the clerk's lane, and what other lanes ask of it. When, and why so late, is said in
//! [`super::owed`].

use super::beside::ill;
use super::duty::Duty;
use super::owed::{Owed, told};
use super::shipper::{LONGEST_REST, Shipper, Step};
use super::status::Protection;
use crate::base::{Result, TxId, clock, crash};
use crate::ltx::Level;
use crate::replica::manifest::{ManifestEntry, ManifestWriter, Packing};
use crate::replica::{FileId, adopt};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

/// The shortest rest of the lane, lest a clock that stands still makes it spin.
const SHORTEST_REST: Duration = Duration::from_millis(20);

/// Names what waits when it is due. Errors with [`crate::base::Kind::Fenced`].
pub(super) async fn clerk(s: &Shipper) -> Result<()> {
    let link = &s.plan.link;
    while !s.is_stopped() {
        let is_wanted = link.are_entries_wanted();
        let due = if is_wanted { Some(Duration::ZERO) } else { s.owed().due_in(clock::uptime()) };
        let mut rest = due.map_or(LONGEST_REST, |d| d.max(s.rest_of(Duty::Manifest, is_wanted)));
        // (Without the lease, which the app has no use for, nothing is named; it is given back with all named.)
        if link.is_lease_unwanted() {
            rest = LONGEST_REST;
        } else if rest.is_zero() {
            match name_when_right(s).await {
                Ok(()) => {
                    s.fares_well(Duty::Manifest);
                    link.work.upkeep.notify_one();
                    rest = s.owed().due_in(clock::uptime()).unwrap_or(LONGEST_REST);
                }
                Err(halt) => rest = ill(s, Duty::Manifest, halt)?,
            }
        }
        s.rest(&link.work.clerk, rest.max(SHORTEST_REST)).await;
    }
    Ok(())
}

async fn name_when_right(s: &Shipper) -> Step<()> {
    let _right = s.right().await?;
    s.name_all().await?;
    Ok(())
}

impl Shipper {
    pub(super) fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is in the replica: its entry is made, or waits for others (I-OWE-1, I-OWE-2). Errors with what the store answers; then
    /// the file is put again, and found to be there.
    pub(super) async fn owe(&self, entry: &ManifestEntry) -> Result<()> {
        let protection = self.plan.link.status().protection;
        let is_told = matches!(protection, Protection::Lease | Protection::AppendOnly);
        let may_wait = entry.id.level == Level::L0 && is_told;
        let is_noted = may_wait && self.plan.spool.owe(&entry.line()).is_ok();
        crash::point("ship.after-note");
        self.owed().add(*entry, clock::uptime());
        if !is_noted || self.owed().is_full() {
            return self.name_all().await;
        }
        self.show_unnamed();
        self.plan.link.work.clerk.notify_one();
        Ok(())
    }

    /// Names all that wait, after what earlier processes left. Errors with what the store answers.
    pub(super) async fn name_all(&self) -> Result<()> {
        let mut at = self.manifest.lock().await;
        if self.owed().is_clear() {
            self.show_unnamed();
            return Ok(());
        }
        let mut writer = self.writer(at.take()).await?;
        let waiting = self.owed().all();
        // Who removes entries meanwhile has read the segments that would be packed.
        let packing = if self.plan.link.desk.is_lent() { Packing::Later } else { Packing::WhenFull };
        writer.add(&self.plan.store, &waiting, packing).await?;
        crash::point("owed.named");
        let named: Vec<FileId> = waiting.iter().map(|e| e.id).collect();
        self.not_owed(&named);
        // (After a failure it is read again: what the store holds may not be what was there.)
        *at = Some(writer);
        Ok(())
    }

    /// What earlier processes left is named before the next file is put (I-OWE-4). Errors as [`Shipper::name_all`].
    pub(super) async fn name_what_was_left(&self) -> Result<()> {
        if self.owed().is_settled() { Ok(()) } else { self.name_all().await }
    }

    /// The manifest's writer; what earlier processes left is known then.
    async fn writer(&self, at_hand: Option<ManifestWriter>) -> Result<ManifestWriter> {
        let mut writer = match at_hand {
            Some(w) => w,
            None => ManifestWriter::load(&self.plan.store).await?,
        };
        if self.plan.link.status().protection == Protection::Lease {
            writer.unmark(&self.plan.store).await;
        }
        if !self.owed().is_settled() {
            let left = self.left(&writer).await?;
            self.owed().settle(left);
        }
        Ok(writer)
    }

    /// What earlier processes, or another machine, put and did not name.
    async fn left(&self, writer: &ManifestWriter) -> Result<Vec<ManifestEntry>> {
        let (spool, there) = (&self.plan.spool, self.plan.link.status().replicated);
        let recorded = spool.owed(&self.plan.replica)?;
        let entries = told(recorded.as_deref(), writer.newest(), there);
        if entries.as_ref().is_some_and(Vec::is_empty) || (there == TxId::ZERO && recorded.is_none()) {
            return Ok(Vec::new());
        }
        adopt::unnamed(&self.plan.store, &entries.unwrap_or_default(), spool.dir()).await
    }

    /// These are not owed any more. A record that cannot be written tells of too many, which is harmless (I-OWE-4).
    fn not_owed(&self, ids: &[FileId]) {
        let lines: Vec<String> = {
            let mut owed = self.owed();
            owed.remove(ids, clock::uptime());
            owed.all().iter().map(ManifestEntry::line).collect()
        };
        self.show_unnamed();
        if let Err(e) = self.plan.spool.set_owed(&self.plan.replica, &lines) {
            log::debug!("walrust: {}: {e}", self.plan.replica);
        }
        crash::point("owed.kept");
    }

    fn show_unnamed(&self) {
        let unnamed = self.owed().len();
        if self.plan.link.status().unnamed != unnamed {
            self.plan.link.update(|s| s.unnamed = unnamed);
        }
    }

    /// Takes a file out of the manifest. Errors with what the store answers.
    pub(super) async fn strike(&self, entry: &ManifestEntry) -> Result<()> {
        let mut at = self.manifest.lock().await;
        let mut writer = self.writer(at.take()).await?;
        self.not_owed(&[entry.id]);
        writer.remove(&self.plan.store, &[entry.id].into()).await?;
        *at = Some(writer);
        Ok(())
    }

    /// What was read of the manifest is read again.
    pub(super) async fn forget_manifest(&self) {
        *self.manifest.lock().await = None;
    }

    /// Another writer has the replica: of what this one put there, what is there still is named after all. That undoes nothing of the
    /// other's (I-MAN-1 of `replica`), who may have gone on above it and does not look below.
    pub(super) async fn name_after_all(&self) {
        let store = &self.plan.store;
        let mut there = Vec::new();
        let waiting = self.owed().all();
        if waiting.is_empty() {
            return;
        }
        for e in waiting {
            if store.head(&e.id.key(store.layout())).await.is_ok_and(|o| o.size == e.bytes) {
                there.push(e);
            }
        }
        let named = async {
            let mut writer = ManifestWriter::load(store).await?;
            writer.add(store, &there, Packing::Later).await
        };
        match named.await {
            Ok(()) => self.not_owed(&there.iter().map(|e| e.id).collect::<Vec<_>>()),
            Err(e) => log::debug!("walrust: {}: {e}", self.plan.replica),
        }
    }

    /// The lease is about to be given back: names what waits. Whether something is owed still.
    pub(super) async fn name_before_leaving(&self) -> bool {
        if self.owed().is_clear() || (self.owed().len() == 0 && self.owed().due_in(clock::uptime()).is_none())
        {
            return false;
        }
        match self.name_all().await {
            Ok(()) => false,
            Err(e) => {
                log::debug!("walrust: {}: the manifest is named at the next start: {e}", self.plan.replica);
                true
            }
        }
    }
}
