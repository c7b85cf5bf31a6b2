//! Answers on stdout, complaints on stderr.

use crate::failure::Failure;
use rusqlite::types::Value;
use rusqlite::{Connection, Params};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::io::Write;
pub use walrust::base::size as bytes;

/// How to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Columns that hold TXIDs: shown in 16 hex digits, as file names have them.
const TXIDS: [&str; 4] = ["txid", "replicated_txid", "min_txid", "max_txid"];

/// The answer of a table-valued function.
#[derive(Debug, Default, PartialEq)]
pub struct Table {
    /// Names.
    pub columns: Vec<String>,
    /// Values, in the order of the names.
    pub rows: Vec<Vec<Value>>,
}

impl Table {
    /// Runs a query.
    pub fn query(conn: &Connection, sql: &str, params: impl Params) -> Result<Table, Failure> {
        let mut stmt = conn.prepare(sql)?;
        let columns: Vec<String> = stmt.column_names().into_iter().map(str::to_string).collect();
        let width = columns.len();
        let rows =
            stmt.query_map(params, |r| (0..width).map(|i| r.get(i)).collect())?.collect::<Result<_, _>>()?;
        Ok(Table { columns, rows })
    }

    /// The values of a column.
    pub fn column(&self, name: &str) -> impl Iterator<Item = &Value> {
        let at = self.columns.iter().position(|c| c == name);
        self.rows.iter().filter_map(move |r| at.and_then(|i| r.get(i)))
    }

    /// Prints it.
    pub fn print(&self, form: Form) -> Result<(), Failure> {
        match form {
            Form::Json => json(&self.objects()),
            Form::Text => text(&self.aligned()),
        }
    }

    /// Prints it; as text, these columns alone, so that a line fits into a terminal. JSON has them all.
    pub fn print_only(&self, form: Form, columns: &[&str]) -> Result<(), Failure> {
        match form {
            Form::Json => self.print(form),
            Form::Text => self.only(columns).print(form),
        }
    }

    /// Of these columns.
    fn only(&self, columns: &[&str]) -> Table {
        let at: Vec<usize> =
            columns.iter().filter_map(|c| self.columns.iter().position(|own| own == c)).collect();
        let some = |r: &Vec<Value>| at.iter().filter_map(|i| r.get(*i).cloned()).collect();
        Table {
            columns: at.iter().filter_map(|i| self.columns.get(*i).cloned()).collect(),
            rows: self.rows.iter().map(some).collect(),
        }
    }

    /// One object a row, keys in the order of the columns.
    pub fn objects(&self) -> Vec<Object<'_>> {
        self.rows
            .iter()
            .map(|r| Object(self.columns.iter().map(String::as_str).zip(r.iter().map(plain)).collect()))
            .collect()
    }

    /// A line of names, then one a row; numbers flush right.
    fn aligned(&self) -> String {
        let mut lines: Vec<Vec<String>> = vec![self.columns.clone()];
        lines.extend(self.rows.iter().map(|r| self.columns.iter().zip(r).map(|(c, v)| cell(c, v)).collect()));
        let number = |i: usize| {
            let mut values =
                self.rows.iter().filter_map(|r| r.get(i)).filter(|v| **v != Value::Null).peekable();
            values.peek().is_some() && values.all(|v| matches!(v, Value::Integer(_) | Value::Real(_)))
        };
        let widths: Vec<(usize, bool)> = (0..self.columns.len())
            .map(|i| {
                (
                    lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max().unwrap_or(0),
                    number(i),
                )
            })
            .collect();
        let line = |cells: &Vec<String>| {
            let padded = cells.iter().zip(&widths).map(|(c, (w, right))| match right {
                true => format!("{c:>w$}"),
                false => format!("{c:<w$}"),
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
        };
        lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// A block a row: one line a column.
    pub fn blocks(&self) -> String {
        let width = self.columns.iter().map(|c| c.len()).max().unwrap_or(0);
        let block = |r: &Vec<Value>| {
            let lines = self.columns.iter().zip(r).map(|(c, v)| format!("{c:>width$}: {}", cell(c, v)));
            lines.collect::<Vec<_>>().join("\n")
        };
        self.rows.iter().map(block).collect::<Vec<_>>().join("\n\n")
    }
}

/// A JSON object whose keys keep their order.
#[derive(Debug)]
pub struct Object<'a>(pub Vec<(&'a str, serde_json::Value)>);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.0.len()))?;
        for (k, v) in &self.0 {
            map.serialize_entry(k, v)?;
        }
        map.end()
    }
}

fn plain(v: &Value) -> serde_json::Value {
    match v {
        Value::Null => serde_json::Value::Null,
        Value::Integer(n) => (*n).into(),
        Value::Real(r) => (*r).into(),
        Value::Text(t) => t.as_str().into(),
        Value::Blob(b) => b.iter().map(|b| format!("{b:02x}")).collect::<String>().into(),
    }
}

fn cell(column: &str, v: &Value) -> String {
    match v {
        Value::Null => "-".to_string(),
        Value::Integer(n) if TXIDS.contains(&column) => txid(*n),
        Value::Integer(n) => n.to_string(),
        Value::Real(r) => format!("{r:.3}"),
        Value::Text(t) => t.replace(['\n', '\r'], " "),
        Value::Blob(b) => format!("{} bytes", b.len()),
    }
}

/// A TXID as file names have it.
pub fn txid(n: i64) -> String {
    format!("{n:016x}")
}

/// "1 file", "2 files".
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A time as the page has it.
pub fn span(s: f64) -> String {
    match s {
        s if s < 0.0995 => "0.1 s or less".to_string(),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// Prints lines.
pub fn text(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Prints a JSON document.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(e.to_string()))?;
    print(&format!("{text}\n"))
}

/// Prints a JSON document on a line of its own.
pub fn json_line<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::new(e.to_string()))?;
    print(&format!("{text}\n"))
}

/// A reader that has seen enough (`walrust files … | head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to stdout: {e}")))
        }
        _ => Ok(()),
    }
}

/// One line on stderr. If that is closed, nobody listens.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "walrust: {}", line.replace(['\n', '\r'], " "));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            columns: vec!["max_txid".into(), "bytes".into(), "key".into()],
            rows: vec![
                vec![Value::Integer(16), Value::Integer(4096), Value::Text("a\nb".into())],
                vec![Value::Null, Value::Integer(7), Value::Null],
            ],
        }
    }

    #[test]
    fn columns_are_aligned_and_txids_are_hex() {
        let lines: Vec<String> = table().aligned().lines().map(str::to_string).collect();
        assert_eq!(
            lines,
            ["        max_txid  bytes  key", "0000000000000010   4096  a b", "               -      7  -",]
        );
        assert_eq!(table().only(&["key", "none", "bytes"]).aligned().lines().next(), Some("key  bytes"));
        assert_eq!(Table::default().aligned(), "");
        assert_eq!(table().blocks().lines().next(), Some("max_txid: 0000000000000010"));
    }

    #[test]
    fn times_have_one_style() {
        for (s, text) in [
            (0.02, "0.1 s or less"),
            (0.1, "0.1 s"),
            (9.96, "10 s"),
            (99.6, "2 min"),
            (7200.0, "2 h"),
            (2e5, "2 days"),
        ] {
            assert_eq!(span(s), text, "{s}");
        }
    }

    #[test]
    fn rows_as_json_keep_column_order() {
        let text = serde_json::to_string(&table().objects()).unwrap();
        assert_eq!(
            text,
            r#"[{"max_txid":16,"bytes":4096,"key":"a\nb"},{"max_txid":null,"bytes":7,"key":null}]"#
        );
        assert_eq!(table().column("bytes").count(), 2);
        assert_eq!(table().column("none").count(), 0);
    }
}
