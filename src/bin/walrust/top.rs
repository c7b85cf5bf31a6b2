//! `top`: what `status` tells, in a terminal, again and again.
//!
//! * I-TOP-1: the terminal is given back as it was, whatever ends the command: a key, a signal, an error.
//! * I-TOP-2: a process or a store that does not answer holds no key up: who asks is a thread of its own.
//! * I-TOP-3: it fits: no line is wider than the terminal, and whatever needs a look stands first.
//!
//! What is drawn is decided by [`lines`], which is pure. Refused: numbers of an earlier look where the last one failed (they would pass for
//! the present); what failed is said instead, beside the rows as of then.

use crate::args::Top;
use crate::failure::{Failure, Outcome};
use crate::host;
use crate::outside::{self, Found};
use crate::show::{self, Form};
use crate::stream::Signals;
use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::{cursor, event, execute, queue, terminal};
use rusqlite::types::Value;
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use walrust::base::{Timestamp, clock, lock, thread};
use walrust::config::parse_duration;

/// Between two looks at keys and signals.
const TICK: Duration = Duration::from_millis(100);
/// Columns but the name: state, lag, pending, uploads and bytes a second.
const STATE: usize = 12;
const NUMBER: usize = 9;

/// How a line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    Plain,
    Head,
    Good,
    Fair,
    Bad,
}

/// One database.
#[derive(Clone, PartialEq, Debug)]
struct Row {
    name: String,
    state: String,
    look: Look,
    lag_s: Option<f64>,
    pending: i64,
    /// Uploads and bytes a second, between the last two looks.
    uploads_per_s: Option<f64>,
    bytes_per_s: Option<f64>,
    told_by: String,
    error: Option<String>,
}

/// What the asking thread has found.
#[derive(Default)]
struct Desk {
    rows: Vec<Row>,
    without: Vec<String>,
    wrong: Option<String>,
    at: Option<Timestamp>,
    looks: u64,
    is_ending: bool,
}

/// `top`
pub fn top(a: &Top, form: Form) -> Outcome {
    let every = parse_duration(&a.every).map_err(|e| Failure::new(format!("--every: {e}")))?;
    if every < Duration::from_millis(100) {
        return Err(Failure::new(format!("--every {}: at least 100ms", a.every)));
    }
    if form == Form::Json || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::new("top needs a terminal; for programs there is `walrust status --json`"));
    }
    host::start(host::Hooks::None)?;
    let shared = Arc::new((Mutex::new(Desk::default()), Condvar::new()));
    let (asking, databases) = (shared.clone(), a.databases.clone());
    thread::spawn("walrust-top", 2 << 20, move || ask(&asking, &databases, every))?;
    let mut signals = Signals::new()?;
    let done = Screen::open().and_then(|mut screen| watch(&mut screen, &shared.0, &mut signals));
    lock(&shared.0).is_ending = true;
    shared.1.notify_all();
    done.map(|()| 0)
}

fn ask((desk, wake): &(Mutex<Desk>, Condvar), databases: &[PathBuf], every: Duration) {
    let mut before = HashMap::new();
    loop {
        let found = outside::status(databases);
        let now = clock::uptime();
        let mut desk = lock(desk);
        match found {
            Ok(found) => {
                (desk.rows, before) = rows(&found, &before, now);
                (desk.without, desk.wrong, desk.at) = (found.without, None, Some(clock::now()));
            }
            Err(e) => desk.wrong = Some(e.to_string()),
        }
        desk.looks += 1;
        loop {
            if desk.is_ending {
                return;
            }
            let rest = every.saturating_sub(clock::uptime().saturating_sub(now));
            if rest.is_zero() {
                break;
            }
            desk = wake.wait_timeout(desk, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// By database: uptime of the look, TXID in the replica, bytes uploaded.
type Before = HashMap<String, (Duration, i64, Option<i64>)>;

/// The rows of a look, whatever needs one first; and what the next one is compared with. Pure.
fn rows(found: &Found, before: &Before, now: Duration) -> (Vec<Row>, Before) {
    let at = |name: &str| found.table.columns.iter().position(|c| c == name);
    let (mut rows, mut after) = (Vec::new(), Before::new());
    for (values, uploaded) in found.table.rows.iter().zip(&found.uploaded) {
        let value = |name: &str| at(name).and_then(|i| values.get(i)).cloned().unwrap_or(Value::Null);
        let text = |name: &str| match value(name) {
            Value::Text(t) => Some(t),
            _ => None,
        };
        let whole = |name: &str| match value(name) {
            Value::Integer(n) => n,
            _ => 0,
        };
        let lag_s = match value("lag_seconds") {
            Value::Real(r) => Some(r),
            Value::Integer(n) => Some(n as f64),
            _ => None,
        };
        let name = text("database").unwrap_or_default();
        let (txid, uploaded) = (whole("replicated_txid"), *uploaded);
        let rate = |was: i64, is: i64, then: Duration| {
            let s = now.saturating_sub(then).as_secs_f64();
            (s > 0.0 && is >= was).then(|| (is - was) as f64 / s)
        };
        let last = before.get(&name).copied();
        let (uploads_per_s, bytes_per_s) = match last {
            Some((then, was, bytes)) => {
                (rate(was, txid, then), bytes.zip(uploaded).and_then(|(was, is)| rate(was, is, then)))
            }
            None => (None, None),
        };
        after.insert(name.clone(), (now, txid, uploaded));
        let look = match text("health").as_deref() {
            Some("healthy") => Look::Good,
            Some("degraded") => Look::Fair,
            _ => Look::Bad,
        };
        rows.push(Row {
            state: text("state").unwrap_or_default(),
            look,
            lag_s,
            pending: whole("pending_bytes"),
            uploads_per_s,
            bytes_per_s,
            told_by: text("told_by").unwrap_or_default(),
            error: text("last_error"),
            name,
        });
    }
    let rank = |l: Look| match l {
        Look::Bad => 0,
        Look::Fair => 1,
        _ => 2,
    };
    rows.sort_by(|a, b| (rank(a.look), &a.name).cmp(&(rank(b.look), &b.name)));
    (rows, after)
}

/// The terminal, until dropped (I-TOP-1).
struct Screen {
    has_colours: bool,
}

impl Screen {
    fn open() -> Result<Screen, Failure> {
        terminal::enable_raw_mode()?;
        let screen = Screen { has_colours: std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) };
        execute!(std::io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn draw(&mut self, lines: &[(Look, String)]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        queue!(out, terminal::BeginSynchronizedUpdate)?;
        for (y, (look, line)) in (0u16..).zip(lines) {
            queue!(out, cursor::MoveTo(0, y))?;
            match look {
                Look::Head => queue!(out, SetAttribute(Attribute::Reverse))?,
                Look::Fair if self.has_colours => queue!(out, SetForegroundColor(Color::DarkYellow))?,
                Look::Bad if self.has_colours => queue!(out, SetForegroundColor(Color::Red))?,
                Look::Fair | Look::Bad => queue!(out, SetAttribute(Attribute::Bold))?,
                Look::Plain | Look::Good => {}
            }
            queue!(out, Print(line), ResetColor, SetAttribute(Attribute::Reset))?;
            queue!(out, terminal::Clear(terminal::ClearType::UntilNewLine))?;
        }
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown), terminal::EndSynchronizedUpdate)?;
        Ok(out.flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(std::io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}

/// Draws what is found until a key or a signal ends it.
fn watch(screen: &mut Screen, desk: &Mutex<Desk>, signals: &mut Signals) -> Result<(), Failure> {
    let (mut from, mut drawn) = (0usize, None);
    loop {
        let size = terminal::size()?;
        let state = {
            let desk = lock(desk);
            from = from.min(desk.rows.len().saturating_sub(1));
            let state = (desk.looks, size, from);
            if drawn == Some(state) {
                None
            } else {
                Some((state, lines(&desk, (usize::from(size.0), usize::from(size.1)), from)))
            }
        };
        if let Some((state, lines)) = state {
            screen.draw(&lines)?;
            drawn = Some(state);
        }
        if event::poll(TICK)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            let page = usize::from(size.1).saturating_sub(4).max(1);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Down | KeyCode::Char('j') => from += 1,
                KeyCode::Up | KeyCode::Char('k') => from = from.saturating_sub(1),
                KeyCode::PageDown | KeyCode::Char(' ') => from += page,
                KeyCode::PageUp => from = from.saturating_sub(page),
                KeyCode::Home | KeyCode::Char('g') => from = 0,
                KeyCode::End | KeyCode::Char('G') => from = usize::MAX,
                _ => {}
            }
        }
        if signals.within(Duration::from_millis(1)) {
            return Ok(());
        }
    }
}

/// The lines of a screen of so many columns and lines, the rows from the `from`th on. Pure.
fn lines(desk: &Desk, (width, height): (usize, usize), from: usize) -> Vec<(Look, String)> {
    let mut out = Vec::new();
    let bad = desk.rows.iter().filter(|r| r.look != Look::Good).count();
    let many = show::count(desk.rows.len() as u64, "database");
    let said = match (desk.looks, bad) {
        (0, _) => "looking ...".to_string(),
        (_, 0) if desk.rows.is_empty() => many,
        (_, 0) => format!("{many}: all well"),
        (_, n) => format!("{many}: {n} of them {} a look", if n == 1 { "needs" } else { "need" }),
    };
    let time = desk.at.map(|t| t.rfc3339()).unwrap_or_default();
    let time = time.get(11..19).map(|t| format!("{t} UTC, ")).unwrap_or_default();
    out.push((Look::Plain, both_ends(&format!("walrust top  {said}"), &format!("{time}q quits"), width)));
    if let Some(wrong) = &desk.wrong {
        out.push((Look::Bad, cut(wrong, width)));
    }
    let name_width = width.saturating_sub(STATE + 4 * (NUMBER + 1) + 2).max(8);
    let row = |cells: [&str; 6]| {
        let [name, state, lag, pending, uploads, bytes] = cells;
        let state = cut(state, STATE);
        let line = format!(
            "{:<name_width$} {state:<STATE$} {lag:>NUMBER$} {pending:>NUMBER$} {uploads:>NUMBER$} {bytes:>NUMBER$}",
            tail(name, name_width)
        );
        cut(&line, width)
    };
    out.push((Look::Head, row(["DATABASE", "STATE", "LAG", "PENDING", "UPLOADS/S", "BYTES/S"])));
    let room = height.saturating_sub(out.len());
    let mut shown = 0;
    let mut body = Vec::new();
    for r in desk.rows.iter().skip(from) {
        let lag = r.lag_s.map_or_else(
            || "?".to_string(),
            |s| if s == 0.0 { "0".into() } else { show::span(s).replace(" or less", "") },
        );
        let uploads = r.uploads_per_s.map_or_else(|| "-".to_string(), |n| format!("{n:.1}"));
        let bytes = r.bytes_per_s.map_or_else(
            || "-".to_string(),
            |n| show::bytes(n as u64).replace(" bytes", " B").replace(" byte", " B"),
        );
        let pending =
            show::bytes(u64::try_from(r.pending).unwrap_or(0)).replace(" bytes", " B").replace(" byte", " B");
        let mut block = vec![(r.look, row([&r.name, &r.state, &lag, &pending, &uploads, &bytes]))];
        if let Some(error) = r.error.as_ref().filter(|_| r.look != Look::Good) {
            block.push((r.look, cut(&format!("  {error}"), width)));
        }
        let is_last = from + shown + 1 == desk.rows.len();
        if body.len() + block.len() + usize::from(!is_last) > room {
            break;
        }
        body.extend(block);
        shown += 1;
    }
    out.extend(body);
    let more = desk.rows.len().saturating_sub(from + shown);
    if more > 0 && out.len() < height {
        out.push((Look::Plain, cut(&format!("{more} more below: down arrow, space"), width)));
    }
    for line in &desk.without {
        if out.len() < height {
            out.push((Look::Plain, cut(line, width)));
        }
    }
    out.truncate(height);
    out
}

/// At most so many characters, what is cut off marked.
fn cut(text: &str, width: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= width {
        return clean;
    }
    let kept: String = clean.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { kept } else { format!("{kept}~") }
}

/// The end of a path.
fn tail(text: &str, width: usize) -> String {
    let clean: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() <= width {
        return clean.into_iter().collect();
    }
    let from = clean.len() - width.saturating_sub(1);
    let kept: String = clean.into_iter().skip(from).collect();
    if width == 0 { String::new() } else { format!("~{kept}") }
}

/// One text at the left, one at the right.
fn both_ends(left: &str, right: &str, width: usize) -> String {
    let rest = width.saturating_sub(right.chars().count() + 1);
    cut(&format!("{:<rest$} {right}", cut(left, rest)), width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::Table;

    fn found(rows: &[(&str, &str, &str, f64, i64, i64)]) -> Found {
        let columns = [
            "database",
            "state",
            "health",
            "lag_seconds",
            "pending_bytes",
            "replicated_txid",
            "last_error",
            "told_by",
        ];
        let row = |(name, state, health, lag, pending, txid): &(&str, &str, &str, f64, i64, i64)| {
            let error =
                if *health == "healthy" { Value::Null } else { Value::Text("no store\x1b[2J".into()) };
            let text = |t: &str| Value::Text(t.to_string());
            vec![
                text(name),
                text(state),
                text(health),
                Value::Real(*lag),
                Value::Integer(*pending),
                Value::Integer(*txid),
                error,
                text("the spool"),
            ]
        };
        Found {
            table: Table {
                columns: columns.map(String::from).to_vec(),
                rows: rows.iter().map(row).collect(),
            },
            without: Vec::new(),
            uploaded: rows.iter().map(|r| (r.2 == "healthy").then_some(r.5 * 1000)).collect(),
        }
    }

    fn desk(found: &Found) -> Desk {
        let (rows, _) = rows(found, &Before::new(), Duration::ZERO);
        Desk { rows, looks: 1, at: Some(Timestamp(1_800_000_000_000)), ..Desk::default() }
    }

    #[test]
    fn throughput_is_what_came_between_two_looks() {
        let (first, before) = rows(
            &found(&[("/a.db", "streaming", "healthy", 0.0, 0, 10)]),
            &Before::new(),
            Duration::from_secs(5),
        );
        assert_eq!((first[0].uploads_per_s, first[0].bytes_per_s), (None, None));
        let (second, before) =
            rows(&found(&[("/a.db", "streaming", "healthy", 0.0, 0, 30)]), &before, Duration::from_secs(9));
        assert_eq!((second[0].uploads_per_s, second[0].bytes_per_s), (Some(5.0), Some(5000.0)));
        // Another process, whose counters begin anew.
        let (third, _) =
            rows(&found(&[("/a.db", "streaming", "healthy", 0.0, 0, 2)]), &before, Duration::from_secs(10));
        assert_eq!((third[0].uploads_per_s, third[0].bytes_per_s), (None, None));
    }

    #[test]
    fn it_fits_and_what_needs_a_look_is_first() {
        let long = "/srv/a/very/long/path/that/no/terminal/of/eighty/columns/has/room/for/tenant-7.db";
        let many: Vec<String> = (0..300).map(|n| format!("/data/{n:03}.db")).collect();
        let mut all: Vec<(&str, &str, &str, f64, i64, i64)> =
            many.iter().map(|n| (n.as_str(), "streaming", "healthy", 0.0, 0, 1)).collect();
        all.push((long, "catching up", "degraded", 61.0, 123_456_789, 1));
        all.push(("/z.db", "failed", "unhealthy", 5_000_000.0, i64::MAX, 1));
        let desk = desk(&found(&all));
        for (width, height) in [(80, 24), (40, 10), (20, 3), (1, 1), (0, 0), (200, 500)] {
            for from in [0, 7, 301] {
                let drawn = lines(&desk, (width, height), from);
                assert!(drawn.len() <= height, "{width}x{height}");
                assert!(
                    drawn.iter().all(|(_, l)| l.chars().count() <= width && !l.contains('\x1b')),
                    "{width}x{height}: {drawn:?}"
                );
            }
        }
        let drawn = lines(&desk, (80, 24), 0);
        assert!(drawn[0].1.starts_with("walrust top  302 databases: 2 of them need a look"), "{drawn:?}");
        assert!(drawn[0].1.ends_with("UTC, q quits"), "{drawn:?}");
        assert_eq!((drawn[2].0, &drawn[2].1[..6]), (Look::Bad, "/z.db "));
        assert!(drawn[3].1.contains("no store"), "why stands below it");
        assert!(
            drawn[4].1.contains("tenant-7.db catching up") && drawn[4].1.contains("123.5 MB"),
            "{drawn:?}"
        );
        assert!(drawn[23].1.contains("more below"), "{drawn:?}");
        assert!(lines(&desk, (80, 24), 301).iter().all(|(_, l)| !l.contains("more below")));
        let empty =
            lines(&Desk { looks: 1, without: vec!["name one".into()], ..Desk::default() }, (80, 24), 0);
        assert!(empty.iter().any(|(_, l)| l == "name one"));
    }
}
