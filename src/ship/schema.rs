//! Which schema a file of the stream has: page 1 tells it, by the schema cookie of the database header
//! (<https://sqlite.org/fileformat2.html#schema_cookie>). Of a file without page 1, and of an encrypted database, nothing is known.

use crate::ltx::Decoder;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const COOKIE: std::ops::Range<usize> = 40..44;

/// The schema cookie in the file at `path`.
pub fn schema_cookie(path: &Path) -> Option<u32> {
    let mut decoder = Decoder::new(BufReader::with_capacity(8 << 10, File::open(path).ok()?)).ok()?;
    let mut page = vec![0; decoder.header().page_size.len()];
    let pgno = decoder.next_page(&mut page).ok()??;
    if pgno.get() != 1 || !page.starts_with(MAGIC) {
        return None;
    }
    Some(u32::from_be_bytes(page.get(COOKIE)?.try_into().ok()?))
}
