//! `policy`: the least that a credential must be allowed for what it is used for, in the words of the store. Pure: nothing is asked.
//!
//! | role | reads | creates | overwrites | deletes |
//! |---|---|---|---|---|
//! | reader | all | – | – | – |
//! | writer | all | LTX files, and what lies under `walrust/` | `walrust/` alone | – |
//! | writer, append-only | all | LTX files, claims, labels, sums of blocks, the mark | – | – |
//! | janitor | all | `walrust/` | `walrust/` | all |
//! | all | all | as the writer | as the writer | all |
//!
//! Nobody reads without listing: where it may not list, S3 answers 403 of what is not there, and nobody could tell that from a refusal.
//! What numbered manifest segments name a janitor vouches for, so a writer that only creates may not create those.
//!
//! A writer without the right to delete leaves retention to a janitor: `[retention] by = "janitor"`, and `walrust compact --force` in cron.

use crate::args::{Policy, Role, StoreName};
use crate::failure::{Failure, Outcome};
use crate::show::{self, Form};
use serde_json::{Value, json};
use walrust::address::{ReplicaUrl, StoreKind};

/// What may be done with objects.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rights {
    write: Write,
    delete: bool,
}

/// What is put by who streams.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    Nothing,
    /// And never in another's place.
    Create,
    /// Under `walrust/` also in another's place.
    Streaming,
}

/// Under `walrust/`, what a writer creates that replaces nothing.
const CREATED: [&str; 4] = ["entries/*", "labels/*", "blocks-*", "append-only.json"];

fn rights(role: Role, append_only: bool) -> Rights {
    let streaming = if append_only { Write::Create } else { Write::Streaming };
    match role {
        Role::Reader => Rights { write: Write::Nothing, delete: false },
        Role::Writer => Rights { write: streaming, delete: false },
        Role::Janitor => Rights { write: Write::Nothing, delete: true },
        Role::All => Rights { write: Write::Streaming, delete: true },
    }
}

/// `policy`
pub fn policy(a: &Policy, form: Form) -> Outcome {
    let url = ReplicaUrl::parse(&a.url)?;
    let wanted = match a.store {
        StoreName::S3 => StoreKind::S3,
        StoreName::Gcs => StoreKind::Gs,
        StoreName::Azure => StoreKind::Azure,
    };
    if url.kind() != wanted {
        return Err(Failure::new(format!(
            "{} is no URL of that kind of store; s3:// belongs to s3, gs:// to gcs, az:// to azure",
            a.url
        )));
    }
    if a.append_only && a.role != Role::Writer {
        return Err(Failure::new("--append-only is of a writer: add --role writer"));
    }
    let rights = rights(a.role, a.append_only);
    let document = match wanted {
        StoreKind::Gs => gcs(&url, rights),
        StoreKind::Azure => azure(&url, rights),
        _ => s3(&url, rights),
    };
    show::json(&document)?;
    if form == Form::Text && a.role == Role::Writer {
        let setting = if a.append_only { "append_only = true" } else { "[retention] by = \"janitor\"" };
        show::complain(&format!(
            "note: this credential cannot delete; set {setting}, and run walrust compact --force with the janitor's"
        ));
        if a.append_only && wanted == StoreKind::Azure {
            show::complain(
                "note: Azure's write, which large uploads need, also replaces; only an immutability policy on the container keeps it from that",
            );
        }
    }
    Ok(0)
}

/// Of the replica, and of the folder above it: `a/b` and `a`. Empty at the top of a bucket.
fn places(url: &ReplicaUrl) -> (String, String) {
    let own = url.prefix().trim_matches('/').to_string();
    let above = own.rsplit_once('/').map(|(above, _)| above.to_string()).unwrap_or_default();
    (own, above)
}

fn below(folder: &str, rest: &str) -> String {
    if folder.is_empty() { rest.to_string() } else { format!("{folder}/{rest}") }
}

/// An IAM policy.
fn s3(url: &ReplicaUrl, Rights { write, delete }: Rights) -> Value {
    let (own, above) = places(url);
    let bucket = url.bucket();
    let arn = |key: &str| format!("arn:aws:s3:::{bucket}/{key}");
    let hearts = below(&above, "walrust/hearts/*");
    let mut listed = vec![below(&own, "*")];
    if !own.is_empty() {
        listed.push(own.clone());
    }
    if write == Write::Streaming {
        listed.push(hearts.clone());
    }
    let mut statements = vec![
        json!({
            "Sid": "List", "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [format!("arn:aws:s3:::{bucket}")],
            "Condition": {"StringLike": {"s3:prefix": listed}},
        }),
        json!({"Sid": "Read", "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [arn(&below(&own, "*"))]}),
    ];
    let files: Vec<String> = (0..10).map(|level| arn(&below(&own, &format!("{level:04x}/*")))).collect();
    if write != Write::Nothing {
        statements.push(json!({
            "Sid": "CreateFiles", "Effect": "Allow", "Action": ["s3:PutObject", "s3:AbortMultipartUpload"], "Resource": files,
        }));
        let mut kept = files.clone();
        if write == Write::Create {
            let created = CREATED.map(|name| arn(&below(&own, &format!("walrust/{name}"))));
            statements.push(json!({
                "Sid": "CreateRecords", "Effect": "Allow", "Action": ["s3:PutObject"], "Resource": created,
            }));
            kept = vec![arn(&below(&own, "*"))];
        }
        // What creates an object has to say that it replaces none; the parts of an upload create none.
        statements.push(json!({
            "Sid": "NeverReplaceFiles", "Effect": "Deny", "Action": ["s3:PutObject"], "Resource": kept,
            "Condition": {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}},
        }));
    }
    if write == Write::Streaming {
        statements.push(json!({
            "Sid": "Hearts", "Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": [arn(&hearts)],
        }));
    }
    if write == Write::Streaming || delete {
        statements.push(json!({
            "Sid": "OwnRecords", "Effect": "Allow", "Action": ["s3:PutObject"], "Resource": [arn(&below(&own, "walrust/*"))],
        }));
    }
    if delete {
        let mut from = vec![arn(&below(&own, "*"))];
        if write == Write::Streaming {
            from.push(arn(&hearts));
        }
        statements.push(
            json!({"Sid": "Delete", "Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": from}),
        );
    }
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// Custom roles, each with the condition under which it is bound. (To replace an object, Google wants the right to delete it.)
fn gcs(url: &ReplicaUrl, Rights { write, delete }: Rights) -> Value {
    let (own, above) = places(url);
    let within = |key: &str| {
        format!("resource.name.startsWith(\"projects/_/buckets/{}/objects/{key}\")", url.bucket())
    };
    let folder = |f: &str| if f.is_empty() { String::new() } else { format!("{f}/") };
    let mut bindings = vec![
        json!({"title": "walrust list", "includedPermissions": ["storage.objects.list"], "condition": "resource.type == \"storage.googleapis.com/Bucket\""}),
        json!({"title": "walrust read", "includedPermissions": ["storage.objects.get"], "condition": within(&folder(&own))}),
    ];
    if write != Write::Nothing {
        bindings.push(json!({"title": "walrust create files", "includedPermissions": ["storage.objects.create", "storage.multipartUploads.create", "storage.multipartUploads.abort"], "condition": within(&folder(&own))}));
    }
    if write == Write::Streaming {
        bindings.push(json!({"title": "walrust hearts", "includedPermissions": ["storage.objects.get", "storage.objects.create", "storage.objects.delete"], "condition": within(&below(&above, "walrust/hearts/"))}));
    }
    if write == Write::Streaming || delete {
        bindings.push(json!({"title": "walrust own records", "includedPermissions": ["storage.objects.create", "storage.objects.delete"], "condition": within(&below(&own, "walrust/"))}));
    }
    if delete {
        bindings.push(json!({"title": "walrust delete", "includedPermissions": ["storage.objects.delete"], "condition": within(&folder(&own))}));
    }
    json!({"bucket": url.bucket(), "bindings": bindings})
}

/// A role, and the condition under which it is assigned to the container. (Azure's `write` replaces as well as creates.)
fn azure(url: &ReplicaUrl, Rights { write, delete }: Rights) -> Value {
    let (own, above) = places(url);
    let action =
        |what: &str| format!("Microsoft.Storage/storageAccounts/blobServices/containers/blobs/{what}");
    let mut actions = vec![action("read")];
    if write != Write::Nothing || delete {
        actions.extend([action("write"), action("add/action")]);
    }
    if delete {
        actions.push(action("delete"));
    }
    let path = "@Resource[Microsoft.Storage/storageAccounts/blobServices/containers/blobs:path]";
    let mut allowed = vec![format!("{path} StringLike '{}'", below(&own, "*"))];
    if write == Write::Streaming {
        allowed.push(format!("{path} StringLike '{}'", below(&above, "walrust/hearts/*")));
    }
    let container = url.bucket();
    json!({
        "Name": "walrust", "IsCustom": true, "DataActions": actions, "NotDataActions": [], "Actions": [], "NotActions": [],
        "AssignableScopes": [format!("/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Storage/storageAccounts/ACCOUNT/blobServices/default/containers/{container}")],
        "condition": format!("({})", allowed.join(" OR ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(url: &str, role: Role) -> Vec<String> {
        let policy = s3(&ReplicaUrl::parse(url).unwrap(), rights(role, false));
        let allowed = policy["Statement"].as_array().unwrap().iter().filter(|s| s["Effect"] == "Allow");
        let mut all: Vec<String> = allowed
            .flat_map(|s| s["Action"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_string()))
            .collect();
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn who_may_delete_and_who_may_write() {
        let url = "s3://b/tenants/app";
        assert_eq!(actions(url, Role::Reader), ["s3:GetObject", "s3:ListBucket"]);
        assert_eq!(
            actions(url, Role::Writer),
            ["s3:AbortMultipartUpload", "s3:GetObject", "s3:ListBucket", "s3:PutObject"]
        );
        for (role, want) in
            [(Role::Reader, false), (Role::Writer, false), (Role::Janitor, true), (Role::All, true)]
        {
            assert_eq!(actions(url, role).contains(&"s3:DeleteObject".to_string()), want, "{role:?}");
            let (gs, az) =
                (ReplicaUrl::parse("gs://b/app").unwrap(), ReplicaUrl::parse("az://c/app").unwrap());
            assert_eq!(azure(&az, rights(role, false)).to_string().contains("blobs/delete"), want);
            assert_eq!(gcs(&gs, rights(role, false)).to_string().contains("walrust delete"), want);
        }
    }

    #[test]
    fn who_only_creates_has_no_object_to_replace_and_none_to_vouch_with() {
        let only = rights(Role::Writer, true);
        let policy = s3(&ReplicaUrl::parse("s3://b/tenants/app").unwrap(), only);
        let text = policy.to_string();
        for word in ["Delete", "hearts", "lease", "walrust/*", "manifest"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        let deny = policy["Statement"].as_array().unwrap().iter().find(|s| s["Effect"] == "Deny").unwrap();
        assert_eq!(deny["Resource"], json!(["arn:aws:s3:::b/tenants/app/*"]));
        let text = gcs(&ReplicaUrl::parse("gs://b/app").unwrap(), only).to_string();
        assert!(!text.contains("storage.objects.delete") && text.contains("storage.objects.create"));
    }

    #[test]
    fn nothing_beside_the_replica_and_its_hearts_is_named() {
        let text =
            s3(&ReplicaUrl::parse("s3://b/tenants/app").unwrap(), rights(Role::All, false)).to_string();
        for arn in text.split("arn:aws:s3:::").skip(1).map(|s| s.split('"').next().unwrap()) {
            assert!(
                arn == "b" || arn.starts_with("b/tenants/app/") || arn == "b/tenants/walrust/hearts/*",
                "{arn}"
            );
        }
        assert_eq!(places(&ReplicaUrl::parse("s3://b/app").unwrap()), ("app".to_string(), String::new()));
    }
}
