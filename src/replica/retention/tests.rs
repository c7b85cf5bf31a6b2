use super::*;
use proptest::prelude::*;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
/// 2026-11-22T00:00:00Z.
const TODAY: i64 = 1_795_305_600_000;

fn file(level: u8, min: u64, max: u64, ms: i64) -> FileInfo {
    let id = FileId::new(Level::new(level).unwrap(), TxId(min), TxId(max)).unwrap();
    FileInfo::listed(id, 10, Timestamp(ms))
}

fn unlabelled() -> BTreeSet<TxId> {
    BTreeSet::new()
}

fn none() -> Policy {
    Policy { hourly: 0, daily: 0, weekly: 0, monthly: 0, pitr_window: Duration::ZERO, retain: None }
}

fn kept(files: &[FileInfo], policy: &Policy, now: i64) -> Vec<(u8, u64, u64)> {
    let r = retention(files, policy, &unlabelled(), Timestamp(now)).unwrap();
    r.keep.keys().map(|id| (id.level.get(), id.min.0, id.max.0)).collect()
}

#[test]
fn a_year_of_hourly_snapshots_leaves_about_fifty() {
    let hours = 365 * 24;
    let files: Vec<_> = (0..=hours).map(|h| file(9, 1, h as u64 + 1, TODAY + (h - hours) * HOUR)).collect();
    let r = retention(
        &files,
        &Policy { pitr_window: Duration::ZERO, ..Policy::default() },
        &unlabelled(),
        Timestamp(TODAY),
    )
    .unwrap();
    let count = |w: Why| r.keep.values().filter(|x| **x == w).count();
    let age_h = |id: &FileId| hours as u64 + 1 - id.max.0;
    assert_eq!(count(Why::Hourly), 24);
    assert!(r.keep.keys().filter(|id| age_h(id) < 24).count() == 24);
    assert_eq!(r.keep.len() + r.remove.len(), files.len());
    // 24 hours, 7 days, 12 weeks, 12 months, less those that are the same snapshot.
    assert!((45..=55).contains(&r.keep.len()), "{}", r.keep.len());
    for (n, unit) in [(7, DAY), (12, 7 * DAY), (12, 31 * DAY)] {
        // The oldest bucket may have begun up to two units after n units ago: it and the newest are cut by now.
        let oldest = TODAY - (n - 2) * unit;
        assert!(r.keep.keys().any(|id| TODAY - (age_h(id) as i64) * HOUR <= oldest));
    }
}

#[test]
fn tomorrow_keeps_what_today_kept_for_longer() {
    // Retention applied each hour for 100 days leaves a snapshot of each of the last 7 days, 12 weeks and 3 months.
    let policy = Policy { pitr_window: Duration::ZERO, ..Policy::default() };
    let (mut files, start) = (Vec::new(), TODAY - 100 * DAY);
    for h in 0..100 * 24 {
        let now = start + h * HOUR;
        files.push(file(9, 1, h as u64 + 1, now));
        let r = retention(&files, &policy, &unlabelled(), Timestamp(now)).unwrap();
        files.retain(|f| r.keep.contains_key(&f.id()));
    }
    let distinct = |w: Why| files.iter().map(|f| bucket(w, f.time)).collect::<BTreeSet<_>>().len();
    assert!(distinct(Why::Daily) >= 7 && distinct(Why::Weekly) >= 12 && distinct(Why::Monthly) >= 4);
    assert!(files.len() <= 55);
}

#[test]
fn two_snapshots_and_the_newest_stay_whatever_is_asked() {
    let files: Vec<_> = (1..=5).map(|n| file(9, 1, n, TODAY - (5 - n as i64) * DAY)).collect();
    assert_eq!(kept(&files, &none(), TODAY + 1000 * DAY), [(9, 1, 4), (9, 1, 5)]);
    assert_eq!(kept(&files[..1], &none(), TODAY), [(9, 1, 1)]);
    assert_eq!(kept(&[], &none(), TODAY), []);
}

#[test]
fn the_window_keeps_each_upload_and_what_it_rests_on() {
    // One upload a minute for 10 hours, a snapshot each hour.
    let at = |n: u64| TODAY + n as i64 * 60_000;
    let mut files = vec![file(9, 1, 1, at(1))];
    for n in 2..=600 {
        files.push(file(0, n, n, at(n)));
        if n % 60 == 0 {
            files.push(file(9, 1, n, at(n)));
        }
    }
    let policy = Policy { pitr_window: Duration::from_secs(2 * 3600), ..none() };
    let r = retention(&files, &policy, &unlabelled(), Timestamp(at(600))).unwrap();
    for n in 480..=600 {
        assert!(r.states.contains_key(&TxId(n)), "{n}");
    }
    // The window starts at 480; its base is the snapshot there, or one before it with the files between.
    assert!(r.remove.iter().any(|(f, _)| f.max == TxId(300) && f.level == Level::SNAPSHOT));
    assert!(r.remove.iter().all(|(f, _)| f.max < TxId(600)));
    assert!(r.keep.len() < 200, "{}", r.keep.len());
    // Newest first.
    assert!(r.remove.windows(2).all(|w| w[0].0.max >= w[1].0.max));
}

#[test]
fn a_day_without_a_snapshot_keeps_its_newest_merged_state() {
    // A large database: a merged file each hour, a snapshot each eight days.
    let hours: u64 = 17 * 24;
    let at = |h: u64| TODAY - 17 * DAY + h as i64 * HOUR;
    let mut files = vec![file(9, 1, 1, at(0))];
    for h in 1..hours {
        let txid = h + 1;
        files.push(file(0, txid, txid, at(h) + 1000));
        files.push(file(1, txid, txid, at(h) + 1000));
        files.push(file(3, txid, txid, at(h) + 1000));
        if h % (8 * 24) == 0 {
            files.push(file(9, 1, txid, at(h) + 1000));
        }
    }
    let policy = Policy { daily: 7, ..none() };
    let r = retention(&files, &policy, &unlabelled(), Timestamp(TODAY)).unwrap();
    let last_of_day = |ago: u64| TxId(hours - ago * 24);
    for ago in 0..7 {
        assert!(r.states.contains_key(&last_of_day(ago)), "{ago} days ago: {:?}", r.states.keys());
    }
    // What leads there and no more: a snapshot, and of each hour since the file of the highest level.
    assert!(r.keep.keys().filter(|id| id.level == Level::L0).count() == 1);
    let newest_snapshot = TxId(16 * 24 + 1);
    assert!(r.keep.keys().all(|id| id.level.get() != 1 || id.max > newest_snapshot), "{:?}", r.keep);
    assert!(!r.states.contains_key(&TxId(100)));
    // Without days to keep, the snapshots alone are left.
    let bare = retention(&files, &none(), &unlabelled(), Timestamp(TODAY)).unwrap();
    assert!(bare.keep.len() < r.keep.len());
}

#[test]
fn without_a_window_level_0_goes_but_for_the_newest_and_what_the_newest_state_needs() {
    let mut files = vec![file(9, 1, 1, 1), file(9, 1, 5, 5), file(9, 1, 9, 9)];
    files.extend((2..=12).map(|n| file(0, n, n, n as i64)));
    files.push(file(1, 2, 5, 5));
    assert_eq!(kept(&files, &none(), TODAY), [(0, 10, 10), (0, 11, 11), (0, 12, 12), (9, 1, 5), (9, 1, 9)]);
    // Once merged, level 0 shrinks to its newest.
    files.push(file(1, 10, 12, 12));
    assert_eq!(kept(&files, &none(), TODAY), [(0, 12, 12), (1, 10, 12), (9, 1, 5), (9, 1, 9)]);
}

#[test]
fn a_labelled_point_keeps_its_way_and_no_more() {
    let mut files: Vec<_> = [1, 100, 200, 300].map(|n| file(9, 1, n, n as i64)).into();
    files.extend((2..=300).map(|n| file(0, n, n, n as i64)));
    files.extend((1..30).map(|i| file(1, i * 10, i * 10 + 9, 1)));
    let newest_two = [(9, 1, 200), (9, 1, 300)];
    for (what, labelled, way) in [
        ("none", vec![], vec![]),
        ("a snapshot", vec![100], vec![(9, 1, 100)]),
        ("the end of a merged file", vec![119], vec![(1, 100, 109), (1, 110, 119), (9, 1, 100)]),
        (
            "a TXID within a merged file",
            vec![112],
            vec![(0, 110, 110), (0, 111, 111), (0, 112, 112), (1, 100, 109), (9, 1, 100)],
        ),
        ("the first", vec![1], vec![(9, 1, 1)]),
        ("the newest", vec![300], vec![]),
        ("one that is gone, or never was", vec![5000], vec![]),
    ] {
        let labelled = labelled.into_iter().map(TxId).collect();
        let r = retention(&files, &none(), &labelled, Timestamp(TODAY)).unwrap();
        let mut want: Vec<_> = way.into_iter().chain(newest_two).chain([(0, 300, 300)]).collect();
        want.sort_unstable();
        let kept: Vec<_> = r.keep.keys().map(|id| (id.level.get(), id.min.0, id.max.0)).collect();
        assert_eq!(kept, want, "{what}");
    }
    // A label of another history than the files around it keeps nothing, and stops nothing.
    let mut torn = files.clone();
    torn.retain(|f| f.max != TxId(112) || f.level != Level::L0);
    assert!(!retention(&torn, &none(), &[TxId(112)].into(), Timestamp(TODAY)).unwrap().remove.is_empty());
}

#[test]
fn a_damaged_replica_is_left_alone() {
    let files = [file(9, 1, 1, 1), file(9, 1, 2, 2), file(9, 1, 3, 3), file(0, 5, 5, 5)];
    let e = retention(&files, &none(), &unlabelled(), Timestamp(TODAY)).unwrap_err();
    assert!(e.is_corrupt() && e.to_string().starts_with("nothing is removed"), "{e}");
}

prop_compose! {
    /// A replica as we write them: uploads, snapshots, merges, gaps with new lineages.
    fn replicas()(
        steps in proptest::collection::vec((0u8..12, 1i64..200), 1..120),
    ) -> Vec<FileInfo> {
        let (mut n, mut time) = (1, TODAY);
        let mut files = vec![file(9, 1, 1, time)];
        let mut run = Vec::new();
        for (what, minutes) in steps {
            time += minutes * 60_000;
            n += 1;
            if what == 0 {
                // A gap: the snapshot takes the TXID.
                files.push(file(9, 1, n, time));
                run.clear();
                continue;
            }
            files.push(file(0, n, n, time));
            run.push(n);
            if what == 1 {
                files.push(file(9, 1, n, time));
            }
            if what == 2 {
                files.push(file(1, run[0], n, time));
                run.clear();
            }
        }
        files
    }
}

proptest! {
    #[test]
    fn every_kept_state_still_restores(
        files in replicas(),
        hourly in 0u32..5, daily in 0u32..4, weekly in 0u32..3, monthly in 0u32..3,
        window_min in 0u64..2000, later_min in 0i64..5000,
        labels in proptest::collection::vec(0usize..120, 0..4),
    ) {
        let labelled: BTreeSet<TxId> = labels.iter().filter_map(|i| files.get(*i)).map(|f| f.max).collect();
        let now = Timestamp(newest_time(&files).0 + later_min * 60_000);
        let window = Duration::from_secs(window_min * 60);
        let policy = Policy { hourly, daily, weekly, monthly, pitr_window: window, retain: None };
        let r = retention(&files, &policy, &labelled, now).unwrap();
        let left: Vec<FileInfo> = files.iter().filter(|f| r.keep.contains_key(&f.id())).cloned().collect();
        // The newest state, each upload within the window, each snapshot kept.
        let newest = files.iter().map(|f| f.max).max().unwrap();
        prop_assert_eq!(plan(&left, Point::Latest, now).unwrap().txid, newest);
        let start = now.0 - window.as_millis() as i64;
        for f in files.iter().filter(|f| f.level == Level::L0 && f.time.0 >= start) {
            prop_assert_eq!(plan(&left, Point::TxId(f.max), now).unwrap().txid, f.max);
        }
        for f in &left {
            prop_assert!(plan(&left, Point::TxId(f.max), now).is_ok());
        }
        for txid in &labelled {
            prop_assert_eq!(plan(&left, Point::TxId(*txid), now).unwrap().txid, *txid);
        }
        prop_assert!(left.iter().filter(|f| f.min.0 == 1).count() >= files.iter().filter(|f| f.min.0 == 1).count().min(2));
        // Any crash on the way: what is left then restores all that was kept, and no file is stranded.
        let mut on_way = files.clone();
        for (gone, _) in &r.remove {
            on_way.retain(|f| f.id() != gone.id());
            let states = restorable(&on_way);
            prop_assert!(r.states.keys().all(|t| states.contains_key(t)));
            prop_assert!(on_way.iter().all(|f| states.contains_key(&f.max)));
        }
        // Once more changes nothing.
        let again = retention(&left, &policy, &labelled, now).unwrap();
        prop_assert!(again.remove.is_empty(), "{:?}", again.remove);
    }
}
