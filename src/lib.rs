//! walrust: a SQLite loadable extension that streams every commit to a replica.
//!
//! The map of rooms is in ARCHITECTURE.md; imports run one way, downward in the list below.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod base;
pub mod capture;
pub mod config;
pub mod ltx;
pub mod metrics;
pub mod notify;
pub mod replica;
pub mod session;
pub mod ship;
pub mod spool;
pub mod sql;
#[allow(unsafe_code)]
pub mod sqlite;
pub mod store;
pub mod wal;
