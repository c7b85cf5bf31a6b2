//! Ties the rooms together for each database: capture → spool → ship, one [`Watched`] per file.
//!
//! # Who is who
//!
//! * [`Engine`]: one a process. Knows every main database file that is open here ([`Entry`]) and those that
//!   are watched.
//! * [`Entry`]: one a path. SQLite's calls on its file handles end here; without a [`Watched`] they
//!   pass straight on.
//! * [`Watched`]: tracker, spool, link to the shipper, settings and part of one watched database.
//!
//! # Where to look
//!
//! Imports run downward in this list.
//!
//! | | files |
//! |---|---|
//! | the top: what SQLite and SQL call | `host`, `exit`, `past`, `engine`, `occupy` |
//! | the thread that moves databases from state to state | `sealer`, `answer`, `mirrors` |
//! | beginning, ending, beginning anew | `begin`, `start`, `renew`, `renewals`, `join` |
//! | the lists of the process | `observe`, `face`, `act`, `heartbeat`, `registry`, `follow`, `care` |
//! | SQLite's calls on one file | `entry`, `gate`, `exclusive`, `close` |
//! | verbs on one watched database | `label`, `drill`, `sound`, `sync`, `reread`, `prove`, `copy`, `mirrored`, `alone`, `events`, `status`, `lag`, `changed`, `whose`, `work`, `asked` |
//! | one watched database, and what it is made of | `watched`, `mirror`, `access`, `handles`, `services`, `arrivals`, `places`, `agenda`, `bell`, `job`, `joined`, `listening`, `dead_man`, `deeds`, `labelling`, `patience`, `points`, `trouble`, `since` |
//! | pure decisions | `phase`, `told`, `identity`, `wish`, `settings`, `waiting` |
//!
//! # Rules
//!
//! * I-SES-1: one process ships a database at a time (fcntl lock in the spool); the others capture, seal what
//!   they must and are `standby`. When the shipper's process ends, the lock is free and the next one takes over.
//! * I-SES-2: a panic of ours fails that database's replication, loudly, and never the app's call.
//! * I-SES-3: nothing of ours that fork() would share is alive across it: see [`fork_hooks`].
//! * I-SES-4: a watch that is refused has changed nothing, here or in the replica.
//!
//! # Threads
//!
//! `walrust-seal` (plain) seals, cuts, polls and starts resyncs; `walrust-ship` (the runtime) uploads; a
//! resync or snapshot has a thread for as long as it runs, and so has a request of another process (`walrust-answer`), and the beginning of a mirror (`walrust-mirror`); `walrust-care` validates, applies retention and makes labels while
//! there is something to do; drills have a thread like it (`walrust-drill`); `walrust-follow` polls for followed files while there are any; `walrust-metrics` serves
//! `metrics_listen`; `walrust-points` asks replicas what the page wants to know, while somebody looks; `walrust-deed` does what is asked for there. SQL functions run on the app's threads.

mod access;
mod act;
mod agenda;
mod alone;
mod answer;
mod arrivals;
mod asked;
mod begin;
mod bell;
mod care;
mod changed;
mod close;
mod copy;
mod dead_man;
mod deeds;
mod drill;
mod engine;
mod entry;
mod events;
mod exclusive;
mod exit;
mod face;
mod follow;
mod gate;
mod handles;
mod heartbeat;
mod host;
mod identity;
mod job;
mod join;
mod joined;
mod keep;
mod label;
mod labelling;
mod lag;
mod listening;
mod mirror;
mod mirrored;
mod mirrors;
mod neighbours;
mod observe;
mod occupy;
mod others;
mod past;
mod patience;
mod phase;
mod places;
mod points;
mod prove;
mod registry;
mod renew;
mod renewals;
mod reread;
mod sealer;
mod services;
mod settings;
mod since;
mod sound;
mod spooled;
mod start;
mod status;
mod sync;
mod told;
mod trouble;
mod waiting;
mod watched;
mod whose;
mod wish;
mod work;

pub use crate::ship::{lease_renewed_after, lease_rests_after};
pub use alone::Alone;
pub use begin::request;
pub use care::{damage, details, policy};
pub use drill::{DrillRequest, DrillRow, check_file, history as drills, run as drill};
pub use engine::{engine, fork_hooks, occupy};
pub use entry::Entry;
pub use exit::at_exit;
pub use follow::{Begun, FollowRequest, Follower, FollowerRow};
pub use host::EngineHost;
pub use identity::Identity;
pub use keep::keep_locks;
pub use listening::serve_no_metrics;
pub use mirrored::Replicas;
pub use past::{Neighbourhood, near};
pub use phase::Role;
pub use points::face as replica_face;
pub use registry::Engine;
pub use spooled::{SpoolState, Spooled};
pub use start::WatchRequest;
pub use status::Row;
pub use watched::Watched;
pub use whose::same_replica;
pub use wish::WishRow;
