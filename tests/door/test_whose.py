"""Whose spool, whose replica: two databases never get one spool, however that is said, and nobody is told of another replica
that his commits are in his own."""

import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request

import door


def tree(directory, but=("lock.", ".tmp-", "shipper.json")):
    """Every file below a directory with its content; locks and what only tells who is at work now aside."""
    found = {}
    for base, _, names in os.walk(directory):
        for name in names:
            if not name.startswith(but):
                with open(os.path.join(base, name), "rb") as f:
                    found[os.path.relpath(os.path.join(base, name), directory)] = hashlib.sha256(f.read()).hexdigest()
    return found


class Whose(door.DoorTest):
    def streamed(self, name, env=None, **options):
        """A process that streams <name>.db to <name>-replica, with a row that names it."""
        p = self.peer(env=env).open(self.path(f"{name}.db"))
        p.watch(self.path(f"{name}-replica"), interval="0s", snapshot_interval="0", **options)
        p.sql("CREATE TABLE IF NOT EXISTS t(who)")
        p.sql("INSERT INTO t VALUES (?)", name)
        p.sync()
        self.rests(options.get("spool_dir") or self.path(f"{name}.db-walrust"))
        return p

    def rests(self, spool):
        """The shipper has put away what it shipped."""
        self.eventually(lambda: not os.listdir(os.path.join(spool, "pending")), what="an empty queue")

    def refused(self, call, *fragments):
        with self.assertRaises(door.SqlError) as caught:
            call()
        self.assertErrorLine(str(caught.exception), *fragments)
        return str(caught.exception)

    def check(self, name, p, replica=None):
        txid = p.sync()
        out, at = self.restore(replica or self.path(f"{name}-replica"))
        self.assertEqual(at, txid)
        self.assertSameBytes(self.path(f"{name}.db"), out)
        return txid

    def lineages(self, spool):
        with open(os.path.join(spool, "replica.json")) as f:
            return json.load(f)["lineages"]


class Spools(Whose):
    def test_one_spool_of_two_databases_however_it_is_said(self):
        spool = self.path("spool")
        toml = self.path("w.toml")
        with open(toml, "w") as f:
            f.write(f'spool_dir = "{spool}"\n[[databases]]\npath = "{self.path("**", "*.db")}"\nreplica = "{self.path("{name}-replica")}"\n')
        a = self.streamed("a", spool_dir=spool)
        # (Its own first look after the replica is recorded there, too.)
        self.eventually(lambda: os.path.exists(os.path.join(spool, "care.json")), what="the first retention")
        before, names = tree(spool), (self.path("a.db"), spool)
        call = self.peer().open(self.path("b.db"))
        self.refused(lambda: call.watch(self.path("b-replica"), spool_dir=spool), *names)
        for how, env in (("environment", {"WALRUST_SPOOL_DIR": spool}), ("uri", {}),
                         ("file", {"WALRUST_CONFIG": toml})):
            with self.subTest(how):
                p = self.peer(env=env)
                p.open(":memory:", "first")
                query = f"?replica={self.path('b-replica')}&spool_dir={spool}" if how == "uri" else ""
                if how == "environment":
                    p.open(self.path("b.db"), "main")
                    self.refused(lambda: p.watch(self.path("b-replica")), *names)
                else:
                    # Configured databases are watched as they are opened; that one is not is told in its row.
                    p.open(f"file:{self.path('b.db')}{query}" if query else self.path("b.db"), "main", uri=bool(query))
                    p.sql("CREATE TABLE IF NOT EXISTS b(x)")
                    row = self.eventually(lambda: p.status(database=self.path("b.db")), what="a row")
                    self.assertEqual(row["state"], "failed", row)
                    self.assertIn(names[0], row["last_error"])
                p.end()
        self.assertFalse(os.path.exists(self.path("b-replica")))
        self.assertEqual(tree(spool), before)
        # In the same process, too.
        a.open(self.path("c.db"), "c")
        self.refused(lambda: a.watch(self.path("c-replica"), conn="c", spool_dir=spool), *names)
        self.assertEqual(tree(spool), before)
        a.sql("INSERT INTO t VALUES ('goes on')")
        self.check("a", a)
        # And when nobody has it open.
        self.rests(spool)
        a.end()
        before = tree(spool)
        self.refused(lambda: call.watch(self.path("b-replica"), spool_dir=spool), *names)
        self.assertEqual(tree(spool), before)
        call.watch(self.path("b-replica"), spool_dir=self.path("spool-b"))

    def test_other_names_of_a_spool(self):
        spool = self.path("spools", "a")
        os.mkdir(self.path("spools"))
        a = self.streamed("a", spool_dir=spool)
        os.symlink(self.path("spools"), self.path("link"))
        other = self.peer().open(self.path("b.db"))
        a.open(self.path("c.db"), "c")
        for name in (spool + "/", self.path("spools", "..", "spools", "a"), self.path("link", "a"),
                     self.path("spools", "a", "b"), self.path("link", "a", "pending", "b"), self.path("spools")):
            with self.subTest(name):
                before = tree(self.path("spools"))
                self.refused(lambda: other.watch(self.path("b-replica"), spool_dir=name), self.path("a.db"))
                self.refused(lambda: a.watch(self.path("c-replica"), conn="c", spool_dir=name), self.path("a.db"))
                self.assertEqual(tree(self.path("spools")), before)
        self.assertFalse(os.path.exists(self.path("spools", "a", "b")))
        other.watch(self.path("b-replica"), spool_dir=self.path("spools", "b"))
        self.check("a", a)

    def test_both_at_one_moment(self):
        for round_ in range(6):
            spool, names = self.path(f"spool-{round_}"), [f"x{round_}", f"y{round_}"]
            peers = [self.peer().open(self.path(f"{n}.db")) for n in names]
            for n, p in zip(names, peers):
                options = json.dumps({"spool_dir": spool})
                p.send(op="sql", conn="main", sql="SELECT walrust_watch(?, ?)", params=[self.path(f"{n}-replica"), options])
            begun = []
            for n, p in zip(names, peers):
                try:
                    p.wait()
                    begun.append((n, p))
                except door.SqlError as e:
                    self.assertErrorLine(str(e), spool)
            self.assertLessEqual(len(begun), 1, f"round {round_}")
            for n, p in begun:
                p.sql("CREATE TABLE t(who)")
                p.sql("INSERT INTO t VALUES (?)", n)
                self.check(n, p)
            for p in peers:
                p.kill()

    def test_a_database_that_was_moved_keeps_its_spool(self):
        spool = self.path("spool")
        a = self.streamed("a", spool_dir=spool)
        a.end()
        last = 0
        for old, new, how in (("a.db", "renamed.db", os.rename), ("renamed.db", "other-disk.db", shutil.copy),
                              ("other-disk.db", "elsewhere/a.db", shutil.copy)):
            os.makedirs(os.path.dirname(self.path(new)), exist_ok=True)
            how(self.path(old), self.path(new))
            if os.path.exists(self.path(old)):
                os.remove(self.path(old))
            p = self.peer().open(self.path(new))
            p.watch(self.path("a-replica"), interval="0s", snapshot_interval="0", spool_dir=spool)
            p.sql("INSERT INTO t VALUES (?)", new)
            txid = p.sync()
            out, at = self.restore(self.path("a-replica"))
            self.assertEqual(at, txid)
            self.assertSameBytes(self.path(new), out)
            self.assertGreater(txid, last)
            last = txid
            p.end()

    def test_a_restored_database_keeps_its_spool(self):
        a = self.streamed("a")
        a.end()
        os.rename(self.path("a.db"), self.path("away.db"))
        self.restore(self.path("a-replica"), self.path("a.db"))
        a = self.streamed("a")
        self.assertEqual(a.rows("SELECT who FROM t"), [("a",), ("a",)])
        self.check("a", a)

    def test_a_copied_directory_is_another_database(self):
        os.mkdir(self.path("one"))
        a = self.peer().open(self.path("one", "a.db"))
        a.watch(self.path("r1"))
        a.sql("CREATE TABLE t(v)")
        a.sync()
        a.end()
        shutil.copytree(self.path("one"), self.path("two"))
        peers = []
        for n, where in enumerate(("one", "two"), 1):
            p = self.peer().open(self.path(where, "a.db"))
            p.watch(self.path(f"r{n}"))
            p.sql("INSERT INTO t VALUES (?)", where)
            peers.append((n, where, p))
        for n, where, p in peers:
            txid = p.sync()
            out, at = self.restore(self.path(f"r{n}"))
            self.assertEqual(at, txid)
            self.assertSameBytes(self.path(where, "a.db"), out)

    def test_a_spool_whose_database_is_gone_is_taken_over(self):
        spool = self.path("spool")
        a = self.streamed("a", spool_dir=spool)
        b = self.peer().open(self.path("b.db"))
        os.remove(self.path("a.db"))
        # Not while a process has it.
        self.refused(lambda: b.watch(self.path("b-replica"), spool_dir=spool), spool, str(a.pid))
        a.kill()
        b.watch(self.path("b-replica"), spool_dir=spool)
        b.sql("CREATE TABLE t(who)")
        b.sql("INSERT INTO t VALUES ('b')")
        self.check("b", b)
        again = self.peer().open(self.path("a.db"))
        self.refused(lambda: again.watch(self.path("a-replica"), spool_dir=spool), self.path("b.db"))

    def test_a_file_of_another_history_never_leaves(self):
        a, b = self.streamed("a"), self.streamed("b")
        for n in range(4):
            b.sql("INSERT INTO t VALUES (?)", n)
            b.sync()
        replica, away = self.path("a-replica"), self.path("away")
        os.rename(replica, away)
        with open(replica, "w"):
            pass
        a.sql("INSERT INTO t VALUES ('waits')")
        pending = self.path("a.db-walrust", "pending")
        waiting = self.eventually(lambda: sorted(n for n in os.listdir(pending) if n.endswith(".ltx")), what="a file that waits")
        a.kill()
        txid = waiting[0].removesuffix(".ltx")
        foreign = [p for _, low, high, p in door.ltx_files(self.path("b-replica"), 0) if low == high == int(txid, 16)]
        self.assertTrue(foreign, txid)
        shutil.copy(foreign[0], os.path.join(pending, waiting[0]))
        with open(foreign[0], "rb") as f:
            foreign = f.read()
        os.remove(replica)
        os.rename(away, replica)
        a = self.streamed("a")
        self.check("a", a)
        for _, _, _, path in door.ltx_files(replica):
            with open(path, "rb") as f:
                self.assertNotEqual(f.read(), foreign, path)

    def test_a_refused_watch_leaves_the_queue(self):
        self.streamed("other").end()
        a = self.streamed("a", sync_timeout="1s", retry={"max": "200ms", "breaker_threshold": 1000})
        replica, away, spool = self.path("a-replica"), self.path("away"), self.path("a.db-walrust")
        os.rename(replica, away)
        with open(replica, "w"):
            pass
        for n in range(5):
            a.sql("INSERT INTO t VALUES (?)", n)
        self.eventually(lambda: os.listdir(os.path.join(spool, "pending")), what="files that wait")
        with self.assertRaises(door.SqlError):
            a.sql("SELECT walrust_unwatch()")
        before, waiting = tree(spool), os.listdir(os.path.join(spool, "pending"))
        self.assertTrue(waiting)
        self.refused(lambda: a.watch(self.path("other-replica")), "another database's history")
        with open(self.path("file"), "w"):
            pass
        self.refused(lambda: a.watch(self.path("file")), "directory")
        self.assertEqual(tree(spool), before)
        os.remove(replica)
        os.rename(away, replica)
        history = self.lineages(spool)
        a.watch(replica, interval="0s", snapshot_interval="0")
        a.sql("INSERT INTO t VALUES ('on')")
        txid = self.check("a", a)
        self.assertEqual(self.lineages(spool), history, "one history")
        self.assertEqual(len([f for f in door.ltx_files(replica) if f[1] == 1]), 1, "one snapshot")
        numbers = [f[1] for f in door.ltx_files(replica, 0)]
        self.assertEqual(numbers, list(range(numbers[0], txid + 1)))


class Replicas(Whose):
    def elsewhere(self, p, mine, theirs):
        """What a process is told whose database another one ships to `theirs`."""
        text = self.refused(lambda: p.sync(20), mine, theirs)
        s = p.status()
        self.assertEqual((s["state"], s["replica"], s["replicated_txid"]), ("standby", f"file://{mine}", 0))
        self.assertIn(s["last_error"], text)
        self.assertIsNone(s["last_upload"])

    def test_another_process_ships_to_another_replica(self):
        port = door.free_port()
        first = self.streamed("a")
        db, mine, theirs = self.path("a.db"), self.path("mine"), self.path("a-replica")
        second = self.peer(env={"WALRUST_METRICS_LISTEN": f"127.0.0.1:{port}"}).open(db)
        self.assertIn("to another replica", second.watch(mine, interval="0s"))
        second.sql("INSERT INTO t VALUES ('second')")
        self.elsewhere(second, mine, theirs)
        self.eventually(lambda: second.status()["lag_seconds"] > 0.5, what="a lag")

        def health():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as r:
                    return r.status
            except urllib.error.HTTPError as e:
                return e.code

        self.assertEqual(health(), 503)
        careful = self.peer().open(db)
        careful.watch(mine, durability="sync", sync_timeout="5s")
        self.refused(lambda: careful.sql("INSERT INTO t VALUES ('third')"))
        careful.kill()
        done = self.run_cli("sync", db, mine, "--timeout", "5")
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertIn(theirs, done.stderr)
        self.assertFalse(os.path.exists(mine))
        # The first one's replica has all of it meanwhile, and its end makes room.
        self.check("a", first)
        first.end()
        self.eventually(lambda: second.status()["state"] != "standby", what="the second ships")
        second.sql("INSERT INTO t VALUES ('on')")
        self.check("a", second, mine)
        self.assertIsNone(second.status()["last_error"])
        self.assertEqual(health(), 200)

    def test_the_process_that_ships_elsewhere_is_killed(self):
        first = self.streamed("a")
        second = self.peer().open(self.path("a.db"))
        second.watch(self.path("mine"), interval="0s")
        self.elsewhere(second, self.path("mine"), self.path("a-replica"))
        first.kill()
        self.eventually(lambda: second.status()["state"] != "standby", what="the second ships")
        self.check("a", second, self.path("mine"))

    def test_a_uri_that_names_another_replica(self):
        p = self.peer()
        p.open(":memory:", "first")
        p.load("first")
        p.open(f"file:{self.path('a.db')}?replica={self.path('one')}", "main", uri=True)
        p.sql("CREATE TABLE t(x)")
        p.sync()
        p.open(f"file:{self.path('a.db')}?replica={self.path('two')}", "second", uri=True)
        p.sql("INSERT INTO t VALUES (1)", conn="second")
        rows = p.rows("SELECT state, last_error FROM walrust_status WHERE last_error IS NOT NULL")
        self.assertEqual([r[0] for r in rows], ["failed"])
        self.assertIn(self.path("one"), rows[0][1])
        self.assertIn(self.path("two"), rows[0][1])
        self.assertFalse(os.path.exists(self.path("two")))

    def test_the_command_line_says_whose_numbers_they_are(self):
        first = self.streamed("a")
        self.streamed("b", spool_dir=self.path("spool-b")).end()
        first.sync()
        toml = self.path("w.toml")
        with open(toml, "w") as f:
            f.write(f'replica = "{self.path("elsewhere-{name}")}"\n')

        def status(name, **env):
            done = self.run_cli("status", self.path(f"{name}.db"), "--json", env=env)
            row = json.loads(done.stdout)[0]
            self.assertEqual(done.returncode, 0 if row["health"] == "healthy" else 1, done.stderr)
            return row

        row = status("a")
        self.assertEqual((row["replica"], row["state"], row["last_error"]), (f"file://{self.path('a-replica')}", "streaming", None))
        row = status("a", WALRUST_CONFIG=toml)
        self.assertEqual((row["replica"], row["replicated_txid"]), (f"file://{self.path('elsewhere-a')}", 0))
        self.assertIn(self.path("a-replica"), row["last_error"])
        before = tree(self.path("spool-b"))
        row = status("a", WALRUST_SPOOL_DIR=self.path("spool-b"))
        self.assertEqual((row["state"], row["txid"], row["replicated_txid"]), ("failed", 0, 0))
        self.assertIn(self.path("b.db"), row["last_error"])
        self.assertEqual(tree(self.path("spool-b")), before)

    def test_a_replica_by_another_name_is_the_same(self):
        a = self.streamed("a")
        real, spool = self.path("a-replica"), self.path("a.db-walrust")
        history = self.lineages(spool)
        os.symlink(real, self.path("link"))
        # In the process that watches, and in one beside it.
        self.assertIn("already", a.watch(self.path("link")))
        second = self.peer().open(self.path("a.db"))
        second.watch(f"file://{self.path('link')}/", interval="0s")
        second.sql("INSERT INTO t VALUES ('second')")
        self.assertEqual(second.sync(), second.status()["replicated_txid"])
        self.assertIsNone(second.status()["last_error"])
        second.end()
        a.end()
        for n, name in enumerate((self.path("link"), real + "/", f"file://{real}", self.path("copied"), self.path("link"))):
            with door.plain_connect(self.path("a.db")) as c:
                c.execute("INSERT INTO t VALUES ('unseen')")
            c.close()
            if name == self.path("copied"):
                # What is not the same by any name: known by what it holds.
                os.rename(real, name)
                os.remove(self.path("link"))
                os.symlink(name, self.path("link"))
            a = self.peer().open(self.path("a.db"))
            a.watch(name, interval="0s", snapshot_interval="0")
            self.check("a", a, name)
            a.end()
        self.assertEqual(self.lineages(spool)[: len(history)], history, "the spool knows it all along")
