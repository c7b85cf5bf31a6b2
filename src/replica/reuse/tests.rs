use super::missing::{GAP, MOST_AT_ONCE};
use super::*;
use crate::base::TxId;
use crate::replica::blocks;
use crate::replica::layout::blocks_key;
use crate::replica::target::Overwrite;
use crate::replica::testkit::*;
use crate::replica::{Point, RestoreOptions, Restored, restore};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A replica with a large first snapshot, small and large files behind it, and a later snapshot; and a place to restore to.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    maker: Maker,
    files: Vec<LtxFile>,
}

struct Alone(PathBuf);

impl Occupied for Alone {
    fn is_there(&self) -> bool {
        self.0.exists()
    }
    fn stayed_alone(&self) -> Result<()> {
        Ok(())
    }
    fn replaced(&mut self) {}
}

fn rows(n: u32) -> String {
    format!(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < {n})
         INSERT INTO t(k, v) SELECT abs(random()) % 1000, randomblob(400) FROM c"
    )
}

impl Bench {
    fn new(page_size: u32) -> Bench {
        Bench::of(Maker::new(page_size))
    }

    fn of(mut maker: Maker) -> Bench {
        maker.commit(&rows(3000));
        let mut files = vec![maker.snapshot()];
        for n in 0..4 {
            files.push(maker.commit(&format!("UPDATE t SET v = randomblob(400) WHERE id % 400 = {n}")));
        }
        files.push(maker.commit("UPDATE t SET v = randomblob(400) WHERE id % 3 = 1"));
        files.push(maker.commit("DELETE FROM t WHERE id > 1200"));
        files.push(maker.run("PRAGMA incremental_vacuum"));
        files.push(maker.commit(&rows(900)));
        files.push(maker.snapshot());
        files.push(maker.commit("UPDATE t SET k = -1 WHERE id % 500 = 7"));
        let (dir, store) = (tempfile::tempdir().unwrap(), Store::in_memory());
        block(upload(&store, &files));
        let bench = Bench { dir, store, maker, files };
        bench.files.iter().for_each(|f| bench.put_sums(f));
        bench
    }

    fn put_sums(&self, file: &LtxFile) {
        if !blocks::are_wanted(file.entry.bytes) {
            return;
        }
        let path = self.dir.path().join("sums.ltx");
        std::fs::write(&path, &file.bytes).unwrap();
        block(self.store.put_over(&blocks_key(file.id), blocks::of_file(&path, &file.entry).unwrap()))
            .unwrap();
        std::fs::remove_file(path).unwrap();
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out.db")
    }

    fn left(&self) -> PathBuf {
        self.dir.path().join("out.db.walrust-restore-0123456789abcdef")
    }

    fn get(&self, txid: TxId, reuse: Reuse) -> Result<Restored> {
        let ask = |p: &Path| -> Result<Box<dyn Occupied>> { Ok(Box::new(Alone(p.to_path_buf()))) };
        let overwrite = Overwrite::Replace;
        let options = RestoreOptions { overwrite, reuse, occupier: Some(&ask), ..RestoreOptions::default() };
        block(restore(&self.store, Point::TxId(txid), &self.out(), &options))
    }

    /// Restores with what is at hand, to what it has to be. Gives the bytes fetched, in percent of those of the plan.
    fn check(&self, txid: TxId, reuse: Reuse) -> u64 {
        let got = self.get(txid, reuse).unwrap();
        let image = &self.maker.images[&txid];
        assert!(read(&self.out()) == *image, "TXID {txid}");
        assert_eq!((got.txid, got.pages as usize), (txid, image.len() / got.page_size.len()));
        let names: Vec<_> =
            std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["out.db"], "TXID {txid}");
        got.bytes * 100 / self.plan_bytes(txid)
    }

    fn plan_bytes(&self, txid: TxId) -> u64 {
        let all = block(crate::replica::Inventory::read(&self.store)).unwrap().files;
        crate::replica::plan(&all, Point::TxId(txid), crate::base::clock::now()).unwrap().bytes()
    }

    fn restorable(&self) -> BTreeMap<TxId, Vec<u8>> {
        self.maker.images.iter().filter(|(t, _)| t.0 >= 2).map(|(t, i)| (*t, i.clone())).collect()
    }
}

#[test]
fn from_every_state_to_every_state() {
    for page_size in [512, 4096] {
        let b = Bench::new(page_size);
        let large = b.files.iter().filter(|f| blocks::are_wanted(f.entry.bytes)).count();
        assert!(large >= 3, "{large} large files");
        let states = b.restorable();
        for (from, image) in &states {
            for to in states.keys() {
                std::fs::write(b.out(), image).unwrap();
                let percent = b.check(*to, Reuse::LeftAndTarget);
                // (Small files are always fetched.)
                assert!(from != to || percent <= 40, "{page_size}: {percent} % to TXID {to}");
            }
        }
    }
}

#[test]
fn of_a_snapshot_that_is_there_next_to_nothing_is_fetched() {
    let b = Bench::new(4096);
    let snapshot = b.files[0].id.max;
    std::fs::write(b.out(), &b.maker.images[&snapshot]).unwrap();
    assert_eq!(b.check(snapshot, Reuse::LeftAndTarget), 0);
    // One page of it is another.
    let mut image = b.maker.images[&snapshot].clone();
    image[40 * 4096 + 17] ^= 1;
    std::fs::write(b.out(), &image).unwrap();
    let got = b.get(snapshot, Reuse::LeftAndTarget).unwrap();
    assert!((1..8192).contains(&got.bytes), "{}", got.bytes);
    assert!(read(&b.out()) == b.maker.images[&snapshot]);
    // Without leave, nothing of the target is taken.
    assert_eq!(b.check(snapshot, Reuse::Left), 100);
}

#[test]
fn what_does_not_fit_changes_nothing_of_the_result() {
    let b = Bench::new(4096);
    let newest = b.maker.txid;
    let good = b.maker.images[&newest].clone();
    let noise: Vec<u8> =
        (0..good.len() / 8).flat_map(|_| crate::base::clock::random_u64().to_le_bytes()).collect();
    let odd: [&[u8]; 6] = [
        b"x",
        &good[..4096 * 9 + 5],
        &good[4096..],
        &noise,
        &[0; 100_000],
        &Bench::new(512).maker.images[&TxId(2)],
    ];
    for image in odd {
        for reuse in [Reuse::Nothing, Reuse::Left, Reuse::LeftAndTarget] {
            std::fs::write(b.out(), image).unwrap();
            b.check(newest, reuse);
        }
        std::fs::write(b.left(), image).unwrap();
        b.check(newest, Reuse::Left);
    }
}

#[test]
fn what_an_interrupted_restore_left_is_gone_on_with() {
    let b = Bench::new(4096);
    let newest = b.maker.txid;
    let good = b.maker.images[&newest].clone();
    // Three quarters of it.
    std::fs::write(b.left(), &good[..good.len() / 4096 / 4 * 3 * 4096]).unwrap();
    let percent = b.check(newest, Reuse::Left);
    assert!(percent < 40, "{percent} %");
    // Nobody's business but the next restore's that asks for it; and what another is at work on is left alone.
    std::fs::write(b.left(), &good).unwrap();
    let held = File::options().write(true).open(b.left()).unwrap();
    held.try_lock().unwrap();
    let got = b.get(newest, Reuse::Left).unwrap();
    assert!(b.left().exists() && got.bytes == b.plan_bytes(newest));
    drop(held);
    std::fs::hard_link(b.left(), b.dir.path().join("second name")).unwrap();
    let got = b.get(newest, Reuse::Left).unwrap();
    assert!(
        b.left().exists() && got.bytes == b.plan_bytes(newest),
        "a file with another name is not believed"
    );
    std::fs::remove_file(b.dir.path().join("second name")).unwrap();
    assert!(b.check(newest, Reuse::Left) < 30);
}

#[test]
fn sums_that_are_wrong_are_found_by_the_checksum_of_the_whole() {
    let b = Bench::new(4096);
    let file = b.files[0].clone();
    let state = file.id.max;
    let mut image = b.maker.images[&state].clone();
    image[40 * 4096 + 17] ^= 1;
    // An object that says so of the changed page: all its own checks hold.
    let path = b.dir.path().join("sums.ltx");
    std::fs::write(&path, &file.bytes).unwrap();
    let object = blocks::of_file(&path, &file.entry).unwrap();
    std::fs::remove_file(path).unwrap();
    let page = &image[40 * 4096..41 * 4096];
    let lying = blocks::tests::with_page_sum(
        &object,
        &file.entry,
        40,
        blocks::page_sum(Pgno::new(41).unwrap(), page),
    );
    block(b.store.put_over(&blocks_key(file.id), lying)).unwrap();
    std::fs::write(b.out(), &image).unwrap();
    assert_eq!(b.check(state, Reuse::LeftAndTarget), 100, "restored anew");
    // And damaged ones, or none, are none.
    for object in [
        object[..blocks::guide_begins(&file.entry) as usize - 1].to_vec(),
        object[..blocks::blocks_end(file.entry.bytes) as usize].to_vec(),
        Vec::new(),
    ] {
        block(b.store.put_over(&blocks_key(file.id), object)).unwrap();
        std::fs::write(b.out(), &b.maker.images[&state]).unwrap();
        assert_eq!(b.check(state, Reuse::LeftAndTarget), 100);
    }
}

#[test]
fn without_attestation_all_is_fetched() {
    let mut maker = Maker::new(4096);
    maker.attested = Attested::No;
    let b = Bench::of(maker);
    let newest = b.maker.txid;
    std::fs::write(b.out(), &b.maker.images[&newest]).unwrap();
    assert_eq!(b.check(newest, Reuse::LeftAndTarget), 100);
}

#[test]
fn a_page_that_is_damaged_in_the_replica_is_never_taken() {
    let b = Bench::new(4096);
    let file = b.files[0].clone();
    let mut bytes = file.bytes.clone();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x40;
    block(b.store.put_over(&file.id.key(b.store.layout()), bytes)).unwrap();
    // The target has all of it: nothing is asked of the damaged page.
    let state = file.id.max;
    std::fs::write(b.out(), &b.maker.images[&state]).unwrap();
    assert_eq!(b.check(state, Reuse::LeftAndTarget), 0);
    // It lacks all: an error as ever, and the target as it was.
    std::fs::write(b.out(), b"not a database").unwrap();
    assert!(b.get(state, Reuse::LeftAndTarget).unwrap_err().is_corrupt());
    assert_eq!(read(&b.out()), b"not a database");
}

#[test]
fn frames_that_lie_near_are_fetched_together() {
    let frames = |all: &[(usize, u64, u64)]| {
        let mut m = Missing::default();
        for (n, start, len) in all {
            m.add(*n, Pgno::new(*n as u32 + 1).unwrap(), *start..start + len);
        }
        m.pieces.into_iter().map(|p| (p.bytes, p.first, p.pages)).collect::<Vec<_>>()
    };
    assert_eq!(frames(&[]), []);
    assert_eq!(frames(&[(3, 100, 50), (4, 150, 50)]), [(100..200, 3, 0..2)]);
    assert_eq!(frames(&[(3, 100, 50), (9, 150 + GAP, 50)]), [(100..200 + GAP, 3, 0..2)]);
    assert_eq!(
        frames(&[(3, 100, 50), (9, 151 + GAP, 50)]),
        [(100..150, 3, 0..1), (151 + GAP..201 + GAP, 9, 1..2)]
    );
    let long: Vec<(usize, u64, u64)> = (0..600).map(|n| (n, n as u64 * 4000, 4000)).collect();
    let pieces = frames(&long);
    assert_eq!(pieces.len(), 3);
    assert!(pieces.iter().all(|(bytes, ..)| bytes.end - bytes.start <= MOST_AT_ONCE));
    assert_eq!(pieces.last().unwrap().2.end, 600);
}
