//! The keys of an AWS profile, handed to object_store.

use super::env::Env;
use super::process;
use super::profile::Profile;
use crate::base::{Error, Kind, Result, Timestamp, clock};
use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long keys without an expiry are used before the files are read again (rotation).
const REREAD_AFTER: Duration = Duration::from_secs(60);
/// Keys that expire are renewed this long before.
const RENEW_BEFORE_END: Duration = Duration::from_secs(300);
/// A `credential_process` that takes longer is killed.
const PROCESS_LIMIT: Duration = Duration::from_secs(60);

/// The keys, and when they end if that is known.
async fn fetch(profile: &Profile) -> Result<(AwsCredential, Option<Timestamp>)> {
    let name = profile.name();
    let denied = |why: String| Error::new(Kind::Denied, why);
    if let Some(key_id) = profile.get("aws_access_key_id") {
        let Some(secret_key) = profile.get("aws_secret_access_key") else {
            return Err(denied(format!("AWS profile '{name}' has a key id but no aws_secret_access_key")));
        };
        let token = profile.get("aws_session_token").map(str::to_string);
        return Ok((AwsCredential { key_id: key_id.into(), secret_key: secret_key.into(), token }, None));
    }
    let Some(command) = profile.get("credential_process") else {
        return Err(denied(format!("AWS profile '{name}' holds no credentials any more")));
    };
    let output = process::run(command, PROCESS_LIMIT).await;
    let keys = output.and_then(|json| parse_process_output(&json));
    keys.map_err(|why| denied(format!("credential_process of AWS profile '{name}': {why}")))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessOutput {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

fn parse_process_output(json: &[u8]) -> Result<(AwsCredential, Option<Timestamp>), String> {
    // serde_json's message can quote a value: it is not repeated.
    let out: ProcessOutput = serde_json::from_slice(json).map_err(|_| {
        "its output is not the JSON object with Version, AccessKeyId and SecretAccessKey".to_string()
    })?;
    if out.version != 1 {
        return Err(format!("its output has Version {}; 1 is known", out.version));
    }
    let expires = match out.expiration {
        None => None,
        Some(text) => {
            let at =
                chrono::DateTime::parse_from_rfc3339(&text).map_err(|_| "its Expiration is not a time")?;
            Some(Timestamp(at.timestamp_millis()))
        }
    };
    let plain = |text: String| Some(text.trim_end().to_string()).filter(|t| !t.chars().any(char::is_control));
    let bad = || "its output holds a key or token with a line break or control character".to_string();
    let credential = AwsCredential {
        key_id: plain(out.access_key_id).ok_or_else(bad)?,
        secret_key: plain(out.secret_access_key).ok_or_else(bad)?,
        token: out.session_token.map(|t| plain(t).ok_or_else(bad)).transpose()?,
    };
    Ok((credential, expires))
}

struct Cached {
    credential: Arc<AwsCredential>,
    fetched_at: Duration,
    expires: Option<Timestamp>,
}

impl Cached {
    fn is_fresh(&self) -> bool {
        match self.expires {
            Some(at) => at.since(clock::now()) > RENEW_BEFORE_END,
            None => clock::uptime().saturating_sub(self.fetched_at) < REREAD_AFTER,
        }
    }
}

/// What the last question brought.
#[derive(Default)]
struct Last {
    keys: Option<Cached>,
    failure: Option<(Duration, Kind, String)>,
}

/// Hands a profile's keys to object_store; reads the files or runs the process again when they are old. One at a time:
/// of those who ask while a process runs, all get its answer.
pub(super) struct ProfileProvider {
    env: Env,
    last: Mutex<Last>,
    asking: tokio::sync::Mutex<()>,
}

impl ProfileProvider {
    pub(super) fn new(env: Env) -> ProfileProvider {
        ProfileProvider { env, last: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self) -> Option<Arc<AwsCredential>> {
        self.last().keys.as_ref().filter(|keys| keys.is_fresh()).map(|keys| keys.credential.clone())
    }

    async fn credential(&self) -> Result<Arc<AwsCredential>> {
        if let Some(credential) = self.cached() {
            return Ok(credential);
        }
        let began_at = clock::uptime();
        let _asking = self.asking.lock().await;
        if let Some(credential) = self.cached() {
            return Ok(credential);
        }
        if let Some((_, kind, why)) = self.last().failure.as_ref().filter(|(at, ..)| *at > began_at) {
            return Err(Error::new(*kind, why.clone()));
        }
        match self.ask().await {
            Ok((credential, expires)) => {
                let credential = Arc::new(credential);
                let keys = Cached { credential: credential.clone(), fetched_at: clock::uptime(), expires };
                *self.last() = Last { keys: Some(keys), failure: None };
                Ok(credential)
            }
            Err(e) => {
                self.last().failure = Some((clock::uptime(), e.kind(), e.to_string()));
                Err(e)
            }
        }
    }

    async fn ask(&self) -> Result<(AwsCredential, Option<Timestamp>)> {
        let profile = Profile::load(&self.env)?
            .ok_or_else(|| Error::new(Kind::Denied, "the AWS profile is gone from the shared files"))?;
        fetch(&profile).await
    }
}

impl fmt::Debug for ProfileProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProfileProvider")
    }
}

#[async_trait]
impl CredentialProvider for ProfileProvider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.credential().await.map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::block_on;
    use std::path::Path;

    fn env(dir: &Path, profile: Option<&str>, credentials: &str, config: &str) -> Env {
        std::fs::create_dir_all(dir.join(".aws")).unwrap();
        std::fs::write(dir.join(".aws/credentials"), credentials).unwrap();
        std::fs::write(dir.join(".aws/config"), config).unwrap();
        let env = Env::of([("HOME", dir.to_str().unwrap())]);
        match profile {
            Some(p) => Env::of([("HOME", dir.to_str().unwrap()), ("AWS_PROFILE", p)]),
            None => env,
        }
    }

    fn keys(env: Env) -> Result<(String, String, Option<String>)> {
        let c = block_on(async { ProfileProvider::new(env).credential().await }).unwrap()?;
        Ok((c.key_id.clone(), c.secret_key.clone(), c.token.clone()))
    }

    #[test]
    fn static_keys_region_and_comments() {
        let dir = tempfile::tempdir().unwrap();
        let e = env(
            dir.path(),
            Some("prod"),
            "[default]\naws_access_key_id=D\naws_secret_access_key=DS\n\n[ prod ]\n# c\naws_access_key_id = P # note\naws_secret_access_key = P+/=S\naws_session_token=T\n",
            "[profile prod]\nregion = eu-west-1\ns3 =\n  addressing_style = path\nendpoint_url = http://h:1\n[profile other]\nregion = x\n",
        );
        let p = Profile::load(&e).unwrap().unwrap();
        assert_eq!((p.get("region"), p.get("endpoint_url")), (Some("eu-west-1"), Some("http://h:1")));
        assert_eq!(p.get("addressing_style"), None);
        assert_eq!(keys(e).unwrap(), ("P".into(), "P+/=S".into(), Some("T".into())));
        let e = env(
            dir.path(),
            None,
            "[default]\naws_access_key_id=D\naws_secret_access_key=DS\n",
            "[default]\nregion=r\n",
        );
        assert_eq!(Profile::load(&e).unwrap().unwrap().get("region"), Some("r"));
        assert_eq!(keys(e).unwrap(), ("D".into(), "DS".into(), None));
    }

    #[test]
    fn what_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Profile::load(&Env::of([("HOME", dir.path().to_str().unwrap())])).unwrap().is_none());
        assert!(Profile::load(&Env::default()).unwrap().is_none());
        let Err(e) = Profile::load(&env(dir.path(), Some("nope"), "[x]\na=b\n", "")) else { panic!() };
        assert!(e.kind() == Kind::Config && e.to_string().contains("'nope'"), "{e}");
        for config in ["role_arn=a\nsource_profile=x", "sso_session=s"] {
            let e = env(dir.path(), Some("p"), "", &format!("[profile p]\n{config}\n"));
            let p = Profile::load(&e).unwrap().unwrap();
            assert!(p.has_credentials());
            assert!(p.check().unwrap_err().to_string().contains("credential_process"));
        }
        let e = env(dir.path(), Some("p"), "[p]\naws_access_key_id=K\n", "");
        assert_eq!(keys(e).unwrap_err().kind(), Kind::Denied);
    }

    #[test]
    fn credential_process() {
        let dir = tempfile::tempdir().unwrap();
        let json = r#"{"Version":1,"AccessKeyId":"A","SecretAccessKey":"S","SessionToken":"T","Expiration":"2999-01-01T00:00:00Z"}"#;
        std::fs::write(dir.path().join("a b.json"), json).unwrap();
        let run = |command: String| {
            keys(env(dir.path(), Some("p"), "", &format!("[profile p]\ncredential_process = {command}\n")))
        };
        let cat = format!("cat \"{}/a b.json\"", dir.path().display());
        assert_eq!(run(cat).unwrap(), ("A".into(), "S".into(), Some("T".into())));
        for (command, why) in [
            ("false", "ended with"),
            ("echo hello", "JSON"),
            ("/no/such/program", "cannot run"),
            ("echo 'x", "open quote"),
            ("echo '{\"Version\":2,\"AccessKeyId\":\"\",\"SecretAccessKey\":\"hunter2\"}'", "Version 2"),
        ] {
            let e = run(command.into()).unwrap_err();
            assert!(e.kind() == Kind::Denied && e.to_string().contains(why), "{e}");
            assert!(!e.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn a_line_break_in_what_a_process_says() {
        let bad = br#"{"Version":1,"AccessKeyId":"A","SecretAccessKey":"S","SessionToken":"hun\nter"}"#;
        let Err(why) = parse_process_output(bad) else { panic!() };
        assert!(why.contains("line break") && !why.contains("hun"), "{why}");
    }

    /// Ten requests at once are one question, and one refusal.
    #[test]
    fn many_who_ask_at_once_ask_once() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        for (says, good) in
            [(r#"{"Version":1,"AccessKeyId":"A","SecretAccessKey":"S"}"#, true), ("no", false)]
        {
            let script = dir.path().join("script");
            std::fs::write(&script, format!("echo x >>{}; sleep 0.3; echo '{says}'\n", asked.display()))
                .unwrap();
            std::fs::write(&asked, "").unwrap();
            let config = format!("[profile p]\ncredential_process = sh {}\n", script.display());
            let provider = ProfileProvider::new(env(dir.path(), Some("p"), "", &config));
            let ten = || futures_util::future::join_all((0..10).map(|_| provider.credential()));
            let all = block_on(async { ten().await }).unwrap();
            assert!(all.iter().all(|r| r.is_ok() == good));
            assert_eq!(std::fs::read_to_string(&asked).unwrap().lines().count(), 1, "{says}");
        }
    }
}
