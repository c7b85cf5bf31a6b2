//! Whose replica is it? Decides, before anything is written, whether this database may go on in it.
//!
//! Rules
//! * I-WHO-1 A replica without files is taken.
//! * I-WHO-2 It is continued if the local state knows its newest file's lineage and TXID, or else if the database has the very checksum that
//!   the newest file attests (after a restore on a new machine, by whatever tool).
//! * I-WHO-3 Ours, but not where this database stands (power loss, a restore over the database): a new lineage with a snapshot,
//!   TXIDs going on upward. Never a guess that it continues.
//! * I-WHO-4 Everything else is another database's history and refused, with the reason and the way out.
//!
//! Pure but for [`newest`]. Refused: comparing TXID numbers alone, as Litestream does: two databases then mix in one replica, and each
//! restore of it passes an integrity check.

use super::inventory::{FileInfo, Inventory, read_header};
use crate::base::{DbChecksum, Error, Lineage, Result, TxId};
use crate::store::Store;
use std::cmp::Reverse;

/// What the replica's newest file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Newest {
    /// Its last TXID.
    pub txid: TxId,
    /// Its history; `Lineage(0)` for foreign files.
    pub lineage: Lineage,
    /// The database checksum it attests.
    pub after: Option<DbChecksum>,
}

/// What this machine remembers of what it sealed for this replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    /// The history it was writing.
    pub lineage: Lineage,
    /// The last TXID it sealed, uploaded or not.
    pub txid: TxId,
    /// Database checksum after that TXID.
    pub after: DbChecksum,
}

/// The decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Nobody's yet.
    Empty,
    /// This database's: the next upload is the TXID after `txid`, in `lineage`.
    Continues {
        /// The newest TXID in the replica.
        txid: TxId,
        /// The history to go on in.
        lineage: Lineage,
    },
    /// This database's, but it stands elsewhere: a fresh lineage, its snapshot after `txid`.
    Diverged {
        /// The newest TXID in the replica.
        txid: TxId,
    },
    /// Another database's. With the user's takeover: as `Diverged`.
    Foreign {
        /// The newest TXID in the replica.
        txid: TxId,
        /// One clause: why it is taken for another's.
        why: String,
    },
}

impl Whose {
    /// The error for [`Whose::Foreign`]; `None` otherwise.
    pub fn refusal(&self, url: &str) -> Option<Error> {
        let Whose::Foreign { txid, why } = self else { return None };
        Some(Error::config(format!(
            "replica {url} holds another database's history (up to TXID {}): {why}; choose another URL, or pass \
             {{\"takeover\":true}} to start a new lineage in it",
            txid.0
        )))
    }
}

/// Decides. `database` gives the checksum of the database as it is now; it reads all of it, and is asked only if nothing else decides.
pub fn decide(
    newest: Option<&Newest>,
    local: Option<&Local>,
    database: impl FnOnce() -> Result<DbChecksum>,
) -> Result<Whose> {
    let Some(n) = newest else { return Ok(Whose::Empty) };
    let (txid, lineage) = (n.txid, n.lineage);
    let ours = local.filter(|l| l.lineage == lineage && lineage != Lineage(0));
    if let Some(l) = ours {
        if txid < l.txid || (txid == l.txid && n.after == Some(l.after)) {
            return Ok(Whose::Continues { txid, lineage });
        }
        if txid == l.txid {
            return Ok(Whose::Diverged { txid });
        }
    }
    let Some(after) = n.after else {
        let why = "its newest file attests no database checksum (not written by walrust)".to_string();
        return Ok(Whose::Foreign { txid, why });
    };
    let now = database()?;
    Ok(match (now == after, ours, local) {
        (true, _, _) => Whose::Continues { txid, lineage },
        (false, Some(_), _) => Whose::Diverged { txid },
        (false, None, Some(_)) => {
            let why = format!(
                "it is now written as lineage {lineage}, and the database does not have its checksum"
            );
            Whose::Foreign { txid, why }
        }
        (false, None, None) => Whose::Foreign {
            txid,
            why: format!("the database has checksum {now}, the replica's newest state {after}"),
        },
    })
}

/// Reads what the replica's newest file says; `None` for an empty replica. Errors: `Corrupt` if no file of the newest TXID has a
/// readable header; the store's.
pub async fn newest(store: &Store) -> Result<Option<Newest>> {
    let mut error = None;
    for _ in 0..3 {
        let inventory = Inventory::read(store).await?;
        let txid = inventory.newest();
        let mut last: Vec<&FileInfo> = inventory.files.iter().filter(|f| f.max == txid).collect();
        if last.is_empty() {
            return Ok(None);
        }
        last.sort_by_key(|f| (Reverse(f.min), f.level));
        for f in last {
            match read_header(store, f.id()).await {
                Ok(h) if h.file_name() == f.id().name() => {
                    return Ok(Some(Newest { txid, lineage: h.lineage, after: h.attest.map(|a| a.after) }));
                }
                Ok(h) => {
                    error = Some(Error::corrupt(format!("{}: its header says {}", f.id(), h.file_name())))
                }
                // Merged away since the listing: list again.
                Err(e) if e.is_missing() => error = Some(e),
                Err(e) if e.is_corrupt() => error = Some(e.context(f.id())),
                Err(e) => return Err(e),
            }
        }
    }
    Err(error.unwrap_or_else(|| Error::corrupt("the replica's newest file cannot be read")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::testkit::*;

    const A: DbChecksum = DbChecksum(DbChecksum::FLAG | 1);
    const B: DbChecksum = DbChecksum(DbChecksum::FLAG | 2);
    const L: Lineage = Lineage(7);
    const OTHER: Lineage = Lineage(9);

    fn ask(
        newest: Option<(u64, Lineage, Option<DbChecksum>)>,
        local: Option<(Lineage, u64)>,
        db: DbChecksum,
    ) -> Whose {
        let newest = newest.map(|(n, lineage, after)| Newest { txid: TxId(n), lineage, after });
        let local = local.map(|(lineage, n)| Local { lineage, txid: TxId(n), after: A });
        decide(newest.as_ref(), local.as_ref(), || Ok(db)).unwrap()
    }

    #[test]
    fn decisions() {
        let go_on = |n| Whose::Continues { txid: TxId(n), lineage: L };
        let diverged = |n| Whose::Diverged { txid: TxId(n) };
        assert_eq!(ask(None, None, A), Whose::Empty);
        assert_eq!(ask(None, Some((L, 5)), A), Whose::Empty);
        // Local state knows it, whatever the database looks like meanwhile.
        assert_eq!(ask(Some((5, L, Some(A))), Some((L, 5)), B), go_on(5));
        assert_eq!(ask(Some((3, L, Some(B))), Some((L, 5)), B), go_on(3));
        // The replica is ahead: power loss; or the same TXID means something else.
        assert_eq!(ask(Some((6, L, Some(B))), Some((L, 5)), A), diverged(6));
        assert_eq!(ask(Some((6, L, Some(B))), Some((L, 5)), B), go_on(6));
        assert_eq!(ask(Some((5, L, Some(B))), Some((L, 5)), A), diverged(5));
        // A new machine after a restore.
        assert_eq!(ask(Some((5, L, Some(A))), None, A), go_on(5));
        for foreign in [
            ask(Some((5, L, Some(A))), None, B),
            ask(Some((5, OTHER, Some(B))), Some((L, 5)), A),
            ask(Some((5, OTHER, Some(B))), Some((L, 9)), A),
            ask(Some((5, Lineage(0), None)), None, A),
            ask(Some((5, Lineage(0), None)), Some((Lineage(0), 5)), A),
        ] {
            assert!(matches!(foreign, Whose::Foreign { txid: TxId(5), .. }), "{foreign:?}");
            let text = foreign.refusal("s3://b/app").unwrap().to_string();
            assert!(text.contains("takeover") && text.contains("another database's history"), "{text}");
        }
        assert!(go_on(1).refusal("x").is_none());
    }

    #[test]
    fn the_database_is_read_only_if_it_must_be() {
        let newest = Newest { txid: TxId(5), lineage: L, after: Some(A) };
        let local = Local { lineage: L, txid: TxId(5), after: A };
        decide(Some(&newest), Some(&local), || panic!("read")).unwrap();
    }

    #[test]
    fn a_restored_copy_continues_its_replica() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        assert_eq!(block(newest(&store)).unwrap(), None);
        let files = history(&mut maker, 9);
        block(upload(&store, &files));
        let n = block(newest(&store)).unwrap().unwrap();
        assert_eq!((n.txid, n.lineage, n.after), (TxId(9), maker.lineage, Some(maker.sum())));
        let w = decide(Some(&n), None, || Ok(maker.sum())).unwrap();
        assert_eq!(w, Whose::Continues { txid: TxId(9), lineage: maker.lineage });
        block(store.put_over(&files.last().unwrap().id.key(store.layout()), vec![0u8; 300])).unwrap();
        assert!(block(newest(&store)).unwrap_err().is_corrupt());
    }
}
