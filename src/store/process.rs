//! Running a `credential_process` to its end or to its time limit.
//!
//! No thread waits for it: its output comes through a pipe of the runtime, and its end is looked for. When the future
//! is dropped, or the time is up, the program is killed, with what it started in its turn.
//!
//! Refused: a blocking thread (two programs that hang would keep both that the shipper's runtime has, and with them
//! every local replica of the process); tokio's process type, which, where the kernel has no pidfd, handles SIGCHLD:
//! signals are the host's.

use crate::base::ForkSafe;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// Longer outputs are no JSON object with keys.
const MAX_OUTPUT_BYTES: usize = 64 << 10;
/// How often it is looked whether a program that closed its output has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Killed programs that had not yet ended. Whoever runs the next one lets go of them.
static KILLED: ForkSafe<Mutex<Vec<Child>>> = ForkSafe::new(Mutex::default);

/// The output of `command`, whose words are those of a shell, without any expansion. Must be called in a runtime.
///
/// Errors with one line for people: the command is none, does not start, fails, or gives no answer within `limit`.
pub(super) async fn run(command: &str, limit: Duration) -> Result<Vec<u8>, String> {
    let words = shell_words::split(command).map_err(|_| "its command has an open quote")?;
    let (program, arguments) = words.split_first().ok_or("its command is empty")?;
    KILLED.lock().retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|e| format!("cannot run {program}: {e}"))?;
    let mut running = Running(Some(child));
    match tokio::time::timeout(limit, running.finish(program)).await {
        Ok(done) => done,
        Err(_) => Err(format!("no answer within {limit:?}; {program} was killed")),
    }
}

/// A program that is killed when nobody waits for it any more.
struct Running(Option<Child>);

impl Running {
    async fn finish(&mut self, program: &str) -> Result<Vec<u8>, String> {
        let failed = |e: std::io::Error| format!("cannot read what {program} says: {e}");
        let output = self.0.as_mut().and_then(|c| c.stdout.take()).ok_or("it has no output")?;
        let pipe = Receiver::from_owned_fd(OwnedFd::from(output)).map_err(failed)?;
        let mut said = Vec::new();
        pipe.take(MAX_OUTPUT_BYTES as u64 + 1).read_to_end(&mut said).await.map_err(failed)?;
        if said.len() > MAX_OUTPUT_BYTES {
            return Err("its output is longer than 64 KiB".into());
        }
        match self.end().await {
            Some(status) if !status.success() => Err(format!("{program} ended with {status}")),
            _ => Ok(said),
        }
    }

    /// `None`: a host that ignores SIGCHLD, or waits for every child, learnt it in our place.
    async fn end(&mut self) -> Option<ExitStatus> {
        loop {
            let status = self.0.as_mut()?.try_wait();
            match status {
                Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                ended => {
                    self.0 = None;
                    return ended.ok().flatten();
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // (It fails when all of the group has ended.)
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        if matches!(child.try_wait(), Ok(None)) {
            KILLED.lock().push(child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;
    use crate::store::block_on;

    const LONG: Duration = Duration::from_secs(60);

    fn said(command: &str, limit: Duration) -> Result<String, String> {
        block_on(run(command, limit)).unwrap().map(|out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn words_are_a_shells() {
        assert_eq!(said(r#"printf '%s|' a 'b c' "d \" e" f\ g """#, LONG).unwrap(), "a|b c|d \" e|f g||");
        assert_eq!(said("echo $HOME ~", LONG).unwrap(), "$HOME ~\n");
        assert!(said("'a", LONG).unwrap_err().contains("open quote"));
        assert!(said(" ", LONG).unwrap_err().contains("empty"));
        assert!(said("/no/such/program", LONG).unwrap_err().contains("cannot run"));
        assert!(said("false", LONG).unwrap_err().contains("ended with"));
        assert!(said("yes", LONG).unwrap_err().contains("64 KiB"));
        assert!(said("sh -c 'kill -9 $$'", LONG).unwrap_err().contains("signal"));
    }

    fn gone(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |s| s.rsplit(')').next().is_some_and(|s| s.trim_start().starts_with('Z')))
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        // Amid its output, and after it closed it.
        for tail in ["sleep 1000", "exec >&-; sleep 1000"] {
            let script = format!("echo $$ >{0}; sleep 1000 & echo $! >>{0}; {tail}", pids.display());
            let begun = clock::uptime();
            let e = said(&format!("sh -c '{script}'"), Duration::from_millis(300)).unwrap_err();
            assert!(
                e.contains("no answer within 300ms") && clock::uptime() - begun < Duration::from_secs(20),
                "{e}"
            );
            let pids = std::fs::read_to_string(&pids).unwrap();
            assert_eq!(pids.lines().count(), 2, "{pids}");
            while !pids.lines().all(gone) {
                assert!(clock::uptime() - begun < Duration::from_secs(30), "alive: {pids}");
                clock::sleep(Duration::from_millis(5));
            }
        }
        // Whoever is given up by its caller is killed as well.
        let script = format!("sh -c 'echo $$ >{}; sleep 1000'", pids.display());
        block_on(async {
            let _ = tokio::time::timeout(Duration::from_millis(300), run(&script, LONG)).await;
        })
        .unwrap();
        let pid = std::fs::read_to_string(&pids).unwrap();
        let begun = clock::uptime();
        while !gone(pid.trim()) {
            assert!(clock::uptime() - begun < Duration::from_secs(30), "alive: {pid}");
            clock::sleep(Duration::from_millis(5));
        }
        assert_eq!(said("echo done", LONG).unwrap(), "done\n");
        assert!(KILLED.lock().iter_mut().all(|c| matches!(c.try_wait(), Ok(None))), "zombies are let go of");
    }
}
