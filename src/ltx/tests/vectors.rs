//! Files and numbers of the reference library (superfly/ltx v0.5.2) and of real Litestream releases.

use super::*;

macro_rules! vector {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/vectors/ltx/", $name, ".ltx")).as_slice()
    };
}

pub(super) const V1: &[u8] = vector!("v1-snapshot-512");
pub(super) const V2: &[u8] = vector!("v2-checksummed-increment-512");
pub(super) const V3: &[u8] = vector!("v3-empty-increment");
pub(super) const V4: &[u8] = vector!("v4-checksummed-snapshot-512");
pub(super) const V5: &[u8] = vector!("v5-litestream-0.5.17-l0-block");
pub(super) const V6: &[u8] = vector!("v6-litestream-0.5.15-l0-frame");
pub(super) const ALL: [&[u8]; 6] = [V1, V2, V3, V4, V5, V6];

fn ramp(n: usize) -> Vec<u8> {
    (0..n).map(|i| i as u8).collect()
}

#[test]
fn crc_check_value() {
    let mut crc = Crc::new();
    assert_eq!(crc.flagged(), DbChecksum::FLAG);
    crc.update(b"12345");
    crc.update(b"6789");
    assert_eq!(crc.flagged(), 0xb909_56c7_75a4_1001);
}

#[test]
fn page_checksums() {
    let mut x = 1u32;
    let noise: Vec<u8> = (0..4096)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .collect();
    for (n, page, sum) in [
        (1, vec![0; 512], 0xefb1_f44f_ecd9_9000u64),
        (1, vec![0; 4096], 0xd932_8f59_2d9e_733d),
        (2, vec![0; 4096], 0xf790_1e47_304c_a33f),
        (2, vec![0xff; 4096], 0x9240_4d14_a0dc_a3af),
        (3, ramp(4096), 0x8164_d21a_e4f4_efa9),
        (262144, ramp(4096), 0x9bc3_557d_3af1_ed6d),
        (2147483647, vec![0x41; 65536], 0xd65d_c3f3_7397_67d5),
        (7, noise, 0x8fa4_9e08_ac59_67f8),
    ] {
        assert_eq!(page_checksum(pgno(n), &page), sum, "page {n} of {} bytes", page.len());
    }
}

#[test]
fn rolling_checksum() {
    let mut db = Pages::new();
    for (n, page, after) in [
        (1, vec![0x11; 512], 0xf1b1_444f_ecd9_9000u64),
        (2, vec![0x22; 512], 0xa2d3_ccd0_0000_0000),
        (3, ramp(512), 0xe4be_e936_cb62_cc9f),
        (2, vec![0x33; 512], 0xfabe_5936_cb62_cc9f),
    ] {
        db.insert(n, page);
        let rolled = db.iter().fold(DbChecksum::EMPTY, |c, (n, page)| c.roll(page_checksum(pgno(*n), page)));
        assert_eq!(rolled.0, after);
    }
}

/// The same change made to two pages takes itself out of LTX's checksum, not out of ours.
#[test]
fn twins() {
    let with = |a: u8, b: u8| {
        Pages::from([
            (1, ramp(512)),
            (2, [[a; 64], [1; 64]].concat().repeat(4)),
            (3, [[b; 64], [2; 64]].concat().repeat(4)),
        ])
    };
    let (before, after) = (with(0, 0), with(9, 9));
    let rolled =
        |db: &Pages| db.iter().fold(DbChecksum::EMPTY, |c, (n, page)| c.roll(page_checksum(pgno(*n), page)));
    assert_eq!(rolled(&before), rolled(&after), "no test of it");
    assert_ne!(db_checksum(&before), db_checksum(&after));
}

#[test]
fn v1_snapshot() {
    let (h, pages, trailer) = decode(V1).unwrap();
    let expected = Header { timestamp: Timestamp(1000), ..header(512, 1, 1, 1) };
    assert_eq!(h, expected);
    assert_eq!(pages, Pages::from([(1, vec![0; 512])]));
    assert_eq!((trailer.checksum, trailer.bytes, trailer.pages), (0xf12f_7e94_b3af_6137, 168, 1));
    assert_eq!(trailer.post_apply, None);
}

#[test]
fn v2_checksummed_increment() {
    let (h, pages, trailer) = decode(V2).unwrap();
    assert_eq!((h.min, h.max, h.commit, h.timestamp), (TxId(2), TxId(2), 3, Timestamp(2000)));
    assert_eq!(h.tracking, Tracking::Checksummed);
    assert_eq!(h.pre_apply, Some(DbChecksum(0xe4be_e936_cb62_cc9f)));
    assert_eq!(h.wal, Some(WalRange { offset: 32, size: 536, salt1: 0x0102_0304, salt2: 0x0506_0708 }));
    assert_eq!(h.lineage, lineage());
    assert_eq!(pages, Pages::from([(2, vec![0x33; 512])]));
    assert_eq!(trailer.post_apply, Some(DbChecksum(0xfabe_5936_cb62_cc9f)));
    assert_eq!(trailer.checksum, 0xfcf5_324b_cd6f_03ef);
}

#[test]
fn v3_empty_increment() {
    let (h, pages, trailer) = decode(V3).unwrap();
    assert_eq!(h, Header { timestamp: Timestamp(5000), ..header(512, 9, 5, 5) });
    assert!(pages.is_empty());
    assert_eq!((trailer.checksum, trailer.bytes), (0xbb88_654f_65a1_b7ad, 131));
    // No LZ4 in it: ours is the same to the byte.
    assert_eq!(encode(&h, &pages).unwrap(), V3);
}

#[test]
fn v4_checksummed_snapshot() {
    let (h, pages, trailer) = decode(V4).unwrap();
    assert!(h.is_snapshot() && h.tracking == Tracking::Checksummed && h.pre_apply.is_none());
    assert_eq!(pages, Pages::from([(1, vec![0x11; 512]), (2, vec![0x22; 512]), (3, ramp(512))]));
    assert_eq!(trailer.post_apply, Some(DbChecksum(0xe4be_e936_cb62_cc9f)));
    assert_eq!((trailer.checksum, trailer.bytes), (0xf76b_0b48_6628_9875, 500));
}

#[test]
fn v5_litestream_block() {
    let (h, pages, trailer) = decode(V5).unwrap();
    assert_eq!((h.page_size, h.commit, h.min, h.max), (size(4096), 4, TxId(2), TxId(2)));
    assert_eq!(h.wal, Some(WalRange { offset: 16512, size: 4120, salt1: 0x9ee2_0d1e, salt2: 0x1e46_89f6 }));
    assert_eq!((h.lineage, h.attest), (Lineage(0), None));
    assert_eq!(page_checksum(pgno(2), &pages[&2]), 0xe0b3_bf41_b136_6def);
    assert_eq!(trailer.checksum, 0xa9d5_0ffd_1a46_7fce);
}

#[test]
fn v6_litestream_frame() {
    let (h, pages, trailer) = decode(V6).unwrap();
    assert_eq!((h.page_size, h.commit, h.min), (size(4096), 4, TxId(2)));
    assert_eq!(pages.keys().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(trailer.checksum, 0x8132_1767_2ecd_d270);
}

#[test]
fn headers_and_indexes() {
    for file in ALL {
        let h = Header::decode(file.first_chunk().unwrap()).unwrap();
        assert_eq!(h.encode().unwrap().as_slice(), &file[..100]);
        let (_, pages, trailer) = decode(file).unwrap();
        let index = index_of(file).unwrap();
        assert_eq!(
            index.entries().iter().map(|e| e.pgno.get()).collect::<Vec<_>>(),
            pages.keys().copied().collect::<Vec<_>>()
        );
        for entry in index.entries() {
            let mut page = vec![0; h.page_size.len()];
            let range = entry.range();
            let frame = &file[range.start as usize..range.end as usize];
            assert_eq!(decode_frame(frame, h.page_size, &mut page).unwrap(), entry.pgno);
            assert_eq!(page, pages[&entry.pgno.get()]);
            assert_eq!(index.get(entry.pgno), Some(*entry));
        }
        let tail = Tail::parse(file).unwrap();
        assert_eq!((tail.checksum, tail.post_apply), (trailer.checksum, trailer.post_apply));
        let verified = verify(file).unwrap();
        assert_eq!((verified.header, verified.pages as usize), (h, pages.len()));
    }
}

#[test]
fn lock_pages() {
    for (page_size, lock) in [
        (512, 2097153),
        (1024, 1048577),
        (2048, 524289),
        (4096, 262145),
        (8192, 131073),
        (16384, 65537),
        (32768, 32769),
        (65536, 16385),
    ] {
        assert_eq!(size(page_size).lock_page().get(), lock);
    }
}
