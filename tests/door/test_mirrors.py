"""Mirrors: several replicas of one database, each at its own pace, and no COMMIT waits for one that is away."""

import contextlib
import glob
import json
import os
import re
import shutil
import signal
import sqlite3
import time
import unittest

import pyrage

import door


class Mirrored(door.DoorTest):
    """A database whose replica is a directory, with mirrors in an S3 server and in another directory."""

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.db = self.path("app.db")
        self.replica, self.disk = self.path("replica"), self.path("mirror")
        self.cloud = self.s3.url("mirror", self.proxy.endpoint)
        self.mirrors = [self.cloud, self.disk]

    def streaming(self, **options):
        p = self.peer(env=self.s3.env()).open(self.db)
        p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
        p.watch(self.replica, mirrors=self.mirrors, **{"interval": "0s", **options})
        return p

    def rows(self, p):
        """{replica: row} of walrust_status."""
        named = ", ".join(door.STATUS_COLUMNS)
        rows = [dict(zip(door.STATUS_COLUMNS, r)) for r in p.rows(f"SELECT {named} FROM walrust_status")]
        return {r["replica"].split("?")[0].removeprefix("file://"): r for r in rows}

    def row(self, p, url):
        return self.rows(p)[url.split("?")[0].removeprefix("file://")]

    def insert(self, p, n, blob=100):
        for i in range(n):
            p.sql("INSERT INTO t(v) VALUES(randomblob(?))", blob)

    def sync(self, p, which="all", timeout=60):
        return p.sql("SELECT walrust_sync(?, ?)", timeout, which)

    def restores(self, url):
        with contextlib.suppress(door.SqlError):
            return self.restore(url, env=self.s3.env())

    def assertAllEqual(self, urls=None):
        for url in urls or [self.replica, *self.mirrors]:
            restored, _ = self.restore(url, env=self.s3.env())
            self.assertSameBytes(restored, self.db, url)


class Pace(Mirrored):
    def test_the_same_files_reach_every_one(self):
        p = self.streaming()
        self.insert(p, 5)
        txid = self.sync(p)
        self.insert(p, 20)
        self.assertGreater(self.sync(p), txid)
        rows = self.rows(p)
        self.assertEqual(len(rows), 3)
        for url, row in rows.items():
            self.assertEqual((row["state"], row["replicated_txid"], row["lag_seconds"], row["last_error"]),
                             ("streaming", row["txid"], 0.0, None), url)
        self.assertAllEqual()
        for url in (self.replica, self.cloud, self.disk):
            self.shell(f"SELECT walrust_verify({door.quote(url)}, 'deep');", env=self.s3.env())
        # What both directories have of level 0 is the same, byte for byte, from the mirror's first snapshot on.
        own = {os.path.basename(path): path for _, _, _, path in door.ltx_files(self.replica, 0)}
        theirs = {os.path.basename(path): path for _, _, _, path in door.ltx_files(self.disk, 0)}
        shared = set(own) & set(theirs)
        self.assertTrue(shared)
        for name in shared:
            with open(own[name], "rb") as a, open(theirs[name], "rb") as b:
                self.assertEqual(a.read(), b.read())

    def test_a_mirror_that_is_away_holds_nothing_up_and_catches_up(self):
        p = self.streaming()
        self.insert(p, 3)
        self.sync(p)
        self.proxy.fault = lambda method, path: ("drop",)
        self.insert(p, 40)
        self.assertEqual(p.sync(10), p.status()["txid"], "the replica")
        self.assertEqual(self.sync(p, 2, 10), p.status()["txid"], "the replica and the directory")
        with self.assertRaisesRegex(door.SqlError, r"is in 2 of the 3 replicas asked for; the mirror s3://.*"):
            self.sync(p, "all", 1)
        away = self.eventually(lambda: (r := self.row(p, self.cloud)) if (r := self.row(p, self.cloud))["last_error"] else None)
        self.assertGreater(away["pending_bytes"], 0)
        self.assertGreater(away["lag_seconds"], 0)
        self.assertEqual(self.row(p, self.replica)["state"], "streaming")
        self.proxy.fault = None
        self.sync(p)
        self.assertAllEqual()
        # It came from the queue, not by a snapshot: of level 0 nothing is missing.
        files = self.shell(f"SELECT min_txid FROM walrust_files({door.quote(self.cloud)}) WHERE level = 0 ORDER BY 1;",
                           env=self.s3.env())
        numbers = [int(n) for n in files.split()]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))

    def test_a_replica_that_is_away_holds_no_mirror_up(self):
        self.replica, self.mirrors = self.cloud, [self.disk]
        p = self.streaming()
        self.insert(p, 3)
        self.sync(p)
        self.proxy.fault = lambda method, path: ("drop",)
        for _ in range(5):
            self.insert(p, 5)
            txid = self.sync(p, "any", 20)
            self.assertEqual(self.row(p, self.disk)["replicated_txid"], txid)
        restored, at = self.restore(self.disk)
        self.assertEqual(at, txid)
        self.assertSameBytes(restored, self.db)
        self.proxy.fault = None
        self.sync(p)
        self.assertAllEqual()

    def test_one_that_was_away_for_too_long_gets_a_snapshot(self):
        p = self.streaming(spool_limit="1MiB")
        self.insert(p, 3)
        self.sync(p)
        self.proxy.fault = lambda method, path: ("drop",)
        for _ in range(30):
            self.insert(p, 1, 100_000)
            p.sync(20)
        for queue in os.listdir(self.path("app.db-walrust/mirror")):
            self.assertLess(door.file_bytes(self.path("app.db-walrust/mirror", queue, "pending")), 1 << 20)
        self.proxy.fault = None
        self.sync(p)
        self.assertAllEqual()
        self.shell(f"SELECT walrust_verify({door.quote(self.cloud)}, 'deep');", env=self.s3.env())

    def test_a_mirror_that_is_added_later_begins_with_a_snapshot(self):
        self.mirrors = []
        p = self.streaming()
        self.insert(p, 10)
        p.sync(30)
        before = len(door.ltx_files(self.replica, 9))
        self.mirrors = [self.disk]
        p.watch(self.replica, mirrors=self.mirrors, interval="0s")
        self.sync(p)
        self.assertAllEqual()
        self.assertEqual(len(door.ltx_files(self.replica, 9)), before, "the replica needs no other")

    def test_an_emptied_mirror_begins_anew_and_says_so_meanwhile(self):
        self.mirrors = [self.disk]
        p = self.streaming()
        self.insert(p, 10)
        self.sync(p)
        p.end()
        shutil.rmtree(self.disk)
        p = self.streaming()
        self.insert(p, 1)
        self.sync(p)
        self.assertAllEqual()


    def test_unwatch_and_explain_know_of_mirrors(self):
        p = self.streaming(interval="1h")
        self.sync(p)
        self.insert(p, 3)
        report = p.sql("SELECT walrust_explain()")
        self.assertEqual(report.count("(mirror)"), 2)
        self.assertIn(self.disk, report)
        txid = p.sql("SELECT walrust_unwatch()")
        for url in (self.replica, *self.mirrors):
            self.assertEqual(self.restore(url, env=self.s3.env())[1], txid, url)


class Trouble(Mirrored):
    def test_one_slow_one_away_and_one_damaged_are_all_complete_afterwards(self):
        """The replica is a directory; of three mirrors in two servers and on a disk each has a trouble of its own."""
        second = door.S3(self)
        proxy = door.FaultProxy(self, second.port)
        # The other server has keys of its own.
        os.mkdir(self.path(".aws"))
        with open(self.path(".aws", "credentials"), "w") as f:
            f.write(f"[elsewhere]\naws_access_key_id = {second.env()['AWS_ACCESS_KEY_ID']}\n"
                    f"aws_secret_access_key = {second.env()['AWS_SECRET_ACCESS_KEY']}\n")
        slow = second.url("slow", proxy.endpoint) + "&profile=elsewhere"
        self.mirrors.append(slow)
        p = self.streaming(validation_interval="1s", retry={"base": "20ms", "max": "500ms"})
        self.insert(p, 5)
        self.sync(p)
        proxy.fault = lambda method, path: ("delay", 0.3)
        self.proxy.fault = lambda method, path: ("drop",)
        for _, _, _, path in door.ltx_files(self.disk):
            with open(path, "r+b") as f:
                f.truncate(max(1, os.path.getsize(path) - 7))
        behind = 0
        for _ in range(20):
            self.insert(p, 2, 2000)
            txid = p.sync(30)
            behind += (self.row(p, slow)["replicated_txid"] or 0) < txid
            self.assertEqual(txid, p.status()["txid"])
            time.sleep(0.1)
        self.assertGreater(behind, 0, "a sync returned while the slow mirror had less: nobody waits for it")
        self.eventually(lambda: self.row(p, self.disk)["last_error"], what="the damage is found")
        self.proxy.fault = None
        self.sync(p)
        self.eventually(lambda: self.restores(self.disk), what="a snapshot mends it", timeout=60)
        self.insert(p, 1)
        self.sync(p)
        self.assertAllEqual()

    def test_webhooks_say_which_mirror(self):
        hook = door.Hook(self)
        p = self.streaming(webhooks=[hook.url], retry={"base": "20ms", "max": "200ms"})
        self.insert(p, 3)
        self.sync(p)
        self.proxy.fault = lambda method, path: ("drop",)
        self.insert(p, 3)
        told = self.eventually(lambda: hook.events("upload_error"))
        self.assertIn("mirror s3://", told[0]["message"])
        self.assertEqual({e["context"]["mirror"].split("?")[0] for e in told}, {self.cloud.split("?")[0]})
        self.proxy.fault = None
        self.sync(p)
        self.eventually(lambda: hook.events("recovered"))


class Processes(Mirrored):
    def test_a_process_that_does_not_ship_waits_for_mirrors_too(self):
        self.mirrors = [self.disk]
        p = self.streaming()
        self.sync(p)
        q = self.peer().open(self.db)
        q.watch(self.replica, mirrors=self.mirrors, interval="0s")
        self.insert(q, 5)
        txid = self.sync(q)
        row = self.row(q, self.disk)
        self.assertEqual((row["state"], row["replicated_txid"]), ("standby", txid))
        # That one ends, and this one serves the mirror.
        p.kill()
        self.insert(q, 5)
        self.sync(q)
        self.assertEqual(self.row(q, self.disk)["state"], "streaming")
        self.assertAllEqual()

    def test_a_program_that_knows_of_no_mirror_leaves_no_hole(self):
        self.mirrors = [self.disk]
        p = self.streaming()
        self.insert(p, 3)
        self.sync(p)
        p.end()
        p = self.peer().open(self.db)
        p.watch(self.replica, interval="0s")
        for _ in range(4):
            self.insert(p, 2)
            p.sync()
        p.end()
        snapshots = len(door.ltx_files(self.disk, 9))
        p = self.streaming()
        self.insert(p, 1)
        self.sync(p)
        self.assertAllEqual()
        self.assertEqual(len(door.ltx_files(self.disk, 9)), snapshots, "what it lacked was kept for it")


    def test_a_beginning_that_was_interrupted_is_made_again_while_nobody_writes(self):
        """A process died when the queue had begun, and the snapshot that it begins with was not there yet."""
        self.mirrors = []
        p = self.streaming()
        self.insert(p, 5)
        txid = p.sync()
        self.mirrors = [self.disk]
        p.watch(self.replica, mirrors=self.mirrors, interval="0s")
        self.sync(p)
        p.end()
        (queue,) = os.listdir(self.path("app.db-walrust/mirror"))
        queue = self.path("app.db-walrust/mirror", queue)
        with open(os.path.join(queue, "mirror.json")) as f:
            record = json.load(f)
        with open(os.path.join(queue, "mirror.json"), "w") as f:
            json.dump({**record, "from": txid}, f)
        os.remove(os.path.join(queue, "shipped.json"))
        shutil.rmtree(self.disk)
        p = self.streaming()
        self.assertGreaterEqual(self.sync(p, timeout=20), txid)
        self.assertAllEqual()


class Identity(Mirrored):
    def test_anothers_history_is_left_alone(self):
        self.mirrors = [self.disk]
        other = self.peer().open(self.path("other.db"))
        other.sql("CREATE TABLE o(v)")
        other.watch(self.disk)
        other.sync()
        other.end()
        before = door.tree(self.disk)
        p = self.streaming()
        self.insert(p, 3)
        p.sync(30)
        row = self.eventually(lambda: (r if (r := self.row(p, self.disk))["last_error"] else None))
        self.assertEqual(row["state"], "failed")
        self.assertErrorLine(row["last_error"], "another database's history", "empty place")
        self.assertEqual(self.row(p, self.replica)["state"], "streaming")
        self.assertEqual(door.tree(self.disk), before)

    def test_what_cannot_be_a_mirror_is_refused_in_one_line(self):
        p = self.peer().open(self.db)
        p.sql("CREATE TABLE t(v)")
        for mirrors, words in [
            ([self.replica], "is the replica already, or named twice"),
            ([self.disk, self.disk + "/"], "named twice"),
            ([{"url": self.disk}], "unknown key .url.; a mirror has replica"),
            ([{"replica": self.disk, "interval": "1s"}], "unknown key .interval.; a mirror has replica, pitr_window"),
            ([{"replica": self.disk, "retention": {"daily": -1}}], "retention.daily: must be a whole number"),
            ([{"pitr_window": "1h"}], "has no replica"),
            ([""], "must not be empty"),
            (["ftp://x/y"], "ftp"),
            ([self.db + "-walrust/mirror"], "lies in the spool"),
            (7, "URLs of replicas"),
        ]:
            with self.assertRaises(door.SqlError) as e:
                p.watch(self.replica, mirrors=mirrors)
            self.assertErrorLine(str(e.exception), words)
        self.assertFalse(os.path.exists(self.replica))
        p.watch(self.replica, mirrors=[self.disk])
        for which in ("most", 0, 3, b"x"):
            with self.assertRaises(door.SqlError) as e:
                self.sync(p, which)
            self.assertErrorLine(str(e.exception), "allowed: ")

    def test_what_holds_for_one_mirror_alone(self):
        key = pyrage.x25519.Identity.generate()
        with open(self.path("identity.txt"), "w") as f:
            f.write(str(key))
        config = door.toml(self, f"""
            pitr_window = "1h"
            snapshot_interval = "300ms"
            interval = "0s"
            [[databases]]
            path = "{self.db}"
            replica = "{self.replica}"
            [[databases.mirror]]
            replica = "{self.cloud}"
            [databases.mirror.storage_class]
            snapshot = "STANDARD_IA"
            [[databases.mirror]]
            replica = "{self.disk}"
            encrypt = ["{key.to_public()}"]
            pitr_window = "100ms"
            retention = {{ hourly = 1, daily = 1, weekly = 1, monthly = 1 }}
            """)
        p = self.peer(env=self.s3.env(WALRUST_CONFIG=config)).open(self.db)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        shown = p.sql("SELECT value FROM walrust_config WHERE name = 'mirrors'")
        self.assertIn(f"{self.disk} (encrypt {key.to_public()}, pitr_window 100ms, retention.daily 1, ", shown)

        def files(directory):
            return {(level, low, high) for level, low, high, _ in door.ltx_files(directory)}

        def is_thinned():
            self.insert(p, 3, 20_000)
            self.sync(p)
            first = min(files(self.replica), key=lambda f: (f[1], f[0]))
            return len(files(self.disk)) < len(files(self.replica)) / 2 and first[1] == 1

        try:
            self.eventually(is_thinned, what="retention of one mirror alone", timeout=60)
        except AssertionError as e:
            self.fail(f"{e}: {len(files(self.disk))} files there, {len(files(self.replica))} in the replica; {self.rows(p)}")
        p.end()
        for _, _, _, path in door.ltx_files(self.disk):
            with open(path, "rb") as f:
                self.assertTrue(f.read().startswith(b"age-encryption.org/v1\n"), path)
        for _, _, _, path in door.ltx_files(self.replica):
            with open(path, "rb") as f:
                self.assertEqual(f.read(4), b"LTX1", path)
        classes = {o["StorageClass"] for o in self.s3.client("s3").list_objects_v2(Bucket="bucket", Prefix="mirror/0009/")["Contents"]}
        self.assertEqual(classes, {"STANDARD_IA"})
        for url in (self.replica, self.cloud, self.disk):
            restored, _ = self.restore(url, env=self.s3.env(WALRUST_IDENTITY=self.path("identity.txt")))
            self.assertSameBytes(restored, self.db, url)

    def test_two_databases_do_not_share_one(self):
        self.mirrors = [self.disk]
        p = self.streaming()
        p.open(self.path("b.db"), conn="b")
        p.sql("CREATE TABLE t(v)", conn="b")
        for options in ({"mirrors": [self.disk]}, {"mirrors": [self.replica]}):
            with self.assertRaisesRegex(door.SqlError, "would share the replica"):
                p.sql("SELECT walrust_watch(?, ?)", self.path("b-replica"), json.dumps(options), conn="b")
        with self.assertRaisesRegex(door.SqlError, "would share the replica"):
            p.watch(self.disk, conn="b")


class Configured(Mirrored):
    def test_by_the_file_for_programs_that_live_for_a_moment(self):
        config = self.path("walrust.toml")
        with open(config, "w") as f:
            f.write(f'[[databases]]\npath = "{self.db}"\nreplica = "{self.replica}"\n'
                    f'[[databases.mirror]]\nreplica = "{self.disk}/{{name}}"\n')
        env = {"WALRUST_CONFIG": config}
        for i in range(5):
            self.shell(f".open {self.db}\nCREATE TABLE IF NOT EXISTS t(v); INSERT INTO t VALUES({i});", env=env)
        # What the last one had no time for, the next one brings.
        self.shell(f".open {self.db}\nSELECT walrust_sync(60, 'all') > 0;", env=env)
        for url in (self.replica, self.path("mirror/app")):
            restored, _ = self.restore(url)
            self.assertEqual(door.plain_rows(restored, "SELECT count(*) FROM t"), [(5,)], url)


class Restore(Mirrored):
    """A restore goes on to a mirror by itself where the replica is away or damaged."""

    def damage(self):
        for _, _, _, path in door.ltx_files(self.replica):
            with open(path, "r+b") as f:
                f.seek(-20, os.SEEK_END)
                f.write(b"damaged bytes here!!")

    def streamed(self):
        self.mirrors = [self.disk]
        p = self.streaming()
        self.insert(p, 20)
        txid = self.sync(p)
        p.end()
        return txid

    def test_from_a_mirror_that_is_named(self):
        txid = self.streamed()
        self.damage()
        with self.assertRaises(door.SqlError):
            self.restore(self.replica)
        restored, at = self.restore(self.replica, mirrors=[self.path("nothing-here"), self.disk])
        self.assertEqual(at, txid)
        self.assertSameBytes(restored, self.db)
        shutil.rmtree(self.replica)
        restored, _ = self.restore(self.replica, mirrors=self.disk)
        self.assertSameBytes(restored, self.db)

    def test_each_gives_what_it_has_sound(self):
        self.mirrors = [self.disk]
        p = self.streaming()
        for _ in range(8):
            self.insert(p, 1)
            txid = self.sync(p)
        p.end()
        own = {os.path.basename(path): path for _, _, _, path in door.ltx_files(self.replica, 0)}
        theirs = {os.path.basename(path): path for _, _, _, path in door.ltx_files(self.disk, 0)}
        both = sorted(set(own) & set(theirs))
        self.assertGreater(len(both), 3, both)
        os.remove(own[both[0]])
        for path in (own[both[1]], theirs[both[2]]):
            with open(path, "r+b") as f:
                f.seek(os.path.getsize(path) // 2)
                byte = f.read(1)
                f.seek(-1, os.SEEK_CUR)
                f.write(bytes([byte[0] ^ 1]))
        for path in glob.glob(os.path.join(self.replica, "ltx", "9", "*")) + glob.glob(os.path.join(self.disk, "ltx", "9", "*")):
            if int(os.path.basename(path)[17:33], 16) >= int(both[0][:16], 16):
                os.remove(path)
        for place in (self.replica, self.disk):
            with self.assertRaises(door.SqlError):
                self.restore(place)
        with self.assertRaises(door.SqlError):
            self.restore(self.replica)
        done = self.run_cli("restore", self.replica, self.path("out.db"), "--mirror", self.disk)
        self.assertEqual(done.returncode, 0, done.stderr)
        said = re.search(r"restored with (\d+) of (\d+) files from the mirror \S*mirror,", done.stderr)
        self.assertTrue(said, done.stderr)
        # (And the full copy that it begins with, perhaps.)
        self.assertIn(int(said[1]), (2, 3))
        self.assertLess(int(said[1]), int(said[2]))
        self.assertSameBytes(self.path("out.db"), self.db)
        restored, at = self.restore(self.replica, mirrors=[self.disk])
        self.assertEqual(at, txid)
        self.assertSameBytes(restored, self.db)

    def test_from_a_mirror_that_is_configured_and_says_so(self):
        self.streamed()
        self.damage()
        with open(self.path("walrust.toml"), "w") as f:
            f.write(f'[[databases]]\npath = "{self.db}"\nreplica = "{self.replica}"\nmirror = ["{self.disk}"]\n')
        kept = self.path("kept.db")
        os.rename(self.db, kept)
        for side in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.db + side)
        done = self.run_cli("restore", self.replica, self.db, env={"WALRUST_CONFIG": self.path("walrust.toml")})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("restored from the mirror", done.stderr)
        self.assertSameBytes(self.db, kept)

    def test_the_replicas_error_is_told_where_no_mirror_helps(self):
        self.streamed()
        self.damage()
        shutil.rmtree(self.disk)
        said = []
        for options in ({}, {"mirrors": [self.disk]}):
            with self.assertRaises(door.SqlError) as e:
                self.restore(self.replica, **options)
            said.append(str(e.exception))
        self.assertEqual(said[0], said[1])


class Kills(Mirrored):
    def test_kills_lose_nothing_in_any_of_them(self):
        for n in range(door.rounds(6)):
            p = self.streaming(levels=["1s"], snapshot_interval="2s")
            before = [r[0] for r in p.rows("SELECT id FROM t")]
            if n % 3 == 1:
                self.proxy.fault = lambda method, path: ("drop",) if self.random.random() < 0.3 else None
            with contextlib.suppress(door.SqlError, AssertionError):
                for _ in range(self.random.randrange(2, 40)):
                    self.insert(p, 1, self.random.choice([10, 1000, 20_000]))
                    if self.random.random() < 0.2:
                        p.sync(20)
            p.kill()
            self.proxy.fault = None
            self.assertLessEqual(len(before), door.plain_rows(self.db, "SELECT count(*) FROM t")[0][0])
        p = self.streaming()
        self.insert(p, 1)
        self.sync(p)
        p.end()
        self.assertAllEqual()
        for url in (self.replica, *self.mirrors):
            self.shell(f"SELECT walrust_verify({door.quote(url)}, 'deep');", env=self.s3.env())

    def test_sync_durability_and_a_refused_commit_reach_no_mirror(self):
        """What never came to be for the replica is in no mirror either."""
        self.replica, self.mirrors = self.cloud, [self.disk]
        p = self.streaming(durability="sync", sync_timeout="1s")
        self.insert(p, 3)
        self.sync(p)
        self.proxy.fault = lambda method, path: ("drop",) if method == "PUT" and "/0000/" in path else None
        for _ in range(3):
            with contextlib.suppress(door.SqlError):
                p.sql("INSERT INTO t(v) VALUES('refused')")
        self.proxy.fault = None
        self.insert(p, 3)
        self.sync(p)
        self.assertAllEqual()
        self.assertEqual(p.sql("SELECT count(*) FROM t WHERE v = 'refused'"), 0)


if __name__ == "__main__":
    unittest.main()
