//! What a process leaves that dies between two files, and what the next holder of the seal lock makes of it.

use super::dir::create_dir;
use super::durable::{Durable, Missing, missing};
use super::files::list_files;
use super::lock::Mark;
use super::*;
use crate::base::{DbChecksum, Kind, Lineage, PageSize, Pgno, Timestamp, TxId};
use crate::ltx::{self, Attest, Encoder, Header, WalRange};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LINEAGE: Lineage = Lineage(7);

fn page_size() -> PageSize {
    PageSize::new(4096).unwrap()
}

fn sum_of(content: u8) -> u64 {
    ltx::page_checksum(Pgno::ONE, &[content; 4096])
}

/// The checksum of a database of one page, filled with that byte.
fn state(content: u8) -> DbChecksum {
    DbChecksum::EMPTY.toggle(sum_of(content))
}

/// A file of `txid` that takes the database from one state to another.
fn write(spool: &Spool, path: &Path, txid: u64, from: u8, to: u8, frame: u32) {
    let mut header = Header::new(page_size(), 1, TxId(txid), TxId(txid), Timestamp(5));
    header.lineage = LINEAGE;
    header.attest = Some(Attest { before: state(from), after: state(to) });
    header.wal = Some(WalRange { offset: 32 + u64::from(frame) * 4120, size: 4120, salt1: 1, salt2: 2 });
    spool
        .write_file(path, |w| {
            let mut e = Encoder::new(w, header)?;
            e.page(Pgno::ONE, &[to; 4096])?;
            e.finish().map(drop)
        })
        .unwrap();
}

fn position(txid: u64, pieces: u32, content: u8, frame: u32) -> Position {
    Position {
        lineage: LINEAGE,
        txid: TxId(txid),
        pieces,
        literal: false,
        page_size: page_size(),
        commit: 1,
        checksum: state(content),
        timestamp: Timestamp(5),
        wal: WalPlace::Known(WalPoint { salt1: 1, salt2: 2, frame, checksum: None }),
        handoff: Handoff::Live,
    }
}

/// A spool at TXID 4 with three pieces of TXID 5, which take the database from 10 to 13.
fn three_pieces() -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    for k in 0..3u8 {
        write(&spool, &spool.piece_path(TxId(5), k.into()), 5, 10 + k, 11 + k, k.into());
    }
    spool.sums().store(&[(Pgno::ONE, sum_of(13))]).unwrap();
    spool.set_position(&held(&spool), &position(4, 3, 13, 3)).unwrap();
    (dir, spool)
}

fn held(spool: &Spool) -> SealHeld<'_> {
    spool.hold_unsettled().unwrap()
}

/// As a process leaves the spool that dies between two files.
fn leave_half_done(spool: &Spool) {
    let held = held(spool);
    drop(spool.begin_change(&held).unwrap());
}

/// How many level-0 files may leave.
fn may_leave(spool: &Spool) -> usize {
    match spool.shippable().unwrap() {
        Shippable::Files(pending, _) => pending.len(),
        Shippable::Changing => panic!("the queue is being changed"),
    }
}

fn settled(spool: &Spool) -> Position {
    drop(spool.hold_seal().unwrap());
    spool.position().unwrap().unwrap()
}

#[test]
fn a_cut_without_its_position_is_finished_by_the_next_holder() {
    let (_dir, spool) = three_pieces();
    leave_half_done(&spool);
    spool.fold_pieces(TxId(5), 3, &spool.pending_path(TxId(5))).unwrap();
    assert!(spool.counted().unwrap().0 < TxId(5));
    assert_eq!(settled(&spool), position(5, 0, 13, 3));
    assert_eq!(list_files(&spool.dir.join("open")), Vec::<PathBuf>::new());
    assert_eq!(may_leave(&spool), 1);
}

#[test]
fn what_another_is_changing_is_not_waited_for() {
    let (_dir, spool) = three_pieces();
    write(&spool, &spool.pending_path(TxId(4)), 4, 1, 2, 1);
    let (changes, changed) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let (changes, changed) = (&changes, &changed);
    std::thread::scope(|threads| {
        let spool = &spool;
        threads.spawn(move || {
            let held = spool.hold_unsettled().unwrap();
            let change = spool.begin_change(&held).unwrap();
            changes.wait();
            changed.wait();
            change.done().unwrap();
        });
        changes.wait();
        assert_eq!(spool.shippable().unwrap(), Shippable::Changing);
        assert!(!spool.settle_if_free().unwrap(), "its holder is at work");
        changed.wait();
    });
    assert_eq!(may_leave(&spool), 1);
    // One that died over it is settled by whoever comes.
    leave_half_done(&spool);
    assert_eq!(spool.shippable().unwrap(), Shippable::Changing);
    assert!(spool.settle_if_free().unwrap());
    assert_eq!(may_leave(&spool), 1);
}

#[test]
fn a_thread_that_serves_many_does_not_wait_for_one() {
    let (_dir, spool) = three_pieces();
    let held = spool.hold_unsettled().unwrap();
    let waits = std::thread::scope(|threads| {
        let waiter = threads.spawn(|| {
            super::wait_at_most(std::time::Duration::from_millis(5));
            spool.hold_seal().map(drop).unwrap_err()
        });
        waiter.join().unwrap()
    });
    assert_eq!(waits.kind(), Kind::Retry);
    assert!(waits.to_string().contains("is held by another thread of this process"), "{waits}");
    drop(held);
}

#[test]
fn a_squash_without_its_position_is_finished_by_the_next_holder() {
    let (_dir, spool) = three_pieces();
    leave_half_done(&spool);
    let first = spool.piece_path(TxId(5), 0);
    spool.fold_pieces(TxId(5), 3, &spool.dir.join("open/x.ltx")).unwrap();
    fs::rename(spool.dir.join("open/x.ltx"), &first).unwrap();
    let p = settled(&spool);
    assert_eq!(p, position(4, 1, 13, 3));
    assert_eq!(list_files(&spool.dir.join("open")), vec![first]);
    assert_eq!(spool.cut(&held(&spool), &p).unwrap().txid, TxId(5));
}

#[test]
fn a_fold_of_fewer_pieces_than_there_are_is_litter() {
    let (_dir, spool) = three_pieces();
    let folded = spool.dir.join("open").join(format!("{}.fold.ltx", TxId(5)));
    spool.fold_pieces(TxId(5), 2, &folded).unwrap();
    assert_eq!(spool.recover(&held(&spool)).unwrap(), Some(position(4, 3, 13, 3)));
    assert!(!folded.exists());
}

#[test]
fn sums_ahead_of_the_position_leave_no_place_to_go_on_from() {
    let (_dir, spool) = three_pieces();
    leave_half_done(&spool);
    spool.sums().store(&[(Pgno::ONE, sum_of(99))]).unwrap();
    assert_eq!(settled(&spool).wal, WalPlace::GivenUp);
    assert_eq!(spool.seal_lock.mark().unwrap(), Mark::Clean);
}

#[test]
fn a_file_whose_commit_died_is_given_up_and_its_txid_remembered() {
    let (_dir, spool) = three_pieces();
    let p = spool.cut(&held(&spool), &position(4, 3, 13, 3)).unwrap();
    write(&spool, &spool.pending_path(TxId(6)), 6, 13, 14, 3);
    // Nothing of it leaves, unless a COMMIT waits for it.
    assert_eq!(may_leave(&spool), 1);
    assert_eq!(p.txid, TxId(5));
    assert_eq!(spool.recover(&held(&spool)).unwrap(), None);
    assert!(!spool.pending_path(TxId(6)).exists());
    assert_eq!(spool.ventured().unwrap().unwrap().txid, TxId(6));
    assert_eq!(spool.position().unwrap().unwrap().wal, WalPlace::GivenUp);
}

#[test]
fn a_file_that_a_commit_waits_for_is_left_and_may_leave() {
    let (_dir, spool) = three_pieces();
    spool.cut(&held(&spool), &position(4, 3, 13, 3)).unwrap();
    write(&spool, &spool.pending_path(TxId(6)), 6, 13, 14, 3);
    spool.set_ahead(&held(&spool)).unwrap();
    assert_eq!(may_leave(&spool), 2);
    assert_eq!(spool.recover(&held(&spool)).unwrap(), Some(position(5, 0, 13, 3)));
    assert!(spool.is_ahead(&held(&spool)).unwrap() && spool.is_ahead_alive().unwrap());
    spool.no_longer_ahead();
    assert_eq!(spool.recover(&held(&spool)).unwrap(), None);
    assert!(!spool.is_ahead(&held(&spool)).unwrap());
}

#[test]
fn lock_files_of_deleted_spools_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock.ship");
    let count = || std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count());
    let before = count();
    for _ in 0..200 {
        let l = LockFile::open(&path).unwrap();
        assert!(Arc::ptr_eq(&l, &LockFile::open(&path).unwrap()));
        std::fs::remove_file(&path).unwrap();
    }
    assert!(count() < before + 100, "{} descriptors more", count() - before);
}

/// Whether the kernel has a lock on the file.
#[cfg(target_os = "linux")]
fn is_locked(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{} ", std::fs::metadata(path).unwrap().ino());
    std::fs::read_to_string("/proc/locks").unwrap().contains(&inode)
}

/// How many descriptors of this process are on the file.
#[cfg(target_os = "linux")]
fn descriptors(path: &Path) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path)).count()
}

#[cfg(target_os = "linux")]
#[test]
fn a_lock_file_is_open_while_it_is_used_and_no_close_takes_a_lock_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("lock.seal");
    let l = LockFile::open(&path).unwrap();
    assert_eq!((descriptors(&path), is_locked(&path)), (0, false));
    let held = l.hold().unwrap();
    assert_eq!((descriptors(&path), is_locked(&path)), (1, true));
    // Other uses of the file come and go, under another name of it, too.
    l.set_mark(&held, Mark::Changing).unwrap();
    assert_eq!(l.mark().unwrap(), Mark::Changing);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let same = LockFile::open(&link.join("lock.seal")).unwrap();
    assert!(Arc::ptr_eq(&l, &same) && same.mark().is_ok() && same.try_hold().unwrap().is_none());
    assert!(!same.is_held_elsewhere().unwrap());
    assert_eq!((descriptors(&path), is_locked(&path)), (1, true));
    drop(held);
    assert_eq!((descriptors(&path), is_locked(&path)), (0, false));
    // Taken for long, without a keeper.
    assert!(l.try_process().unwrap() && l.try_process().unwrap());
    l.mark().unwrap();
    assert!(is_locked(&path));
    l.release();
    assert_eq!((descriptors(&path), is_locked(&path)), (0, false));
}

#[test]
fn a_lock_file_made_anew_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock.seal");
    let l = LockFile::open(&path).unwrap();
    for _ in 0..20 {
        std::fs::remove_file(&path).unwrap();
        assert!(l.is_missing() && l.hold().is_err_and(|e| e.is_missing()));
        // (Its inode number is likely the same.)
        let anew = LockFile::open(&path).unwrap();
        assert!(l.is_replaced() && l.hold().is_err_and(|e| e.is_missing()) && l.mark().is_err());
        assert!(!anew.is_replaced() && anew.hold().is_ok());
    }
}

#[test]
fn what_is_still_to_be_synced() {
    let known = |txid, pieces| Some(Durable { lineage: LINEAGE, txid: TxId(txid), pieces, record: 0 });
    let whole = Some(Durable::of(&position(4, 3, 13, 3)));
    let want = |after, from_piece| Some(Missing { after: TxId(after), from_piece });
    let table = [
        ("nothing is known", position(4, 3, 13, 3), None, want(0, 0)),
        ("all of it is", position(4, 3, 13, 3), whole, None),
        ("only the place in the WAL is another", position(4, 3, 13, 0), whole, want(4, 3)),
        ("two pieces of three", position(4, 3, 13, 3), known(4, 2), want(4, 2)),
        ("pieces of a TXID that was cut since", position(5, 1, 13, 3), known(4, 3), want(4, 0)),
        ("more pieces than there are: others", position(4, 1, 13, 3), known(4, 3), want(0, 0)),
        ("a later TXID: another spool's", position(4, 3, 13, 3), known(5, 0), want(0, 0)),
        (
            "another history",
            position(4, 3, 13, 3),
            Some(Durable { lineage: Lineage(8), txid: TxId(4), pieces: 3, record: 0 }),
            want(0, 0),
        ),
    ];
    for (what, p, known, want) in table {
        assert_eq!(missing(&p, known), want, "{what}");
    }
}

/// What another process sealed, or one before this, is on disk as well when [`Spool::make_durable`] says so, once.
#[test]
fn what_was_made_durable_is_known_until_another_file_bears_its_name() {
    let (_dir, spool) = three_pieces();
    let known = |s: &Spool| s.durable().unwrap().map(|d| (d.txid.0, d.pieces));
    assert_eq!(known(&spool), None);
    spool.make_durable().unwrap();
    assert_eq!(known(&spool), Some((4, 3)));
    // A process that starts now knows as much.
    let again = Spool::open(spool.dir()).unwrap();
    assert_eq!(known(&again), Some((4, 3)));
    let p = again.squash(&held(&again), &position(4, 3, 13, 3)).unwrap();
    assert_eq!(known(&again), None, "the first piece is another file");
    again.make_durable().unwrap();
    assert_eq!(known(&spool), Some((4, 1)));
    let p = spool.cut(&held(&spool), &p).unwrap();
    spool.make_durable().unwrap();
    assert_eq!((p.txid, known(&spool)), (TxId(5), Some((5, 0))));
    let held = held(&spool);
    spool.clear(&held).unwrap();
    assert_eq!(known(&spool), None);
    // Damage is not believed.
    spool.set_durable(&held, Durable::of(&position(9, 0, 13, 3))).unwrap();
    spool.seal_lock.write_at(&held.lock, &[0xff], super::held::MARK_AT).unwrap();
    assert_eq!(known(&spool), None);
}

#[test]
fn a_piece_that_cannot_be_synced_is_an_error() {
    let (_dir, spool) = three_pieces();
    let piece = spool.piece_path(TxId(5), 1);
    fs::remove_file(&piece).unwrap();
    std::os::unix::fs::symlink(&piece, &piece).unwrap();
    assert!(spool.make_durable().unwrap_err().to_string().contains("sync"));
    assert_eq!(spool.durable().unwrap(), None);
}

/// A power cut may take the last positions, which are not synced at each seal, and leave the pieces.
#[test]
fn all_pieces_that_continue_the_position_are_adopted() {
    for left in 0..3 {
        let (_dir, spool) = three_pieces();
        spool.set_position(&held(&spool), &position(4, left, 10 + left as u8, left)).unwrap();
        let p = spool.recover(&held(&spool)).unwrap().unwrap();
        assert_eq!((p.pieces, p.checksum, p.wal.point().unwrap().frame), (3, state(13), 3), "from {left}");
        assert_eq!(list_files(&spool.dir.join("open")).len(), 3);
    }
    // Those of another history, and those that do not go on from the last, are not.
    let (_dir, spool) = three_pieces();
    fs::remove_file(spool.piece_path(TxId(5), 1)).unwrap();
    spool.sums().store(&[(Pgno::ONE, sum_of(11))]).unwrap();
    spool.set_position(&held(&spool), &position(4, 1, 11, 1)).unwrap();
    assert_eq!(spool.recover(&held(&spool)).unwrap(), Some(position(4, 1, 11, 1)));
    assert!(!spool.piece_path(TxId(5), 2).exists());
}

#[test]
fn which_pieces_go_on_from_a_position() {
    let piece = |lineage, before, salt2, frame| {
        let mut h = Header::new(page_size(), 1, TxId(5), TxId(5), Timestamp(5));
        h.lineage = Lineage(lineage);
        h.attest = Some(Attest { before: state(before), after: state(99) });
        h.wal = Some(WalRange::of_frames(page_size(), frame, frame + 1, (1, salt2)));
        h
    };
    let table = [
        ("the next frame", piece(7, 13, 2, 3), true),
        ("the first of the next generation", piece(7, 13, 9, 0), true),
        ("another history", piece(8, 13, 2, 3), false),
        ("another state", piece(7, 12, 2, 3), false),
        ("frames that are sealed, of a piece that was folded", piece(7, 13, 2, 1), false),
        ("the very frame", piece(7, 13, 2, 2), false),
    ];
    for (what, h, want) in table {
        assert_eq!(super::recover::continues(&position(4, 3, 13, 3), &h), want, "{what}");
    }
}

#[test]
fn a_place_in_the_wal_reads_as_it_was_written() {
    let at = |salt1, salt2| WalPoint { salt1, salt2, frame: 3, checksum: None };
    let table = [
        (WalPlace::Known(at(1, 2)), r#"{"salt1":1,"salt2":2,"frame":3,"checksum":null}"#),
        (WalPlace::Known(at(0, 2)), r#"{"salt1":0,"salt2":2,"frame":3,"checksum":null}"#),
        (WalPlace::InFile, r#"{"salt1":0,"salt2":0,"frame":0,"checksum":null}"#),
        (WalPlace::GivenUp, "null"),
    ];
    for (place, text) in table {
        assert_eq!(serde_json::to_string(&place).unwrap(), text);
        assert_eq!(serde_json::from_str::<WalPlace>(text).unwrap(), place);
        assert_eq!(place.is_given_up(), text == "null");
    }
}

/// Another process clears its spool while this one opens it.
#[test]
fn a_directory_that_is_being_removed_is_made() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("merge");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                drop(std::fs::create_dir(&dir));
                drop(std::fs::remove_dir(&dir));
            }
        });
        let made = (0..1_000).try_for_each(|_| create_dir(&dir, None));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        made.unwrap();
    });
    std::fs::write(&dir, "a file")
        .or_else(|_| std::fs::remove_dir(&dir).and_then(|()| std::fs::write(&dir, "a file")))
        .unwrap();
    assert!(create_dir(&dir, None).is_err(), "a file is in its place");
    assert!(Spool::open(&dir).is_err(), "a file is in the spool's place");
    std::fs::remove_file(&dir).unwrap();
    std::os::unix::fs::symlink("nowhere", &dir).unwrap();
    assert!(create_dir(&dir, None).is_err(), "a link to nowhere is in its place");
}

/// A spool at TXID 4 whose queue holds 3 and 4, and a mirror's queue that follows from 2.
fn mirrored() -> (tempfile::TempDir, Arc<Spool>, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(dir.path()).unwrap());
    for txid in [3u8, 4] {
        write(&spool, &spool.pending_path(TxId(txid.into())), txid.into(), txid - 1, txid, txid.into());
    }
    spool.set_position(&held(&spool), &position(4, 0, 4, 4)).unwrap();
    let mirror = spool.mirror("file:///m", 1 << 20).unwrap();
    (dir, spool, mirror)
}

fn waiting(queue: &Spool) -> Vec<u64> {
    match queue.shippable().unwrap() {
        Shippable::Files(pending, snapshots) => pending.iter().chain(&snapshots).map(|q| q.txid.0).collect(),
        Shippable::Changing => panic!("nobody changes it"),
    }
}

fn ship(spool: &Spool, txid: u64) {
    let q = spool.pending().unwrap().into_iter().find(|q| q.txid == TxId(txid)).unwrap();
    spool.hand_on(&q);
    remove_if_there(&q.path).unwrap();
}

#[test]
fn a_mirror_gets_what_the_replica_has_and_what_it_has_not() {
    let (_dir, spool, mirror) = mirrored();
    assert_eq!(waiting(&mirror), [0; 0], "a new one is behind");
    ship(&spool, 3);
    assert_eq!(mirror.pending().unwrap(), []);
    mirror.follow_from(TxId(3)).unwrap();
    // The replica is away: what waits for it is taken up, once.
    assert_eq!(waiting(&mirror), [4]);
    assert_eq!(waiting(&mirror), [4]);
    ship(&spool, 4);
    assert_eq!(waiting(&mirror), [4], "it has its own link");
    write(&spool, &spool.pending_path(TxId(5)), 5, 4, 5, 5);
    assert_eq!(waiting(&mirror), [4], "not counted yet");
    spool.set_position(&held(&spool), &position(5, 0, 5, 5)).unwrap();
    ship(&spool, 5);
    assert_eq!(waiting(&mirror), [4, 5]);
    // What it has is not handed on to it again.
    let shipped = Shipped {
        replica: "file:///m".into(),
        lineage: LINEAGE,
        txid: TxId(5),
        snapshot: TxId(1),
        snapshot_time: None,
        time: Timestamp(1),
        change: Growth::default(),
    };
    mirror.set_shipped(&shipped).unwrap();
    mirror.pending().unwrap().iter().for_each(|q| remove_if_there(&q.path).unwrap());
    write(&spool, &spool.pending_path(TxId(5)), 5, 4, 5, 5);
    ship(&spool, 5);
    assert_eq!(waiting(&mirror), [0; 0]);
    assert_eq!(spool.mirror_cursor("file:///m").unwrap(), Some(shipped));
    assert!(spool.may_have_left(TxId(5)).unwrap() && !spool.may_have_left(TxId(6)).unwrap());
    // Whose files they are, the spool says.
    spool.own("file:///replica", LINEAGE).unwrap();
    assert!(mirror.owns("file:///m", LINEAGE).unwrap() && !mirror.owns("file:///m", Lineage(8)).unwrap());
}

#[test]
fn what_a_commit_asked_for_reaches_a_mirror_when_it_has_come_to_be() {
    let (_dir, spool, mirror) = mirrored();
    mirror.follow_from(TxId(3)).unwrap();
    spool.ask(&held(&spool), TxId(4)).unwrap();
    assert_eq!(waiting(&mirror), [0; 0]);
    ship(&spool, 4);
    assert_eq!(waiting(&mirror), [0; 0], "the replica has it, and it may never come to be");
    spool.has_come_to_be(TxId(4)).unwrap();
    assert_eq!(waiting(&mirror), [4]);
    assert!(!spool.is_asked(TxId(4)));
    // One that did not come to be is forgotten, and handed on to nobody.
    write(&spool, &spool.pending_path(TxId(5)), 5, 4, 5, 5);
    spool.ask(&held(&spool), TxId(5)).unwrap();
    spool.give_up(&held(&spool), TxId(5)).unwrap();
    spool.forget_asked(TxId(5)).unwrap();
    assert_eq!(waiting(&mirror), [4]);
}

#[test]
fn a_queue_that_grows_beyond_its_bound_is_behind_and_empty() {
    let (_dir, spool, mirror) = mirrored();
    mirror.follow_from(TxId(2)).unwrap();
    assert_eq!(waiting(&mirror), [3, 4]);
    let small = spool.mirror("file:///m", 1).unwrap();
    assert_eq!(small.follows_from().unwrap(), Some(TxId(2)), "another bound, the same queue");
    write(&spool, &spool.pending_path(TxId(5)), 5, 4, 5, 5);
    spool.set_position(&held(&spool), &position(5, 0, 5, 5)).unwrap();
    ship(&spool, 5);
    assert_eq!((small.follows_from().unwrap(), waiting(&small)), (None, vec![]));
    // A history that is given up is no mirror's to go on from.
    let other = spool.mirror("file:///n", 1 << 20).unwrap();
    other.follow_from(TxId(2)).unwrap();
    spool.clear(&held(&spool)).unwrap();
    assert_eq!((other.follows_from().unwrap(), other.pending().unwrap()), (None, vec![]));
    // One that is not wanted any more stays for a day.
    spool.keep_mirrors(&["file:///m"]).unwrap();
    assert!(other.dir().exists());
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
    for name in ["mirror.json", "shipped.json"] {
        if let Ok(f) = fs::File::open(other.dir().join(name)) {
            f.set_modified(long_ago).unwrap();
        }
    }
    spool.keep_mirrors(&["file:///m"]).unwrap();
    assert!(!other.dir().exists() && small.dir().exists());
}
