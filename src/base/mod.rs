//! What every room shares: ids and sizes, the error, and the doors to time, chance and threads.
//!
//! Imports nothing of ours. Nothing here does I/O except through the doors in [`clock`], [`crash`], [`durable`], [`scratch`] and [`certificates`].

pub mod backoff;
mod beside;
pub mod certificates;
pub mod clock;
pub mod crash;
pub mod durable;
pub mod error;
pub mod event;
pub mod fork;
pub mod hex;
pub mod ids;
pub mod lock;
pub mod manners;
pub mod panics;
pub mod runtime;
pub mod scratch;
pub mod sealed;
#[cfg(feature = "sim")]
pub mod sim;
mod size;
pub mod thread;
pub mod timestamp;

pub use beside::beside;
pub use clock::Clock;
pub use error::{Error, Kind, Result, is_shortage, quoted};
pub use event::{EventKind, Secret, Severity, Webhook};
pub use fork::ForkSafe;
pub use ids::{DbChecksum, Lineage, PageSize, Pgno, TxId};
pub use lock::lock;
pub use manners::Manners;
pub use size::size;
pub use timestamp::Timestamp;
