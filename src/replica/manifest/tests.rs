use super::*;
use crate::replica::testkit::block;
use proptest::prelude::*;

fn entry(n: u64) -> ManifestEntry {
    ManifestEntry {
        id: FileId::new(Level::L0, TxId(n), TxId(n)).unwrap(),
        bytes: 1000 + n,
        pages: 3,
        commit: 70_000,
        crc: 0xa9d5_0ffd_1a46_7fce ^ n,
        edge: 0x01c2_77ab ^ n as u32,
        sha256: Sha256::digest(n.to_be_bytes()).into(),
        time: Timestamp(1_795_370_683_421 + n as i64),
        after: (!n.is_multiple_of(5)).then_some(DbChecksum(n | DbChecksum::FLAG)),
    }
}

fn ids(range: impl Iterator<Item = u64>) -> BTreeSet<FileId> {
    range.map(|n| entry(n).id).collect()
}

fn seen(store: &Store) -> Vec<u64> {
    let m = block(Manifest::read(store)).unwrap();
    assert_eq!(m.damaged, Vec::<String>::new());
    m.entries().map(|e| e.id.min.0).collect()
}

#[test]
fn a_segment_is_json_with_one_line_per_file() {
    let bytes = encode_segment(31, &[entry(1), entry(2)]);
    let text = String::from_utf8(bytes.clone()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["segment"], "000000000000001f");
    assert_eq!(json["files"][1][2], 2);
    assert_eq!(json["columns"].as_array().unwrap().len(), json["files"][0].as_array().unwrap().len());
    assert_eq!(text.lines().filter(|l| l.starts_with("[0,")).count(), 2);
    assert_eq!(decode_segment(31, &bytes).unwrap(), [entry(1), entry(2)]);
    assert!(decode_segment(30, &bytes).unwrap_err().is_corrupt());
    assert_eq!(decode_segment(1, &encode_segment(1, &[])).unwrap(), []);
}

#[test]
fn a_full_segment_stays_small() {
    let full: Vec<_> = (1..=SEGMENT_FILES as u64).map(|n| entry(n + (1 << 40))).collect();
    assert!(encode_segment(1, &full).len() < 25_000);
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = encode_segment(1, &[entry(1), entry(2)]);
    for i in 0..bytes.len() - 2 {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[i] ^= 1 << bit;
            assert!(decode_segment(1, &bad).is_err(), "byte {i} bit {bit}");
        }
        assert!(decode_segment(1, &bytes[..i]).is_err());
    }
}

#[test]
fn a_later_version_is_named_and_not_guessed_at() {
    let text = String::from_utf8(encode_segment(1, &[])).unwrap().replace("manifest\":1", "manifest\":2");
    assert_eq!(decode_segment(1, text.as_bytes()).unwrap_err().kind(), Kind::Config);
}

#[test]
fn appending_goes_on_where_another_writer_stopped() {
    let store = Store::in_memory();
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    for n in 1..=200 {
        block(w.append(&store, &[entry(n)])).unwrap();
    }
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    let more: Vec<_> = (201..=500).map(entry).collect();
    block(w.append(&store, &more)).unwrap();
    block(w.append(&store, &more[290..])).unwrap();
    assert_eq!(seen(&store), (1..=500).collect::<Vec<_>>());
    assert_eq!(block(segment_numbers(&store)).unwrap(), [1, 2, 3, 4]);
}

#[test]
fn a_long_history_needs_few_segments() {
    let store = Store::in_memory();
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    let mut most = 0;
    for n in (1..=10_000).step_by(50) {
        block(w.append(&store, &(n..n + 50).map(entry).collect::<Vec<_>>())).unwrap();
        most = most.max(block(segment_numbers(&store)).unwrap().len());
    }
    assert!(most <= 18, "{most}");
    assert_eq!(seen(&store), (1..=10_000).collect::<Vec<_>>());
    // Another writer's change to what is being packed is not undone.
    let mut other = block(ManifestWriter::load(&store)).unwrap();
    assert_eq!(block(other.remove(&store, &ids(9_000..=9_500))).unwrap(), 501);
    block(w.append(&store, &(10_001..=12_000).map(entry).collect::<Vec<_>>())).unwrap();
    assert_eq!(seen(&store), (1..9_000).chain(9_501..=12_000).collect::<Vec<_>>());
}

#[test]
fn packing_that_was_cut_short_names_nothing_wrongly() {
    // Packed into the last, the earlier not yet dropped: what every reader sees is the same, and the next packing cleans up.
    let store = Store::in_memory();
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    block(w.append(&store, &(1..=1024).map(entry).collect::<Vec<_>>())).unwrap();
    assert_eq!(block(segment_numbers(&store)).unwrap().len(), 8);
    let all = encode_segment(8, &(1..=1024).map(entry).collect::<Vec<_>>());
    block(store.put_over(&layout::manifest_key(8), all)).unwrap();
    assert_eq!(seen(&store), (1..=1024).collect::<Vec<_>>());
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    block(w.append(&store, &(1025..=3000).map(entry).collect::<Vec<_>>())).unwrap();
    assert_eq!(seen(&store), (1..=3000).collect::<Vec<_>>());
    block(w.remove(&store, &ids(1..=1))).unwrap();
    assert_eq!(seen(&store), (2..=3000).collect::<Vec<_>>());
    assert!(block(segment_numbers(&store)).unwrap().len() <= 12);
}

#[test]
fn removing_packs_and_the_writer_goes_on() {
    let store = Store::in_memory();
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    let all: Vec<_> = (1..=600).map(entry).collect();
    block(w.append(&store, &all)).unwrap();
    assert_eq!(block(w.remove(&store, &ids((1..=500).filter(|n| n % 50 != 0)))).unwrap(), 490);
    let left: Vec<u64> = (1..=500).filter(|n| n % 50 == 0).chain(501..=600).collect();
    assert_eq!(seen(&store), left);
    assert!(block(segment_numbers(&store)).unwrap().len() <= 3);
    block(w.append(&store, &[entry(601)])).unwrap();
    assert_eq!(block(w.remove(&store, &ids(1..=600))).unwrap(), 110);
    assert_eq!(seen(&store), [601]);
    block(w.append(&store, &[entry(602)])).unwrap();
    assert_eq!(seen(&store), [601, 602]);
    block(w.remove(&store, &ids(1..=700))).unwrap();
    assert_eq!(seen(&store), Vec::<u64>::new());
    block(w.append(&store, &[entry(603)])).unwrap();
    assert_eq!(seen(&store), [603]);
}

#[test]
fn a_damaged_segment_is_told_apart_and_left() {
    let store = Store::in_memory();
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    block(w.append(&store, &(1..=200).map(entry).collect::<Vec<_>>())).unwrap();
    block(store.put_over(&layout::manifest_key(2), bytes::Bytes::from_static(b"{}"))).unwrap();
    let m = block(Manifest::read(&store)).unwrap();
    assert_eq!((m.entries().count(), m.damaged.len(), m.segments), (128, 1, 2));
    let mut w = block(ManifestWriter::load(&store)).unwrap();
    block(w.append(&store, &[entry(900)])).unwrap();
    assert_eq!(block(Manifest::read(&store)).unwrap().entries().count(), 129);
    block(w.remove(&store, &ids(1..=1))).unwrap();
    assert_eq!(block(Manifest::read(&store)).unwrap().damaged.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Each prefix of the steps of a removal (a crash between them) still names everything that is kept.
    #[test]
    fn packing_never_loses_an_entry(
        sizes in proptest::collection::vec(0usize..=SEGMENT_FILES, 1..6),
        keep in any::<u64>(),
    ) {
        let mut n = 0;
        let mut on_disk: BTreeMap<u64, Vec<ManifestEntry>> = BTreeMap::new();
        for (i, size) in sizes.iter().enumerate() {
            on_disk.insert(i as u64 + 1, (0..*size).map(|_| { n += 1; entry(n) }).collect());
        }
        let newest = sizes.len() as u64;
        let kept = |e: &ManifestEntry| keep.rotate_left(e.id.min.0 as u32 % 64) & 1 == 1;
        let segments = on_disk
            .iter()
            .map(|(k, v)| (*k, v.iter().filter(|e| kept(e)).copied().collect(), v.len()))
            .collect();
        let wanted: BTreeSet<FileId> = on_disk.values().flatten().filter(|e| kept(e)).map(|e| e.id).collect();
        for step in pack(segments, newest) {
            match step {
                Step::Put(k, v) => { prop_assert!(v.len() <= PACKED_FILES); on_disk.insert(k, v); }
                Step::Drop(k) => { prop_assert_ne!(k, newest); on_disk.remove(&k); }
            }
            let named: BTreeSet<FileId> = on_disk.values().flatten().map(|e| e.id).collect();
            prop_assert!(wanted.is_subset(&named));
        }
        let named: BTreeSet<FileId> = on_disk.values().flatten().map(|e| e.id).collect();
        prop_assert_eq!(named, wanted);
    }
}

#[test]
fn two_writers_undo_nothing_of_each_other() {
    let store = Store::in_memory();
    let mut holder = block(ManifestWriter::load(&store)).unwrap();
    block(holder.append(&store, &(1..=100).map(entry).collect::<Vec<_>>())).unwrap();
    let mut other = block(ManifestWriter::load(&store)).unwrap();
    assert_eq!(block(other.remove(&store, &ids(1..=50))).unwrap(), 50);
    block(holder.append(&store, &[entry(101)])).unwrap();
    assert_eq!(seen(&store), (51..=101).collect::<Vec<_>>());
    block(holder.append(&store, &(102..=300).map(entry).collect::<Vec<_>>())).unwrap();
    block(other.append(&store, &[entry(301)])).unwrap();
    assert_eq!(block(other.remove(&store, &ids(60..=250))).unwrap(), 191);
    block(holder.append(&store, &[entry(302)])).unwrap();
    assert_eq!(seen(&store), (51..=59).chain(251..=302).collect::<Vec<_>>());
}
