//! The environment variables that decide about stores, taken once so that tests can hand in others.

use crate::base::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;

/// Environment variables.
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

    /// The same with some set anew.
    #[must_use]
    pub fn with(mut self, vars: impl IntoIterator<Item = (&'static str, String)>) -> Env {
        self.0.extend(vars.into_iter().map(|(k, v)| (k.to_string(), v)));
        self
    }

    /// A variable that is set and not empty, without the white space at its end: a secret that was made of a file ends
    /// with the file's line break.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.trim_end()).filter(|v| !v.is_empty())
    }

    /// All that are set: names and values as [`Env::get`] gives them. One that is empty counts as not set, as shells,
    /// Compose files and Kubernetes manifests cannot always unset.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.trim_end())).filter(|(_, v)| !v.is_empty())
    }

    /// The same, but whose keys are meant, and which region and endpoint, is said by the AWS profile of that name.
    pub(super) fn of_profile(&self, profile: &str) -> Env {
        let says_who = |name: &str| {
            const NAMES: [&str; 13] = [
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_ROLE_ARN",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "AWS_SKIP_SIGNATURE",
                "AWS_ENDPOINT_URL",
                "AWS_ENDPOINT_URL_S3",
                "AWS_REGION",
                "AWS_DEFAULT_REGION",
                "AWS_DEFAULT_PROFILE",
            ];
            NAMES.contains(&name)
        };
        let mut vars = self.0.clone();
        vars.retain(|name, _| !says_who(name));
        vars.insert("AWS_PROFILE".to_string(), profile.to_string());
        Env(vars)
    }

    /// Errors with [`crate::base::Kind::Config`] if a variable that is `used` holds what no request can carry: a line
    /// break in its middle (two lines pasted as one key), or another control character. Names the variable, not its
    /// value.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_at_the_end_does_not_count_and_control_characters_are_refused() {
        let e = Env::of([("A_KEY", "k\r\n"), ("A_BLANK", " \n"), ("A_TWO", "x\ny"), ("B", "\u{1}z")]);
        assert_eq!((e.get("A_KEY"), e.get("A_BLANK")), (Some("k"), None));
        assert_eq!(e.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["A_KEY", "A_TWO", "B"]);
        assert!(e.refuse_control(|n| n == "A_KEY" || n == "A_BLANK").is_ok());
        let said = |name: &str| e.refuse_control(|n| n == name).unwrap_err().to_string();
        assert!(said("A_TWO").starts_with("A_TWO holds a line break"), "{}", said("A_TWO"));
        assert!(said("B").starts_with("B holds a control character"), "{}", said("B"));
    }

    #[test]
    fn a_profile_that_is_named_goes_before_the_keys_of_the_environment() {
        let e = Env::of([
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_REGION", "r"),
            ("AWS_CA_BUNDLE", "/c"),
            ("AWS_PROFILE", "x"),
        ]);
        let e = e.of_profile("backup");
        assert_eq!(e.iter().collect::<Vec<_>>(), [("AWS_CA_BUNDLE", "/c"), ("AWS_PROFILE", "backup")]);
    }

    #[test]
    fn debug_shows_no_value() {
        assert!(!format!("{:?}", Env::of([("AWS_SECRET_ACCESS_KEY", "hunter2")])).contains("hunter2"));
    }
}
