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
//! * I-CONFIG-3: two databases never get one replica, nor one spool: [`conflict`] names both. (What the configuration cannot
//!   know yet is refused when a watch begins: `session`, and `spool`'s I-SPOOL-10.)
//! * I-CONFIG-4: no secret is in any text that leaves this room: webhooks show their host, replica URLs
//!   with user info or credentials in the query are refused without being repeated.
//! * I-CONFIG-5: hostile input (any bytes, any nesting, up to [`MAX_INPUT`]) gives an error, never a panic.
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
mod webhook;

#[cfg(test)]
mod tests;

pub use layer::{Layer, Source};
pub use options::{OptionKind, OptionSpec, Options, WithSettings, whole};
pub use paths::{conflict, replica_key, spool_conflict};
pub use resolve::{Chosen, Config, ConfigRow, Resolved, default_spool, embedded_replica};
pub use settings::{Retention, Retry, Settings};
pub use table::{Id, Scope, Setting, TABLE, settings_markdown};
pub use value::{ByteCount, Durability, Functions, UrlCheck, check_url, parse_duration};

/// The longest text read as a configuration or an options object, in bytes. Real ones are a few KB; a
/// wrong `WALRUST_CONFIG` may name anything.
pub const MAX_INPUT: u64 = 1 << 20;

/// The known name that `given` most likely meant.
fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > 64 {
        return None;
    }
    let len = given.chars().count();
    let most = (len / 3).max(1);
    let known = known.into_iter().filter(|k| k.chars().count().abs_diff(len) <= most);
    known.map(|k| (distance(given, k), k)).filter(|(d, _)| *d <= most).min().map(|(_, k)| k)
}

/// How many letters to change, insert, drop or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |r: &[usize], k: usize| r.get(k).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&row, j) + usize::from(x != y)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            if i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x) {
                best = best.min(at(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}
