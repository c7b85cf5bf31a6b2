//! Settings: what there is to set, where it may be said, and which word wins.
//!
//! One table ([`table::TABLE`]) is the source of TOML keys, URI parameters, JSON option keys, environment
//! names, the rows of `walrust_config`, and the settings table in the documentation.
//!
//! Rules
//! * I-CONFIG-1: the first of these that says something wins, setting by setting: the SQL call, the URI
//!   parameters of the open, the matching `[[databases]]` entry, the top of the TOML file, the environment,
//!   the default. Every value knows where it came from.
//! * I-CONFIG-2: nothing is silently ignored: an unknown key, a wrong type or an unreadable value is an
//!   error that names the place (file, line and key; variable; or option).
//! * I-CONFIG-3: two databases never get one replica, nor one spool: [`conflict`] names both. (What the configuration
//!   cannot know yet is refused when a watch begins: `session`, and `spool`'s I-SPOOL-10.)
//! * I-CONFIG-4: no secret is in any text that leaves this room: webhooks show their host, replica URLs
//!   with user info or credentials in the query are refused without being repeated.
//! * I-CONFIG-5: hostile input (any bytes, any nesting, up to [`MAX_INPUT_BYTES`]) gives an error, never a panic.
//!
//! Anybody may call it, from any thread; it only reads, and never opens a database file (closing one would
//! drop SQLite's POSIX locks), so a crash here leaves nothing behind.
//!
//! Refused: deserialising straight into a struct with serde. Its errors know neither the nearest right key
//! nor, after merging, where a value came from, and every front door would need its own struct.

pub mod layer;
pub mod options;
pub mod paths;
pub mod resolve;
pub mod settings;
pub mod table;
pub mod value;

mod file;
mod limits;
mod nearest;
mod raw;
mod read;
mod webhook;

#[cfg(test)]
mod tests;

pub use crate::address::replica_key;
pub use layer::{Layer, Source};
pub use limits::MAX_INPUT_BYTES;
pub use options::{OptionKind, OptionSpec, Options, WithSettings};
pub use paths::{conflict, spool_conflict};
pub use raw::whole;
pub use resolve::{
    Chosen, Config, ConfigRow, Place, Resolved, default_cache, default_spool, embedded_replica,
};
pub use settings::{Retention, Retry, Settings, StorageClasses};
pub use table::{Id, Scope, Setting, TABLE, settings_markdown};
pub use value::{
    AutoLabel, ByteCount, Durability, Functions, MirrorSettings, RetainMode, RetentionBy, parse_duration,
};
