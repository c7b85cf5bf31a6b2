//! Where each page of the database at a TXID lies: a plan's files and their page indexes in, a file and a range out. Pure.
//!
//! Rules
//! * I-PAGE-1 A page is that of the last file of the plan that holds it, as a restore writes it: later files over earlier ones.
//! * I-PAGE-2 Files are put together only where a restore would: same page size, no TXID left out, database checksums that follow
//!   each other where two neighbours attest them, and growth that brings its pages with it.
//! * I-PAGE-3 Beyond the size after a file, nothing of it or of an earlier one is the database's: what a database lost by shrinking
//!   does not come again when it grows.

use super::apply::added_pages;
use super::contents::Contents;
use crate::base::{Error, Lineage, PageSize, Pgno, Result, TxId};
use std::sync::Arc;

/// A database at a TXID, page by page. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PageMap {
    /// Oldest first.
    files: Arc<[Arc<Contents>]>,
}

/// Where a page lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In no file: all of it is zero.
    Nowhere,
    /// In this file of the map.
    In(usize),
}

impl PageMap {
    /// Of the files of a plan, oldest first. Errors with `Corrupt` where they do not follow each other (I-PAGE-2).
    pub fn new(files: Vec<Arc<Contents>>) -> Result<PageMap> {
        match files.first() {
            Some(first) if first.header.is_snapshot() => {}
            _ => return Err(Error::corrupt("a database cannot be read from a file that is no full copy")),
        }
        for pair in files.windows(2) {
            if let [before, next] = pair {
                follows(before, next).map_err(|e| e.context(next.id))?;
            }
        }
        Ok(PageMap { files: files.into() })
    }

    /// With files that follow. Errors as [`PageMap::new`].
    pub fn with(&self, more: Vec<Arc<Contents>>) -> Result<PageMap> {
        PageMap::new(self.files.iter().cloned().chain(more).collect())
    }

    /// Its files, oldest first.
    pub fn files(&self) -> &[Arc<Contents>] {
        &self.files
    }

    /// The last file; there is one.
    fn last(&self) -> Option<&Contents> {
        self.files.last().map(|f| &**f)
    }

    /// The TXID of the state.
    pub fn txid(&self) -> TxId {
        self.last().map_or(TxId::ZERO, |f| f.header.max)
    }

    /// The history that the state belongs to.
    pub fn lineage(&self) -> Lineage {
        self.last().map_or(Lineage(0), |f| f.header.lineage)
    }

    /// Page size of the database.
    pub fn page_size(&self) -> Option<PageSize> {
        self.last().map(|f| f.header.page_size)
    }

    /// Size of the database in pages.
    pub fn pages(&self) -> u32 {
        self.last().map_or(0, |f| f.header.commit)
    }

    /// Where page `pgno` lies. Errors with `Corrupt` for one that the database has and no file holds.
    pub fn place(&self, pgno: Pgno) -> Result<Place> {
        if self.page_size().is_none_or(|size| size.lock_page() == pgno) {
            return Ok(Place::Nowhere);
        }
        for (n, file) in self.files.iter().enumerate().rev() {
            if pgno.get() > file.header.commit {
                break;
            }
            if file.index.has(pgno) {
                return Ok(Place::In(n));
            }
        }
        Err(Error::corrupt(format!("no file of the replica holds page {pgno} of TXID {}", self.txid())))
    }
}

/// I-PAGE-2.
fn follows(before: &Contents, next: &Contents) -> Result<()> {
    let (b, n) = (&before.header, &next.header);
    if b.page_size != n.page_size {
        let (was, is) = (b.page_size.get(), n.page_size.get());
        return Err(Error::corrupt(format!("page size {is} after {was}: a file of another history")));
    }
    if n.min > b.max.next() || n.max <= b.max {
        return Err(Error::corrupt(format!("it does not continue TXID {}", b.max)));
    }
    if let (Some(was), Some(is)) = (b.attest, n.attest)
        && n.min == b.max.next()
        && is.before != crate::base::DbChecksum::EMPTY
        && is.before != was.after
    {
        return Err(Error::corrupt(format!(
            "it continues a database with checksum {}, not {}: a file of another history",
            is.before, was.after
        )));
    }
    if next.index.beyond(b.commit) < added_pages(b.commit, n.commit, n.page_size) as usize {
        return Err(Error::corrupt(format!(
            "it grows the database from {} to {} pages without holding all of them",
            b.commit, n.commit
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::inventory::Inventory;
    use crate::replica::plan::plan;
    use crate::replica::point::Point;
    use crate::replica::testkit::*;
    use crate::store::Store;

    /// The whole database as the map has it.
    fn image(store: &Store, map: &PageMap) -> Vec<u8> {
        let size = map.page_size().unwrap();
        let in_file = |contents: &Contents, pgno| match contents.blocks_of(pgno) {
            None => contents.at_hand(pgno).unwrap().unwrap(),
            Some(blocks) => {
                let fetched = block(contents.fetch(store, blocks)).unwrap();
                let all: Vec<u8> = fetched.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
                contents.page_of(pgno, fetched[0].0, &all).unwrap()
            }
        };
        let page = |n| match map.place(Pgno::new(n).unwrap()).unwrap() {
            Place::Nowhere => vec![0; size.len()],
            Place::In(file) => in_file(&map.files()[file], Pgno::new(n).unwrap()),
        };
        (1..=map.pages()).flat_map(page).collect()
    }

    #[test]
    fn every_page_of_every_state_is_that_of_its_image() {
        for (size, steps) in [(512, 30), (4096, 20), (65536, 8)] {
            let (store, mut maker) = (Store::in_memory(), Maker::new(size));
            let files = history(&mut maker, steps);
            block(upload(&store, &files));
            let (inventory, manifest) = block(Inventory::read_with_manifest(&store)).unwrap();
            let mut seen = 0;
            for (txid, expected) in &maker.images {
                let Ok(way) = plan(&inventory.files, Point::TxId(*txid), maker.time) else { continue };
                let read = |f| block(Contents::read(&store, f, manifest.get(f.id()), None)).unwrap();
                let map = PageMap::new(way.files.iter().map(|f| Arc::new(read(f))).collect()).unwrap();
                assert_eq!((map.txid(), map.files().len()), (*txid, way.files.len()));
                assert!(image(&store, &map) == *expected, "page size {size}, TXID {}", txid.0);
                seen += 1;
            }
            assert!(seen >= steps, "{seen}");
        }
    }

    #[test]
    fn files_that_do_not_follow_each_other_are_refused() {
        let mut maker = Maker::new(1024);
        let files = history(&mut maker, 6);
        let mut other = Maker::new(1024);
        // The same beginning, then something else.
        let theirs = [other.snapshot(), other.step(9), other.step(8)];
        let contents = |f: &LtxFile| {
            Arc::new(crate::replica::contents::whole(f.id, f.bytes.clone().into(), None).unwrap())
        };
        let l0 = |of: &[LtxFile], n: u64| {
            contents(of.iter().find(|f| f.id.level.get() == 0 && f.id.max == TxId(n)).unwrap())
        };
        let base = contents(files.iter().find(|f| f.id.min == TxId(1)).unwrap());
        let next = base.header.max.0 + 1;
        assert!(PageMap::new(vec![]).is_err());
        assert!(PageMap::new(vec![l0(&files, next)]).unwrap_err().is_corrupt(), "no full copy");
        assert!(PageMap::new(vec![base.clone(), l0(&files, next)]).is_ok());
        assert!(PageMap::new(vec![base.clone(), l0(&files, next + 1)]).unwrap_err().is_corrupt(), "a hole");
        let e = PageMap::new(vec![base, l0(&files, next), l0(&theirs, next + 1)]).unwrap_err();
        assert!(e.is_corrupt() && e.to_string().contains("another history"), "{e}");
    }
}
