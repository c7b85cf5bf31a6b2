//! How long the last closes of a process wait, in all, for what is pending to leave.
//!
//! A last close may be the last moment of a program that ends without `exit()`, so what is pending gets a chance to leave. But a program
//! that opens and closes a database for each request has a last close each time, and shall not wait for the network each time.
//!
//! * I-CLOSE-1: of each database, the first [`CLOSES`] last closes of a process wait, and no other.
//! * I-CLOSE-2: all closes of a process together wait no longer than [`WHOLE`]. Those that wait side by side share what is left.
//!
//! The close soon after a watch began is not counted: it waits once, until it is known whose replica it is ([`super::close`]), and so a program
//! that goes through thousands of databases keeps few of them beginning at a time, with few descriptors.
//!
//! What does not leave at a close leaves by itself while the process lives, at its `exit()`, or with the next one.
//!
//! Refused: to wait as long as a close is rare (a program that ends after an hour with its second close waits, and one whose users come
//! once a minute waits each time); to wait until the program has opened the database again (one that migrates it and
//! then works on it would never wait for its work).

use crate::base::{clock, lock};
use std::sync::Mutex;
use std::time::Duration;

/// How many last closes of one database wait.
const CLOSES: u32 = 3;
/// How long all of them may wait.
pub(super) const WHOLE: Duration = Duration::from_secs(5);
/// Less than that is not worth a wait.
const LEAST: Duration = Duration::from_millis(50);

/// What is left for the closes of one process.
#[derive(Debug)]
pub(super) struct Patience(Mutex<Duration>);

/// How many last closes of one database have waited.
#[derive(Debug, Default)]
pub(super) struct Closes(Mutex<u32>);

impl Default for Patience {
    fn default() -> Patience {
        Patience(Mutex::new(WHOLE))
    }
}

impl Patience {
    /// Does `work`, which waits as long as it is told, `want` at most, and takes of the rest what that took. `None`: nothing is left.
    pub(super) fn spend<T>(&self, want: Duration, work: impl FnOnce(Duration) -> T) -> Option<T> {
        let granted = take(&mut lock(&self.0), want)?;
        let begun = clock::uptime();
        let done = work(granted);
        *lock(&self.0) += granted.saturating_sub(clock::uptime().saturating_sub(begun));
        Some(done)
    }
}

impl Closes {
    /// Whether this one may wait.
    pub(super) fn may_wait(&self) -> bool {
        *lock(&self.0) < CLOSES
    }

    /// This one has.
    pub(super) fn waited(&self) {
        *lock(&self.0) += 1;
    }
}

fn take(left: &mut Duration, want: Duration) -> Option<Duration> {
    let granted = want.min(*left);
    if granted < LEAST {
        return None;
    }
    *left -= granted;
    Some(granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_waited_is_gone_and_what_was_not_is_there_again() {
        let ms = Duration::from_millis;
        let mut left = WHOLE;
        assert_eq!(take(&mut left, ms(3000)), Some(ms(3000)));
        assert_eq!(take(&mut left, ms(3000)), Some(ms(2000)), "the rest");
        assert_eq!(take(&mut left, ms(3000)), None);
        left = LEAST - ms(1);
        assert_eq!((take(&mut left, ms(3000)), left), (None, LEAST - ms(1)));

        let all = Patience::default();
        assert_eq!(all.spend(WHOLE, |granted| granted), Some(WHOLE));
        let rest = all.spend(WHOLE, |granted| granted).unwrap();
        assert!(rest > WHOLE - ms(500), "nothing was waited, but {rest:?} is left");
        all.spend(WHOLE, |_| assert_eq!(all.spend(WHOLE, |_| ()), None, "one beside it has all")).unwrap();
    }

    #[test]
    fn the_first_three_wait() {
        let closes = Closes::default();
        for _ in 0..CLOSES {
            assert!(closes.may_wait());
            closes.waited();
        }
        assert!(!closes.may_wait());
    }
}
