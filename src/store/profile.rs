//! AWS profiles: `~/.aws/credentials` and `~/.aws/config`, which object_store does not read.
//!
//! Known keys: static keys, `credential_process`, `web_identity_token_file` + `role_arn`, `region`, `endpoint_url`,
//! `request_checksum_calculation`. `source_profile` and SSO are told apart and refused with the way round
//! (`credential_process = aws configure export-credentials --profile NAME`). The type derives no `Debug`: it holds
//! secrets. <https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html>

use super::env::Env;
use crate::base::{Error, Result};
use configparser::ini::{Ini, IniDefault};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One profile: both files' keys, the credentials file's winning.
#[derive(Clone, Default)]
pub(super) struct Profile {
    name: String,
    keys: BTreeMap<String, String>,
}

impl Profile {
    /// The profile `AWS_PROFILE` names, else `default` if there is one. A named profile that is in
    /// neither file is an error of [`crate::base::Kind::Config`], as is a file that is no INI file; one that cannot be
    /// read is one of `Denied` or `Io`.
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
                if let Some(more) =
                    section_of(&text, section).map_err(|why| unreadable(path.as_deref(), &why))?
                {
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

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A key that is there and not empty.
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

fn unreadable(path: Option<&Path>, line: &str) -> Error {
    Error::config(format!("{} is no INI file{line}", shown(path)))
}

/// The keys of `[section]`, in lower case. Settings nested below another (indented) are a part of that one's value and
/// of no use here. Comments begin a line, or follow white space. Errors with the line's number, never its text: it may
/// be a secret's.
fn section_of(text: &str, section: &str) -> Result<Option<BTreeMap<String, String>>, String> {
    let mut how = IniDefault::default();
    how.case_sensitive = true;
    how.multiline = true;
    how.delimiters = vec!['='];
    how.comment_symbols = vec!['#', ';'];
    how.inline_comment_symbols = Some(Vec::new());
    let mut ini = Ini::new_from_defaults(how);
    let all = ini.read(text.to_string()).map_err(|why| {
        let number = why.split("line ").nth(1).and_then(|r| r.split(|c: char| !c.is_ascii_digit()).next());
        number.filter(|n| !n.is_empty()).map(|n| format!(": line {n} is no setting")).unwrap_or_default()
    })?;
    let alike = |name: &str| name.split_whitespace().eq(section.split_whitespace());
    let mut found: Option<BTreeMap<String, String>> = None;
    for (_, keys) in all.iter().filter(|(name, _)| alike(name)) {
        let keys = keys.iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        let plain = keys.filter(|(_, value)| !value.contains('\n')).map(|(key, value)| {
            let value = value.split(" #").next().unwrap_or_default().split(" ;").next().unwrap_or_default();
            (key.trim().to_ascii_lowercase(), value.trim().to_string())
        });
        found.get_or_insert_default().extend(plain);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, section: &str) -> Option<Vec<(String, String)>> {
        section_of(text, section).unwrap().map(|keys| keys.into_iter().collect())
    }

    #[test]
    fn files_as_the_aws_tools_read_them() {
        let text = "\u{feff}# comment\n[default]\naws_access_key_id=D\n\n[ prod ]\n; c\nAWS_Access_Key_Id = P # note\naws_secret_access_key = P+/=S#x;y\nempty =\ns3 =\n  addressing_style = path\n  region = nested\nregion = eu-1\r\n[profile other  one]\nregion = x\n[prod]\nendpoint_url = http://h:1/a=b\n";
        let pair = |k: &str, v: &str| (k.to_string(), v.to_string());
        assert_eq!(
            of(text, "prod").unwrap(),
            [
                pair("aws_access_key_id", "P"),
                pair("aws_secret_access_key", "P+/=S#x;y"),
                pair("empty", ""),
                pair("endpoint_url", "http://h:1/a=b"),
                pair("region", "eu-1"),
            ]
        );
        assert_eq!(of(text, "profile other one").unwrap(), [pair("region", "x")]);
        assert_eq!(of(text, "PROD"), None, "names have a case");
        assert_eq!(of("", "x"), None);
        assert_eq!(of("[x]\n", "x"), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_ini_file_is_told_without_its_text() {
        for text in ["[x]\n= hunter2\n", "[hunter2\n", "hunter2"] {
            if let Err(why) = section_of(text, "x") {
                assert!(!why.contains("hunter2"), "{why}");
            }
        }
    }
}
