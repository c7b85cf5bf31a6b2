//! Where the right to remove files from the replica is asked for and handed over: see [`super::lend`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Who has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Holder {
    /// The shipper.
    #[default]
    Shipper,
    /// The shipper, and somebody waits for it.
    Asked,
    /// Who asked.
    Lent,
}

/// The meeting point of the shipper and those who borrow.
#[derive(Debug, Default)]
pub(super) struct Desk {
    holder: Mutex<Holder>,
    changed: Condvar,
    back: Notify,
}

impl Desk {
    /// Who has it; held for as long as the guard lives.
    pub(super) fn lock(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it to `to`, and tells those who wait.
    pub(super) fn set(&self, to: Holder) {
        *self.lock() = to;
        self.changed.notify_all();
        self.back.notify_one();
    }

    /// Whether it is away.
    pub(super) fn is_lent(&self) -> bool {
        *self.lock() == Holder::Lent
    }

    /// Whether somebody waits for it.
    pub(super) fn is_asked(&self) -> bool {
        *self.lock() == Holder::Asked
    }

    /// The shipper: hands it over if it was asked for. Whether it is away now.
    pub(super) fn lend(&self) -> bool {
        let mut holder = self.lock();
        if *holder == Holder::Asked {
            *holder = Holder::Lent;
            self.changed.notify_all();
        }
        *holder == Holder::Lent
    }

    /// The shipper: waits until it is back, at most `look`.
    pub(super) async fn returned(&self, look: Duration) {
        tokio::select! {
            biased;
            () = self.back.notified() => {}
            () = tokio::time::sleep(look) => {}
        }
    }

    /// A borrower: waits until something changes, at most `longest`.
    pub(super) fn wait<'a>(
        &'a self,
        holder: MutexGuard<'a, Holder>,
        longest: Duration,
    ) -> MutexGuard<'a, Holder> {
        #[cfg(feature = "sim")]
        if crate::base::sim::world().is_some() {
            drop(holder);
            crate::base::clock::sleep(longest.min(Duration::from_millis(10)));
            return self.lock();
        }
        self.changed.wait_timeout(holder, longest).unwrap_or_else(PoisonError::into_inner).0
    }
}
