//! What a forked child must not share with its parent: locks.
//!
//! Of the parent's threads only the forking one lives on in the child. A lock that another thread held at that moment stays
//! held there for ever. So every lock that is a `static` lies in a [`ForkSafe`], and a child begins with a fresh one.
//! (`tests/rooms.rs` looks for others.)
//!
//! The handler that `sqlite::fork` registers with the C library calls [`in_child`] before anything else of ours runs there.
//!
//! Refused: to hold all of these locks across the fork (some are held over an fsync, or while a store is asked); the process id
//! as the mark (a system call at each use, and a number that comes again).

use once_cell::race::OnceBox;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

static FORKS: AtomicUsize = AtomicUsize::new(0);

/// How many forks lie between this process and the one that loaded us.
pub fn generation() -> usize {
    FORKS.load(Ordering::Acquire)
}

/// This process is a child: every [`ForkSafe`] is a fresh one from now on. Called by the fork's handler only.
pub fn in_child() {
    FORKS.fetch_add(1, Ordering::AcqRel);
}

/// A `static` of which each process has its own, made at first use. Nothing here ever blocks: of two threads that make it at
/// once one throws its own away, and what a thread did not finish before a fork is not seen in the child.
#[derive(Debug)]
pub struct ForkSafe<T: 'static> {
    make: fn() -> T,
    first: Node<T>,
}

/// That of one generation, and the way to those of its children.
#[derive(Debug)]
struct Node<T> {
    value: OnceBox<T>,
    next: OnceBox<Node<T>>,
}

impl<T> Node<T> {
    const fn new() -> Node<T> {
        Node { value: OnceBox::new(), next: OnceBox::new() }
    }
}

impl<T> ForkSafe<T> {
    /// One that `make` makes anew in each process.
    pub const fn new(make: fn() -> T) -> ForkSafe<T> {
        ForkSafe { make, first: Node::new() }
    }

    /// This process's own. (Its parent's stays where it is and is never touched again.)
    pub fn get(&self) -> &T {
        self.of(generation())
    }

    fn of(&self, generation: usize) -> &T {
        let mut node = &self.first;
        for _ in 0..generation {
            node = node.next.get_or_init(|| Box::new(Node::new()));
        }
        node.value.get_or_init(|| Box::new((self.make)()))
    }
}

impl<T> ForkSafe<Mutex<T>> {
    /// Locks this process's own.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.get().lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_has_its_own() {
        let cell: ForkSafe<Mutex<Vec<u32>>> = ForkSafe::new(Mutex::default);
        let parents = cell.of(0).lock().unwrap();
        // What the parent's thread holds is not in the way of the child, nor of its child.
        cell.of(1).lock().unwrap().push(1);
        cell.of(3).lock().unwrap().push(3);
        assert_eq!(*cell.of(1).lock().unwrap(), [1]);
        assert!(cell.of(2).lock().unwrap().is_empty());
        assert_eq!(*cell.of(3).lock().unwrap(), [3]);
        assert!(parents.is_empty());
    }

    #[test]
    fn it_is_made_once_and_one_that_is_poisoned_goes_on() {
        let cell: &'static ForkSafe<Mutex<u32>> = Box::leak(Box::new(ForkSafe::new(Mutex::default)));
        assert!(std::ptr::eq(cell.get(), cell.get()));
        let broken = crate::base::thread::spawn_joined("poisons", 64 << 10, || {
            *cell.lock() = 7;
            let _held = cell.lock();
            panic!("while it is held");
        })
        .unwrap();
        assert!(broken.join().is_err());
        assert_eq!(*cell.lock(), 7);
    }
}
