"""Several processes on one database, forks, and writers that know nothing of us."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest

import pytest

import door

LOOP = """
n = 0
errors = 0
end = time.time() + args['seconds']
c = conns['main']
while time.time() < end and n < args['count']:
    try:
        c.execute('INSERT INTO t(v) VALUES(?)', (f"{os.getpid()}:{n}",))
        n += 1
        if n % 20 == 0:
            c.execute('SELECT walrust_sync(30)').fetchone()
            os.write(args['fd'], f'{os.getpid()} {n}\\n'.encode()) if args.get('fd') else None
    except Exception as e:
        if 'locked' not in str(e):
            raise
        errors += 1
result = n
"""


class Processes(door.DoorTest):
    def start(self, db, url, n, **options):
        peers = []
        for _ in range(n):
            p = self.peer().open(db)
            p.watch(url, interval="0s", **options)
            peers.append(p)
        return peers

    def check(self, p, db, url):
        txid = p.sync()
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)
        return txid

    def test_four_write_one_ships(self):
        db, url = self.path("app.db"), self.path("r")
        first, = self.start(db, url, 1)
        first.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        peers = [first, *self.start(db, url, 3)]
        for p in peers:
            p.send(op="code", code=LOOP, args={"seconds": 60, "count": 200})
        self.assertEqual([p.wait() for p in peers], [200] * 4)
        states = sorted(p.status()["state"] for p in peers)
        self.assertEqual(states.count("standby"), 3, states)
        self.assertEqual(first.sql("SELECT count(*) FROM t"), 800)
        txids = {p.sync() for p in peers}
        self.assertEqual(len(txids), 1)
        txid = self.check(peers[-1], db, url)
        numbers = [f[1] for f in door.ltx_files(url, 0)]
        self.assertEqual(numbers[-1], txid)
        self.assertEqual(numbers, list(range(numbers[0], numbers[-1] + 1)))

    def test_a_process_that_stands_still_holds_up_its_own_database_only(self):
        """It has the seal lock of the first database; the second is shipped by itself, and the first one's row says why it is not."""
        p = self.peer()
        for name in ("a", "b"):
            p.open(self.path(f"{name}.db"), name)
            p.watch(self.path(f"r{name}"), name, interval="0s")
            p.sql("CREATE TABLE t(v)", conn=name)
            p.sync(conn=name)
        hold = "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
        holder = subprocess.Popen(
            [sys.executable, "-c", hold, self.path("a.db-walrust/lock.seal")], stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        self.assertEqual(holder.stdout.readline(), "held\n")
        p.sql("INSERT INTO t VALUES (1)", conn="a")
        p.sql("INSERT INTO t VALUES (1)", conn="b")
        newest = lambda name: max(f[2] for f in door.ltx_files(self.path(f"r{name}"), 0))
        self.eventually(lambda: newest("b") == 4, 20, "the other database's commit")
        why = lambda: p.status(conn="a", database=self.path("a.db"))["last_error"] or ""
        self.eventually(lambda: f"held by process {holder.pid}" in why(), 20, "the reason")
        self.assertEqual(p.status(conn="b", database=self.path("b.db"))["last_error"], None)
        holder.kill()
        self.eventually(lambda: newest("a") == 4 and not why(), 20, "this database's commit")
        holder.stdout.close()

    def test_the_shipper_dies_and_another_takes_over(self):
        db, url = self.path("app.db"), self.path("r")
        first, = self.start(db, url, 1)
        first.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        second, = self.start(db, url, 1)
        first.sync()
        shipper = next(p for p in (first, second) if p.status()["state"] != "standby")
        other = second if shipper is first else first
        other.sql("INSERT INTO t(v) VALUES('before')")
        shipper.kill()
        other.sql("INSERT INTO t(v) VALUES('after')")
        begin = time.monotonic()
        self.check(other, db, url)
        self.assertLess(time.monotonic() - begin, 5)
        self.assertNotEqual(other.status()["state"], "standby")

    def test_a_standby_that_never_wrote_takes_over(self):
        for reads in (False, True):
            with self.subTest(reads=reads):
                db, url = self.path(f"app{reads}.db"), self.path(f"replica{reads}")
                first, = self.start(db, url, 1)
                first.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
                first.sync()
                second, = self.start(db, url, 1)
                if reads:
                    second.sql("SELECT count(*) FROM t")
                self.assertEqual(second.status()["state"], "standby")
                first.sql("INSERT INTO t(v) VALUES('the last')")
                first.kill()
                self.eventually(lambda: second.status()["state"] == "streaming", timeout=10, what="the takeover")

                def arrived():
                    return door.plain_rows(self.restore(url)[0], "SELECT count(*) FROM t") == [(1,)]

                self.eventually(arrived, timeout=10, what="the last commit in the replica", every=0.2)

    def test_the_lag_of_a_standby(self):
        db, url = self.path("app.db"), self.path("r")
        first, = self.start(db, url, 1)
        first.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        second, = self.start(db, url, 1)
        second.sql("INSERT INTO t(v) VALUES('shipped')")
        second.sync()
        os.kill(first.pid, signal.SIGSTOP)
        try:
            second.sql("INSERT INTO t(v) VALUES('waits')")
            self.eventually(lambda: second.status()["lag_seconds"] > 0.5, timeout=5, what="lag")
        finally:
            os.kill(first.pid, signal.SIGCONT)
        second.sync()
        self.eventually(lambda: second.status()["lag_seconds"] == 0, timeout=5, what="no lag")

    @pytest.mark.campaign
    def test_four_processes_one_killed_again_and_again(self):
        """Every commit that any walrust_sync acknowledged is in the replica; at the end the two are equal."""
        db, url = self.path("app.db"), self.path("r")
        keeper, = self.start(db, url, 1)
        keeper.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        log = self.path("acknowledged")
        fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.addCleanup(os.close, fd)
        # Each writer inherits the log: an acknowledgement is out before the next statement runs.
        prefix = [sys.executable, "-c", f"import os,sys; os.dup2(os.open({log!r}, os.O_WRONLY|os.O_APPEND), 9); "
                                        "os.set_inheritable(9, True); os.execv(sys.argv[1], sys.argv[1:])"]

        def writer():
            p = self.peer(prefix=prefix).open(db)
            p.watch(url, interval="0s")
            p.send(op="code", code=LOOP, args={"seconds": 600, "count": 10**9, "fd": 9})
            return p

        writers = [writer() for _ in range(4)]
        kills = 0
        while kills < 6 or keeper.sql("SELECT count(*) FROM t") < door.rounds(2000):
            time.sleep(1)
            i = self.random.randrange(4)
            writers[i].kill()
            writers[i] = writer()
            kills += 1
        for p in writers:
            p.kill()
        txid = keeper.sync()
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        live = door.live_image(db)
        self.assertEqual(len(live), os.path.getsize(out))
        self.assertTrue(live == door.image(out), door.difference(live, door.image(out)))
        restored = set(v for v, in door.plain_rows(out, "SELECT v FROM t"))
        acknowledged = 0
        with open(log) as f:
            for line in f:
                pid, count = line.split()
                acknowledged += 20
                for n in range(int(count) - 20, int(count)):
                    self.assertIn(f"{pid}:{n}", restored)
        self.assertGreater(acknowledged, 0)
        print(f"\n4 processes, {len(restored)} commits, {kills + 4} kills, {acknowledged} acknowledged: all restored", flush=True)

    def test_a_deploy_without_downtime(self):
        """Old and new process overlap, again and again, and both write: one history, no gap, no second snapshot."""
        hook = door.Hook(self)
        db, url = self.path("app.db"), self.path("r")
        old, = self.start(db, url, 1, webhooks=[{"url": hook.url}])
        old.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        old.sync()
        first = door.ltx_files(url, 9)
        for turn in range(4):
            old.send(op="code", code=LOOP, args={"seconds": 2, "count": 60})
            new, = self.start(db, url, 1, webhooks=[{"url": hook.url}])
            new.send(op="code", code=LOOP, args={"seconds": 2, "count": 60})
            old.wait()
            self.assertEqual(old.end(), 0)
            new.wait()
            old = new
        txid = self.check(old, db, url)
        self.assertEqual(old.sql("SELECT count(*) FROM t"), 480)
        self.assertEqual(door.ltx_files(url, 9), first)
        numbers = [f[1] for f in door.ltx_files(url, 0)]
        self.assertEqual(numbers, list(range(numbers[0], txid + 1)))
        self.assertEqual(hook.events("history_gap"), [])

    def test_a_killed_writer_inside_a_transaction(self):
        db, url = self.path("app.db"), self.path("r")
        first, second = self.start(db, url, 1) + self.start(db, url, 1)
        first.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        second.sql("PRAGMA cache_size=5")
        second.sql("BEGIN")
        second.many("INSERT INTO t(v) VALUES(?)", [("never" * 300,) for _ in range(500)])
        second.kill()
        first.sql("INSERT INTO t(v) VALUES('after')")
        self.check(first, db, url)
        self.assertEqual(first.sql("SELECT count(*) FROM t"), 1)

    def test_checkpoints_by_every_process(self):
        db, url = self.path("app.db"), self.path("r")
        first, = self.start(db, url, 1)
        first.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        peers = [first, *self.start(db, url, 2)]
        for turn in range(30):
            p = peers[turn % 3]
            p.many("INSERT INTO t(v) VALUES(?)", [("x" * 800,) for _ in range(10)])
            peers[(turn + 1) % 3].rows(f"PRAGMA wal_checkpoint({['PASSIVE', 'RESTART', 'TRUNCATE', 'FULL'][turn % 4]})")
        self.check(first, db, url)


FORKS = """
import json, os, sys, traceback
so, db, url, when, children, module = *sys.argv[1:5], int(sys.argv[5]), sys.argv[6]

if module == 'apsw':
    import apsw
    def connect(path):
        c = apsw.Connection(path)
        c.set_busy_timeout(20000)
        return c
    version = apsw.sqlite_lib_version()
else:
    import sqlite3
    def connect(path):
        return sqlite3.connect(path, timeout=20, isolation_level=None)
    version = sqlite3.sqlite_version

def one(c, sql, *params):
    return c.execute(sql, params).fetchone()

loader = connect(':memory:')
loader.enable_load_extension(True)
loader.load_extension(so)
loader.close()

def begin():
    c = connect(db)
    one(c, 'SELECT walrust_watch(?)', url)
    one(c, 'CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)')
    return c

parent, rows = None, 0
if when in ('before', 'both'):
    parent = begin()
    one(parent, "INSERT INTO t(v) VALUES('parent before')")
    one(parent, 'SELECT walrust_sync(30)')
    rows += 1
    if when == 'before':
        parent.close()
        parent = None

statuses = []
for first in range(0, children, 8):
    pids = []
    for n in range(first, min(first + 8, children)):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # What was inherited is closed by some, and left alone by others.
                if parent and n % 2:
                    parent.close()
                mine = begin()
                for i in range(10):
                    one(mine, 'INSERT INTO t(v) VALUES(?)', f'child {n} {i}')
                one(mine, 'SELECT walrust_sync(60)')
                mine.close()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        pids.append(pid)
        if parent:
            one(parent, 'INSERT INTO t(v) VALUES(?)', f'parent {n}')
            rows += 1
    statuses += [os.waitpid(pid, 0)[1] for pid in pids]
parent = parent or begin()
one(parent, 'SELECT walrust_watch(?)', url)
one(parent, "INSERT INTO t(v) VALUES('parent after')")
txid, = one(parent, 'SELECT walrust_sync(60)')
count, = one(parent, 'SELECT count(*) FROM t')
print(json.dumps({'statuses': statuses, 'txid': txid, 'lost': rows + 10 * children + 1 - count, 'version': version}), flush=True)
"""


class Fork(door.DoorTest):
    """Prefork servers: load and open before forking, after, and both; on the system's SQLite and on a newer one."""

    def fork(self, when):
        for module in ("sqlite3", "apsw"):
            with self.subTest(module=module):
                children = door.rounds(4)
                db, url = self.path(f"{when}-{module}.db"), self.path(f"r-{when}-{module}")
                done = subprocess.run(
                    [sys.executable, "-c", FORKS, door.SO, db, url, when, str(children), module], capture_output=True, text=True,
                    timeout=60 + 5 * children, env=door.clean_env(self.dir), cwd=self.dir,
                )
                self.assertTrue(done.stdout, done.stderr)
                answer = json.loads(done.stdout.splitlines()[-1])
                self.assertEqual(answer["statuses"], [0] * children, done.stderr)
                self.assertEqual(answer["lost"], 0)
                out, at = self.restore(url)
                self.assertEqual(at, answer["txid"])
                self.assertSameBytes(db, out)
                print(f"\nSQLite {answer['version']}, watching {when} forking: {children} forks, 0 hangs, 0 rows lost", flush=True)

    @pytest.mark.campaign
    def test_watch_before_forking(self):
        self.fork("before")

    @pytest.mark.campaign
    def test_watch_after_forking(self):
        self.fork("after")

    @pytest.mark.campaign
    def test_watch_before_and_after(self):
        self.fork("both")

    def test_fork_and_exec_while_streaming(self):
        """A child that only execs (system(), subprocess) disturbs nothing, and holds no lock of ours."""
        p, db, url = self.watched()
        for i in range(15):
            p.code("import subprocess; subprocess.run(['true']); os.system('true')")
            p.sql("INSERT INTO t(v) VALUES(?)", i)
        p.sync()
        self.assertSameBytes(db, self.restore(url)[0])

    def test_a_long_lived_child_does_not_keep_the_shippers_lock(self):
        """fcntl locks are not inherited, flock's are: the parent dies, its idle child lives, another process must take over."""
        p, db, url = self.watched()
        p.sync()
        child = p.code("""
pid = os.fork()
if pid == 0:
    time.sleep(60)
    os._exit(0)
result = pid
""")
        try:
            p.kill()
            q = self.peer().open(db)
            q.watch(url)
            q.sql("INSERT INTO t(v) VALUES('next')")
            q.sync(10)
            self.assertNotEqual(q.status()["state"], "standby")
            self.assertSameBytes(db, self.restore(url)[0])
        finally:
            os.kill(child, signal.SIGKILL)


class ForeignWriters(door.DoorTest):
    """Processes without the extension, and files that are swapped: noticed, never stale, never mixed."""

    def stock(self, db, script):
        return self.shell(script, db, load=False)

    def check(self, p, db, url):
        txid = p.sync()
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)
        self.assertSound(out)
        return txid

    def settled(self, db, url, what):
        """The replica catches up by itself, without a commit through us."""

        def equal():
            try:
                out, _ = self.restore(url)
                return door.image(out) == door.image(db)
            except door.SqlError:
                return False

        self.eventually(equal, timeout=20, what=what, every=0.2)

    def test_commits_still_in_the_wal_are_picked_up(self):
        p, db, url = self.watched(interval="0s")
        before = p.sync()
        self.stock(db, "INSERT INTO t(v) VALUES('foreign'),('foreign2');")
        self.settled(db, url, "a foreign commit, noticed by an idle process")
        p.sql("INSERT INTO t(v) VALUES('ours')")
        self.assertGreaterEqual(self.check(p, db, url), before + 2)

    def test_an_idle_process_notices_within_a_second(self):
        p, db, url = self.watched(interval="0s")
        txid = p.sync()
        self.stock(db, "INSERT INTO t(v) VALUES('foreign');")
        begin = time.monotonic()
        self.eventually(lambda: max((f[2] for f in door.ltx_files(url)), default=0) > txid, timeout=10, what="notice")
        self.assertLess(time.monotonic() - begin, 2)

    def test_the_wal_is_reset_by_another(self):
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", webhooks=[{"url": hook.url}])
        p.sync()
        marks = []
        for turn in range(4):
            self.stock(db, "".join(f"INSERT INTO t(v) VALUES('f{turn}-{i}');\n" for i in range(30))
                       + "PRAGMA wal_checkpoint(TRUNCATE);\nINSERT INTO t(v) VALUES('after reset');\n")
            p.sql("INSERT INTO t(v) VALUES('ours')")
            marks.append((self.check(p, db, url), door.image(db)))
        for txid, was in marks:
            self.assertEqual(door.image(self.restore(url, point=txid)[0]), was)

    def test_no_restore_shows_a_mixture(self):
        """A counter moves with the rows in every transaction; each TXID of the replica must hold a committed state."""
        p, db, url = self.watched(interval="0s", schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v);CREATE TABLE total(n);"
                                                        "INSERT INTO total VALUES(0)")
        for turn in range(12):
            for _ in range(5):
                p.rows("BEGIN")
                p.sql("INSERT INTO t(v) VALUES(?)", "o" * 1500)
                p.sql("UPDATE total SET n = n + 1")
                p.rows("COMMIT")
            script = "".join("BEGIN; INSERT INTO t(v) VALUES(hex(randomblob(900))); UPDATE total SET n = n + 1; COMMIT;\n" for _ in range(8))
            self.stock(db, script + ("PRAGMA wal_checkpoint(RESTART);\n" if turn % 2 else "") + script)
        last = self.check(p, db, url)
        first = min(f[2] for f in door.ltx_files(url))
        for txid in range(first, last + 1):
            try:
                out, _ = self.restore(url, point=txid)
            except door.SqlError as error:
                self.assertRegex(str(error), "walrust_restore")
                continue
            self.assertSound(out)
            if door.plain_rows(out, "SELECT count(*) FROM sqlite_schema WHERE name = 'total'") == [(1,)]:
                for n, rows in door.plain_rows(out, "SELECT n, (SELECT count(*) FROM t) FROM total"):
                    self.assertEqual(n, rows, txid)
            os.unlink(out)

    def test_rollback_mode_by_another(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        p.close()
        self.stock(db, "PRAGMA journal_mode=delete;\nINSERT INTO t(v) VALUES('rollback mode');\n")
        p.open(db)
        p.watch(url)
        p.sql("INSERT INTO t(v) VALUES('ours')")
        self.check(p, db, url)

    def replaced(self, how):
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", webhooks=[{"url": hook.url}])
        p.many("INSERT INTO t(v) VALUES(?)", [("first" * 50,) for _ in range(100)])
        old = self.check(p, db, url)
        kept = door.image(db)
        other = self.path("other.db")
        self.stock(other, "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE mark(x);"
                          "INSERT INTO t(v) VALUES('second');")
        p.close()
        how(other, db)
        p.open(db)
        try:
            p.watch(url, webhooks=[{"url": hook.url}])
        except door.SqlError as error:
            self.assertErrorLine(str(error), "takeover")
            p.watch(url, takeover=True, webhooks=[{"url": hook.url}])
        self.assertEqual(p.sql("SELECT count(*) FROM mark"), 0)
        p.sql("INSERT INTO t(v) VALUES('ours')")
        now = self.check(p, db, url)
        self.assertGreater(now, old)
        self.assertEqual(door.image(self.restore(url, point=old)[0]), kept)

    def test_replaced_by_cp(self):
        self.replaced(lambda other, db: shutil.copyfile(other, db))

    def test_replaced_by_mv(self):
        self.replaced(os.replace)

    def test_written_while_the_wal_was_unused_and_our_connection_closed(self):
        """A wal-index that nobody has written to looks like the next one made anew: that must not pass for continuity."""
        db, url = self.path("app.db"), self.path("replica")
        self.stock(db, "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t(v) VALUES('first');")
        p = self.peer().open(db)
        p.watch(url, interval="0s")
        p.sync()
        stranger = self.peer(so=None).open(db)
        stranger.sql("SELECT count(*) FROM t")
        p.close()
        stranger.many("INSERT INTO t(v) VALUES(?)", [("stranger" * 400,) for _ in range(40)])
        stranger.end()
        p.open(db)
        p.sql("INSERT INTO t(v) VALUES('last')")
        txid = p.sync(60)
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)

    def test_replaced_while_open_by_mv(self):
        """The old file lives on under our descriptor; the new one at the path is another database."""
        p, db, url = self.watched(interval="0s")
        p.sync()
        other = self.path("other.db")
        self.stock(other, "PRAGMA journal_mode=wal; CREATE TABLE other(x); INSERT INTO other VALUES(1);")
        for suffix in ("-wal", "-shm"):
            if os.path.exists(db + suffix):
                os.rename(db + suffix, self.path("moved" + suffix))
        os.replace(other, db)
        q = self.peer().open(db)
        try:
            q.watch(url)
        except door.SqlError:
            q.watch(url, takeover=True)
        q.sql("INSERT INTO other VALUES(2)")
        q.sync()
        with_rows = door.plain_rows(self.restore(url)[0], "SELECT name FROM sqlite_schema")
        self.assertIn(with_rows, ([("other",)], [("t",)]))

    def test_connections_that_have_only_the_old_file(self):
        """What they write goes to a file without a name: that is told at once, and the new file is followed when it is opened."""
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", webhooks=[{"url": hook.url}])
        p.sync()
        # (In rollback mode, as every copy that VACUUM INTO makes.)
        other = self.path("other.db")
        self.stock(other, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE other(x); INSERT INTO other VALUES(1);")
        for suffix in ("-wal", "-shm"):
            os.rename(db + suffix, self.path("moved" + suffix))
        os.replace(other, db)
        row = self.eventually(lambda: (lambda r: r if r and r["state"] == "failed" else None)(p.status()), timeout=5, what="the state")
        self.assertErrorLine(row["last_error"], "replaced", "open it again")
        self.eventually(lambda: hook.events("history_gap"), timeout=5, what="history_gap")
        with self.assertRaisesRegex(door.SqlError, "open it again"):
            p.sync()
        p.close()
        p.open(db)
        p.sql("INSERT INTO other VALUES(2)")
        self.assertEqual(p.sql("PRAGMA journal_mode"), "wal")
        self.check(p, db, url)
        self.assertEqual(p.status()["state"], "streaming")

    def test_copied_over_while_open(self):
        """Of the same size, over a file whose WAL is empty: no lock and no counter of SQLite's tells."""
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", webhooks=[{"url": hook.url}])
        p.many("INSERT INTO t(v) VALUES(?)", [("first" * 50,) for _ in range(100)])
        old = self.check(p, db, url)
        p.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        other = self.path("other.db")
        shutil.copyfile(db, other)
        self.stock(other, "UPDATE t SET v = replace(v, 'first', 'other'); PRAGMA wal_checkpoint(TRUNCATE);")
        self.assertEqual(os.path.getsize(other), os.path.getsize(db))
        kept = door.image(db)
        time.sleep(1)
        shutil.copyfile(other, db)

        def noticed():
            return door.image(self.restore(url)[0]) == door.image(other)

        self.eventually(noticed, timeout=10, what="the copy in the replica", every=0.2)
        self.assertEqual(len(hook.events("history_gap")), 1)
        self.assertEqual(door.image(self.restore(url, point=old)[0]), kept)

    def test_a_file_that_is_only_touched(self):
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", webhooks=[{"url": hook.url}])
        p.sql("INSERT INTO t(v) VALUES('before')")
        p.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        p.sync()
        time.sleep(0.6)
        os.utime(db)
        time.sleep(1)
        p.sql("INSERT INTO t(v) VALUES('after')")
        self.check(p, db, url)
        self.assertEqual(hook.events("history_gap"), [])

    def test_the_app_leaves_wal_mode(self):
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", webhooks=[{"url": hook.url}])
        p.sync()
        self.assertEqual(p.sql("PRAGMA journal_mode=delete"), "delete")
        p.sql("INSERT INTO t(v) VALUES('in rollback mode')")
        row = self.eventually(lambda: (lambda r: r if r["state"] == "failed" else None)(p.status()), timeout=10, what="the state")
        self.assertErrorLine(row["last_error"], "WAL mode", "journal_mode=WAL")
        self.eventually(lambda: hook.events("history_gap"), timeout=5, what="history_gap")
        with self.assertRaisesRegex(door.SqlError, "journal_mode=WAL"):
            p.sync()
        p.sql("PRAGMA journal_mode=wal")
        p.sql("INSERT INTO t(v) VALUES('in WAL mode')")
        self.check(p, db, url)
        self.assertEqual(p.status()["state"], "streaming")

    def test_checkpoints_while_a_replaced_file_is_read(self):
        """The database must be read anew, and the app checkpoints it without pause: it hears next to nothing of that."""
        p, db, url = self.watched(interval="0s")
        p.sync()
        told = p.code(
            """
import sqlite3
unexcused, checkpoints = [], 0
for i in range(12):
    conns.pop("main").close()
    other = sqlite3.connect(args["other"], isolation_level=None)
    other.execute("PRAGMA journal_mode=wal")
    other.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    other.execute("BEGIN")
    other.executemany("INSERT INTO t(v) VALUES(?)", [("f" * 1000,)] * (300 + i))
    other.execute("COMMIT")
    other.close()
    os.replace(args["other"], args["db"])
    c = conns["main"] = connect(args["db"])
    c.execute("PRAGMA busy_timeout=0")
    c.execute("PRAGMA wal_autocheckpoint=0")
    end, told, longest = time.monotonic() + 0.3, 0, 0
    while time.monotonic() < end:
        begun = time.monotonic()
        c.execute("INSERT INTO t(v) VALUES('x')")
        mode = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")[checkpoints % 4]
        busy, log, done = c.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        checkpoints += 1
        longest = max(longest, time.monotonic() - begun)
        told += busy != 0 or log != done
    # The reading is waited for by the clock, 50 ms: where a call took that long, its thread got no turn before.
    if longest < 0.045:
        unexcused.append(told)
result = [unexcused, checkpoints]
""",
            db=db, other=self.path("other.db"),
        )
        self.assertLess(sum(told[0]), 12, told)
        self.assertGreater(told[1], 50)
        self.check(p, db, url)

    def test_vacuum_into_and_rename(self):
        def how(other, db):
            self.stock(db, f"VACUUM INTO '{self.path('packed.db')}';")
            os.replace(self.path("packed.db"), db)
            self.stock(db, "PRAGMA journal_mode=wal; CREATE TABLE mark(x);")

        self.replaced(how)

    def test_history_gap_is_told(self):
        hook = door.Hook(self)
        p, db, url = self.watched(interval="0s", webhooks=[{"url": hook.url}])
        p.sync()
        p.end()
        q = self.peer(so=None).open(db)
        for i in range(50):
            q.sql("INSERT INTO t(v) VALUES(?)", "x" * 3000)
        q.end()
        p = self.peer().open(db)
        p.watch(url, webhooks=[{"url": hook.url}])
        self.check(p, db, url)
        event = self.eventually(lambda: hook.events("history_gap"), what="history_gap")[0]
        self.assertEqual(event["severity"], "critical")


if __name__ == "__main__":
    unittest.main()
