//! A point in a replica's history, as a person names it: a TXID, a time, "the newest", or a label. Each place that takes a point takes it by
//! [`Named::parse`]: there is one grammar.
//!
//! Rules: text is read strictly, and what cannot be read is an error that shows the accepted forms; a time
//! without a zone is UTC, as in SQLite's own date functions. Whatever is a TXID, a time or an age is that, and no label. Pure: which TXID a
//! label names is looked up in the replica ([`super::labels::point_of`]). Refused: guessing the local time zone,
//! because one restore script would then mean two points on two machines.

use super::label::{self, LabelName};
use crate::base::{Error, Result, Timestamp, TxId, quoted};
use chrono::{DateTime, NaiveDate, NaiveDateTime};

/// Which state of the database is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The newest state the replica holds.
    Latest,
    /// The state right after this TXID.
    TxId(TxId),
    /// The newest state whose file time is at or before this time.
    Time(Timestamp),
}

/// A point as it was said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Named {
    /// One that says which it is.
    Point(Point),
    /// One that the replica has under this name.
    Label(LabelName),
}

/// What may be said, for errors.
pub const FORMS: &str = "allowed are a TXID (57, or 16 hex digits as Litestream shows them), a time \
('2026-11-22T18:04:43Z', '2026-11-22 18:04:43' in UTC), an age ('5 minutes ago', '1h ago'), 'latest', or a label's name";

impl Named {
    /// From text: everything that [`Point::parse`] reads, else the name of a label. Errors with `Config` for what is neither.
    pub fn parse(text: &str, now: Timestamp) -> Result<Named> {
        match Point::parse(text, now) {
            Ok(point) => Ok(Named::Point(point)),
            Err(e) => LabelName::new(text.trim()).map(Named::Label).ok_or(e),
        }
    }

    /// The name of a label to be made. Errors with `Config` for what is none, with the form of one.
    pub fn label(text: &str, now: Timestamp) -> Result<LabelName> {
        match Named::parse(text, now) {
            Ok(Named::Label(name)) if name.as_str() == text => Ok(name),
            _ => Err(Error::config(format!("{} cannot name a label: {}", quoted(text), label::FORM))),
        }
    }
}

impl Point {
    /// From an SQL INTEGER or a number on a command line. TXIDs start at 1.
    pub fn from_integer(n: i64) -> Result<Point> {
        match u64::try_from(n) {
            Ok(n) if n > 0 => Ok(Point::TxId(TxId(n))),
            _ => Err(Error::config(format!("point {n} is not a TXID: TXIDs start at 1"))),
        }
    }

    /// From text. `now` is what ages are counted back from.
    ///
    /// Exactly 16 hex digits are a TXID as Litestream and our reports show it; fewer digits are a decimal
    /// TXID. Dates without a zone are UTC; a date alone is its first moment.
    fn parse(text: &str, now: Timestamp) -> Result<Point> {
        let t = text.trim();
        if t.eq_ignore_ascii_case("latest") {
            return Ok(Point::Latest);
        }
        if t.eq_ignore_ascii_case("now") {
            return Ok(Point::Time(now));
        }
        if !t.is_empty() && t.len() < 16 && t.bytes().all(|b| b.is_ascii_digit()) {
            return t.parse().map_err(|_| bad(text)).and_then(Point::from_integer);
        }
        if t.len() == 16 && t.bytes().all(|b| b.is_ascii_hexdigit()) {
            let n = u64::from_str_radix(t, 16).map_err(|_| bad(text))?;
            return if n == 0 { Point::from_integer(0) } else { Ok(Point::TxId(TxId(n))) };
        }
        if let Some(age) = age(t) {
            let back = i64::try_from(age.as_millis()).map_err(|_| bad(text))?;
            return Ok(Point::Time(Timestamp(now.0.saturating_sub(back))));
        }
        calendar(t).map(Point::Time).ok_or_else(|| bad(text))
    }
}

fn bad(text: &str) -> Error {
    Error::config(format!("point {} is not understood; {FORMS}", quoted(text)))
}

/// `5 minutes ago`, `1h30m ago`, `an hour ago`, and `-5 minutes` as SQLite's date modifiers write it.
fn age(t: &str) -> Option<std::time::Duration> {
    let lower = t.to_ascii_lowercase();
    let body = match lower.strip_suffix("ago") {
        Some(b) => b.trim_end(),
        None => lower.strip_prefix('-')?.trim_start(),
    };
    let body = match body.strip_prefix("an ").or_else(|| body.strip_prefix("a ")) {
        Some(unit) => format!("1 {unit}"),
        None => body.to_string(),
    };
    humantime::parse_duration(&body).ok()
}

fn calendar(t: &str) -> Option<Timestamp> {
    if let Ok(d) = DateTime::parse_from_rfc3339(t) {
        return Some(Timestamp(d.timestamp_millis()));
    }
    // With an offset but with a space, or without seconds.
    for form in
        ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z", "%Y-%m-%d %H:%M%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"]
    {
        if let Ok(d) = DateTime::parse_from_str(&t.replace(['Z', 'z'], "+00:00"), form) {
            return Some(Timestamp(d.timestamp_millis()));
        }
    }
    for form in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"] {
        if let Ok(d) = NaiveDateTime::parse_from_str(t, form) {
            return Some(Timestamp(d.and_utc().timestamp_millis()));
        }
    }
    let d = NaiveDate::parse_from_str(t, "%Y-%m-%d").ok()?;
    Some(Timestamp(d.and_hms_opt(0, 0, 0)?.and_utc().timestamp_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_370_683_421); // 2026-11-22T18:04:43.421Z

    fn time(s: &str) -> i64 {
        match Point::parse(s, NOW).unwrap() {
            Point::Time(t) => t.0,
            other => panic!("{s} gave {other:?}"),
        }
    }

    #[test]
    fn the_constant_is_the_time_it_says() {
        assert_eq!(NOW.rfc3339(), "2026-11-22T18:04:43.421Z");
    }

    #[test]
    fn times_in_every_accepted_form() {
        let whole = 1_795_370_683_000;
        for s in [
            "2026-11-22T18:04:43Z",
            "2026-11-22t18:04:43z",
            "2026-11-22 18:04:43",
            "2026-11-22T18:04:43",
            " 2026-11-22 18:04:43Z ",
            "2026-11-22T20:04:43+02:00",
            "2026-11-22 20:04:43+02:00",
            "2026-11-22T13:04:43-05:00",
        ] {
            assert_eq!(time(s), whole, "{s}");
        }
        assert_eq!(time("2026-11-22 18:04:43.421"), NOW.0);
        assert_eq!(time("2026-11-22T18:04:43.421Z"), NOW.0);
        assert_eq!(time("2026-11-22 18:04"), whole - 43_000);
        assert_eq!(time("2026-11-22T18:04Z"), whole - 43_000);
        assert_eq!(time("2026-11-22"), whole - (18 * 3600 + 4 * 60 + 43) * 1000);
    }

    #[test]
    fn ages() {
        for (s, back) in [
            ("5 minutes ago", 300_000),
            ("1h ago", 3_600_000),
            ("1h 30m ago", 5_400_000),
            ("an hour ago", 3_600_000),
            ("a minute ago", 60_000),
            ("-5 minutes", 300_000),
            ("2 DAYS AGO", 172_800_000),
            ("now", 0),
        ] {
            assert_eq!(time(s), NOW.0 - back, "{s}");
        }
    }

    #[test]
    fn txids() {
        assert_eq!(Point::parse("57", NOW).unwrap(), Point::TxId(TxId(57)));
        assert_eq!(Point::parse("0000000000000039", NOW).unwrap(), Point::TxId(TxId(57)));
        assert_eq!(Point::parse("latest", NOW).unwrap(), Point::Latest);
        assert_eq!(Point::from_integer(1).unwrap(), Point::TxId(TxId(1)));
        for n in [0, -1, i64::MIN] {
            assert!(Point::from_integer(n).is_err());
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_shows_the_forms() {
        for s in [
            "",
            " ",
            "soon",
            "0",
            "0000000000000000",
            "2026-13-01",
            "2026-11-22 25:00",
            "5 parsecs ago",
            "ago",
        ] {
            let e = Point::parse(s, NOW).unwrap_err();
            assert_eq!(e.to_string().lines().count(), 1, "{s}");
        }
        assert!(Point::parse("soon", NOW).unwrap_err().to_string().contains("5 minutes ago"));
    }

    #[test]
    fn a_label_is_what_is_nothing_else() {
        for name in ["before-migration-42", "soon", "v1.2", "ago", "chicago", "deadbeef", "latest-1"] {
            let label = Named::label(name, NOW).unwrap();
            assert_eq!(Named::parse(name, NOW).unwrap(), Named::Label(label.clone()));
            assert_eq!(Named::parse(&format!(" {name} "), NOW).unwrap(), Named::Label(label));
        }
        for (text, point) in [
            ("deadbeefdeadbeef", Point::TxId(TxId(0xdead_beef_dead_beef))),
            ("latest", Point::Latest),
            ("NOW", Point::Time(NOW)),
            ("57", Point::TxId(TxId(57))),
            ("an hour ago", Point::Time(Timestamp(NOW.0 - 3_600_000))),
        ] {
            assert_eq!(Named::parse(text, NOW).unwrap(), Named::Point(point), "{text}");
            let e = Named::label(text, NOW).unwrap_err().to_string();
            assert!(e.contains("begins with a letter") && e.lines().count() == 1, "{e}");
        }
        for text in ["", " a", "a ", "2026-13-01", "a b", "-x", "0", "\u{e9}t\u{e9}"] {
            assert!(Named::label(text, NOW).is_err(), "{text}");
        }
        for text in ["", "5 parsecs ago", "2026-13-01", "a/b"] {
            let e = Named::parse(text, NOW).unwrap_err().to_string();
            assert!(e.contains("a label's name"), "{e}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(s in "\\PC{0,40}") {
            let _ = Named::parse(&s, NOW);
        }

        #[test]
        fn what_names_a_label_is_read_as_that_label(s in "[a-zA-Z][a-z0-9._-]{0,20}") {
            if let Ok(name) = Named::label(&s, NOW) {
                proptest::prop_assert_eq!(Named::parse(&s, NOW).unwrap(), Named::Label(name));
            }
        }
    }
}
