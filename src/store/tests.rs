//! The room against four stores: a directory, memory, the fake S3, and moto when `MOTO_SERVER` names its program.

use super::fake_s3::{Cut, FakeS3, Quirk, Rule};
use super::object::rfc3339_nano;
use super::*;
use crate::base::certificates;
use crate::base::{Kind, Result, Timestamp};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const T: Timestamp = Timestamp(1_795_371_883_420);

fn fake_store(fake: &FakeS3, path: &str) -> Store {
    Store::open_with(&ReplicaUrl::parse(&fake.url(path)).unwrap(), &Env::of(fake.env())).unwrap()
}

fn local_store(dir: &Path) -> Store {
    Store::open(&ReplicaUrl::parse(dir.to_str().unwrap()).unwrap()).unwrap()
}

fn meta() -> PutMeta {
    PutMeta { timestamp: Some(T), ..PutMeta::default() }
}

fn quick(attempts: u32) -> Retry {
    Retry::without_end(Duration::from_millis(1), Duration::from_millis(5)).at_most(attempts)
}

/// Runs on each kind of store that needs no network.
fn on_each(test: impl Fn(&str, Store)) {
    let dir = tempfile::tempdir().unwrap();
    test("local", local_store(&dir.path().join("not/yet there")));
    test("memory", Store::in_memory());
    let fake = FakeS3::start();
    fake.set_page(3);
    test("fake", fake_store(&fake, "some/path ä"));
    test("fake at root", fake_store(&fake, ""));
    assert_eq!(fake.open_uploads(), 0);
}

/// Every verb, with what is the same everywhere.
async fn conformance(name: &str, s: &Store) {
    assert!(s.list("").await.unwrap().is_empty(), "{name}");
    for r in [
        s.get("a/b").await.map(|_| ()),
        s.head("a/b").await.map(|_| ()),
        s.get_range("a/b", 0..4).await.map(|_| ()),
    ] {
        let e = r.unwrap_err();
        assert!(e.is_missing() && !e.to_string().contains('\n'), "{name}: {e}");
    }

    assert_eq!(
        s.put_new("0000/x.ltx", b"0123456789".as_slice(), meta()).await.unwrap(),
        Put::Created,
        "{name}"
    );
    assert_eq!(s.put_new("0000/x.ltx", b"0123456789".as_slice(), meta()).await.unwrap(), Put::AlreadyMine);
    for other in [b"012345678X".as_slice(), b"short", b""] {
        let e = s.put_new("0000/x.ltx", other, meta()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Exists, "{name}: {e}");
    }
    assert_eq!(s.get("0000/x.ltx").await.unwrap(), b"0123456789".as_slice());
    assert_eq!(s.get_range("0000/x.ltx", 2..5).await.unwrap(), b"234".as_slice());
    assert_eq!(s.get_range("0000/x.ltx", 8..100).await.unwrap(), b"89".as_slice());
    assert_eq!(s.get_range("0000/x.ltx", 3..3).await.unwrap(), b"".as_slice());
    let e = s.get_range("0000/x.ltx", 10..12).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt, "{name}: {e}");

    s.put_over("empty", b"".as_slice()).await.unwrap();
    assert_eq!(s.get("empty").await.unwrap(), b"".as_slice(), "{name}");
    assert_eq!(s.get_range("empty", 0..9).await.unwrap_err().kind(), Kind::Corrupt, "{name}");
    s.delete(&["empty".into()]).await.unwrap();

    let h = s.head("0000/x.ltx").await.unwrap();
    assert_eq!((h.key.as_str(), h.size, h.timestamp), ("0000/x.ltx", 10, Some(T)), "{name}");
    assert!(name == "local" || h.sha256 == Some(Sha256::digest(b"0123456789").into()), "{name}");

    s.put_over("walrust/manifest", b"one".as_slice()).await.unwrap();
    s.put_over("walrust/manifest", b"two".as_slice()).await.unwrap();
    assert_eq!(s.get("walrust/manifest").await.unwrap(), b"two".as_slice());

    let lease = "walrust/lease";
    let v1 = s.put_if(lease, b"1".as_slice(), None).await.unwrap();
    assert_eq!(s.put_if(lease, b"x".as_slice(), None).await.unwrap_err().kind(), Kind::Exists, "{name}");
    let v2 = s.put_if(lease, b"2".as_slice(), Some(&v1)).await.unwrap();
    assert_eq!(s.put_if(lease, b"x".as_slice(), Some(&v1)).await.unwrap_err().kind(), Kind::Exists, "{name}");
    assert_eq!(s.get_versioned(lease).await.unwrap(), (b"2".as_slice().into(), v2.clone()));
    s.delete(&[lease.into()]).await.unwrap();
    assert_eq!(s.put_if(lease, b"x".as_slice(), Some(&v2)).await.unwrap_err().kind(), Kind::Exists, "{name}");

    for i in 0..7 {
        s.put_new(&format!("0001/{i}"), vec![7u8; i], PutMeta::default()).await.unwrap();
    }
    s.put_new("0001x/y & <z>", b"".as_slice(), PutMeta::default()).await.unwrap();
    let keys = |list: Vec<ObjectInfo>| list.into_iter().map(|o| o.key).collect::<Vec<_>>();
    let listed = s.list("0001").await.unwrap();
    assert_eq!(listed.iter().map(|o| o.size).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>(), "{name}");
    assert_eq!(keys(listed), (0..7).map(|i| format!("0001/{i}")).collect::<Vec<_>>(), "{name}");
    assert_eq!(keys(s.list("0001/").await.unwrap()).len(), 7);
    assert_eq!(keys(s.list("").await.unwrap()).len(), 10, "{name}");
    assert_eq!(keys(s.list("nothing/here").await.unwrap()).len(), 0);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let big: Vec<u8> = (0..600_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&file, &big).unwrap();
    s.put_new("0009/big", Body::File(file.clone()), meta()).await.unwrap();
    let out = dir.path().join("out");
    let (size, sha) = s.get_to_file("0009/big", &out).await.unwrap();
    assert_eq!((size, sha), (big.len() as u64, Sha256::digest(&big).into()));
    assert!(std::fs::read(&out).unwrap() == big);
    assert_eq!(s.probe_conditional().await.unwrap(), Conditions::Held, "{name}");
    let all = keys(s.list("").await.unwrap());
    assert!(!all.iter().any(|k| k.contains("probe")), "{name}: {all:?}");
    s.delete(&all).await.unwrap();
    s.delete(&all).await.unwrap();
    assert!(s.list("").await.unwrap().is_empty(), "{name}");
    s.delete(&[]).await.unwrap();
}

#[test]
fn every_store_does_the_same() {
    on_each(|name, s| block_on(conformance(name, &s)).unwrap());
}

#[test]
fn keys_stay_within_the_replica() {
    on_each(|_, s| {
        block_on(async {
            for key in ["", "/x", "../x", "a/../b", "a//b", "a/", "./a", "a\0b", "a\nb"] {
                assert_eq!(s.get(key).await.unwrap_err().kind(), Kind::Bug, "{key:?}");
                assert_eq!(s.put_over(key, b"".as_slice()).await.unwrap_err().kind(), Kind::Bug);
            }
            assert_eq!(s.list("../x").await.unwrap_err().kind(), Kind::Bug);
        })
        .unwrap();
    });
}

/// I-STORE-6.
#[test]
fn an_object_that_is_too_long_to_be_read_at_once_is_not() {
    on_each(|name, s| {
        block_on(async {
            s.put_over("long", vec![7; WHOLE_BYTES as usize + 1]).await.unwrap();
            s.put_over("short", vec![7; 5]).await.unwrap();
            s.put_over("empty", Vec::new()).await.unwrap();
            assert_eq!(s.get("long").await.unwrap_err().kind(), Kind::Corrupt, "{name}");
            assert_eq!(s.get_versioned("long").await.unwrap_err().kind(), Kind::Corrupt, "{name}");
            assert_eq!(s.get("short").await.unwrap(), vec![7; 5], "{name}");
            assert_eq!(s.get("empty").await.unwrap(), Vec::<u8>::new(), "{name}");
            assert_eq!(s.get_range("long", 0..9).await.unwrap(), vec![7; 9], "{name}");
        })
        .unwrap();
    });
}

async fn race(name: &str, s: &Store, rounds: usize) {
    for round in 0..rounds {
        let key = format!("race/{round}");
        let puts = (0..6u8).map(|i| s.put_new(&key, vec![i; 100], PutMeta::default()));
        let outcomes = futures_util::future::join_all(puts).await;
        let winners: Vec<usize> =
            (0..6).filter(|i| matches!(outcomes[*i], Ok(Put::Created | Put::AlreadyMine))).collect();
        assert_eq!(winners.len(), 1, "{name}: {outcomes:?}");
        assert!(
            outcomes.iter().flat_map(|o| o.as_ref().err()).all(|e| e.kind() == Kind::Exists),
            "{name}: {outcomes:?}"
        );
        assert_eq!(s.get(&key).await.unwrap(), vec![winners[0] as u8; 100]);

        let mine = s.get_versioned(&key).await.unwrap().1;
        let updates = (10..14u8).map(|i| s.put_if(&key, vec![i; 9], Some(&mine)));
        let outcomes = futures_util::future::join_all(updates).await;
        assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1, "{name}: {outcomes:?}");
    }
}

#[test]
fn of_two_writers_exactly_one_wins() {
    on_each(|name, s| block_on(race(name, &s, 20)).unwrap());
}

/// Threads with stores and runtimes of their own, over one directory: fcntl locks do not exclude threads.
#[test]
fn local_races_between_threads() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let wins: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4u8)
                .map(|i| {
                    let s = local_store(dir.path());
                    scope.spawn(move || {
                        block_on(async {
                            let a =
                                s.put_new(&format!("n/{round}"), vec![i], PutMeta::default()).await.is_ok();
                            let b = s.put_if(&format!("l/{round}"), vec![i], None).await.is_ok();
                            [a, b]
                        })
                        .unwrap()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        for verb in 0..2 {
            assert_eq!(wins.iter().skip(verb).step_by(2).filter(|w| **w).count(), 1);
        }
    }
}

#[test]
fn local_files_are_as_litestream_expects() {
    let dir = tempfile::tempdir().unwrap();
    let s = local_store(dir.path());
    block_on(async {
        s.put_new("ltx/0/a.ltx", b"x".as_slice(), meta()).await.unwrap();
        std::fs::write(dir.path().join("ltx/0/.walrust-tmp-0-1"), b"litter").unwrap();
        let now = format!(".walrust-tmp-{:x}-2", crate::base::clock::now().0);
        std::fs::write(dir.path().join("ltx/0").join(&now), b"another writer's").unwrap();
        assert_eq!(s.list("").await.unwrap().len(), 1);
        s.put_new("ltx/0/b.ltx", b"x".as_slice(), meta()).await.unwrap();
        assert!(!dir.path().join("ltx/0/.walrust-tmp-0-1").exists(), "an old temp file is swept");
        assert!(dir.path().join("ltx/0").join(&now).exists(), "a young one is not");
    })
    .unwrap();
    let mtime = std::fs::metadata(dir.path().join("ltx/0/a.ltx")).unwrap().modified().unwrap();
    assert_eq!(mtime.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis(), 1_795_371_883_420);
}

#[test]
fn local_failures_have_kinds() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    let s = local_store(&dir.path().join("file/below"));
    block_on(async {
        assert_eq!(s.put_new("a", b"".as_slice(), meta()).await.unwrap_err().kind(), Kind::Config);
        let s = local_store(dir.path());
        assert!(s.get("file/x").await.is_err());
        let e = s.put_new("a", Body::File("/nonexistent/file".into()), meta()).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Io, "not Missing: that is about the replica");
        s.put_new("a", b"x".as_slice(), meta()).await.unwrap();
        assert_eq!(s.get_to_file("a", Path::new("/nonexistent/f")).await.unwrap_err().kind(), Kind::Io);
    })
    .unwrap();
}

#[test]
fn metadata_is_written_as_litestream_reads_it() {
    let fake = FakeS3::start();
    let s = fake_store(&fake, "p");
    block_on(s.put_new("0000/a", b"x".as_slice(), meta())).unwrap().unwrap();
    let object = fake.object("p/0000/a").unwrap();
    assert_eq!(object.metadata["litestream-timestamp"], "2026-11-22T18:24:43.42Z");
    assert_eq!(object.metadata["walrust-put-id"].len(), 16);
    assert_eq!(object.metadata["walrust-sha256"], hex(&Sha256::digest(b"x")));
    assert_eq!(rfc3339_nano(Timestamp(0)), "1970-01-01T00:00:00Z");
    assert_eq!(rfc3339_nano(Timestamp(1_100)), "1970-01-01T00:00:01.1Z");
    assert_eq!(rfc3339_nano(Timestamp(10_000)), "1970-01-01T00:00:10Z");
}

fn rule(method: &str, status: u16, cut: Cut) -> Rule {
    Rule { method: method.into(), key: "k".into(), times: 1, status, cut, ..Rule::default() }
}

#[test]
fn a_lost_answer_is_settled_by_the_put_id() {
    for attempts in [1, 3] {
        let fake = FakeS3::start();
        let s = fake_store(&fake, "p").with_retry(quick(attempts));
        block_on(async {
            fake.rule(rule("PUT", 0, Cut::Applied));
            assert_eq!(s.put_new("k1", b"x".as_slice(), meta()).await.unwrap(), Put::AlreadyMine);
            fake.rule(rule("PUT", 0, Cut::Applied));
            s.put_if("k2", b"lease 1".as_slice(), None).await.unwrap();
            let (_, v) = s.get_versioned("k2").await.unwrap();
            fake.rule(rule("PUT", 0, Cut::Applied));
            s.put_if("k2", b"lease 2".as_slice(), Some(&v)).await.unwrap();
            // The put was not carried out and the store stays away: not known, so try again later.
            fake.rule(Rule { times: 0, cut: Cut::Before, ..rule("", 0, Cut::None) });
            let e = s.put_new("k3", b"x".as_slice(), meta()).await.unwrap_err();
            assert_eq!(e.kind(), Kind::Retry, "{e}");
            // Later, with another put id: its own content decides.
            fake.clear();
            fake.rule(rule("PUT", 0, Cut::Applied));
            fake.rule(Rule { times: 0, cut: Cut::Before, ..rule("HEAD", 0, Cut::None) });
            if attempts == 1 {
                assert_eq!(s.put_new("k4", b"x".as_slice(), meta()).await.unwrap_err().kind(), Kind::Retry);
            }
            fake.clear();
            s.put_new("k4", b"x".as_slice(), meta()).await.unwrap();
        })
        .unwrap();
    }
}

#[test]
fn what_litestream_or_a_forgetful_store_holds_is_compared_by_content() {
    let fake = FakeS3::start();
    fake.set_quirks(&[Quirk::NoMetadata]);
    fake.insert("p/k", b"same");
    let s = fake_store(&fake, "p");
    block_on(async {
        assert_eq!(s.put_new("k", b"same".as_slice(), meta()).await.unwrap(), Put::AlreadyMine);
        assert_eq!(s.put_new("k", b"SAME".as_slice(), meta()).await.unwrap_err().kind(), Kind::Exists);
    })
    .unwrap();
}

#[test]
fn a_conflict_of_two_creations_under_way_is_tried_again() {
    let fake = FakeS3::start();
    let s = fake_store(&fake, "p").with_retry(quick(3));
    fake.fail(1, "PUT", "k", 409);
    assert_eq!(block_on(s.put_new("k", b"x".as_slice(), meta())).unwrap().unwrap(), Put::Created);
    assert_eq!((fake.count("PUT", "k"), fake.count("HEAD", "k")), (2, 1));
}

#[test]
fn statuses_become_kinds() {
    let fake = FakeS3::start();
    let s = fake_store(&fake, "p").with_retry(Retry::NONE);
    fake.insert("p/k", b"x");
    for (status, kind) in [
        (401, Kind::Denied),
        (403, Kind::Denied),
        (429, Kind::Retry),
        (500, Kind::Retry),
        (503, Kind::Retry),
        (400, Kind::Config),
    ] {
        for verb in ["GET", "LIST", "PUT", "HEAD"] {
            fake.clear();
            fake.fail(1, verb, "", status);
            let r = block_on(async {
                match verb {
                    "GET" => s.get("k").await.map(|_| ()),
                    "LIST" => s.list("").await.map(|_| ()),
                    "HEAD" => s.head("k").await.map(|_| ()),
                    _ => s.put_over("k", b"x".as_slice()).await,
                }
            })
            .unwrap();
            let e = r.unwrap_err();
            assert_eq!(e.kind(), kind, "{verb} {status}: {e}");
            assert!(e.to_string().contains(&status.to_string()) && !e.to_string().contains('\n'), "{e}");
            assert_eq!(fake.log().len(), 1, "one try");
        }
    }
}

#[test]
fn retry_after_is_seen_and_honoured() {
    let fake = FakeS3::start();
    fake.insert("p/k", b"x");
    let s = fake_store(&fake, "p");
    fake.rule(Rule { times: 1, status: 503, retry_after: Some(1), ..Rule::default() });
    let start = crate::base::clock::uptime();
    block_on(s.get("k")).unwrap().unwrap();
    assert!(crate::base::clock::uptime() - start >= Duration::from_secs(1));
    fake.rule(Rule { times: 1, status: 503, retry_after: Some(77), ..Rule::default() });
    let e = block_on(s.get("k")).unwrap().unwrap_err();
    assert_eq!((e.kind(), e.retry_after()), (Kind::Retry, Some(Duration::from_secs(77))));
}

#[test]
fn reads_survive_trouble_on_the_way() {
    let fake = FakeS3::start();
    let body = vec![9u8; 300_000];
    fake.insert("p/k", &body);
    let s = fake_store(&fake, "p").with_retry(quick(3));
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        for cut in [Cut::Before, Cut::MidBody, Cut::Applied] {
            fake.rule(rule("GET", 0, cut));
            assert!(s.get("k").await.unwrap() == body, "{cut:?}");
            fake.rule(rule("GET", 0, cut));
            assert_eq!(s.get_to_file("k", &dir.path().join("f")).await.unwrap().0, 300_000);
        }
        fake.rule(Rule { times: 1, cut: Cut::MidBody, method: "LIST".into(), ..Rule::default() });
        assert_eq!(s.list("").await.unwrap().len(), 1);
        let s = s.clone().with_retry(Retry::NONE);
        fake.rule(rule("GET", 0, Cut::MidBody));
        let e = s.get("k").await.unwrap_err();
        assert_eq!(e.kind(), Kind::Retry, "{e}");
    })
    .unwrap();
}

#[test]
fn the_bucket_is_missing() {
    let fake = FakeS3::start();
    let url = format!("s3://other/p?endpoint={}", fake.endpoint());
    let s = Store::open_with(&ReplicaUrl::parse(&url).unwrap(), &Env::of(fake.env())).unwrap();
    block_on(async {
        for e in [
            s.list("").await.unwrap_err(),
            s.get("k").await.unwrap_err(),
            s.put_new("k", b"x".as_slice(), meta()).await.unwrap_err(),
            s.put_if("k", b"x".as_slice(), None).await.unwrap_err(),
            s.probe_conditional().await.unwrap_err(),
        ] {
            assert_eq!(e.kind(), Kind::Config, "{e}");
            let text = e.to_string();
            assert!(
                text.contains("bucket other does not exist") && text.contains(&fake.endpoint()),
                "{text}"
            );
        }
    })
    .unwrap();
}

#[test]
fn credentials_are_checked_and_not_shown() {
    let fake = FakeS3::start();
    let url = ReplicaUrl::parse(&fake.url("p")).unwrap();
    for (key, secret) in [("k", "hunter2"), ("hunter2", "s")] {
        let env = Env::of([("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)]);
        let s = Store::open_with(&url, &env).unwrap();
        let e = block_on(s.put_new("k", b"x".as_slice(), meta())).unwrap().unwrap_err();
        assert_eq!(e.kind(), Kind::Denied);
        assert!(!format!("{e} {e:?} {s:?}").contains("hunter2"), "{e}");
    }
    let e = Store::open_with(&url, &Env::of([("AWS_ACCESS_KEY_ID", "hunter2")])).unwrap_err();
    assert!(e.kind() == Kind::Config && !e.to_string().contains("hunter2"), "{e}");
}

#[test]
fn a_profile_gives_keys_region_and_endpoint() {
    let fake = FakeS3::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cred");
    let text = format!(
        "[p]\naws_access_key_id=k\naws_secret_access_key=s\nregion=eu-north-1\nendpoint_url={}\n",
        fake.endpoint()
    );
    std::fs::write(&file, text).unwrap();
    let env = Env::of([
        ("AWS_PROFILE", "p"),
        ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap()),
        ("AWS_CONFIG_FILE", "/nonexistent/config"),
    ]);
    let s = Store::open_with(&ReplicaUrl::parse("s3://b/p").unwrap(), &env).unwrap();
    block_on(s.put_over("k", b"x".as_slice())).unwrap().unwrap();
    assert_eq!(fake.keys(), ["p/k"]);
}

#[test]
fn nobody_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = ReplicaUrl::parse(&format!("s3://b/p?endpoint=http://127.0.0.1:{port}")).unwrap();
    let env = Env::of([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    let s = Store::open_with(&url, &env).unwrap().with_retry(quick(2));
    let e = block_on(s.list("")).unwrap().unwrap_err();
    assert!(e.kind() == Kind::Retry && e.to_string().contains("refused"), "{e}");
    let fake = FakeS3::start();
    let s = fake_store(&fake, "p").with_retry(quick(2));
    fake.set_down(true);
    assert_eq!(block_on(s.list("")).unwrap().unwrap_err().kind(), Kind::Retry);
    fake.set_down(false);
    assert!(block_on(s.list("")).unwrap().unwrap().is_empty());
}

#[test]
fn conditions_are_probed() {
    for (quirk, expected) in [
        (None, Conditions::Held),
        (Some(Quirk::IgnoreConditions), Conditions::Ignored),
        (Some(Quirk::RefuseConditions), Conditions::Ignored),
        (Some(Quirk::IgnoreIfMatch), Conditions::CreateOnly),
    ] {
        let fake = FakeS3::start();
        fake.set_quirks(quirk.as_slice());
        let s = fake_store(&fake, "p");
        block_on(async {
            assert_eq!(s.conditions(), Conditions::Unknown);
            assert_eq!(s.probe_conditional().await.unwrap(), expected, "{quirk:?}");
            assert_eq!(fake.keys(), Vec::<String>::new(), "no litter");
            let requests = fake.log().len();
            assert_eq!(s.clone().probe_conditional().await.unwrap(), expected);
            assert_eq!(fake.log().len(), requests, "asked once");
            assert_eq!(s.put_new("k", b"x".as_slice(), meta()).await.unwrap(), Put::Created);
            assert_eq!(s.put_new("k", b"x".as_slice(), meta()).await.unwrap(), Put::AlreadyMine);
            assert_eq!(s.put_new("k", b"y".as_slice(), meta()).await.unwrap_err().kind(), Kind::Exists);
            assert_eq!(fake.object("p/k").unwrap().body, b"x");
            let lease = s.put_if("l", b"x".as_slice(), None).await;
            assert_eq!(lease.is_ok(), expected == Conditions::Held, "{lease:?}");
        })
        .unwrap();
    }
}

fn refusal(header: &str, status: u16, code: &str) -> Rule {
    Rule { method: "PUT".into(), header: header.into(), status, code: code.into(), ..Rule::default() }
}

/// Servers that do not know a condition say so in many ways; a refusal is one of the condition only if the same is
/// taken without.
#[test]
fn a_refused_condition_is_told_from_another_refusal() {
    for (rule, expected) in [
        (refusal("if-", 400, "InvalidArgument"), Ok(Conditions::Ignored)),
        (refusal("if-", 403, "AccessDenied"), Ok(Conditions::Ignored)),
        (refusal("if-", 405, "MethodNotAllowed"), Ok(Conditions::Ignored)),
        (refusal("if-", 501, "NotImplemented"), Ok(Conditions::Ignored)),
        // Of a new name, too: as if it were there.
        (refusal("if-none-match", 412, "PreconditionFailed"), Ok(Conditions::Ignored)),
        (refusal("if-match", 400, "InvalidArgument"), Ok(Conditions::CreateOnly)),
        (refusal("if-match", 405, "MethodNotAllowed"), Ok(Conditions::CreateOnly)),
        (refusal("if-match", 501, "NotImplemented"), Ok(Conditions::CreateOnly)),
        (refusal("", 403, "AccessDenied"), Err(Kind::Denied)),
        (refusal("", 400, "InvalidRequest"), Err(Kind::Config)),
        (refusal("", 503, "SlowDown"), Err(Kind::Retry)),
    ] {
        let fake = FakeS3::start();
        let s = fake_store(&fake, "p").with_retry(quick(2));
        let about = format!("{} {}", rule.header, rule.status);
        fake.rule(rule);
        block_on(async {
            let found = s.probe_conditional().await;
            assert_eq!(
                found.as_ref().map_err(|e| e.kind()),
                expected.as_ref().map_err(|k| *k),
                "{about}: {found:?}"
            );
            assert_eq!(s.conditions(), expected.unwrap_or(Conditions::Unknown), "{about}");
            assert_eq!(fake.keys(), Vec::<String>::new(), "{about}: no litter");
            if expected.is_ok() {
                assert_eq!(s.put_new("k", b"x".as_slice(), meta()).await.unwrap(), Put::Created, "{about}");
                assert_eq!(s.put_new("k", b"x".as_slice(), meta()).await.unwrap(), Put::AlreadyMine);
                assert_eq!(s.put_new("k", b"y".as_slice(), meta()).await.unwrap_err().kind(), Kind::Exists);
            }
        })
        .unwrap();
    }
}

/// A proxy's or a moment's answer is not the store's.
#[test]
fn one_refused_request_is_no_store_without_conditions() {
    for status in [400, 405, 501] {
        for step in 0..4 {
            let fake = FakeS3::start();
            let s = fake_store(&fake, "p").with_retry(quick(3));
            fake.rule(Rule { times: 1, skip: step, ..refusal("if-", status, "NotImplemented") });
            assert_eq!(
                block_on(s.probe_conditional()).unwrap().unwrap(),
                Conditions::Held,
                "{status} at {step}"
            );
        }
        let fake = FakeS3::start();
        let s = fake_store(&fake, "p").with_retry(quick(1));
        block_on(async {
            s.probe_conditional().await.unwrap();
            fake.rule(Rule { times: 1, ..refusal("if-none-match", status, "NotImplemented") });
            let put = s.put_new("k", b"x".as_slice(), meta()).await;
            assert_eq!(put.is_ok(), status != 400, "{status}: {put:?}");
            assert_eq!(s.conditions(), Conditions::Held);
            fake.clear();
            s.put_new("k2", b"x".as_slice(), meta()).await.unwrap();
            assert_eq!(s.put_new("k2", b"y".as_slice(), meta()).await.unwrap_err().kind(), Kind::Exists);
            let v = s.put_if("l", b"1".as_slice(), None).await.unwrap();
            s.put_if("l", b"2".as_slice(), Some(&v)).await.unwrap();
        })
        .unwrap();
    }
}

/// Only the end of a multipart upload takes no condition there: plain puts go on with theirs.
#[test]
fn a_store_that_refuses_the_condition_at_the_end_of_an_upload() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("big");
    std::fs::write(&file, vec![3u8; 17 << 20]).unwrap();
    for status in [400, 403, 501] {
        let fake = FakeS3::start();
        let s = fake_store(&fake, "p").with_retry(quick(1));
        block_on(async {
            s.probe_conditional().await.unwrap();
            fake.rule(Rule {
                method: "COMPLETE".into(),
                ..refusal("if-none-match", status, "NotImplemented")
            });
            let put = async |key: &str| s.put_new(key, Body::File(file.clone()), meta()).await;
            assert_eq!(put("k").await.unwrap(), Put::Created, "{status}");
            assert_eq!(s.conditions(), Conditions::Held, "{status}");
            assert_eq!(fake.count("COMPLETE", "k"), 2);
            assert_eq!(put("m").await.unwrap(), Put::Created);
            assert_eq!(fake.count("COMPLETE", "m"), 1, "it is known");
            assert_eq!(put("m").await.unwrap(), Put::AlreadyMine);
            s.put_new("0000/x", b"x".as_slice(), meta()).await.unwrap();
            fake.clear();
            s.put_if("l", b"1".as_slice(), None).await.unwrap();
        })
        .unwrap();
        assert_eq!(fake.open_uploads(), 0);
    }
}

/// Who may write and not delete can replicate: what the probe leaves is a few bytes.
#[test]
fn the_probe_does_not_need_the_right_to_delete() {
    let fake = FakeS3::start();
    for method in ["DELETE", "POST"] {
        fake.rule(Rule { method: method.into(), status: 403, ..Rule::default() });
    }
    let s = fake_store(&fake, "p");
    assert_eq!(block_on(s.probe_conditional()).unwrap().unwrap(), Conditions::Held);
    assert_eq!(fake.keys().len(), 1);
    block_on(s.probe_conditional()).unwrap().unwrap();
    assert_eq!(fake.keys().len(), 1);
}

/// Hands out keys as a container's agent does; a count of how often it was asked.
struct Agent {
    uri: String,
    asked: Arc<std::sync::atomic::AtomicUsize>,
    token: Arc<Mutex<String>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl Agent {
    fn start() -> Agent {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/creds", listener.local_addr().unwrap());
        let agent = Agent {
            uri,
            asked: Arc::default(),
            token: Arc::new(Mutex::new("t".into())),
            stop: Arc::default(),
        };
        let (asked, token, stop) = (agent.asked.clone(), agent.token.clone(), agent.stop.clone());
        crate::base::thread::spawn("agent", 1 << 20, move || {
            for stream in listener.incoming() {
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.read(&mut [0; 4096]);
                asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let token = token.lock().unwrap().clone();
                let body = serde_json::json!({"AccessKeyId": "k", "SecretAccessKey": "s", "Token": token, "Expiration": "2999-01-01T00:00:00Z"}).to_string();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        })
        .unwrap();
        agent
    }

    fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn store(&self, fake: &FakeS3, dir: &Path) -> Store {
        let file = dir.join("token");
        std::fs::write(&file, "t").unwrap();
        let env = Env::of([
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", self.uri.as_str()),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap()),
        ]);
        Store::open_with(&ReplicaUrl::parse(&fake.url("p")).unwrap(), &env).unwrap().with_retry(Retry::NONE)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ =
            std::net::TcpStream::connect(self.uri.trim_start_matches("http://").trim_end_matches("/creds"));
    }
}

/// Keys that are "valid" for years are revoked, or rotated: the store's word counts.
#[test]
fn keys_that_the_store_refuses_are_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    for (status, code) in [
        (400, "ExpiredToken"),
        (401, ""),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
    ] {
        let (fake, agent) = (FakeS3::start(), Agent::start());
        let s = agent.store(&fake, dir.path());
        let refuse = |times: u64| Rule { times, status, code: code.into(), ..Rule::default() };
        block_on(async {
            s.put_over("a", b"x".as_slice()).await.unwrap();
            s.put_over("a", b"x".as_slice()).await.unwrap();
            assert_eq!(agent.asked(), 1, "they are kept");
            fake.rule(refuse(1));
            s.put_new("b", b"x".as_slice(), meta()).await.unwrap_or_else(|e| panic!("{status} {code}: {e}"));
            assert_eq!(agent.asked(), 2, "{status} {code}");
        })
        .unwrap();
        // What stays refused leads to one question, however many requests there are in that moment.
        let s = agent.store(&fake, dir.path());
        block_on(async {
            s.get("a").await.unwrap();
            let before = agent.asked();
            fake.rule(refuse(0));
            for _ in 0..10 {
                assert_eq!(s.get("a").await.unwrap_err().kind(), Kind::Denied, "{status} {code}");
                assert_eq!(s.list("").await.unwrap_err().kind(), Kind::Denied, "{status} {code}");
            }
            assert_eq!(agent.asked(), before + 1, "{status} {code}");
        })
        .unwrap();
    }
    // Keys that were given are what they are.
    let fake = FakeS3::start();
    let s = fake_store(&fake, "p").with_retry(Retry::NONE);
    fake.rule(Rule { status: 403, code: "InvalidAccessKeyId".into(), ..Rule::default() });
    assert_eq!(block_on(s.get("a")).unwrap().unwrap_err().kind(), Kind::Denied);
    assert_eq!(fake.log().len(), 1);
}

/// A source that hands out what no header can carry, for a while.
#[test]
fn keys_that_make_no_header_are_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, agent) = (FakeS3::start(), Agent::start());
    let s = agent.store(&fake, dir.path());
    *agent.token.lock().unwrap() = "a\nb".into();
    block_on(async {
        let e = s.list("").await.unwrap_err();
        assert!(e.kind() == Kind::Denied && e.to_string().contains("line break"), "{e}");
        *agent.token.lock().unwrap() = "good".into();
        tokio::time::sleep(Duration::from_millis(5_100)).await;
        assert!(s.list("").await.is_err() || agent.asked() > 1);
        s.list("").await.unwrap();
    })
    .unwrap();
}

#[test]
fn a_store_that_refuses_conditions_works_without_a_probe() {
    let fake = FakeS3::start();
    fake.set_quirks(&[Quirk::RefuseConditions]);
    let s = fake_store(&fake, "p");
    block_on(async {
        assert_eq!(s.put_new("k", b"x".as_slice(), meta()).await.unwrap(), Put::Created);
        assert_eq!(s.conditions(), Conditions::Ignored);
        assert_eq!(s.put_new("k", b"y".as_slice(), meta()).await.unwrap_err().kind(), Kind::Exists);
    })
    .unwrap();
}

#[test]
fn large_files_go_up_in_parts_and_create_only() {
    let fake = FakeS3::start();
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("big"), dir.path().join("other"));
    let mut bytes: Vec<u8> = (0..4_500_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&file, &bytes).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&other, &bytes).unwrap();
    bytes[5] ^= 1;
    let s = fake_store(&fake, "p").with_retry(quick(3));
    block_on(async {
        assert_eq!(s.put_new("k", Body::File(file.clone()), meta()).await.unwrap(), Put::Created);
        assert!(fake.object("p/k").unwrap().body == bytes);
        assert_eq!(fake.object("p/k").unwrap().metadata["litestream-timestamp"], "2026-11-22T18:24:43.42Z");
        assert!(fake.log().iter().all(|l| l.bytes <= 8 << 20), "in parts");
        assert_eq!(fake.count("COMPLETE", "k"), 1);
        assert_eq!(s.put_new("k", Body::File(file.clone()), meta()).await.unwrap(), Put::AlreadyMine);
        assert_eq!(s.put_new("k", Body::File(other), meta()).await.unwrap_err().kind(), Kind::Exists);
        assert!(fake.object("p/k").unwrap().body == bytes);
        // Trouble at each step.
        for (i, (method, cut)) in [
            ("PUT", Cut::Before),
            ("POST", Cut::Applied),
            ("COMPLETE", Cut::Before),
            ("COMPLETE", Cut::Applied),
        ]
        .into_iter()
        .enumerate()
        {
            fake.rule(rule(method, 0, cut));
            s.put_new(&format!("k{i}"), Body::File(file.clone()), meta()).await.unwrap();
            assert!(fake.object(&format!("p/k{i}")).unwrap().body == bytes);
        }
        fake.set_quirks(&[Quirk::RefuseConditions]);
        assert_eq!(s.put_new("kr", Body::File(file.clone()), meta()).await.unwrap(), Put::Created);
    })
    .unwrap();
    assert!(fake.open_uploads() <= 1, "all but the one whose id was lost are aborted");
}

#[test]
fn a_store_without_bulk_delete() {
    let fake = FakeS3::start();
    fake.set_quirks(&[Quirk::NoBulkDelete]);
    (0..5).for_each(|i| fake.insert(&format!("p/{i}"), b"x"));
    let s = fake_store(&fake, "p");
    let keys: Vec<String> = (0..6).map(|i| i.to_string()).collect();
    block_on(s.delete(&keys)).unwrap().unwrap();
    assert!(fake.keys().is_empty());
    assert_eq!((fake.count("POST", ""), fake.count("DELETE", "")), (1, 6));
    block_on(s.delete(&keys)).unwrap().unwrap();
    assert_eq!((fake.count("POST", ""), fake.count("DELETE", "")), (1, 12));
}

/// One answer per request, in order.
struct Script(Mutex<Vec<(Op, Fault)>>);

impl Faults for Script {
    fn next(&self, op: Op, _: &str) -> Fault {
        let mut left = self.0.lock().unwrap();
        match left.first() {
            Some((o, _)) if *o == op => left.remove(0).1,
            _ => Fault::None,
        }
    }
}

#[test]
fn faults_befall_verbs() {
    let script = |faults: &[(Op, Fault)]| Arc::new(Script(Mutex::new(faults.to_vec())));
    on_each(|name, s| {
        let s = s.with_retry(quick(2));
        block_on(async {
            let f = s.clone().with_faults(script(&[(Op::PutNew, Fault::LoseAnswer)]));
            assert_eq!(f.put_new("a", b"x".as_slice(), meta()).await.unwrap(), Put::AlreadyMine, "{name}");
            let f = s.clone().with_faults(script(&[(Op::PutIf, Fault::LoseAnswer)]));
            f.put_if("l", b"x".as_slice(), None).await.unwrap();
            let f = s.clone().with_faults(script(&[(Op::PutNew, Fault::Fail(Kind::Denied))]));
            assert_eq!(f.put_new("b", b"x".as_slice(), meta()).await.unwrap_err().kind(), Kind::Denied);
            assert!(s.get("b").await.unwrap_err().is_missing());
            let f = s.clone().with_faults(script(&[
                (Op::Get, Fault::Fail(Kind::Retry)),
                (Op::Get, Fault::Delay(Duration::from_millis(1))),
            ]));
            assert_eq!(f.get("a").await.unwrap(), b"x".as_slice());
            let f = s.clone().with_faults(script(&[
                (Op::List, Fault::Fail(Kind::Retry)),
                (Op::List, Fault::Fail(Kind::Retry)),
            ]));
            assert_eq!(f.list("").await.unwrap_err().kind(), Kind::Retry);
        })
        .unwrap();
    });
}

#[test]
fn other_clouds_refuse_in_one_line() {
    let open = |url: &str, env: Env| Store::open_with(&ReplicaUrl::parse(url).unwrap(), &env);
    let e = open("az://c/p", Env::default()).unwrap_err();
    assert!(e.kind() == Kind::Config && e.to_string().contains("AZURE_STORAGE_ACCOUNT_NAME"), "{e}");
    let bad = Env::of([("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_STORAGE_ACCOUNT_KEY", "hunter2!")]);
    if let Err(e) = open("az://c/p", bad) {
        assert!(!e.to_string().contains("hunter2") && !e.to_string().contains('\n'), "{e}");
    }
    let e =
        open("gs://c/p", Env::of([("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")])).unwrap_err();
    assert!(e.kind() == Kind::Config && !e.to_string().contains('\n'), "{e}");
    let e = open("s3://c/p", Env::of([("AWS_PROFILE", "none"), ("HOME", "/nonexistent")])).unwrap_err();
    assert!(e.kind() == Kind::Config && e.to_string().contains("'none'"), "{e}");
    assert!(
        open(
            "az://c/p",
            Env::of([("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_STORAGE_ACCOUNT_KEY", "aGk=")])
        )
        .is_ok()
    );
}

#[test]
fn where_s3_requests_go() {
    use super::open::s3_target;
    let target = |url: &str, env: Env| {
        let t = s3_target(&ReplicaUrl::parse(url).unwrap(), &env, None).unwrap();
        (t.endpoint, t.region, t.bucket_in)
    };
    let none = Env::default;
    assert_eq!(target("s3://b/p", none()), (None, "us-east-1".into(), BucketIn::Host));
    assert_eq!(target("s3://b.c/p", none()).2, BucketIn::Path);
    assert_eq!(target("s3://b/p?path_style=true", none()).2, BucketIn::Path);
    let env = Env::of([
        ("AWS_ENDPOINT_URL_S3", "http://h:1/"),
        ("AWS_ENDPOINT_URL", "http://x"),
        ("AWS_REGION", "r"),
    ]);
    assert_eq!(target("s3://b/p", env.clone()), (Some("http://h:1".into()), "r".into(), BucketIn::Path));
    assert_eq!(
        target("s3://b/p?endpoint=https://y&region=q", env),
        (Some("https://y".into()), "q".into(), BucketIn::Path)
    );
    assert_eq!(target("s3://b/p?endpoint=https://fly.storage.tigris.dev", none()).2, BucketIn::Host);
    let refused = |url: &str, env: Env| {
        let Err(e) = s3_target(&ReplicaUrl::parse(url).unwrap(), &env, None) else { panic!("{url}") };
        e.to_string()
    };
    for address in ["127.0.0.1:9000", "[::1]:9000", "10.0.0.1"] {
        let said = refused(&format!("s3://b/p?path_style=false&endpoint=http://{address}"), none());
        assert!(said.contains("IP address") && said.contains("path_style"), "{said}");
    }
    let env = Env::of([("AWS_ENDPOINT_URL", "http://127.0.0.1")]);
    assert!(refused("s3://b/p?path_style=false", env.clone()).contains("IP address"));
    assert_eq!(target("s3://b/p", env).2, BucketIn::Path);
    assert_eq!(target("s3://b/p?path_style=false&endpoint=http://localhost:1", none()).2, BucketIn::Host);
    for region in ["eu west", "a/b", "a\nb"] {
        assert!(refused("s3://b/p", Env::of([("AWS_REGION", region)])).contains("AWS_REGION"));
    }
    assert_eq!(target("s3://b/p", Env::of([("AWS_REGION", "eu-1\n")])).1, "eu-1");
    let secret = Env::of([("AWS_ENDPOINT_URL", "http://u:hunter2@h")]);
    let Err(e) = s3_target(&ReplicaUrl::parse("s3://b").unwrap(), &secret, None) else { panic!() };
    assert!(!e.to_string().contains("hunter2"), "{e}");
}

/// Servers of other makers refuse S3's newer checksum headers, each in its own way.
#[test]
fn the_checksum_header_can_be_left_out() {
    let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    std::fs::write(&config, "[default]\nrequest_checksum_calculation = when_required\n").unwrap();
    let config = config.to_str().unwrap();
    // What the URL says, a variable, and whether the header is sent (`Err`: a word of the refusal).
    type Row<'a> = (&'a str, (&'a str, &'a str), Result<bool, &'a str>);
    let table: [Row<'_>; 13] = [
        ("", ("X", ""), Ok(true)),
        ("", ("AWS_CHECKSUM_ALGORITHM", ""), Ok(true)),
        ("", ("AWS_CHECKSUM_ALGORITHM", "none"), Ok(false)),
        ("", ("AWS_CHECKSUM_ALGORITHM", "SHA256"), Ok(true)),
        ("", ("AWS_CHECKSUM_ALGORITHM", "md4"), Err("AWS_CHECKSUM_ALGORITHM")),
        ("", ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"), Ok(false)),
        ("", ("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED"), Ok(true)),
        ("", ("AWS_REQUEST_CHECKSUM_CALCULATION", ""), Ok(true)),
        ("", ("AWS_REQUEST_CHECKSUM_CALCULATION", "never"), Err("AWS_REQUEST_CHECKSUM_CALCULATION")),
        ("", ("AWS_CONFIG_FILE", config), Ok(false)),
        ("&checksum=none", ("X", ""), Ok(false)),
        ("&checksum=none", ("AWS_CHECKSUM_ALGORITHM", "sha256"), Ok(false)),
        ("&checksum=sha256", ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"), Ok(true)),
    ];
    for (parameter, variable, expected) in table {
        for (status, code) in
            [(400, "InvalidArgument"), (403, "SignatureDoesNotMatch"), (501, "NotImplemented")]
        {
            let fake = FakeS3::start();
            fake.rule(Rule { header: "x-amz-checksum".into(), status, code: code.into(), ..Rule::default() });
            let url = ReplicaUrl::parse(&format!("{}{parameter}", fake.url("p"))).unwrap();
            assert_eq!(ReplicaUrl::parse(&url.to_string()).unwrap(), url);
            let opened = Store::open_with(&url, &Env::of([keys[0], keys[1], variable]));
            let sent = match (opened, expected) {
                (Err(e), Err(word)) => {
                    assert!(e.kind() == Kind::Config && e.to_string().contains(word), "{e}");
                    continue;
                }
                (opened, expected) => (opened.unwrap().with_retry(Retry::NONE), expected.unwrap()),
            };
            let (s, header) = sent;
            block_on(async {
                let put = s.put_new("k", b"x".as_slice(), meta()).await;
                assert_eq!(put.is_ok(), !header, "{parameter} {variable:?} {status}: {put:?}");
                if !header {
                    s.delete(&["k".into()]).await.unwrap();
                    assert!(fake.keys().is_empty());
                }
            })
            .unwrap();
        }
    }
}

/// A variable that is set and empty is not set, whichever it is.
#[test]
fn an_empty_variable_is_not_set() {
    let names = [
        "AWS_SESSION_TOKEN",
        "AWS_TOKEN",
        "AWS_SKIP_SIGNATURE",
        "AWS_REQUEST_PAYER",
        "AWS_UNSIGNED_PAYLOAD",
        "AWS_S3_EXPRESS",
        "AWS_SERVER_SIDE_ENCRYPTION",
        "AWS_COPY_IF_NOT_EXISTS",
        "AWS_CONDITIONAL_PUT",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_PROFILE",
        "AWS_CA_BUNDLE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_METADATA_ENDPOINT",
        "AWS_ALLOW_HTTP",
        "AWS_CHECKSUM_ALGORITHM",
        "AWS_IMDSV1_FALLBACK",
    ];
    for name in names {
        for nothing in ["", " ", "\n"] {
            let fake = FakeS3::start();
            // A token that is there and empty is refused by S3.
            fake.rule(Rule { header: "x-amz-security-token".into(), status: 403, ..Rule::default() });
            let url = ReplicaUrl::parse(&fake.url("p")).unwrap();
            let env = Env::of([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), (name, nothing)]);
            let s = Store::open_with(&url, &env).unwrap_or_else(|e| panic!("{name}: {e}"));
            block_on(s.put_over("k", b"x".as_slice())).unwrap().unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    let url = ReplicaUrl::parse("s3://b/p").unwrap();
    let half = Env::of([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "")]);
    assert!(Store::open_with(&url, &half).unwrap_err().to_string().contains("ecret"));
}

/// In a process of its own, because rustls reads SSL_CERT_FILE from the real environment.
fn in_child(test: &str, vars: &[(&str, &str)]) -> std::process::Output {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs(vars.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn no_ca_certificates() {
    if std::env::var_os("WALRUST_TEST_NO_CA").is_none() {
        let vars =
            [("WALRUST_TEST_NO_CA", "1"), ("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/nonexistent")];
        let out = in_child("store::tests::no_ca_certificates", &vars);
        assert!(out.status.success(), "{out:?}");
        assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
        return;
    }
    let env = Env::of([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    let open = |url: &str| Store::open_with(&ReplicaUrl::parse(url).unwrap(), &env);
    let e = open("s3://bucket/p").unwrap_err();
    assert!(e.kind() == Kind::Config && e.to_string().contains("SSL_CERT_FILE"), "{e}");
    assert!(!e.to_string().contains('\n'), "{e}");
    // Plain HTTP needs no certificates.
    let fake = FakeS3::start();
    assert!(block_on(open(&fake.url("p")).unwrap().list("")).unwrap().unwrap().is_empty());
}

/// Set and empty is not set: the system's certificates are found. (In a process of its own, as above.)
#[test]
fn an_empty_name_of_a_certificate_file() {
    if std::env::var_os("WALRUST_TEST_EMPTY_CA").is_none() {
        let vars = [("WALRUST_TEST_EMPTY_CA", "1"), ("SSL_CERT_FILE", ""), ("SSL_CERT_DIR", "")];
        let out = in_child("store::tests::an_empty_name_of_a_certificate_file", &vars);
        assert!(out.status.success(), "{out:?}");
        assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
        return;
    }
    let found = crate::base::certificates::hidden_by_an_empty_variable().unwrap();
    let env = Env::of([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    let opened = Store::open_with(&ReplicaUrl::parse("s3://bucket/p").unwrap(), &env);
    // (A machine without any certificates has none to find.)
    let none = openssl_probe::probe().cert_file.is_none();
    assert!(none || (!found.is_empty() && opened.is_ok()), "{opened:?}");
}

/// The half of [`moto`]'s TLS check that runs with other certificates.
#[test]
fn tls_child() {
    let (Ok(endpoint), Ok(expected)) =
        (std::env::var("WALRUST_TEST_TLS"), std::env::var("WALRUST_TEST_EXPECT"))
    else {
        return;
    };
    let url = ReplicaUrl::parse(&format!("s3://bkt/p?endpoint={endpoint}")).unwrap();
    let mut vars = vec![("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let bundle = std::env::var("AWS_CA_BUNDLE").unwrap_or_default();
    vars.push(("AWS_CA_BUNDLE", &bundle));
    let env = Env::of([vars[0], vars[1], vars[2]]);
    let s = Store::open_with(&url, &env).unwrap().with_retry(Retry::NONE);
    let e = block_on(s.list("")).unwrap().unwrap_err();
    assert!(e.to_string().contains(&expected), "{e}");
}

/// A real server that checks signatures: set MOTO_SERVER to moto_server's path.
#[test]
fn moto() {
    let Some(program) = std::env::var_os("MOTO_SERVER") else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = std::process::Command::new(program)
        .args(["-p", &port.to_string()])
        // The four requests that make a user and the bucket; all later ones must be signed.
        .env("INITIAL_NO_AUTH_ACTION_COUNT", "4")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let endpoint = format!("http://127.0.0.1:{port}");
    let outcome = std::panic::catch_unwind(|| block_on(against_moto(&endpoint)).unwrap());
    let _ = server.kill();
    let _ = server.wait();
    outcome.unwrap();
}

async fn against_moto(endpoint: &str) {
    certificates::install_provider();
    let http = reqwest::Client::builder().tls_certs_only([]).build().unwrap();
    let iam = async |body: &str| {
        let scope = "AWS4-HMAC-SHA256 Credential=x/20200101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=x";
        let request = http
            .post(endpoint)
            .header("authorization", scope)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("{body}&UserName=u&Version=2010-05-08"));
        request.send().await.unwrap().text().await.unwrap()
    };
    let mut tries = 0;
    while tokio::net::TcpStream::connect(endpoint.trim_start_matches("http://")).await.is_err() {
        tries += 1;
        assert!(tries < 300, "moto did not start");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    iam("Action=CreateUser").await;
    let policy =
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#;
    let policy: String = url_encode(policy);
    iam(&format!("Action=PutUserPolicy&PolicyName=p&PolicyDocument={policy}")).await;
    let keys = iam("Action=CreateAccessKey").await;
    let field = |name: &str| {
        let rest = keys.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("{keys}")).1;
        rest.split('<').next().unwrap().to_string()
    };
    let (id, secret) = (field("AccessKeyId"), field("SecretAccessKey"));
    let bucket = http.put(format!("{endpoint}/bkt")).header("content-length", "0").send().await.unwrap();
    assert!(bucket.status().is_success(), "{bucket:?}");

    let open = |bucket: &str, secret: &str| {
        let url = ReplicaUrl::parse(&format!("s3://{bucket}/p ä?endpoint={endpoint}")).unwrap();
        let env = Env::of([("AWS_ACCESS_KEY_ID", &id), ("AWS_SECRET_ACCESS_KEY", secret)]);
        Store::open_with(&url, &env).unwrap()
    };
    let s = open("bkt", &secret);
    conformance("moto", &s).await;
    race("moto", &s, 10).await;
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("big"), dir.path().join("other"));
    std::fs::write(&file, vec![3u8; 17 << 20]).unwrap();
    std::fs::write(&other, vec![4u8; 17 << 20]).unwrap();
    assert_eq!(s.put_new("big", Body::File(file.clone()), meta()).await.unwrap(), Put::Created);
    assert_eq!(s.put_new("big", Body::File(file), meta()).await.unwrap(), Put::AlreadyMine);
    assert_eq!(s.put_new("big", Body::File(other), meta()).await.unwrap_err().kind(), Kind::Exists);
    assert_eq!(s.get_range("big", 0..1).await.unwrap(), [3u8].as_slice());
    let e = open("nope", &secret).list("").await.unwrap_err();
    assert!(e.to_string().contains("bucket nope does not exist"), "{e}");
    let e = open("bkt", "wrong").list("").await.unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
}

/// Azurite, the Azure emulator, with a container of this name made beforehand: set AZURITE_CONTAINER.
#[test]
fn azurite() {
    let Ok(container) = std::env::var("AZURITE_CONTAINER") else { return };
    let open = |container: &str| {
        let path = format!("az://{container}/p-{:x}", crate::base::clock::random_u64());
        Store::open_with(
            &ReplicaUrl::parse(&path).unwrap(),
            &Env::of([("AZURE_STORAGE_USE_EMULATOR", "true")]),
        )
        .unwrap()
    };
    block_on(async {
        let s = open(&container);
        conformance("azurite", &s).await;
        race("azurite", &s, 5).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("big");
        std::fs::write(&file, vec![3u8; 17 << 20]).unwrap();
        assert_eq!(s.put_new("big", Body::File(file.clone()), meta()).await.unwrap(), Put::Created);
        assert_eq!(s.put_new("big", Body::File(file), meta()).await.unwrap(), Put::AlreadyMine);
        let e = open("nope-nope").list("").await.unwrap_err();
        assert!(e.to_string().contains("container nope-nope does not exist"), "{e}");
    })
    .unwrap();
}

/// moto with a certificate of its own: known through SSL_CERT_FILE or AWS_CA_BUNDLE, else refused.
#[test]
fn tls_is_verified() {
    let Some(program) = std::env::var_os("MOTO_SERVER") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (key, cert) = (path("key.pem"), path("cert.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &key, "-out", &cert])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = std::process::Command::new(program)
        .args(["-p", &port.to_string(), "-s", "-c", &cert, "-k", &key])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..300 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            break;
        }
        crate::base::clock::sleep(Duration::from_millis(100));
    }
    let endpoint = format!("https://127.0.0.1:{port}");
    let child = |extra: &[(&str, &str)], expect: &str| {
        let mut vars = vec![("WALRUST_TEST_TLS", endpoint.as_str()), ("WALRUST_TEST_EXPECT", expect)];
        vars.extend(extra);
        in_child("store::tests::tls_child", &vars)
    };
    let outs = [
        child(&[("SSL_CERT_FILE", &cert)], "bucket bkt does not exist"),
        child(&[("AWS_CA_BUNDLE", &cert)], "bucket bkt does not exist"),
        child(&[], "invalid peer certificate"),
    ];
    let _ = server.kill();
    let _ = server.wait();
    assert!(outs.iter().all(|o| o.status.success()), "{outs:#?}");
}

fn url_encode(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}
