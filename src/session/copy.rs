//! A snapshot at a place that is not the stream's: a copy to keep, or to start another replica from.
//!
//! The copy bears the stream's lineage and TXID, so what holds it can be verified and restored by itself, and a
//! watch to it later continues it. Nothing is written where another history lies. A crash leaves a temporary file in
//! the spool, which the next copy overwrites.

use super::alone::alone;
use super::asked::{self, Asking};
use super::identity::refuse_to_mix;
use super::job::Job;
use super::phase::Role;
use super::reread::{self, at_a_txid};
use super::watched::Watched;
use super::work::Work;
use crate::base::scratch::Scratch;
use crate::base::{Error, Kind, Manners, Result, TxId, clock, manners};
use crate::capture::Attested;
use crate::ltx::Level;
use crate::replica::inventory::read_header;
use crate::replica::{self, Inventory, ManifestEntry, ManifestWriter};
use crate::spool::Position;
use crate::spool::requests::{Answer, Wanted};
use crate::store::{Body, Pace, PutMeta, Recipients, ReplicaUrl, Store, block_on};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

impl Watched {
    /// A full snapshot now; returns its TXID when it is in the replica. Where another process ships, that one takes it. Writers go on
    /// meanwhile. Errors with [`Kind::Timeout`] after `timeout`, and with what keeps it from being taken or shipped.
    pub(super) fn snapshot_now(self: &Arc<Self>, timeout: Duration) -> Result<TxId> {
        self.wait_until_joined(timeout)?;
        match self.ask_for_snapshot(None, timeout)? {
            Some(txid) => Ok(txid),
            None => reread::snapshot_now(self, timeout),
        }
    }

    /// Nothing has a TXID until it is known whose replica it is, and whoever finds that out must be able to read. Errors as that ended.
    fn wait_until_joined(self: &Arc<Self>, timeout: Duration) -> Result<()> {
        if self.role() == Role::Joining {
            self.join_soon();
            self.joined.wait(timeout)?;
        }
        Ok(())
    }

    /// Has the process that ships take it, where that is another one. Errors as that one does, and as [`asked::ask`].
    fn ask_for_snapshot(&self, to: Option<String>, timeout: Duration) -> Result<Option<TxId>> {
        if self.role() != Role::Standby {
            return Ok(None);
        }
        let is_mine = || self.role() == Role::Shipper;
        match asked::ask(self.spool.dir(), &Wanted::Snapshot { to }, timeout, is_mine)? {
            Asking::Answered(_, Answer::Snapshot(txid)) => Ok(Some(TxId(txid))),
            Asking::Answered(..) | Asking::IsMine => Ok(None),
        }
    }

    /// Puts a full snapshot of now at `url`; returns its TXID when it is there. Writers go on meanwhile. `shipping`: the database that
    /// this process streams there, if it does. Errors when another history lies there, or another writer is at work there.
    pub(super) fn copy_to(
        self: &Arc<Watched>,
        url: &ReplicaUrl,
        shipping: Option<&Arc<Watched>>,
        timeout: Duration,
    ) -> Result<TxId> {
        self.wait_until_joined(timeout)?;
        if let Some(txid) = self.ask_for_snapshot(Some(url.to_string()), timeout)? {
            return Ok(txid);
        }
        let recipients = Recipients::parse(&self.settings().encrypt)?;
        let store = Store::open_for(url, Manners::of(self.path()))?.sealing_for(recipients);
        let Some(ticket) = Work::take_within(self, Job::Reading, timeout) else {
            return Err(Error::new(Kind::Timeout, "another snapshot is still being taken"));
        };
        // (Two copies at once are sent side by side.)
        let path = self.spool.dir().join(format!(".tmp-copy-{:016x}.ltx", clock::random_u64()));
        let made = self.write_copy(&path);
        // What is sent may take hours, in which the database may have to be read for other reasons.
        drop(ticket);
        let sent = made.and_then(|position| {
            let _alone = alone(&store, shipping, &[])?;
            block_on(send(&store, (self.spool.dir(), &path), &position))??;
            Ok(position.txid)
        });
        drop(std::fs::remove_file(&path));
        sent
    }

    fn write_copy(self: &Arc<Watched>, path: &Path) -> Result<Position> {
        at_a_txid(self, |view, p| {
            view.snapshot_at(path, &self.spool, &Attested::from(&p), |_, _| {})?;
            Ok(p)
        })
    }
}

/// Puts the snapshot at `path` there; an age file of it is made in `dir`.
async fn send(store: &Store, (dir, path): (&Path, &Path), position: &Position) -> Result<()> {
    let inventory = Inventory::read(store).await?;
    if let Some(newest) = inventory.files.iter().max_by_key(|f| (f.max, f.level)) {
        let is_sealed = store.is_sealed(&newest.id().key(store.layout())).await?;
        refuse_to_mix(store.url(), store.recipients().is_some(), is_sealed)?;
        let header = read_header(store, newest.id()).await?;
        if header.lineage != position.lineage || newest.max > position.txid {
            return Err(Error::config(format!(
                "the replica {} holds another history (newest TXID {}); choose another URL",
                store.url(),
                newest.max
            )));
        }
    } else {
        replica::place::refuse_to_begin(store).await?;
    }
    let entry = ManifestEntry::of_file(Level::SNAPSHOT, path)?;
    let scratch;
    let (path, entry) = match store.recipients() {
        None => (path, entry),
        Some(recipients) => {
            scratch = Scratch::new(dir, "copy")?;
            let to = scratch.path();
            let mut out = manners::create_private(to).map_err(|e| Error::io("create", to, e))?;
            let (bytes, sha256) = recipients.seal(path, &mut out)?;
            (to, entry.sealed(bytes, sha256))
        }
    };
    let meta = PutMeta { timestamp: Some(entry.time), sha256: Some(entry.sha256), ..PutMeta::default() };
    let measured = store.clone().with_pace(Pace::Measured);
    match measured.put_new(&entry.id.key(store.layout()), Body::File(path.to_path_buf()), meta).await {
        Ok(_) => {}
        // This very state was copied there before.
        Err(e) if e.kind() == Kind::Exists && inventory.files.iter().any(|f| f.id() == entry.id) => {
            return Ok(());
        }
        Err(e) => return Err(e),
    }
    ManifestWriter::load(store).await?.append(store, &[entry]).await
}
