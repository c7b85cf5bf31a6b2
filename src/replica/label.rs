//! Labels: names that people, or walrust itself, gave to points of a replica. Pure: names, records, and which of them pin their point.
//!
//! A label is one small JSON object `walrust/labels/<name>.json` in the replica, put create-only, so that of two machines one makes a
//! name. It names a TXID, and TXIDs are never used again for other content: a label means the same state for ever.
//!
//! ```json
//! {"walrust_label":1,"name":"before-migration-42","txid":57,"time":1795370683421,"made":1795370699000,"by":"person"}
//! ```
//!
//! Rules
//! * I-LABEL-1 A label's name is no other form of a point: it begins with a letter, and neither a TXID nor a time, an age, `latest` nor
//!   `now` is one ([`super::point::Named::label`] holds the two grammars against each other).
//! * I-LABEL-2 A label of a person pins its point until it is dropped. Those that `auto_label` made pin theirs by [`pins`]: a program
//!   that makes and drops tables all day does not keep everything for ever.
//!
//! Refused: labels in the manifest (its segments are rewritten, and who makes a label need not be its writer); names with blanks (an age
//! has them) or slashes (a label is one object in one folder).

use super::layout::LABELS_PREFIX;
use crate::base::{Error, Result, Timestamp, TxId, quoted};
use std::collections::BTreeSet;
use std::fmt;

/// Most letters of a name.
const MOST: usize = 64;
/// As long `auto_label`'s labels all pin their points.
const ALL_FOR_MS: i64 = 24 * 3_600_000;
/// After that, the first of each of so many days (UTC) that have one.
const DAYS: usize = 30;

/// What a name may be, for errors.
pub const FORM: &str = "a label's name has 1 to 64 letters a-z and A-Z, digits, '-', '_' and '.', and begins with a letter; it is no TXID (16 \
hex digits), no time, and neither 'latest' nor 'now'";

/// A name in the form of a label's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LabelName(String);

impl LabelName {
    /// `None` if it has not the form. (Whether it is another form of a point is [`super::point`]'s to say.)
    pub(super) fn new(text: &str) -> Option<LabelName> {
        let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
        (begins && text.len() <= MOST && text.bytes().all(is_part)).then(|| LabelName(text.to_string()))
    }

    /// The name that `auto_label` gives to the point `txid`.
    pub fn before_change(txid: TxId) -> LabelName {
        LabelName(format!("ddl-{txid}"))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where it lies in the replica.
    pub fn key(&self) -> String {
        format!("{LABELS_PREFIX}{}.json", self.0)
    }

    /// The name in a key, if it is exactly that of a label.
    pub fn of_key(key: &str) -> Option<LabelName> {
        LabelName::new(key.strip_prefix(LABELS_PREFIX)?.strip_suffix(".json")?)
    }
}

impl fmt::Display for LabelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who made a label.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Somebody, by its name.
    Person,
    /// `auto_label`, of the point before a change of the schema.
    Schema,
}

/// A label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// Its name.
    pub name: LabelName,
    /// The point that it names.
    pub txid: TxId,
    /// When that was.
    pub time: Timestamp,
    /// When the label was made.
    pub made: Timestamp,
    /// By whom.
    pub by: By,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    walrust_label: u32,
    name: String,
    txid: u64,
    time: i64,
    made: i64,
    by: By,
}

impl Label {
    /// The bytes of its object.
    pub fn encode(&self) -> Vec<u8> {
        let record = Record {
            walrust_label: 1,
            name: self.name.0.clone(),
            txid: self.txid.0,
            time: self.time.0,
            made: self.made.0,
            by: self.by,
        };
        let mut text = serde_json::to_vec(&record).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads the bytes of the object of `name`. Errors with `Config` on one of a later version, else with `Corrupt` on anything that
    /// [`Label::encode`] has not written for that name.
    pub fn decode(name: &LabelName, bytes: &[u8]) -> Result<Label> {
        let bad =
            |why: &str| Error::corrupt(format!("the label {} is damaged: {why}", quoted(name.as_str())));
        #[derive(serde::Deserialize)]
        struct Version {
            walrust_label: u32,
        }
        let version: Version = serde_json::from_slice(bytes).map_err(|e| bad("no label").because(e))?;
        if version.walrust_label != 1 {
            let (name, version) = (quoted(name.as_str()), version.walrust_label);
            return Err(Error::config(format!(
                "the label {name} has version {version}; this walrust reads version 1"
            )));
        }
        let record: Record = serde_json::from_slice(bytes).map_err(|e| bad("no label").because(e))?;
        if record.name != name.0 {
            return Err(bad("it is another one"));
        }
        if record.txid == 0 || i64::try_from(record.txid).is_err() {
            return Err(bad("its TXID is out of range"));
        }
        Ok(Label {
            name: name.clone(),
            txid: TxId(record.txid),
            time: Timestamp(record.time),
            made: Timestamp(record.made),
            by: record.by,
        })
    }
}

/// What labels do at a moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pins {
    /// The points that stay.
    pub txids: BTreeSet<TxId>,
    /// Labels that have done their time: retention drops them.
    pub ended: Vec<LabelName>,
}

/// I-LABEL-2. Those that `auto_label` made pin all of the last 24 hours, and the first of each of the newest 30 days that have one. Pure.
pub fn pins(labels: &[Label], now: Timestamp) -> Pins {
    let mut found = Pins::default();
    let mut automatic: Vec<&Label> = labels.iter().filter(|l| l.by == By::Schema).collect();
    automatic.sort_by_key(|l| (l.made, l.txid));
    let day = |l: &Label| l.made.0.div_euclid(86_400_000);
    let mut days: BTreeSet<i64> = automatic.iter().map(|l| day(l)).collect();
    while days.len() > DAYS {
        days.pop_first();
    }
    found.txids.extend(labels.iter().filter(|l| l.by == By::Person).map(|l| l.txid));
    for l in automatic {
        // (The first of its day takes the day away.)
        let is_first = days.remove(&day(l));
        if is_first || now.0.saturating_sub(l.made.0) <= ALL_FOR_MS {
            found.txids.insert(l.txid);
        } else {
            found.ended.push(l.name.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_795_370_683_421);
    const DAY: i64 = 86_400_000;

    fn label(name: &str, txid: u64, made: i64, by: By) -> Label {
        Label { name: LabelName::new(name).unwrap(), txid: TxId(txid), time: NOW, made: Timestamp(made), by }
    }

    #[test]
    fn names() {
        for name in ["a", "before-migration-42", "v1.2_final", "X", &"x".repeat(64)] {
            assert_eq!(LabelName::of_key(&LabelName::new(name).unwrap().key()).unwrap().as_str(), name);
        }
        let long = "x".repeat(65);
        for name in ["", "1a", "-a", ".a", "_a", "a b", "a/b", "caf\u{e9}", "a\n", "a:b", "..", long.as_str()]
        {
            assert_eq!(LabelName::new(name), None, "{name}");
        }
        for key in
            ["walrust/labels/a", "walrust/labels/.json", "walrust/labels/a/b.json", "walrust/a.json", "a"]
        {
            assert_eq!(LabelName::of_key(key), None, "{key}");
        }
    }

    #[test]
    fn a_record_is_read_strictly() {
        let l = label("a", 57, 7, By::Person);
        assert_eq!(Label::decode(&l.name, &l.encode()).unwrap(), l);
        let other = LabelName::new("b").unwrap();
        assert!(Label::decode(&other, &l.encode()).unwrap_err().is_corrupt());
        for (from, to) in
            [("57", "0"), ("57", "-1"), ("57", "18446744073709551615"), ("person", "nobody"), ("{", "")]
        {
            let text = String::from_utf8(l.encode()).unwrap().replace(from, to);
            assert!(Label::decode(&l.name, text.as_bytes()).unwrap_err().is_corrupt(), "{text}");
        }
        let later = String::from_utf8(l.encode()).unwrap().replace("label\":1", "label\":2");
        assert!(Label::decode(&l.name, later.as_bytes()).unwrap_err().to_string().contains("version 2"));
    }

    #[test]
    fn a_persons_label_pins_for_ever_and_automatic_ones_are_thinned_out() {
        let at = |days: i64, ms: i64| (NOW.0.div_euclid(DAY) - days) * DAY + ms;
        let labels = [
            label("old", 1, 0, By::Person),
            label("today-1", 90, at(0, 1), By::Schema),
            label("today-2", 91, at(0, 2), By::Schema),
            label("week-1", 50, at(7, 1), By::Schema),
            label("week-2", 51, at(7, 2), By::Schema),
            label("week-3", 52, at(7, 3), By::Schema),
            label("future", 99, NOW.0 + DAY, By::Schema),
        ];
        let found = pins(&labels, NOW);
        assert_eq!(found.txids, [1, 50, 90, 91, 99].map(TxId).into());
        assert_eq!(found.ended.iter().map(LabelName::as_str).collect::<Vec<_>>(), ["week-2", "week-3"]);
        // A hundred days with two each: those of 30 days are left, and the second of today.
        let many: Vec<Label> = (0..100)
            .flat_map(|d| {
                [1, 2].map(|n| {
                    label(&format!("d{d}-{n}"), 1000 - 2 * d as u64 + n, at(d, n as i64), By::Schema)
                })
            })
            .collect();
        let found = pins(&many, NOW);
        assert_eq!(found.txids.len(), DAYS + 1);
        assert_eq!(found.ended.len(), 200 - DAYS - 1);
        assert!(found.txids.contains(&TxId(1001)) && !found.txids.contains(&TxId(1000 - 2 * 31 + 1)));
        assert_eq!(pins(&[], NOW), Pins::default());
    }

    proptest! {
        #[test]
        fn hostile_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Label::decode(&LabelName::new("a").unwrap(), &bytes);
        }
    }
}
