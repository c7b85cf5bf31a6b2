//! What was fetched, on local disk: shared by the connections and processes of a user, and still there after a restart.
//!
//! One file of a fixed number of slots, in sets of eight. A thing (a block of 64 KiB of a replica's file, or a part of what else is
//! kept) may lie in the slots of one set, which its key names; so it is found by reading the table of one set, 512 bytes, and nothing of
//! the file is in memory.
//!
//! ```text
//! "walrust cache 1." | slots u32 | zeros to 4096 | for each slot: key 32, length u32, last used u32 (minutes), zeros to 64 | slots of 64 KiB
//! ```
//!
//! Rules
//! * I-CACHE-1 A thing is known by the SHA-256 of the file that it is of, as the manifest has it, and by which part of that file it is: whatever
//!   replica, point or process asks for the same bytes finds them.
//! * I-CACHE-2 Nothing that is read here is believed: who asks proves it by the checksum that proves what comes from the store (the block's, the
//!   file's). What does not hold is as good as not there, and is fetched.
//! * I-CACHE-3 No lock is taken and nobody waits. Two who write one slot leave one of the two things or a mix of them, which I-CACHE-2 finds.
//! * I-CACHE-4 The file has no more bytes than `cache_size`, and is its owner's alone. In a set the longest unused thing makes room.
//! * I-CACHE-5 It is a help: whatever is wrong with it (no such directory, a full disk, another owner) is told in the log once, and reading goes on
//!   without.
//!
//! A crash leaves a slot that is half written at worst, which is I-CACHE-2's. A file of other slots, or of another version, is replaced by
//! one of ours; who has the old one open goes on with it until it ends. Refused: a file for each block (16,000 in a cache of 1 GB, and
//! a walk through all of them to keep it bounded); a database of SQLite's (a lock to wait for, inside a read of SQLite's); the memory-mapped file
//! (a file that is cut short ends the program).

use crate::base::{Error, ForkSafe, Result, clock};
use crate::replica::contents::{Keep, Part};
use crate::replica::layout::BLOCK;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const MAGIC: &[u8; 16] = b"walrust cache 1.";
const NAME: &str = "blocks.walrust-cache";
const HEAD: u64 = 4096;
const KEY: usize = 32;
const ENTRY: usize = 64;
const WAYS: usize = 8;
/// Bytes of a slot.
const SLOT: usize = BLOCK as usize;
/// Bytes of one whole thing at most, which lies in several slots: the guide of a database of 10 GB has 1 MB.
const MOST_WHOLE: usize = 4 << 20;

/// Where the cache lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheAt {
    /// Directory, made if it is missing.
    pub dir: PathBuf,
    /// Bytes at most.
    pub bytes: u64,
}

/// The cache of this process, as far as it was asked for.
#[derive(Debug, Default)]
enum Open {
    #[default]
    NotYet,
    /// Nothing was fetched yet.
    Wanted(CacheAt),
    None,
    At(Arc<Disk>),
}

static DISK: ForkSafe<Mutex<Open>> = ForkSafe::new(Mutex::default);

/// Says where the cache lies, at the first call in a process.
pub(super) fn begin(at: impl FnOnce() -> Option<CacheAt>) {
    let mut open = DISK.lock();
    if let Open::NotYet = *open {
        *open = at().map_or(Open::None, Open::Wanted);
    }
}

/// The cache, if there is one; made at the first call.
pub(super) fn get() -> Option<Arc<Disk>> {
    let mut open = DISK.lock();
    if let Open::Wanted(at) = &*open {
        *open = Disk::open(at).map(|disk| Open::At(Arc::new(disk))).unwrap_or_else(|e| {
            log::warn!("walrust: what is read of replicas is not kept on disk: {e}");
            Open::None
        });
    }
    match &*open {
        Open::At(disk) => Some(disk.clone()),
        _ => None,
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    slots: u32,
}

type Key = [u8; KEY];

/// What the table says of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    key: Key,
    len: u32,
    used: u32,
}

impl Entry {
    fn decode(bytes: &[u8; ENTRY]) -> Option<Entry> {
        let (key, rest) = bytes.split_first_chunk::<KEY>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let used = u32::from_be_bytes(*rest.first_chunk::<4>()?);
        let len = u32::from_be_bytes(*len);
        (len > 0 && len as usize <= SLOT).then_some(Entry { key: *key, len, used })
    }

    fn encode(&self) -> [u8; ENTRY] {
        let mut out = [0; ENTRY];
        for (to, from) in
            out.iter_mut().zip(self.key.iter().chain(&self.len.to_be_bytes()).chain(&self.used.to_be_bytes()))
        {
            *to = *from;
        }
        out
    }
}

/// How many slots fit into so many bytes, in whole sets. Pure.
fn slots_in(bytes: u64) -> u32 {
    let sets = bytes.saturating_sub(HEAD) / ((ENTRY + SLOT) * WAYS) as u64;
    u32::try_from(sets * WAYS as u64).unwrap_or(u32::MAX / WAYS as u32 * WAYS as u32)
}

/// The key of part `n` of what `what` is of a file.
fn key(of: &[u8; 32], what: u8, n: u64) -> Key {
    Sha256::new().chain_update(of).chain_update([what]).chain_update(n.to_be_bytes()).finalize().into()
}

/// Which slot of a set to give up for one more thing. Pure.
fn victim(set: &[Option<Entry>]) -> usize {
    let by_use = |(_, e): &(usize, &Option<Entry>)| e.map(|e| e.used);
    set.iter().enumerate().min_by_key(by_use).map_or(0, |(n, _)| n)
}

impl Disk {
    /// Errors where the directory, or a file in it, cannot be made, or is another user's.
    fn open(at: &CacheAt) -> Result<Disk> {
        let slots = slots_in(at.bytes);
        if slots == 0 {
            return Err(Error::config(format!(
                "cache_size of {} bytes is too little; give 1MB or more, or 0",
                at.bytes
            )));
        }
        let mut make = std::fs::DirBuilder::new();
        make.recursive(true).mode(0o700).create(&at.dir).map_err(|e| Error::io("create", &at.dir, e))?;
        let path = at.dir.join(NAME);
        if let Some(file) = existing(&path, slots) {
            return Ok(Disk { file, slots });
        }
        let temp = at.dir.join(format!("{NAME}-{:016x}", clock::random_u64()));
        let made = fresh(&temp, slots);
        let named = made.and_then(|file| {
            std::fs::rename(&temp, &path).map_err(|e| Error::io("rename", &temp, e))?;
            Ok(Disk { file, slots })
        });
        if named.is_err() {
            drop(std::fs::remove_file(&temp));
        }
        named
    }

    fn sets(&self) -> u64 {
        u64::from(self.slots) / WAYS as u64
    }

    fn set_of(&self, key: &Key) -> u64 {
        let n = key.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b));
        n % self.sets().max(1)
    }

    fn entry_at(slot: u64) -> u64 {
        HEAD + slot * ENTRY as u64
    }

    fn data_at(&self, slot: u64) -> u64 {
        HEAD + u64::from(self.slots) * ENTRY as u64 + slot * SLOT as u64
    }

    fn set(&self, set: u64) -> Option<Vec<Option<Entry>>> {
        let mut table = [0; ENTRY * WAYS];
        // (What was never written may lie behind the file's end.)
        self.file.read_exact_at(&mut table, Self::entry_at(set * WAYS as u64)).ok()?;
        Some(table.as_chunks::<ENTRY>().0.iter().map(Entry::decode).collect())
    }

    fn find(&self, key: &Key) -> Option<(u64, Entry)> {
        let set = self.set_of(key);
        let table = self.set(set)?;
        let (n, entry) =
            table.iter().enumerate().find_map(|(n, e)| Some((n, (*e)?)).filter(|(_, e)| e.key == *key))?;
        Some((set * WAYS as u64 + n as u64, entry))
    }

    fn get(&self, key: &Key, is_it: impl FnOnce(&[u8]) -> bool) -> Option<Vec<u8>> {
        let (slot, entry) = self.find(key)?;
        let mut bytes = vec![0; entry.len as usize];
        let is_read = self.file.read_exact_at(&mut bytes, self.data_at(slot)).is_ok();
        if !is_read || !is_it(&bytes) {
            // (Damaged, cut off, or being written: it goes, and comes again.)
            drop(self.file.write_all_at(&[0; ENTRY], Self::entry_at(slot)));
            return None;
        }
        let now = now();
        if entry.used != now {
            drop(self.file.write_all_at(&Entry { used: now, ..entry }.encode(), Self::entry_at(slot)));
        }
        Some(bytes)
    }

    fn put(&self, key: &Key, bytes: &[u8]) {
        let set = self.set_of(key);
        let Some(table) = self.set(set) else { return };
        if bytes.is_empty() || bytes.len() > SLOT || table.iter().flatten().any(|e| e.key == *key) {
            return;
        }
        let slot = set * WAYS as u64 + victim(&table) as u64;
        let entry = Entry { key: *key, len: bytes.len() as u32, used: now() };
        let (data, at) = (self.data_at(slot), Self::entry_at(slot));
        let written =
            self.file.write_all_at(bytes, data).and_then(|()| self.file.write_all_at(&entry.encode(), at));
        if let Err(e) = written {
            log::debug!("walrust: what was read of a replica is not kept on disk: {e}");
        }
    }

    /// A block of a file, if it is here and is it.
    pub(super) fn block(
        &self,
        of: &[u8; 32],
        block: u64,
        is_it: impl FnOnce(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        self.get(&key(of, b'b', block), is_it)
    }

    /// Whether a block of a file seems to be here; that is no use of it.
    pub(super) fn has_block(&self, of: &[u8; 32], block: u64) -> bool {
        self.find(&key(of, b'b', block)).is_some()
    }

    /// Keeps a block of a file.
    pub(super) fn put_block(&self, of: &[u8; 32], block: u64, bytes: &[u8]) {
        self.put(&key(of, b'b', block), bytes);
    }
}

/// Which files of a replica were put here: so that what is here is not asked for before the manifest tells its name here. A word and no
/// promise: where it is wrong, a request is made earlier or later.
impl Disk {
    /// Files of the replica at `url` that were put here.
    pub(super) fn files(&self, url: &str) -> BTreeSet<u64> {
        let found = self.get(&key_of_files(url), |_| true).unwrap_or_default();
        found.as_chunks::<8>().0.iter().map(|n| u64::from_be_bytes(*n)).collect()
    }

    /// `files` of the replica at `url` are here. Of those that were here before some are remembered.
    pub(super) fn put_files(&self, url: &str, files: &[u64]) {
        let before = self.files(url);
        if files.iter().all(|f| before.contains(f)) {
            return;
        }
        let others = before.into_iter().filter(|f| !files.contains(f));
        let all: Vec<u8> =
            files.iter().copied().chain(others).take(SLOT / 8).flat_map(u64::to_be_bytes).collect();
        self.drop_it(&key_of_files(url));
        Disk::put(self, &key_of_files(url), &all);
    }

    fn drop_it(&self, key: &Key) {
        if let Some((slot, _)) = self.find(key) {
            drop(self.file.write_all_at(&[0; ENTRY], Self::entry_at(slot)));
        }
    }
}

fn key_of_files(url: &str) -> Key {
    key(&Sha256::digest(url).into(), b'f', 0)
}

fn what(part: Part) -> u8 {
    match part {
        Part::Whole => b'w',
        Part::Sums => b's',
        Part::Guide => b'g',
        Part::Edges => b'e',
    }
}

/// Larger things, in as many slots as they need: the first one begins with the length of it all.
impl Keep for Disk {
    fn get(&self, of: &[u8; 32], part: Part) -> Option<Bytes> {
        let first = Disk::get(self, &key(of, what(part), 0), |_| true)?;
        let (len, begin) = first.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok().filter(|len| *len <= MOST_WHOLE)?;
        let mut all = begin.to_vec();
        for n in 1.. {
            if all.len() >= len {
                break;
            }
            all.extend(Disk::get(self, &key(of, what(part), n), |_| true)?);
        }
        (all.len() == len).then(|| all.into())
    }

    fn put(&self, of: &[u8; 32], part: Part, bytes: &[u8]) {
        if bytes.is_empty() || bytes.len() > MOST_WHOLE {
            return;
        }
        let all = [&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes(), bytes].concat();
        for (n, piece) in (0..).zip(all.chunks(SLOT)) {
            Disk::put(self, &key(of, what(part), n), piece);
        }
    }

    fn forget(&self, of: &[u8; 32], part: Part) {
        self.drop_it(&key(of, what(part), 0));
    }
}

/// Minutes, by the wall clock: it only says what was used before what.
fn now() -> u32 {
    u32::try_from(clock::now().0 / 60_000).unwrap_or(0)
}

fn head(slots: u32) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&slots.to_be_bytes());
    head.resize(HEAD as usize, 0);
    head
}

/// The file that is there, if it is one of so many slots, and nobody else's.
fn existing(path: &Path, slots: u32) -> Option<File> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits();
    let file = File::options().read(true).write(true).custom_flags(no_follow as i32).open(path).ok()?;
    let meta = file.metadata().ok()?;
    let is_ours =
        meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0;
    let mut found = vec![0; HEAD as usize];
    file.read_exact_at(&mut found, 0).ok()?;
    (is_ours && found == head(slots)).then_some(file)
}

fn fresh(path: &Path, slots: u32) -> Result<File> {
    let made = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = made.map_err(|e| Error::io("create", path, e))?;
    file.write_all_at(&head(slots), 0).map_err(|e| Error::io("write", path, e))?;
    // The table reads as empty; the slots take up disk as they are filled.
    let table = HEAD + u64::from(slots) * ENTRY as u64;
    file.set_len(table).map_err(|e| Error::io("resize", path, e))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(dir: &Path, bytes: u64) -> CacheAt {
        CacheAt { dir: dir.join("cache"), bytes }
    }

    fn block(n: u64) -> Vec<u8> {
        (0..SLOT as u64).map(|i| (i * 7 + n * 31) as u8).collect()
    }

    const FILE: [u8; 32] = [9; 32];

    #[test]
    fn what_was_put_is_found_by_another_and_the_bound_holds() {
        let dir = tempfile::tempdir().unwrap();
        let at = at(dir.path(), 4 << 20);
        let (one, other) = (Disk::open(&at).unwrap(), Disk::open(&at).unwrap());
        one.put_block(&FILE, 7, &block(7));
        assert_eq!(other.block(&FILE, 7, |_| true).unwrap(), block(7));
        assert!(other.has_block(&FILE, 7) && !other.has_block(&FILE, 8) && !other.has_block(&[8; 32], 7));
        for n in 0..500 {
            other.put_block(&FILE, n, &block(n));
        }
        let found = (0..500).filter(|n| one.block(&FILE, *n, |b| b == block(*n)).is_some()).count();
        assert!((20..=64).contains(&found), "{found}");
        let path = at.dir.join(NAME);
        let meta = std::fs::metadata(&path).unwrap();
        assert!(meta.len() <= 4 << 20 && meta.mode() & 0o777 == 0o600);
        // Opened again, it is all there; opened with another size, it begins anew.
        let again = Disk::open(&at).unwrap();
        assert_eq!((0..500).filter(|n| again.has_block(&FILE, *n)).count(), found);
        let larger = Disk::open(&CacheAt { bytes: 8 << 20, ..at.clone() }).unwrap();
        assert_eq!((0..500).filter(|n| larger.has_block(&FILE, *n)).count(), 0);
        assert!(again.has_block(&FILE, 499), "who has the old one goes on with it");
        assert_eq!(std::fs::read_dir(&at.dir).unwrap().count(), 1, "nothing else is left there");
    }

    #[test]
    fn what_does_not_hold_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&at(dir.path(), 2 << 20)).unwrap();
        disk.put_block(&FILE, 1, &block(1));
        let (slot, _) = disk.find(&key(&FILE, b'b', 1)).unwrap();
        disk.file.write_all_at(b"damage", disk.data_at(slot) + 500).unwrap();
        assert_eq!(disk.block(&FILE, 1, |b| b == block(1)), None);
        assert!(!disk.has_block(&FILE, 1), "it goes");
        disk.put_block(&FILE, 1, &block(1));
        assert!(disk.block(&FILE, 1, |b| b == block(1)).is_some());
        // A table of noise, and a file that was cut short.
        let noise: Vec<u8> = (0..ENTRY * WAYS).map(|i| (i * 131) as u8).collect();
        disk.file.write_all_at(&noise, HEAD).unwrap();
        disk.file.set_len(HEAD + 100).unwrap();
        assert_eq!(disk.block(&FILE, 1, |b| b == block(1)), None);
        disk.put_block(&FILE, 1, &block(1));
        // The table is whole, and what it tells of lies behind the end.
        let disk = Disk::open(&at(&dir.path().join("other"), 2 << 20)).unwrap();
        disk.put_block(&FILE, 1, &block(1));
        disk.file.set_len(disk.data_at(0)).unwrap();
        assert!(disk.has_block(&FILE, 1));
        assert_eq!(disk.block(&FILE, 1, |b| b == block(1)), None);
        assert!(!disk.has_block(&FILE, 1), "it goes, too");
    }

    #[test]
    fn the_longest_unused_of_a_set_makes_room() {
        let entry = |used| Some(Entry { key: [1; KEY], len: 1, used });
        assert_eq!(victim(&[entry(5), entry(3), entry(4)]), 1);
        assert_eq!(victim(&[entry(5), None, entry(4)]), 1);
        assert_eq!(victim(&[None, None]), 0);
    }

    #[test]
    fn whole_things_of_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&at(dir.path(), 16 << 20)).unwrap();
        for len in [1, 100, SLOT - 4, SLOT - 3, SLOT, 3 * SLOT, 1 << 20] {
            let of = [(len % 251) as u8; 32];
            let bytes: Vec<u8> = (0..len).map(|i| (i * 13) as u8).collect();
            assert_eq!(Keep::get(&disk, &of, Part::Whole), None);
            Keep::put(&disk, &of, Part::Whole, &bytes);
            assert_eq!(Keep::get(&disk, &of, Part::Whole).as_deref(), Some(bytes.as_slice()), "{len}");
            assert_eq!(Keep::get(&disk, &of, Part::Sums), None);
            disk.forget(&of, Part::Whole);
            assert_eq!(Keep::get(&disk, &of, Part::Whole), None);
        }
        Keep::put(&disk, &FILE, Part::Whole, &vec![0; MOST_WHOLE + 1]);
        assert_eq!(Keep::get(&disk, &FILE, Part::Whole), None);
    }

    #[test]
    fn what_cannot_be_made_or_is_another_s_is_an_error_or_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        let under_a_file = CacheAt { dir: dir.path().join("file/cache"), bytes: 1 << 20 };
        assert!(Disk::open(&under_a_file).is_err());
        assert!(Disk::open(&CacheAt { dir: dir.path().into(), bytes: 1000 }).is_err());
        let at = at(dir.path(), 1 << 20);
        drop(Disk::open(&at).unwrap());
        let path = at.dir.join(NAME);
        // A link to a file that is no cache is replaced, and not written through.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("file"), &path).unwrap();
        Disk::open(&at).unwrap().put_block(&FILE, 1, &block(1));
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"x");
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn many_write_at_once_and_find_what_others_have_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = at(dir.path(), 1 << 20);
        // (A block is proved by its sum in the replica: here by one that tells blocks apart, and no more.)
        let is_it = |n: u64, b: &[u8]| {
            b.len() == SLOT && b[..8] == block(n)[..8] && b[SLOT - 8..] == block(n)[SLOT - 8..]
        };
        let found = std::thread::scope(|scope| {
            let work = |t: u64| {
                let disk = Disk::open(&at).unwrap();
                scope.spawn(move || {
                    let mut found = 0;
                    for n in (0..400u64).map(|i| (i * 17 + t * 5) % 40) {
                        if let Some(b) = disk.block(&FILE, n, |b| is_it(n, b)) {
                            found += usize::from(b == block(n));
                        }
                        disk.put_block(&FILE, n, &block(n));
                    }
                    found
                })
            };
            let all: Vec<_> = (0..4).map(work).collect();
            all.into_iter().map(|t| t.join().unwrap()).sum::<usize>()
        });
        assert!(found > 0, "all were in each other's way");
    }
}
