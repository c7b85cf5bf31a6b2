//! What must hold, whoever does what. Knows the LTX format from the crate's strict decoder and SQLite's view of each
//! database from `sqlite3_serialize`; nothing else of walrust.
//!
//! * A level-0 file is TXID n of a lineage whose n-1 (or snapshot n-1) was put before it: a listing shows no hole.
//! * A lineage begins above every TXID there is.
//! * What a TXID restores to is a state that its machine's database really had, and not an older one than the TXID before.
//! * A TXID never has two contents, whatever restores it and when.
//! * What a sync acknowledged is there, and not older than the database was at the call.

use super::bucket::Seen;
use std::collections::{BTreeMap, HashMap};
use walrust::base::{DbChecksum, Pgno};
use walrust::ltx::{Decoder, Level, page_checksum};
use walrust::replica::FileId;
use walrust::store::LayoutKind;

/// The states a machine's database has had, by the hash of their bytes.
#[derive(Clone, Default)]
pub struct States {
    of: HashMap<u64, Vec<u64>>,
    pub newest: u64,
    pub last: u64,
}

impl States {
    /// The database is this now.
    pub fn push(&mut self, hash: u64) -> bool {
        if hash == self.last {
            return false;
        }
        self.newest += 1;
        self.last = hash;
        self.of.entry(hash).or_default().push(self.newest);
        true
    }

    /// The first state with this hash that is not before `from`.
    fn at_or_after(&self, hash: u64, from: u64) -> Option<u64> {
        self.of.get(&hash)?.iter().copied().find(|i| *i >= from)
    }
}

struct Head {
    txid: u64,
    image: Vec<u8>,
}

#[derive(Default)]
pub struct Oracle {
    /// Machine → its states, and which of them the newest TXID put by it is.
    pub machines: HashMap<usize, (States, u64)>,
    heads: HashMap<u64, Head>,
    /// TXID → hash of what it restores to.
    pub txids: BTreeMap<u64, u64>,
    /// TXIDs that no state explains yet: a COMMIT may be waiting for them.
    open: Vec<(usize, u64, u64)>,
    /// Key → hash of its bytes: the same file may arrive twice, when retention took it meanwhile.
    keys: HashMap<String, u64>,
    newest_of: HashMap<usize, u64>,
    /// Lineage and TXID → the database checksum after it.
    attested: HashMap<(u64, u64), u64>,
    /// Every image put and every state seen, to show how two differ (DIFF=1).
    pub images: Option<HashMap<u64, Vec<u8>>>,
    pub puts: u64,
    pub lineages: u64,
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64 ^ bytes.len() as u64;
    for c in bytes.chunks(8) {
        let mut w = [0; 8];
        w[..c.len()].copy_from_slice(c);
        h = (h ^ u64::from_le_bytes(w)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    h ^ (h >> 31)
}

/// Of a database image: leaves of the freelist aside, which SQLite does not write (they differ between its cache and the
/// files). What is in them is held to the bit by the checksums that a restore proves.
pub fn state_of(image: &[u8]) -> u64 {
    let page = match image.get(16..18) {
        Some([0, 1]) => 65536,
        Some([a, b]) => usize::from(*a) << 8 | usize::from(*b),
        _ => return hash(image),
    };
    let mut image = image.to_vec();
    for leaf in free_leaves(&image, page) {
        if let Some(p) = image.get_mut((leaf as usize - 1) * page..leaf as usize * page) {
            p.fill(0);
        }
    }
    hash(&image)
}

/// <https://sqlite.org/fileformat2.html#the_freelist>
fn free_leaves(image: &[u8], page: usize) -> Vec<u32> {
    let word = |at: usize| image.get(at..at + 4).map_or(0, |b| u32::from_be_bytes(b.try_into().unwrap()));
    let (mut out, mut trunk) = (Vec::new(), word(32));
    let mut trunks = 0;
    while trunk != 0 && trunks < 10_000 {
        trunks += 1;
        let at = (trunk as usize - 1) * page;
        out.extend((0..word(at + 4).min(10_000) as usize).map(|i| word(at + 8 + i * 4)));
        trunk = word(at);
    }
    out
}

impl Oracle {
    pub fn newest(&self) -> u64 {
        self.txids.keys().next_back().copied().unwrap_or(0)
    }

    /// Judges one put; `machine` is whose it is, if the database of a machine.
    pub fn judge(&mut self, put: &Seen, machine: usize) -> Result<(), String> {
        let Some(id) = FileId::parse(LayoutKind::LevelHex, &put.key) else { return Ok(()) };
        if put.replaced {
            return Err(format!("{} was overwritten", put.key));
        }
        self.puts += 1;
        let bytes = hash(&put.bytes);
        if self.keys.insert(put.key.clone(), bytes) == Some(bytes) {
            return Ok(());
        }
        let bad = |e: walrust::base::Error| format!("{}: {e}", put.key);
        let mut d = Decoder::new(std::io::Cursor::new(&put.bytes)).map_err(bad)?;
        let h = d.header().clone();
        let (min, max) = (id.min.0, id.max.0);
        if (h.min, h.max) != (id.min, id.max) {
            return Err(format!("{} holds TXIDs {} to {}", put.key, h.min, h.max));
        }
        let size = h.page_size.len();
        let of_this_level =
            if id.level == Level::SNAPSHOT { Some(true) } else { (id.level == Level::L0).then_some(false) };
        let mut image = match of_this_level {
            Some(true) => Vec::new(),
            Some(false) => match self.heads.get_mut(&h.lineage.0) {
                Some(head) if head.txid + 1 == min && min == max => std::mem::take(&mut head.image),
                Some(head) if head.txid >= min => {
                    return Err(format!("TXID {min} was put after TXID {} of its lineage", head.txid));
                }
                _ => return Err(format!("TXID {min} was put, and nothing of its lineage before it: a hole")),
            },
            None => Vec::new(),
        };
        let mut page = vec![0; size];
        while let Some(pgno) = d.next_page(&mut page).map_err(bad)? {
            if of_this_level.is_some() {
                let at = (pgno.get() as usize - 1) * size;
                if image.len() < at + size {
                    image.resize(at + size, 0);
                }
                image[at..at + size].copy_from_slice(&page);
            }
        }
        d.finish().map_err(bad)?;
        let Some(attest) = h.attest else { return Err(format!("{} attests nothing", put.key)) };
        let Some(is_snapshot) = of_this_level else {
            return match self.attested.get(&(h.lineage.0, max)) {
                Some(a) if *a == attest.after.0 => Ok(()),
                a => Err(format!("{} attests {}, its last TXID {a:x?}", put.key, attest.after)),
            };
        };
        image.resize(h.commit as usize * size, 0);
        let all = image.chunks(size).zip(1..).fold(DbChecksum::EMPTY, |c, (page, n)| match Pgno::new(n) {
            Some(pgno) => c.toggle(page_checksum(pgno, page)),
            None => c,
        });
        if all != attest.after {
            return Err(format!("{} attests {}, and what it gives adds up to {all}", put.key, attest.after));
        }
        self.attested.insert((h.lineage.0, max), all.0);
        let sum = state_of(&image);
        if is_snapshot && !self.heads.contains_key(&h.lineage.0) {
            self.lineages += 1;
            // A machine that was evicted alive goes on below its rival until it notices; never below itself.
            let own = self.newest_of.get(&machine).copied().unwrap_or(0);
            if max <= own {
                return Err(format!("a lineage begins at TXID {max}, and TXID {own} is there"));
            }
            self.heads.insert(h.lineage.0, Head { txid: max, image });
        } else if !is_snapshot {
            self.heads.insert(h.lineage.0, Head { txid: max, image });
        }
        if let Some(was) = self.txids.insert(max, sum)
            && was != sum
        {
            return Err(format!("TXID {max} has two contents ({} was put)", put.key));
        }
        let own = self.newest_of.entry(machine).or_default();
        *own = (*own).max(max);
        if let Some(images) = &mut self.images {
            images.insert(sum, self.heads[&h.lineage.0].image.clone());
        }
        self.open.push((machine, max, sum));
        Ok(())
    }

    /// Every TXID put must be a state of its machine by now; gives those that are not.
    pub fn explain(&mut self) -> Vec<(usize, u64, u64)> {
        let mut left = Vec::new();
        for (machine, txid, sum) in std::mem::take(&mut self.open) {
            let Some((states, shipped)) = self.machines.get_mut(&machine) else { continue };
            match states.at_or_after(sum, *shipped) {
                Some(i) => *shipped = i,
                // A snapshot, beside the stream, is of an older TXID.
                None if states.of.contains_key(&sum) && self.txids.keys().next_back() != Some(&txid) => {}
                None => left.push((machine, txid, sum)),
            }
        }
        left
    }

    pub fn open_again(&mut self, left: Vec<(usize, u64, u64)>) {
        self.open.extend(left);
    }

    /// The pages in which an image differs from the state nearest to it.
    pub fn difference(&self, sum: u64, page: usize) -> String {
        let Some((images, mine)) = self.images.as_ref().and_then(|i| Some((i, i.get(&sum)?))) else {
            return "DIFF=1 shows how it differs".into();
        };
        let pages = |other: &Vec<u8>| -> Vec<usize> {
            let n = mine.len().max(other.len()) / page;
            let at = |v: &Vec<u8>, i: usize| v.get(i * page..(i + 1) * page).map(hash);
            (0..n).filter(|i| at(mine, *i) != at(other, *i)).map(|i| i + 1).collect()
        };
        let mut all: Vec<(usize, u64, Vec<usize>)> = self
            .machines
            .values()
            .flat_map(|(s, _)| s.of.iter())
            .filter_map(|(h, at)| Some((h, at.last().copied()?)))
            .filter_map(|(h, at)| images.get(h).map(|i| (pages(i), at)))
            .map(|(p, at)| (p.len(), at, p))
            .collect();
        all.sort();
        let nearest = all.first().and_then(|(_, at, pages)| {
            let h =
                self.machines.values().find_map(|(s, _)| s.of.iter().find(|(_, v)| v.last() == Some(at)))?.0;
            let (other, p) = (images.get(h)?, pages.first()? - 1);
            let zero = |v: &Vec<u8>| v.get(p * page..(p + 1) * page).map(|b| b.iter().all(|b| *b == 0));
            Some((zero(mine), zero(other), free_leaves(other, page)))
        });
        let all = (all.first(), nearest);
        format!("it has {} pages and differs from state {all:?}", mine.len() / page)
    }

    /// A sync of `machine`, called when its database was `state`, gave `txid`.
    pub fn acknowledged(&self, machine: usize, state: u64, txid: u64) -> Result<(), String> {
        let Some(sum) = self.txids.get(&txid) else {
            return Err(format!("a sync gave TXID {txid}, which is not in the replica"));
        };
        let ok = self.machines.get(&machine).is_some_and(|(s, _)| s.at_or_after(*sum, state).is_some());
        if ok {
            Ok(())
        } else {
            Err(format!("a sync gave TXID {txid}, which is older than the database was"))
        }
    }
}
