//! Files with one thing wrong and a right file checksum: each rule of the strict reader by itself. And what
//! the writer refuses.

use super::*;
use crate::base::Kind;

fn refused(file: &[u8], why: &str) {
    let e = decode(file).unwrap_err();
    assert!(e.is_corrupt() && e.to_string().contains(why), "expected {why:?}, got {e}");
}

fn page(n: u64) -> Vec<u8> {
    content(512, n)
}

fn base() -> Raw {
    Raw::new(&header(512, 9, 4, 5)).block(2, &page(2)).block(5, &page(5))
}

#[test]
fn the_hand_made_file_is_good() {
    assert_eq!(decode(&base().build()).unwrap().1, Pages::from([(2, page(2)), (5, page(5))]));
}

#[test]
fn header_rules() {
    let edit = |at: usize, bytes: &[u8]| {
        let mut raw = base();
        raw.header[at..at + bytes.len()].copy_from_slice(bytes);
        raw.build()
    };
    refused(&edit(0, b"LTX2"), "LTX1");
    for flags in [1u8, 3, 4, 6, 0x80] {
        refused(&edit(4, &[0, 0, 0, flags]), "flags");
    }
    refused(&edit(8, &[0, 0, 1, 0]), "page size");
    refused(&edit(8, &[0, 2, 0, 0]), "page size");
    refused(&edit(12, &[0, 0, 0, 0]), "0 pages");
    refused(&edit(16, &[0; 8]), "TXID");
    refused(&edit(16, &[0, 0, 0, 0, 0, 0, 0, 6]), "TXID");
    refused(&edit(40, &[0x80, 0, 0, 0, 0, 0, 0, 1]), "pre-apply");
    refused(&edit(48, &[0x80, 0, 0, 0, 0, 0, 0, 0]), "WAL range");
    refused(&edit(56, &[0, 0, 0, 0, 0, 0, 0, 9]), "WAL");
    refused(&edit(64, &[0, 0, 0, 1]), "WAL");
    refused(&edit(4, &[0, 0, 0, 0]), "pre-apply");
    // Reserved bytes that are not ours are nobody's business.
    assert_eq!(decode(&edit(80, b"XXX1")).unwrap().0.attest, None);
    assert_eq!(decode(&edit(80, b"WRA2")).unwrap().0.attest, None);
}

#[test]
fn page_rules() {
    let h = header(512, 9, 4, 5);
    refused(&Raw::new(&h).block(5, &page(5)).block(2, &page(2)).build(), "ascend");
    refused(&Raw::new(&h).block(5, &page(5)).block(5, &page(5)).build(), "ascend");
    refused(&Raw::new(&h).block(10, &page(5)).build(), "above");
    refused(&Raw::new(&header(512, 3_000_000, 4, 5)).block(2_097_153, &page(5)).build(), "lock page");
    let snapshot = header(512, 3, 1, 5);
    refused(&Raw::new(&snapshot).block(1, &page(1)).block(3, &page(3)).build(), "lacks page 2");
    refused(&Raw::new(&snapshot).block(1, &page(1)).block(2, &page(3)).build(), "lacks page 3");
    refused(&Raw::new(&snapshot).build(), "lacks page 1");
    for flags in [2u8, 3, 0x80] {
        let mut raw = base();
        raw.frames[0].0[5] = flags;
        refused(&raw.build(), "flags");
    }
    let mut raw = base();
    raw.frames[0].0[..4].fill(0);
    refused(&raw.build(), "page 0");
}

#[test]
fn payload_rules() {
    let with = |payload: Vec<u8>| {
        let mut raw = base();
        raw.frames[0].0.truncate(6);
        raw.frames[0].0.extend((payload.len() as u32).to_be_bytes());
        raw.frames[0].1 = payload;
        raw.build()
    };
    refused(&with(lz4_flex::block::compress(&page(2)[..511])), "511");
    refused(&with(lz4_flex::block::compress(&[page(2), vec![1]].concat())), "unpack");
    refused(&with(vec![]), "payload of 0");
    refused(&with(vec![0xff; 600]), "payload of 600");
    let mut raw = base();
    raw.frames[0].0[6..].copy_from_slice(&u32::MAX.to_be_bytes());
    refused(&raw.build(), "payload of 4294967295");
    // A block of literals only is LZ4's way to store.
    let mut stored = vec![0xf0, 255, 242];
    stored.extend(page(2));
    assert_eq!(decode(&with(stored)).unwrap().1[&2], page(2));
}

#[test]
fn lz4_frame_rules() {
    let with = |payload: Vec<u8>| {
        let mut raw = Raw::new(&header(512, 9, 4, 5)).lz4_frame(2, &page(2));
        raw.frames[0].1 = payload;
        raw.build()
    };
    assert_eq!(decode(&with(lz4_frame(&page(2), true))).unwrap().1[&2], page(2));
    refused(&with(lz4_frame(&page(2), false)), "content checksum");
    refused(&with(lz4_frame(&page(2)[..500], true)), "unpack");
    refused(&with(lz4_frame(&[page(2), page(3)].concat(), true)), "page");
    refused(&with(lz4_frame(&[], true)), "unpack");
    let edit = |at: usize, byte: u8| {
        let mut frame = lz4_frame(&page(2), true);
        frame[at] = byte;
        with(frame)
    };
    refused(&edit(0, 5), "magic");
    refused(&edit(4, 0xa4), "form");
    refused(&edit(5, 0x70), "64 KiB");
    refused(&edit(6, 0), "unpack");
    let legacy = [&[0x02, 0x21, 0x4c, 0x18][..], &[0; 64]].concat();
    refused(&with(legacy), "magic");
    let endless = [&lz4_frame(&page(2), true)[..7], &[1, 0, 0, 0x80, 7].repeat(400)].concat();
    refused(&with(endless), "longer");
    let huge = [&lz4_frame(&page(2), true)[..7], &[0xff; 100]].concat();
    refused(&with(huge), "longer");
}

#[test]
fn index_rules() {
    let good = base().build();
    let entry = |n: u64, offset: u64, len: u64| {
        let mut out = Vec::new();
        [n, offset, len].into_iter().for_each(|n| varint(&mut out, n));
        out
    };
    let entries = index_of(&good).unwrap();
    let [a, b] = entries.entries() else { panic!("two pages") };
    let (la, lb) = (u64::from(a.len), u64::from(b.len));
    let zero = vec![0];
    for wrong in [
        vec![0],
        [entry(2, 100, la), zero.clone()].concat(),
        [entry(2, 100, la), entry(5, 100 + la, lb), entry(6, 100 + la + lb, 20), zero.clone()].concat(),
        [entry(2, 101, la), entry(5, 100 + la, lb), zero.clone()].concat(),
        [entry(2, 100, la), entry(5, 100 + la, lb + 1), zero.clone()].concat(),
        [entry(3, 100, la), entry(5, 100 + la, lb), zero.clone()].concat(),
        // Right length, wrong order.
        [entry(5, 100 + la, lb), entry(2, 100, la), zero.clone()].concat(),
        // The same numbers in a longer form.
        [vec![0x82, 0], entry(2, 100, la)[1..].to_vec(), entry(5, 100 + la, lb), zero.clone()].concat(),
    ] {
        let file = Raw { index: Some(wrong), ..base() }.build();
        refused(&file, "index");
    }
    // Without the pages one can still see that frames overlap, leave gaps or descend.
    for wrong in [
        [entry(2, 101, la), entry(5, 100 + la, lb), zero.clone()].concat(),
        [entry(2, 100, la - 1), entry(5, 100 + la, lb), zero.clone()].concat(),
        [entry(5, 100, la), entry(2, 100 + la, lb), zero.clone()].concat(),
        [entry(2, 100, la), entry(5, 100 + la, lb + 1), zero.clone()].concat(),
    ] {
        assert!(index_of(&Raw { index: Some(wrong), ..base() }.build()).is_err());
    }
    refused(&Raw { index_len: Some(1), ..base() }.build(), "index");
    let file = Raw { index_len: Some(u64::MAX), ..base() }.build();
    refused(&file, "index");
    assert!(Tail::parse(&file).unwrap().index_range(file.len() as u64).is_err());
}

#[test]
fn index_parse_by_itself() {
    let commit = 9;
    let parse = |bytes: &[u8], len: u64| PageIndex::parse(bytes, len, commit, size(512));
    assert!(parse(&[0], 131).unwrap().is_empty());
    assert!(parse(&[0], 132).is_err());
    assert!(parse(&[0, 0], 132).is_err());
    assert!(parse(&[], 130).is_err());
    assert!(parse(&[1, 100], 132).is_err());
    // 10 page-header bytes and one of payload is the shortest block; a page number above commit, a number
    // above 64 bits.
    assert!(parse(&[10, 100, 20, 0], 154).is_err());
    assert!(parse(&[9, 100, 20, 0], 154).is_ok());
    assert!(parse(&[9, 100, 0, 0], 134).is_err());
    assert!(parse(&[9, 100, 6, 0], 140).is_err());
    assert!(parse(&[0xff; 32], 154).is_err());
    assert!(parse(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 100, 20, 0], 163).is_err());
    let snapshot = header(512, commit, 1, 3);
    assert!(PageIndex::parse_for(&[9, 100, 20, 0], 154, &snapshot).is_err());
}

#[test]
fn trailer_rules() {
    refused(&Raw { post: 1 << 63 | 5, ..base() }.build(), "post-apply");
    refused(&[base().build(), vec![0]].concat(), "follow");
    let mut flagless = base().build();
    let at = flagless.len() - 8;
    flagless[at] &= 0x7f;
    refused(&flagless, "file checksum");
    assert!(Tail::parse(&flagless).is_err());
}

#[test]
fn an_attested_snapshot_is_held_to_it() {
    let pages = Pages::from([(1, page(1)), (2, page(2))]);
    let mut h = header(512, 2, 1, 4);
    let right = Attest { before: DbChecksum::EMPTY, after: db_checksum(&pages) };
    let wrong = Attest { after: right.after.toggle(1), ..right };
    h.attest = Some(right);
    assert_eq!(decode(&encode(&h, &pages).unwrap()).unwrap().0.attest, Some(right));
    h.attest = Some(wrong);
    assert!(encode(&h, &pages).unwrap_err().is_corrupt());
    refused(&Raw::new(&h).block(1, &page(1)).block(2, &page(2)).build(), "database checksum");
    // LTX's own post-apply checksum likewise, which is another.
    let rolled = pages.iter().fold(DbChecksum::EMPTY, |c, (n, page)| c.roll(page_checksum(pgno(*n), page)));
    let mut foreign = Raw::new(&Header { tracking: Tracking::Checksummed, attest: None, ..h });
    foreign.post = rolled.roll(1).0;
    let foreign = foreign.block(1, &page(1)).block(2, &page(2));
    refused(&foreign.build(), "database checksum");
    assert!(decode(&Raw { post: rolled.0, ..foreign }.build()).is_ok());
}

#[test]
fn the_writer_refuses() {
    let kind = |h: &Header, pages: &Pages| encode(h, pages).unwrap_err().kind();
    let one = Pages::from([(1, page(1))]);
    assert_eq!(kind(&header(512, 0, 2, 2), &Pages::new()), Kind::Bug);
    assert_eq!(kind(&header(512, 1, 0, 2), &one), Kind::Bug);
    assert_eq!(kind(&header(512, 1, 3, 2), &one), Kind::Bug);
    assert_eq!(kind(&Header { tracking: Tracking::Checksummed, ..header(512, 1, 1, 1) }, &one), Kind::Bug);
    assert_eq!(kind(&header(512, 1, 2, 2), &Pages::from([(2, page(2))])), Kind::Bug);
    assert_eq!(kind(&header(1024, 1, 2, 2), &one), Kind::Bug);
    assert_eq!(kind(&header(512, 2, 1, 2), &one), Kind::Corrupt);
    let mut encoder = Encoder::new(Vec::new(), header(512, 9, 2, 2)).unwrap();
    encoder.page(pgno(3), &page(3)).unwrap();
    assert_eq!(encoder.page(pgno(3), &page(3)).unwrap_err().kind(), Kind::Bug);
}

#[test]
fn a_damaged_reader_stays_damaged() {
    let mut file = base().build();
    file[104] = 0x80;
    let mut decoder = Decoder::new(file.as_slice()).unwrap();
    let mut buf = vec![0; 512];
    assert!(decoder.next_page(&mut [0; 511]).is_err());
    assert!(decoder.next_page(&mut buf).is_err());
    assert!(decoder.next_page(&mut buf).is_err());
    assert!(decoder.finish().is_err());
}

#[test]
fn pieces_may_be_partial() {
    let h = header(512, 3, 1, 1);
    let part = Pages::from([(2, page(2))]);
    assert!(encode(&h, &part).is_err());
    let bytes = encode_shape(&h, &part, Shape::Piece).unwrap();
    refused(&bytes, "lacks page 1");
    assert_eq!(Decoder::piece(bytes.as_slice()).unwrap().finish().unwrap().pages, 1);
}
