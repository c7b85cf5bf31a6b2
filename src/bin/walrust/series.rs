//! `metrics --json`: the Prometheus text that the library wrote, as objects. Only what that writer writes is read.

use serde_json::{Map, Value, json};

/// One object a series: `name`, `labels`, `value` (null where it is no finite number). Comments are left out.
pub fn of(text: &str) -> Vec<Value> {
    text.lines().filter(|l| !l.starts_with('#')).filter_map(series).collect()
}

fn series(line: &str) -> Option<Value> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = Map::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.to_string(), value.into());
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}')?;
    }
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(json!({ "name": name, "labels": labels, "value": value }))
}

/// A label's value up to its closing quote, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_become_objects() {
        let text = "# HELP a b\na 1\nb_total{x=\"1, \\\"2\\\"}\",y=\"\\\\\\n\"} 2.5\nc{le=\"+Inf\"} +Inf\n\nno number x\n# EOF";
        assert_eq!(
            Value::Array(of(text)),
            json!([
                {"name": "a", "labels": {}, "value": 1.0},
                {"name": "b_total", "labels": {"x": "1, \"2\"}", "y": "\\\n"}, "value": 2.5},
                {"name": "c", "labels": {"le": "+Inf"}, "value": null},
            ])
        );
    }
}
