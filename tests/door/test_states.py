"""What a watched database is, and what is told of it: settings that are said again, calls that fail, databases that nobody ships."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import door
from test_s3 import S3Test

FAST = {"base": "10ms", "max": "100ms", "breaker_threshold": 3, "breaker_cooldown": "300ms"}


class Settings(S3Test):
    def test_durability_that_a_second_call_asks_for(self):
        """The configuration streams asynchronously; a call asks for sync: from then on a COMMIT that the replica has not fails."""
        url = self.s3.url("app", self.proxy.endpoint)
        p = self.peer(env=self.s3.env(WALRUST_REPLICA=url, WALRUST_RETRY_BASE="10ms")).open(self.db)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        self.assertIn("already streaming", p.sql("""SELECT walrust_watch(NULL, '{"durability":"sync","sync_timeout":"1s"}')"""))
        self.insert(p, 1)
        self.proxy.down = True
        with self.assertRaises(door.SqlError):
            self.insert(p, 1, "not there")
        self.proxy.down = False
        self.eventually(lambda: self.inserted(p), what="a COMMIT that succeeds")
        self.assertIn("already streaming", p.sql("""SELECT walrust_watch(NULL, '{"durability":"async"}')"""))
        self.proxy.down = True
        self.insert(p, 1, "kept here")
        self.proxy.down = False
        out, _ = self.restored_after_sync(p)
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t WHERE v = 'not there'"), [(0,)])

    def inserted(self, p):
        try:
            self.insert(p, 1)
        except door.SqlError:
            return False
        return True

    def restored_after_sync(self, p):
        p.sync(30)
        out, at = self.restore(self.s3.url(), env=self.s3.env())
        self.assertSameBytes(self.db, out)
        return out, at

    def test_durability_is_refused_where_others_would_not_wait(self):
        p = self.streaming()
        p.open(self.db, conn="other")
        p.sql("SELECT count(*) FROM t", conn="other")
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.s3.url("app", self.proxy.endpoint), durability="sync")
        self.assertErrorLine(str(caught.exception), "1 other connection", "durability")
        self.assertEqual(p.sql("SELECT value FROM walrust_config WHERE name = 'durability'"), "async")

    def test_an_interval_that_a_second_call_asks_for(self):
        p = self.streaming()
        p.sync()
        p.watch(self.s3.url("app", self.proxy.endpoint), interval="60s")
        self.insert(p, 1)
        before = len(self.s3.keys("app/0000/"))
        for _ in range(10):
            self.insert(p, 1)
            time.sleep(0.1)
        self.assertLessEqual(len(self.s3.keys("app/0000/")), before + 1)
        # Of what the last call says nothing, the one before has said it.
        p.watch(self.s3.url("app", self.proxy.endpoint))
        self.assertEqual(p.sql("SELECT value FROM walrust_config WHERE name = 'interval'"), "60s")
        self.restored_after_sync(p)

    def test_a_spool_that_a_second_call_asks_for(self):
        """It is built in: the watch is renewed, and nothing is lost on the way, of what waits for its upload least of all."""
        p = self.streaming()
        self.proxy.fault = lambda method, path: ("delay", 0.3) if method == "PUT" and "/0000/" in path else None
        for _ in range(3):
            self.insert(p, 1)
            time.sleep(0.1)
        elsewhere = self.path("elsewhere")
        p.watch(self.s3.url("app", self.proxy.endpoint), spool_dir=elsewhere)
        self.assertTrue(os.path.exists(os.path.join(elsewhere, "position.json")))
        self.insert(p, 3)
        self.restored_after_sync(p)


class Calls(S3Test):
    def test_a_takeover_that_is_refused_leaves_the_watch(self):
        p = self.streaming()
        self.insert(p, 1)
        p.sync()
        self.proxy.fault = lambda method, path: ("status", 403)
        with self.assertRaises(door.SqlError):
            p.watch(self.s3.url("app", self.proxy.endpoint), takeover=True)
        with self.assertRaises(door.SqlError):
            self.configured_elsewhere()
        self.assertIsNotNone(p.status())
        self.insert(p, 1)
        self.proxy.fault = None
        p.sync(30)
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        self.assertSameBytes(self.db, out)

    def away(self, **kwargs):
        """A program whose databases are configured, and whose store takes connections and says nothing for long."""
        self.proxy.fault = lambda method, path: ("delay", 2)
        env = self.s3.env(WALRUST_REPLICA=self.s3.url("{name}", self.proxy.endpoint), WALRUST_RETRY_BASE="50ms", **kwargs)
        return self.peer(env=env).open(":memory:")

    def written_and_closed(self, p, *names):
        for name in names:
            p.open(self.path(f"{name}.db"), name)
            p.sql("CREATE TABLE t(v)", conn=name)
            p.sql("INSERT INTO t VALUES(42)", conn=name)
            p.close(name)

    def assertReplicated(self, *names):
        for name in names:
            out = self.path(f"{name}-restored.db")
            restored = lambda: self.run_cli("restore", self.s3.url(name), out, env=self.s3.env()).returncode == 0
            self.eventually(restored, 30, what=f"a replica of {name}")
            self.assertEqual(door.plain_rows(out, "SELECT v FROM t"), [(42,)])

    def test_what_was_closed_while_the_store_was_away_needs_no_other_open(self):
        """New databases are written and closed again before the store has said a word: when it is back, they are there."""
        p = self.away()
        self.written_and_closed(p, "a", "b", "c")
        self.s3_is_back()
        self.assertReplicated("a", "b", "c")

    def test_what_a_close_began_gives_way_to_what_the_replica_holds(self):
        """The replica turns out to be this database's already: its history goes on. Another database's is left alone."""
        db = self.path("a.db")
        first = self.peer(env=self.s3.env(WALRUST_REPLICA=self.s3.url("{name}"))).open(":memory:")
        self.written_and_closed(first, "a", "b")
        self.assertReplicated("a", "b")
        first.end()
        shutil.rmtree(db + "-walrust")
        for suffix in (".db", ".db-walrust"):
            path = self.path("b" + suffix)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        kept = self.s3.keys("b/")
        p = self.away()
        for name, sql in (("a", "SELECT * FROM t"), ("b", "CREATE TABLE other(x)")):
            p.open(self.path(f"{name}.db"), name)
            p.sql(sql, conn=name)
            p.close(name)
        self.s3_is_back()
        p.open(db, "a")
        p.sql("SELECT * FROM t", conn="a")
        p.sync(30, conn="a")
        p.sql("INSERT INTO t VALUES(43)", conn="a")
        p.sync(30, conn="a")
        out, _ = self.restore(self.s3.url("a"), env=self.s3.env())
        self.assertEqual(door.plain_rows(out, "SELECT v FROM t"), [(42,), (43,)])
        snapshots = self.s3.keys("a/0009/")
        self.assertEqual(len(snapshots), 1, "its history went on")
        p.open(self.path("b.db"), "b")
        p.sql("INSERT INTO other VALUES(1)", conn="b")
        with self.assertRaises(door.SqlError) as caught:
            p.sync(10, conn="b")
        self.assertErrorLine(str(caught.exception), "another database")
        self.assertEqual(self.s3.keys("b/"), kept)

    def s3_is_back(self):
        self.proxy.fault = None

    def configured_elsewhere(self):
        """A configured watch; a call names a replica that refuses."""
        db = self.path("other.db")
        env = self.s3.env(WALRUST_REPLICA=self.path("kept"))
        p = self.peer(env=env).open(db)
        p.sql("CREATE TABLE t(v)")
        p.sync()
        try:
            p.watch(self.s3.url("elsewhere", self.proxy.endpoint))
        finally:
            p.sql("INSERT INTO t VALUES('after the call')")
            p.sync()
            out, _ = self.restore(self.path("kept"))
            self.assertSameBytes(db, out)

    def test_a_store_that_does_not_answer_is_no_error(self):
        """The call returns, says so, commits are kept, and leave when the store answers."""
        hole = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(hole.close)
        silent = f"http://127.0.0.1:{hole.getsockname()[1]}"
        p = self.peer(env=self.s3.env()).open(self.db)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for endpoint in (silent, "http://127.0.0.1:1"):
            began = time.monotonic()
            said = p.watch(self.s3.url("app", endpoint), retry=FAST)
            self.assertLess(time.monotonic() - began, 30)
            self.assertIn("has not answered", said)
            self.insert(p, 2)
            self.assertEqual(p.status()["state"], "catching up")
            with self.assertRaises(door.SqlError):
                p.sql("SELECT walrust_sync(0.1)")
            with self.assertRaises(door.SqlError):
                p.sql("SELECT walrust_unwatch()")
        self.proxy.down = True
        self.assertIn("has not answered", p.watch(self.s3.url("app", self.proxy.endpoint), retry=FAST))
        self.insert(p, 2)
        self.proxy.down = False
        self.assertComplete(p)

    def test_what_is_plainly_wrong_is_an_error(self):
        p = self.peer(env=self.s3.env()).open(self.db)
        with self.assertRaises(door.SqlError):
            p.watch(self.s3.url("app", bucket="there-is-no-such"))
        self.assertIsNone(p.status())
        self.assertEqual(p.sql("PRAGMA journal_mode"), "delete")
        self.assertFalse(os.path.exists(self.db + "-walrust"))

    def test_an_unwatch_ends_a_watch_that_begins_anew(self):
        """The spool is deleted while the store is away: the watch begins anew by itself, until it is ended."""
        p = self.streaming()
        self.insert(p, 1)
        p.sync()
        self.proxy.down = True
        door.remove_tree(self.db + "-walrust")
        self.insert(p, 1)
        self.eventually(lambda: os.path.exists(self.db + "-walrust"), what="a new spool")
        # (It has begun when its row names the replica: a call before that takes the beginning back, and has nothing to wait for.)
        self.eventually(lambda: (p.status() or {}).get("replica"), what="a row")
        with self.assertRaises(door.SqlError):
            p.sql("SELECT walrust_unwatch()")
        self.proxy.down = False
        time.sleep(3)
        self.assertIsNone(p.status(), "it has come back")

    def test_a_copy_on_its_way_keeps_nobody_from_reading(self):
        p = self.streaming()
        self.insert(p, 5, "x" * 1000)
        p.sync()
        slow = door.FaultProxy(self, self.s3.port)
        slow.fault = lambda method, path: ("delay", 8) if method == "PUT" and "copy/0009" in path else None
        p.send(op="sql", conn="main", sql="SELECT walrust_snapshot(?)", params=[self.s3.url("copy", slow.endpoint)])
        self.addCleanup(lambda: p.wait())
        other = self.peer(env=self.s3.env())
        time.sleep(2)
        # Another process sees neither "snapshotting" for as long as the copy takes, nor a gap that waits for its end.
        other.open(self.db)
        other.sql("INSERT INTO t(v) VALUES('meanwhile')")
        began = time.monotonic()
        self.eventually(lambda: self.newest() >= int(other.sql("SELECT max(id) FROM t")), timeout=5, what="the commit in the replica")
        self.assertLess(time.monotonic() - began, 5)

    def newest(self):
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        return door.plain_rows(out, "SELECT max(id) FROM t")[0][0]


class Told(door.DoorTest):
    def health(self, port):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as answer:
            return answer.code, json.load(answer)

    def test_nobody_ships_what_must_be_read(self):
        """All connections are closed, and a program without walrust writes: the lag grows from then on, and the next use mends it."""
        db, replica = self.path("app.db"), self.path("replica")
        p = self.peer(env={"WALRUST_REPLICA": replica}).open(":memory:", conn="aside")
        use = "import sqlite3\nc = sqlite3.connect(args['db'], isolation_level=None)\nresult = c.execute(args['sql']).fetchall()\nc.close()"
        p.code(use, db=db, sql="CREATE TABLE t(v)")
        p.code(use, db=db, sql="INSERT INTO t VALUES(1)")
        row = lambda: p.status(conn="aside", database=db)
        self.eventually(lambda: row()["state"] == "streaming", what="streaming")
        c = door.plain_connect(db)
        c.execute("INSERT INTO t VALUES('a stranger')")
        c.commit()
        c.close()
        # (There is a row at each moment, also while the watch begins again; what it does not know it does not say.)
        late = self.eventually(lambda: (lambda r: r if (r["lag_seconds"] or 0) > 1 else None)(row()), what="a lag that grows", every=0)
        self.assertEqual(late["state"], "catching up")
        self.assertIn("not open in this process", late["last_error"])
        p.code(use, db=db, sql="SELECT count(*) FROM t")
        self.eventually(lambda: row()["lag_seconds"] == 0 and row()["state"] == "streaming", what="streaming again")
        out, _ = self.restore(replica)
        self.assertSameBytes(db, out)

    def test_a_snapshot_of_what_must_be_read_first(self):
        """A program without walrust wrote while the database was closed, and a snapshot is the first thing that is asked for: the database
        is read anew for it. (The call held the place of the reading that it waited for, and failed after 30 s.)"""
        db = self.path("app.db")
        hook = door.Hook(self)
        p = self.peer().open(":memory:", conn="aside").open(db)
        p.watch(self.path("replica"), webhooks=[{"url": hook.url, "secret": "x"}], snapshot_interval="0")
        p.sql("CREATE TABLE t(v)")
        for to in (None, self.path("copy")):
            p.sync()
            p.close()
            c = door.plain_connect(db)
            c.execute("INSERT INTO t VALUES('a stranger')")
            c.commit()
            c.close()
            row = lambda: p.status(conn="aside", database=db)
            self.eventually(lambda: "not open in this process" in (row()["last_error"] or ""), what="that it must be read anew")
            p.open(db)
            txid = p.sql("SELECT walrust_snapshot(?)", to) if to else p.sql("SELECT walrust_snapshot()")
            out, at = self.restore(to or self.path("replica"))
            self.assertEqual(at, txid)
            self.assertSameBytes(db, out)
        self.assertEqual(hook.events("corruption_detected"), [])

    def test_a_metrics_port_that_becomes_free(self):
        """Another program has it when this one starts: replication goes on, and when it is free it is listened at without another open."""
        taken = socket.create_server(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        self.addCleanup(taken.close)
        env = {"WALRUST_REPLICA": self.path("replica"), "WALRUST_METRICS_LISTEN": f"127.0.0.1:{port}"}
        p = self.peer(env=env).open(self.path("app.db"))
        p.sql("CREATE TABLE t(v)")
        p.sync()
        taken.close()

        def listened():
            try:
                return self.health(port)[0] == 200
            except OSError:
                return False

        self.eventually(listened, timeout=60, every=0.5, what="its /health")
        # A command beside it wants none.
        done = self.run_cli("sync", self.path("app.db"), env=env)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_standby_is_as_healthy_as_the_database(self):
        """The shipper is stopped with SIGSTOP: its standby's lag grows, and /health follows."""
        db, replica, port = self.path("app.db"), self.path("replica"), door.free_port()
        first = self.peer(env={"WALRUST_REPLICA": replica}).open(db)
        first.sql("CREATE TABLE t(v)")
        first.sync()
        second = self.peer(env={"WALRUST_REPLICA": replica, "WALRUST_METRICS_LISTEN": f"127.0.0.1:{port}"}).open(db)
        second.sql("SELECT count(*) FROM t")
        self.eventually(lambda: (second.status() or {}).get("state") == "standby", what="standby")
        self.assertEqual(self.health(port)[0], 200)
        os.kill(first.pid, signal.SIGSTOP)
        self.addCleanup(lambda: os.kill(first.pid, signal.SIGCONT))
        second.sql("INSERT INTO t VALUES('waits')")
        status, page = self.eventually(
            lambda: (lambda h: h if h[0] == 503 else None)(self.health(port)), timeout=90, every=1, what="an unhealthy standby"
        )
        self.assertGreater(page["databases"][db]["lag_seconds"], 60)

    def test_processes_that_come_and_go_tell_no_gap(self):
        """Short-lived connections of three processes, which are replaced one by one: every one has walrust."""
        db, replica = self.path("app.db"), self.path("replica")
        hook = door.Hook(self)
        config = door.toml(self, f'interval = "200ms"\n[[webhooks]]\nurl = "{hook.url}"\n[[databases]]\npath = "{db}"\nreplica = "{replica}"\n')
        c = door.plain_connect(db)
        c.execute("PRAGMA journal_mode=WAL")
        c.execute("CREATE TABLE t(v)")
        c.close()
        worker = f"""
import os, random, sqlite3, time
aside = sqlite3.connect(':memory:')
aside.enable_load_extension(True)
aside.load_extension({door.SO!r})
while True:
    c = sqlite3.connect({db!r}, timeout=20, isolation_level=None)
    c.execute("INSERT INTO t VALUES(?)", (os.getpid(),))
    c.close()
    time.sleep(random.random() * 0.1)
"""
        env = door.clean_env(self.dir, {"WALRUST_CONFIG": config})

        def start():
            p = subprocess.Popen(["/usr/bin/python3", "-c", worker], env=env)
            self.addCleanup(p.wait)
            self.addCleanup(p.kill)
            return p

        workers = [start()]
        self.eventually(lambda: door.ltx_files(replica, 9), what="a first snapshot")
        workers += [start(), start()]
        time.sleep(2)
        before = len(hook.events("history_gap"))
        for end in ("terminate", "kill") * 4:
            workers.append(start())
            time.sleep(0.8)
            getattr(workers.pop(0), end)()
        for p in workers:
            p.terminate()
            p.wait()
        self.assertEqual([e["message"] for e in hook.events("history_gap")[before:]], [])
        self.shell("SELECT walrust_watch(); SELECT walrust_sync(20);", db=db, env={"WALRUST_CONFIG": config})
        out, _ = self.restore(replica)
        self.assertSameBytes(db, out)


class Followed(S3Test):
    def test_a_listed_file_that_is_missing_is_not_asked_for_without_a_pause(self):
        p = self.streaming()
        self.insert(p, 3)
        p.sync()
        follower = self.peer(env=self.s3.env()).open(":memory:")
        eye = door.FaultProxy(self, self.s3.port)
        copy = self.path("copy.db")
        follower.sql("SELECT walrust_replicate(?, ?, ?)", self.s3.url("app", eye.endpoint), copy, '{"interval":"1s"}')
        self.insert(p, 3)
        txid = p.sync()
        missing = f"app/0000/{txid:016x}-{txid:016x}.ltx"
        eye.fault = lambda method, path: ("status", 404) if missing in path else None
        self.insert(p, 3)
        p.sync()
        self.eventually(lambda: any(missing in path for _, path, _ in eye.seen), what="a request for it")
        eye.seen.clear()
        time.sleep(4)
        # A poll a second at most, and each asks twice.
        asked = sum(missing in path for _, path, _ in eye.seen)
        self.assertLessEqual(asked, 12, f"{asked} requests for it in 4 s")
        eye.fault = None
        rows = lambda: door.plain_rows(copy, "SELECT id, v FROM t")
        self.eventually(lambda: rows() == p.rows("SELECT id, v FROM t"), timeout=90, what="the copy")
