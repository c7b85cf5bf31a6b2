//! Tests of the WAL room: generated WALs against a model, WALs and wal-indexes of a real SQLite, hostile
//! bytes.

use super::*;
use crate::base::{PageSize, Pgno};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

fn size(n: u32) -> PageSize {
    PageSize::new(n).unwrap()
}

fn pgno(n: u32) -> Pgno {
    Pgno::new(n).unwrap()
}

/// Builds a WAL frame by frame, as SQLite would.
#[derive(Clone)]
struct Builder {
    header: WalHeader,
    bytes: Vec<u8>,
    at: WalPos,
}

impl Builder {
    fn new(page_size: u32, endian: Endian, salt: Salt) -> Builder {
        let header = WalHeader {
            endian,
            page_size: size(page_size),
            sequence: 0,
            salt,
            checksum: FrameChecksum(0, 0),
        };
        let bytes = header.encode();
        let header = WalHeader::decode(&bytes).unwrap();
        Builder { header, bytes: bytes.to_vec(), at: header.start() }
    }

    fn frame(&mut self, n: u32, commit: u32, page: &[u8]) {
        let mut head =
            FrameHeader { pgno: Pgno::new(n), commit, salt: self.header.salt, checksum: FrameChecksum(0, 0) };
        head.checksum = head.chain(page, self.at.checksum, self.header.endian);
        self.at = WalPos { frame: self.at.frame + 1, checksum: head.checksum, ..self.at };
        self.bytes.extend(head.encode());
        self.bytes.extend(page);
    }
}

fn page(page_size: u32, seed: u8) -> Vec<u8> {
    (0..page_size).map(|i| (i as u8).wrapping_mul(seed).wrapping_add(seed)).collect()
}

const SALT: Salt = Salt { salt1: 0x0102_0304, salt2: 0x0506_0708 };

/// Two transactions: pages 1, 2 (2 pages); pages 2, 3, 2 (3 pages).
fn small(endian: Endian) -> (Builder, Vec<WalPos>) {
    let mut wal = Builder::new(512, endian, SALT);
    let mut places = vec![wal.at];
    for (n, commit, seed) in [(1, 0, 1), (2, 2, 2), (2, 0, 3), (3, 0, 4), (2, 3, 5)] {
        wal.frame(n, commit, &page(512, seed));
        places.push(wal.at);
    }
    (wal, places)
}

fn read(bytes: &[u8], start: WalPos, end: WalPos) -> Result<Frames, ReadError> {
    read_frames(bytes, start, end, |_| {})
}

#[test]
fn checksum_by_definition() {
    // The example's arithmetic, by hand: words 1, 2, 3, 4 from (0, 0).
    let bytes: Vec<u8> = [1u32, 2, 3, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
    let (mut a, mut b) = (0u32, 0u32);
    for (x, y) in [(1u32, 2u32), (3, 4)] {
        a = a + x + b;
        b = b + y + a;
    }
    let sum = checksum(&bytes, FrameChecksum(0, 0), Endian::Little);
    assert_eq!(sum, FrameChecksum(a, b));
    assert_eq!(sum, FrameChecksum(7, 14));
    let swapped: Vec<u8> = [1u32, 2, 3, 4].iter().flat_map(|n| n.to_be_bytes()).collect();
    assert_eq!(checksum(&swapped, FrameChecksum(0, 0), Endian::Big), sum);
    // In steps or at once; a remainder is no part of it.
    let first = checksum(&bytes[..8], FrameChecksum(0, 0), Endian::Little);
    assert_eq!(checksum(&bytes[8..], first, Endian::Little), sum);
    assert_eq!(checksum(&bytes[..15], FrameChecksum(0, 0), Endian::Little), first);
}

#[test]
fn ranges_and_positions() {
    for endian in [Endian::Little, Endian::Big] {
        let (wal, at) = small(endian);
        let mut seen = Vec::new();
        let all = read_frames(wal.bytes.as_slice(), at[0], at[5], |f| {
            assert_eq!(f.page, page(512, [1, 2, 3, 4, 5][f.number as usize - 1]));
            seen.push((f.pgno.get(), f.number, f.commit));
        })
        .unwrap();
        assert_eq!(seen, [(1, 1, 0), (2, 2, 2), (2, 3, 0), (3, 4, 0), (2, 5, 3)]);
        assert_eq!(all.pages, [(pgno(1), 1), (pgno(2), 5), (pgno(3), 4)]);
        assert_eq!((all.commit, all.commits, all.end, all.page_size), (3, 2, at[5], size(512)));

        let second = read(&wal.bytes, at[2], at[5]).unwrap();
        assert_eq!(second.pages, [(pgno(2), 5), (pgno(3), 4)]);
        let none = read(&wal.bytes, at[5], at[5]).unwrap();
        assert_eq!((none.pages.len(), none.commit, none.commits), (0, 0, 0));
        // At frame 0 the wal-index's checksum is stale and not looked at.
        let stale = WalPos { checksum: FrameChecksum(9, 9), ..at[0] };
        assert_eq!(read(&wal.bytes, stale, at[2]).unwrap().pages, [(pgno(1), 1), (pgno(2), 2)]);
        assert!(read(&wal.bytes, stale, stale).unwrap().pages.is_empty());

        let scanned = scan(wal.bytes.as_slice()).unwrap().unwrap();
        assert_eq!((scanned.end, scanned.commit, scanned.valid), (at[5], 3, 5));
        assert_eq!(scanned.pages, all.pages);
        let mut buf = vec![0; 512];
        wal.bytes.as_slice().read_exact_at(&mut buf, page_offset(4, size(512))).unwrap();
        assert_eq!(buf, page(512, 4));
    }
}

#[test]
fn what_is_refused() {
    let (wal, at) = small(Endian::Little);
    let bytes = wal.bytes.as_slice();
    let corrupt = |r: Result<Frames, ReadError>| matches!(r, Err(ReadError::Corrupt(_)));
    let reset = |r: Result<Frames, ReadError>| matches!(r, Err(ReadError::Reset(s)) if s == SALT);
    let moved = |p: WalPos| WalPos { checksum: FrameChecksum(p.checksum.0 ^ 1, p.checksum.1), ..p };
    // A chain that starts or ends elsewhere; a range that ends amid a transaction or beyond the file; a
    // range backwards.
    assert!(corrupt(read(bytes, moved(at[2]), at[5])));
    assert!(corrupt(read(bytes, at[2], moved(at[5]))));
    assert!(corrupt(read(bytes, at[5], moved(at[5]))));
    assert!(corrupt(read(bytes, at[2], at[4])));
    assert!(corrupt(read(bytes, at[2], WalPos { frame: 6, ..at[5] })));
    assert!(corrupt(read(bytes, at[5], at[2])));
    assert!(corrupt(read(&bytes[..bytes.len() - 1], at[0], at[5])));
    // A WAL of another generation, truncated to nothing, or overwritten with rubbish.
    let other = Builder::new(512, Endian::Little, Salt { salt1: 1, ..SALT });
    assert!(reset(read(&other.bytes, at[0], at[5])));
    assert!(reset(read(&[], at[0], at[5])));
    assert!(reset(read(&[7; 4096], at[0], at[5])));
    let elsewhere = WalPos { salt: other.header.salt, ..at[0] };
    assert!(matches!(read(bytes, elsewhere, at[5]), Err(ReadError::Reset(s)) if s == other.header.salt));
    // Our salts under a damaged header.
    let mut damaged = bytes.to_vec();
    damaged[12] ^= 1;
    assert!(corrupt(read(&damaged, at[0], at[5])));
    // Frames of the generation before, left by a reset: valid once, now of the wrong salt.
    let mut older = other.bytes.clone();
    older.extend(&bytes[32..]);
    assert!(corrupt(read(&older, other.header.start(), WalPos { salt: other.header.salt, ..at[5] })));
    assert_eq!(scan(older.as_slice()).unwrap().unwrap().valid, 0);
}

#[test]
fn a_reset_while_reading_is_a_reset() {
    /// Replaces the WAL after the first read of frames.
    struct Racing(Mutex<(Vec<u8>, Vec<u8>, u32)>);
    impl ReadAt for Racing {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
            let mut s = self.0.lock().unwrap();
            s.2 += 1;
            let bytes = if s.2 <= 2 { &s.0 } else { &s.1 };
            bytes.as_slice().read_exact_at(buf, offset)
        }
        fn size(&self) -> std::io::Result<u64> {
            unreachable!()
        }
    }
    let (wal, at) = small(Endian::Little);
    let other = Builder::new(512, Endian::Little, Salt { salt1: SALT.salt1 + 1, salt2: 99 });
    for after in [other.bytes, Vec::new()] {
        // Header, frames, then the second look at the header: all frames were right, and still it counts
        // for nothing.
        let racing = Racing(Mutex::new((wal.bytes.clone(), after, 0)));
        assert!(matches!(read_frames(&racing, at[0], at[5], |_| {}), Err(ReadError::Reset(s)) if s == SALT));
    }
}

#[test]
fn a_header_caught_half_written_is_read_again() {
    /// The first read of the header sees old salts and new rest.
    struct Torn(Mutex<u32>, Vec<u8>, Vec<u8>);
    impl ReadAt for Torn {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
            let mut n = self.0.lock().unwrap();
            *n += 1;
            let bytes = if *n == 1 { &self.1 } else { &self.2 };
            bytes.as_slice().read_exact_at(buf, offset)
        }
        fn size(&self) -> std::io::Result<u64> {
            unreachable!()
        }
    }
    let (wal, at) = small(Endian::Little);
    let other = Builder::new(512, Endian::Little, Salt { salt1: SALT.salt1 + 1, salt2: 99 });
    let torn = [&wal.bytes[..24], &other.bytes[24..]].concat();
    let racing = Torn(Mutex::new(0), torn, other.bytes);
    assert!(matches!(read_frames(&racing, at[0], at[5], |_| {}), Err(ReadError::Reset(s)) if s == SALT));
}

#[test]
fn io_errors_are_neither() {
    struct Broken;
    impl ReadAt for Broken {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
            Err(std::io::Error::other("disk"))
        }
        fn size(&self) -> std::io::Result<u64> {
            Ok(4096)
        }
    }
    assert!(matches!(
        read_frames(&Broken, WalPos::default(), WalPos::default(), |_| {}),
        Err(ReadError::Io(_))
    ));
    assert!(matches!(scan(&Broken), Err(ReadError::Io(_))));
    let e = crate::base::Error::from(ReadError::Io(std::io::Error::other("disk")));
    assert_eq!((e.kind(), e.to_string().as_str()), (crate::base::Kind::Io, "cannot read the WAL: disk"));
}

#[test]
fn every_truncation_and_bit_flip() {
    let (wal, at) = small(Endian::Little);
    let commits = [0u32, 2, 5];
    for n in 0..wal.bytes.len() {
        assert!(read(&wal.bytes[..n], at[0], at[5]).is_err());
        let whole_frames = (n.saturating_sub(32) / 536) as u32;
        match scan(&wal.bytes[..n]).unwrap() {
            None => assert!(n <= 32),
            Some(s) => assert_eq!(s.end.frame, *commits.iter().rev().find(|c| **c <= whole_frames).unwrap()),
        }
    }
    for bit in 0..wal.bytes.len() * 8 {
        let mut bytes = wal.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&bytes, at[0], at[5]).is_err(), "bit {bit}");
        let hit = ((bit / 8).saturating_sub(32) / 536) as u32;
        match scan(bytes.as_slice()).unwrap() {
            None => assert!(bit / 8 < 32),
            Some(s) => assert_eq!(s.valid, hit, "bit {bit}"),
        }
    }
}

#[test]
fn random_mutation_never_panics() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % n as u64) as usize
    };
    let (wal, at) = small(Endian::Big);
    let index = index_bytes(&at[5], 3);
    for _ in 0..20_000 {
        let mut bytes = wal.bytes.clone();
        let mut shm = index.to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len().min(700));
            bytes[at] = random(256) as u8;
            if random(4) == 0 {
                bytes.truncate(at);
            }
            bytes.push(0);
            let n = shm.len();
            shm[random(n)] = random(256) as u8;
        }
        let _ = scan(bytes.as_slice());
        let end = WalPos { frame: random(9) as u32, ..at[5] };
        if let Ok(frames) = read(&bytes, at[random(3)], end) {
            assert_eq!(frames.end, at[frames.end.frame as usize]);
        }
        if let Some(h) = IndexHeader::decode(&shm) {
            assert_eq!(h.position(), at[5]);
        }
    }
}

/// A wal-index header as SQLite would write it on this machine.
fn index_bytes(at: &WalPos, pages: u32) -> Vec<u8> {
    let mut copy = Vec::new();
    for word in [3_007_000u32, 0, 17] {
        copy.extend(word.to_ne_bytes());
    }
    copy.extend([1, u8::from(Endian::NATIVE == Endian::Big)]);
    copy.extend(512u16.to_ne_bytes());
    for word in [at.frame, pages, at.checksum.0, at.checksum.1] {
        copy.extend(word.to_ne_bytes());
    }
    copy.extend(at.salt.salt1.to_be_bytes());
    copy.extend(at.salt.salt2.to_be_bytes());
    let FrameChecksum(a, b) = checksum(&copy, FrameChecksum(0, 0), Endian::NATIVE);
    copy.extend(a.to_ne_bytes());
    copy.extend(b.to_ne_bytes());
    let mut out = [copy.clone(), copy].concat();
    for word in [1u32, 0, 2, READ_MARK_NOT_USED, 4, 5, 0, 0, 6, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

#[test]
fn index_headers() {
    let at = WalPos { salt: SALT, frame: 7, checksum: FrameChecksum(11, 12) };
    let bytes = index_bytes(&at, 3);
    assert_eq!(bytes.len(), INDEX_HEADER_LEN);
    let h = IndexHeader::decode(&bytes).unwrap();
    assert_eq!(h.position(), at);
    assert_eq!((h.change, h.pages, h.page_size, h.endian), (17, 3, Some(size(512)), Endian::NATIVE));
    assert_eq!((h.backfilled, h.backfill_attempted), (1, 6));
    assert_eq!(h.read_marks, [0, 2, READ_MARK_NOT_USED, 4, 5]);
    for n in 0..INDEX_HEADER_LEN {
        assert_eq!(IndexHeader::decode(&bytes[..n]), None);
    }
    // A header that is being written: any difference between the copies, any flip of both.
    for bit in 0..96 * 8 {
        let mut torn = bytes.clone();
        torn[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(IndexHeader::decode(&torn), None, "bit {bit}");
        torn[(bit / 8 + 48) % 96] ^= 1 << (bit % 8);
        assert_eq!(IndexHeader::decode(&torn), None, "bit {bit} twice");
    }
    assert_eq!(IndexHeader::decode(&[0; INDEX_HEADER_LEN]), None);
    let mut longer = bytes;
    longer.resize(32768, 0xaa);
    assert_eq!(IndexHeader::decode(&longer), Some(h));
}

/// One generated transaction: page writes, size after it, and whether it is followed by an abandoned one.
type Txn = (Vec<(u32, u8)>, u32, bool);

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(
        shift in 9u32..=16,
        big in any::<bool>(),
        txns in prop::collection::vec((prop::collection::vec((1u32..40, any::<u8>()), 1..8), 1u32..60, any::<bool>()), 1..10),
        start in any::<prop::sample::Index>(),
    ) {
        check_model(1 << shift, if big { Endian::Big } else { Endian::Little }, &txns, start)?;
    }
}

fn check_model(
    page_size: u32,
    endian: Endian,
    txns: &[Txn],
    start: prop::sample::Index,
) -> Result<(), TestCaseError> {
    let mut wal = Builder::new(page_size, endian, SALT);
    let mut places = vec![wal.at];
    let mut newest: Vec<BTreeMap<u32, (u32, u8)>> = vec![BTreeMap::new()];
    for (writes, commit, _) in txns {
        let mut last = newest.last().unwrap().clone();
        for (i, (n, seed)) in writes.iter().enumerate() {
            wal.frame(*n, if i + 1 == writes.len() { *commit } else { 0 }, &page(page_size, *seed));
            last.insert(*n, (wal.at.frame, *seed));
        }
        newest.push(last);
        places.push(wal.at);
    }
    let committed = wal.at;
    // Valid frames behind the last commit: a rollback after a spill.
    let abandoned = u32::from(txns.last().unwrap().2) * 3;
    (0..abandoned).for_each(|i| wal.frame(i + 1, 0, &page(page_size, 77)));

    let from = start.index(places.len());
    let mut pages = BTreeMap::new();
    let frames = read_frames(wal.bytes.as_slice(), places[from], committed, |f| {
        pages.insert(f.pgno.get(), (f.number, f.page[0]));
    });
    let frames = frames.map_err(|e| TestCaseError::fail(e.to_string()))?;
    let expected: Vec<(u32, u32)> = newest
        .last()
        .unwrap()
        .iter()
        .filter(|(_, (number, _))| *number > places[from].frame)
        .map(|(n, (number, _))| (*n, *number))
        .collect();
    let got: Vec<(u32, u32)> = frames.pages.iter().map(|(n, number)| (n.get(), *number)).collect();
    prop_assert_eq!(&got, &expected);
    prop_assert_eq!(frames.commits as usize, txns.len() - from);
    prop_assert_eq!(frames.commit, if from == txns.len() { 0 } else { txns.last().unwrap().1 });
    for (n, (number, first)) in pages {
        prop_assert_eq!(newest.last().unwrap()[&n], (number, first));
    }
    let scanned = scan(wal.bytes.as_slice()).unwrap().unwrap();
    prop_assert_eq!((scanned.end, scanned.valid), (committed, committed.frame + abandoned));
    prop_assert_eq!(scanned.pages.len(), newest.last().unwrap().len());
    Ok(())
}

#[test]
fn many_pages_thin_out() {
    let mut wal = Builder::new(512, Endian::Little, SALT);
    for i in 0..20_000u32 {
        wal.frame(i % 700 + 1, u32::from(i % 100 == 99) * 700, &page(512, i as u8));
    }
    let frames = read(&wal.bytes, wal.header.start(), wal.at).unwrap();
    let expected: Vec<(Pgno, u32)> = (1..=700u32)
        .map(|n| (pgno(n), (1..=20_000u32).rev().find(|f| (f - 1) % 700 + 1 == n).unwrap()))
        .collect();
    assert_eq!(frames.pages, expected);
    assert_eq!(scan(wal.bytes.as_slice()).unwrap().unwrap().pages, expected);
}

#[test]
fn files_of_sqlite() {
    let commits = |frames: &Frames| (frames.commits, frames.commit, frames.end.frame);
    for (wal, shm, (valid, committed)) in [
        (
            include_bytes!("../../tests/vectors/wal/three-commits-512.wal").as_slice(),
            include_bytes!("../../tests/vectors/wal/three-commits-512.shm").as_slice(),
            (6, 6),
        ),
        (
            include_bytes!("../../tests/vectors/wal/rollback-after-spill-512.wal").as_slice(),
            include_bytes!("../../tests/vectors/wal/rollback-after-spill-512.shm").as_slice(),
            (23, 17),
        ),
    ] {
        let scanned = scan(wal).unwrap().unwrap();
        assert_eq!((scanned.valid, scanned.end.frame), (valid, committed));
        let frames = read_frames(wal, scanned.header.start(), scanned.end, |_| {}).unwrap();
        assert_eq!(commits(&frames).1, scanned.commit);
        if Endian::NATIVE == Endian::Little {
            let index = IndexHeader::decode(shm).unwrap();
            assert_eq!((index.position(), index.pages), (scanned.end, scanned.commit));
            assert_eq!((index.page_size, index.backfilled), (Some(size(512)), 0));
        }
    }
}

// A real SQLite.

/// A WAL database of the bundled SQLite that never checkpoints by itself.
struct Live {
    dir: tempfile::TempDir,
    db: rusqlite::Connection,
}

impl Live {
    fn open(page_size: u32) -> Live {
        let dir = tempfile::tempdir().unwrap();
        let db = rusqlite::Connection::open(dir.path().join("a.db")).unwrap();
        let setup = format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB);"
        );
        db.execute_batch(&setup).unwrap();
        Live { dir, db }
    }

    fn run(&self, sql: &str) {
        self.db.execute_batch(sql).unwrap();
    }

    fn path(&self, suffix: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("a.db{suffix}"))
    }

    fn wal(&self) -> File {
        File::open(self.path("-wal")).unwrap()
    }

    /// By reading the -shm file in this process: harmless here, where the only connection writes no lock
    /// meanwhile; see `copy`.
    fn index(&self) -> IndexHeader {
        let shm = Self::copy(&self.path("-shm"));
        IndexHeader::decode(&shm).expect("a quiet wal-index")
    }

    /// In another process: closing a -shm file drops the POSIX locks that this process holds on it.
    fn copy(path: &Path) -> Vec<u8> {
        std::process::Command::new("cat").arg(path).output().unwrap().stdout
    }

    /// The database as of the last commit, out of main file and WAL by our own reading; compared with
    /// SQLite's by checkpointing a copy.
    fn check(&self) -> Scan {
        let (index, wal) = (self.index(), self.wal());
        let scanned = scan(&wal).unwrap().unwrap();
        assert_eq!((scanned.end, scanned.commit), (index.position(), index.pages));
        assert_eq!(index.page_size, Some(scanned.header.page_size));
        let frames = read_frames(&wal, scanned.header.start(), index.position(), |_| {}).unwrap();
        assert_eq!((&frames.pages, frames.commit), (&scanned.pages, scanned.commit));

        let len = scanned.header.page_size.len();
        let mut ours = Self::copy(&self.path(""));
        ours.resize(scanned.commit as usize * len, 0);
        for (n, number) in &scanned.pages {
            if n.get() <= scanned.commit {
                let at = n.offset(scanned.header.page_size) as usize;
                wal.read_exact_at(&mut ours[at..at + len], page_offset(*number, scanned.header.page_size))
                    .unwrap();
            }
        }
        let copy = tempfile::tempdir().unwrap();
        let name = copy.path().join("a.db");
        std::fs::write(&name, Self::copy(&self.path(""))).unwrap();
        std::fs::write(copy.path().join("a.db-wal"), Self::copy(&self.path("-wal"))).unwrap();
        let other = rusqlite::Connection::open(&name).unwrap();
        other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(other);
        assert!(std::fs::read(&name).unwrap() == ours, "our view of the database is not SQLite's");
        scanned
    }
}

#[test]
fn real_commits_of_every_page_size() {
    for shift in 9..=16 {
        let live = Live::open(1 << shift);
        let mut last = live.check().end;
        for i in 0..8 {
            live.run(&format!("INSERT INTO t(x) VALUES (randomblob({})), ('a')", 700 * (i + 1)));
            let now = live.index().position();
            let frames = read_frames(&live.wal(), last, now, |_| {}).unwrap();
            assert_eq!((frames.commits, frames.end), (1, now));
            last = now;
        }
        live.check();
        live.run("DELETE FROM t; VACUUM;");
        let scanned = live.check();
        let above = scanned.pages.iter().any(|(n, _)| n.get() > scanned.commit);
        assert!(above || shift > 12, "VACUUM shrank nothing");
    }
}

#[test]
fn real_spill_and_rollback() {
    let live = Live::open(4096);
    live.run("PRAGMA cache_size=10");
    live.run(
        "BEGIN; INSERT INTO t(x) SELECT randomblob(900) FROM generate(200); COMMIT;"
            .replace(
                "generate(200)",
                "(WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<200) SELECT i FROM c)",
            )
            .as_str(),
    );
    live.run("BEGIN; UPDATE t SET x=randomblob(900); UPDATE t SET x=randomblob(901); COMMIT;");
    let committed = live.check().end;
    // A rolled-back spill leaves valid frames, which are no commit.
    live.run("BEGIN; UPDATE t SET x=randomblob(900); ROLLBACK;");
    let scanned = live.check();
    assert_eq!(scanned.end, committed);
    assert!(scanned.valid > committed.frame, "the rollback left nothing behind: no test of it");
    // A page spilled twice: its later frames carry no salt until a commit that never comes.
    live.run("BEGIN; UPDATE t SET x=randomblob(900); UPDATE t SET x=randomblob(902); ROLLBACK;");
    assert_eq!(live.check().end, committed);
    live.run("BEGIN; SAVEPOINT a; UPDATE t SET x=randomblob(900); ROLLBACK TO a; INSERT INTO t(x) VALUES (1); COMMIT;");
    let after = live.check();
    let frames = read_frames(&live.wal(), committed, after.end, |_| {}).unwrap();
    assert_eq!(frames.commits, 1);
}

#[test]
fn real_checkpoints_and_resets() {
    let live = Live::open(4096);
    live.run("INSERT INTO t(x) VALUES (randomblob(9000))");
    let before = live.check().end;
    live.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    assert_eq!(live.index().backfilled, before.frame);
    assert_eq!(live.index().position(), before);
    // The next writer resets: another generation from frame 0, and old positions are gone.
    live.run("INSERT INTO t(x) VALUES (1)");
    let after = live.check();
    assert_ne!(after.end.salt, before.salt);
    assert_eq!(after.end.salt.salt1, before.salt.salt1.wrapping_add(1));
    let gone = read_frames(&live.wal(), WalPos { salt: before.salt, ..WalPos::default() }, before, |_| {});
    assert!(matches!(gone, Err(ReadError::Reset(s)) if s == before.salt));
    let start = WalPos { salt: after.end.salt, frame: 0, checksum: before.checksum };
    assert_eq!(read_frames(&live.wal(), start, after.end, |_| {}).unwrap().commits, 1);
    live.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    assert_eq!(scan(&live.wal()).unwrap(), None);
    let index = live.index();
    assert_eq!(index.max_frame, 0);
    let gone = read_frames(&live.wal(), after.end, after.end, |_| {});
    assert!(matches!(gone, Err(ReadError::Reset(_))));
}

#[test]
fn real_padding() {
    // Without POWERSAFE_OVERWRITE and with synchronous=FULL the commit frame is repeated up to the end of a
    // sector.
    let dir = tempfile::tempdir().unwrap();
    let name = format!("file:{}?psow=0", dir.path().join("a.db").display());
    let flags = rusqlite::OpenFlags::default() | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let db = rusqlite::Connection::open_with_flags(name, flags).unwrap();
    db.execute_batch(
        "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(x); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2);",
    )
    .unwrap();
    let live = Live { dir, db };
    let scanned = live.check();
    let start = scanned.header.start();
    let frames = read_frames(&live.wal(), start, scanned.end, |_| {}).unwrap();
    assert!(frames.commits > 3, "no commit frame was repeated: no test of padding");
}
