//! A lease at a store, its clock turned by hand.

use super::*;
use crate::base::Timestamp;
use crate::base::sim::{self, Job, World};
use crate::store::{Fault, Faults, Op, Retry, block_on};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A machine on which nothing but time passes.
struct Hands {
    uptime: Cell<Duration>,
    number: Cell<u64>,
}

impl World for Hands {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000)
    }
    fn uptime(&self) -> Duration {
        self.uptime.get()
    }
    fn sleep(&self, d: Duration) {
        self.uptime.set(self.uptime.get() + d);
    }
    fn random(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }
    fn reached(&self, _: &str) {}
    fn spawn(&self, _: &str, work: Job) {
        work();
    }
    fn holds(&self, _: i32) {}
    fn own(&self, _: &Path) -> bool {
        true
    }
    fn disown(&self, _: &Path) {}
    fn is_dead(&self) -> bool {
        false
    }
    fn disk(&self, _: &Path) -> Option<i32> {
        None
    }
    fn synced(&self, _: &Path) {}
}

/// What of the lease fails.
#[derive(Default)]
struct Broken {
    puts: AtomicBool,
    gets: AtomicBool,
    loses_answers: AtomicBool,
}

impl Faults for Broken {
    fn next(&self, op: Op, _: &str) -> Fault {
        let is = |b: &AtomicBool| b.load(Ordering::Relaxed);
        match op {
            Op::PutIf if is(&self.puts) => Fault::Fail(Kind::Denied),
            Op::PutIf if is(&self.loses_answers) => Fault::LoseAnswer,
            Op::Get if is(&self.gets) => Fault::Fail(Kind::Denied),
            _ => Fault::None,
        }
    }
}

struct Scene {
    hands: Rc<Hands>,
    broken: Arc<Broken>,
    store: Store,
}

impl Drop for Scene {
    fn drop(&mut self) {
        sim::enter(None);
    }
}

fn scene() -> Scene {
    let hands = Rc::new(Hands { uptime: Cell::new(Duration::from_secs(1000)), number: Cell::new(0) });
    sim::enter(Some(hands.clone()));
    SIMULATED.with(|s| s.borrow_mut().clear());
    let broken = Arc::new(Broken::default());
    let store = Store::in_memory().with_retry(Retry::NONE).with_faults(broken.clone());
    Scene { hands, broken, store }
}

impl Scene {
    fn pass(&self, s: u64) {
        self.hands.sleep(Duration::from_secs(s));
    }

    fn take(&self, who: &str) -> Result<Lease> {
        self.take_as(who, false)
    }

    fn take_as(&self, who: &str, evict: bool) -> Result<Lease> {
        let me = Me { writer: who.into(), session: format!("{who}'s"), who: format!("{who}'s host") };
        block_on(Lease::take(&self.store, &me, evict, TxId(10))).unwrap()
    }

    fn keep(&self, lease: &mut Lease) -> &'static str {
        match block_on(lease.keep(&self.store, Purpose::Work)).unwrap() {
            Kept::Ours => "ours",
            Kept::Unrenewed(_) => "unrenewed",
            Kept::Unknown(_) => "unknown",
            Kept::Lost(_) => "lost",
        }
    }
}

#[test]
fn a_dead_holders_lease_is_waited_out_by_looking_and_a_live_ones_never_ends() {
    let s = scene();
    let mut a = s.take("a").unwrap();
    let e = s.take("b").unwrap_err();
    assert_eq!((e.kind(), e.retry_after()), (Kind::Fenced, Some(Duration::from_secs(60))));
    for _ in 0..10 {
        s.pass(30);
        assert_eq!(s.keep(&mut a), "ours");
        assert!(s.take("b").is_err());
    }
    // It dies.
    s.pass(59);
    assert_eq!(s.take("b").unwrap_err().retry_after(), Some(Duration::from_secs(1)));
    s.pass(1);
    let b = s.take("b").unwrap();
    assert!(b.evicted() && b.base() == TxId(10 + (1 << 16)));
    assert_eq!(b.taken_from(), Some("a's host"));
    assert_eq!(s.keep(&mut a), "lost");
}

#[test]
fn a_lease_that_is_given_back_or_undone() {
    let s = scene();
    let a = s.take("a").unwrap();
    block_on(a.release(&s.store, false)).unwrap();
    let b = s.take("b").unwrap();
    assert!(!b.evicted());
    // It was for nothing: as it was before.
    block_on(b.undo(&s.store)).unwrap();
    let mut c = s.take("c").unwrap();
    // A takeover that comes to nothing gives it back to who held it.
    let d = s.take_as("d", true).unwrap();
    block_on(d.undo(&s.store)).unwrap();
    s.pass(30);
    assert_eq!(s.keep(&mut c), "ours");
    assert!(s.take("d").is_err());
    // One that succeeds does not.
    s.take_as("d", true).unwrap();
    s.pass(30);
    assert_eq!(s.keep(&mut c), "lost");
}

#[test]
fn renewals_that_fail_hold_up_nothing_as_long_as_the_lease_is_seen_to_be_ours() {
    let s = scene();
    let mut a = s.take("a").unwrap();
    s.broken.puts.store(true, Ordering::Relaxed);
    s.pass(25);
    assert_eq!(s.keep(&mut a), "unrenewed");
    assert_eq!(s.keep(&mut a), "ours", "it is not tried for each upload");
    s.pass(5);
    assert_eq!(s.keep(&mut a), "unrenewed");
    // Past its life: it is read.
    s.pass(600);
    assert_eq!(s.keep(&mut a), "unrenewed");
    assert!(!a.is_fresh());
    s.broken.gets.store(true, Ordering::Relaxed);
    s.pass(10);
    assert_eq!(s.keep(&mut a), "unknown");
    s.broken.puts.store(false, Ordering::Relaxed);
    s.broken.gets.store(false, Ordering::Relaxed);
    s.pass(5);
    assert_eq!(s.keep(&mut a), "ours");
    assert!(a.is_fresh());
}

#[test]
fn a_lease_that_another_took_meanwhile_is_lost_although_renewals_only_fail() {
    let s = scene();
    let mut a = s.take("a").unwrap();
    s.broken.puts.store(true, Ordering::Relaxed);
    s.pass(30);
    assert_eq!(s.keep(&mut a), "unrenewed");
    s.broken.puts.store(false, Ordering::Relaxed);
    s.take_as("b", true).unwrap();
    s.broken.puts.store(true, Ordering::Relaxed);
    s.pass(31);
    assert_eq!(s.keep(&mut a), "lost");
}

#[test]
fn a_renewal_whose_answer_was_lost_is_found_again() {
    let s = scene();
    let mut a = s.take("a").unwrap();
    s.broken.loses_answers.store(true, Ordering::Relaxed);
    s.broken.gets.store(true, Ordering::Relaxed);
    s.pass(26);
    assert_eq!(s.keep(&mut a), "unrenewed");
    s.broken.loses_answers.store(false, Ordering::Relaxed);
    s.broken.gets.store(false, Ordering::Relaxed);
    s.pass(6);
    assert_eq!(s.keep(&mut a), "ours");
    assert!(a.is_fresh());
}

#[test]
fn a_lease_object_that_is_gone_is_made_again() {
    let s = scene();
    let mut a = s.take("a").unwrap();
    block_on(s.store.delete(&[KEY.to_string()])).unwrap().unwrap();
    s.pass(26);
    assert_eq!(s.keep(&mut a), "ours");
    assert!(s.take("b").is_err());
    block_on(s.store.put_over(KEY, "<html>")).unwrap().unwrap();
    s.pass(26);
    assert_eq!(s.keep(&mut a), "lost", "somebody is at work there");
}

#[test]
fn a_crashed_process_of_this_spool_need_not_wait_and_knows_what_was_not_settled() {
    let s = scene();
    let a = s.take("a").unwrap();
    block_on(a.release(&s.store, false)).unwrap();
    let b = s.take("b").unwrap();
    assert_eq!(b.taken_from(), Some("a's host"));
    drop(b);
    // It died before that was settled.
    let mut b = s.take("b").unwrap();
    assert_eq!((b.taken_from(), b.evicted()), (Some("a's host"), true));
    block_on(b.settled(&s.store)).unwrap().unwrap();
    assert_eq!(s.take("b").unwrap().taken_from(), None);
}

/// Two databases of machine a in one folder of one bucket, and what another machine makes of it.
struct Folder {
    scene: Scene,
    stores: [Store; 2],
    leases: Vec<Lease>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        Store::stand_in(None);
    }
}

fn store_at(bucket: &Arc<object_store::memory::InMemory>, path: &str) -> Store {
    let client = object_store::prefix::PrefixStore::new(bucket.clone(), path);
    Store::over_client(Arc::new(client), &format!("s3://bucket/{path}")).with_retry(Retry::NONE)
}

fn folder() -> Folder {
    let scene = scene();
    let bucket = Arc::new(object_store::memory::InMemory::new());
    Store::stand_in(Some(store_at(&bucket, "t").with_faults(scene.broken.clone())));
    let stores = ["t/one", "t/two"].map(|path| store_at(&bucket, path));
    let take = |store| block_on(Lease::take(store, &me("a"), false, TxId(10))).unwrap().unwrap();
    let leases = stores.iter().map(take).collect();
    Folder { scene, stores, leases }
}

fn me(who: &str) -> Me {
    Me { writer: who.into(), session: format!("{who}'s"), who: format!("{who}'s host") }
}

impl Folder {
    /// Both keepers look, time and again, while `s` seconds pass.
    fn idle(&mut self, s: u64) -> [&'static str; 2] {
        let (mut kept, mut due) = (["", ""], [Duration::ZERO; 2]);
        for _ in 0..s {
            self.scene.pass(1);
            for n in [0, 1] {
                if clock::uptime() >= due[n] {
                    kept[n] = self.keep(n, Purpose::Rest);
                    due[n] = clock::uptime() + self.leases[n].due_in();
                }
            }
        }
        kept
    }

    fn keep(&mut self, n: usize, purpose: Purpose) -> &'static str {
        match block_on(self.leases[n].keep(&self.stores[n], purpose)).unwrap() {
            Kept::Ours => "ours",
            Kept::Unrenewed(_) => "unrenewed",
            Kept::Unknown(_) => "unknown",
            Kept::Lost(_) => "lost",
        }
    }

    fn take(&self, n: usize, who: &str, evict: bool) -> Result<Lease> {
        block_on(Lease::take(&self.stores[n], &me(who), evict, TxId(10))).unwrap()
    }

    fn there(&self, n: usize) -> LeaseState {
        block_on(observe(&self.stores[n])).unwrap().unwrap().unwrap().lease
    }

    fn hearts(&self) -> Vec<String> {
        let folder = Store::open(&crate::store::ReplicaUrl::parse("s3://bucket/t").unwrap()).unwrap();
        block_on(folder.list("walrust/hearts/")).unwrap().unwrap().into_iter().map(|o| o.key).collect()
    }
}

#[test]
fn idle_leases_rest_on_one_heart_and_live_as_long_as_it_beats() {
    let mut f = folder();
    assert_eq!(f.there(0).heart, None);
    assert_eq!(f.idle(30), ["ours", "ours"]);
    let resting = f.there(0);
    assert!(resting.heart.is_some() && f.leases.iter().all(|l| l.rests));
    let written = f.there(0).beat;
    assert_eq!(f.idle(1000), ["ours", "ours"]);
    assert_eq!(f.there(0).beat, written, "its object is not written any more");
    // A second machine is refused as before, however long it looks.
    for _ in 0..10 {
        assert_eq!(f.take(0, "b", false).unwrap_err().kind(), Kind::Fenced);
        f.idle(20);
    }
    // The machine dies: after a life without a beat its leases have ended.
    assert!(f.take(1, "b", false).is_err());
    f.scene.pass(59);
    assert!(f.take(1, "b", false).is_err());
    f.scene.pass(1);
    assert!(f.take(1, "b", false).is_ok());
}

#[test]
fn a_lease_wakes_before_anything_is_written() {
    let mut f = folder();
    f.idle(40);
    assert!(f.leases[0].rests && f.leases[0].ours_until().is_zero());
    assert_eq!(f.keep(0, Purpose::Work), "ours");
    assert!(!f.leases[0].rests && f.there(0).heart.is_none());
    assert!(f.leases[1].rests);
    // It was frozen; meanwhile its heart stood still and another took the lease.
    f.idle(40);
    assert!(f.leases[0].rests);
    assert!(f.take(0, "b", false).is_err());
    f.scene.pass(61);
    f.take(0, "b", false).unwrap();
    assert_eq!(f.keep(0, Purpose::Work), "lost");
    assert_eq!(f.keep(1, Purpose::Work), "ours");
}

#[test]
fn an_idle_holder_hears_that_its_lease_was_taken() {
    let mut f = folder();
    f.idle(40);
    f.take(1, "b", true).unwrap();
    assert_eq!(f.idle(60), ["ours", "lost"]);
}

#[test]
fn a_heart_that_cannot_beat_gives_way_to_renewals() {
    let mut f = folder();
    f.scene.broken.puts.store(true, Ordering::Relaxed);
    f.idle(100);
    // None may be written in the folder: the leases are renewed by themselves.
    assert!(f.leases.iter().all(|l| !l.rests && l.is_fresh()), "{:?}", f.leases);
    f.scene.broken.puts.store(false, Ordering::Relaxed);
    f.idle(3700);
    assert!(f.leases.iter().all(|l| l.rests));
    // It may no more: before anybody may take them they are awake.
    f.scene.broken.puts.store(true, Ordering::Relaxed);
    f.idle(50);
    assert!(f.leases.iter().all(|l| !l.rests));
    assert!(f.take(0, "b", false).is_err());
}

#[test]
fn a_heart_that_cannot_be_read_proves_nothing() {
    let mut f = folder();
    f.idle(40);
    f.scene.broken.gets.store(true, Ordering::Relaxed);
    f.scene.pass(1000);
    let e = f.take(0, "b", false).unwrap_err();
    assert!(e.to_string().contains("walrust/hearts/"), "{e}");
    assert!(f.take(0, "b", true).is_ok(), "a person has decided");
}

#[test]
fn a_heart_that_was_deleted_beats_again_and_the_last_to_leave_removes_it() {
    let mut f = folder();
    f.idle(40);
    let [key] = &f.hearts()[..] else { panic!("one heart") };
    let folder = Store::open(&crate::store::ReplicaUrl::parse("s3://bucket/t").unwrap()).unwrap();
    block_on(folder.delete(std::slice::from_ref(key))).unwrap().unwrap();
    assert_eq!(f.idle(60), ["ours", "ours"]);
    assert_eq!(f.hearts().len(), 1);
    for n in [0, 1] {
        let lease = f.leases.pop().unwrap();
        block_on(lease.release(&f.stores[1 - n], false)).unwrap();
        assert_eq!(f.hearts().len(), 1 - n);
    }
}
