//! The pure decisions, as tables.

use super::continuity::{
    Continuity, Left, begins_after, continues, is_at, left_under, may_be_followed, sealed_frame,
};
use super::generation::{AtClose, at_close};
use super::resets::{
    CHECKPOINT_STEP, LONG_TAIL, LONG_WAL, Permit, Reset, Resetter, SHORT_TAIL, checkpoint_tail,
    may_checkpoint, may_reset, may_take_write,
};
use crate::base::{DbChecksum, Lineage, PageSize, Timestamp, TxId};
use crate::spool::{FileStamp, Handoff, Position, WalPlace, WalPoint};
use crate::wal::{IndexHeader, Salt};

fn header(salt: (u32, u32), max_frame: u32) -> IndexHeader {
    IndexHeader { salt: Salt { salt1: salt.0, salt2: salt.1 }, max_frame, ..IndexHeader::EMPTY }
}

fn stamp(size: u64) -> FileStamp {
    FileStamp { dev_ino: (1, 2), size, mtime: 3, ctime: 4 }
}

fn position(wal: WalPlace, handoff: Handoff) -> Position {
    Position {
        lineage: Lineage(1),
        txid: TxId(4),
        pieces: 0,
        literal: false,
        page_size: PageSize::new(4096).unwrap(),
        commit: 1,
        checksum: DbChecksum::EMPTY,
        timestamp: Timestamp(5),
        wal,
        handoff,
    }
}

fn known(salt1: u32, salt2: u32, frame: u32) -> WalPlace {
    WalPlace::Known(WalPoint { salt1, salt2, frame, checksum: None })
}

const LIVE: Handoff = Handoff::Live;

#[test]
fn how_far_a_header_is_sealed() {
    let table = [
        ("all of it", known(1, 2, 7), (1, 2), 7, Some(7)),
        ("a part", known(1, 2, 5), (1, 2), 7, Some(5)),
        ("a power cut took the tail", known(1, 2, 8), (1, 2), 7, None),
        ("another first salt", known(9, 2, 5), (1, 2), 7, None),
        ("another second salt", known(1, 9, 5), (1, 2), 7, None),
        ("no generation is begun", WalPlace::InFile, (0, 0), 0, None),
        ("given up", WalPlace::GivenUp, (1, 2), 7, None),
    ];
    for (what, place, salt, frames, want) in table {
        assert_eq!(sealed_frame(&position(place, LIVE), &header(salt, frames)), want, "{what}");
    }
}

#[test]
fn what_goes_on_from_a_position() {
    let closed = Handoff::Closed(stamp(1));
    let table = [
        ("the same generation", known(1, 2, 5), LIVE, (1, 2), 7, None, true),
        ("an empty WAL over the file that was left", known(1, 2, 5), closed, (8, 9), 0, Some(stamp(1)), true),
        ("an empty WAL over another file", known(1, 2, 5), closed, (8, 9), 0, Some(stamp(2)), false),
        ("an empty WAL over no file", known(1, 2, 5), closed, (8, 9), 0, None, false),
        (
            "frames that nobody announced, on the file that was left",
            known(1, 2, 5),
            closed,
            (8, 9),
            1,
            Some(stamp(1)),
            true,
        ),
        (
            "the same after a view without a generation",
            WalPlace::InFile,
            closed,
            (8, 9),
            1,
            Some(stamp(1)),
            true,
        ),
        ("the same on another file", known(1, 2, 5), closed, (8, 9), 1, Some(stamp(2)), false),
        ("the same after no close", known(1, 2, 5), LIVE, (8, 9), 1, Some(stamp(1)), false),
        ("the same, given up", WalPlace::GivenUp, closed, (8, 9), 1, Some(stamp(1)), false),
        ("an empty WAL after no close", known(1, 2, 5), LIVE, (8, 9), 0, Some(stamp(1)), false),
        ("given up", WalPlace::GivenUp, LIVE, (1, 2), 7, Some(stamp(1)), false),
    ];
    for (what, place, handoff, salt, frames, now, want) in table {
        assert_eq!(continues(&position(place, handoff), &header(salt, frames), || now), want, "{what}");
    }
    // Where a checkpoint has put something into it, the file may have been another one before. A wal-index that was made anew after a
    // crash has all frames attempted.
    for (backfilled, attempted, want) in [(1, 1, false), (0, 1, true)] {
        let h = IndexHeader { backfilled, backfill_attempted: attempted, ..header((8, 9), 1) };
        let found = continues(&position(known(1, 2, 5), closed), &h, || Some(stamp(1)));
        assert_eq!(found, want, "{backfilled} of {attempted}");
    }
    for (what, sealed) in [("it is known", 1), ("it was read before the close", 3)] {
        let p = position(known(8, 9, sealed), closed);
        assert!(!begins_after(&p, &header((8, 9), 2), || Some(stamp(1))), "{what}");
    }
}

#[test]
fn what_is_left_under_a_header_of_a_while_ago() {
    let closed = Handoff::Closed(stamp(1));
    let salt = |salt1, salt2| Some(Salt { salt1, salt2 });
    let table = [
        ("all was sealed", known(1, 2, 7), LIVE, 7, salt(1, 2), Left::Nothing),
        ("and more, and closed", known(1, 2, 9), closed, 7, None, Left::Nothing),
        ("a part", known(1, 2, 5), LIVE, 7, salt(1, 2), Left::Frames),
        ("a part, and the WAL is gone", known(1, 2, 5), LIVE, 7, None, Left::Missed),
        ("a part, and the WAL was restarted", known(1, 2, 5), LIVE, 7, salt(8, 9), Left::Missed),
        ("others went on", known(8, 9, 3), LIVE, 7, salt(8, 9), Left::Nothing),
        ("others went on and closed", known(8, 9, 3), closed, 7, None, Left::Nothing),
        ("nobody has told of its generation", known(8, 9, 3), closed, 7, salt(1, 2), Left::Frames),
        ("the same, of no generation", WalPlace::InFile, closed, 7, salt(1, 2), Left::Frames),
        ("an empty WAL", known(8, 9, 3), LIVE, 0, salt(1, 2), Left::Nothing),
        ("given up", WalPlace::GivenUp, LIVE, 7, salt(1, 2), Left::Missed),
    ];
    for (what, place, handoff, frames, now, want) in table {
        assert_eq!(left_under(&position(place, handoff), &header((1, 2), frames), now), want, "{what}");
    }
}

/// I-CAP-2.
#[test]
fn what_another_generation_may_follow() {
    let closed = Handoff::Closed(stamp(1));
    let table = [
        ("sealed to its end", known(1, 2, 7), LIVE, (1, 2), 7, true),
        ("a frame is missing", known(1, 2, 6), LIVE, (1, 2), 7, false),
        ("another generation", known(1, 3, 7), LIVE, (1, 2), 7, false),
        ("empty, after a close", known(1, 2, 7), closed, (8, 9), 0, true),
        ("empty, after none", known(1, 2, 7), LIVE, (8, 9), 0, false),
        ("frames, after a close", known(1, 2, 7), closed, (8, 9), 3, false),
        ("given up", WalPlace::GivenUp, LIVE, (1, 2), 7, false),
    ];
    for (what, place, handoff, salt, frames, want) in table {
        assert_eq!(may_be_followed(&position(place, handoff), &header(salt, frames)), want, "{what}");
    }
}

#[test]
fn what_a_position_is_at() {
    let closed = Handoff::Closed(stamp(1));
    let table = [
        ("sealed up to the view", known(1, 2, 7), LIVE, (1, 2), 7, true),
        ("sealed further", known(1, 2, 8), LIVE, (1, 2), 7, false),
        ("not as far", known(1, 2, 6), LIVE, (1, 2), 7, false),
        ("another generation", known(1, 3, 7), LIVE, (1, 2), 7, false),
        ("an empty WAL, none of it sealed", known(1, 2, 0), LIVE, (1, 2), 0, true),
        ("an empty WAL, with sealed frames", known(1, 2, 7), LIVE, (8, 9), 0, false),
        ("an empty WAL after a close", known(1, 2, 7), closed, (8, 9), 0, true),
        ("no generation, no frames", WalPlace::InFile, closed, (0, 0), 0, true),
        ("no generation, but frames", WalPlace::InFile, closed, (1, 2), 3, false),
        (
            "given up, with an empty WAL: not everything is in the file that we know of",
            WalPlace::GivenUp,
            LIVE,
            (8, 9),
            0,
            false,
        ),
        ("given up", WalPlace::GivenUp, LIVE, (1, 2), 7, false),
    ];
    for (what, place, handoff, salt, frames, want) in table {
        assert_eq!(is_at(&position(place, handoff), &header(salt, frames)), want, "{what}");
    }
}

#[test]
fn which_reset_is_let_through() {
    use Continuity::{Idle, Kept, Lost, Resyncing};
    use Resetter::{Checkpoint, Commit};
    const TAIL: u32 = 16_384;
    let lost = || Lost("a test".into());
    let table = [
        ("a resync needs the WAL as it is", Resyncing, 0, Some(5), Commit, Reset::Refuse),
        ("… for whoever asks", Resyncing, 0, None, Checkpoint, Reset::Refuse),
        ("nothing is captured", Idle, 9, Some(9), Commit, Reset::Pass),
        ("nothing is left to protect", lost(), 9_999, Some(9_999), Commit, Reset::Pass),
        ("no WAL is seen", Kept, 0, None, Checkpoint, Reset::Pass),
        ("an empty WAL", Kept, 0, Some(0), Commit, Reset::Pass),
        ("all is sealed: synced", Kept, 0, Some(9), Commit, Reset::Seal),
        ("a short tail", Kept, SHORT_TAIL, Some(LONG_WAL - 1), Commit, Reset::Seal),
        ("a longer one", Kept, SHORT_TAIL + 1, Some(LONG_WAL - 1), Commit, Reset::Refuse),
        ("… in a long WAL", Kept, SHORT_TAIL + 1, Some(LONG_WAL), Commit, Reset::Seal),
        ("the longest there", Kept, LONG_TAIL, Some(LONG_WAL), Commit, Reset::Seal),
        ("too long there, too", Kept, LONG_TAIL + 1, Some(LONG_WAL), Commit, Reset::Refuse),
        ("somebody waits for the checkpoint", Kept, TAIL, Some(99_999), Checkpoint, Reset::Seal),
        ("not for ever", Kept, TAIL + 1, Some(99_999), Checkpoint, Reset::Refuse),
    ];
    for (what, continuity, tail, frames, by, want) in table {
        assert_eq!(may_reset(&continuity, tail, frames, by, TAIL), want, "{what}");
    }
}

#[test]
fn which_checkpoint_runs_while_resets_are_refused() {
    for (tail, waiting, want) in [
        (SHORT_TAIL, 0, Permit::Granted),
        (SHORT_TAIL + 1, CHECKPOINT_STEP - 1, Permit::Refused),
        (SHORT_TAIL + 1, CHECKPOINT_STEP, Permit::Granted),
    ] {
        assert_eq!(may_checkpoint(tail, waiting), want, "{tail} {waiting}");
    }
    use Continuity::{Idle, Kept, Lost, Resyncing};
    for (continuity, tail, want) in [
        (Resyncing, None, Permit::Refused),
        (Resyncing, Some(0), Permit::Refused),
        (Kept, Some(8), Permit::Granted),
        (Kept, Some(9), Permit::Refused),
        (Kept, None, Permit::Granted),
        (Idle, Some(9), Permit::Granted),
        (Lost("a test".into()), Some(9), Permit::Granted),
    ] {
        assert_eq!(may_take_write(&continuity, tail, 8), want, "{continuity:?} {tail:?}");
    }
    let of = |size: u32| {
        checkpoint_tail(&IndexHeader { page_size: Some(PageSize::new(size).unwrap()), ..IndexHeader::EMPTY })
    };
    assert_eq!((of(4096), of(65536), of(512)), (16_384, 1_024, 131_072), "64 MiB");
}

#[test]
fn what_the_last_close_does() {
    let table = [
        ("frames", Some(3), false, false, AtClose::Seal),
        ("an empty WAL that is known", Some(0), true, false, AtClose::Nothing),
        ("an empty WAL that is not", Some(0), false, true, AtClose::Changed),
        ("none that can be seen, nothing written since the last close", None, false, true, AtClose::Nothing),
        ("none that can be seen", None, true, false, AtClose::Changed),
    ];
    for (what, frames, is_known, is_as_closed, want) in table {
        assert_eq!(at_close(frames, || is_known, || is_as_closed), want, "{what}");
        assert_eq!(want.check().is_err(), want == AtClose::Changed);
    }
}

/// What `ltx` says of a WAL range is what `wal` says of its frames.
#[test]
fn a_range_of_frames_is_where_the_wal_has_them() {
    use crate::ltx::WalRange;
    for size in [512, 4096, 65536] {
        let size = PageSize::new(size).unwrap();
        for (after, last) in [(0, 0), (0, 1), (3, 9)] {
            let r = WalRange::of_frames(size, after, last, (1, 2));
            let start =
                |frame: u32| crate::wal::page_offset(frame, size) - crate::wal::FRAME_HEADER_LEN as u64;
            assert_eq!((r.offset, r.offset + r.size), (start(after + 1), start(last + 1)));
            assert_eq!(r.last_frame(size), last);
        }
    }
}
