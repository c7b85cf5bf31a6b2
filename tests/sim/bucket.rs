//! The store: object_store's one in memory, which holds to conditions, behind a network with weather. Tells the oracle of
//! every object that comes into being, whoever put it.

use super::world::Clockwork;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use walrust::base::{self, Kind};

/// How the network of a machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Weather {
    #[default]
    Fine,
    /// Slow answers, failures before, answers lost after, puts that arrive when nobody waits for them any more.
    Rough,
    /// Nothing gets through.
    Out,
    /// Credentials are refused.
    Denied,
}

/// An object that was put.
#[derive(Debug)]
pub struct Seen {
    pub by: usize,
    pub key: String,
    pub bytes: bytes::Bytes,
    pub replaced: bool,
}

struct Late {
    due: Duration,
    by: usize,
    path: Path,
    payload: PutPayload,
    options: PutOptions,
}

#[derive(Default)]
struct State {
    weather: HashMap<usize, Weather>,
    machine_of: HashMap<usize, usize>,
    late: Vec<Late>,
    arrived: Vec<String>,
    seen: Vec<Seen>,
}

// The world is reached through the thread, since clients must be `Send`: there is one thread.
thread_local! {
    static WORLD: std::cell::RefCell<Option<Rc<Clockwork>>> = const { std::cell::RefCell::new(None) };
}

pub fn enter(world: Option<Rc<Clockwork>>) {
    WORLD.with(|w| *w.borrow_mut() = world);
}

fn world() -> Rc<Clockwork> {
    WORLD.with(|w| w.borrow().clone()).expect("the bucket is used on the simulation's thread only")
}

#[derive(Default)]
pub struct Bucket {
    objects: InMemory,
    state: Mutex<State>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

enum Fate {
    Pass,
    Fail,
    Lose,
    Late(Duration),
}

fn trouble(kind: Kind, what: &str) -> Error {
    Error::Generic {
        store: "simulated",
        source: Box::new(base::Error::new(kind, format!("simulated: {what}"))),
    }
}

impl Bucket {
    pub fn set_weather(&self, machine: usize, weather: Weather) {
        self.state.lock().unwrap().weather.insert(machine, weather);
    }

    pub fn born(&self, pid: usize, machine: usize) {
        self.state.lock().unwrap().machine_of.insert(pid, machine);
    }

    pub fn machine_of(&self, pid: usize) -> usize {
        self.state.lock().unwrap().machine_of.get(&pid).copied().unwrap_or(0)
    }

    /// What was put since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    fn here(&self) -> Weather {
        let s = self.state.lock().unwrap();
        let machine = s.machine_of.get(&world().current());
        machine.and_then(|m| s.weather.get(m)).copied().unwrap_or_default()
    }

    /// What happens to a request, after its way there.
    async fn way(&self, put: bool) -> Result<Fate> {
        let pause = {
            let w = world();
            match self.here() {
                Weather::Fine if w.one_in(4) => w.below(30),
                Weather::Rough if w.one_in(3) => w.below(4000),
                Weather::Out if w.one_in(2) => w.below(2000),
                _ => 0,
            }
        };
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let w = world();
        match self.here() {
            Weather::Out => Err(trouble(Kind::Retry, "cannot reach the store")),
            Weather::Denied => Err(trouble(Kind::Denied, "the store denies access")),
            Weather::Fine => Ok(Fate::Pass),
            Weather::Rough => Ok(match w.below(12) {
                0 | 1 => Fate::Fail,
                2 => Fate::Lose,
                3 if put => Fate::Late(Duration::from_millis(w.below(20_000))),
                _ => Fate::Pass,
            }),
        }
    }

    async fn put_now(
        &self,
        by: usize,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let bytes: bytes::Bytes = payload.clone().into();
        let replaced = matches!(options.mode, PutMode::Overwrite) && self.objects.head(path).await.is_ok();
        let done = self.objects.put_opts(path, payload, options).await?;
        self.state.lock().unwrap().seen.push(Seen { by, key: path.to_string(), bytes, replaced });
        Ok(done)
    }

    /// Whether the file of a TXID was put long after anybody waited for that.
    pub fn was_late(&self, txid: u64) -> bool {
        let key = format!("0000/{txid:016x}-{txid:016x}.ltx");
        self.state.lock().unwrap().arrived.iter().any(|k| k.ends_with(&key))
    }

    /// Puts that were on their way arrive.
    pub fn arrive(&self, now: Duration) {
        let due: Vec<Late> = {
            let mut s = self.state.lock().unwrap();
            let (due, not) = std::mem::take(&mut s.late).into_iter().partition(|l| l.due <= now);
            s.late = not;
            due
        };
        for l in due {
            self.state.lock().unwrap().arrived.push(l.path.to_string());
            let put = self.put_now(l.by, &l.path, l.payload, l.options);
            // In memory nothing is ever pending.
            let _ = futures_util::FutureExt::now_or_never(put);
        }
    }

    async fn answer<T>(&self, fate: Fate, answer: Result<T>) -> Result<T> {
        match fate {
            Fate::Lose => Err(trouble(Kind::Retry, "the answer was lost")),
            _ => {
                let rough = self.here() == Weather::Rough;
                let pause = if rough && world().one_in(6) { world().below(3000) } else { 0 };
                if pause > 0 {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                answer
            }
        }
    }
}

#[async_trait::async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        // A manifest that arrives after a newer one is a matter of the store's order, which is not simulated.
        let may_be_late = !matches!(options.mode, PutMode::Overwrite);
        let fate = self.way(may_be_late).await?;
        let (by, now) = (world().current(), walrust::base::sim::World::uptime(&*world()));
        match fate {
            Fate::Fail => return Err(trouble(Kind::Retry, "503")),
            Fate::Late(d) => {
                let late = Late { due: now + d, by, path: path.clone(), payload, options };
                self.state.lock().unwrap().late.push(late);
                return Err(trouble(Kind::Retry, "no answer"));
            }
            Fate::Pass | Fate::Lose => {}
        }
        let done = self.put_now(by, path, payload, options).await;
        self.answer(fate, done).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(trouble(Kind::Bug, "nothing here is that large"))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let fate = self.way(false).await?;
        if let Fate::Fail = fate {
            return Err(trouble(Kind::Retry, "503"));
        }
        let got = self.objects.get_opts(path, options).await;
        self.answer(fate, got).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match (self.here(), world().one_in(5)) {
            (Weather::Out, _) | (Weather::Rough, true) => {
                futures_util::stream::iter([Err(trouble(Kind::Retry, "503"))]).boxed()
            }
            _ => self.objects.delete_stream(paths),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let w = world();
        match self.here() {
            Weather::Out => futures_util::stream::iter([Err(trouble(Kind::Retry, "503"))]).boxed(),
            Weather::Denied => futures_util::stream::iter([Err(trouble(Kind::Denied, "denied"))]).boxed(),
            Weather::Rough if w.one_in(5) => {
                // Broken off in the middle.
                let all = self.objects.list(prefix).take(2);
                all.chain(futures_util::stream::iter([Err(trouble(Kind::Retry, "cut off"))])).boxed()
            }
            _ => self.objects.list(prefix).map_ok(simulated_time).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if let Fate::Fail | Fate::Lose = self.way(false).await? {
            return Err(trouble(Kind::Retry, "503"));
        }
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(trouble(Kind::Bug, "nothing here is copied"))
    }
}

/// The store in memory asks the system for the time.
fn simulated_time(mut meta: ObjectMeta) -> ObjectMeta {
    meta.last_modified = chrono::DateTime::UNIX_EPOCH;
    meta
}

pub fn shared() -> Arc<Bucket> {
    Arc::new(Bucket::default())
}
