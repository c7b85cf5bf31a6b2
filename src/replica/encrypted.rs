//! Whether a rebuilt database file is one that SQLite cannot read without a key.
//!
//! Ciphers differ in what they leave readable: nothing, the bytes 16 to 23, or the first 32 bytes. All of them make noise of the rest of
//! the first page, which in a database in the clear holds the schema's text and much empty space. So noise is what is looked for,
//! and not a missing `SQLite format 3`: a first page of zeros is damage.

use crate::base::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// SQLite's smallest page, so all of it is the first page.
const HEAD: usize = 512;
/// Here the cipher begins at the latest.
const CLEAR: usize = 32;
/// Different byte values in the rest of [`HEAD`] from which on it is noise. Noise has 217 on average, and fewer than 185 less often than
/// once in 10^9; text and b-tree pages have fewer than 110.
const NOISE: usize = 160;

/// Whether a file that begins so is encrypted. Pure.
pub fn is_noise(head: &[u8]) -> bool {
    let Some(rest) = head.get(CLEAR..HEAD) else { return false };
    let mut seen = [false; 256];
    rest.iter().for_each(|b| {
        if let Some(s) = seen.get_mut(usize::from(*b)) {
            *s = true;
        }
    });
    let values = seen.iter().filter(|s| **s).count();
    // A page that says that it is in the clear is damaged if it is not, unless it keeps room for what a cipher adds to each page.
    let in_the_clear = head.starts_with(b"SQLite format 3\0") && head.get(20) == Some(&0);
    values >= NOISE && !in_the_clear
}

/// Whether the database file at `path` is encrypted. Errors with [`crate::base::Kind::Io`].
pub fn is_encrypted(path: &Path) -> Result<bool> {
    let mut head = Vec::with_capacity(HEAD);
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    file.take(HEAD as u64).read_to_end(&mut head).map_err(|e| Error::io("read", path, e))?;
    Ok(is_noise(&head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    fn noise() -> Vec<u8> {
        (0..HEAD / 8).flat_map(|_| clock::random_u64().to_le_bytes()).collect()
    }

    #[test]
    fn noise_is_encrypted_and_damage_is_not() {
        let clear = b"SQLite format 3\0\x10\0\x02\x02\0\x40\x20\x20";
        let with = |bytes: &[u8], reserved: u8| {
            let mut head = noise();
            head[..bytes.len()].copy_from_slice(bytes);
            if bytes.len() > 20 {
                head[20] = reserved;
            }
            head
        };
        let words: Vec<u8> = b"CREATE TABLE items(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL);"
            .iter()
            .copied()
            .cycle()
            .take(HEAD)
            .collect();
        let table: [(&str, Vec<u8>, bool); 9] = [
            ("nothing readable", noise(), true),
            ("bytes 16 to 23 readable", [&noise()[..16], &clear[16..], &noise()[24..]].concat(), true),
            ("32 bytes readable, room for a cipher", with(clear, 80), true),
            ("says that it is in the clear, and is garbage", with(clear, 0), false),
            ("zeros", vec![0; HEAD], false),
            ("text", words, false),
            ("no database", b"hello".to_vec(), false),
            ("nothing", Vec::new(), false),
            ("a database that lost its first bytes", [vec![0xff; 100], vec![0; 412]].concat(), false),
        ];
        for (what, head, expected) in table {
            for _ in 0..3 {
                assert_eq!(is_noise(&head), expected, "{what}");
            }
        }
        assert!((0..1000).all(|_| is_noise(&noise())));
    }
}
