//! A bound on the threads of one kind that work at the same time: a program may open a thousand databases in a second.

use crate::base::ForkSafe;
use std::sync::Mutex;

/// So many places.
pub(super) struct Places {
    most: usize,
    taken: ForkSafe<Mutex<usize>>,
}

/// One of them, until dropped.
pub(super) struct Place(&'static Places);

impl Places {
    /// `most` places.
    pub(super) const fn of(most: usize) -> Places {
        Places { most, taken: ForkSafe::new(Mutex::default) }
    }

    /// One, if one is free.
    pub(super) fn take(&'static self) -> Option<Place> {
        let mut taken = self.taken.lock();
        (*taken < self.most).then(|| {
            *taken += 1;
            Place(self)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken.lock() -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_they_come_back() {
        static PLACES: Places = Places::of(2);
        let (one, two) = (PLACES.take(), PLACES.take());
        assert!(one.is_some() && two.is_some() && PLACES.take().is_none());
        drop(one);
        assert!(PLACES.take().is_some());
    }
}
