//! Who removes files from the replica (retention, `walrust_verify` with `fix`) borrows that right from the shipper. While it is
//! lent nothing is merged or taken back, so that no merged file is made of what is being removed. The stream and snapshots go
//! on: where the store holds to conditional updates, two writers of the manifest undo nothing of each other (I-MAN-1 of
//! `replica`); where it does not, what is uploaded meanwhile waits for its entry. The borrower decides first, by itself, what
//! to remove, and borrows for the removal alone.
//!
//! A crash of the process ends both. Refused: removal inside the shipper's loop (a listing of a large replica would hold up
//! uploads).

use super::desk::Holder;
use super::link::Link;
use super::status::State;
use crate::base::{Error, Kind, Result, clock};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks whether there is still a shipper to wait for.
const LOOK: Duration = Duration::from_millis(100);

/// The manifest, borrowed; dropping it gives it back.
#[derive(Debug)]
pub struct Borrowed {
    link: Arc<Link>,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.link.desk.set(Holder::Shipper);
        self.link.work.notify_one();
    }
}

impl Link {
    /// Borrows the right to remove files from the shipper, which merges nothing meanwhile: be quick. Errors with
    /// [`Kind::Fenced`] when another writer has the replica, with [`Kind::Config`] when replication was stopped, and with
    /// [`Kind::Timeout`] when the shipper does not come to hand it over.
    pub fn borrow_manifest(self: &Arc<Link>, timeout: Duration) -> Result<Borrowed> {
        let end = clock::uptime() + timeout;
        let mut holder = self.desk.lock();
        let mut asked = false;
        loop {
            match *holder {
                Holder::Shipper => {
                    *holder = Holder::Asked;
                    asked = true;
                    self.work.notify_one();
                }
                Holder::Lent if asked => return Ok(Borrowed { link: self.clone() }),
                Holder::Asked | Holder::Lent => {}
            }
            if let Some(e) = self.no_manifest(end) {
                if asked {
                    *holder = Holder::Shipper;
                }
                return Err(e);
            }
            holder = self.desk.wait(holder, LOOK);
        }
    }

    fn no_manifest(&self, end: Duration) -> Option<Error> {
        let s = self.status();
        let why = s.last_error.map(|(_, e)| format!(": {e}")).unwrap_or_default();
        if s.state == State::Fenced {
            return Some(Error::new(Kind::Fenced, format!("replication is fenced{why}")));
        }
        if self.is_stopped() {
            return Some(Error::new(Kind::Config, "the database is not watched any more"));
        }
        (clock::uptime() >= end)
            .then(|| Error::new(Kind::Timeout, format!("uploads do not pause to let the manifest go{why}")))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn one_borrower_at_a_time_and_the_shipper_waits() {
        let link = Arc::new(Link::default());
        assert!(!link.desk.lend(), "nobody asked");
        let shipper = {
            let link = link.clone();
            std::thread::spawn(move || {
                let mut lent = 0;
                while !link.is_stopped() {
                    lent += usize::from(link.desk.lend());
                    clock::sleep(Duration::from_millis(1));
                }
                lent
            })
        };
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let borrowers: Vec<_> = (0..4)
            .map(|_| {
                let (link, inside) = (link.clone(), inside.clone());
                std::thread::spawn(move || {
                    let _mine = link.borrow_manifest(Duration::from_secs(10)).unwrap();
                    let before = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    clock::sleep(Duration::from_millis(10));
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    before
                })
            })
            .collect();
        for b in borrowers {
            assert_eq!(b.join().unwrap(), 0, "two had it at once");
        }
        assert!(!link.desk.lend(), "it is back");
        link.stop();
        assert!(shipper.join().unwrap() >= 4);
    }

    #[test]
    fn it_is_not_waited_for_when_nobody_comes() {
        let link = Arc::new(Link::default());
        let e = link.borrow_manifest(Duration::from_millis(20)).unwrap_err();
        assert_eq!(e.kind(), Kind::Timeout);
        assert!(!link.desk.lend(), "the question is taken back");
        link.update(|s| s.state = State::Fenced);
        assert_eq!(link.borrow_manifest(Duration::from_secs(5)).unwrap_err().kind(), Kind::Fenced);
    }
}
