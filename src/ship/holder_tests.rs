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
        match block_on(lease.keep(&self.store)).unwrap() {
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
