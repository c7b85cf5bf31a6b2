//! The records of a spool: read and written whole.

use super::dir::Spool;
use super::files::read_json;
use super::held::SealHeld;
use super::position::{Handoff, Identity, Position, Shipped, Ventured, WalPlace};
use crate::base::{DbChecksum, Error, Lineage, Result, Timestamp, TxId, clock, durable, manners};
use std::fs;
use std::io::Write;

/// Lineages of ours that are remembered: more than could be under way to the replica at once. (Of a file in the queue whose
/// lineage is forgotten nothing tells that it is ours.)
const LINEAGES: usize = 64;

/// What is remembered of the store.
#[derive(serde::Serialize, serde::Deserialize)]
struct StoreNote {
    address: String,
    conditions: String,
    /// Milliseconds since 1970.
    asked: i64,
}

/// What the database file was before this machine's first commits, while its replica was not heard.
#[derive(serde::Serialize, serde::Deserialize)]
struct MetNote {
    replica: String,
    /// Hex.
    checksum: String,
}

/// When a replica was looked after.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct CareNote {
    replica: String,
    /// Milliseconds since 1970.
    #[serde(default)]
    validated: Option<i64>,
    /// The snapshot that retention has followed.
    #[serde(default)]
    retained: u64,
}

/// A schema cookie that was shipped, and what the replica held before that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct SchemaSeen {
    /// TXID.
    pub before: u64,
    /// The cookie.
    pub cookie: u32,
}

/// What is known to be sound.
#[derive(serde::Serialize, serde::Deserialize)]
struct SoundNote {
    replica: String,
    txid: u64,
}

/// What is to be looked at for a replica.
#[derive(serde::Serialize, serde::Deserialize)]
struct SchemaNote {
    replica: String,
    seen: Vec<SchemaSeen>,
}

impl Spool {
    /// The position, `None` if there is none or it can't be read as one.
    pub fn position(&self) -> Result<Option<Position>> {
        if let Some(source) = &self.source {
            return source.position();
        }
        read_json(&self.dir.join("position.json"))
    }

    /// Replaces the position (I-SPOOL-3).
    pub fn set_position(&self, _held: &SealHeld<'_>, p: &Position) -> Result<()> {
        self.write_json("position.json", p)
    }

    /// What is known to be durable in the replica.
    pub fn shipped(&self) -> Result<Option<Shipped>> {
        read_json(&self.dir.join("shipped.json"))
    }

    /// Records what is durable in the replica. Caller holds the ship lock.
    pub fn set_shipped(&self, s: &Shipped) -> Result<()> {
        self.write_json("shipped.json", s)
    }

    /// What may be in the replica although the position does not say so.
    pub fn ventured(&self) -> Result<Option<Ventured>> {
        read_json(&self.dir.join("ventured.json"))
    }

    /// Writes down a TXID that may be in the replica from now on (I-SPOOL-7).
    pub fn venture(&self, _held: &SealHeld<'_>, txid: TxId) -> Result<()> {
        let old = self.ventured()?.unwrap_or_default();
        self.write_json("ventured.json", &Ventured { txid: old.txid.max(txid) })
    }

    /// Whether the replica has, or may have, a file of that TXID: then another must not be made (I-SPOOL-12). Errors as the file system
    /// does.
    pub fn may_have_left(&self, txid: TxId) -> Result<bool> {
        let shipped = self.shipped()?.map(|s| s.txid).unwrap_or_default();
        let ventured = self.ventured()?.map(|v| v.txid).unwrap_or_default();
        Ok(txid <= shipped.max(ventured).max(self.newest_in_mirrors()?))
    }

    /// Whose spool this is.
    pub fn identity(&self) -> Result<Option<Identity>> {
        read_json(&self.dir.join("replica.json"))
    }

    /// `lineage` of `replica` is ours. That is on disk before anything of it can be in the replica ([`Spool::vouch`]): a program's
    /// thread that begins a lineage waits for no disk. Records are small and not synced otherwise: what they say is proved again by
    /// content.
    pub fn own(&self, replica: &str, lineage: Lineage) -> Result<()> {
        let name = lineage.to_string();
        let old = self.identity()?.filter(|i| i.replica == replica);
        if old.as_ref().is_some_and(|i| i.lineages.last() == Some(&name)) {
            return Ok(());
        }
        let mut lineages = old.map(|i| i.lineages).unwrap_or_default();
        lineages.retain(|l| *l != name);
        lineages.push(name);
        lineages.drain(..lineages.len().saturating_sub(LINEAGES));
        self.write_json("replica.json", &Identity { replica: replica.to_string(), lineages })
    }

    /// Forces the names of the records to disk, and that of the directory, which may be new, too.
    pub(super) fn sync_names(&self) -> Result<()> {
        for d in [Some(self.dir.as_path()), self.dir.parent()].into_iter().flatten() {
            durable::sync_dir(d).map_err(|e| Error::io("sync", d, e))?;
        }
        Ok(())
    }

    /// The replica `old` is known by another name from now on.
    pub fn respell(&self, old: &str, replica: &str) -> Result<()> {
        if let Some(i) = self.identity()?.filter(|i| i.replica == old && old != replica) {
            let identity = Identity { replica: replica.to_string(), ..i };
            self.write_text("replica.json", &identity, |f| f.sync_data())?;
            self.sync_names()?;
        }
        Ok(())
    }

    /// Whether `lineage` of `replica` was begun or taken up here.
    pub fn owns(&self, replica: &str, lineage: Lineage) -> Result<bool> {
        let name = lineage.to_string();
        // (A lineage that is ours in the replica is ours in each mirror.)
        let known = match &self.source {
            Some(source) => source.identity()?,
            None => self.identity()?.filter(|i| i.replica == replica),
        };
        Ok(known.is_some_and(|i| i.lineages.contains(&name)))
    }

    /// From now on only the database's content tells where the WAL goes on.
    pub fn forget_place(&self, held: &SealHeld<'_>) -> Result<()> {
        match self.position()? {
            Some(p) => {
                self.set_position(held, &Position { wal: WalPlace::GivenUp, handoff: Handoff::Live, ..p })
            }
            None => Ok(()),
        }
    }

    /// What was found out about the conditional writes of the store at `address`, and when; `None` if nothing was. Errors as the
    /// file system does.
    pub fn conditions_of(&self, address: &str) -> Result<Option<(String, Timestamp)>> {
        let noted: Option<StoreNote> = read_json(&self.dir.join("store.json"))?;
        // (A time in the future was written by a clock that was wrong.)
        let now = clock::now();
        Ok(noted
            .filter(|n| n.address == address && n.asked <= now.0)
            .map(|n| (n.conditions, Timestamp(n.asked))))
    }

    /// Writes that down. Errors as the file system does.
    pub fn note_conditions(&self, address: &str, conditions: &str, asked: Timestamp) -> Result<()> {
        let (address, conditions) = (address.to_string(), conditions.to_string());
        self.write_json("store.json", &StoreNote { address, conditions, asked: asked.0 })
    }

    /// What the database file added up to when this machine met it, before `replica` was heard; `None` if that was not noted. Errors as the
    /// file system does.
    pub fn met(&self, replica: &str) -> Result<Option<DbChecksum>> {
        let noted: Option<MetNote> = read_json(&self.dir.join("met.json"))?;
        let of_it = noted.filter(|n| n.replica == replica);
        Ok(of_it.and_then(|n| u64::from_str_radix(&n.checksum, 16).ok()).map(DbChecksum))
    }

    /// Writes that down. Errors as the file system does.
    pub fn note_met(&self, replica: &str, was: DbChecksum) -> Result<()> {
        self.write_json("met.json", &MetNote { replica: replica.to_string(), checksum: was.to_string() })
    }

    /// When `replica` was last validated from here, or first looked at; `None` if neither. Errors as the file system does.
    pub fn validated(&self, replica: &str) -> Result<Option<Timestamp>> {
        Ok(self.care_of(replica)?.validated.map(Timestamp))
    }

    /// Writes that down. Errors as the file system does.
    pub fn note_validated(&self, replica: &str, at: Timestamp) -> Result<()> {
        let care = self.care_of(replica)?;
        self.write_json("care.json", &CareNote { validated: Some(at.0), ..care })
    }

    /// The snapshot in `replica` that retention was last applied after from here; 0 if none. Errors as the file system does.
    pub fn retained(&self, replica: &str) -> Result<TxId> {
        Ok(TxId(self.care_of(replica)?.retained))
    }

    /// Writes that down. Errors as the file system does.
    pub fn note_retained(&self, replica: &str, snapshot: TxId) -> Result<()> {
        let care = self.care_of(replica)?;
        self.write_json("care.json", &CareNote { retained: snapshot.0, ..care })
    }

    fn care_of(&self, replica: &str) -> Result<CareNote> {
        let noted: Option<CareNote> = read_json(&self.dir.join("care.json"))?;
        let nothing = || CareNote { replica: replica.to_string(), ..CareNote::default() };
        Ok(noted.filter(|n| n.replica == replica).unwrap_or_else(nothing))
    }

    /// The schema cookies that were shipped to `replica` and not looked at yet, oldest first. Errors as the file system does.
    pub fn schema_seen(&self, replica: &str) -> Result<Vec<SchemaSeen>> {
        let noted: Option<SchemaNote> = read_json(&self.dir.join("labels.json"))?;
        Ok(noted.filter(|n| n.replica == replica).map(|n| n.seen).unwrap_or_default())
    }

    /// Writes that down. Errors as the file system does.
    pub fn note_schema_seen(&self, replica: &str, seen: &[SchemaSeen]) -> Result<()> {
        self.write_json("labels.json", &SchemaNote { replica: replica.to_string(), seen: seen.to_vec() })
    }

    /// The newest snapshot in `replica` of which it is known that its database was sound. Errors as the file system does.
    pub fn sound(&self, replica: &str) -> Result<Option<TxId>> {
        let noted: Option<SoundNote> = read_json(&self.dir.join("sound.json"))?;
        Ok(noted.filter(|n| n.replica == replica).map(|n| TxId(n.txid)))
    }

    /// Writes that down. Errors as the file system does.
    pub fn note_sound(&self, replica: &str, txid: TxId) -> Result<()> {
        self.write_json("sound.json", &SoundNote { replica: replica.to_string(), txid: txid.0 })
    }

    /// The id under which this spool writes to replicas. It names the file it stands in, too: the copy of a spool is another
    /// writer, however much it knows of the history. On disk before it is used: a machine that came back from a power cut as
    /// another writer would be refused.
    pub fn writer(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        let path = self.dir.join("writer");
        let failed = |e| Error::io("write", &path, e);
        let ino = |m: std::fs::Metadata| format!("{:016x}", m.ino());
        let said = fs::read_to_string(&path).unwrap_or_default();
        if let Some((id, file)) = said.trim_end().split_once(' ')
            && id.len() == 16
            && fs::metadata(&path).map(ino).is_ok_and(|ino| ino == file)
        {
            return Ok(id.to_string());
        }
        let id = format!("{:016x}", crate::base::clock::random_u64());
        drop(fs::remove_file(&path));
        let mut file = manners::create(&path).map_err(failed)?;
        let text = format!("{id} {}\n", file.metadata().map(ino).map_err(failed)?);
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        #[cfg(feature = "sim")]
        if let Some(w) = crate::base::sim::world() {
            w.synced(&path);
        }
        self.sync_names()?;
        Ok(id)
    }
}
