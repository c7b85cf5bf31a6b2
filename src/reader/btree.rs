//! As much of SQLite's file format as tells which page belongs to which table, and which rows lie in it
//! (<https://sqlite.org/fileformat2.html#b_tree_pages>). Pure over whoever gives the pages; what is no such page is an error, whatever
//! its bytes are.

use crate::base::{Error, PageSize, Pgno, Result};
use crate::replica::btree::{Named, Node, number, odd, schema_row, varint};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

/// Deeper trees do not exist: each level has at least two children a page, and there are fewer than 2^32 pages.
const DEEPEST: usize = 40;

/// A database that gives its pages.
pub(super) trait Pages {
    /// A page, whole. Errors where it cannot be had.
    fn page(&mut self, pgno: Pgno) -> Result<Arc<[u8]>>;
    /// How many there are.
    fn count(&self) -> u32;
}

/// What a b-tree is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Rows by their rowid.
    Table,
    /// Entries by their content: an index, or a table WITHOUT ROWID.
    Index,
}

/// The pages of one b-tree.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) kind: Kind,
    pub(super) interior: Vec<Pgno>,
    /// In the order of their rows.
    pub(super) leaves: Vec<Pgno>,
}

/// One row of a table: its rowid, and a hash of its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) rowid: i64,
    pub(super) hash: u64,
}

/// The size of a page, and the part of it that is the b-tree's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    usable: usize,
    /// Whether some pages say where others belong (`auto_vacuum`).
    has_maps: bool,
}

impl Form {
    /// By the first page. Errors with `Config` where that is not SQLite's: the database is encrypted.
    pub(super) fn of(first: &[u8], size: PageSize) -> Result<Form> {
        let reserved = match (first.starts_with(b"SQLite format 3\0"), first.get(20)) {
            (true, Some(n)) => usize::from(*n),
            _ => {
                return Err(Error::config(
                    "the database is encrypted: which table a page belongs to cannot be told",
                ));
            }
        };
        let has_maps = first.get(52..56).and_then(number).is_some_and(|n| n != 0);
        Ok(Form { usable: size.len().saturating_sub(reserved), has_maps })
    }

    /// Of a database without pages.
    pub(super) fn empty(size: PageSize) -> Form {
        Form { usable: size.len(), has_maps: false }
    }

    /// Whether the page says where others belong (<https://sqlite.org/fileformat2.html#pointer_map_or_ptrmap_pages>).
    pub(super) fn is_pointer_map(self, pgno: Pgno) -> bool {
        self.has_maps && pgno.get() >= 2 && (pgno.get() as usize - 2).is_multiple_of(self.usable / 5 + 1)
    }

    /// The pages of the b-tree at `root`. Errors with `Corrupt`, and as `pages` does.
    pub(super) fn tree(self, pages: &mut dyn Pages, root: Pgno) -> Result<Tree> {
        let kind = match Node::of(&pages.page(root)?, root)?.flag {
            5 | 13 => Kind::Table,
            _ => Kind::Index,
        };
        // All leaves lie equally deep: the first way down tells how deep.
        let (mut depth, mut at) = (0, root);
        loop {
            let page = pages.page(at)?;
            let node = Node::of(&page, at)?;
            match node.children(&page, at)?.first() {
                _ if node.is_leaf() => break,
                Some(child) if depth < DEEPEST => at = *child,
                _ => return Err(odd(at, "it is too deep")),
            }
            depth += 1;
        }
        let (mut tree, mut level, mut seen) =
            (Tree { kind, interior: Vec::new(), leaves: Vec::new() }, vec![root], BTreeSet::new());
        for _ in 0..depth {
            let mut below = Vec::new();
            for pgno in level {
                let page = pages.page(pgno)?;
                let node = Node::of(&page, pgno)?;
                if node.is_leaf() || !seen.insert(pgno) {
                    return Err(odd(pgno, "it is not where it should be"));
                }
                below.extend(node.children(&page, pgno)?);
                tree.interior.push(pgno);
            }
            if below.len() > pages.count() as usize {
                return Err(odd(root, "it has more pages than the database"));
            }
            level = below;
        }
        tree.leaves = level;
        Ok(tree)
    }

    /// The tables and indexes of the schema that have pages. Errors with `Corrupt`, and as `pages` does.
    pub(super) fn schema(self, pages: &mut dyn Pages, tree: &Tree) -> Result<Vec<Named>> {
        let mut named = Vec::new();
        for leaf in &tree.leaves {
            let page = pages.page(*leaf)?;
            for cell in Node::of(&page, *leaf)?.cells(&page, *leaf)? {
                let (_, payload, _) = self.row(pages, &page, cell, *leaf)?;
                named.extend(schema_row(&payload));
            }
        }
        Ok(named)
    }

    /// The rows of a leaf of a table, and the pages beside it that they go on in. Errors with `Corrupt`, and as `pages` does.
    pub(super) fn rows(self, pages: &mut dyn Pages, leaf: Pgno) -> Result<Vec<(Row, Vec<Pgno>)>> {
        let page = pages.page(leaf)?;
        let node = Node::of(&page, leaf)?;
        if node.flag != 13 {
            return Err(odd(leaf, "it is no leaf of a table"));
        }
        let mut rows = Vec::new();
        for cell in node.cells(&page, leaf)? {
            let (rowid, payload, beside) = self.row(pages, &page, cell, leaf)?;
            let mut hasher = DefaultHasher::new();
            hasher.write(&payload);
            rows.push((Row { rowid, hash: hasher.finish() }, beside));
        }
        Ok(rows)
    }

    /// A cell of a leaf of a table: the rowid, all of the row, and the pages that it goes on in.
    fn row(
        self,
        pages: &mut dyn Pages,
        page: &[u8],
        cell: usize,
        leaf: Pgno,
    ) -> Result<(i64, Vec<u8>, Vec<Pgno>)> {
        let short = || odd(leaf, "a row ends outside");
        let mut rest = page.get(cell..).ok_or_else(short)?;
        let total = usize::try_from(varint(&mut rest).ok_or_else(short)?).map_err(|_| short())?;
        let rowid = varint(&mut rest).ok_or_else(short)? as i64;
        if total > pages.count() as usize * page.len() {
            return Err(short());
        }
        let here = self.local(total);
        let mut payload = rest.get(..here).ok_or_else(short)?.to_vec();
        let mut beside = Vec::new();
        let mut next = rest.get(here..here + 4).filter(|_| here < total).and_then(number);
        while payload.len() < total {
            let pgno = next.and_then(Pgno::new).filter(|p| p.get() <= pages.count()).ok_or_else(short)?;
            let more = pages.page(pgno)?;
            let part = more.get(4..self.usable).ok_or_else(short)?;
            payload.extend(part.iter().take(total - payload.len()));
            beside.push(pgno);
            next = more.get(..4).and_then(number);
        }
        Ok((rowid, payload, beside))
    }

    /// How much of a row of `total` bytes lies in its leaf.
    fn local(self, total: usize) -> usize {
        let usable = self.usable;
        if total <= usable.saturating_sub(35) {
            return total;
        }
        let least = (usable.saturating_sub(12) * 32 / 255).saturating_sub(23);
        let fits = least + (total.saturating_sub(least)) % usable.saturating_sub(4).max(1);
        if fits <= usable.saturating_sub(35) { fits } else { least }
    }

    /// The pages that no b-tree uses: the free list, by its trunks. Errors with `Corrupt`, and as `pages` does.
    pub(super) fn free(self, pages: &mut dyn Pages) -> Result<BTreeSet<Pgno>> {
        let first = pages.page(Pgno::ONE)?;
        let mut next = first.get(32..36).and_then(number).and_then(Pgno::new);
        let mut free = BTreeSet::new();
        while let Some(trunk) = next {
            if trunk.get() > pages.count() || !free.insert(trunk) {
                return Err(odd(trunk, "the free list is broken"));
            }
            let page = pages.page(trunk)?;
            let count = page.get(4..8).and_then(number).unwrap_or(0) as usize;
            let leaves = page.get(8..self.usable).unwrap_or_default().chunks_exact(4).take(count);
            free.extend(leaves.filter_map(number).filter_map(Pgno::new));
            next = page.get(..4).and_then(number).and_then(Pgno::new);
        }
        Ok(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_of_a_row_lies_in_its_leaf() {
        let form = Form { usable: 4096, has_maps: true };
        // (As `sqlite3BtreeParseCellPtr` has it: maxLocal 4061, minLocal 489.)
        for (total, here) in
            [(1, 1), (4061, 4061), (4062, 489), (4581, 489), (4582, 490), (8153, 4061), (8154, 489)]
        {
            assert_eq!(form.local(total), here, "{total}");
        }
        let maps: Vec<u32> = (1..2000).filter(|n| form.is_pointer_map(Pgno::new(*n).unwrap())).collect();
        assert_eq!(maps, [2, 822, 1642]);
    }

    struct Noise(u32);

    impl Pages for Noise {
        fn page(&mut self, pgno: Pgno) -> Result<Arc<[u8]>> {
            let mut seed = u64::from(self.0) << 32 | u64::from(pgno.get());
            let mut next = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) as u8
            };
            let mut page: Vec<u8> = (0..512).map(|_| next()).collect();
            let start = if pgno == Pgno::ONE { 100 } else { 0 };
            page[start] = [2, 5, 10, 13][usize::from(page[start] % 4)];
            page[start + 3] = 0;
            page[start + 4] %= 40;
            if pgno == Pgno::ONE {
                page[..16].copy_from_slice(b"SQLite format 3\0");
                page[20] = 0;
            }
            Ok(page.into())
        }

        fn count(&self) -> u32 {
            300
        }
    }

    #[test]
    fn whatever_the_bytes_are_it_ends() {
        for seed in 0..2000 {
            let mut noise = Noise(seed);
            let form = Form::of(&noise.page(Pgno::ONE).unwrap(), PageSize::new(512).unwrap()).unwrap();
            let _ = form.free(&mut noise);
            for root in 1..4 {
                let Ok(tree) = form.tree(&mut noise, Pgno::new(root).unwrap()) else { continue };
                let _ = form.schema(&mut noise, &tree);
                tree.leaves.iter().take(20).for_each(|leaf| drop(form.rows(&mut noise, *leaf)));
            }
        }
    }
}
