//! How it is found out whether a store holds to conditions: small objects are created twice, and updated with a wrong
//! version.
//!
//! A refusal is one of the condition only if the store takes the same put without it, and refuses the condition a
//! second time: a proxy, a policy or a bad moment refuse as well. Where the two refusals differ, nothing is concluded.

use super::backend::Failure;
use super::conditions::Conditions;
use super::object::Version;
use crate::base::{Error, Kind, Result, clock};
use async_trait::async_trait;

/// On what a put depends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition<'a> {
    /// Nothing.
    None,
    /// Nothing is there.
    New,
    /// What is there is still this.
    Still(&'a Version),
}

/// What the probe needs of a store.
#[async_trait]
pub(super) trait Conditional: Sync {
    async fn put_probe(&self, key: &str, condition: Condition<'_>) -> Result<(), Failure>;
    async fn is_there(&self, key: &str) -> Result<bool>;
}

/// Whether conditional updates have to be asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Updates {
    /// They hold.
    Known,
    Asked,
}

/// What became of a put with a condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answered {
    /// The store carried it out.
    Done,
    /// The store said that the condition does not hold.
    Unmet,
    /// The store said something that may mean that it does not know the condition.
    Refused,
}

/// Finds out. The keys that were written are added to `keys`, also if it fails.
///
/// Errors: the store's; [`Kind::Retry`] where it answers now this, now that.
pub(super) async fn conditions(
    store: &dyn Conditional,
    updates: Updates,
    keys: &mut Vec<String>,
) -> Result<Conditions> {
    let (key, created) = create(store, keys).await?;
    if created == Answered::Refused {
        same_without_condition(store, keys).await?;
        return match create(store, keys).await?.1 {
            Answered::Refused => Ok(Conditions::Ignored),
            Answered::Done | Answered::Unmet => Err(undecided()),
        };
    }
    match put(store, &key, Condition::New).await? {
        Answered::Unmet => {}
        Answered::Done => return Ok(Conditions::Ignored),
        Answered::Refused => return Err(undecided()),
    }
    if updates == Updates::Known {
        return Ok(Conditions::Held);
    }
    let wrong = Version { etag: Some("\"00000000000000000000000000000000\"".into()), version: None };
    let wrong = Condition::Still(&wrong);
    match put(store, &key, wrong).await? {
        Answered::Unmet => Ok(Conditions::Held),
        Answered::Done => Ok(Conditions::CreateOnly),
        Answered::Refused => {
            same_without_condition(store, keys).await?;
            match put(store, &key, wrong).await? {
                Answered::Unmet => Ok(Conditions::Held),
                Answered::Done | Answered::Refused => Ok(Conditions::CreateOnly),
            }
        }
    }
}

fn fresh(keys: &mut Vec<String>) -> String {
    let key = format!("walrust/probe-{:016x}", clock::random_u64());
    keys.push(key.clone());
    key
}

async fn put(store: &dyn Conditional, key: &str, condition: Condition<'_>) -> Result<Answered> {
    match store.put_probe(key, condition).await {
        Ok(()) => Ok(Answered::Done),
        Err(f) if f.error.kind() == Kind::Exists => Ok(Answered::Unmet),
        Err(f) if f.may_refuse_condition() => Ok(Answered::Refused),
        Err(f) => Err(f.error),
    }
}

/// A new name. Some servers say of a new name that it is taken.
async fn create(store: &dyn Conditional, keys: &mut Vec<String>) -> Result<(String, Answered)> {
    let key = fresh(keys);
    let answered = match put(store, &key, Condition::New).await? {
        // It is there: put by an earlier try, whose answer was lost on the way.
        Answered::Unmet if store.is_there(&key).await? => Answered::Done,
        Answered::Unmet => Answered::Refused,
        answered => answered,
    };
    Ok((key, answered))
}

async fn same_without_condition(store: &dyn Conditional, keys: &mut Vec<String>) -> Result<()> {
    store.put_probe(&fresh(keys), Condition::None).await.map_err(|f| f.error)
}

fn undecided() -> Error {
    Error::new(Kind::Retry, "the store takes conditional writes at one time and refuses them at another")
}
