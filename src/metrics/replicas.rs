//! The exposition of replicas that are looked at without their process (`walrust serve`): what they tell, and no series that only the
//! process could.

use super::face::{DatabaseFace, Face, RowKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Replica {
    replica: String,
}

type Seconds = Gauge<f64, AtomicU64>;

fn ms(t: crate::base::Timestamp) -> f64 {
    t.0 as f64 / 1000.0
}

/// As OpenMetrics has it.
pub(super) fn open_metrics(face: &Face) -> String {
    let mut registry = Registry::with_prefix("walrust");
    let readable = Family::<Replica, Gauge>::default();
    let points = Family::<Replica, Gauge>::default();
    let labels = Family::<Replica, Gauge>::default();
    let files = Family::<Replica, Gauge>::default();
    let bytes = Family::<Replica, Gauge>::default();
    let newest = Family::<Replica, Seconds>::default();
    let asked = Family::<Replica, Seconds>::default();
    let verified = Family::<Replica, Seconds>::default();
    let r = &mut registry;
    r.register(
        "replica_readable",
        "1 if the replica could be read, and holds a point that can be restored, else 0",
        readable.clone(),
    );
    r.register("replica_points", "Points that can be restored", points.clone());
    r.register("replica_labels", "Labelled points", labels.clone());
    r.register("replica_files", "Files in the replica", files.clone());
    r.register_with_unit("replica", "Size of the replica", Unit::Bytes, bytes.clone());
    let help = "When the newest point was, Unix time";
    r.register_with_unit("replica_newest_timestamp", help, Unit::Seconds, newest.clone());
    let help = "When the replica was last read, Unix time";
    r.register_with_unit("replica_asked_timestamp", help, Unit::Seconds, asked.clone());
    let help = "When a check asked for here last found the replica good, Unix time, 0 if none has";
    r.register_with_unit("replica_last_verified_timestamp", help, Unit::Seconds, verified.clone());
    r.register("build", "The version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    for row in face.databases.iter().filter(|d| d.kind == RowKind::Replica) {
        let label = Replica { replica: row.database.clone() };
        readable.get_or_create_owned(&label).set(i64::from(is_readable(row)));
        verified.get_or_create_owned(&label).set(row.last_verified.map_or(0.0, ms));
        let Some(seen) = &row.seen else { continue };
        points.get_or_create_owned(&label).set(count(seen.points));
        labels.get_or_create_owned(&label).set(count(seen.labels));
        files.get_or_create_owned(&label).set(count(seen.files));
        bytes.get_or_create_owned(&label).set(i64::try_from(seen.bytes).unwrap_or(i64::MAX));
        asked.get_or_create_owned(&label).set(ms(seen.asked));
        if let Some(at) = seen.newest {
            newest.get_or_create_owned(&label).set(ms(at));
        }
    }
    let mut text = String::new();
    // (Writing to a String cannot fail.)
    let _ = encode(&mut text, &registry);
    text
}

fn is_readable(row: &DatabaseFace) -> bool {
    row.last_error.is_none() && row.seen.is_some_and(|s| s.points > 0)
}
