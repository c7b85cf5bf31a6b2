//! Holds the documents and the code together: who imports whom, where `unsafe` may stand, which rule is stated
//! where, and that a document names only files, targets and rules that exist. Reads text; runs nothing.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[path = "rooms/circles.rs"]
mod circles;

/// Rooms whose files still import each other in a circle. To be emptied, never to be added to.
const STILL_CIRCULAR: [&str; 0] = [];

const DOCUMENTS: [&str; 12] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/configuration.md",
    "docs/disaster-recovery.md",
    "docs/failure.md",
    "docs/functions.md",
    "docs/host.md",
    "docs/integrity.md",
    "docs/webhooks.md",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every document, those of docs/ that the list does not name included.
fn documents() -> BTreeMap<String, String> {
    let mut names: BTreeSet<String> = DOCUMENTS.iter().map(|s| s.to_string()).collect();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        names.insert(format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    names.into_iter().filter(|n| n.ends_with(".md")).map(|n| (n.clone(), read(&n))).collect()
}

/// The Rust files below `dir`, with their path relative to the root.
fn sources(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(d) = dirs.pop() {
        for entry in std::fs::read_dir(d).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {dir}");
    found
}

/// The lines between `<!-- name:begin -->` and `<!-- name:end -->`.
fn section<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let (_, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{begin} is missing"));
    rest.split_once(&end).unwrap_or_else(|| panic!("{end} is missing")).0.lines().collect()
}

/// The words in backticks of a piece of Markdown.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Room → rooms it may import, in the order of ARCHITECTURE.md.
fn table() -> Vec<(String, BTreeSet<String>)> {
    let text = read("ARCHITECTURE.md");
    let rows: Vec<_> = section(&text, "rooms")
        .into_iter()
        .filter(|l| l.starts_with("| `"))
        .map(|l| {
            let cells: Vec<&str> = l.trim_matches('|').split('|').collect();
            assert_eq!(cells.len(), 3, "three columns wanted: {l}");
            let room = quoted(cells[0])[0].to_string();
            (room, quoted(cells[2]).into_iter().map(str::to_string).collect())
        })
        .collect();
    assert!(rows.len() > 10, "the table of rooms was not found");
    rows
}

/// Code without its comments, so that prose may name what code may not.
fn code(text: &str) -> String {
    text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The rooms that a file names: `crate::room`, and each of `crate::{a, b::c}`.
fn imports(text: &str) -> BTreeSet<String> {
    let ident =
        |s: &str| s.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for after in code(text).split("crate::").skip(1) {
        let Some(group) = after.strip_prefix('{') else {
            found.insert(ident(after));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    found.insert(ident(&group[start..i]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.insert(ident(&group[start..i]));
                    start = i + 1;
                }
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let table = table();
    let rooms: BTreeSet<&str> = table.iter().map(|(r, _)| r.as_str()).collect();
    let on_disk: BTreeSet<String> = std::fs::read_dir(root().join("src"))
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir() && e.file_name() != "bin")
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    assert_eq!(rooms, on_disk.iter().map(String::as_str).collect(), "the rooms are the folders of src/");

    let mut wrong = Vec::new();
    for (room, allowed) in &table {
        for (file, text) in sources(&format!("src/{room}")) {
            for import in imports(&text) {
                if rooms.contains(import.as_str()) && import != *room && !allowed.contains(&import) {
                    wrong.push(format!("{file} imports {import}, which `{room}` may not"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_imports_a_file_that_imports_it_back() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (room, _) in table() {
        let imports = circles::Room::of(&room, &sources(&format!("src/{room}"))).imports();
        seen += imports.values().map(BTreeSet::len).sum::<usize>();
        let found = circles::circles(&imports);
        match (found.is_empty(), STILL_CIRCULAR.contains(&room.as_str())) {
            (true, true) => wrong.push(format!("`{room}` has no circle any more: take it off the list")),
            (false, false) => {
                for circle in found {
                    let mut lines = format!("`{room}`: these import each other in a circle:");
                    for file in &circle {
                        let to: Vec<_> = imports[file].intersection(&circle).cloned().collect();
                        lines += &format!("\n    {file} → {}", to.join(", "));
                    }
                    wrong.push(lines);
                }
            }
            _ => {}
        }
    }
    assert!(seen > 100, "the search finds nothing");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_run_downward() {
    let mut above = BTreeSet::new();
    for (room, allowed) in table() {
        for import in &allowed {
            assert!(above.contains(import), "`{room}` may import `{import}`, which does not stand above it");
        }
        above.insert(room);
    }
}

#[test]
fn the_reading_of_imports_is_right() {
    let text = "use crate::base::{Error, Kind}; // crate::not\nuse crate::{ltx, wal::{self, read}, spool};\n\
                fn f() { crate::store::block_on(x) } //! crate::nor";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["base", "ltx", "spool", "store", "wal"]);
}

#[test]
fn unsafe_stands_in_one_room_and_the_entry_points() {
    let has_unsafe = |text: &str| {
        code(text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
    };
    for (file, text) in sources("src") {
        if file.starts_with("src/sqlite/") {
            continue;
        }
        let text = match file.as_str() {
            "src/lib.rs" => text.split_once("mod entry {").expect("the entry points").0.to_string(),
            _ => text,
        };
        assert!(!has_unsafe(&text), "{file}: unsafe belongs in src/sqlite/");
    }
    assert!(sources("src/sqlite").iter().any(|(_, t)| has_unsafe(t)), "the search finds nothing");
}

/// What stands in statics and may stay held in a forked child, as `file: name`, with why it may: it is held across the fork, or is
/// set once, before the handler of forks is there.
const HELD_OR_SET_ONCE: [&str; 18] = [
    "src/sqlite/fork.rs: OWN",
    "src/sqlite/fork.rs: CHANGED",
    "src/sqlite/fork.rs: HOOKS",
    "src/sqlite/fork.rs: ONCE",
    "src/sqlite/mutex.rs: HANDLES",
    "src/sqlite/registry.rs: REGISTRY",
    "src/sqlite/entry.rs: WIRING",
    "src/sqlite/linked.rs: WIRING",
    "src/sqlite/program.rs: WIRING",
    "src/sqlite/exit.rs: HOOK",
    "src/sqlite/judge.rs: OWN",
    "src/sqlite/pager.rs: LAYOUT",
    "src/sqlite/lower.rs: LOWER_OPEN",
    "src/sqlite/lower.rs: LOWER_FULL_PATHNAME",
    "src/spool/lock.rs: KEEPER",
    "src/sql/restore.rs: NOTE",
    "src/sql/restore.rs: PROGRESS",
    "src/base/clock.rs: START",
];

#[test]
fn a_lock_in_a_static_is_fresh_in_a_forked_child() {
    const LOCKS: [&str; 7] = ["Mutex", "RwLock", "Condvar", "OnceLock", "LazyLock", "Once", "OnceCell"];
    let mut found = BTreeSet::new();
    for (name, text) in sources("src").into_iter().filter(|(name, _)| !name.ends_with("tests.rs")) {
        let text = code(&text);
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in
            text.lines().map(str::trim).filter(|l| l.starts_with("static ") || l.starts_with("pub static "))
        {
            let Some((what, rest)) = line.split_once(':') else { continue };
            let of = rest.split('=').next().unwrap_or_default().trim();
            let words: Vec<&str> =
                of.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
            if words.first() != Some(&"ForkSafe") && words.iter().any(|w| LOCKS.contains(w)) {
                found.insert(format!("{name}: {}", what.rsplit(' ').next().unwrap_or_default()));
            }
        }
    }
    // The command line does not fork; crash points are for tests; SEEN is a task's own.
    let elsewhere = |n: &String| {
        n.starts_with("src/bin/") || n == "src/base/crash.rs: ARMED" || n == "src/store/http.rs: SEEN"
    };
    found.retain(|n| !elsewhere(n));
    let allowed: BTreeSet<String> = HELD_OR_SET_ONCE.iter().map(ToString::to_string).collect();
    assert_eq!(found, allowed, "put it into base::ForkSafe, or say here why it needs not be");
}

/// `I-ROOM-1` and the like, wherever they stand in a text; `I-ROOM-1..3` counts as all three.
fn rules(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("I-") {
        if text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '-') {
            continue;
        }
        let rest = &text[at + 2..];
        let name: String = rest.chars().take_while(char::is_ascii_uppercase).collect();
        let digits = |s: &str| s.chars().take_while(char::is_ascii_digit).collect::<String>();
        let Some(first) = rest[name.len()..].strip_prefix('-').map(digits) else { continue };
        let Ok(from) = first.parse::<u32>() else { continue };
        let after = &rest[name.len() + 1 + first.len()..];
        let to = after.strip_prefix("..").and_then(|s| digits(s).parse().ok()).unwrap_or(from);
        found.extend((from..=to).map(|n| format!("I-{name}-{n}")));
    }
    found
}

/// Rules stated in module headers.
fn stated() -> BTreeSet<String> {
    sources("src")
        .iter()
        .flat_map(|(_, text)| {
            rules(&text.lines().take_while(|l| l.starts_with("//!")).collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

#[test]
fn every_rule_named_anywhere_is_stated_in_a_header() {
    let stated = stated();
    let texts = sources("src").into_iter().chain(sources("tests")).chain(documents());
    for (file, text) in texts.filter(|(f, _)| f != "tests/rooms.rs") {
        for rule in rules(&text) {
            assert!(stated.contains(&rule), "{file} names {rule}, which no module header states");
        }
    }
}

#[test]
fn the_index_has_every_rule() {
    let text = read("ARCHITECTURE.md");
    let index = rules(&section(&text, "rules").join("\n"));
    let missing: Vec<String> = stated().difference(&index).cloned().collect();
    assert!(missing.is_empty(), "the index in ARCHITECTURE.md lacks {missing:?}");
    assert!(index.len() > 50);
}

#[test]
fn links_lead_somewhere() {
    for (name, text) in documents() {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap();
            let path = root().join(&name).parent().unwrap().join(file);
            assert!(path.exists(), "{name} links to {target}, which does not exist");
        }
    }
}

#[test]
fn targets_and_scripts_that_documents_name_exist() {
    let makefile = read("Makefile");
    let mut seen = 0;
    for (name, text) in documents() {
        for (at, _) in text
            .match_indices("make ")
            .filter(|(at, _)| matches!(text[..*at].chars().next_back(), Some('`' | '\n')))
        {
            let words = text[at + 5..].split(['`', '\n', '#']).next().unwrap().split_whitespace();
            for target in words.filter(|w| !w.contains('=')) {
                assert!(makefile.contains(&format!("\n{target}:")), "{name}: no `make {target}`");
                seen += 1;
            }
        }
        for (at, _) in text.match_indices("sql/") {
            let file: String =
                text[at..].chars().take_while(|c| c.is_alphanumeric() || "/_.".contains(*c)).collect();
            if file.ends_with(".sql") {
                assert!(root().join(&file).exists(), "{name} names {file}, which does not exist");
            }
        }
    }
    assert!(seen > 5, "the search finds nothing");
}

#[test]
fn documents_cite_no_line_numbers() {
    for (name, text) in documents() {
        for line in text.lines() {
            let cites = line.split(".rs:").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            assert!(!cites, "{name} cites a line number, which will be wrong tomorrow: {line}");
        }
    }
}

#[test]
fn tests_that_the_tables_of_tests_name_exist() {
    for (document, folder, least) in
        [("docs/regressions.md", "", 50), ("docs/surface-tests.md", "tests/door/", 200)]
    {
        let text = read(document);
        let mut seen = 0;
        for line in text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| |")) {
            let named: Vec<&str> = quoted(line).into_iter().filter(|q| q.contains("::")).collect();
            assert!(!named.is_empty(), "{document}: no test is named: {line}");
            for name in named {
                let (file, test) = name.split_once("::").unwrap();
                let word = if file.ends_with(".py") { "def" } else { "fn" };
                let text = read(format!("{folder}{file}"));
                assert!(
                    [format!("{word} {test}("), format!("{word} {test}<")].iter().any(|d| text.contains(d)),
                    "{document} names {name}, which does not exist"
                );
                seen += 1;
            }
        }
        assert!(seen > least, "{document}: the search finds nothing");
    }
}
