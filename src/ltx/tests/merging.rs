//! Merging against a model that applies one file after the other to a map.

use super::*;
use proptest::prelude::*;

/// Applies a file the plain way: cut or grow, then write.
fn apply(db: &mut Pages, commit: u32, pages: &Pages) {
    db.retain(|n, _| *n <= commit);
    db.extend(pages.iter().map(|(n, p)| (*n, p.clone())));
}

fn merged(files: &[Vec<u8>]) -> Result<(Summary, Vec<u8>)> {
    let mut out = Vec::new();
    let summary = merge(files.iter().map(Vec::as_slice).collect(), Overrides::default(), &mut out)?;
    Ok((summary, out))
}

/// A made-up history: TXIDs 1.., each a state of the database and the file that leads to it.
struct History {
    states: Vec<Pages>,
    files: Vec<Vec<u8>>,
}

/// One step: the new size, and seeds of pages to write (reduced to the size).
type Step = (u32, Vec<(u32, u64)>);

fn history(page_size: u32, steps: &[Step]) -> History {
    let (mut db, mut states, mut files) = (Pages::new(), Vec::new(), Vec::new());
    let mut commit_before = 0;
    for (i, (commit, writes)) in steps.iter().enumerate() {
        let txid = i as u64 + 1;
        let before = db_checksum(&db);
        let mut pages: Pages = writes
            .iter()
            .map(|(n, seed)| (n % commit + 1, content(page_size as usize, seed.wrapping_add(txid))))
            .collect();
        // The growth rule; and a first file is a snapshot.
        for n in commit_before + 1..=*commit {
            pages.entry(n).or_insert_with(|| content(page_size as usize, u64::from(n) * 1000 + txid));
        }
        apply(&mut db, *commit, &pages);
        commit_before = *commit;
        let mut h = header(page_size, *commit, txid, txid);
        h.attest = Some(Attest { before, after: db_checksum(&db) });
        h.lineage = lineage();
        h.wal = Some(WalRange { offset: 32, size: 8, salt1: 1, salt2: 2 });
        states.push(db.clone());
        files.push(encode(&h, &pages).unwrap());
    }
    History { states, files }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = prop::collection::vec((any::<u32>(), any::<u64>()), 0..6);
    prop::collection::vec((1u32..30, writes), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(steps in steps(), shift in 9u32..12, from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let history = history(1 << shift, &steps);
        let (a, b) = (from.index(steps.len()), to.index(steps.len()));
        let (a, b) = (a.min(b), a.max(b));
        let (summary, out) = merged(&history.files[a..=b]).unwrap();
        let (h, pages, _) = decode(&out).unwrap();
        prop_assert_eq!(&summary.header, &h);
        prop_assert_eq!((h.min, h.max, h.lineage), (TxId(a as u64 + 1), TxId(b as u64 + 1), lineage()));
        prop_assert_eq!(h.wal, None);
        prop_assert_eq!(h.timestamp, header(512, 1, 1, b as u64 + 1).timestamp);
        let mut db = if a == 0 { Pages::new() } else { history.states[a - 1].clone() };
        let before = db_checksum(&db);
        apply(&mut db, h.commit, &pages);
        prop_assert_eq!(&db, &history.states[b]);
        prop_assert_eq!(h.attest, Some(Attest { before, after: db_checksum(&db) }));
    }

    #[test]
    fn in_any_grouping(steps in steps(), cut in any::<prop::sample::Index>()) {
        let history = history(512, &steps);
        let (_, at_once) = merged(&history.files).unwrap();
        let (left, right) = history.files.split_at(cut.index(steps.len()));
        let parts: Vec<Vec<u8>> =
            [left, right].into_iter().filter(|p| !p.is_empty()).map(|p| merged(p).unwrap().1).collect();
        // Merged files may drop what a later shrink makes invisible; what they lead to is the same.
        let (_, in_two) = merged(&parts).unwrap();
        prop_assert_eq!(decode(&in_two).unwrap(), decode(&at_once).unwrap());
        // An overlapping file that covers the tail already merged changes nothing.
        let overlapping = [vec![parts[0].clone()], history.files[..].to_vec()].concat();
        let tail: Vec<Vec<u8>> = std::iter::once(overlapping[0].clone())
            .chain(history.files.iter().skip(cut.index(steps.len())).cloned())
            .collect();
        if parts.len() == 2 {
            prop_assert_eq!(decode(&merged(&tail).unwrap().1).unwrap(), decode(&at_once).unwrap());
        }
    }

    #[test]
    fn folding_pieces(steps in steps(), txid in 1u64..4) {
        let whole = history(512, &steps);
        let (mut db, mut at) = (Pages::new(), 32);
        let mut pieces = Vec::new();
        for (file, state) in whole.files.iter().zip(&whole.states) {
            let (mut h, pages, _) = decode(file).unwrap();
            (h.min, h.max) = (TxId(txid), TxId(txid));
            h.wal = Some(WalRange { offset: at, size: 100, salt1: 3, salt2: 4 });
            at += 100;
            pieces.push(encode_shape(&h, &pages, Shape::Piece).unwrap());
            db = state.clone();
        }
        let mut out = Vec::new();
        let inputs = pieces.iter().map(Vec::as_slice).collect();
        let summary = fold(inputs, Overrides::default(), &mut out).unwrap();
        let (h, pages, _) = decode(&out).unwrap();
        prop_assert_eq!((h.min, h.max, h.lineage), (TxId(txid), TxId(txid), lineage()));
        prop_assert_eq!(h.wal, Some(WalRange { offset: 32, size: at - 32, salt1: 3, salt2: 4 }));
        prop_assert_eq!(h.attest, Some(Attest { before: DbChecksum::EMPTY, after: db_checksum(&db) }));
        prop_assert_eq!(&pages, &db);
        prop_assert_eq!(summary.pages as usize, db.len());
    }
}

fn l0(txid: u64, commit: u32, numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let pages = numbers.into_iter().map(|n| (n, content(512, u64::from(n) + 100 * txid))).collect();
    encode(&header(512, commit, txid, txid), &pages).unwrap()
}

fn refused(files: &[Vec<u8>], why: &str) {
    let e = merged(files).unwrap_err();
    assert!(e.is_corrupt() && e.to_string().contains(why), "expected {why:?}, got {e}");
}

#[test]
fn a_shrink_in_between_drops_what_was_above() {
    // 8 → 5 → 8 pages; the growth brings pages 6 to 8 anew.
    let files = [l0(2, 8, [7, 8]), l0(3, 5, [1]), l0(4, 8, [6, 7, 8])];
    let (_, out) = merged(&files).unwrap();
    let (_, pages, _) = decode(&out).unwrap();
    assert_eq!(pages.keys().copied().collect::<Vec<_>>(), [1, 6, 7, 8]);
    assert_eq!(pages[&7], content(512, 407));
    // Left small, nothing above is left.
    let (_, pages, _) = decode(&merged(&files[..2]).unwrap().1).unwrap();
    assert_eq!(pages.keys().copied().collect::<Vec<_>>(), [1]);
    // And a growth that lacks a page is a broken chain, not a resurrection.
    refused(&[l0(2, 8, [7, 8]), l0(3, 5, [1]), l0(4, 8, [6, 8])], "lacks 1 of the new pages");
}

#[test]
fn growth_over_the_lock_page() {
    let lock = 16385;
    let file = |txid, commit, numbers: &[u32]| {
        let pages = numbers.iter().map(|n| (*n, vec![*n as u8; 65536])).collect();
        encode(&header(65536, commit, txid, txid), &pages).unwrap()
    };
    let files = [file(2, lock - 1, &[1]), file(3, lock + 1, &[lock + 1])];
    assert_eq!(merged(&files).unwrap().0.pages, 2);
    let files = [file(2, lock - 1, &[1]), file(3, lock, &[])];
    assert_eq!(merged(&files).unwrap().0.pages, 1);
}

#[test]
fn what_does_not_join() {
    assert!(merged(&[]).is_err());
    refused(&[l0(2, 3, [1]), l0(4, 3, [1])], "missing");
    refused(&[l0(3, 3, [1]), l0(2, 3, [1])], "no further");
    refused(&[l0(2, 3, [1]), l0(2, 3, [1])], "no further");
    let other = encode(&header(1024, 3, 3, 3), &Pages::new()).unwrap();
    refused(&[l0(2, 3, [1]), other], "page sizes");
    let mut broken = l0(3, 3, [1, 2]);
    let n = broken.len();
    broken[n - 1] ^= 1;
    refused(&[l0(2, 3, [1]), broken.clone()], "0000000000000003-0000000000000003.ltx");
    refused(&[l0(2, 3, [1]), broken, l0(4, 3, [1])], "file checksum");
    let mut cut = l0(3, 3, [1, 2]);
    cut.truncate(50);
    refused(&[l0(2, 3, [1]), cut], "input 2");
}

#[test]
fn a_failed_merge_leaves_no_file() {
    let mut broken = l0(3, 3, [1, 2]);
    let n = broken.len();
    broken[n - 1] ^= 1;
    let mut out = Vec::new();
    merge(vec![l0(2, 3, [1]).as_slice(), &broken], Overrides::default(), &mut out).unwrap_err();
    assert!(verify(out.as_slice()).is_err());
}

fn attested(txid: u64, before: u64, after: u64, history: u64, numbers: &[u32]) -> Vec<u8> {
    let mut h = header(512, 3, txid, txid);
    let sum = |n| DbChecksum(n | DbChecksum::FLAG);
    h.attest = Some(Attest { before: sum(before), after: sum(after) });
    h.lineage = Lineage(history);
    encode(&h, &numbers.iter().map(|n| (*n, content(512, u64::from(*n)))).collect()).unwrap()
}

#[test]
fn attestations() {
    let head = |files: &[Vec<u8>]| merged(files).unwrap().0.header;
    let sum = |n| DbChecksum(n | DbChecksum::FLAG);
    let (a, b) = (attested(2, 5, 6, 9, &[1]), attested(3, 6, 7, 9, &[2]));
    let h = head(&[a.clone(), b.clone()]);
    assert_eq!((h.attest, h.lineage), (Some(Attest { before: sum(5), after: sum(7) }), Lineage(9)));
    // Two histories.
    refused(&[a.clone(), attested(3, 8, 7, 9, &[2])], "database checksum");
    refused(&[a.clone(), attested(3, 8, 7, 10, &[2])], "database checksum");
    assert_eq!(head(&[a.clone(), attested(3, 6, 7, 10, &[2])]).lineage, Lineage(0));
    // A file that needs nothing before it starts afresh, if it is what it claims.
    let h = head(&[a.clone(), attested(3, 0, 7, 10, &[1, 2, 3])]);
    assert_eq!((h.attest, h.lineage), (Some(Attest { before: sum(5), after: sum(7) }), Lineage(0)));
    refused(&[a.clone(), attested(3, 0, 7, 10, &[1, 2])], "continues nothing");
    // A foreign one among them: nothing to attest.
    assert_eq!(head(&[a, l0(3, 3, [2])]).attest, None);
}

#[test]
fn foreign_forms() {
    // LZ4 frames are repacked, checksummed files lose their checksums, a deleted database cannot be written.
    let (a, b) = (content(512, 2), content(512, 3));
    let frames = Raw::new(&header(512, 9, 4, 4)).lz4_frame(2, &a).lz4_frame(5, &a).build();
    let mut tracked = header(512, 9, 5, 5);
    tracked.tracking = Tracking::Checksummed;
    tracked.pre_apply = Some(DbChecksum(5 | DbChecksum::FLAG));
    let tracked = Raw { post: 6 | DbChecksum::FLAG, ..Raw::new(&tracked).block(5, &b) };
    let (summary, out) = merged(&[frames.clone(), tracked.build()]).unwrap();
    assert_eq!(summary.header.tracking, Tracking::NoChecksum);
    assert_eq!(decode(&out).unwrap().1, Pages::from([(2, a), (5, b)]));

    let mut deleted = Header::decode(tracked.header.first_chunk().unwrap()).unwrap();
    deleted.commit = 0;
    let deleted = Raw { post: DbChecksum::EMPTY.0, ..Raw::new(&deleted) }.build();
    assert!(verify(deleted.as_slice()).is_ok());
    refused(&[frames, deleted], "0 pages");
}

#[test]
fn overrides() {
    let wal = WalRange { offset: 32, size: 0, salt1: 1, salt2: 2 };
    let with = Overrides { timestamp: Some(Timestamp(5)), wal: Some(wal) };
    let mut out = Vec::new();
    let summary = merge(vec![l0(2, 3, [1]).as_slice()], with, &mut out).unwrap();
    assert_eq!((summary.header.timestamp, summary.header.wal), (Timestamp(5), Some(wal)));
}

#[test]
fn ranges_that_do_not_touch() {
    let piece = |offset, salt1| {
        let mut h = header(512, 3, 4, 4);
        h.wal = Some(WalRange { offset, size: 10, salt1, salt2: 0 });
        encode_shape(&h, &Pages::new(), Shape::Piece).unwrap()
    };
    let folded = |files: &[Vec<u8>]| {
        fold(files.iter().map(Vec::as_slice).collect(), Overrides::default(), Vec::new())
            .map(|s| s.header.wal)
    };
    let range = |offset, size, salt1| Some(WalRange { offset, size, salt1, salt2: 0 });
    assert_eq!(folded(&[piece(32, 1), piece(42, 1), piece(52, 1)]).unwrap(), range(32, 30, 1));
    assert_eq!(folded(&[piece(32, 1), piece(32, 2), piece(42, 2)]).unwrap(), range(32, 20, 2));
    assert_eq!(folded(&[piece(32, 1), piece(50, 1)]).unwrap(), range(50, 10, 1));
    assert!(folded(&[piece(32, 1), l0(5, 3, [])]).is_err());
    assert!(folded(&[merged(&[l0(5, 3, []), l0(6, 3, [])]).unwrap().1]).is_err());
}
