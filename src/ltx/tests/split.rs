//! A file that is cut between its pages and unpacked in parts is what the strict reader says it is.

use super::*;
use bytes::Bytes;

#[derive(Default)]
struct Kept {
    size: usize,
    pages: Pages,
    page: Vec<u8>,
}

impl Sink for Kept {
    fn place(&mut self, _: Pgno) -> Result<&mut [u8]> {
        self.page = vec![0; self.size];
        Ok(&mut self.page)
    }

    fn placed(&mut self, pgno: Pgno) -> Result<()> {
        self.pages.insert(pgno.get(), std::mem::take(&mut self.page));
        Ok(())
    }
}

/// Reads a file in pieces of the lengths that `length` gives; its batches are unpacked last to first.
fn split(file: &[u8], mut length: impl FnMut() -> usize) -> Result<(Header, Pages, Trailer)> {
    let (mut splitter, mut batches, mut rest) =
        (Splitter::default(), Vec::new(), Bytes::copy_from_slice(file));
    while !rest.is_empty() {
        let piece = rest.split_to(length().clamp(1, rest.len()));
        batches.extend(splitter.push(&piece)?);
    }
    let mut kept = Kept::default();
    let mut parts = Vec::new();
    for batch in batches.iter().rev() {
        kept.size = batch.page_size().len();
        parts.push(batch.unpack(&mut kept)?);
    }
    let mut all = Unpacked::default();
    parts.iter().rev().for_each(|p| all.append(p));
    let (header, trailer) = splitter.finish(&all)?;
    Ok((header, kept.pages, trailer))
}

fn lengths(mut seed: u64, most: usize) -> impl FnMut() -> usize {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (seed >> 33) as usize % most
    }
}

fn files() -> Vec<Vec<u8>> {
    let pages: Pages = (1..=9).map(|n| (n, content(512, u64::from(n)))).collect();
    let mut snapshot = header(512, 9, 1, 4);
    snapshot.attest = Some(Attest { before: DbChecksum::EMPTY, after: db_checksum(&pages) });
    let some: Pages = pages.iter().filter(|(n, _)| **n % 3 == 0).map(|(n, p)| (*n, p.clone())).collect();
    let own = [encode(&snapshot, &pages).unwrap(), encode(&header(512, 9, 5, 5), &some).unwrap()];
    vectors::ALL.into_iter().map(<[u8]>::to_vec).chain(own).collect()
}

#[test]
fn pieces_of_any_length_give_the_same_pages() {
    for file in files() {
        let whole = decode(&file).unwrap();
        for most in [1, 2, 7, 100, 5000, file.len()] {
            for seed in 0..5 {
                assert!(split(&file, lengths(seed, most)).unwrap() == whole, "pieces of {most} at the most");
            }
        }
    }
}

#[test]
fn what_the_strict_reader_refuses_is_refused() {
    for (n, file) in files().into_iter().enumerate() {
        for cut in 0..file.len() {
            assert!(
                split(&file[..cut], lengths(cut as u64, 300)).unwrap_err().is_corrupt(),
                "file {n}, cut to {cut}"
            );
        }
        let mut longer = file.clone();
        longer.push(0);
        assert!(split(&longer, lengths(1, 300)).unwrap_err().is_corrupt());
        for bit in 0..file.len() * 8 {
            let mut bytes = file.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (strict, found) = (decode(&bytes), split(&bytes, lengths(bit as u64, 300)));
            match (strict, found) {
                (Ok(a), Ok(b)) => assert!(a == b, "file {n}, bit {bit}"),
                (Err(a), Err(b)) => assert!(a.is_corrupt() && b.is_corrupt(), "file {n}, bit {bit}: {a} {b}"),
                (a, b) => panic!("file {n}, bit {bit}: {} and {}", a.is_ok(), b.is_ok()),
            }
        }
    }
}
