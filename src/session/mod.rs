//! Ties the rooms together for each database: capture → spool → ship, one [`Watched`] per file.
//!
//! # Who is who
//!
//! * [`Engine`]: one a process. Knows every main database file that is open here ([`Entry`]) and those that
//!   are watched; owns the sealer thread.
//! * [`Entry`]: one a path. SQLite's calls on its file handles end here; without a [`Watched`] they
//!   pass straight on.
//! * [`Watched`]: tracker, spool, link to the shipper, settings and role of one watched database.
//!
//! # Rules
//!
//! * I-SES-1: one process ships a database at a time (fcntl lock in the spool); the others capture, seal what
//!   they must and are `standby`. When the shipper's process ends, the lock is free and the next one takes over.
//! * I-SES-2: a panic of ours fails that database's replication, loudly, and never the app's call.
//! * I-SES-3: nothing of ours that fork() would share is alive across it: see [`engine::fork_hooks`].
//! * I-SES-4: a watch that is refused has changed nothing, here or in the replica.
//!
//! # Threads
//!
//! `walrust-seal` (plain) seals, cuts, polls and starts resyncs; `walrust-ship` (the runtime) uploads; a
//! resync or snapshot has a thread for as long as it runs; `walrust-care` validates and applies retention while
//! there is something to do; `walrust-follow` polls for followed files while there are any; `walrust-metrics` serves
//! the two pages. SQL functions run on the app's threads.

mod access;
mod alone;
mod begin;
mod care;
mod copy;
mod engine;
mod entry;
mod exit;
mod follow;
mod gate;
mod host;
mod joined;
mod keep;
mod observe;
mod occupy;
mod prove;
mod resync;
mod sealer;
mod start;
mod watched;
mod whose;
mod work;

pub use alone::{Alone, alone};
pub use begin::{WishRow, begin_now};
pub use care::{compact, damage, details, policy};
pub use engine::{Engine, engine, fork_hooks};
pub use entry::Entry;
pub use exit::at_exit;
pub use follow::{Begun, FollowRequest, Follower, FollowerRow, follow, unfollow};
pub use host::{EngineHost, request};
pub use keep::keep_locks;
pub use occupy::occupy;
pub use start::{Identity, WatchRequest, default_spool};
pub use watched::{Role, Row, Watched};
pub use whose::same_replica;
