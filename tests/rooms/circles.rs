//! Which file of a room imports which other file of it, read from the text: `super::x`, `self::x`, `crate::room::x`, the
//! names of `use`, and a parent's paths into its children.
//!
//! A `mod.rs` that re-exports a name is a face: who imports the name imports the file that defines it. A parent that does more
//! with a child than `mod` and `pub use` imports the child. Tests are not looked at.

use std::collections::{BTreeMap, BTreeSet};

/// One file of a room.
#[derive(Default)]
struct Module {
    file: String,
    /// Names of modules declared here with a file of their own.
    children: BTreeSet<String>,
    /// Files that only tests have.
    test_children: BTreeSet<String>,
    /// Names defined here.
    defined: BTreeSet<String>,
    /// Name → path, for each `use`, public or not; with whether it is public.
    uses: BTreeMap<String, (Vec<String>, bool)>,
    /// Paths of `use m::*`.
    globs: Vec<(Vec<String>, bool)>,
    /// Paths outside of `use`, and single names.
    paths: BTreeSet<Vec<String>>,
}

/// Words, `::` and single characters; without comments, texts, lifetimes and characters in quotes.
fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == 'r' && (at(i + 1) == '"' || (at(i + 1) == '#' && matches!(at(i + 2), '"' | '#'))) {
            let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
            let end: String = std::iter::once('"').chain("#".repeat(hashes).chars()).collect();
            let rest: String = chars[i + 2 + hashes..].iter().collect();
            let len = rest.find(&end).map_or(rest.chars().count(), |n| rest[..n].chars().count());
            i += 2 + hashes + len + end.len();
        } else if c == '\'' {
            // A lifetime has no second quote.
            let len = if at(i + 1) == '\\' {
                2 + chars[i + 3..].iter().take_while(|c| **c != '\'').count()
            } else {
                1
            };
            i += if at(i + 1 + len) == '\'' { 2 + len } else { 1 };
        } else if c.is_alphanumeric() || c == '_' {
            let start = i;
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            out.push(chars[start..i].iter().collect());
        } else if c == ':' && at(i + 1) == ':' {
            out.push("::".into());
            i += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            i += 1;
        }
    }
    out
}

fn is_word(t: &str) -> bool {
    t.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The end of what begins at `i`, an item or a group: after its `;`, or the brace that closes it.
fn end_of_item(t: &[String], mut i: usize) -> usize {
    let mut depth = 0;
    while let Some(token) = t.get(i) {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth -= 1;
                if depth == 0 && token == "}" {
                    return i + 1;
                }
            }
            ";" if depth == 0 => return i + 1,
            _ => {}
        }
        i += 1;
    }
    i
}

/// The leaves of a use tree: name (`*` for a glob) and path.
fn use_tree(t: &[String], i: &mut usize, before: &[String], out: &mut Vec<(String, Vec<String>)>) {
    let mut path = before.to_vec();
    loop {
        match t.get(*i).map(String::as_str) {
            Some("{") => {
                *i += 1;
                while t.get(*i).is_some_and(|x| x != "}") {
                    use_tree(t, i, &path, out);
                    if t.get(*i).is_some_and(|x| x == ",") {
                        *i += 1;
                    }
                }
                *i += 1;
                return;
            }
            Some("*") => {
                *i += 1;
                out.push(("*".into(), path));
                return;
            }
            Some("::") => *i += 1,
            Some(word) if is_word(word) => {
                if word != "self" || path.is_empty() {
                    path.push(word.into());
                }
                *i += 1;
                if t.get(*i).is_some_and(|x| x == "as") {
                    out.push((t[*i + 1].clone(), path));
                    *i += 2;
                    return;
                }
                if t.get(*i).is_none_or(|x| x != "::") {
                    out.push((path.last().unwrap().clone(), path));
                    return;
                }
            }
            _ => return,
        }
    }
}

/// Reads a file. `inner` counts the modules in braces around: `super` of such a one is the file's own module.
fn read(t: &[String], m: &mut Module, inner: usize) {
    let own = |mut path: Vec<String>| {
        for _ in 0..inner {
            match path.first().map(String::as_str) {
                Some("super") => drop(path.remove(0)),
                _ => break,
            }
        }
        if inner > 0 && path.first().is_some_and(|p| p == "self") {
            path.clear();
        }
        path
    };
    let (mut i, mut public, mut for_tests) = (0, false, false);
    while i < t.len() {
        let here = i;
        let next = |n: usize| t.get(here + n).map_or("", String::as_str);
        match t[i].as_str() {
            "#" => {
                let start = if next(1) == "!" { i + 2 } else { i + 1 };
                let mut end = start;
                let mut depth = 0;
                while let Some(token) = t.get(end) {
                    depth += i32::from(token == "[") - i32::from(token == "]");
                    end += 1;
                    if depth == 0 {
                        break;
                    }
                }
                for_tests |= t[start..end].concat() == "[cfg(test)]";
                i = end;
                continue;
            }
            "mod" if is_word(next(1)) && next(2) == ";" => {
                let to = if for_tests { &mut m.test_children } else { &mut m.children };
                to.insert(next(1).into());
                i += 3;
            }
            _ if for_tests => i = end_of_item(t, i),
            "mod" if is_word(next(1)) && next(2) == "{" => {
                let end = end_of_item(t, i);
                m.defined.insert(next(1).into());
                read(&t[i + 3..end - 1], m, inner + 1);
                i = end;
            }
            "pub" => {
                public = true;
                i += 1;
                if t.get(i).is_some_and(|x| x == "(") {
                    i += 1 + t[i..].iter().position(|x| x == ")").unwrap();
                }
                continue;
            }
            "use" => {
                i += 1;
                let mut leaves = Vec::new();
                use_tree(t, &mut i, &[], &mut leaves);
                for (name, path) in leaves {
                    let path = own(path);
                    match name.as_str() {
                        _ if path.is_empty() => {}
                        "*" => m.globs.push((path, public)),
                        // A trait that is imported for its methods.
                        "_" => drop(m.uses.insert(format!("_{i}"), (path, public))),
                        _ => drop(m.uses.insert(name, (path, public))),
                    }
                }
                i = end_of_item(t, i);
            }
            word if is_word(word) && !(i > 0 && (t[i - 1] == "::" || t[i - 1] == ".")) => {
                let defines = i > 0
                    && matches!(
                        t[i - 1].as_str(),
                        "struct" | "enum" | "fn" | "trait" | "const" | "static" | "type" | "union"
                    );
                if defines {
                    m.defined.insert(word.into());
                }
                let mut path = vec![word.to_string()];
                let mut j = i + 1;
                while t.get(j).is_some_and(|x| x == "::") && t.get(j + 1).is_some_and(|x| is_word(x)) {
                    path.push(t[j + 1].clone());
                    j += 2;
                }
                let path = own(path);
                if !defines && !path.is_empty() {
                    m.paths.insert(path);
                }
                i = j;
            }
            _ => i += 1,
        }
        (public, for_tests) = (false, false);
    }
}

enum Place {
    In(Vec<String>),
    /// Not seen in this module: a macro may define it.
    Unknown(Vec<String>),
    /// In another room, or crate.
    Elsewhere,
}

/// The files of one room, by module path (`[room, child, grandchild]`).
pub struct Room(BTreeMap<Vec<String>, Module>);

impl Room {
    /// `sources`: file and text, of everything below `src/<room>/`.
    pub fn of(room: &str, sources: &[(String, String)]) -> Room {
        let mut all = BTreeMap::new();
        for (file, text) in sources {
            let inside = file.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
            let mut path: Vec<String> = inside.split('/').map(str::to_string).collect();
            if path.last().is_some_and(|l| l == "mod") {
                path.pop();
            }
            assert_eq!(path[0], room);
            let mut m = Module { file: file.clone(), ..Module::default() };
            read(&tokens(text), &mut m, 0);
            all.insert(path, m);
        }
        let of_tests: Vec<Vec<String>> = all
            .iter()
            .flat_map(|(path, m)| m.test_children.iter().map(|c| [path.clone(), vec![c.clone()]].concat()))
            .collect();
        all.retain(|path, _| !of_tests.iter().any(|t| path.starts_with(t)));
        Room(all)
    }

    /// Where what `path` names, seen from `from`, is defined.
    fn find(&self, from: &[String], path: &[String], depth: usize) -> Place {
        // (A crate's name that is also a name in it leads round and round.)
        if depth > 20 {
            return Place::Elsewhere;
        }
        let mut at = from.to_vec();
        let mut rest = path;
        while let [first, tail @ ..] = rest {
            rest = tail;
            match first.as_str() {
                "self" => {}
                "super" => drop(at.pop()),
                "crate" => {
                    at = tail.first().into_iter().cloned().collect();
                    rest = tail.get(1..).unwrap_or_default();
                }
                name => {
                    let Some(m) = self.0.get(&at) else { return Place::Elsewhere };
                    if m.children.contains(name) {
                        at.push(name.into());
                    } else if m.defined.contains(name) {
                        return Place::In(at);
                    } else if let Some((to, _)) = m.uses.get(name) {
                        return match self.find(&at, &[to.as_slice(), tail].concat(), depth + 1) {
                            Place::Unknown(_) => Place::Elsewhere,
                            known => known,
                        };
                    } else {
                        let from_glob = |(to, _): &(Vec<String>, bool)| {
                            let full = [to.as_slice(), &[name.to_string()], tail].concat();
                            let found = self.find(&at, &full, depth + 1);
                            matches!(found, Place::In(_)).then_some(found)
                        };
                        return m.globs.iter().find_map(from_glob).unwrap_or(Place::Unknown(at));
                    }
                }
            }
        }
        if self.0.contains_key(&at) { Place::In(at) } else { Place::Elsewhere }
    }

    /// File → the files it imports.
    pub fn imports(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut out = BTreeMap::new();
        for (path, m) in &self.0 {
            let mut to = BTreeSet::new();
            let mut add = |p: &[String]| match self.find(path, p, 0) {
                Place::In(file) | Place::Unknown(file) => drop(to.insert(file)),
                Place::Elsewhere => {}
            };
            let private = |(_, public): &&(Vec<String>, bool)| !public;
            // (`pub use` of what lies below is the face of it; of anything else, an import like another.)
            let is_face = |p: &[String]| p.first().is_some_and(|f| m.children.contains(f) || f == "self");
            let used = m.uses.values().filter(|u| private(u) || !is_face(&u.0));
            let globs = m.globs.iter().filter(|u| private(u) || !is_face(&u.0));
            used.chain(globs).for_each(|(p, _)| add(p));
            for p in &m.paths {
                let begins = matches!(p[0].as_str(), "super" | "self" | "crate");
                if begins || m.children.contains(&p[0]) && p.len() > 1 || m.uses.contains_key(&p[0]) {
                    add(p);
                }
            }
            to.remove(path);
            out.insert(m.file.clone(), to.iter().map(|t| self.0[t].file.clone()).collect());
        }
        out
    }
}

/// The files that import themselves through others, one line a circle: each of it reaches each.
pub fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reach = |from: &String| {
        let (mut found, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(f) = next.pop() {
            for to in imports.get(&f).into_iter().flatten() {
                if found.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        found
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = imports.keys().map(|f| (f, reach(f))).collect();
    let mut out: Vec<BTreeSet<String>> = Vec::new();
    for (file, to) in &reached {
        if to.contains(*file) && !out.iter().any(|c| c.contains(*file)) {
            out.push(to.iter().filter(|t| reached[t].contains(*file)).cloned().collect());
        }
    }
    out
}

#[test]
fn the_reading_of_files_is_right() {
    let sources = [
        (
            "src/r/mod.rs",
            "mod a; mod b; mod c; mod face; #[cfg(test)] mod tests; pub use a::A; pub use c::*; pub use face::Inner;
             /// super::nothing
             pub struct Top { x: &'static str } fn f() { let c = '\"'; let t = \"super::b::B\"; }",
        ),
        ("src/r/a.rs", "pub struct A; use crate::other::{Z, b}; #[cfg(test)] mod tests { use super::super::b::B; }"),
        ("src/r/b.rs", "use super::{A, C as D}; pub fn b() -> super::Inner { crate::r::c::C }"),
        ("src/r/c.rs", "pub enum C {} pub mod inline { use super::super::face; fn g(x: super::C) {} }"),
        ("src/r/face.rs", "mod low; pub use low::Inner;"),
        ("src/r/face/low.rs", "pub struct Inner;"),
        ("src/r/tests.rs", "use super::*;"),
    ];
    let room = |sources: &[(&str, &str)]| {
        let owned: Vec<_> = sources.iter().map(|(f, t)| (f.to_string(), t.to_string())).collect();
        Room::of("r", &owned).imports()
    };
    let imports = room(&sources);
    let of = |f: &str| imports[&format!("src/r/{f}")].iter().map(|t| t.as_str()).collect::<Vec<_>>();
    assert_eq!(of("mod.rs"), [""; 0]);
    assert_eq!(of("a.rs"), [""; 0]);
    assert_eq!(of("b.rs"), ["src/r/a.rs", "src/r/c.rs", "src/r/face/low.rs"]);
    assert_eq!(of("c.rs"), ["src/r/face.rs"]);
    assert!(!imports.contains_key("src/r/tests.rs"));
    assert!(circles(&imports).is_empty());

    // Each way to make a circle.
    for changes in [
        &[("a.rs", "pub struct A; fn f() { super::b::b() }")][..],
        &[("a.rs", "pub struct A; use super::b as x;")],
        &[("face/low.rs", "pub struct Inner; impl super::super::b::B {}")],
        &[("a.rs", "pub struct A; use super::Top;"), ("mod.rs", "mod a; pub struct Top(a::A);")],
        &[("a.rs", "pub struct A; use super::Top;"), ("mod.rs", "mod a; pub use a::A; pub struct Top(A);")],
        &[
            ("a.rs", "pub struct A; use crate::r::{Top};"),
            ("mod.rs", "mod a; use a::A as B; pub struct Top(B);"),
        ],
    ] {
        let mut changed = sources.to_vec();
        for (file, text) in changes {
            changed.iter_mut().find(|(f, _)| f.ends_with(&format!("/r/{file}"))).unwrap().1 = text;
        }
        assert_eq!(circles(&room(&changed)).len(), 1, "{changes:?}");
    }
}
