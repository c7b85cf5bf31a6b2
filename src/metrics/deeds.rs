//! What can be done from the page by whoever shows the token: a snapshot, a check, a drill, a label.
//!
//! Refused: a session with a cookie (a browser sends it along with what another page's script asks for; a header it does not).

use crate::base::{Timestamp, TxId};
use hyper::header;
use hyper::http::request::Parts;
use serde_json::{Value, json};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A full copy, into the replica.
    Snapshot,
    /// A quick check of the replica.
    Verify,
    /// A restore for a test.
    Drill,
    /// A name for a point.
    Label {
        /// The name.
        name: String,
        /// The point; `None`: the newest, after what was committed before is in the replica.
        txid: Option<TxId>,
    },
}

impl Deed {
    /// As the pages spell it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Deed::Snapshot => "snapshot",
            Deed::Verify => "verify",
            Deed::Drill => "drill",
            Deed::Label { .. } => "label",
        }
    }
}

/// Whether it was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is under way.
    Yes,
    /// No such database is watched in this process.
    Unknown,
    /// Something is under way already: what.
    Busy(String),
    /// It cannot be done as it is asked for: why.
    Refused(String),
}

/// The last deed for a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeedFace {
    /// What was asked for, as the pages spell it.
    pub what: &'static str,
    /// When it began.
    pub begun: Timestamp,
    /// How it ended; `None` while it is under way.
    pub ended: Option<DeedEnd>,
}

/// How a deed ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeedEnd {
    /// When.
    pub at: Timestamp,
    /// Whether all is well.
    pub is_well: bool,
    /// What came of it, in some lines.
    pub said: String,
}

impl DeedFace {
    pub(super) fn json(&self) -> Value {
        json!({
            "do": self.what,
            "begun": self.begun.rfc3339(),
            "ended": self.ended.as_ref().map(|e| e.at.rfc3339()),
            "is_well": self.ended.as_ref().map(|e| e.is_well),
            "said": self.ended.as_ref().map(|e| &e.said),
        })
    }
}

/// `?database=…&do=…&name=…&txid=…`: of which database, and what.
pub(super) fn asked(query: &str) -> Result<(String, Deed), String> {
    let (mut database, mut what, mut name, mut txid) = (String::new(), String::new(), None, None);
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "database" => database = value.to_string(),
            "do" => what = value.to_string(),
            "name" => name = Some(value.to_string()),
            "txid" => match value.parse() {
                Ok(n) if n > 0 => txid = Some(TxId(n)),
                _ => return Err("txid is a whole number from 1 on".to_string()),
            },
            _ => {
                return Err("there are the parameters database, do, name and txid, and no others".to_string());
            }
        }
    }
    if database.is_empty() {
        return Err("name a database: ?database=, as /status.json spells it".to_string());
    }
    let deed = match (what.as_str(), name) {
        ("label", Some(name)) => Deed::Label { name, txid },
        ("label", None) => return Err("a label needs a name: &name=before-migration".to_string()),
        (_, Some(_)) => return Err("name is for do=label alone".to_string()),
        (_, None) if txid.is_some() => return Err("txid is for do=label alone".to_string()),
        ("snapshot", None) => Deed::Snapshot,
        ("verify", None) => Deed::Verify,
        ("drill", None) => Deed::Drill,
        _ => return Err("say what: do=snapshot, verify, drill or label".to_string()),
    };
    Ok((database, deed))
}

/// The token that a request shows: `Authorization: Bearer …`.
pub(super) fn shown(request: &Parts) -> Option<&[u8]> {
    let said = request.headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = said.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_strictly() {
        let label = |txid: Option<u64>| Deed::Label { name: "before 7".into(), txid: txid.map(TxId) };
        for (query, deed) in [
            ("database=%2Fa.db&do=snapshot", Deed::Snapshot),
            ("do=verify&database=%2Fa.db", Deed::Verify),
            ("database=%2Fa.db&do=drill", Deed::Drill),
            ("database=%2Fa.db&do=label&name=before+7", label(None)),
            ("database=%2Fa.db&do=label&name=before+7&txid=12", label(Some(12))),
        ] {
            assert_eq!(asked(query).unwrap(), ("/a.db".to_string(), deed), "{query}");
        }
        for (query, said) in [
            ("", "name a database"),
            ("do=drill", "name a database"),
            ("database=a", "say what"),
            ("database=a&do=rewind", "say what"),
            ("database=a&do=label", "needs a name"),
            ("database=a&do=drill&name=x", "for do=label alone"),
            ("database=a&do=drill&txid=1", "for do=label alone"),
            ("database=a&do=label&name=x&txid=0", "from 1 on"),
            ("database=a&do=label&name=x&txid=-1", "from 1 on"),
            ("database=a&do=drill&token=x", "no others"),
        ] {
            let e = asked(query).unwrap_err();
            assert!(e.contains(said), "{query}: {e}");
        }
    }

    #[test]
    fn the_token_stands_in_one_header() {
        let request = |value: Option<&str>| {
            let mut r = hyper::Request::builder().uri("/act.json");
            if let Some(v) = value {
                r = r.header(header::AUTHORIZATION, v);
            }
            r.body(()).unwrap().into_parts().0
        };
        for (value, wanted) in [
            (None, None),
            (Some("Bearer abc"), Some("abc")),
            (Some("bearer  abc "), Some("abc")),
            (Some("Basic abc"), None),
            (Some("Bearer"), None),
            (Some("abc"), None),
            (Some("Bearer "), None),
            (Some(""), None),
        ] {
            let parts = request(value);
            let got = shown(&parts).filter(|t| !t.is_empty());
            assert_eq!(got, wanted.map(str::as_bytes), "{value:?}");
        }
    }
}
