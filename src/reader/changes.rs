//! What was changed between two points: pages of each b-tree, and rows of each table.
//!
//! * I-DIFF-1 A page was changed if its content differs. Only pages are compared that lie in different places in the two states, and that a
//!   file between them holds where the files between them can be told.
//! * I-DIFF-2 A page belongs to the b-tree whose interior pages name it. These are read in both states; of leaves, only those that
//!   are not the same leaf of the same table in both, unchanged. So rows are counted exactly, at the cost of what was changed.
//! * I-DIFF-3 A row whose leaf was not changed may go on in a page that was. Where a changed page is left that belongs to nothing else, all
//!   leaves of the tables are looked through for it.
//!
//! Refused: SQL over the two states (it reads all of both), `dbstat` (most builds of SQLite have none).

use super::btree::{Form, Kind, Pages, Row, Tree};
use super::cover::{PageSet, Span, cover};
use super::image::ReplicaImage;
use super::nearby::Nearby;
use super::past::PastImage;
use super::replica::{self, Replica};
use super::view::View;
use crate::address::ReplicaUrl;
use crate::base::{Error, Pgno, Result, TxId};
use crate::ltx::Level;
use crate::replica::btree::Named;
use crate::replica::pages::Place;
use crate::replica::{FileInfo, Point};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// What was changed in one table or index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// As in `sqlite_schema`: `table` or `index`. `None`: pages that belong to none, such as those of the free list.
    pub kind: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Pages of it that were changed, that it has gained or has lost.
    pub pages: u64,
    /// Rows, where they can be told: not of an index, nor of a table WITHOUT ROWID.
    pub rows: Option<RowChanges>,
}

/// Rows that were changed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RowChanges {
    /// That are there only in the later state.
    pub inserted: u64,
    /// That are there only in the earlier state.
    pub deleted: u64,
    /// That are there in both, and differ.
    pub updated: u64,
}

/// Where the pages of a state come from.
enum Image {
    Replica(ReplicaImage),
    /// Of a database that is watched here.
    Past(PastImage),
}

impl Image {
    fn page(&mut self, pgno: Pgno) -> Result<Arc<[u8]>> {
        match self {
            Image::Replica(image) => image.page(pgno),
            Image::Past(image) => image.page(pgno),
        }
    }
}

/// One of the two states.
struct Side {
    image: Image,
    pages: u32,
    form: Form,
    trees: BTreeMap<Name, Tree>,
    free: BTreeSet<Pgno>,
}

/// The pages of a state, and those that are the same in the other one and were read there.
struct Reading<'a> {
    image: &'a mut Image,
    pages: u32,
    both: &'a mut BTreeMap<Pgno, Arc<[u8]>>,
    are_same: &'a dyn Fn(Pgno) -> bool,
}

impl Pages for Reading<'_> {
    fn page(&mut self, pgno: Pgno) -> Result<Arc<[u8]>> {
        if let Some(page) = self.both.get(&pgno) {
            return Ok(page.clone());
        }
        if pgno.get() > self.pages {
            return Err(Error::corrupt(format!("page {pgno} lies outside the database")));
        }
        let page = self.image.page(pgno)?;
        if (self.are_same)(pgno) {
            self.both.insert(pgno, page.clone());
        }
        Ok(page)
    }

    fn count(&self) -> u32 {
        self.pages
    }
}

impl Side {
    /// Reads the schema and the interior pages.
    fn of(
        mut image: Image,
        view: &View,
        both: &mut BTreeMap<Pgno, Arc<[u8]>>,
        are_same: &dyn Fn(Pgno) -> bool,
    ) -> Result<Side> {
        let (pages, size) = (view.map.pages(), view.map.page_size());
        let size = size.ok_or_else(|| Error::corrupt("a state without files"))?;
        let (mut trees, mut free) = (BTreeMap::new(), BTreeSet::new());
        if pages == 0 {
            return Ok(Side { image, pages, form: Form::empty(size), trees, free });
        }
        let form = Form::of(&image.page(Pgno::ONE)?, size)?;
        let from = &mut Reading { image: &mut image, pages, both, are_same };
        let schema = form.tree(from, Pgno::ONE)?;
        let named = form.schema(from, &schema)?;
        trees.insert(("table".to_string(), "sqlite_schema".to_string()), schema);
        for Named { kind, name, root } in named {
            trees.insert((kind, name), form.tree(from, root)?);
        }
        free.extend(form.free(from)?);
        Ok(Side { image, pages, form, trees, free })
    }

    fn rows(&mut self, leaf: Pgno) -> Result<Vec<(Row, Vec<Pgno>)>> {
        let (image, pages) = (&mut self.image, self.pages);
        self.form.rows(&mut Reading { image, pages, both: &mut BTreeMap::new(), are_same: &|_| false }, leaf)
    }
}

/// What was changed from point `from` to point `to` of the replica at `url`, by name. `near`: the database, if it is watched here. Errors: `Config` where `to` is before `from`, the page
/// size differs, or the database is encrypted; as the opening of a point does; `Corrupt` where pages are no database.
pub fn changes(
    url: &ReplicaUrl,
    near: Option<Arc<dyn Nearby>>,
    from: Point,
    to: Point,
) -> Result<Vec<Change>> {
    let replica = replica::of(url)?;
    let (a, b) = (replica.view(from)?, replica.view(to)?);
    let (first, last) = (a.map.txid(), b.map.txid());
    if last < first {
        return Err(Error::config(format!(
            "TXID {} is before TXID {}: give the earlier point first",
            last, first
        )));
    }
    if a.map.page_size() != b.map.page_size() {
        return Err(Error::config(format!(
            "the page size is another one at TXID {} than at TXID {}: every page was changed",
            last, first
        )));
    }
    let may_differ = may_differ(&replica, &a, first, last)?;
    let image = |view: &Arc<View>| match &near {
        Some(near) => {
            PastImage::open(replica.clone(), near.clone(), Point::TxId(view.map.txid())).map(Image::Past)
        }
        None => Ok(Image::Replica(ReplicaImage::at(replica.clone(), view.clone()))),
    };
    let are_same = |pgno: Pgno| {
        let is_in_both = pgno.get() <= a.map.pages().min(b.map.pages());
        is_in_both && lies_elsewhere(&a, &b, pgno).is_ok_and(|elsewhere| !elsewhere)
    };
    let both = &mut BTreeMap::new();
    let mut before = Side::of(image(&a)?, &a, both, &are_same)?;
    let mut after = Side::of(image(&b)?, &b, both, &are_same)?;
    let mut changed = BTreeSet::new();
    for n in 1..=before.pages.max(after.pages) {
        let Some(pgno) = Pgno::new(n) else { break };
        let is_in_one = n > before.pages || n > after.pages;
        let may = may_differ.as_ref().is_none_or(|m| m.has(pgno));
        if is_in_one
            || (may && lies_elsewhere(&a, &b, pgno)? && before.image.page(pgno)? != after.image.page(pgno)?)
        {
            changed.insert(pgno);
        }
    }
    tell(&changed, &mut before, &mut after)
}

/// Pages that the files between two states hold; `None` where that cannot be told. I-DIFF-1.
fn may_differ(replica: &Arc<Replica>, a: &View, from: TxId, to: TxId) -> Result<Option<PageSet>> {
    let way = replica.way(Point::TxId(to))?;
    let tells = |f: &&FileInfo| f.level != Level::SNAPSHOT && f.min > TxId(1) && f.max > from;
    let files: Vec<FileInfo> = way.found.inventory.files.iter().filter(tells).cloned().collect();
    let spans: Vec<Span> = files.iter().map(|f| Span { min: f.min, max: f.max, is_near: false }).collect();
    let Some(chosen) = cover(from, to, &spans) else { return Ok(None) };
    let chosen = chosen.into_iter().filter_map(|n| files.get(n).cloned()).collect();
    // (One that is gone by now tells nothing; then all pages are compared that may differ.)
    let Ok(read) = replica.contents(&way, chosen, None) else { return Ok(None) };
    let mut attested = a.map.files().last().and_then(|f| f.header.attest).map(|h| h.after);
    for file in &read {
        let is_next = file.header.min > from;
        if file.header.lineage != a.map.lineage()
            || (is_next && file.header.attest.map(|h| h.before) != attested)
        {
            return Ok(None);
        }
        attested = file.header.attest.map(|h| h.after);
    }
    let mut told = PageSet::new(read.iter().map(|f| f.header.commit).max().unwrap_or(0));
    read.iter().flat_map(|f| f.index.pages()).for_each(|p| told.add(p));
    Ok(Some(told))
}

fn lies_elsewhere(a: &View, b: &View, pgno: Pgno) -> Result<bool> {
    let at = |v: &View| -> Result<Option<u64>> {
        Ok(match v.map.place(pgno)? {
            Place::Nowhere => None,
            Place::In(file) => v.numbers.get(file).copied(),
        })
    };
    Ok(at(a)? != at(b)?)
}

/// Name and kind of a table or index.
type Name = (String, String);

/// What was found of one of them.
#[derive(Default)]
struct Found {
    pages: BTreeSet<Pgno>,
    rows: Option<RowChanges>,
}

/// Tells of each changed page what it belongs to.
fn tell(changed: &BTreeSet<Pgno>, before: &mut Side, after: &mut Side) -> Result<Vec<Change>> {
    let (was, is) = (std::mem::take(&mut before.trees), std::mem::take(&mut after.trees));
    let names: BTreeSet<&Name> = was.keys().chain(is.keys()).collect();
    let mut found: BTreeMap<&Name, Found> = BTreeMap::new();
    for name in names {
        let (was, is) = (was.get(name), is.get(name));
        let trees = [was, is].into_iter().flatten();
        let of_trees = trees.clone().flat_map(|t| t.interior.iter().chain(&t.leaves));
        let mut of = Found { pages: of_trees.filter(|p| changed.contains(p)).copied().collect(), rows: None };
        if trees.clone().all(|t| t.kind == Kind::Table) {
            let shared = shared(changed, was, is);
            let (mut a, mut b) = (Rows::of(was, &shared), Rows::of(is, &shared));
            of.rows = Some(compare(|| a.next(before), || b.next(after))?);
            of.pages.extend(a.beside.iter().chain(&b.beside).filter(|p| changed.contains(p)));
        }
        found.insert(name, of);
    }
    let counted: BTreeSet<Pgno> = found.values().flat_map(|f| &f.pages).copied().collect();
    let mut left: BTreeSet<Pgno> = changed.difference(&counted).copied().collect();
    let free: BTreeSet<Pgno> = before.free.union(&after.free).copied().collect();
    let is_map = |p: &Pgno| before.form.is_pointer_map(*p) || after.form.is_pointer_map(*p);
    let mut beside: BTreeSet<Pgno> =
        left.iter().filter(|p| !free.contains(p) && !is_map(p)).copied().collect();
    for (name, of) in &mut found {
        let Some(rows) = &mut of.rows else { continue };
        // I-DIFF-3.
        for leaf in shared(changed, was.get(*name), is.get(*name)) {
            if beside.is_empty() {
                break;
            }
            for (_, pages) in after.rows(leaf)? {
                let pages: Vec<Pgno> = pages.into_iter().filter(|p| beside.contains(p)).collect();
                rows.updated += u64::from(!pages.is_empty());
                for page in pages {
                    beside.remove(&page);
                    left.remove(&page);
                    of.pages.insert(page);
                }
            }
        }
    }
    let some = |f: &Found| !f.pages.is_empty() || f.rows.is_some_and(|r| r != RowChanges::default());
    let named = found.into_iter().filter(|(_, f)| some(f)).map(|((kind, name), f)| Change {
        kind: Some(kind.clone()),
        name: Some(name.clone()),
        pages: f.pages.len() as u64,
        rows: f.rows,
    });
    let mut all: Vec<Change> = named.collect();
    if !left.is_empty() {
        all.push(Change { kind: None, name: None, pages: left.len() as u64, rows: None });
    }
    Ok(all)
}

/// Leaves that both trees have, and that were not changed: their rows are the same.
fn shared(changed: &BTreeSet<Pgno>, was: Option<&Tree>, is: Option<&Tree>) -> BTreeSet<Pgno> {
    let (Some(was), Some(is)) = (was, is) else { return BTreeSet::new() };
    let was: BTreeSet<Pgno> = was.leaves.iter().copied().collect();
    is.leaves.iter().filter(|p| was.contains(p) && !changed.contains(p)).copied().collect()
}

/// The rows of some leaves of a table, one after the other, and the pages beside them that were read.
struct Rows {
    leaves: VecDeque<Pgno>,
    rows: VecDeque<(Row, Vec<Pgno>)>,
    beside: BTreeSet<Pgno>,
}

impl Rows {
    /// Of all leaves but the `shared` ones.
    fn of(tree: Option<&Tree>, shared: &BTreeSet<Pgno>) -> Rows {
        let leaves =
            tree.map_or(&[][..], |t| &t.leaves).iter().filter(|p| !shared.contains(p)).copied().collect();
        Rows { leaves, rows: VecDeque::new(), beside: BTreeSet::new() }
    }

    fn next(&mut self, side: &mut Side) -> Result<Option<Row>> {
        loop {
            if let Some((row, beside)) = self.rows.pop_front() {
                self.beside.extend(beside);
                return Ok(Some(row));
            }
            let Some(leaf) = self.leaves.pop_front() else { return Ok(None) };
            self.rows = side.rows(leaf)?.into();
        }
    }
}

/// What two runs of rows, each ascending by rowid, differ in. Errors as they do.
fn compare(
    mut was: impl FnMut() -> Result<Option<Row>>,
    mut is: impl FnMut() -> Result<Option<Row>>,
) -> Result<RowChanges> {
    let mut told = RowChanges::default();
    let (mut a, mut b) = (was()?, is()?);
    loop {
        let order = match (a, b) {
            (None, None) => return Ok(told),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => {
                told.updated += u64::from(x.rowid == y.rowid && x.hash != y.hash);
                x.rowid.cmp(&y.rowid)
            }
        };
        told.deleted += u64::from(order == Ordering::Less);
        told.inserted += u64::from(order == Ordering::Greater);
        if order != Ordering::Greater {
            a = was()?;
        }
        if order != Ordering::Less {
            b = is()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_apart_by_their_rowid_and_content() {
        let run = |rows: &[(i64, u64)]| {
            let mut rows: VecDeque<Row> =
                rows.iter().map(|(rowid, hash)| Row { rowid: *rowid, hash: *hash }).collect();
            move || Ok(rows.pop_front())
        };
        for (a, b, (inserted, deleted, updated)) in [
            (&[][..], &[][..], (0, 0, 0)),
            (&[(1, 1), (2, 2)], &[(1, 1), (2, 2)], (0, 0, 0)),
            (&[(1, 1), (2, 2)], &[(1, 1), (2, 3)], (0, 0, 1)),
            (&[], &[(-5, 1), (9, 1)], (2, 0, 0)),
            (&[(-5, 1), (9, 1)], &[], (0, 2, 0)),
            (&[(1, 1), (3, 3), (5, 5)], &[(2, 1), (3, 4), (6, 5), (7, 7)], (3, 2, 1)),
        ] {
            let told = compare(run(a), run(b)).unwrap();
            assert_eq!(told, RowChanges { inserted, deleted, updated }, "{a:?} {b:?}");
        }
    }
}
