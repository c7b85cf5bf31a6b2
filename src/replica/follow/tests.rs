use super::super::testkit::{Attested, LtxFile, Maker, block, history, merged, put, upload};
use super::disk::{MAGIC, header_of};
use super::*;
use crate::base::{DbChecksum, Lineage, PageSize, Pgno};
use crate::ltx::page_checksum;
use crate::replica::{Point, RestoreOptions};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A follower's file in memory, which checks that nothing is changed that was not kept.
#[derive(Clone)]
struct Memory {
    bytes: Vec<u8>,
    size: PageSize,
    kept: BTreeSet<Pgno>,
    read: usize,
    written: usize,
}

impl Memory {
    fn of(place: &Place, image: &[u8]) -> Memory {
        let mut bytes = image.to_vec();
        place.localize(&mut bytes);
        Memory { bytes, size: place.page_size, kept: BTreeSet::new(), read: 0, written: 0 }
    }

    fn header(&self) -> [u8; 100] {
        *self.bytes.first_chunk().unwrap()
    }

    fn pages(&self) -> u32 {
        (self.bytes.len() / self.size.len()) as u32
    }

    /// As the source's database was.
    fn original(&self, place: &Place) -> Vec<u8> {
        assert!(place.is(&self.header(), self.bytes.len() as u64));
        let mut bytes = self.bytes.clone();
        place.original(&mut bytes);
        bytes
    }
}

impl Disk for Memory {
    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        let at = pgno.offset(self.size) as usize;
        page.copy_from_slice(&self.bytes[at..at + page.len()]);
        self.read += 1;
        Ok(())
    }
    fn keep(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let at = pgno.offset(self.size) as usize;
        assert_eq!(&self.bytes[at..at + page.len()], page, "what is kept is what lies there");
        assert!(self.kept.insert(pgno), "page {pgno} is kept once");
        Ok(())
    }
    fn write(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let at = pgno.offset(self.size) as usize;
        assert!(at >= self.bytes.len() || self.kept.contains(&pgno) || pgno.get() > self.pages());
        self.bytes.resize(self.bytes.len().max(at + page.len()), 0);
        self.bytes[at..at + page.len()].copy_from_slice(page);
        self.written += 1;
        Ok(())
    }
    fn resize(&mut self, pages: u32) -> Result<()> {
        for n in pages + 1..=self.pages() {
            // Pages that this very change added are never cut off by it.
            assert!(self.kept.contains(&Pgno::new(n).unwrap()));
        }
        self.bytes.truncate(pages as usize * self.size.len());
        Ok(())
    }
}

fn incoming(f: &LtxFile) -> Incoming {
    Incoming {
        id: f.id,
        bytes: f.bytes.len() as u64,
        known: Some(f.entry),
        fetched: Fetched::Bytes(f.bytes.clone().into()),
    }
}

/// The place of a maker's state.
fn place(m: &Maker, page_size: u32, txid: TxId) -> Place {
    let image = &m.images[&txid];
    let size = PageSize::new(page_size).unwrap();
    let sum = image
        .chunks(size.len())
        .zip(1..)
        .fold(DbChecksum::EMPTY, |s, (p, n)| s.toggle(page_checksum(Pgno::new(n).unwrap(), p)));
    Place {
        txid,
        time: m.time,
        lineage: m.lineage,
        checksum: sum,
        page_size: size,
        pages: (image.len() / size.len()) as u32,
        counter: 7,
        cookie_shift: 0,
        source: *image.first_chunk().unwrap(),
    }
}

fn step(f: &LtxFile, at: &Place, disk: &mut Memory) -> Result<Place> {
    disk.kept.clear();
    let before = disk.bytes.clone();
    let to = incoming(f).judge(at, disk)?;
    assert_eq!(disk.bytes, before, "judging writes nothing");
    incoming(f).write(&to, disk)?;
    Ok(to)
}

#[test]
fn steps_lead_to_the_sources_states_page_for_page() {
    for page_size in [512, 4096] {
        for attested in [Attested::Yes, Attested::No] {
            let mut m = Maker::new(page_size);
            m.attested = attested;
            let mut at = place(&m, page_size, TxId(1));
            let mut disk = Memory::of(&at, &m.images[&TxId(1)]);
            for n in 2..40 {
                let file = m.step(n);
                let to = step(&file, &at, &mut disk).unwrap();
                assert_eq!(disk.original(&to), m.images[&TxId(n)], "TXID {n}");
                assert_ne!(at.counter, to.counter);
                assert_eq!((disk.header()[18], disk.header()[19]), (1, 1));
                at = to;
            }
        }
    }
}

#[test]
fn a_merged_file_may_start_before_the_place() {
    let mut m = Maker::new(4096);
    let files: Vec<LtxFile> = (2..12).map(|n| m.step(n)).collect();
    let wide = merged(1, &files);
    for from in 1..11 {
        let at = place(&m, 4096, TxId(from));
        let mut disk = Memory::of(&at, &m.images[&TxId(from)]);
        let to = step(&wide, &at, &mut disk).unwrap();
        assert_eq!((to.txid, disk.original(&to)), (TxId(11), m.images[&TxId(11)].clone()));
    }
    let at = place(&m, 4096, TxId(11));
    assert!(step(&wide, &at, &mut Memory::of(&at, &m.images[&TxId(11)])).unwrap_err().is_corrupt());
}

#[test]
fn a_small_change_costs_little() {
    let mut m = Maker::new(4096);
    m.commit(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 20000)
         INSERT INTO t(k, v) SELECT i, randomblob(400) FROM c",
    );
    let at = place(&m, 4096, TxId(2));
    assert!(at.pages > 2000);
    let file = m.commit("UPDATE t SET v = randomblob(400) WHERE id = 7777");
    let mut disk = Memory::of(&at, &m.images[&TxId(2)]);
    step(&file, &at, &mut disk).unwrap();
    assert!(disk.read <= 4 && disk.written <= 4, "{} pages read, {} written", disk.read, disk.written);
}

#[test]
fn files_of_another_history_and_damaged_ones_are_refused() {
    let (mut m, mut other) = (Maker::new(4096), Maker::new(4096));
    let (_, a2, a3) = (m.step(2), m.step(3), m.step(4));
    let (_, b2) = (other.step(2), other.step(3));
    let at = place(&m, 4096, TxId(2));
    let fresh = || Memory::of(&at, &m.images[&TxId(2)]);
    // Another's file of the same name; one that does not follow; a renamed one.
    assert!(step(&b2, &at, &mut fresh()).unwrap_err().is_corrupt());
    assert!(step(&a3, &at, &mut fresh()).unwrap_err().is_corrupt());
    let renamed = LtxFile { id: a3.id, ..a2.clone() };
    assert!(step(&renamed, &at, &mut fresh()).unwrap_err().to_string().contains("renamed"));
    // A file of our own that somebody has changed under us: the checksum of the whole gives it away.
    let mut rotten = fresh();
    let last = rotten.bytes.len() - 1;
    rotten.bytes[last] ^= 1;
    assert!(step(&a2, &at, &mut rotten).unwrap_err().is_corrupt());
    for i in (0..a2.bytes.len()).step_by(7) {
        let mut bad = a2.clone();
        bad.bytes[i] ^= 0x10;
        let mut disk = fresh();
        let before = disk.bytes.clone();
        assert!(step(&bad, &at, &mut disk).is_err(), "byte {i}");
        assert_eq!(disk.bytes, before, "byte {i}");
    }
}

fn infos(files: &[LtxFile]) -> Vec<FileInfo> {
    let of = |f: &LtxFile| FileInfo {
        attest_after: f.entry.after,
        ..FileInfo::listed(f.id, f.bytes.len() as u64, f.entry.time)
    };
    files.iter().map(of).collect()
}

#[test]
fn planning() {
    let mut m = Maker::new(4096);
    let files = history(&mut m, 9); // 1-1, 2..=9, level 1: 2-5, snapshot 1-6
    let all = infos(&files);
    let ends = |from: u64, files: &[FileInfo]| match next(files, &place(&m, 4096, TxId(from))).unwrap() {
        Next::Apply(way) => way.iter().map(|f| f.max.0).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(ends(1, &all), [5, 6, 7, 8, 9]);
    assert_eq!(ends(3, &all), [5, 6, 7, 8, 9]);
    assert_eq!(ends(8, &all), [9]);
    assert_eq!(next(&all, &place(&m, 4096, TxId(9))).unwrap(), Next::Nothing);
    // A gap is not bridged by a snapshot in steps.
    let without = |gone: u64| -> Vec<FileInfo> {
        all.iter().filter(|f| f.level != Level::L0 || f.max != TxId(gone)).cloned().collect()
    };
    assert!(matches!(next(&without(6), &place(&m, 4096, TxId(3))).unwrap(), Next::Rebuild(_)));
    assert_eq!(ends(6, &without(6)), [7, 8, 9]);
    assert_eq!(ends(1, &without(4)), [5, 6, 7, 8, 9]);
    // Another history at the same TXID; one that ends before.
    let mut foreign = place(&m, 4096, TxId(9));
    foreign.checksum = DbChecksum(foreign.checksum.0 ^ 1);
    assert!(matches!(next(&all, &foreign).unwrap(), Next::Rebuild(_)));
    let far = Place { txid: TxId(20), ..foreign };
    assert!(matches!(next(&all, &far).unwrap(), Next::Behind(id) if id.max == TxId(9)));
    assert!(next(&[], &far).unwrap_err().is_missing());
}

#[test]
fn looks_and_fetches() {
    let mut m = Maker::new(4096);
    let files = history(&mut m, 9);
    let store = Store::in_memory();
    block(upload(&store, &files));
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("part");
    let mut at = place(&m, 4096, TxId(2));
    let mut disk = Memory::of(&at, &m.images[&TxId(2)]);
    let seen = block(look(&store, &at)).unwrap();
    assert_eq!(seen.newest, TxId(9));
    let got: Vec<Incoming> = block(async {
        let mut feed = Feed::new(seen, part.clone());
        let mut got = Vec::new();
        while let Some(f) = feed.next().await {
            got.push(f.unwrap());
        }
        got
    });
    for f in &got {
        disk.kept.clear();
        let to = f.judge(&at, &mut disk).unwrap();
        f.write(&to, &mut disk).unwrap();
        at = to;
    }
    assert_eq!((at.txid, disk.original(&at)), (TxId(9), m.images[&TxId(9)].clone()));
    assert!(block(fetch_next(&store, TxId(9), part.clone())).unwrap().is_none());
    let more = m.step(10);
    block(put(&store, std::slice::from_ref(&more)));
    let f = block(fetch_next(&store, TxId(9), part)).unwrap().unwrap();
    disk.kept.clear();
    let to = f.judge(&at, &mut disk).unwrap();
    assert_eq!((f.txid(), to.txid), (TxId(10), TxId(10)));
    // The replica loses its end: an error while the history is ours, a rebuild when it is another's.
    let far = Place { txid: TxId(30), ..to.clone() };
    assert!(block(look(&store, &far)).unwrap_err().is_corrupt());
    let other = Place { lineage: Lineage(99), ..far };
    assert!(matches!(block(look(&store, &other)).unwrap().next, Next::Rebuild(_)));
}

#[test]
fn a_rebuild_writes_what_differs_and_shows_readers_that_it_did() {
    let mut m = Maker::new(4096);
    let mut files = history(&mut m, 30);
    files.push(m.snapshot());
    let store = Store::in_memory();
    block(upload(&store, &files));
    let dir = tempfile::tempdir().unwrap();
    for from in [1, 12, 29, 30] {
        let path = dir.path().join("image.db");
        let options = RestoreOptions::default();
        let restored = block(crate::replica::restore(&store, Point::Latest, &path, &options)).unwrap();
        let mut image = Image::open(&path, &restored).unwrap();
        let at = place(&m, 4096, TxId(from));
        let mut disk = Memory::of(&at, &m.images[&TxId(from)]);
        let (header, pages) = (disk.header(), disk.pages());
        image.compare(&header, pages, &mut disk).unwrap();
        image.write(&mut disk).unwrap();
        let to = image.place().clone();
        assert_eq!((to.txid, disk.original(&to)), (TxId(30), m.images[&TxId(30)].clone()));
        assert_ne!(header[24..28], disk.header()[24..28]);
        assert_ne!(header[40..44], disk.header()[40..44]);
        if from == 30 {
            assert_eq!(disk.written, 1);
        }
        drop(image);
        assert!(!path.exists());
    }
}

#[test]
fn an_encrypted_source_is_refused() {
    let mut page = vec![7; 4096];
    assert_eq!(header_of(&page).unwrap_err().kind(), Kind::Config);
    page[..16].copy_from_slice(MAGIC);
    assert!(header_of(&page).is_ok());
}

proptest! {
    #[test]
    fn records_come_back(n in any::<u64>(), counter in any::<u32>(), shift in any::<u32>(), fill in any::<u8>()) {
        let p = Place {
            txid: TxId(n),
            time: crate::base::Timestamp(-5),
            lineage: Lineage(n ^ 3),
            checksum: DbChecksum(n | DbChecksum::FLAG),
            page_size: PageSize::new(65536).unwrap(),
            pages: 9,
            counter,
            cookie_shift: shift,
            source: [fill; 100],
        };
        let r = Record { replica: "file:///r".into(), inode: n, now: None, next: Some(p.clone()) };
        let text = serde_json::to_string(&r).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Record>(&text).unwrap(), &r);
        prop_assert_eq!(r.place(&p.header(), 9 * 65536), Some(&p));
        prop_assert_eq!(r.place(&p.header(), 9 * 65536 - 1), None);
        let mut page = vec![fill; 512];
        p.localize(&mut page);
        prop_assert_eq!(*page.first_chunk::<100>().unwrap(), p.header());
        p.original(&mut page);
        prop_assert_eq!(page, vec![fill; 512]);
    }
}
