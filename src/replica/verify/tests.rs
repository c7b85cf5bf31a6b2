#![allow(clippy::disallowed_methods)]

use super::*;
use crate::base::TxId;
use crate::ltx::{HEADER_LEN, Level};
use crate::replica::layout::{FileId, manifest_key};
use crate::replica::manifest::{ManifestEntry, encode_segment};
use crate::replica::restore::Checker;
use crate::replica::testkit::*;
use crate::store::fake_s3::FakeS3;
use crate::store::{Env, Fault, Faults, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

struct Bench {
    store: Store,
    maker: Maker,
    files: Vec<LtxFile>,
}

impl Bench {
    fn new(n: u64) -> Bench {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let files = history(&mut maker, n);
        block(upload(&store, &files));
        Bench { store, maker, files }
    }

    fn verify(&self, mode: Mode) -> Report {
        let options = VerifyOptions { mode, name: "app".into(), ..VerifyOptions::default() };
        block(verify(&self.store, &options)).unwrap()
    }

    fn id(&self, level: u8, max: u64) -> FileId {
        self.files.iter().map(|f| f.id).find(|id| id.level.get() == level && id.max.0 == max).unwrap()
    }

    fn key(&self, id: FileId) -> String {
        id.key(self.store.layout())
    }

    fn change(&self, id: FileId, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = block(self.store.get(&self.key(id))).unwrap().to_vec();
        change(&mut bytes);
        block(self.store.put_over(&self.key(id), bytes)).unwrap();
    }

    fn delete(&self, id: FileId) {
        block(self.store.delete(&[self.key(id)])).unwrap();
    }

    fn drop_manifest(&self) {
        for n in 1..4 {
            block(self.store.delete(&[manifest_key(n)])).unwrap();
        }
    }
}

fn about(r: &Report, id: FileId) -> &Finding {
    r.findings.iter().find(|f| f.file == Some(id)).unwrap()
}

fn on(r: &Report, rule: Rule) -> &Finding {
    r.findings.iter().find(|f| f.check == rule && f.file.is_none()).unwrap()
}

#[test]
fn a_good_replica_is_good() {
    for n in [1, 2, 30] {
        let b = Bench::new(n);
        for mode in [Mode::Quick, Mode::Deep, Mode::Fix] {
            let r = b.verify(mode);
            assert_eq!(r.issues().collect::<Vec<_>>(), Vec::<&Finding>::new());
            assert_eq!(
                (r.exit_code(), r.findings.iter().filter(|f| f.file.is_some()).count()),
                (0, b.files.len())
            );
        }
    }
}

#[test]
fn the_report_has_the_promised_shape() {
    let b = Bench::new(4);
    let size = b.files[0].bytes.len();
    let kb = |i: usize| b.files[i].bytes.len().div_ceil(1024);
    assert_eq!(
        b.verify(Mode::Quick).text(),
        format!(
            "Verifying backup: app in memory\n\
             ================================================\n\
             Snapshot: ✅ Found TXID 1-1 ({size} bytes)\n\
             Incremental files: 3 files\n\
             ✅ 0000000000000002-0000000000000002.ltx (1 TXID, {}KB)\n\
             ✅ 0000000000000003-0000000000000003.ltx (1 TXID, {}KB)\n\
             ✅ 0000000000000004-0000000000000004.ltx (1 TXID, {}KB)\n\
             Issues found: 0\n\
             Continuity: ✅ No gaps detected (TXID 1-4)\n\
             Exit code: 0 (all good)\n",
            kb(1),
            kb(2),
            kb(3)
        )
    );
    b.change(b.id(0, 3), |v| {
        let at = v.len() - 3;
        v[at] ^= 1;
    });
    assert_eq!(
        b.verify(Mode::Quick).text(),
        format!(
            "Verifying backup: app in memory\n\
             ================================================\n\
             Snapshot: ✅ Found TXID 1-1 ({size} bytes)\n\
             Incremental files: 3 files\n\
             ✅ 0000000000000002-0000000000000002.ltx (1 TXID, {}KB)\n\
             ⚠️ 0000000000000003-0000000000000003.ltx (checksum mismatch!)\n\
             ✅ 0000000000000004-0000000000000004.ltx (1 TXID, {}KB)\n\
             Issues found: 1\n\
             - Checksum mismatch in 0000000000000003-0000000000000003.ltx\n\
             Continuity: ⚠️ Gap detected: TXID 3 corrupt\n\
             Recommendation: Re-snapshot database to repair backup chain\n\
             Exit code: 1 (issues found)\n",
            kb(1),
            kb(3)
        )
    );
}

#[test]
fn no_snapshot_is_critical() {
    let r = block(verify(&Store::in_memory(), &VerifyOptions::default())).unwrap();
    assert_eq!(r.exit_code(), 2);
    assert!(r.text().contains("Snapshot: ❌ No snapshot found"), "{}", r.text());
    let b = Bench::new(4);
    b.change(b.id(9, 1), |v| v[50] ^= 1);
    let r = b.verify(Mode::Quick);
    assert_eq!((r.exit_code(), on(&r, Rule::Snapshot).severity), (2, Severity::Critical));
}

#[test]
fn a_lost_newest_file_is_critical_and_one_in_between_a_warning() {
    let b = Bench::new(12);
    b.delete(b.id(0, 12));
    let r = b.verify(Mode::Quick);
    assert_eq!((about(&r, b.id(0, 12)).severity, r.exit_code()), (Severity::Critical, 2));
    assert!(on(&r, Rule::Continuity).message.contains("TXID 12 missing"), "{}", r.text());

    let b = Bench::new(12);
    b.delete(b.id(0, 9));
    let r = b.verify(Mode::Quick);
    assert_eq!((about(&r, b.id(0, 9)).check, r.exit_code()), (Rule::Existence, 1));
    assert!(on(&r, Rule::Continuity).message.contains("TXID 9 missing"), "{}", r.text());
    // Level 1 has what this one had: a lost file, and no gap.
    let b = Bench::new(12);
    b.delete(b.id(0, 3));
    let r = b.verify(Mode::Quick);
    assert_eq!((on(&r, Rule::Existence).severity, r.exit_code()), (Severity::Warning, 1));
}

#[test]
fn fix_forgets_missing_files_and_deletes_nothing() {
    let b = Bench::new(12);
    b.delete(b.id(0, 12));
    let before = block(b.store.list("")).unwrap();
    let r = b.verify(Mode::Fix);
    assert_eq!((r.removed.as_slice(), r.exit_code()), ([b.id(0, 12)].as_slice(), 0));
    assert!(r.text().contains("Removed from the manifest: 000000000000000c-000000000000000c.ltx"));
    let keys = |l: Vec<crate::store::ObjectInfo>| l.into_iter().map(|o| o.key).collect::<Vec<_>>();
    assert_eq!(keys(block(b.store.list("")).unwrap()), keys(before));
    assert_eq!(b.verify(Mode::Quick).exit_code(), 0);
}

#[test]
fn a_lost_manifest_is_a_warning_and_the_chain_still_finds_a_foreign_file() {
    let b = Bench::new(12);
    b.drop_manifest();
    let r = b.verify(Mode::Quick);
    assert_eq!((on(&r, Rule::Manifest).severity, r.exit_code()), (Severity::Warning, 1));
    for attested in [Attested::Yes, Attested::No] {
        let b = Bench::new(12);
        b.drop_manifest();
        let mut other = Maker::new(1024);
        other.attested = attested;
        let id = b.id(0, 9);
        let foreign = history(&mut other, 12).into_iter().find(|f| f.id == id).unwrap();
        block(put(&b.store, &[foreign]));
        let r = b.verify(Mode::Quick);
        let blamed: Vec<_> = r.issues().filter_map(|f| f.file).collect();
        assert_eq!(blamed, [id], "{}", r.text());
        assert_eq!(about(&r, id).check, Rule::History);
    }
    // A foreign snapshot claims another state for a TXID that two files agree on.
    let b = Bench::new(12);
    b.drop_manifest();
    let id = b.id(9, 6);
    let foreign = history(&mut Maker::new(1024), 12).into_iter().find(|f| f.id == id).unwrap();
    block(put(&b.store, &[foreign]));
    let r = b.verify(Mode::Quick);
    assert_eq!(r.issues().filter_map(|f| f.file).collect::<Vec<_>>(), [id], "{}", r.text());
}

#[test]
fn a_stale_manifest_is_found() {
    let mut b = Bench::new(12);
    let old = block(b.store.get(&manifest_key(1))).unwrap();
    // One file may be there before its entry is.
    let next = b.maker.step(13);
    block(put(&b.store, std::slice::from_ref(&next)));
    assert_eq!(b.verify(Mode::Quick).exit_code(), 0);
    let after = b.maker.step(14);
    block(upload(&b.store, &[next, after]));
    assert_eq!(b.verify(Mode::Quick).exit_code(), 0);
    block(b.store.put_over(&manifest_key(1), old)).unwrap();
    let r = b.verify(Mode::Quick);
    assert_eq!((on(&r, Rule::Manifest).severity, r.exit_code()), (Severity::Warning, 1), "{}", r.text());
    assert!(r.text().contains("- Stale manifest: 2 file(s) are not in it"), "{}", r.text());
    // And one that lost a line in its middle.
    let b = Bench::new(12);
    let without: Vec<ManifestEntry> =
        b.files.iter().map(|f| f.entry).filter(|e| e.id != b.id(0, 8)).collect();
    block(b.store.put_over(&manifest_key(1), encode_segment(1, &without))).unwrap();
    assert!(b.verify(Mode::Quick).text().contains("- Stale manifest: 1 file(s)"));
    // What retention forgot and had no time to delete, is old and nobody's loss.
    let b = Bench::new(12);
    let kept: Vec<ManifestEntry> = b.files.iter().map(|f| f.entry).filter(|e| e.id.max.0 > 5).collect();
    block(b.store.put_over(&manifest_key(1), encode_segment(1, &kept))).unwrap();
    assert_eq!(b.verify(Mode::Quick).exit_code(), 0, "{}", b.verify(Mode::Quick).text());
}

/// A process put a merged file and was killed before it named it; the next one merged the same files, and more, into one of its own.
#[test]
fn what_was_merged_again_is_no_loss() {
    let b = Bench::new(12);
    let l0: Vec<LtxFile> = b.files.iter().filter(|f| f.id.level == Level::L0).cloned().collect();
    // (Level 0 begins with TXID 2.)
    block(upload(&b.store, &[merged(1, &l0[4..7]), merged(1, &l0[7..11])]));
    block(put(&b.store, &[merged(1, &l0[4..6])]));
    assert_eq!(b.verify(Mode::Quick).exit_code(), 0, "{}", b.verify(Mode::Quick).text());
    // One that lies across two that are named is nobody's.
    block(put(&b.store, &[merged(1, &l0[6..8])]));
    assert!(b.verify(Mode::Quick).text().contains("- Stale manifest: 1 file(s)"));
}

#[test]
fn entries_that_are_to_come_are_no_loss_and_what_that_leaves_unchecked_is_told() {
    let mut b = Bench::new(12);
    let lease = |ahead: bool| {
        let text = format!("{{\"writer\":\"w\",\"ends\":0,\"ahead\":{ahead}}}");
        block(b.store.put_over(crate::replica::LEASE_KEY, text)).unwrap();
    };
    let files: Vec<LtxFile> = (13..=15).map(|n| b.maker.step(n)).collect();
    block(put(&b.store, &files));
    lease(true);
    let r = b.verify(Mode::Quick);
    assert_eq!(r.exit_code(), 0, "{}", r.text());
    let told = &on(&r, Rule::Manifest).message;
    assert!(
        told.ends_with(
            "; 3 more, TXID 13-15, will be named: the loss of one behind them could not be noticed"
        ),
        "{told}"
    );
    // Whoever has given the lease back owes nothing.
    lease(false);
    let r = b.verify(Mode::Quick);
    assert!(r.text().contains("- Stale manifest: 3 file(s) are not in it"), "{}", r.text());
    lease(true);
    // A hole among them is a hole, and bytes that are not those that were uploaded are found.
    block(b.store.delete(&[files[1].id.key(b.store.layout())])).unwrap();
    let r = b.verify(Mode::Quick);
    assert_eq!(on(&r, Rule::Continuity).severity, Severity::Warning, "{}", r.text());
    block(put(&b.store, &files[1..2]));
    assert_eq!(b.verify(Mode::Deep).exit_code(), 0);
    // No writer leaves so many.
    let more: Vec<LtxFile> =
        (16..=13 + crate::replica::manifest::MOST_WAITING as u64 + 2).map(|n| b.maker.step(n)).collect();
    block(put(&b.store, &more));
    let r = b.verify(Mode::Quick);
    assert_eq!(on(&r, Rule::Manifest).severity, Severity::Warning, "{}", r.text());
}

#[test]
fn litestreams_replica_is_ok_and_unattested() {
    let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
    maker.attested = Attested::No;
    let files = history(&mut maker, 12);
    block(put(&store, &files));
    let r = block(verify(&store, &VerifyOptions { mode: Mode::Deep, ..VerifyOptions::default() })).unwrap();
    assert_eq!(r.exit_code(), 0, "{}", r.text());
    assert!(about(&r, files[3].id).message.contains("unattested"));
    block(store.delete(&[files[9].id.key(store.layout())])).unwrap();
    let r = block(verify(&store, &VerifyOptions::default())).unwrap();
    assert_eq!(r.exit_code(), 1);
    assert!(r.text().contains("Issues found: 1\n- Gap: TXID 8 missing"), "{}", r.text());
}

/// Litestream removes level-0 files by their age, one by one: some of those that a merged file holds are gone, others still there.
#[test]
fn a_replica_amid_litestreams_retention_has_no_gap() {
    for attested in [Attested::No, Attested::Yes] {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        maker.attested = attested;
        let files = history(&mut maker, 9);
        block(upload(&store, &files));
        let b = Bench { store, maker, files };
        b.drop_manifest();
        for gone in 2..=4 {
            b.delete(b.id(0, gone));
            for mode in [Mode::Quick, Mode::Deep] {
                let r = b.verify(mode);
                assert_eq!(on(&r, Rule::Continuity).severity, Severity::Ok, "without {gone}: {}", r.text());
                assert!(attested == Attested::Yes || r.exit_code() == 0, "{}", r.text());
            }
        }
        // What no merged file holds is one.
        b.delete(b.id(0, 7));
        let r = b.verify(Mode::Quick);
        assert!(on(&r, Rule::Continuity).message.contains("TXID 7 missing"), "{}", r.text());
        b.delete(b.files.iter().map(|f| f.id).find(|id| id.level == Level::new(1).unwrap()).unwrap());
        let r = b.verify(Mode::Quick);
        assert_eq!(r.exit_code(), 1, "{}", r.text());
    }
}

/// A listing may lag; what the manifest names is looked up before it is missed, and counts.
#[test]
fn a_listing_that_lags_raises_no_alarm() {
    let fake = FakeS3::start();
    let env = Env::of([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    let store = Store::open_with(&ReplicaUrl::parse(&fake.url("p")).unwrap(), &env).unwrap();
    let mut maker = Maker::new(1024);
    let files = history(&mut maker, 9);
    block(upload(&store, &files));
    let b = Bench { store, maker, files };
    for unlisted in ["0000/0000000000000009", "0000/", "0009/", "0001/", ".ltx"] {
        fake.set_unlisted(Some(unlisted));
        let r = b.verify(Mode::Quick);
        assert_eq!(r.exit_code(), 0, "without {unlisted}: {}", r.text());
    }
    // What is gone is gone, listed or not.
    b.delete(b.id(0, 9));
    assert_eq!(b.verify(Mode::Quick).exit_code(), 2);
}

#[test]
fn a_gap_in_the_history_with_its_new_snapshot_is_no_gap_in_the_chain() {
    let mut b = Bench::new(8);
    let mut more = vec![b.maker.gap()];
    more.extend((10..=13).map(|n| b.maker.step(n)));
    block(upload(&b.store, &more));
    let r = b.verify(Mode::Deep);
    assert_eq!(r.exit_code(), 0, "{}", r.text());
    assert!(on(&r, Rule::History).message.starts_with("2 histories"));
}

#[test]
fn what_retention_left_of_a_merged_range_is_no_gap() {
    // Litestream's retention of level 0 goes by time, so it stops in the middle of a merged file.
    let b = Bench::new(12);
    b.drop_manifest();
    for gone in [2, 3] {
        b.delete(b.id(0, gone));
    }
    let r = b.verify(Mode::Quick);
    assert_eq!(on(&r, Rule::Continuity).severity, Severity::Ok, "{}", r.text());
    // What no other file holds is missed.
    b.delete(b.id(0, 11));
    let r = b.verify(Mode::Quick);
    let continuity = on(&r, Rule::Continuity);
    assert_eq!(continuity.severity, Severity::Warning, "{}", r.text());
    assert!(continuity.message.contains("TXID 11 missing"), "{}", r.text());
}

#[test]
fn what_should_be_there_beside_a_merged_file_is_missed() {
    let b = Bench::new(12);
    b.delete(b.id(0, 3));
    let r = b.verify(Mode::Quick);
    assert!(on(&r, Rule::Continuity).message.contains("TXID 3 missing"), "{}", r.text());
}

#[test]
fn each_part_of_a_gap_has_its_own_cause() {
    let b = Bench::new(12);
    b.drop_manifest();
    b.delete(b.id(0, 8));
    b.change(b.id(0, 9), |bytes| bytes.truncate(60));
    b.change(b.id(0, 10), |bytes| bytes.truncate(60));
    let r = b.verify(Mode::Quick);
    let said = &on(&r, Rule::Continuity).message;
    assert!(said.ends_with("TXID 8 missing, TXID 9-10 corrupt"), "{}", r.text());
}

#[test]
fn an_encrypted_database_is_no_damage() {
    let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
    let file = maker.noise();
    block(upload(&store, &[file]));
    let dir = tempfile::tempdir().unwrap();
    let never = |_: &Path, _: super::super::restore::Check| Err(Error::corrupt("file is not a database"));
    let options = VerifyOptions {
        mode: Mode::Deep,
        work_dir: Some(dir.path().to_path_buf()),
        integrity: Some(&never),
        ..VerifyOptions::default()
    };
    let r = block(verify(&store, &options)).unwrap();
    assert_eq!(r.exit_code(), 0, "{}", r.text());
    assert!(r.text().contains("not checked: the database is encrypted"), "{}", r.text());
}

#[test]
fn deep_says_what_sqlite_says() {
    let b = Bench::new(8);
    let dir = tempfile::tempdir().unwrap();
    let image = b.maker.images[&TxId(8)].clone();
    let good = |p: &Path, _: super::super::restore::Check| {
        assert!(read(p) == image);
        Ok(())
    };
    let broken = |_: &Path, _: super::super::restore::Check| {
        Err(Error::new(Kind::Corrupt, "row 3 missing from index tk"))
    };
    for (check, code) in [(&good as Checker<'_>, 0), (&broken as Checker<'_>, 2)] {
        let options = VerifyOptions {
            mode: Mode::Deep,
            work_dir: Some(dir.path().to_path_buf()),
            integrity: Some(check),
            ..VerifyOptions::default()
        };
        let r = block(verify(&b.store, &options)).unwrap();
        assert_eq!(r.exit_code(), code, "{}", r.text());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn deep_finds_an_increment_whose_content_is_not_what_it_attests() {
    // Checksums, names and chain of headers fit; only applying it tells. No manifest to help.
    let b = Bench::new(12);
    b.drop_manifest();
    let id = b.id(0, 12);
    let bytes = block(b.store.get(&b.key(id))).unwrap();
    let mut d = crate::ltx::Decoder::new(bytes.as_ref()).unwrap();
    let header = d.header().clone();
    let (mut page, mut pages) = (vec![0; 1024], Vec::new());
    while let Some(n) = d.next_page(&mut page).unwrap() {
        pages.push((n, page.clone()));
    }
    pages.last_mut().unwrap().1[700] ^= 1;
    let refs: Vec<_> = pages.iter().map(|(n, p)| (*n, p.as_slice())).collect();
    block(put(&b.store, &[encode(crate::ltx::Level::L0, header, &refs)]));
    assert_eq!(b.verify(Mode::Quick).issues().count(), 1);
    let r = b.verify(Mode::Deep);
    assert!(on(&r, Rule::Content).message.contains("another history"), "{}", r.text());
    assert_eq!(r.exit_code(), 2);
}

#[test]
fn an_unreachable_store_is_an_error_and_no_finding() {
    #[derive(Debug)]
    struct Down;
    impl Faults for Down {
        fn next(&self, op: Op, key: &str) -> Fault {
            if op == Op::Get && key.contains("0000/") { Fault::Fail(Kind::Denied) } else { Fault::None }
        }
    }
    let b = Bench::new(4);
    let store = b.store.clone().with_faults(Arc::new(Down));
    assert_eq!(block(verify(&store, &VerifyOptions::default())).unwrap_err().kind(), Kind::Denied);
}

type Event = Box<dyn FnOnce(Store) + Send>;

/// Moves the replica on when the n-th request comes: as a live writer and merger would.
struct Live {
    store: Store,
    at: u64,
    seen: AtomicU64,
    then: Mutex<Option<Event>>,
}

impl Faults for Live {
    fn next(&self, _: Op, _: &str) -> Fault {
        if self.seen.fetch_add(1, Ordering::SeqCst) == self.at
            && let Some(then) = self.then.lock().unwrap().take()
        {
            let store = self.store.clone();
            std::thread::spawn(move || then(store)).join().unwrap();
        }
        Fault::None
    }
}

#[test]
fn a_replica_that_moves_meanwhile_gives_no_false_alarm() {
    for at in 0..45 {
        let mut b = Bench::new(8);
        let next: Vec<LtxFile> = (9..=10).map(|n| b.maker.step(n)).collect();
        let merge: Vec<LtxFile> =
            b.files.iter().filter(|f| f.id.level.get() == 0 && f.id.min.0 > 5).cloned().collect();
        let then = move |store: Store| {
            block(upload(&store, &next));
            let l1 = merged(1, &merge);
            block(upload(&store, &[l1]));
            let gone: BTreeSet<FileId> = merge.iter().map(|f| f.id).collect();
            let keys: Vec<String> = gone.iter().map(|id| id.key(store.layout())).collect();
            block(async {
                let mut w = ManifestWriter::load(&store).await.unwrap();
                w.remove(&store, &gone).await.unwrap();
                store.delete(&keys).await.unwrap();
            });
        };
        let then: Event = Box::new(then);
        let live = Live { store: b.store.clone(), at, seen: AtomicU64::new(0), then: Mutex::new(Some(then)) };
        let store = b.store.clone().with_faults(Arc::new(live));
        let r = block(verify(&store, &VerifyOptions::default())).unwrap();
        assert_eq!(r.exit_code(), 0, "moved at request {at}:\n{}", r.text());
    }
}

#[test]
fn retention_meanwhile_gives_no_false_alarm() {
    for (mode, at) in (0..45).map(|at| (Mode::Quick, at)).chain((0..90).map(|at| (Mode::Deep, at))) {
        let mut b = Bench::new(9);
        let mut next: Vec<LtxFile> = (10..=11).map(|n| b.maker.step(n)).collect();
        next.push(b.maker.snapshot());
        // All that the new snapshot makes superfluous, the newest first.
        let mut gone: Vec<FileId> =
            b.files.iter().map(|f| f.id).filter(|id| id.level.get() > 0 || id.max.0 < 9).collect();
        gone.sort_by_key(|id| std::cmp::Reverse(id.max));
        let then: Event = Box::new(move |store: Store| {
            block(upload(&store, &next));
            block(async {
                let mut w = ManifestWriter::load(&store).await.unwrap();
                w.remove(&store, &gone.iter().copied().collect()).await.unwrap();
                let keys: Vec<String> = gone.iter().map(|id| id.key(store.layout())).collect();
                store.delete(&keys).await.unwrap();
            });
        });
        let live = Live { store: b.store.clone(), at, seen: AtomicU64::new(0), then: Mutex::new(Some(then)) };
        let store = b.store.clone().with_faults(Arc::new(live));
        let r = block(verify(&store, &VerifyOptions { mode, ..VerifyOptions::default() })).unwrap();
        assert_eq!(r.exit_code(), 0, "{mode:?}, moved at request {at}:\n{}", r.text());
    }
}

#[test]
fn quick_looks_at_no_page_data() {
    // Every page frame of every file is wiped; what quick may look at is as it was.
    let b = Bench::new(14);
    for f in &b.files {
        let pages_end = end_of_pages(&f.bytes);
        b.change(f.id, |v| v[HEADER_LEN..pages_end].fill(0xAA));
    }
    let r = b.verify(Mode::Quick);
    // The store's own SHA-256 of what was put is not there for what is put over: only contents could tell.
    assert_eq!(r.exit_code(), 0, "{}", r.text());
    assert_eq!(b.verify(Mode::Deep).exit_code(), 2);
}

/// Counts the reads of files, as the store gets them.
#[derive(Debug, Default)]
struct Reads(Mutex<BTreeMap<String, u32>>);

impl Faults for Reads {
    fn next(&self, op: Op, key: &str) -> Fault {
        if op == Op::Get && key.ends_with(".ltx") {
            *self.0.lock().unwrap().entry(key.to_string()).or_default() += 1;
        }
        Fault::None
    }
}

#[test]
fn two_reads_of_a_file_suffice_and_fetch_next_to_nothing_else() {
    let b = Bench::new(60);
    let mut maker = Maker::new(4096);
    maker.commit(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 1000)
         INSERT INTO t(v) SELECT randomblob(1000) FROM c",
    );
    for f in b.files.iter().chain([&maker.snapshot()]) {
        let tail = f.bytes.len() - end_of_pages(&f.bytes);
        let bound = super::super::probe::tail_bound(Some(&f.entry)) as usize;
        let surplus = bound - tail;
        assert!(surplus <= 6 + f.entry.pages as usize, "{}: {tail} of {bound}", f.id);
    }
    let reads = Arc::new(Reads::default());
    let store = b.store.clone().with_faults(reads.clone());
    assert_eq!(block(verify(&store, &VerifyOptions::default())).unwrap().exit_code(), 0);
    let reads = reads.0.lock().unwrap();
    assert_eq!(reads.len(), b.files.len());
    assert!(reads.values().all(|n| *n <= 2), "{reads:?}");
}

struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// Where the pages of an LTX file end.
fn end_of_pages(bytes: &[u8]) -> usize {
    let tail = crate::ltx::Tail::parse(bytes).unwrap();
    tail.index_range(bytes.len() as u64).unwrap().start as usize - 6
}

#[test]
fn every_single_corruption_is_found() {
    let b = Bench::new(14);
    let mut random = Lcg(7);
    let all: Vec<LtxFile> = b.files.clone();
    let (mut quick_misses, mut cases) = (0, 0);
    for round in 0..160 {
        let f = &all[random.below(all.len())];
        let pages_end = end_of_pages(&f.bytes);
        let mut bytes = f.bytes.clone();
        let mut in_pages = false;
        let what = match round % 8 {
            0 => {
                let keep = random.below(bytes.len());
                bytes.truncate(keep);
                format!("cut at {keep}")
            }
            1 => {
                bytes.push(random.below(256) as u8);
                "grown".into()
            }
            2 => {
                bytes = all[random.below(all.len())].bytes.clone();
                "swapped".into()
            }
            3 => {
                let at = random.below(HEADER_LEN);
                bytes[at] ^= 1 << random.below(8);
                format!("header byte {at}")
            }
            4 | 5 => {
                let at = pages_end + random.below(bytes.len() - pages_end);
                bytes[at] ^= 1 << random.below(8);
                format!("tail byte {at}")
            }
            _ => {
                let at = HEADER_LEN + random.below(pages_end - HEADER_LEN);
                bytes[at] ^= 1 << random.below(8);
                in_pages = true;
                format!("page byte {at}")
            }
        };
        if bytes == f.bytes {
            continue;
        }
        cases += 1;
        block(b.store.put_over(&b.key(f.id), bytes)).unwrap();
        let found = |r: &Report| r.issues().any(|i| i.file == Some(f.id));
        let quick = b.verify(Mode::Quick);
        if in_pages {
            quick_misses += usize::from(!found(&quick));
        } else {
            assert!(found(&quick), "quick: {} {what}\n{}", f.id, quick.text());
        }
        let deep = b.verify(Mode::Deep);
        assert!(found(&deep), "deep: {} {what}\n{}", f.id, deep.text());
        block(b.store.put_over(&b.key(f.id), f.bytes.clone())).unwrap();
    }
    assert!(cases > 140 && quick_misses > 0);
    assert_eq!(b.verify(Mode::Deep).exit_code(), 0);
}
