//! What is written is what is read.

use super::*;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::io::{self, Read};

/// Gives one byte at a time, and an interruption between any two.
struct Trickle<'a>(&'a [u8], bool);

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = buf.len().min(1);
        self.0.read(&mut buf[..n])
    }
}

fn any_header() -> impl Strategy<Value = Header> {
    let wal = prop::option::of((1..=i64::MAX as u64, 0..=i64::MAX as u64, any::<u32>(), any::<u32>()));
    let attest = prop::option::of((any::<u64>(), any::<u64>()));
    (9u32..=16, 1u32..2000, 2u64..u64::MAX, any::<u64>(), any::<i64>(), wal, any::<u64>(), attest).prop_map(
        |(shift, commit, min, more, time, wal, lineage, attest)| Header {
            timestamp: Timestamp(time),
            wal: wal.map(|(offset, size, salt1, salt2)| WalRange { offset, size, salt1, salt2 }),
            lineage: Lineage(lineage),
            attest: attest.map(|(a, b)| Attest {
                before: DbChecksum(a | DbChecksum::FLAG),
                after: DbChecksum(b | DbChecksum::FLAG),
            }),
            ..header(1 << shift, commit, min, min.saturating_add(more % 1000))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers(h in any_header()) {
        prop_assert_eq!(Header::decode(&h.encode().unwrap()).unwrap(), h);
    }

    #[test]
    fn increments(h in any_header(), set in prop::collection::btree_map(1u32..2000, any::<u64>(), 0..24)) {
        let pages: Pages = set
            .into_iter()
            .filter(|(n, _)| *n <= h.commit)
            .map(|(n, seed)| (n, content(h.page_size.len(), seed)))
            .collect();
        let bytes = encode(&h, &pages).unwrap();
        let (back, read, trailer) = decode(&bytes).unwrap();
        prop_assert_eq!((&back, &read), (&h, &pages));
        prop_assert_eq!(trailer.bytes, bytes.len() as u64);
        let verified = verify(bytes.as_slice()).unwrap();
        prop_assert_eq!(verified.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
        let index = index_of(&bytes).unwrap();
        prop_assert_eq!(index.len(), pages.len());
        for entry in index.entries() {
            let mut page = vec![0; h.page_size.len()];
            let r = entry.range();
            let n = decode_frame(&bytes[r.start as usize..r.end as usize], h.page_size, &mut page).unwrap();
            prop_assert_eq!(n, entry.pgno);
            prop_assert_eq!(&page, &pages[&n.get()]);
        }
    }

    #[test]
    fn snapshots(shift in 9u32..=12, commit in 1u32..60, seed in any::<u64>(), own in any::<bool>()) {
        let pages: Pages = (1..=commit).map(|n| (n, content(1 << shift, seed ^ u64::from(n)))).collect();
        let mut h = header(1 << shift, commit, 1, 7);
        h.attest = own.then(|| Attest { before: DbChecksum::EMPTY, after: db_checksum(&pages) });
        let bytes = encode(&h, &pages).unwrap();
        let (back, read, _) = decode(&bytes).unwrap();
        prop_assert_eq!((&back, &read), (&h, &pages));
    }
}

#[test]
fn a_trickle_is_enough() {
    for file in vectors::ALL {
        assert_eq!(verify(Trickle(file, false)).unwrap(), verify(file).unwrap());
    }
}

#[test]
fn lz4_frames_of_every_page_size() {
    for shift in 9..=16 {
        let h = header(1 << shift, 9, 4, 4);
        let (a, b) = (content(1 << shift, 2), content(1 << shift, 3));
        let file = Raw::new(&h).lz4_frame(3, &a).block(4, &b).lz4_frame(8, &b).build();
        let (_, pages, _) = decode(&file).unwrap();
        assert_eq!(pages, Pages::from([(3, a), (4, b.clone()), (8, b)]));
        for entry in index_of(&file).unwrap().entries() {
            let mut page = vec![0; 1 << shift];
            let r = entry.range();
            decode_frame(&file[r.start as usize..r.end as usize], h.page_size, &mut page).unwrap();
            assert_eq!(page, pages[&entry.pgno.get()]);
        }
    }
}

#[test]
fn around_the_lock_page() {
    // 64 KiB pages: the lock page is 16385. A snapshot goes from 16384 to 16386.
    let page = vec![0; 65536];
    for commit in [16384u32, 16385, 16386] {
        let h = header(65536, commit, 1, 1);
        let mut encoder = Encoder::new(Vec::new(), h.clone()).unwrap();
        for n in (1..=commit).filter(|n| *n != 16385) {
            encoder.page(pgno(n), &page).unwrap();
        }
        let (summary, bytes) = encoder.finish().unwrap();
        assert_eq!(summary.pages, h.full_pages());
        assert_eq!(verify(bytes.as_slice()).unwrap().pages, summary.pages);
        index_of(&bytes).unwrap();
    }
    let mut encoder = Encoder::new(Vec::new(), header(65536, 20000, 2, 2)).unwrap();
    assert!(encoder.page(pgno(16385), &page).unwrap_err().to_string().contains("lock page"));
}

#[test]
fn a_store_error_keeps_its_kind() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other(crate::base::Error::new(crate::base::Kind::Retry, "connection reset")))
        }
    }
    let e = verify(V1_HEAD.chain(Failing)).unwrap_err();
    assert!(e.is_retry(), "{e}");
}
const V1_HEAD: &[u8] = b"LTX1";

#[test]
fn names() {
    let name = FileName { min: TxId(2), max: TxId(0xabc) };
    assert_eq!(name.to_string(), "0000000000000002-0000000000000abc.ltx");
    assert_eq!(FileName::parse(&name.to_string()), Some(name));
    for bad in [
        "0000000000000002-0000000000000ABC.ltx",
        "0000000000000002-0000000000000abc.ltx.tmp",
        "0000000000000002-0000000000000001.ltx",
        "0000000000000000-0000000000000001.ltx",
        "000000000000002-0000000000000abc.ltx",
        "+000000000000002-0000000000000abc.ltx",
        "0000000000000002_0000000000000abc.ltx",
        "0000000000000002-0000000000000abc",
        "",
    ] {
        assert_eq!(FileName::parse(bad), None, "{bad}");
    }
    assert_eq!((Level::new(9), Level::new(10)), (Some(Level::SNAPSHOT), None));
    assert_eq!(Level::all().count(), 10);
}
