use super::*;
use crate::ltx::Level;
use crate::replica::layout::FileId;
use proptest::prelude::*;
use std::collections::BTreeSet;

const NOW: Timestamp = Timestamp(1_000_000);

fn file(level: u8, min: u64, max: u64) -> FileInfo {
    let id = FileId::new(Level::new(level).unwrap(), TxId(min), TxId(max)).unwrap();
    FileInfo::listed(id, 1, Timestamp(max as i64 * 1000))
}

fn attested(mut f: FileInfo, before: u64, after: u64) -> FileInfo {
    let sum = |n| DbChecksum(n | DbChecksum::FLAG);
    (f.attest_before, f.attest_after) = (Some(sum(before)), Some(sum(after)));
    f
}

fn names(p: &Plan) -> Vec<(u8, u64, u64)> {
    p.files.iter().map(|f| (f.level.get(), f.min.0, f.max.0)).collect()
}

fn at(files: &[FileInfo], n: u64) -> Result<Plan> {
    plan(files, Point::TxId(TxId(n)), NOW)
}

#[test]
fn prefers_the_newest_snapshot_and_the_furthest_reach() {
    let files = [
        file(9, 1, 1),
        file(9, 1, 6),
        file(0, 2, 2),
        file(0, 3, 3),
        file(1, 2, 5),
        file(0, 6, 6),
        file(0, 7, 7),
        file(1, 6, 9),
        file(0, 8, 8),
        file(0, 9, 9),
        file(2, 6, 9),
    ];
    assert_eq!(names(&plan(&files, Point::Latest, NOW).unwrap()), [(9, 1, 6), (2, 6, 9)]);
    assert_eq!(names(&at(&files, 8).unwrap()), [(9, 1, 6), (0, 7, 7), (0, 8, 8)]);
    assert_eq!(names(&at(&files, 5).unwrap()), [(9, 1, 1), (1, 2, 5)]);
    assert_eq!(names(&at(&files, 3).unwrap()), [(9, 1, 1), (0, 2, 2), (0, 3, 3)]);
    let e = at(&files, 4).unwrap_err();
    assert!(e.is_missing() && e.to_string().contains("the nearest are 0000000000000003"), "{e}");
}

#[test]
fn a_time_is_not_certain_where_a_clock_was_ahead() {
    let timed =
        |n: u64, s: i64| FileInfo { time: Timestamp(s * 1000), ..file(if n == 1 { 9 } else { 0 }, n, n) };
    // Up to now = 1000 s: three states; then a clock that was ahead by an hour, and what came after it was put right.
    let files = [timed(1, 100), timed(2, 200), timed(3, 300), timed(4, 4600), timed(5, 4600)];
    let at_time =
        |files: &[FileInfo], s: i64| plan(files, Point::Time(Timestamp(s * 1000)), NOW).map(|p| p.txid.0);
    for s in [300, 999, 1000] {
        let e = at_time(&files, s).unwrap_err();
        assert!(
            e.is_missing() && e.to_string().contains("name a TXID from 0000000000000003 to 0000000000000005"),
            "{s}: {e}"
        );
    }
    assert_eq!(at_time(&files, 299).unwrap(), 2, "before the jump times are what they are");
    assert!(at_time(&files, 1001).is_err(), "the future is outside");
    // Another machine's clock that is ahead by less than a minute is no reason to refuse.
    let near = [timed(1, 100), timed(2, 1050)];
    assert_eq!(at_time(&near, 1000).unwrap(), 1);
    assert_eq!(plan(&files, Point::Latest, NOW).unwrap().txid, TxId(5));
}

#[test]
fn a_full_copy_at_level_0_is_a_start() {
    assert_eq!(names(&at(&[file(0, 1, 1), file(0, 2, 2)], 2).unwrap()), [(0, 1, 1), (0, 2, 2)]);
}

#[test]
fn outside_the_history_says_which_range_exists() {
    let files: Vec<_> = std::iter::once(file(9, 1, 3)).chain((4..=57).map(|n| file(0, n, n))).collect();
    for p in [
        Point::TxId(TxId(99)),
        Point::TxId(TxId(2)),
        Point::Time(Timestamp(2999)),
        Point::Time(Timestamp(1_000_001)),
    ] {
        let e = plan(&files, p, NOW).unwrap_err();
        assert!(e.is_missing());
        let text = e.to_string();
        assert!(
            text.contains(
                "is outside the history 0000000000000003..0000000000000039 (1970-01-01T00:00:03.000Z to 1970-01-01T00:00:57.000Z)"
            ),
            "{text}"
        );
    }
    assert!(at(&files, 99).unwrap_err().to_string().starts_with("TXID 0000000000000063 is outside"));
}

#[test]
fn a_time_means_the_state_as_of_it() {
    let files: Vec<_> = std::iter::once(file(9, 1, 3)).chain((4..=9).map(|n| file(0, n, n))).collect();
    for (t, n) in [(3000, 3), (3999, 3), (4000, 4), (4001, 4), (9000, 9), (9001, 9), (1_000_000, 9)] {
        assert_eq!(plan(&files, Point::Time(Timestamp(t)), NOW).unwrap().txid, TxId(n), "{t}");
    }
}

#[test]
fn an_empty_replica_and_one_without_snapshot() {
    assert!(plan(&[], Point::Latest, NOW).unwrap_err().to_string().contains("no LTX file"));
    assert!(plan(&[file(0, 2, 2)], Point::Latest, NOW).unwrap_err().to_string().contains("no snapshot"));
}

#[test]
fn a_gap_is_an_error_and_not_an_older_state() {
    let files = [file(9, 1, 2), file(0, 3, 3), file(0, 5, 5), file(0, 6, 6)];
    for p in [Point::Latest, Point::TxId(TxId(6)), Point::Time(Timestamp(6500))] {
        let e = plan(&files, p, NOW).unwrap_err();
        assert!(
            e.is_corrupt() && e.to_string().contains("no file continues at TXID 0000000000000004"),
            "{e}"
        );
    }
    assert_eq!(at(&files, 3).unwrap().txid, TxId(3));
}

#[test]
fn a_new_lineage_after_a_gap_starts_at_its_snapshot() {
    let files = [file(9, 1, 2), file(0, 3, 3), file(9, 1, 4), file(0, 5, 5)];
    assert_eq!(names(&plan(&files, Point::Latest, NOW).unwrap()), [(9, 1, 4), (0, 5, 5)]);
    assert_eq!(names(&at(&files, 3).unwrap()), [(9, 1, 2), (0, 3, 3)]);
}

#[test]
fn a_file_whose_checksum_does_not_follow_is_gone_around() {
    let files = [
        attested(file(9, 1, 2), 0, 2),
        attested(file(0, 3, 3), 2, 3),
        attested(file(0, 4, 4), 3, 4),
        attested(file(1, 3, 4), 77, 4),
    ];
    assert_eq!(names(&plan(&files, Point::Latest, NOW).unwrap()), [(9, 1, 2), (0, 3, 3), (0, 4, 4)]);
    let only_bad = [attested(file(9, 1, 2), 0, 2), attested(file(0, 3, 3), 77, 3)];
    let e = plan(&only_bad, Point::Latest, NOW).unwrap_err();
    assert!(e.is_corrupt() && e.to_string().contains("another history"), "{e}");
}

#[test]
fn a_foreign_snapshot_is_gone_around_by_the_one_before() {
    let files = [
        attested(file(9, 1, 1), 0, 1),
        attested(file(0, 2, 2), 1, 2),
        attested(file(9, 1, 2), 0, 55),
        attested(file(0, 3, 3), 2, 3),
    ];
    assert_eq!(names(&plan(&files, Point::Latest, NOW).unwrap()), [(9, 1, 1), (0, 2, 2), (0, 3, 3)]);
}

#[test]
fn a_day_of_one_second_files_is_planned_quickly() {
    let files: Vec<_> = std::iter::once(file(9, 1, 1)).chain((2..=86_400).map(|n| file(0, n, n))).collect();
    let start = crate::base::clock::uptime();
    assert_eq!(plan(&files, Point::Latest, Timestamp(i64::MAX)).unwrap().files.len(), 86_400);
    assert!(crate::base::clock::uptime() - start < std::time::Duration::from_secs(3));
}

/// All states any sequence of usable files leads to.
fn brute_force(files: &[FileInfo]) -> BTreeSet<TxId> {
    let mut reached: BTreeSet<TxId> = files.iter().filter(|f| f.min == TxId(1)).map(|f| f.max).collect();
    loop {
        let more: Vec<TxId> = reached
            .iter()
            .flat_map(|at| files.iter().filter(move |f| f.min <= at.next() && f.max > *at).map(|f| f.max))
            .filter(|m| !reached.contains(m))
            .collect();
        if more.is_empty() {
            return reached;
        }
        reached.extend(more);
    }
}

fn is_chain(p: &Plan) -> bool {
    let mut at = TxId::ZERO;
    p.files.iter().enumerate().all(|(i, f)| {
        let fits = if i == 0 { f.min == TxId(1) } else { f.min <= at.next() && f.max > at };
        at = f.max;
        fits
    }) && at == p.txid
}

proptest! {
    #[test]
    fn plans_reach_exactly_what_can_be_reached(
        raw in proptest::collection::vec((0u8..10, 1u64..20, 0u64..6), 0..25)
    ) {
        let files: Vec<FileInfo> = raw
            .iter()
            .map(|(level, min, more)| match level {
                0 => file(0, *min, *min),
                9 => file(9, 1, *min),
                l => file(*l, *min, min + more),
            })
            .collect();
        let expected = brute_force(&files);
        prop_assert_eq!(restorable(&files).into_keys().collect::<BTreeSet<_>>(), expected.clone());
        for n in 1..30 {
            match at(&files, n) {
                Ok(p) => {
                    prop_assert!(expected.contains(&TxId(n)));
                    prop_assert_eq!(p.txid, TxId(n));
                    prop_assert!(is_chain(&p));
                }
                Err(_) => prop_assert!(!expected.contains(&TxId(n))),
            }
        }
    }
}
