//! The lanes at a store that is slow, or refuses, where it is told to: on the real runtime, with a real spool.

use super::*;
use crate::base::{DbChecksum, Kind, PageSize, Timestamp, TxId, clock};
use crate::ltx::Level;
use crate::replica::{Inventory, LEASE_KEY};
use crate::ship::steady::{Model, PAGE, START};
use crate::spool::{FileStamp, Handoff, Position, Spool};
use crate::store::{Breaker, BreakerState, Fault, Faults, Op, Retry, Store, block_on};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to the uploads of which level.
#[derive(Default)]
struct Trouble(Mutex<Vec<(&'static str, Fault)>>, Mutex<Vec<String>>);

impl Trouble {
    fn with(&self, key: &'static str, fault: Fault) {
        let mut at = self.0.lock().unwrap();
        at.retain(|(k, _)| *k != key);
        at.push((key, fault));
    }

    /// How many objects were written whose keys hold that.
    fn puts(&self, key: &str) -> usize {
        self.1.lock().unwrap().iter().filter(|k| k.contains(key)).count()
    }
}

impl Faults for Trouble {
    fn next(&self, op: Op, key: &str) -> Fault {
        if matches!(op, Op::PutNew | Op::PutIf | Op::PutOver) {
            self.1.lock().unwrap().push(key.to_string());
        }
        let at = self.0.lock().unwrap();
        let found = at.iter().find(|(k, _)| key.contains(k) && matches!(op, Op::PutNew | Op::PutIf));
        found.map_or(Fault::None, |(_, f)| f.clone())
    }
}

const URL: &str = "memory";
const LEVEL_0: &str = "0000/";
const MERGED: &str = "0001/";
const SNAPSHOTS: &str = "0009/";

struct Scene {
    model: Model,
    last: u64,
    spool: Arc<Spool>,
    trouble: Arc<Trouble>,
    store: Store,
    link: Arc<Link>,
    events: Arc<Mutex<Vec<Event>>>,
    ended: Arc<Mutex<bool>>,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// With a first snapshot that waits, TXID 1.
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(&dir.path().join("spool")).unwrap());
        let trouble = Arc::new(Trouble::default());
        let store = Store::in_memory().with_retry(Retry::NONE).with_faults(trouble.clone());
        let model = Model::new();
        spool.own(URL, model.lineage).unwrap();
        let s = Scene {
            model,
            last: 1,
            spool,
            trouble,
            store,
            link: Arc::default(),
            events: Arc::default(),
            ended: Arc::default(),
            _dir: dir,
        };
        s.snapshot();
        s
    }

    fn start(&self, levels: &[u64]) {
        start(self.plan(levels)).unwrap();
    }

    fn plan(&self, levels: &[u64]) -> Plan {
        let (events, ended) = (self.events.clone(), self.ended.clone());
        Plan {
            keeping: super::shipper::Keeping::default(),
            spool: self.spool.clone(),
            store: self.store.clone(),
            link: self.link.clone(),
            me: Me { writer: "w".into(), session: format!("{:x}", clock::random_u64()), who: "host".into() },
            evict: false,
            lease: None,
            replica: URL.into(),
            retry: Retry::without_end(Duration::from_millis(10), Duration::from_millis(100)),
            breaker: Breaker::new(5, Duration::from_secs(60)),
            levels: levels.iter().map(|ms| Duration::from_millis(*ms)).collect(),
            on_event: Arc::new(move |e| events.lock().unwrap().push(e)),
            on_slot: Arc::new(|| {}),
            on_end: Arc::new(move || *ended.lock().unwrap() = true),
        }
    }

    /// One more level-0 file in the queue.
    fn commit(&mut self) {
        self.last += 1;
        let (pages, before) = self.model.commit(self.last);
        let path = self.spool.pending_path(TxId(self.last));
        self.model.file(&self.spool, &path, self.last..=self.last, &pages, before, START);
        self.place();
    }

    /// A snapshot of the newest TXID in the queue.
    fn snapshot(&self) {
        let path = self.spool.snapshot_path(TxId(self.last));
        let pages: Vec<u32> = (1..=Model::size(self.last)).collect();
        self.model.file(&self.spool, &path, 1..=self.last, &pages, DbChecksum::EMPTY, START);
        self.place();
    }

    fn place(&self) {
        let stamp = FileStamp { dev_ino: (0, 0), size: 0, mtime: 0, ctime: 0 };
        let position = Position {
            lineage: self.model.lineage,
            txid: TxId(self.last),
            pieces: 0,
            literal: false,
            page_size: PageSize::new(PAGE as u32).unwrap(),
            commit: 1,
            checksum: DbChecksum::EMPTY,
            timestamp: Timestamp(0),
            wal: crate::spool::WalPlace::GivenUp,
            handoff: Handoff::Closed(stamp),
        };
        let held = self.spool.hold_seal().unwrap();
        self.spool.set_position(&held, &position).unwrap();
        self.link.work.notify_one();
    }

    /// Commits, and waits until that is in the replica.
    fn commit_and_sync(&mut self, within: Duration) {
        self.commit();
        self.link.wait_for(TxId(self.last), within).unwrap();
    }

    fn trouble(&self) -> Option<String> {
        self.link.status().duties.trouble()
    }

    /// Another process goes on in the same spool.
    fn restart(&mut self) {
        self.link.stop();
        assert!(leave(&self.link, self.spool.dir(), SOON));
        let was = self.link.status();
        self.link = Arc::default();
        self.link.update(|s| (s.replicated, s.snapshot) = (was.replicated, was.snapshot));
        self.start(&[]);
    }

    fn lease(&self) -> LeaseState {
        LeaseState::decode(&block_on(self.store.get(LEASE_KEY)).unwrap().unwrap()).unwrap()
    }

    /// What the manifest names, and does not name of what is there.
    fn named(&self) -> (usize, usize) {
        let manifest = block_on(crate::replica::Manifest::read(&self.store)).unwrap().unwrap();
        let files = block_on(Inventory::read(&self.store)).unwrap().unwrap().files;
        let named = files.iter().filter(|f| manifest.get(f.id()).is_some()).count();
        (named, files.len() - named)
    }

    fn there(&self) -> Vec<(u8, u64, u64)> {
        let files = block_on(Inventory::read(&self.store)).unwrap().unwrap().files;
        files.iter().map(|f| (f.level.get(), f.min.0, f.max.0)).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.link.stop();
    }
}

const SOON: Duration = Duration::from_secs(20);

/// Waits until something is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = clock::uptime() + SOON;
    while !is_so() {
        assert!(clock::uptime() < end, "{what}");
        clock::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_is_refused_beside_the_stream_does_not_stop_it() {
    let mut s = Scene::new();
    s.start(&[50]);
    s.commit_and_sync(SOON);
    s.trouble.with(SNAPSHOTS, Fault::Fail(Kind::Denied));
    s.trouble.with(MERGED, Fault::Fail(Kind::Denied));
    s.snapshot();
    let e = s.link.wait_for_snapshot(TxId(2), SOON).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "who waits for it hears of it: {e}");
    for _ in 0..20 {
        s.commit_and_sync(SOON);
        let now = s.link.status();
        assert_eq!((now.breaker, now.last_error, now.failures), (BreakerState::Closed, None, 0));
        assert!(matches!(now.state, State::Streaming | State::CatchingUp), "{:?}", now.state);
    }
    until("merges fail, too", || s.link.course(Duty::Merge).failures() > 2);
    assert!(s.trouble().unwrap().starts_with("snapshot: "), "{:?}", s.trouble());
    let told = s.events.lock().unwrap().iter().any(|e| matches!(e, Event::Trouble { duty: Duty::Merge, .. }));
    let failed = s.events.lock().unwrap().iter().any(|e| matches!(e, Event::Failed { .. }));
    assert!(told && !failed);
    // It is tried again by itself.
    s.trouble.with(SNAPSHOTS, Fault::None);
    s.trouble.with(MERGED, Fault::None);
    until("all heals", || s.trouble().is_none() && s.there().iter().any(|f| f.0 == 1));
    assert!(s.there().contains(&(9, 1, 2)));
}

#[test]
fn small_passes_large() {
    let mut s = Scene::new();
    s.start(&[]);
    s.commit_and_sync(SOON);
    s.trouble.with(SNAPSHOTS, Fault::Delay(Duration::from_secs(3)));
    s.snapshot();
    let began = clock::uptime();
    for _ in 0..50 {
        s.commit_and_sync(Duration::from_secs(2));
    }
    assert!(clock::uptime() - began < Duration::from_secs(2));
    assert!(!s.there().contains(&(9, 1, 2)), "the snapshot is still on its way");
    s.link.wait_for_snapshot(TxId(2), SOON).unwrap();
    let shipped = s.spool.shipped().unwrap().unwrap();
    assert_eq!((shipped.txid, shipped.snapshot), (TxId(s.last), TxId(2)), "neither lane undoes the other's");
    assert!(shipped.snapshot_time.is_some());
}

#[test]
fn nothing_of_a_lineage_goes_before_its_snapshot() {
    let mut s = Scene::new();
    s.trouble.with(SNAPSHOTS, Fault::Fail(Kind::Retry));
    s.commit();
    s.commit();
    s.start(&[]);
    until("it is tried", || s.link.status().failures > 2);
    assert_eq!(s.there(), []);
    assert!(s.link.status().last_error.is_some(), "nothing can go before it: that is the stream's trouble");
    s.trouble.with(SNAPSHOTS, Fault::None);
    s.link.wait_for(TxId(3), SOON).unwrap();
    assert_eq!(s.there(), [(0, 2, 2), (0, 3, 3), (9, 1, 1)]);
}

#[test]
fn who_waits_causes_a_try_at_once_whatever_pause_there_is() {
    let mut s = Scene::new();
    let mut plan = s.plan(&[]);
    plan.retry = Retry::without_end(Duration::from_secs(600), Duration::from_secs(600));
    start(plan).unwrap();
    s.commit_and_sync(SOON);
    s.trouble.with(LEVEL_0, Fault::Fail(Kind::Denied));
    s.commit();
    until("it is refused", || s.link.status().state == State::Failed);
    s.trouble.with(LEVEL_0, Fault::None);
    s.link.wait_for(TxId(s.last), SOON).unwrap();
}

#[test]
fn a_stopped_shipper_gives_up_what_is_under_way_and_says_when_it_has() {
    let mut s = Scene::new();
    s.start(&[]);
    s.commit_and_sync(SOON);
    s.trouble.with(LEVEL_0, Fault::Delay(Duration::from_secs(3600)));
    s.commit();
    until("it is on its way", || s.link.status().uploading);
    s.link.stop();
    assert!(leave(&s.link, s.spool.dir(), SOON), "it ends without its upload");
    assert_eq!(s.spool.shipped().unwrap().unwrap().txid, TxId(2));
    assert!(s.spool.pending_path(TxId(3)).exists());
    assert!(!*s.ended.lock().unwrap(), "who waited for it gives the lock away");
    let lease = LeaseState::decode(&block_on(s.store.get(LEASE_KEY)).unwrap().unwrap()).unwrap();
    assert_eq!(lease.ends, 0, "it was given back");
}

#[test]
fn while_the_right_to_remove_is_lent_the_stream_goes_on_and_nothing_is_merged() {
    let mut s = Scene::new();
    s.start(&[20]);
    s.commit_and_sync(SOON);
    let lent = s.link.borrow_manifest(SOON).unwrap();
    for _ in 0..10 {
        s.commit_and_sync(Duration::from_secs(2));
    }
    clock::sleep(Duration::from_millis(100));
    assert!(s.there().iter().all(|f| f.0 != 1));
    drop(lent);
    until("merges go on", || s.there().iter().any(|f| f.0 == 1));
}

const MANIFEST: &str = "walrust/manifest-";

#[test]
fn entries_wait_for_one_another_until_somebody_asks_or_leaves() {
    let mut s = Scene::new();
    s.start(&[]);
    let began = clock::uptime();
    for _ in 0..20 {
        s.commit_and_sync(SOON);
    }
    // (A machine so busy that the time is up meanwhile proves nothing, and does not fail.)
    let is_in_time = || clock::uptime() - began < Duration::from_secs(9);
    let seen = (s.named(), s.trouble.puts(MANIFEST));
    assert!(!is_in_time() || seen == ((1, 20), 1), "the snapshot's own entry: {seen:?}");
    assert!(s.lease().ahead, "readers are told that entries are to come");
    assert!(s.link.have_all_named(SOON));
    let seen = (s.named(), s.trouble.puts(MANIFEST));
    assert!(seen.0 == (21, 0) && (!is_in_time() || seen.1 == 2), "{seen:?}");
    // So many and no more.
    let most = crate::replica::manifest::MOST_WAITING;
    for _ in 0..most - 1 {
        s.commit_and_sync(SOON);
    }
    let waiting = s.named().1;
    assert!(waiting < most && (!is_in_time() || waiting == most - 1), "{waiting}");
    s.commit_and_sync(SOON);
    let waiting = s.named().1;
    assert!(!is_in_time() || waiting == 0, "{waiting}");
    // Before who borrows the right to remove files has it, before a snapshot can be seen, and before the lease is given back.
    s.commit_and_sync(SOON);
    drop(s.link.borrow_manifest(SOON).unwrap());
    assert_eq!(s.named().1, 0);
    s.commit_and_sync(SOON);
    s.trouble.with(SNAPSHOTS, Fault::Fail(Kind::Denied));
    s.snapshot();
    until("it is tried", || s.link.course(Duty::Snapshot).failures() > 0);
    assert_eq!(s.named().1, 0);
    s.trouble.with(SNAPSHOTS, Fault::None);
    s.link.wait_for_snapshot(TxId(s.last), SOON).unwrap();
    s.commit_and_sync(SOON);
    s.link.give_lease_back(SOON);
    assert_eq!((s.named().1, s.lease().ends, s.lease().ahead), (0, 0, false));
}

#[test]
fn a_manifest_that_is_refused_stops_nothing_and_what_is_left_is_named_by_the_next_process() {
    for record in ["kept", "lost", "torn"] {
        let mut s = Scene::new();
        s.start(&[]);
        s.commit_and_sync(SOON);
        assert!(s.link.have_all_named(SOON));
        s.trouble.with(MANIFEST, Fault::Fail(Kind::Denied));
        for _ in 0..5 {
            s.commit_and_sync(SOON);
        }
        assert!(!s.link.have_all_named(Duration::from_millis(300)));
        until("its own error", || s.trouble().is_some_and(|e| e.starts_with("manifest: ")));
        assert_eq!(s.link.status().last_error, None, "the stream has none");
        s.link.stop();
        assert!(leave(&s.link, s.spool.dir(), SOON));
        assert_eq!((s.named().1, s.lease().ends, s.lease().ahead), (5, 0, true), "readers are told");
        s.trouble.with(MANIFEST, Fault::None);
        let path = s.spool.dir().join("owed");
        match record {
            "lost" => std::fs::remove_file(&path).unwrap(),
            "torn" => {
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
            }
            _ => {}
        }
        s.restart();
        s.commit_and_sync(SOON);
        until("named by whoever comes next", || s.link.have_all_named(SOON) && s.named().1 == 0);
        until("and the record is empty", || s.spool.owed(URL).unwrap() == Some(vec![]));
    }
}

#[test]
fn who_loses_the_replica_names_what_it_put_there() {
    let mut s = Scene::new();
    s.start(&[]);
    for _ in 0..3 {
        s.commit_and_sync(SOON);
    }
    let next = crate::replica::FileId { level: Level::L0, min: TxId(s.last + 1), max: TxId(s.last + 1) };
    block_on(s.store.put_over(&next.key(s.store.layout()), b"LTX1, another's".as_slice())).unwrap().unwrap();
    s.commit();
    until("another writer is at work there", || s.link.status().state == State::Fenced);
    until("what was acknowledged is named", || s.named() == (4, 1));
}

#[test]
fn what_another_machine_removed_meanwhile_is_not_named_again() {
    let mut s = Scene::new();
    s.start(&[]);
    s.commit_and_sync(SOON);
    assert!(s.link.have_all_named(SOON));
    s.trouble.with(MANIFEST, Fault::Fail(Kind::Retry));
    s.commit_and_sync(SOON);
    s.commit_and_sync(SOON);
    s.link.stop();
    assert!(leave(&s.link, s.spool.dir(), SOON));
    let gone = crate::replica::FileId { level: Level::L0, min: TxId(s.last), max: TxId(s.last) };
    block_on(s.store.delete(&[gone.key(s.store.layout())])).unwrap().unwrap();
    s.trouble.with(MANIFEST, Fault::None);
    s.restart();
    until("what is there is named", || s.named().1 == 0);
    let manifest = block_on(crate::replica::Manifest::read(&s.store)).unwrap().unwrap();
    assert!(manifest.get(gone).is_none());
}

#[test]
fn anothers_lease_bars_the_way_until_it_ends() {
    let mut s = Scene::new();
    let other = Me { writer: "o".into(), session: "o".into(), who: "another host".into() };
    let held = LeaseState { life_ms: 1500, process: None, ..other.lease(TxId(0), None, clock::now(), 1) };
    block_on(s.store.put_over(LEASE_KEY, held.encode().unwrap())).unwrap().unwrap();
    s.commit();
    s.start(&[]);
    until("that is its state", || s.link.status().state == State::Fenced);
    let e = s.link.wait_for(TxId(2), SOON).unwrap_err();
    assert_eq!(e.kind(), Kind::Fenced);
    assert!(e.to_string().contains("held by another host; its lease ends in"), "{e}");
    assert_eq!(s.there(), []);
    until("it goes on by itself", || s.link.status().replicated == TxId(2));
    until("and says so", || s.link.status().state == State::Streaming);
    let told = s.events.lock().unwrap().iter().filter(|e| matches!(e, Event::Fenced { .. })).count();
    assert_eq!(told, 1);
    assert_eq!(s.link.status().protection, Protection::Lease);
}

#[test]
fn the_lease_is_given_back_at_rest_and_taken_again_when_it_is_wanted() {
    let mut s = Scene::new();
    s.start(&[]);
    s.commit_and_sync(SOON);
    let ends = || LeaseState::decode(&block_on(s.store.get(LEASE_KEY)).unwrap().unwrap()).unwrap().ends;
    assert!(ends() != 0);
    s.link.give_lease_back(SOON);
    assert_eq!(ends(), 0);
    s.link.want_lease();
    until("an idle database holds it", || ends() != 0);
}

#[test]
fn a_renewal_that_hangs_holds_up_no_upload_and_a_closed_database_that_waits_does_not_spin() {
    let mut s = Scene::new();
    s.start(&[]);
    s.commit_and_sync(SOON);
    s.trouble.with("lease.json", Fault::Delay(Duration::from_secs(3600)));
    for _ in 0..5 {
        s.commit_and_sync(Duration::from_secs(5));
    }
    // Closed, while a file waits that is refused: the lease is kept, by looking now and then.
    s.trouble.with("lease.json", Fault::None);
    s.trouble.with(LEVEL_0, Fault::Fail(Kind::Denied));
    s.commit();
    s.link.give_lease_back(Duration::from_millis(300));
    let lease = LeaseState::decode(&block_on(s.store.get(LEASE_KEY)).unwrap().unwrap()).unwrap();
    assert!(lease.ends != 0, "what waits wants it");
    s.trouble.with(LEVEL_0, Fault::None);
    s.link.wait_for(TxId(s.last), SOON).unwrap();
    until("it is given back when all is there", || {
        LeaseState::decode(&block_on(s.store.get(LEASE_KEY)).unwrap().unwrap()).unwrap().ends == 0
    });
}
