//! Truncation, bit flips and random mutation: an error or the same content, never a panic, never other
//! content.

use super::*;

/// What a file says, if it is good.
fn says(bytes: &[u8]) -> Option<(Header, Pages)> {
    decode(bytes).ok().map(|(h, pages, _)| (h, pages))
}

/// Everything that reads untrusted bytes; only not to panic is asked of the ranged readers.
fn exercise(bytes: &[u8]) {
    let _ = verify(bytes);
    let _ = Decoder::piece(bytes).and_then(Decoder::finish);
    if let Ok(tail) = Tail::parse(bytes)
        && let Some(index) = tail.index_in(bytes)
    {
        let _ = PageIndex::parse(index, bytes.len() as u64, 1000, size(512));
    }
    for page_size in [512, 4096] {
        let _ = decode_frame(
            bytes.get(100..).unwrap_or_default(),
            size(page_size),
            &mut vec![0; page_size as usize],
        );
    }
    let _ = PageIndex::parse(bytes, bytes.len() as u64, u32::MAX, size(4096));
}

fn own() -> Vec<u8> {
    let pages: Pages = (1..=3).map(|n| (n, content(512, u64::from(n)))).collect();
    let mut h = header(512, 3, 1, 4);
    h.attest = Some(Attest { before: DbChecksum::EMPTY, after: db_checksum(&pages) });
    h.lineage = lineage();
    encode(&h, &pages).unwrap()
}

#[test]
fn every_truncation_is_an_error() {
    for file in vectors::ALL.into_iter().chain([own().as_slice()]) {
        for n in 0..file.len() {
            exercise(&file[..n]);
            assert!(verify(&file[..n]).unwrap_err().is_corrupt(), "cut to {n} of {}", file.len());
        }
    }
}

#[test]
fn every_bit_flip_is_seen() {
    for file in vectors::ALL.into_iter().chain([own().as_slice()]) {
        let good = verify(file).unwrap();
        let before = says(file);
        let index = index_of(file).unwrap();
        // Behind page number, flags and, of a block, its length.
        let payload =
            |at: usize| index.entries().iter().any(|e| (e.offset + 10..e.range().end).contains(&(at as u64)));
        for bit in 0..file.len() * 8 {
            let mut bytes = file.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            exercise(&bytes);
            if let Ok(v) = verify(bytes.as_slice()) {
                // Only an LZ4 payload that unpacks to the same page may pass; SHA-256 sees it all the same.
                assert_eq!(says(&bytes), before, "bit {bit} changes what the file says");
                assert_ne!(v.sha256, good.sha256);
                assert!(payload(bit / 8), "bit {bit} is outside of any LZ4 payload");
            }
        }
    }
}

#[test]
fn random_mutation_never_panics_or_lies() {
    let mut x = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |n: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % n as u64) as usize
    };
    let own = own();
    let seeds: Vec<&[u8]> = vectors::ALL.into_iter().chain([own.as_slice()]).collect();
    for _ in 0..20_000 {
        let seed = seeds[random(seeds.len())];
        let mut bytes = seed.to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(6) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                2 => drop(bytes.drain(at..(at + 1 + random(8)).min(bytes.len()))),
                3 => bytes.insert(at, random(256) as u8),
                4 => bytes.truncate(at.max(1)),
                _ => {
                    let other = seeds[random(seeds.len())];
                    let from = random(other.len());
                    let n = random(32).min(other.len() - from).min(bytes.len() - at);
                    bytes[at..at + n].copy_from_slice(&other[from..from + n]);
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        exercise(&bytes);
        if let Some(said) = says(&bytes) {
            assert!(
                seeds.iter().any(|s| says(s).as_ref() == Some(&said)),
                "a mutated file says something new"
            );
        }
    }
}
