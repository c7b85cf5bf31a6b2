"""Stop and start, kill at random and at every named point: nothing acknowledged is lost, nothing restored is stale or mixed."""

import os
import re
import signal
import subprocess
import time
import unittest

import pytest

import door

WRITER = """
import itertools
c = conns['main']
start = c.execute('SELECT coalesce(max(id), 0) FROM t').fetchone()[0]
for n in itertools.count(start + 1):
    c.execute('BEGIN')
    c.execute('INSERT INTO t VALUES(?, ?)', (n, 'x' * (n * 131 % 2000)))
    c.execute('UPDATE total SET n = n + 1')
    c.execute('COMMIT')
    if n % 7 == 0:
        synced = c.execute('SELECT walrust_sync(30)').fetchone()[0]
        os.write(args['fd'], f'{n} {synced}\\n'.encode())
    if n % 50 == 0:
        c.execute('DELETE FROM t WHERE id % 3 = 0 AND id < ?', (n - 100,))
"""


class Restart(door.DoorTest):
    def check(self, p, db, url):
        txid = p.sync()
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)
        return txid

    def again(self, db, url, **options):
        p = self.peer().open(db)
        p.watch(url, **options)
        return p

    def test_clean_stop_and_start(self):
        p, db, url = self.watched()
        last = 0
        for turn in range(5):
            p.many("INSERT INTO t(v) VALUES(?)", [("x" * 300,) for _ in range(20)])
            if turn % 2:
                self.check(p, db, url)
            p.end()
            p = self.again(db, url)
            p.sql("INSERT INTO t(v) VALUES('next')")
            now = self.check(p, db, url)
            self.assertGreater(now, last)
            last = now

    def test_a_restart_does_not_upload_the_database_again(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES(randomblob(3000000))")
        p.sync()
        p.end()
        before = {f[3] for f in door.ltx_files(url)}
        p = self.again(db, url)
        p.sql("INSERT INTO t(v) VALUES('small')")
        self.check(p, db, url)
        added = [f[3] for f in door.ltx_files(url) if f[3] not in before]
        self.assertLess(sum(os.path.getsize(f) for f in added), 200_000)

    def test_closing_the_last_connection_loses_nothing(self):
        """SQLite deletes the WAL at the last close; what was not yet shipped is in the spool."""
        p, db, url = self.watched(interval="30s")
        p.sync()
        p.many("INSERT INTO t(v) VALUES(?)", [("late" * 100,) for _ in range(50)])
        p.end()
        p = self.again(db, url)
        self.check(p, db, url)

    def test_closed_then_opened_in_one_process(self):
        p, db, url = self.watched()
        for turn in range(4):
            p.sql("INSERT INTO t(v) VALUES(?)", turn)
            p.close()
            p.open(db)
            p.sql("SELECT walrust_watch(?)", url)
        self.check(p, db, url)

    def test_written_without_the_extension_in_between(self):
        """Litestream's silent loss: the watcher stops, the application writes on, SQLite's own checkpoint restarts the WAL."""
        for rows in (3, 400, 5000):
            with self.subTest(rows=rows):
                db, url = self.path(f"app{rows}.db"), self.path(f"r{rows}")
                p, _, _ = self.watched(db, url)
                p.many("INSERT INTO t(v) VALUES(?)", [("a" * 500,) for _ in range(300)])
                p.sync()
                p.end()
                q = self.peer(so=None).open(db)
                for i in range(rows):
                    q.sql("INSERT INTO t(v) VALUES(?)", "without" * 50)
                q.end()
                p = self.again(db, url)
                p.sql("INSERT INTO t(v) VALUES('back')")
                self.check(p, db, url)
                p.end()

    def test_written_without_the_extension_and_the_wal_left(self):
        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [("a" * 500,) for _ in range(100)])
        p.sync()
        holder = self.peer(so=None).open(db)
        holder.rows("SELECT count(*) FROM t")
        p.end()
        for i in range(1500):
            holder.sql("INSERT INTO t(v) VALUES(?)", "b" * 400)
        holder.kill()
        p = self.again(db, url)
        self.check(p, db, url)
        p.sql("INSERT INTO t(v) VALUES('back')")
        self.check(p, db, url)

    def test_writes_of_a_loaded_process_that_does_not_watch(self):
        """Another process has the extension but says no watch: its commits are found by the next watcher."""
        p, db, url = self.watched()
        p.sync()
        p.end()
        q = self.peer().open(db)
        q.many("INSERT INTO t(v) VALUES(?)", [("c" * 700,) for _ in range(2000)])
        q.end()
        p = self.again(db, url)
        self.check(p, db, url)

    def test_local_state_lost(self):
        """The spool directory is deleted between two runs: the database's checksum is attested by the replica."""
        import shutil

        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [("a" * 500,) for _ in range(100)])
        txid = p.sync()
        p.end()
        shutil.rmtree(db + "-walrust", ignore_errors=True)
        p = self.again(db, url)
        p.sql("INSERT INTO t(v) VALUES('back')")
        self.assertEqual(self.check(p, db, url), txid + 1)

    def test_replica_ahead_of_the_database(self):
        """Power loss at synchronous=NORMAL: the local file is older than the replica. TXIDs are never used twice."""
        import shutil

        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) VALUES('old')")
        p.sync()
        p.end()
        shutil.copy(db, self.path("older.db"))
        state = self.path("older-state")
        if os.path.isdir(db + "-walrust"):
            shutil.copytree(db + "-walrust", state)
        p = self.again(db, url)
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES('lost by the power cut')")
        ahead = p.sync()
        kept = door.image(db)
        p.kill()
        for suffix in ("-wal", "-shm"):
            if os.path.exists(db + suffix):
                os.unlink(db + suffix)
        shutil.copy(self.path("older.db"), db)
        p = self.peer().open(db)
        try:
            p.watch(url)
        except door.SqlError as error:
            self.assertErrorLine(str(error), "walrust_watch")
            p.watch(url, takeover=True)
        p.sql("INSERT INTO t(v) VALUES('other history')")
        now = self.check(p, db, url)
        self.assertGreater(now, ahead)
        out, _ = self.restore(url, point=ahead)
        self.assertEqual(door.image(out), kept)


class Kill(door.DoorTest):
    """SIGKILL of a writing process at random times. Acknowledged by walrust_sync means restorable."""

    def round(self, so, db, url, delay, env=None):
        """Write until killed. Gives the (id, TXID) pairs that walrust_sync acknowledged."""
        read, write = os.pipe()
        os.set_inheritable(write, True)
        argv_so = so
        p = door.Peer.__new__(door.Peer)
        p.test, p.errlog = self, open(self.path("err"), "w+b")
        p.proc = subprocess.Popen(
            [door.sys.executable, os.path.join(door.HERE, "peer.py"), "sqlite3", argv_so], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=p.errlog, text=True, env=door.clean_env(self.dir, env), cwd=self.dir, pass_fds=[write],
        )
        os.close(write)
        died = False
        try:
            p._answer()
            p.open(db)
            p.rows("PRAGMA wal_autocheckpoint=100")
            p.watch(url, interval="0s", levels=["300ms", "1s"], snapshot_interval="700ms")
            p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
            p.sql("CREATE TABLE IF NOT EXISTS total(n)")
            p.sql("INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total)")
            p.send(op="code", code=WRITER, args={"fd": write})
        except (AssertionError, BrokenPipeError):
            died = True  # an armed crash point before the writer began
        if not died:
            try:
                p.proc.wait(delay)
            except subprocess.TimeoutExpired:
                p.proc.send_signal(signal.SIGKILL)
                p.proc.wait()
        p.kill()
        self.assertIn(p.proc.returncode, (-signal.SIGKILL,), p.stderr())
        p.errlog.close()
        with os.fdopen(read) as acknowledged:
            return [tuple(map(int, line.split())) for line in acknowledged.read().splitlines() if line.count(" ") == 1]

    def judge(self, db, url, acknowledged):
        """The replica after a kill, before anybody repairs it, and after the next start."""
        if acknowledged:
            row, txid = acknowledged[-1]
            out, at = self.restore(url)
            self.assertGreaterEqual(at, txid)
            self.assertCommitted(out, row)
            out, _ = self.restore(url, point=txid)
            self.assertCommitted(out, row)
        p = self.peer().open(db)
        p.watch(url, interval="0s")
        local = p.sql("SELECT coalesce(max(id), 0) FROM t") if p.sql("SELECT count(*) FROM sqlite_schema WHERE name='t'") else 0
        if acknowledged:
            self.assertGreaterEqual(local, acknowledged[-1][0])
        p.sql("CREATE TABLE IF NOT EXISTS healed(x)")
        txid = p.sync()
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)
        p.end()

    def assertCommitted(self, path, row):
        """A state that some COMMIT left: the counter in `total` moved with the newest id."""
        (newest, total), = door.plain_rows(path, "SELECT max(id), (SELECT n FROM total) FROM t")
        self.assertEqual(newest, total)
        self.assertGreaterEqual(newest, row)
        self.assertSound(path)

    @pytest.mark.campaign
    def test_random_times(self):
        kills = acknowledged = 0
        for turn in range(door.rounds(3)):
            db, url = self.path(f"app{turn}.db"), self.path(f"r{turn}")
            for _ in range(4):
                pairs = self.round(door.SO, db, url, self.random.uniform(0.05, 0.9))
                kills, acknowledged = kills + 1, acknowledged + len(pairs)
                self.judge(db, url, pairs)
        print(f"\n{kills} kills at random times, {acknowledged} acknowledgements: 0 lost, 0 mixed, 0 failed restores", flush=True)

    @pytest.mark.campaign
    @unittest.skipUnless(os.path.exists(door.CRASH_SO), "needs `make crash-lib`")
    def test_named_points(self):
        """Each crash point that the library has, the first time and a later one."""
        points = crash_points()
        self.assertTrue(points)
        reached = set()
        for number, point in enumerate(points):
            for nth in (1, 3) if door.ROUNDS >= 1 else (1,):
                db, url = self.path(f"p{number}-{nth}.db"), self.path(f"rp{number}-{nth}")
                begin = time.monotonic()
                pairs = self.round(door.CRASH_SO, db, url, 1.5, env={"WALRUST_CRASH": f"{point}:{nth}"})
                if time.monotonic() - begin < 1.5:
                    reached.add(point)
                if os.path.exists(db):
                    self.judge(db, url, pairs)
        print(f"\n{len(points)} crash points, {len(reached)} reached by a writer: {', '.join(sorted(reached))}", flush=True)
        self.assertTrue(reached)


def crash_points():
    """The names in the source: crash::point("name")."""
    found = set()
    for base, _, names in os.walk(os.path.join(door.ROOT, "src")):
        for name in names:
            if name.endswith(".rs"):
                with open(os.path.join(base, name)) as f:
                    found |= set(re.findall(r'crash::point\("([^"]+)"\)', f.read()))
    return sorted(found)


if __name__ == "__main__":
    unittest.main()
