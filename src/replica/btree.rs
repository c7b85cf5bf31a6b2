//! As much of SQLite's file format as tells what lies below a page of a b-tree, and where the trees of a database begin
//! (<https://sqlite.org/fileformat2.html#b_tree_pages>). Pure; what is no such page is an error, whatever its bytes are.

use crate::base::{Error, Pgno, Result};

/// What is said of a page that is none of a b-tree.
pub fn odd(pgno: Pgno, what: &str) -> Error {
    Error::corrupt(format!("page {pgno} is no page of a b-tree: {what}"))
}

/// What a schema names: a table or an index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// `table` or `index`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The first page of its b-tree.
    pub root: Pgno,
}

/// The header of a page of a b-tree.
pub struct Node {
    /// What it is: 2 and 10 of an index, 5 and 13 of a table; the greater one is a leaf.
    pub flag: u8,
    header: usize,
    cells: usize,
}

impl Node {
    /// Of a page. Errors with `Corrupt` for one that is none of a b-tree.
    pub fn of(page: &[u8], pgno: Pgno) -> Result<Node> {
        let header = if pgno == Pgno::ONE { 100 } else { 0 };
        let flag = page.get(header).copied().unwrap_or(0);
        let cells =
            page.get(header + 3..header + 5).map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]));
        if !matches!(flag, 2 | 5 | 10 | 13) || cells * 2 > page.len() {
            return Err(odd(pgno, "its header"));
        }
        Ok(Node { flag, header, cells })
    }

    /// Whether nothing lies below it.
    pub fn is_leaf(&self) -> bool {
        self.flag >= 10
    }

    /// Where the cells lie, in the order of their keys. Errors with `Corrupt`.
    pub fn cells(&self, page: &[u8], pgno: Pgno) -> Result<Vec<usize>> {
        let start = self.header + if self.is_leaf() { 8 } else { 12 };
        let all = page.get(start..start + self.cells * 2).ok_or_else(|| odd(pgno, "its cells"))?;
        Ok(all.chunks_exact(2).map(|b| b.iter().fold(0, |n, b| n << 8 | usize::from(*b))).collect())
    }

    /// The pages below it, in order; none of a leaf. Errors with `Corrupt`.
    pub fn children(&self, page: &[u8], pgno: Pgno) -> Result<Vec<Pgno>> {
        if self.is_leaf() {
            return Ok(Vec::new());
        }
        let child = |at: usize| {
            page.get(at..at + 4).and_then(number).and_then(Pgno::new).ok_or_else(|| odd(pgno, "a child"))
        };
        let mut all = self.cells(page, pgno)?.into_iter().map(child).collect::<Result<Vec<Pgno>>>()?;
        all.push(child(self.header + 8)?);
        Ok(all)
    }
}

/// A number of four bytes.
pub fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}

/// A variable-length integer, taken off `rest` (<https://sqlite.org/fileformat2.html#varint>).
pub fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for i in 0..9 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        if i == 8 {
            return Some(n << 8 | u64::from(*byte));
        }
        n = n << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// A row of the schema (`type, name, tbl_name, rootpage, sql`), if it is of something that has pages.
pub fn schema_row(record: &[u8]) -> Option<Named> {
    let mut rest = record;
    let header = usize::try_from(varint(&mut rest)?).ok()?;
    let mut types = record.get(record.len() - rest.len()..header)?;
    let mut body = record.get(header..)?;
    let mut column = || {
        let t = varint(&mut types)?;
        let len = match t {
            0..=4 => usize::try_from(t).ok()?,
            5 => 6,
            6 | 7 => 8,
            8..=11 => 0,
            n => usize::try_from((n - 12) / 2).ok()?,
        };
        let (value, after) = body.split_at_checked(len)?;
        body = after;
        Some((t, value))
    };
    let (kind, name, _) = (column()?, column()?, column()?);
    let (t, root) = column()?;
    let root = match t {
        9 => 1,
        1..=6 => root.iter().fold(0u64, |n, b| n << 8 | u64::from(*b)),
        _ => 0,
    };
    let text = |v: (u64, &[u8])| String::from_utf8_lossy(v.1).into_owned();
    Some(Named { kind: text(kind), name: text(name), root: Pgno::new(u32::try_from(root).ok()?)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length() {
        for (bytes, n, left) in [
            (&[0x00][..], 0u64, 0),
            (&[0x7f, 9], 127, 1),
            (&[0x81, 0x00], 128, 0),
            (&[0x82, 0x80, 0x00], 32768, 0),
            (&[0xff; 9], u64::MAX, 0),
        ] {
            let mut rest = bytes;
            assert_eq!((varint(&mut rest), rest.len()), (Some(n), left), "{bytes:?}");
        }
        for short in [&[][..], &[0x80], &[0xff; 8]] {
            assert_eq!(varint(&mut { short }), None);
        }
    }
}
