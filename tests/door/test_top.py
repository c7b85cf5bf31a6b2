"""`walrust top` in a terminal: a pseudo-terminal of 80 columns, and tmux where there is one."""

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time

import door

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """A command in a pseudo-terminal, and what its screen shows."""

    def __init__(self, test, *args, env=None, columns=80, lines=24):
        self.columns, self.lines, self.text = columns, lines, ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(test.dir)
            os.execve(door.CLI, [door.CLI, *args], {**door.clean_env(test.dir, env), "TERM": "xterm-256color"})
        self.resize(columns, lines)
        self.status = None
        test.addCleanup(self.end)

    def resize(self, columns, lines):
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.kill(self.pid, signal.SIGWINCH)

    def read(self, seconds=0.05):
        end = time.monotonic() + seconds
        while time.monotonic() < end and select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.text += data.decode()
        return self.text

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def screen(self):
        """The lines of the screen: what it prints is absolute positions, text, and 'clear to the end of the line'."""
        cells = [[" "] * self.columns for _ in range(self.lines)]
        y = x = 0
        drawn = self.text.rsplit(ENTER, 1)[-1]
        # (What was drawn before the terminal became smaller may lie outside of it.)
        for code, final, char in re.findall(r"\x1b\[([?\d;]*)([A-Za-z])|([^\x1b])", drawn):
            if char:
                if x < self.columns and y < self.lines:
                    cells[y][x] = char
                x += 1
            elif final == "H":
                y, x = [int(n or 1) - 1 for n in (code + ";").split(";")[:2]]
            elif final == "K" and y < self.lines:
                for i in range(x, self.columns):
                    cells[y][i] = " "
            elif final == "J":
                for i in range(y if x == 0 else y + 1, self.lines):
                    cells[i] = [" "] * self.columns
        return ["".join(line).rstrip() for line in cells]

    def wait(self, seconds=20):
        end = time.monotonic() + seconds
        while self.status is None and time.monotonic() < end:
            self.read(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def end(self):
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self.fd)


class Top(door.DoorTest):
    def top(self, *args, **kwargs):
        t = Terminal(self, "top", *args, **kwargs)
        self.eventually(lambda: ENTER in t.read(), what="a screen of its own")
        return t

    def shows(self, t, pattern, timeout=30):
        return self.eventually(lambda: t.read() and re.search(pattern, "\n".join(t.screen())), timeout=timeout, what=pattern)

    def ended(self, t, status=0):
        self.assertEqual(t.wait(), status, t.text[-500:])
        self.assertIn(LEAVE, t.text, "the terminal is given back")
        self.assertIn("\x1b[?25h", t.text, "with its cursor")

    def listening(self, **kwargs):
        env = {"WALRUST_METRICS_LISTEN": f"127.0.0.1:{door.free_port()}"}
        p, db, url = self.watched(env=env, interval="0s", **kwargs)
        p.sync()
        return p, db, env

    def test_states_lag_pending_and_throughput(self):
        p, db, env = self.listening()
        t = self.top(db, "--every", "200ms", env=env)
        self.shows(t, r"1 database: all well")
        line = next(line for line in t.screen() if "app.db" in line)
        self.assertRegex(line, r"app\.db +streaming +0 +0 B ")
        self.assertRegex(t.screen()[0], r"UTC, q quits$")

        def is_counted():
            p.sql("INSERT INTO t(v) VALUES(randomblob(3000))")
            p.sync()
            t.read()
            line = next((line for line in t.screen() if "app.db" in line), "")
            return re.search(r" (\d*[1-9]\.\d|0\.[1-9]) +[\d.]+ [KM]?B$", line)

        self.eventually(is_counted, what="uploads and bytes a second")
        for text in t.screen():
            self.assertLessEqual(len(text), 80)
        t.type("q")
        self.ended(t)

    def test_what_needs_a_look_is_first_and_says_why(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        env = {"WALRUST_METRICS_LISTEN": f"127.0.0.1:{door.free_port()}"}
        p = self.peer(env=s3.env(**env))
        for name in ("a", "z"):
            p.open(self.path(f"{name}.db"), conn=name)
            p.watch(s3.url(name, proxy.endpoint if name == "z" else None), conn=name, interval="0s",
                    retry={"base": "5ms", "max": "50ms", "breaker_threshold": 2, "breaker_cooldown": "1s"})
            p.sql("CREATE TABLE t(v)", conn=name)
            p.sync(60, conn=name)
        proxy.down = True
        p.sql("INSERT INTO t VALUES(1)", conn="z")
        t = self.top(self.path("a.db"), self.path("z.db"), "--every", "200ms", env=env)
        self.shows(t, r"2 databases: 1 of them needs a look")
        self.shows(t, r"(?s)z\.db +(paused|catching up) .*\n +\S.*cannot.*\n.*a\.db +streaming")
        proxy.down = False
        p.sync(60, conn="z")
        self.shows(t, "2 databases: all well")
        t.type("\x1b")
        self.ended(t)

    def test_a_process_that_is_not_asked_is_told_by_its_spool_and_one_that_ends_by_its_state(self):
        p, db, _ = self.watched()
        p.sync()
        t = self.top(db, "--every", "100ms")
        self.shows(t, r"app\.db +streaming ")
        p.end()
        self.shows(t, r"app\.db +stopped ")
        t.type("\x03")
        self.ended(t)

    def test_a_signal_gives_the_terminal_back(self):
        _, db, _ = self.watched()
        for number in (signal.SIGTERM, signal.SIGINT):
            t = self.top(db)
            os.kill(t.pid, number)
            self.ended(t)

    def test_more_databases_than_lines_and_a_terminal_that_changes_its_size(self):
        p = self.peer()
        for n in range(30):
            p.open(self.path(f"{n:02}.db"), conn=str(n))
            p.watch(self.path("r", str(n)), conn=str(n))
            p.sql("CREATE TABLE t(v)", conn=str(n))
        p.sync(60, conn="0")
        t = self.top(*(self.path(f"{n:02}.db") for n in range(30)), "--every", "200ms")
        self.shows(t, r"30 databases")
        self.shows(t, r"\d+ more below")
        t.type("G")
        self.shows(t, r"29\.db")
        t.type("g")
        self.shows(t, r"(?s)DATABASE.*\n.*00\.db")
        t.resize(50, 8)
        self.shows(t, r"2[4-9] more below")
        self.assertEqual([line for line in t.screen() if len(line) > 50], [])
        t.type("q")
        self.ended(t)

    def test_without_a_terminal_it_says_what_to_use(self):
        _, db, _ = self.watched()
        for args in ((), ("--json",)):
            done = self.run_cli("top", db, *args)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertErrorLine(done.stderr, "terminal", "walrust status --json")
        self.assertErrorLine(self.run_cli("top", db, "--every", "soon").stderr, "--every")

    def test_in_tmux(self):
        if not shutil.which("tmux"):
            self.skipTest("there is no tmux")
        _, db, env = self.listening()
        tmux = ["tmux", "-S", self.path("tmux.socket"), "-f", "/dev/null"]
        run = lambda *args: subprocess.run([*tmux, *args], env=door.clean_env(self.dir, env), capture_output=True, text=True, timeout=30)
        self.addCleanup(run, "kill-server")
        done = run("new-session", "-d", "-x", "80", "-y", "24", "sh")
        self.assertEqual(done.returncode, 0, done.stderr)
        shown = lambda: run("capture-pane", "-p").stdout
        run("send-keys", f"{door.CLI} top {db}; echo ended $?", "Enter")
        self.eventually(lambda: re.search(r"app\.db +streaming +0 +0 B", shown()), what="the row", every=0.2)
        run("send-keys", "q")
        self.eventually(lambda: "ended 0" in shown(), what="the shell again", every=0.2)
