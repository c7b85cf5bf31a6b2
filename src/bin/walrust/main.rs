//! `walrust`: the operator's command line, for people without the sqlite3 shell (cron, a container's start script).
//!
//! A host program that brings its own SQLite with the extension linked in; each command calls the SQL functions
//! a user would type and shows what they answer. Nothing about replication is decided here.
//!
//! * I-CLI-1: stdout is the answer (with `--json`: one JSON document, or one a line for commands that stay); stderr
//!   is one line for each thing that went wrong, and progress if it is a terminal.
//! * I-CLI-2: exit status 0 done, 1 failed, 2 wrong usage. `status`: 1 also where a database is not well. `verify`: 0 all good, 1 issues found, 2 critical, and 3 if
//!   it could not be done, wrong usage included (so has `drill`: 0 passed, 1 failed, 3): an outage must not read as a broken backup, nor as a good one.
//! * I-CLI-3: a command that only looks leaves the database alone: it opens it read-only, without the hooks, and
//!   does not start the streaming that a `walrust.toml` asks for.
//!
//! A crash or kill leaves what the functions leave: see the rooms they are in. Refused: calling the rooms directly
//! instead of SQL (two surfaces would drift apart); a daemon that replicates on behalf of other processes
//! (`watch` is a process that has the database open, like any other that loaded the extension).

mod adopt;
mod args;
mod ask;
mod failure;
mod host;
mod look;
mod outside;
mod policy;
mod prefix;
mod progress;
mod series;
mod serve;
mod show;
mod stream;
mod top;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::{Failure, Outcome};
use std::process::ExitCode;

/// "The backup could not be judged."
const UNJUDGED: u8 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    walrust::session::keep_locks();
    if !matches!(cli.command, Command::Watch(_) | Command::Replicate(_)) {
        walrust::session::serve_no_metrics();
    }
    let unable = if matches!(cli.command, Command::Verify(_) | Command::Drill(_)) { UNJUDGED } else { 1 };
    // A panic is an error with one line like another (I-CLI-1): not a text of Rust's, nor its exit status 101.
    std::panic::set_hook(Box::new(|info| {
        log::error!("panic at {}", info.location().map(ToString::to_string).unwrap_or_default());
    }));
    match walrust::base::panics::caught(|| run(cli)) {
        Ok(Ok(status)) => ExitCode::from(status),
        Ok(Err(e)) => {
            show::complain(&e.to_string());
            ExitCode::from(unable)
        }
        Err(said) => {
            show::complain(&format!("internal error: {said}"));
            ExitCode::from(unable)
        }
    }
}

/// Help and version go to stdout and are no error.
fn usage(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    let is_verify = std::env::args_os().nth(1).is_some_and(|a| a == "verify" || a == "drill");
    match (e.use_stderr(), is_verify) {
        (false, _) => ExitCode::SUCCESS,
        (true, true) => ExitCode::from(UNJUDGED),
        (true, false) => ExitCode::from(2),
    }
}

fn run(cli: Cli) -> Outcome {
    let form = cli.form();
    match cli.command {
        Command::Verify(a) => look::verify(&a, form),
        Command::Drill(a) => look::drill(&a, form),
        Command::Explain(a) => look::explain(&a, form),
        Command::List(a) => look::list(&a.url, form),
        Command::Files(a) => look::files(&a.target, form),
        Command::Points(a) => look::points(&a.target, form),
        Command::Label(a) => look::label(&a, form),
        Command::Query(a) => look::query(&a, form),
        Command::Diff(a) => look::diff(&a, form),
        Command::Compact(a) => look::compact(&a, form),
        Command::Rekey(a) => look::rekey(&a, form),
        Command::Adopt(a) => adopt::adopt(&a, form),
        Command::Policy(a) => policy::policy(&a, form),
        Command::Restore(a) if a.all => prefix::restore(&a, form),
        Command::Restore(a) => look::restore(&a, form),
        Command::Config(a) => look::config(a.database.as_deref(), form),
        Command::Metrics => look::metrics(form),
        Command::NotifyTest(a) => look::notify_test(a.database.as_deref(), form),
        Command::Version => look::version(form),
        Command::Status(a) => look::status(&a, form),
        Command::Serve(a) => serve::serve(&a, form),
        Command::Top(a) => top::top(&a, form),
        Command::Watch(a) => stream::watch(&a, form),
        Command::Snapshot(a) => stream::snapshot(&a, form),
        Command::Sync(a) => stream::sync(&a, form),
        Command::Replicate(a) => stream::replicate(&a, form),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "walrust", &mut text);
    let text = String::from_utf8(text).map_err(|_| Failure::new("the completions are not text"))?;
    show::text(text.trim_end())?;
    Ok(0)
}
