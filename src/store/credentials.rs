//! AWS profiles: `~/.aws/credentials` and `~/.aws/config`, which object_store does not read.
//!
//! Known keys: static keys, `credential_process`, `web_identity_token_file` + `role_arn`, `region`, `endpoint_url`.
//! `source_profile` and SSO are told apart and refused with the way round
//! (`credential_process = aws configure export-credentials --profile NAME`). Nothing here prints a secret:
//! neither type derives `Debug`.
//! <https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html>

use crate::base::{Error, Kind, Result, Timestamp, clock, panics};
use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long keys without an expiry are used before the files are read again (rotation).
const REREAD: Duration = Duration::from_secs(60);
/// Keys that expire are renewed this long before.
const MARGIN: Duration = Duration::from_secs(300);
/// A `credential_process` that takes longer is given up.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(60);

/// The environment variables that decide about credentials, taken once so that tests can hand in others.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// This process's variables.
    pub fn process() -> Env {
        Env(std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect())
    }

    /// Exactly these.
    pub fn of<const N: usize>(vars: [(&str, &str); N]) -> Env {
        Env(vars.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect())
    }

    /// A variable that is set and not empty, without the white space at its end: a secret that was made of a file ends with the
    /// file's line break.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.trim_end()).filter(|v| !v.is_empty())
    }

    /// All that are set: names and values as [`Env::get`] gives them. One that is empty counts as not set, as shells, Compose files
    /// and Kubernetes manifests cannot always unset.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.trim_end())).filter(|(_, v)| !v.is_empty())
    }

    /// An error if a variable that is `used` holds what no request can carry: a line break in its middle (two lines pasted as one
    /// key), or another control character. Names the variable, not its value.
    pub(super) fn refuse_control(&self, used: impl Fn(&str) -> bool) -> Result<()> {
        match self.iter().find(|(name, value)| value.chars().any(char::is_control) && used(name)) {
            Some((name, value)) => Err(Error::config(format!(
                "{name} holds {}; give it as one line of plain text",
                if value.contains(['\n', '\r']) { "a line break" } else { "a control character" }
            ))),
            None => Ok(()),
        }
    }
}

/// Names only: values may be secrets.
impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One profile: both files' keys, the credentials file's winning.
#[derive(Clone, Default)]
pub(super) struct Profile {
    name: String,
    keys: BTreeMap<String, String>,
}

impl Profile {
    /// The profile `AWS_PROFILE` names, else `default` if there is one. A named profile that is in
    /// neither file is an error.
    pub(super) fn load(env: &Env) -> Result<Option<Profile>> {
        let named = env.get("AWS_PROFILE").or(env.get("AWS_DEFAULT_PROFILE"));
        let name = named.unwrap_or("default");
        let home = env.get("HOME").or(env.get("USERPROFILE")).map(PathBuf::from);
        let file = |var: &str, default: &str| match env.get(var) {
            Some(path) => Some(PathBuf::from(path)),
            None => home.as_ref().map(|h| h.join(".aws").join(default)),
        };
        let config = file("AWS_CONFIG_FILE", "config");
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let mut keys = BTreeMap::new();
        let mut found = false;
        for (path, sections) in [
            (
                &config,
                [format!("profile {name}"), if name == "default" { name.into() } else { String::new() }],
            ),
            (&credentials, [name.to_string(), String::new()]),
        ] {
            let Some(text) = path.as_deref().and_then(read_optional).transpose()? else { continue };
            for section in sections.iter().filter(|s| !s.is_empty()) {
                if let Some(more) = ini_section(&text, section) {
                    found = true;
                    keys.extend(more);
                }
            }
        }
        if !found && let Some(name) = named {
            return Err(Error::config(format!(
                "AWS profile '{name}' is in neither {} nor {}",
                shown(credentials.as_deref()),
                shown(config.as_deref())
            )));
        }
        Ok(found.then(|| Profile { name: name.to_string(), keys }))
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Whether it says where keys come from; a profile may hold just a region.
    pub(super) fn has_credentials(&self) -> bool {
        ["aws_access_key_id", "credential_process", "role_arn", "sso_session", "sso_start_url"]
            .iter()
            .any(|k| self.get(k).is_some())
    }

    /// Errors where the profile uses what walrust does not do itself.
    pub(super) fn check(&self) -> Result<()> {
        let own = self.get("aws_access_key_id").is_some() || self.get("credential_process").is_some();
        let web = self.get("web_identity_token_file").is_some() && self.get("role_arn").is_some();
        if own || web {
            return Ok(());
        }
        let name = &self.name;
        let what = if self.get("role_arn").is_some() { "assumes a role" } else { "uses SSO" };
        Err(Error::config(format!(
            "AWS profile '{name}' {what}, which walrust does not do itself; add a profile with credential_process = aws configure export-credentials --profile {name} --format process"
        )))
    }

    async fn fetch(&self) -> Result<(AwsCredential, Option<Timestamp>)> {
        let name = &self.name;
        if let Some(key_id) = self.get("aws_access_key_id") {
            let Some(secret_key) = self.get("aws_secret_access_key") else {
                return Err(Error::new(
                    Kind::Denied,
                    format!("AWS profile '{name}' has a key id but no aws_secret_access_key"),
                ));
            };
            let token = self.get("aws_session_token").map(str::to_string);
            return Ok((AwsCredential { key_id: key_id.into(), secret_key: secret_key.into(), token }, None));
        }
        let Some(command) = self.get("credential_process") else {
            return Err(Error::new(
                Kind::Denied,
                format!("AWS profile '{name}' holds no credentials any more"),
            ));
        };
        let command = command.to_string();
        let run = panics::blocking(move || run_process(&command));
        let output = match tokio::time::timeout(PROCESS_TIMEOUT, run).await {
            Ok(Ok(output)) => output,
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!("no answer within {PROCESS_TIMEOUT:?}")),
        };
        output.and_then(|json| parse_process_output(&json)).map_err(|why| {
            Error::new(Kind::Denied, format!("credential_process of AWS profile '{name}': {why}"))
        })
    }
}

fn shown(path: Option<&Path>) -> String {
    path.map_or_else(|| "~/.aws (HOME is not set)".into(), |p| p.display().to_string())
}

fn read_optional(path: &Path) -> Option<Result<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(Ok(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => Some(Err(Error::io("read", path, e))),
    }
}

/// The keys of `[section]`; nested (indented) settings and comments are skipped.
fn ini_section(text: &str, section: &str) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut inside = false;
    for line in text.lines() {
        let bare = line.trim();
        if let Some(head) = bare.strip_prefix('[').and_then(|r| r.split(']').next()) {
            inside = head.split_whitespace().eq(section.split_whitespace());
            if inside {
                found.get_or_insert_default();
            }
        } else if inside
            && !line.starts_with([' ', '\t'])
            && !bare.starts_with(['#', ';'])
            && let (Some((key, value)), Some(keys)) = (bare.split_once('='), found.as_mut())
        {
            let value = value.split(" #").next().unwrap_or_default().split(" ;").next().unwrap_or_default();
            keys.insert(key.trim().to_ascii_lowercase(), value.trim().to_string());
        }
    }
    found
}

fn run_process(command: &str) -> Result<Vec<u8>, String> {
    let words = split_words(command).ok_or("its command has an open quote")?;
    let (program, arguments) = words.split_first().ok_or("its command is empty")?;
    let output = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .output()
        .map_err(|e| format!("cannot run {program}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{program} ended with {}", output.status));
    }
    Ok(output.stdout)
}

/// Words as a shell would split them, with both kinds of quotes and backslash. No expansion.
fn split_words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().push(chars.next()?),
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
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
    fetched: Duration,
    expires: Option<Timestamp>,
}

impl Cached {
    fn is_fresh(&self) -> bool {
        match self.expires {
            Some(at) => at.since(clock::now()) > MARGIN,
            None => clock::uptime().saturating_sub(self.fetched) < REREAD,
        }
    }
}

/// Hands a profile's keys to object_store; reads the files or runs the process again when they are old.
pub(super) struct ProfileProvider {
    env: Env,
    cached: Mutex<Option<Cached>>,
}

impl ProfileProvider {
    pub(super) fn new(env: Env) -> ProfileProvider {
        ProfileProvider { env, cached: Mutex::new(None) }
    }

    async fn credential(&self) -> Result<Arc<AwsCredential>> {
        if let Some(cached) = &*self.cached.lock().unwrap_or_else(PoisonError::into_inner)
            && cached.is_fresh()
        {
            return Ok(cached.credential.clone());
        }
        let profile = Profile::load(&self.env)?
            .ok_or_else(|| Error::new(Kind::Denied, "the AWS profile is gone from the shared files"))?;
        let (credential, expires) = profile.fetch().await?;
        let credential = Arc::new(credential);
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Cached { credential: credential.clone(), fetched: clock::uptime(), expires });
        Ok(credential)
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

    fn env(dir: &Path, profile: Option<&str>, credentials: &str, config: &str) -> Env {
        std::fs::create_dir_all(dir.join(".aws")).unwrap();
        std::fs::write(dir.join(".aws/credentials"), credentials).unwrap();
        std::fs::write(dir.join(".aws/config"), config).unwrap();
        let mut env = Env::of([("HOME", dir.to_str().unwrap())]);
        env.0.extend(profile.map(|p| ("AWS_PROFILE".to_string(), p.to_string())));
        env
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
    fn white_space_at_the_end_does_not_count_and_control_characters_are_refused() {
        let e = Env::of([("A_KEY", "k\r\n"), ("A_BLANK", " \n"), ("A_TWO", "x\ny"), ("B", "\u{1}z")]);
        assert_eq!((e.get("A_KEY"), e.get("A_BLANK")), (Some("k"), None));
        assert!(e.refuse_control(|n| n == "A_KEY" || n == "A_BLANK").is_ok());
        let said = |name: &str| e.refuse_control(|n| n == name).unwrap_err().to_string();
        assert!(said("A_TWO").starts_with("A_TWO holds a line break"), "{}", said("A_TWO"));
        assert!(said("B").starts_with("B holds a control character"), "{}", said("B"));
        let bad = br#"{"Version":1,"AccessKeyId":"A","SecretAccessKey":"S","SessionToken":"hun\nter"}"#;
        let Err(why) = parse_process_output(bad) else { panic!() };
        assert!(why.contains("line break") && !why.contains("hun"), "{why}");
    }

    #[test]
    fn words() {
        assert_eq!(split_words(r#"a 'b c' "d \" e" f\ g """#).unwrap(), ["a", "b c", "d \" e", "f g", ""]);
        assert_eq!(split_words("'a"), None);
    }

    #[test]
    fn debug_shows_no_value() {
        assert!(!format!("{:?}", Env::of([("AWS_SECRET_ACCESS_KEY", "hunter2")])).contains("hunter2"));
    }
}
