//! Labels in the replica: made, found, listed, dropped.
//!
//! Rules
//! * I-LABELS-1 A label is put create-only, and holds only if its point can be restored once it is there; else it is taken back. With
//!   retention, which looks for labels once more between its two steps ([`super::compact`], I-CMP-4), that leaves no moment in which one
//!   names what the other removes: whoever comes second sees the first.
//! * I-LABELS-2 A name that is there already and names the same point is that label; one that names another point is an error.
//!
//! A crash between the two steps of making one leaves a label whose point may be gone: `verify` names it. Refused: a lease for it (who
//! labels need not stream; an object that is only created has one maker).

use super::label::{By, Label, LabelName};
use super::layout::LABELS_PREFIX;
use super::manifest::Manifest;
use super::place::{self, Found};
use super::plan::plan;
use super::point::{FORMS, Named, Point};
use crate::base::{Error, Kind, Result, TxId, clock, quoted};
use crate::store::{PutMeta, Store};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;

/// Labels read at once.
const PARALLEL: usize = 16;
/// Labels that an error names.
const NAMED: usize = 5;

/// What lies where labels lie.
#[derive(Debug, Default)]
pub struct Labels {
    /// Those that could be read, by name.
    pub labels: Vec<Label>,
    /// One error for each that could not.
    pub damaged: Vec<Error>,
}

impl Labels {
    /// All of them. Errors with that of the first that cannot be read: nobody knows what it pins.
    pub fn sound(self) -> Result<Vec<Label>> {
        match self.damaged.into_iter().next() {
            None => Ok(self.labels),
            Some(e) => Err(e),
        }
    }

    /// The names of each point that has one, in the order of the alphabet.
    pub fn by_txid(&self) -> BTreeMap<TxId, Vec<&LabelName>> {
        let mut found: BTreeMap<TxId, Vec<&LabelName>> = BTreeMap::new();
        for l in &self.labels {
            found.entry(l.txid).or_default().push(&l.name);
        }
        found
    }
}

/// Every label of a replica. Errors: the store's.
pub async fn all(store: &Store) -> Result<Labels> {
    let objects = store.list(LABELS_PREFIX).await?;
    let names = objects.iter().filter_map(|o| LabelName::of_key(&o.key)).collect::<Vec<_>>();
    let read: Vec<Option<Result<Label>>> = futures_util::stream::iter(names)
        .map(|name| async move {
            match store.get(&name.key()).await {
                Ok(bytes) => Ok(Some(Label::decode(&name, &bytes))),
                Err(e) if e.is_missing() => Ok(None),
                Err(e) if e.is_corrupt() => Ok(Some(Err(e))),
                Err(e) => Err(e),
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let mut found = Labels::default();
    for label in read.into_iter().flatten() {
        match label {
            Ok(label) => found.labels.push(label),
            Err(e) => found.damaged.push(e),
        }
    }
    found.labels.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The label of that name. Errors: `Missing` if there is none, `Corrupt` if it cannot be read; the store's.
pub async fn find(store: &Store, name: &LabelName) -> Result<Label> {
    match store.get(&name.key()).await {
        Ok(bytes) => Label::decode(name, &bytes),
        Err(e) if e.is_missing() => Err(unknown(store, name).await?),
        Err(e) => Err(e),
    }
}

/// Says which names there are.
async fn unknown(store: &Store, name: &LabelName) -> Result<Error> {
    let there = all(store).await?;
    let names: Vec<&str> = there.labels.iter().map(|l| l.name.as_str()).collect();
    let which = match (names.len(), names.get(..names.len().min(NAMED)).unwrap_or_default().join(", ")) {
        (0, _) => "it has no label".to_string(),
        (n, some) if n > NAMED => format!("its labels are {some} and {} more", n - NAMED),
        (_, some) => format!("its labels are {some}"),
    };
    let name = quoted(name.as_str());
    Ok(Error::new(
        Kind::Missing,
        format!("{} has no label {name}: {which}; for a point {FORMS}", store.url()),
    ))
}

/// The point that is meant: a label is looked up. Errors as [`find`] does.
pub async fn point_of(store: &Store, named: &Named) -> Result<Point> {
    match named {
        Named::Point(point) => Ok(*point),
        Named::Label(name) => Ok(Point::TxId(find(store, name).await?.txid)),
    }
}

/// Gives `point` a name (I-LABELS-1, I-LABELS-2).
///
/// Errors: `Missing` where that point cannot be restored; `Exists` where the name is another point's; `Retry` where retention removes the
/// point at this moment; the store's.
pub async fn make(store: &Store, name: &LabelName, point: Point, by: By) -> Result<Label> {
    let before = place::find(store).await?;
    if before.store.layout() != store.layout() {
        let text = format!(
            "{} holds a copy of a replica from another kind of store, which is only read; copy it back, or label the original",
            store.url()
        );
        return Err(Error::config(text));
    }
    let Found { mut inventory, manifest, .. } = before;
    if matches!(point, Point::Time(_)) {
        inventory.learn_times(store).await?;
    }
    let way = plan(&inventory.files, point, clock::now())?;
    let label = Label { name: name.clone(), txid: way.txid, time: way.time, made: clock::now(), by };
    if let Some(there) = put(store, &label).await? {
        return Ok(there);
    }
    if let Err(e) = holds(store, &label, &manifest).await {
        store.delete(&[name.key()]).await?;
        return Err(e);
    }
    Ok(label)
}

/// Puts it; the label that was there, if it is the same (I-LABELS-2).
async fn put(store: &Store, label: &Label) -> Result<Option<Label>> {
    store.probe_conditional().await?;
    match store.put_new(&label.name.key(), label.encode(), PutMeta::default()).await {
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == Kind::Exists => {}
        Err(e) => return Err(e),
    }
    let there = find(store, &label.name).await?;
    if there.txid == label.txid {
        return Ok(Some(there));
    }
    Err(Error::new(
        Kind::Exists,
        format!(
            "the label {} is there already: it names TXID {} of {}; choose another name, or drop that one with walrust_label('{}', 0)",
            quoted(label.name.as_str()),
            there.txid,
            there.time,
            label.name,
        ),
    ))
}

/// Whether what the label names is still there, and not about to go: what the manifest named before it names still. Errors with `Retry`
/// if it is not.
async fn holds(store: &Store, label: &Label, before: &Manifest) -> Result<()> {
    let (inventory, manifest) = super::inventory::Inventory::read_with_manifest(store).await?;
    let way = plan(&inventory.files, Point::TxId(label.txid), clock::now());
    let is_kept = way.is_ok_and(|way| {
        way.files.iter().all(|f| manifest.get(f.id()).is_some() || before.get(f.id()).is_none())
    });
    if is_kept {
        return Ok(());
    }
    let text = format!("retention removes TXID {} at this moment, so it was not labelled", label.txid);
    Err(Error::new(Kind::Retry, format!("{text}; label a later point")))
}

/// Drops the label of that name: from now on retention may remove what only it kept. Errors as [`find`] does; one that cannot be read is
/// dropped, too, and no error.
pub async fn forget(store: &Store, name: &LabelName) -> Result<Option<Label>> {
    let there = match find(store, name).await {
        Ok(label) => Some(label),
        Err(e) if e.is_corrupt() => None,
        Err(e) => return Err(e),
    };
    store.delete(&[name.key()]).await?;
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timestamp;
    use crate::replica::compact::{Action, compact};
    use crate::replica::restore::{RestoreOptions, restore};
    use crate::replica::retention::Policy;
    use crate::replica::testkit::*;
    use std::time::Duration;

    fn name(text: &str) -> LabelName {
        LabelName::new(text).unwrap()
    }

    fn nothing() -> Policy {
        Policy { hourly: 0, daily: 0, weekly: 0, monthly: 0, pitr_window: Duration::ZERO, retain: None }
    }

    #[test]
    fn one_name_is_one_point_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let local = crate::store::ReplicaUrl::parse(dir.path().join("r").to_str().unwrap()).unwrap();
        for store in [Store::in_memory(), Store::open(&local).unwrap()] {
            let mut maker = Maker::new(1024);
            block(upload(&store, &history(&mut maker, 12)));
            let made = block(make(&store, &name("a"), Point::TxId(TxId(7)), By::Person)).unwrap();
            assert_eq!((made.txid, made.time), (TxId(7), Timestamp(START.0 + 6000)));
            assert_eq!(block(make(&store, &name("a"), Point::TxId(TxId(7)), By::Person)).unwrap(), made);
            let e = block(make(&store, &name("a"), Point::Latest, By::Person)).unwrap_err();
            assert!(e.kind() == Kind::Exists && e.to_string().contains("TXID 0000000000000007"), "{e}");
            let newest = block(make(&store, &name("b"), Point::Latest, By::Schema)).unwrap();
            assert_eq!(newest.txid, TxId(12));
            assert_eq!(block(all(&store)).unwrap().sound().unwrap(), [made.clone(), newest]);
            let e = block(find(&store, &name("c"))).unwrap_err();
            assert!(e.is_missing() && e.to_string().contains("its labels are a, b"), "{e}");
            assert_eq!(block(forget(&store, &name("a"))).unwrap(), Some(made));
            assert!(block(forget(&store, &name("a"))).unwrap_err().is_missing());
            let e = block(make(&store, &name("d"), Point::TxId(TxId(99)), By::Person)).unwrap_err();
            assert!(e.is_missing(), "{e}");
            assert_eq!(block(all(&store)).unwrap().labels.len(), 1);
        }
    }

    #[test]
    fn what_is_labelled_outlives_retention_and_what_is_dropped_does_not() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let mut files = history(&mut maker, 20);
        files.push(maker.snapshot());
        files.extend((21..=30).map(|n| maker.step(n)));
        files.push(maker.snapshot());
        block(upload(&store, &files));
        for txid in [3, 8, 25] {
            let label = name(&format!("at-{txid}"));
            block(make(&store, &label, Point::TxId(TxId(txid)), By::Person)).unwrap();
        }
        let now = Timestamp(maker.time.0 + 3_600_000);
        let removed = block(compact(&store, &nothing(), Action::Force, now, None)).unwrap();
        assert!(removed.removed > 0 && removed.text.contains("labelled"), "{}", removed.text);
        let dir = tempfile::tempdir().unwrap();
        for txid in [3, 8, 25, 30] {
            let out = dir.path().join(format!("{txid}.db"));
            block(restore(&store, Point::TxId(TxId(txid)), &out, &RestoreOptions::default())).unwrap();
            assert!(read(&out) == maker.images[&TxId(txid)], "{txid}");
        }
        let again = block(compact(&store, &nothing(), Action::Force, now, None)).unwrap();
        assert_eq!(again.removed, 0, "{}", again.text);
        block(forget(&store, &name("at-3"))).unwrap();
        assert!(block(compact(&store, &nothing(), Action::Force, now, None)).unwrap().removed > 0);
        let verified = |want| {
            let r = block(crate::replica::verify(&store, &crate::replica::VerifyOptions::default())).unwrap();
            assert_eq!(r.exit_code(), want, "{}", r.text());
            r.text()
        };
        verified(0);
        let eight = block(find(&store, &name("at-8"))).unwrap();
        let lost = Label { name: name("lost"), txid: TxId(5), ..eight };
        block(store.put_over(&lost.name.key(), lost.encode())).unwrap();
        assert!(verified(1).contains("Label lost names TXID 5, which cannot be restored any more"));
        let gone = block(make(&store, &name("late"), Point::TxId(TxId(3)), By::Person)).unwrap_err();
        assert!(gone.is_missing(), "{gone}");
    }

    #[test]
    fn a_label_that_cannot_be_read_keeps_everything() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let files = history(&mut maker, 12);
        block(upload(&store, &files));
        block(store.put_over(&name("a").key(), b"{".to_vec())).unwrap();
        let now = Timestamp(maker.time.0 + 3_600_000);
        let e = block(compact(&store, &nothing(), Action::Force, now, None)).unwrap_err();
        assert!(e.is_corrupt() && e.to_string().contains("nothing is removed"), "{e}");
        assert_eq!(block(forget(&store, &name("a"))).unwrap(), None);
        block(compact(&store, &nothing(), Action::Force, now, None)).unwrap();
    }

    #[test]
    fn a_point_that_retention_has_forgotten_is_not_labelled() {
        let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
        let files = history(&mut maker, 12);
        block(upload(&store, &files));
        let before = block(Manifest::read(&store)).unwrap();
        let made = block(make(&store, &name("a"), Point::TxId(TxId(7)), By::Person)).unwrap();
        block(holds(&store, &made, &before)).unwrap();
        let mut writer = block(super::super::manifest::ManifestWriter::load(&store)).unwrap();
        let ids = [files.iter().find(|f| f.id.max == TxId(7) && f.id.min == TxId(7)).unwrap().id].into();
        block(writer.remove(&store, &ids)).unwrap();
        let e = block(holds(&store, &made, &before)).unwrap_err();
        assert!(e.is_retry(), "{e}");
    }
}
