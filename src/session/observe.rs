//! What the outside sees of the whole process: the metrics and the health page, and webhooks that belong to no watched database.
//!
//! Counters are raised where things happen, one atomic operation each; gauges are brought up to date when
//! somebody looks. Webhooks are a database's own setting; what belongs to no watched database is told to
//! those of the process.

use super::listening::{LISTEN_AGAIN, Listening, may_serve};
use super::registry::Engine;
use super::watched::series;
use crate::base::event::EventKind;
use crate::base::{Error, Result, Secret, clock, lock};
use crate::config::{Layer, Resolved};
use crate::metrics::{self, Begun, Deed, DeedFace, Face, Points};
use crate::notify::{Event, Notifier};
use crate::store;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a function that has just found damage waits for the webhooks: its process may end right after.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(3);

impl Engine {
    /// The exposition, brought up to date.
    pub fn metrics_text(&self) -> String {
        self.exposition(&self.face())
    }

    fn exposition(&self, face: &Face) -> String {
        self.metrics().show(face);
        self.metrics().render()
    }

    /// Remembers the settings that a watch was made with and what calls said of them, and takes up those of the process. Errors with
    /// what is wrong in the configuration.
    pub fn use_settings(&'static self, path: &Path, resolved: Resolved, said: Layer) -> Result<()> {
        self.remember_settings(path, resolved, said);
        self.use_process_settings()
    }

    /// Takes up what the settings say of the process: the bandwidth and the metrics address. One that cannot be listened at is
    /// logged, and the sealer tries again: another worker of the same app may have it, and replication
    /// does not depend on it.
    pub(super) fn use_process_settings(&'static self) -> Result<()> {
        let settings = self.config()?.process()?.settings;
        store::bandwidth::set(settings.bandwidth.0);
        let asked = settings.metrics_listen;
        let Some(address) = asked.filter(|_| may_serve()) else { return Ok(()) };
        let mut at = lock(&self.listening);
        if let Listening::At { .. } = *at {
            return Ok(());
        }
        match metrics::serve(&address, Arc::new(Pages(self))) {
            Ok(server) => {
                if let Listening::Refused { .. } = *at {
                    log::info!("walrust: metrics_listen: {address} is free now, and listened at");
                }
                *at = Listening::At { _until_dropped: server };
            }
            Err(e) => {
                // (Once: another worker may have it for as long as this process lives.)
                if let Listening::Nowhere = *at {
                    log::error!("walrust: {e}");
                }
                *at = Listening::Refused { again_at: clock::uptime() + LISTEN_AGAIN };
            }
        }
        Ok(())
    }

    /// Tries again to listen at the metrics address, if it was refused and the next try is due.
    pub(super) fn listen_again(&'static self) {
        let is_due =
            matches!(*lock(&self.listening), Listening::Refused { again_at } if clock::uptime() >= again_at);
        if is_due && let Err(e) = self.use_process_settings() {
            log::warn!("walrust: {e}");
        }
    }

    /// Where events go that belong to no watched database: the process's webhooks.
    fn process_notifier(&self) -> Option<Notifier> {
        let settings = self.config().and_then(|c| c.process()).ok()?.settings;
        (!settings.webhooks.is_empty()).then(|| Notifier::new(settings.webhooks))
    }

    /// Tells the webhooks that a replica holds damaged bytes: those of the database that is streamed there, else
    /// the process's. Waits a moment for them.
    pub fn tell_corrupt(&self, replica: &str, e: &Error) {
        self.tell_damage(replica, &e.to_string(), json!({}));
    }

    /// [`Engine::tell_corrupt`] with details.
    pub fn tell_damage(&self, replica: &str, message: &str, details: serde_json::Value) {
        let watched = self.find_by_replica(replica);
        let mut event = match &watched {
            Some(w) => Event::new(EventKind::CorruptionDetected, series(w.path()), message),
            None => Event::new(EventKind::CorruptionDetected, replica, message),
        };
        if let serde_json::Value::Object(fields) = details {
            event.context = fields;
        }
        let event = event.with("replica", replica);
        let notifier = match &watched {
            Some(w) => w.notifier(),
            None => self.process_notifier(),
        };
        if let Some(n) = notifier {
            n.send(&event);
            n.flush(LAST_WORDS_PATIENCE);
        }
    }
}

struct Pages(&'static Engine);

impl metrics::Pages for Pages {
    fn metrics(&self) -> String {
        self.0.exposition(&self.0.face_of_machine())
    }

    fn face(&self) -> Face {
        self.0.face_of_machine()
    }

    fn points(&self, database: &str) -> Points {
        self.0.points_of(database)
    }

    fn token(&self) -> Option<Secret> {
        self.0.config().and_then(|c| c.process()).ok()?.settings.metrics_token
    }

    fn act(&self, database: &str, deed: Deed) -> Begun {
        self.0.act(database, deed)
    }

    fn deed(&self, database: &str) -> Option<DeedFace> {
        self.0.last_deed(database)
    }
}
