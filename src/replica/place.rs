//! What lies at a URL where no replica was found as this kind of store has it: nothing, a replica in the layout of another kind of
//! store, or something that tells of a mistake.
//!
//! Rules
//! * I-PLACE-1 "Nothing is here" is said only of a place where nothing is, and by a store. Whatever else lies there is an error that
//!   names it: a program that believes that it has no backup begins empty.
//! * I-PLACE-2 A replica that was copied as it is between a bucket and a directory is read, as its names are unambiguous. Nothing is
//!   written there: a stream of this kind of store beside it would be a second history.
//!
//! Pure but for [`look`], which is asked only when the listings of the levels were empty. Refused: guessing in a place that holds both
//! layouts (its own kind's counts, as Litestream reads it).

use super::inventory::Inventory;
use super::layout::{FileId, OWN_PREFIX, split_root};
use super::manifest::Manifest;
use crate::base::{Error, Kind, Result, quoted};
use crate::ltx::{FileName, Level};
use crate::store::{LayoutKind, ReplicaUrl, Store};
use std::collections::BTreeSet;

/// Objects looked at to tell what lies there: one page of a listing.
const SAMPLE: usize = 1000;
/// Replicas below that are named.
const NAMED: usize = 3;

/// What lies at a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum There {
    /// Nothing, or what a watch leaves before its first file.
    Nothing,
    /// A replica as another kind of store has it.
    OtherLayout,
    /// A replica of Litestream 0.3, or a folder of one.
    Litestream03,
    /// Replicas of Litestream 0.3 in folders below, by name.
    Litestream03Below(Vec<String>),
    /// A spool: what is on its way to a replica.
    Spool,
    /// A folder of a replica.
    Within,
    /// Replicas in folders below, by name.
    Below(Vec<String>),
    /// Something else, such as this.
    Foreign(String),
}

/// How the other kinds of store name LTX files.
pub fn other(kind: LayoutKind) -> LayoutKind {
    match kind {
        LayoutKind::LevelHex => LayoutKind::LevelDecimal,
        LayoutKind::LevelDecimal => LayoutKind::LevelHex,
    }
}

/// From the keys below a place where no file lies as `kind` has it. Pure.
pub fn judge<'a>(kind: LayoutKind, keys: impl Iterator<Item = &'a str> + Clone) -> There {
    if keys.clone().any(|k| FileId::parse(other(kind), k).is_some()) {
        return There::OtherLayout;
    }
    if keys.clone().any(|k| k.starts_with("generations/") || is_within_03(k)) {
        return There::Litestream03;
    }
    if keys.clone().any(is_within) {
        return There::Within;
    }
    let root = |k: &'a str| split_root(kind, k).or_else(|| split_root(other(kind), k)).map(|(root, _)| root);
    let below: BTreeSet<&str> = keys.clone().filter_map(root).collect();
    if !below.is_empty() {
        return There::Below(below.into_iter().map(str::to_string).collect());
    }
    let old: BTreeSet<&str> = keys.clone().filter_map(root_of_03).collect();
    if !old.is_empty() {
        return There::Litestream03Below(old.into_iter().map(str::to_string).collect());
    }
    if keys.clone().any(|k| SPOOL.contains(&k)) {
        return There::Spool;
    }
    let mut foreign = keys.filter(|k| !k.starts_with(OWN_PREFIX) && !is_folder(k));
    foreign.next().map_or(There::Nothing, |k| There::Foreign(k.to_string()))
}

/// Files that each spool has.
const SPOOL: [&str; 3] = ["position.json", "pages.sum", "lock.seal"];

/// Litestream 0.3 has `generations/<16 hex>/snapshots/` and `/wal/`.
fn is_generation(rest: &str) -> bool {
    let (generation, folder) = rest.split_once('/').unwrap_or((rest, ""));
    generation.len() == 16
        && generation.bytes().all(|b| b.is_ascii_hexdigit())
        && (folder.starts_with("snapshots/") || folder.starts_with("wal/"))
}

/// Whether a key is one of a replica of Litestream 0.3 but for its first folders.
fn is_within_03(key: &str) -> bool {
    let in_generation = ["snapshots/", "wal/"].iter().any(|f| {
        key.strip_prefix(f).is_some_and(|name| {
            let is_old = [".snapshot.lz4", ".wal.lz4"].iter().any(|e| name.ends_with(e));
            is_old && name.bytes().take_while(u8::is_ascii_hexdigit).count() >= 8
        })
    });
    is_generation(key) || in_generation
}

/// The folder of a replica of Litestream 0.3 that a key lies in, if it is one below.
fn root_of_03(key: &str) -> Option<&str> {
    let (root, rest) = key.split_once("/generations/")?;
    is_generation(rest).then_some(root)
}

/// Whether a key is one of a replica but for its first folder.
fn is_within(key: &str) -> bool {
    let as_ltx =
        |k: &str| Level::all().any(|l| k.strip_prefix(&format!("{}/", l.get())).is_some_and(is_name));
    let own = |k: &str| super::layout::manifest_number(&format!("{OWN_PREFIX}{k}")).is_some();
    is_name(key) || as_ltx(key) || own(key) || key == "lease.json"
}

fn is_name(name: &str) -> bool {
    FileName::parse(name).is_some()
}

/// What consoles make for an empty folder: an object with the folder's name.
fn is_folder(key: &str) -> bool {
    key.is_empty()
        || key.ends_with('/')
        || is_structural(key)
        || key.strip_prefix("ltx/").is_some_and(is_level)
}

/// The name of a folder of a replica.
fn is_structural(name: &str) -> bool {
    let hex = || Level::all().any(|l| format!("{:04x}", l.get()) == name);
    matches!(name, "ltx" | "walrust") || hex()
}

fn is_level(name: &str) -> bool {
    Level::all().any(|l| l.get().to_string() == name)
}

/// Looks at the place of `store`, where its own kind's levels are empty.
pub async fn look(store: &Store) -> Result<There> {
    let objects = store.sample("", SAMPLE).await?;
    let mut keys: Vec<String> = objects.into_iter().map(|o| o.key).collect();
    if keys.len() >= SAMPLE {
        // There is more than was looked at: what matters is asked for by name.
        let at = other(store.layout());
        for folder in [
            super::layout::level_prefix(at, Level::SNAPSHOT),
            super::layout::level_prefix(at, Level::L0),
            "generations".into(),
        ] {
            keys.extend(store.sample(&folder, 1).await?.into_iter().map(|o| o.key));
        }
    }
    let there = judge(store.layout(), keys.iter().map(String::as_str));
    if there == There::Nothing && keys.is_empty() && parent_is_replica(store).await? {
        return Ok(There::Within);
    }
    Ok(there)
}

/// Whether an empty place is an empty folder of a replica, as its name would have it.
async fn parent_is_replica(store: &Store) -> Result<bool> {
    let Ok(url) = ReplicaUrl::parse(store.url()) else { return Ok(false) };
    let above = url.parent();
    let candidates = match &above {
        Some(up) if is_structural(url.name()) => Some(up.clone()),
        Some(up) if is_level(url.name()) && up.name() == "ltx" => up.parent(),
        _ => None,
    };
    let Some(candidate) = candidates else { return Ok(false) };
    Ok(!Inventory::read(&Store::open(&candidate)?).await?.is_empty())
}

impl There {
    /// Why a replica cannot be read or begun here; `None` if nothing speaks against it.
    pub fn refusal(&self, url: &str) -> Option<String> {
        Some(match self {
            There::Nothing | There::OtherLayout => return None,
            There::Litestream03 => format!(
                "{url} holds a replica of Litestream 0.3 (generations/), which only Litestream 0.3 reads; restore it with that"
            ),
            There::Litestream03Below(names) => format!(
                "{url} is no replica, but replicas of Litestream 0.3 lie below it: {}; only Litestream 0.3 reads them",
                some(names)
            ),
            There::Spool => format!(
                "{url} is a spool, what is on its way to a replica and not the replica; give the replica's URL"
            ),
            There::Within => {
                let up = ReplicaUrl::parse(url).ok().and_then(|u| u.parent()).map(|u| u.to_string());
                let up = up.map_or_else(String::new, |u| format!(", such as {u}"));
                format!("{url} is a folder within a replica; give the URL of the replica itself{up}")
            }
            There::Below(names) => {
                format!("{url} is no replica, but replicas lie below it: {}; name one of them", some(names))
            }
            There::Foreign(key) => {
                let key = quoted(key);
                format!("{url} holds no replica, but something else, such as {key}; correct the URL")
            }
        })
    }
}

/// The first names, and how many more there are.
fn some(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|n| quoted(n)).collect();
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// A replica to be read: the store in the layout in which it lies there, what lies there, and what its manifest says.
pub struct Found {
    /// To read it with.
    pub store: Store,
    /// Empty where nothing lies.
    pub inventory: Inventory,
    /// Of that replica.
    pub manifest: Manifest,
}

/// Finds the replica at the place of `store`. Where nothing lies the inventory is empty.
///
/// Errors: `Missing` where something else lies (I-PLACE-1); `Corrupt` where a manifest names files of which none is left; the store's.
pub async fn find(store: &Store) -> Result<Found> {
    let (inventory, manifest) = Inventory::read_with_manifest(store).await?;
    if !inventory.is_empty() {
        return Ok(Found { store: store.clone(), inventory, manifest });
    }
    match look(store).await? {
        There::OtherLayout => {
            let store = store.in_layout(other(store.layout()));
            let (inventory, manifest) = Inventory::read_with_manifest(&store).await?;
            Ok(Found { store, inventory, manifest })
        }
        there => {
            if let Some(why) = there.refusal(store.url()) {
                return Err(Error::new(Kind::Missing, why));
            }
            let named = manifest.entries().count();
            if named > 0 {
                return Err(Error::corrupt(format!(
                    "{} holds no LTX file, but its manifest names {named}: they were removed or lie elsewhere",
                    store.url()
                )));
            }
            Ok(Found { store: store.clone(), inventory, manifest })
        }
    }
}

/// An error where a new stream would come to lie beside something that is a replica (I-PLACE-2). Asked where no replica was found.
pub async fn refuse_to_begin(store: &Store) -> Result<()> {
    let there = look(store).await?;
    let why = match &there {
        There::Nothing | There::Below(_) | There::Litestream03Below(_) | There::Foreign(_) => return Ok(()),
        There::OtherLayout => format!(
            "{} holds a replica that was copied from another kind of store (bucket or directory); it can be restored from, \
             and a stream needs a place of its own",
            store.url()
        ),
        _ => there.refusal(store.url()).unwrap_or_default(),
    };
    Err(Error::config(format!("{why}; nothing was written there")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: &str = "0000000000000001-00000000000000ab.ltx";

    fn of(kind: LayoutKind, keys: &[&str]) -> There {
        judge(kind, keys.iter().copied())
    }

    #[test]
    fn what_lies_there_is_told_by_the_names() {
        let (hex, decimal) = (format!("0009/{N}"), format!("ltx/9/{N}"));
        use LayoutKind::{LevelDecimal, LevelHex};
        for kind in [LevelHex, LevelDecimal] {
            let foreign = |k: &str| There::Foreign(k.into());
            let own = if kind == LevelHex { &hex } else { &decimal };
            let table: Vec<(Vec<&str>, There)> = vec![
                (vec![], There::Nothing),
                (vec!["walrust/lease.json"], There::Nothing),
                (
                    vec!["walrust/manifest-0000000000000001.json", "walrust/probe-0000000000000001"],
                    There::Nothing,
                ),
                (vec!["", "0000", "ltx", "ltx/0", "a/"], There::Nothing),
                (vec!["generations/0123456789abcdef/snapshots/00000000.snapshot.lz4"], There::Litestream03),
                (vec!["0123456789abcdef/wal/00000000/00000000.wal.lz4"], There::Litestream03),
                (vec!["snapshots/00000000.snapshot.lz4"], There::Litestream03),
                (vec!["wal/00000000_00000000.wal.lz4"], There::Litestream03),
                (
                    vec!["a/generations/0123456789abcdef/wal/00000000.wal.lz4"],
                    There::Litestream03Below(vec!["a".into()]),
                ),
                (vec!["a/generations/notes.txt"], foreign("a/generations/notes.txt")),
                (vec!["snapshots/holiday.jpg"], foreign("snapshots/holiday.jpg")),
                (vec!["open/0000000000000002.0.ltx", "position.json"], There::Spool),
                (vec![N], There::Within),
                (vec!["manifest-0000000000000001.json", "lease.json"], There::Within),
                (vec!["readme.txt"], foreign("readme.txt")),
                (vec!["readme.txt", "walrust/lease.json"], foreign("readme.txt")),
                (vec!["0000/readme.txt"], foreign("0000/readme.txt")),
            ];
            for (keys, expected) in table {
                assert_eq!(of(kind, &keys), expected, "{kind:?} {keys:?}");
            }
            let (a, b) = (format!("a/{own}"), format!("t/b/{own}"));
            assert_eq!(of(kind, &[&a, &b, "x"]), There::Below(vec!["a".into(), "t/b".into()]));
        }
        assert_eq!(of(LevelHex, &[&decimal]), There::OtherLayout);
        assert_eq!(of(LevelDecimal, &[&hex, "walrust/lease.json"]), There::OtherLayout);
        assert_eq!(of(LevelDecimal, &[&format!("9/{N}")]), There::Within, "the folder ltx/ of a directory");
        assert_eq!(of(LevelHex, &[&format!("x/{decimal}")]), There::Below(vec!["x".into()]));
    }

    #[test]
    fn each_mistake_has_its_line() {
        for (there, word) in [
            (There::Litestream03, "Litestream 0.3"),
            (There::Litestream03Below(vec!["a".into()]), "Litestream 0.3 lie below it: \"a\""),
            (There::Spool, "spool"),
            (There::Within, "such as s3://b/app"),
            (
                There::Below(vec!["a".into(), "b".into(), "c".into(), "d".into()]),
                "\"a\", \"b\", \"c\" and 1 more",
            ),
            (There::Foreign("notes\n.txt".into()), "notes"),
        ] {
            let text = there.refusal("s3://b/app/0000").unwrap();
            assert!(text.contains(word) && !text.contains('\n'), "{text}");
        }
        assert_eq!(There::Nothing.refusal("s3://b/app"), None);
    }
}
