"""The kill campaign: SIGKILL processes that write, ship, merge, compact, restore and follow, and judge what they leave.

    python tests/door/kill.py --kills 10000 [--points 2000] [--seed N] [--only TARGET] [--keep DIR]

A round forks a process, lets it work, kills it after a random time (from its very start on), or lets a named crash point kill
it, and then judges the replica as the kill left it, before anybody repairs it. Several rounds go on in one database, so that
each start heals what the kill before it left; now and then a process that is not killed catches up, and database and restore
must be the same bytes.

What a round knows for certain comes from a log that the killed process appended to, one write(2) a line: `t` before a COMMIT,
`d` after it, `a` when walrust_sync returned. Each commit carries its number and the sum of its rows' checksums in one row, so
a database says which commit it is the state of, and a mixture of two commits adds up to neither. Hence

    lost     the restore is older than what walrust_sync (in sync mode: COMMIT) acknowledged
    differs  the restore is of no commit that was made, or is not sound
    failed   the restore is refused, or a process ended otherwise than by our kill

The parent never opens SQLite, so that what it forks inherits nothing. Refused: a fresh interpreter a kill (five times slower),
and judging by a list of rows alone (a mixture of two commits can hold every row that was acknowledged).
"""

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import zlib

import door

FAST_RETRY = {"base": "5ms", "max": "50ms", "breaker_threshold": 50, "breaker_cooldown": "100ms"}
NEVER = {"snapshot_interval": "0", "levels": ["1h"]}

# What the killed process does: options of its watch, and the chance of each act after a commit.
WRITERS = {
    "commit": ({**NEVER, "interval": "0s"}, {"sync": 0.02, "checkpoint": 0.01}),
    "paced": ({**NEVER, "interval": "20ms"}, {"sync": 0.02, "checkpoint": 0.02}),
    "ship": ({**NEVER, "interval": "0s"}, {"sync": 0.4}),
    "merge": ({"interval": "0s", "snapshot_interval": "0", "levels": ["20ms", "60ms", "150ms"]}, {"sync": 0.3}),
    "snapshot": ({"interval": "0s", "snapshot_interval": "30ms", "levels": ["40ms"]}, {"sync": 0.1, "snapshot": 0.1}),
    "compact": ({"interval": "0s", "levels": ["20ms"], "snapshot_interval": "30ms", "pitr_window": "0s", "retention_hourly": 0,
                 "retention_daily": 0, "retention_weekly": 0, "retention_monthly": 0},
                {"sync": 0.1, "snapshot": 0.1, "compact": 0.1}),
    "durable": ({**NEVER, "interval": "0s", "durability": "sync"}, {"checkpoint": 0.02}),
    "reopen": ({**NEVER, "interval": "0s"}, {"sync": 0.05, "reopen": 0.1}),
    "two": ({**NEVER, "interval": "0s"}, {"sync": 0.1, "checkpoint": 0.02}),
    "pair": ({**NEVER, "interval": "0s", "durability": "sync"}, {}),
    "alone": ({**NEVER, "interval": "0s"}, {"sync": 0.2, "checkpoint": 0.05, "reopen": 0.03}),
    "squash": ({**NEVER, "interval": "2s"}, {"checkpoint": 0.3}),
    "gap": ({**NEVER, "interval": "0s"}, {"sync": 0.1}),
}
DURABLE = ("durable", "pair")  # COMMIT itself is the acknowledgement
TWO = ("two", "pair")  # processes on one database
WEIGHTS = {
    "commit": 12, "paced": 6, "ship": 14, "merge": 12, "snapshot": 10, "compact": 10, "durable": 8, "reopen": 8, "two": 7,
    "pair": 2, "alone": 6, "squash": 3, "gap": 6, "restore": 10, "follow": 10,
}
# Who can reach the crash points of a name's first word.
REACH = {
    "seal": ["commit", "paced", "ship"], "cut": ["ship"], "squash": ["squash"], "ship": ["ship", "snapshot", "two"],
    "merge": ["merge"], "manifest": ["ship", "compact"], "compact": ["compact"], "lineage": ["gap"], "store": ["ship", "durable"],
    "restore": ["restore"], "follow": ["follow"], "rewrite": ["follow"], "gate": DURABLE, "owed": ["ship", "reopen"],
}


def row_sum(ident, value):
    return zlib.crc32(value) ^ (ident & 0xFFFFFFFF)


def make_schema(c):
    c.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB, h INTEGER)")
    c.execute("CREATE TABLE IF NOT EXISTS total(n, c, x)")
    c.execute("INSERT INTO total SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM total)")


def commit(c, rng, say):
    """One transaction; its outcome is a function of what it draws. Gives its number, or 0 if it was rolled back."""
    c.execute("BEGIN IMMEDIATE")
    n, count, total = c.execute("SELECT n, c, x FROM total").fetchone()
    n += 1
    big = rng.random() < 0.03
    for i in range(40 if big else rng.randrange(1, 4)):
        ident, value = n * 100 + i, rng.randbytes(rng.randrange(3000 if big else 900))
        h = row_sum(ident, value)
        c.execute("INSERT INTO t VALUES(?, ?, ?)", (ident, value, h))
        count, total = count + 1, total + h
    if count > 80:
        for ident, h in c.execute("SELECT id, h FROM t ORDER BY id LIMIT 12").fetchall():
            c.execute("DELETE FROM t WHERE id = ?", (ident,))
            count, total = count - 1, total - h
    picked = c.execute("SELECT id, h FROM t WHERE id >= ? LIMIT 1", (rng.randrange(n * 100),)).fetchone()
    if picked:
        value = rng.randbytes(300)
        h = row_sum(picked[0], value)
        c.execute("UPDATE t SET v = ?, h = ? WHERE id = ?", (value, h, picked[0]))
        total += h - picked[1]
    if rng.random() < 0.03:
        c.execute("ROLLBACK")
        return 0
    c.execute("UPDATE total SET n = ?, c = ?, x = ?", (n, count, total))
    say(f"t {n} {count} {total}")
    try:
        c.execute("COMMIT")
    except sqlite3.OperationalError:
        if c.in_transaction:
            c.execute("ROLLBACK")
        raise
    say(f"d {n} {count} {total}")
    return n


# -- processes --------------------------------------------------------------------------------------------------------------


def connect(path):
    return sqlite3.connect(path, timeout=20, isolation_level=None, cached_statements=30)


def load(so):
    first = connect(":memory:")
    first.enable_load_extension(True)
    first.load_extension(so)
    first.close()


def spawn(work, errors):
    """Forks; the child runs work(ready) and never returns from here. Gives (pid, a descriptor that says when it works)."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status = 1
    try:
        os.close(read)
        work(lambda: os.write(write, b"."))
        status = 0
    except BaseException:
        with open(errors, "a") as f:
            traceback.print_exc(file=f)
            with contextlib.suppress(sqlite3.Error):
                told = connect(":memory:").execute("SELECT state, txid, replicated_txid, last_error FROM walrust_status")
                print(told.fetchall(), file=f)
    finally:
        os._exit(status)


class Worker:
    """What runs in the forked process."""

    def __init__(self, so, point, seed):
        self.so, self.point, self.rng = so, point, random.Random(seed)

    def begin(self, log=None):
        if self.point:
            os.environ["WALRUST_CRASH"] = self.point
        load(self.so)
        if log:
            fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            self.say = lambda line: os.write(fd, (line + "\n").encode())

    def write(self, db, url, target, log, ready):
        self.begin(log)
        options, chances = WRITERS[target]
        say, rng = self.say, self.rng

        def opened():
            c = connect(db)
            c.execute(f"PRAGMA wal_autocheckpoint={rng.choice([20, 100, 1000])}")
            c.execute("PRAGMA synchronous=NORMAL")
            c.execute(f"PRAGMA cache_size={rng.choice([10, 2000])}")
            watch = (url, json.dumps({**options, "retry": FAST_RETRY}))
            while True:
                try:
                    c.execute("SELECT walrust_watch(?, ?)", watch).fetchone()
                    break
                except sqlite3.OperationalError as e:
                    # Two that turn WAL mode on at once: SQLite tells one of them so.
                    if target not in TWO or "locked" not in str(e):
                        raise
            make_schema(c)
            if target == "alone":
                c.execute("PRAGMA locking_mode=EXCLUSIVE")
            return c

        c = opened()
        ready()
        while True:
            try:
                n = commit(c, rng, say)
            except sqlite3.OperationalError as e:
                if target in TWO and "locked" in str(e):
                    continue
                # The other process died as the shipper, with this COMMIT under way: refused, and rolled back.
                if target == "pair" and "disk I/O" in str(e):
                    continue
                raise
            if rng.random() < chances.get("sync", 0):
                txid, = c.execute("SELECT walrust_sync(30)").fetchone()
                # Of two writers, the other may have committed meanwhile; of a rolled back one nothing is said.
                if n:
                    say(f"a {n} {txid}")
            if rng.random() < chances.get("checkpoint", 0):
                c.execute(f"PRAGMA wal_checkpoint({rng.choice(['PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'])})").fetchall()
            if rng.random() < chances.get("snapshot", 0):
                c.execute("SELECT walrust_snapshot()").fetchone()
            if rng.random() < chances.get("compact", 0):
                c.execute("SELECT walrust_compact(?, ?)", (url, '{"force":true}')).fetchone()
            if rng.random() < chances.get("reopen", 0):
                c.close()
                c = opened()

    def catch_up(self, db, url, log, answer):
        """Not killed: heals, commits once more, says what TXID all of it has."""
        self.begin(log)
        c = connect(db)
        c.execute("SELECT walrust_watch(?, ?)", (url, json.dumps({**NEVER, "interval": "0s", "retry": FAST_RETRY}))).fetchone()
        make_schema(c)
        if self.rng.random() < 0.5:
            commit(c, self.rng, self.say)
        txid, = c.execute("SELECT walrust_sync(60)").fetchone()
        with open(answer, "w") as f:
            f.write(str(txid))
        if self.rng.random() < 0.5:
            c.close()

    def restore(self, url, out, points, ready):
        self.begin()
        c = connect(":memory:")
        ready()
        while True:
            c.execute("SELECT walrust_restore(?, ?, ?, ?)", (
                url, out, self.rng.choice(points), json.dumps({"overwrite": 1, "check": self.rng.choice(["none", "quick"])}),
            )).fetchone()

    def follow(self, url, out, ready):
        self.begin()
        c = connect(":memory:")
        c.execute("SELECT walrust_replicate(?, ?, ?)", (url, out, '{"interval":"10ms"}')).fetchone()
        ready()
        time.sleep(60)


class Helper:
    """A long-lived process that answers calls: (name, arguments) → value or error text."""

    def __init__(self, serve, errors):
        ask, self.ask = os.pipe()
        self.answers, answer = os.pipe()

        def work(_ready):
            os.close(self.ask)
            os.close(self.answers)
            calls = serve()
            with os.fdopen(ask) as lines, os.fdopen(answer, "w", buffering=1) as out:
                for line in lines:
                    name, args = json.loads(line)
                    try:
                        value = {"ok": calls[name](*args)}
                    except Exception as e:
                        value = {"error": f"{type(e).__name__}: {e}"}
                    out.write(json.dumps(value) + "\n")

        self.pid, ready = spawn(work, errors)
        os.close(ready)
        os.close(ask)
        os.close(answer)
        self.lines = os.fdopen(self.answers)

    def __getattr__(self, name):
        def call(*args):
            os.write(self.ask, (json.dumps([name, args]) + "\n").encode())
            line = self.lines.readline()
            if not line:
                raise Failed(f"the process that answers {name} is gone")
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"{name}: {answer['error']}")
            return answer["ok"]

        return call

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def restorer(so):
    """Restores, with the extension."""
    def serve():
        load(so)
        c = connect(":memory:")

        def restore(url, out, point):
            remove_db(out)
            return c.execute("SELECT walrust_restore(?, ?, ?)", (url, out, point)).fetchone()[0]

        return {"restore": restore}

    return serve


def judge():
    """Looks into databases, without the extension."""
    def look(path):
        """(n, count, sum) of a database that must be sound and add up."""
        with contextlib.closing(connect(path)) as c:
            sound = c.execute("PRAGMA integrity_check").fetchall()
            if sound != [("ok",)]:
                raise AssertionError(f"integrity_check: {sound[:3]}")
            tables = {name for name, in c.execute("SELECT name FROM sqlite_schema")}
            rows = c.execute("SELECT id, v, h FROM t").fetchall() if "t" in tables else []
            total = c.execute("SELECT n, c, x FROM total").fetchall() if "total" in tables else []
        n, count, x = total[0] if total else (0, 0, 0)
        if (len(rows), sum(h for _, _, h in rows)) != (count, x) or any(row_sum(i, v) != h for i, v, h in rows):
            raise AssertionError(f"a mixture: commit {n} says {count} rows, sum {x}; there are {len(rows)}")
        return [n, count, x]

    def local(path):
        """The same of a database whose writer was killed, from a copy: SQLite's recovery is not done for the next process."""
        copy = path + ".copy"
        remove_db(copy)
        for suffix in ("", "-wal", "-journal"):
            if os.path.exists(path + suffix):
                shutil.copyfile(path + suffix, copy + suffix)
        return look(copy) if os.path.exists(copy) else [0, 0, 0]

    def same(a, b):
        x, y = door.image(a), door.image(b)
        return "" if x == y else door.difference(x, y)

    def foreign(path, log, seed, how):
        """Writes that walrust does not see: in the WAL, past a reset of it, in rollback mode."""
        rng = random.Random(seed)
        with contextlib.closing(connect(path)) as c, open(log, "a", buffering=1) as f:
            say = lambda line: f.write(line + "\n")
            for _ in range(rng.randrange(1, 4)):
                commit(c, rng, say)
            if how == "reset":
                c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                commit(c, rng, say)
            elif how == "rollback mode":
                c.execute("PRAGMA journal_mode=DELETE").fetchall()
                commit(c, rng, say)

    def leave_wal(path):
        """Gives a database a WAL that holds a commit, as a killed writer leaves it."""
        with contextlib.closing(connect(path)) as c:
            c.execute("PRAGMA journal_mode=WAL").fetchall()
            c.execute("CREATE TABLE IF NOT EXISTS mark(x)")
            copy = path + ".copy"
            for suffix in ("", "-wal"):
                shutil.copyfile(path + suffix, copy + suffix)
        remove_db(path)
        for suffix in ("", "-wal"):
            os.rename(copy + suffix, path + suffix)

    return {"look": look, "local": local, "same": same, "foreign": foreign, "leave_wal": leave_wal}


def remove_db(path):
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


# -- the campaign -----------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A restore that was refused, or a process that ended by itself."""


class Lost(Exception):
    """A restore older than an acknowledgement."""


class Differs(Exception):
    """A restore of a state that no COMMIT left."""


class History:
    """What happened to one database, by its logs."""

    def __init__(self):
        self.made = {0: (0, 0)}  # commits that are certain: number → (count, sum)
        self.tried = {}
        self.acknowledged = 0
        self.syncs = []  # (number, TXID), of single writers
        # In sync mode the replica has a commit before the database does: a kill between the two leaves it ahead by one.
        self.ahead = set()
        self.untold = set()

    def read(self, log, durable):
        """The log of a killed process. Gives (commits, acknowledgements)."""
        commits = acks = 0
        begun = max(self.made)
        self.tried = {}
        self.syncs = []
        with contextlib.suppress(FileNotFoundError), open(log) as f:
            for line in f:
                kind, n, *rest = line.split()
                n, rest = int(n), tuple(map(int, rest))
                if kind == "t":
                    self.tried.setdefault(n, set()).add(rest)
                elif kind == "d":
                    self.made[n] = rest
                    commits += 1
                    if durable:
                        self.acknowledged, acks = max(self.acknowledged, n), acks + 1
                else:
                    self.acknowledged, acks = max(self.acknowledged, n), acks + 1
                    self.syncs.append((n, rest[0]))
        # Killed between its COMMIT and the line that tells of it, while the other process went on from there.
        for n in range(begun + 1, max(self.made)):
            if n not in self.made:
                self.untold |= {(n, state) for state in self.tried.get(n, ())}
        if durable:
            n = max(self.made) + 1
            self.ahead |= {(n, state) for state in self.tried.get(n, ())}
        return commits, acks

    def settle(self, local):
        """The database itself says whether the last COMMIT, cut off by the kill, was one."""
        n, *state = local
        state = tuple(state)
        newest = max(self.made)
        if n < newest:
            raise Differs(f"the database is at commit {n}, and {newest} was made")
        if self.made.get(n, state) != state or (n > newest and state not in self.tried.get(n, ())):
            raise Differs(f"the database is in no state that a commit left: {local}")
        self.made[n] = state

    def is_known(self, found):
        n, *state = found
        return self.made.get(n) == tuple(state) or (n, tuple(state)) in self.ahead | self.untold

    def judge(self, found):
        n = found[0]
        if not self.is_known(found):
            raise Differs(f"the restore is of no commit: {found}, made {self.made.get(n)}, newest {max(self.made)}")
        if n < self.acknowledged:
            raise Lost(f"the restore ends at commit {n}, {self.acknowledged} was acknowledged")


class Campaign:
    def __init__(self, args):
        self.args = args
        self.rng = random.Random(args.seed)
        self.dir = tempfile.mkdtemp(prefix="kill-", dir=args.dir)
        self.cleanups = [(shutil.rmtree, self.dir, True)]
        self.s3 = None
        if args.s3:
            self.s3 = door.S3(self)
            os.environ.update(self.s3.env())
        self.errors = os.path.join(self.dir, "errors")
        self.restorer = Helper(restorer(args.so), self.errors)
        self.judge = Helper(judge, self.errors)
        self.count = {k: 0 for k in ("kills", "points", "commits", "acknowledged", "restores", "equal", "lost", "differs", "failed")}
        self.by_target, self.by_point = {}, {}
        # (Of large uploads, of a store over HTTP, of encryption alone: test_road.py, test_lease.py and test_age.py die there.)
        self.points = [p for p in door.crash_points() if not p.startswith(("parts.", "heart.", "rekey.", "ship.sealed"))] if os.path.exists(args.crash_so) else []
        self.complaints = []

    # What door.S3 wants of a test.
    def addCleanup(self, *call):
        self.cleanups.append(call)

    def eventually(self, condition, what):
        for _ in range(500):
            if condition():
                return
            time.sleep(0.02)
        raise Failed(f"{what} did not come up")

    # One database: some rounds, each going on where the last was killed.
    def database(self, number):
        base = os.path.join(self.dir, f"db{number}")
        os.mkdir(base)
        self.base, self.db, self.url = base, os.path.join(base, "app.db"), self.replica(base, number)
        self.history, self.round = History(), 0
        self.compacted = False
        try:
            for _ in range(self.rng.randrange(6, 14)):
                if self.done():
                    break
                self.one()
                if self.rng.random() < 0.2:
                    self.catch_up()
            self.catch_up()
        except (Failed, Lost, Differs) as e:
            kind = type(e).__name__.lower()
            self.count[kind] += 1
            text = f"{kind} (seed {self.args.seed}, database {number}, {self.what}): {e}"
            self.complaints.append(text)
            print(text, flush=True)
            if self.args.keep:
                shutil.copytree(base, os.path.join(self.args.keep, f"{self.args.seed}-{number}"), dirs_exist_ok=True)
        shutil.rmtree(base, ignore_errors=True)

    def replica(self, base, number):
        return self.s3.url(f"db{number}") if self.s3 else os.path.join(base, "replica")

    def done(self):
        return self.count["kills"] >= self.args.kills and self.count["points"] >= self.args.points

    def one(self):
        """One round: choose, fork, kill, judge."""
        self.round += 1
        pointed = self.points and (
            self.count["kills"] >= self.args.kills
            or (self.count["points"] < self.args.points and self.rng.random() < self.args.points / (self.args.kills + self.args.points))
        )
        point = None
        if pointed:
            name = min(self.points, key=lambda p: (self.by_point.get(p, [0, 0])[0], self.rng.random()))
            target = self.rng.choice(REACH[name.split(".")[0]])
            rare = name.startswith(("lineage.", "follow.", "squash.", "restore.", "store.put_new", "manifest.packed", "owed."))
            point = f"{name}:{1 if rare else self.rng.choice([1, 1, 2, 3, 5, 8])}"
        else:
            target = self.args.only or self.rng.choices(list(WEIGHTS), WEIGHTS.values())[0]
        if target in ("restore", "follow", "gap") and not self.history.acknowledged:
            # They need something in the replica.
            self.what = "catching up"
            self.catch_up()
        self.what = f"round {self.round}, {target}" + (f" at {point}" if point else "")
        if self.args.verbose:
            print(self.what, self.history.acknowledged, max(self.history.made), flush=True)
        died = getattr(self, "round_" + target, self.round_writer)(target, point)
        if point:
            tried, reached = self.by_point.get(name, (0, 0))
            self.by_point[name] = (tried + 1, reached + died)
            self.count["points" if died else "kills"] += 1
        else:
            self.count["kills"] += 1
        self.by_target[target] = self.by_target.get(target, 0) + 1

    def worker(self, point):
        so = self.args.crash_so if point else self.args.so
        return Worker(so, point, self.rng.getrandbits(60))

    def kill(self, pid, ready, point, longest=0.09):
        """Lets it live for a while. Gives whether a crash point killed it."""
        if point:
            end = time.monotonic() + 0.7
            while time.monotonic() < end:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break
                time.sleep(0.002)
        elif self.rng.random() < 0.2:
            time.sleep(self.rng.uniform(0, 0.04))  # while it starts
        else:
            select.select([ready], [], [], 5)
            time.sleep(self.rng.uniform(0, longest))
        with contextlib.suppress(ProcessLookupError):
            by_itself = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(ready)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise Failed(f"the process ended by itself, status {status}: {self.last_error()}")
        return by_itself

    def last_error(self):
        with contextlib.suppress(FileNotFoundError), open(self.errors) as f:
            return f.read()[-1500:]
        return ""

    def log(self):
        return os.path.join(self.base, f"log{self.round}")

    def round_writer(self, target, point):
        w, log = self.worker(point), self.log()
        died = self.kill(*spawn(lambda ready: w.write(self.db, self.url, target, log, ready), self.errors), point)
        self.after_writers(target, log)
        return died

    def round_two(self, target, point):
        first, second, log = self.worker(point), self.worker(None), self.log()
        one = spawn(lambda ready: first.write(self.db, self.url, target, log, ready), self.errors)
        two = spawn(lambda ready: second.write(self.db, self.url, target, log, ready), self.errors)
        died = self.kill(*one, point)
        self.kill(*two, None)
        self.count["kills"] += 1
        self.after_writers(target, log)
        return died

    round_pair = round_two

    def round_gap(self, target, point):
        log = self.log()
        self.judge.foreign(self.db, log, self.rng.getrandbits(60), self.rng.choice(["wal", "reset", "rollback mode"]))
        w = self.worker(point)
        died = self.kill(*spawn(lambda ready: w.write(self.db, self.url, target, log, ready), self.errors), point)
        self.after_writers(target, log)
        return died

    def round_restore(self, target, point):
        """The target of a restore is the old database or a restored one, whole, at whatever moment."""
        out = os.path.join(self.base, "target.db")
        if self.rng.random() < 0.5 or not os.path.exists(out):
            self.restorer.restore(self.url, out, None)
            if self.rng.random() < 0.5:
                self.judge.leave_wal(out)
        points = [None] if self.compacted else [None, *(t for _, t in self.history.syncs)]
        w = self.worker(point)
        died = self.kill(*spawn(lambda ready: w.restore(self.url, out, points, ready), self.errors), point, 0.06)
        self.count["restores"] += 1
        try:
            found = self.judge.look(out)
        except Failed as e:
            raise Differs(f"the target after a killed restore: {e}") from None
        if not self.history.is_known(found):
            raise Differs(f"the target after a killed restore is of no commit: {found}")
        for name in os.listdir(self.base):
            if ".walrust-old-" in name and not name.endswith(("-wal", "-shm", "-journal")):
                # Kept for a person to look at: a complete database of its own.
                kept = self.judge.look(os.path.join(self.base, name))
                if not self.history.is_known(kept):
                    raise Differs(f"the old pair that a killed restore left is of no commit: {kept}")
                remove_db(os.path.join(self.base, name))
            elif ".walrust-restore-" in name:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.base, name))
        self.check_replica()
        return died

    def round_follow(self, target, point):
        """A follower is killed while a writer writes, then the writer: the file is always the state of a commit."""
        out, log = os.path.join(self.base, "follower.db"), self.log()
        f, w = self.worker(point), self.worker(None)
        writer = spawn(lambda ready: w.write(self.db, self.url, "ship", log, ready), self.errors)
        select.select([writer[1]], [], [], 5)
        died = self.kill(*spawn(lambda ready: f.follow(self.url, out, ready), self.errors), point)
        self.kill(*writer, None, 0.02)
        self.count["kills"] += 1
        self.after_writers("ship", log)
        if os.path.exists(out):
            try:
                found = self.judge.look(out)
            except Failed as e:
                raise Differs(f"the followed file: {e}") from None
            self.count["restores"] += 1
            if not self.history.is_known(found):
                raise Differs(f"the followed file is of no commit: {found}, made {self.history.made.get(found[0])}")
        return died

    def after_writers(self, target, log):
        durable = target in DURABLE
        self.compacted |= target == "compact"
        commits, acks = self.history.read(log, durable)
        self.count["commits"] += commits
        self.count["acknowledged"] += acks
        if not os.path.exists(self.db):
            return
        self.history.settle(self.judge.local(self.db))
        self.check_replica()
        exact = target not in (*TWO, *DURABLE, "compact") and self.history.syncs and not self.compacted
        if exact and self.rng.random() < 0.5:
            n, txid = self.rng.choice(self.history.syncs)
            out = os.path.join(self.base, "point.db")
            self.count["restores"] += 1
            self.restorer.restore(self.url, out, txid)
            found = self.look(out)
            if found[0] != n or self.history.made[n] != tuple(found[1:]):
                raise Differs(f"TXID {txid}, acknowledged as commit {n}, restores as {found}")

    def check_replica(self):
        """The replica as the kill left it."""
        if not self.history.acknowledged:
            return
        out = os.path.join(self.base, "restored.db")
        self.count["restores"] += 1
        self.restorer.restore(self.url, out, None)
        self.history.judge(self.look(out))

    def look(self, out):
        try:
            return self.judge.look(out)
        except Failed as e:
            raise Differs(str(e)) from None

    def catch_up(self):
        """A start that is not killed heals everything: database and restore are the same bytes."""
        self.round += 1
        self.what += ", then catching up"
        log, answer = self.log(), os.path.join(self.base, "txid")
        w = Worker(self.args.so, None, self.rng.getrandbits(60))
        pid, ready = spawn(lambda _: w.catch_up(self.db, self.url, log, answer), self.errors)
        os.close(ready)
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise Failed(f"a start after a kill: {self.last_error()}")
        self.history.read(log, False)
        self.history.settle(self.judge.local(self.db))
        self.history.acknowledged = max(self.history.made)
        with open(answer) as f:
            txid = int(f.read())
        out = os.path.join(self.base, "whole.db")
        self.count["restores"] += 1
        at = self.restorer.restore(self.url, out, None)
        if at != txid:
            raise Differs(f"walrust_sync gave TXID {txid}, the restore is of {at}")
        self.history.ahead = set()
        self.history.judge(self.look(out))
        difference = self.judge.same(self.db, out)
        if difference:
            raise Differs(f"database and restore are not the same bytes: {difference}")
        self.count["equal"] += 1
        self.history.syncs = [(max(self.history.made), txid)]

    def run(self):
        begin, number = time.monotonic(), 0
        while not self.done() and len(self.complaints) < self.args.patience:
            self.database(number)
            number += 1
            if number % 20 == 0:
                print(f"{time.monotonic() - begin:.0f} s: {self.summary()}", flush=True)
        self.restorer.end()
        self.judge.end()
        for call, *rest in reversed(self.cleanups):
            call(*rest)
        print(f"targets: {', '.join(f'{k} {v}' for k, v in sorted(self.by_target.items()))}")
        if self.by_point:
            shown = ", ".join(f"{k} {r}/{t}" for k, (t, r) in sorted(self.by_point.items()))
            print(f"crash points, reached of tried: {shown}")
        print(f"{number} databases, {time.monotonic() - begin:.0f} s: {self.summary()}", flush=True)
        return 1 if self.complaints else 0

    def summary(self):
        c = self.count
        return (f"{c['kills']} kills at random times, {c['points']} at named points; {c['commits']} commits, {c['acknowledged']} "
                f"acknowledgements, {c['restores']} restores, {c['equal']} times equal to the byte; "
                f"{c['lost']} lost, {c['differs']} differ, {c['failed']} failed")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=200)
    p.add_argument("--points", type=int, default=0)
    p.add_argument("--seed", type=int, default=door.SEED)
    p.add_argument("--only", choices=list(WEIGHTS))
    p.add_argument("--dir", default="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    p.add_argument("--keep", help="where what a complaint is about is copied to")
    p.add_argument("--patience", type=int, default=10, help="complaints after which it stops")
    p.add_argument("--s3", action="store_true", help="the replica is in S3 (moto) instead of a directory")
    p.add_argument("--verbose", action="store_true", help="a line for each round")
    p.add_argument("--so", default=door.SO)
    p.add_argument("--crash-so", default=door.CRASH_SO)
    args = p.parse_args()
    for name in list(os.environ):
        if name.startswith(("WALRUST_", "AWS_", "LITESTREAM_")):
            del os.environ[name]
    sys.exit(Campaign(args).run())


if __name__ == "__main__":
    main()
