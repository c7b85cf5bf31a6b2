//! What the connections of a process share of one replica: the files that were read, and which state is the newest.

use super::known::Known;
use super::limits::FRESH_FOR;
use super::nearby::Nearby;
use super::runtime;
use super::view::{self, Early, View, Way};
use crate::address::ReplicaUrl;
use crate::base::{ForkSafe, Result, TxId, clock, lock};
use crate::ltx::Level;
use crate::replica::blocks::WHOLE;
use crate::replica::contents::{Contents, whole};
use crate::replica::{FileId, FileInfo, Named, Point, labels};
use crate::store::Store;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Replicas that are remembered after their last connection closed.
const REMEMBERED: usize = 16;
/// States of one replica that are remembered, with their page indexes.
const STATES: usize = 4;
/// Small files that may follow a state before it is planned anew: each is one more to look a page up in.
const FOLLOWING: usize = 64;
/// After this time without news by the next TXID's name, the replica is listed: the next file may begin at another TXID.
const LISTED_FOR: Duration = Duration::from_secs(15);

static REPLICAS: ForkSafe<Mutex<VecDeque<Arc<Replica>>>> = ForkSafe::new(Mutex::default);

/// The newest state, as far as is known.
#[derive(Debug, Default)]
struct Newest {
    view: Option<Arc<View>>,
    /// When it was last known to be that.
    asked: Duration,
    listed: Duration,
}

/// One replica that is read here.
pub(super) struct Replica {
    url: ReplicaUrl,
    store: Store,
    known: Known,
    newest: Mutex<Newest>,
    recent: Mutex<VecDeque<Arc<View>>>,
    /// The way that was looked up last: who asks for a point opens it next.
    way: Mutex<Option<Arc<Way>>>,
}

/// The replica at `url`. Errors as [`Store::open`] does.
pub(super) fn of(url: &ReplicaUrl) -> Result<Arc<Replica>> {
    let mut all = REPLICAS.lock();
    if let Some(at) = all.iter().position(|r| r.url == *url)
        && let Some(replica) = all.remove(at)
    {
        all.push_back(replica.clone());
        return Ok(replica);
    }
    let replica = Arc::new(Replica {
        url: url.clone(),
        store: Store::open(url)?,
        known: Known::default(),
        newest: Mutex::default(),
        recent: Mutex::default(),
        way: Mutex::default(),
    });
    all.push_back(replica.clone());
    while all.len() > REMEMBERED {
        all.pop_front();
    }
    Ok(replica)
}

impl Replica {
    /// The state at `point`. Errors as [`view::open`].
    pub(super) fn view(self: &Arc<Self>, point: Point) -> Result<Arc<View>> {
        match point {
            Point::Latest => self.newest(),
            Point::TxId(txid) => match self.remembered(txid) {
                Some(view) => Ok(view),
                None => self.open(point, BTreeSet::new()),
            },
            Point::Time(_) => self.open(point, BTreeSet::new()),
        }
    }

    /// The state at `txid` once more, without the files in `bad`: of the file `id` something is gone, or cannot be believed.
    /// Errors as [`view::open`].
    pub(super) fn anew(
        self: &Arc<Self>,
        txid: TxId,
        id: Option<FileId>,
        bad: BTreeSet<FileId>,
    ) -> Result<Arc<View>> {
        id.into_iter().for_each(|id| self.known.forget(id));
        lock(&self.recent).retain(|v| v.map.txid() != txid);
        self.open(Point::TxId(txid), bad)
    }

    /// The point that was said: a label is looked up. Errors as [`labels::point_of`].
    pub(super) fn point(self: &Arc<Self>, named: Named) -> Result<Point> {
        if let Named::Point(point) = named {
            return Ok(point);
        }
        let this = self.clone();
        runtime::run(async move { labels::point_of(&this.store, &named).await })
    }

    /// The way to `point`, of which nothing is read yet. Errors as [`view::open`].
    pub(super) fn way(self: &Arc<Self>, point: Point) -> Result<Arc<Way>> {
        if let Point::TxId(txid) = point
            && let Some(way) = lock(&self.way).clone().filter(|w| w.plan.txid == txid)
        {
            return Ok(way);
        }
        self.look_up(point)
    }

    /// The way to `txid` among what lies there now. Errors as [`view::open`].
    pub(super) fn way_anew(self: &Arc<Self>, txid: TxId) -> Result<Arc<Way>> {
        self.look_up(Point::TxId(txid))
    }

    fn look_up(self: &Arc<Self>, point: Point) -> Result<Arc<Way>> {
        let this = self.clone();
        let way = runtime::run(async move { view::way(&this.store, point).await.map(Arc::new) })?;
        *lock(&self.way) = Some(way.clone());
        Ok(way)
    }

    /// The state that `way` leads to, out of what `near` has of its files, else of the replica. Errors as [`view::open`].
    pub(super) fn along(self: &Arc<Self>, way: &Arc<Way>, near: &Arc<dyn Nearby>) -> Result<Arc<View>> {
        if let Some(view) = self.remembered(way.plan.txid) {
            return Ok(view);
        }
        let (this, to, near) = (self.clone(), way.clone(), near.clone());
        let made =
            runtime::run(async move { Ok(view::make(&to, &Early::new(), &this.known, Some(&near)).await) })?;
        match made {
            Ok(view) => {
                let view = Arc::new(view);
                self.remember(&view);
                Ok(view)
            }
            // Merged away, or damaged.
            Err((id, _)) => self.anew(way.plan.txid, id, BTreeSet::new()),
        }
    }

    /// What some files of the replica hold, out of what `near` has of them, else of the replica. Errors as [`view::open`].
    pub(super) fn contents(
        self: &Arc<Self>,
        way: &Arc<Way>,
        files: Vec<FileInfo>,
        near: Option<&Arc<dyn Nearby>>,
    ) -> Result<Vec<Arc<Contents>>> {
        let (this, way, near) = (self.clone(), way.clone(), near.cloned());
        runtime::run(async move {
            let read = view::read(&way, files, &Early::new(), &this.known, near.as_ref())
                .await
                .map_err(|(_, e)| e)?;
            Ok(read.into_iter().map(|n| n.contents).collect())
        })
    }

    fn remembered(&self, txid: TxId) -> Option<Arc<View>> {
        lock(&self.recent).iter().find(|v| v.map.txid() == txid).cloned()
    }

    fn remember(&self, view: &Arc<View>) {
        let mut recent = lock(&self.recent);
        recent.retain(|v| v.map.txid() != view.map.txid());
        recent.push_back(view.clone());
        while recent.len() > STATES {
            recent.pop_front();
        }
    }

    fn open(self: &Arc<Self>, point: Point, bad: BTreeSet<FileId>) -> Result<Arc<View>> {
        let this = self.clone();
        let view =
            runtime::run(
                async move { view::open(&this.store, point, &bad, &this.known).await.map(Arc::new) },
            )?;
        self.remember(&view);
        Ok(view)
    }

    /// The newest state (I-READ-2). Errors as [`view::open`] where none is known yet, and where the replica was asked and did not
    /// answer.
    fn newest(self: &Arc<Self>) -> Result<Arc<View>> {
        // Held while the replica is asked: who comes meanwhile would ask the same.
        let mut newest = lock(&self.newest);
        let now = clock::uptime();
        if let Some(view) = &newest.view {
            if now.saturating_sub(newest.asked) < FRESH_FOR {
                return Ok(view.clone());
            }
            let is_listed = now.saturating_sub(newest.listed) < LISTED_FOR;
            let before = view.clone();
            let (this, from) = (self.clone(), view.clone());
            let next = runtime::run(async move { this.followed(&from).await })?;
            match next {
                Some(view) => {
                    newest.view = Some(Arc::new(view));
                    newest.asked = now;
                }
                None if is_listed => newest.asked = now,
                None => newest.view = None,
            }
            let many = newest
                .view
                .as_ref()
                .is_some_and(|v| v.map.files().len() > before.map.files().len() + FOLLOWING);
            if !many && let Some(view) = &newest.view {
                self.remember(view);
                return Ok(view.clone());
            }
        }
        let view = self.open(Point::Latest, BTreeSet::new())?;
        (newest.view, newest.asked, newest.listed) = (Some(view.clone()), now, now);
        Ok(view)
    }

    /// `view` and the small files that follow it; `None` if none does.
    async fn followed(&self, view: &View) -> Result<Option<View>> {
        let (mut files, mut numbers, mut at) = (Vec::new(), view.numbers.clone(), view.map.txid());
        while files.len() <= FOLLOWING {
            let Some(id) = FileId::new(Level::L0, at.next(), at.next()) else { break };
            let bytes = match view.store.get_range(&id.key(view.store.layout()), 0..WHOLE + 1).await {
                Ok(bytes) if bytes.len() as u64 <= WHOLE => bytes,
                // A large one is planned, as any file is.
                Ok(_) => return Ok(None),
                Err(e) if e.is_missing() => break,
                Err(e) => return Err(e),
            };
            let Ok(contents) = whole(id, bytes, None) else { return Ok(None) };
            let known = view::take_in(&self.known, contents, &view.store);
            numbers.push(known.number);
            files.push(known.contents);
            at = at.next();
        }
        if files.is_empty() {
            return Ok(None);
        }
        // One of another history does not follow: what does is found by a listing.
        Ok(view.map.with(files).ok().map(|map| View { map, numbers, store: view.store.clone() }))
    }
}
