"""`encrypt`: each LTX file of a replica is an age file, which age's own programs open and nobody without the identity does."""

import glob
import json
import os
import shutil
import subprocess
import time
import unittest

import pyrage

import door
from door import SqlError, quote

#: Stands in the database, in the clear.
PLANTED = "PLANTED-IN-THE-CLEAR-d41d8cd9"


def contents(directory):
    """{path: bytes} of all below a directory."""
    found = {}
    for base, _, names in os.walk(directory):
        for path in (os.path.join(base, name) for name in names):
            with open(path, "rb") as f:
                found[path] = f.read()
    return found


class AgeTest(door.DoorTest):
    """A database, an identity and its recipient, another identity."""

    def setUp(self):
        super().setUp()
        self.identity, self.recipient = self.pair("identity")
        self.others, _ = self.pair("others")
        self.replica = self.path("replica")
        self.db = self.path("app.db")

    def pair(self, name):
        """The path of a new identity's file, and its recipient."""
        key = pyrage.x25519.Identity.generate()
        path = self.path(name + ".txt")
        with open(path, "w") as f:
            f.write(f"# public key: {key.to_public()}\n{key}\n")
        return path, str(key.to_public())

    def opener(self, path=None):
        """What lets a process read."""
        return {"WALRUST_IDENTITY": path or self.identity}

    def streaming(self, replica=None, env=None, encrypt=True, **options):
        p = self.peer(env=env).open(self.db)
        p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
        keys = {"encrypt": [self.recipient]} if encrypt else {}
        p.watch(replica or self.replica, **{"interval": "0s", **keys, **options})
        return p

    def fill(self, p, n=20, large=True):
        """Some commits of planted text, and one that makes a large file."""
        for i in range(n):
            p.sql("INSERT INTO t(v) VALUES(?)", f"{PLANTED} {i} " * 20)
        if large:
            # (What LZ4 cannot make small.)
            p.sql("WITH n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 700) "
                  "INSERT INTO t(v) SELECT hex(randomblob(2000)) FROM n")
        txid = p.sync()
        p.sql("SELECT walrust_snapshot()")
        return txid

    def decrypted(self, replica, env=None):
        """A copy of a directory replica, its LTX files opened by age's own library: what `age -d` makes of each."""
        out = self.path(f"decrypted-{time.monotonic_ns()}")
        shutil.copytree(replica, out)
        with open(self.identity) as f:
            key = pyrage.x25519.Identity.from_str(f.read().splitlines()[-1])
        for path in self.ltx(out):
            with open(path, "rb") as f:
                clear = pyrage.decrypt(f.read(), [key])
            self.assertEqual(clear[:4], b"LTX1", path)
            stat = os.stat(path)
            with open(path, "wb") as f:
                f.write(clear)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return out

    def ltx(self, replica):
        return sorted(glob.glob(os.path.join(replica, "ltx", "*", "*.ltx")))

    def verify(self, url, mode="deep", env=None):
        """Whether walrust_verify is content, and what it says."""
        call = f"walrust_verify({quote(url)}, {quote(mode)})"
        said = self.shell(f"SELECT {call}; SELECT file, message FROM {call} WHERE severity <> 'ok';", env=env)
        return "Exit code: 0" in said, said

    def assertVerifies(self, url, env=None):
        sound, said = self.verify(url, env=env)
        self.assertTrue(sound, said)


class Streams(AgeTest):
    def test_every_file_is_an_age_file_and_stock_tools_restore_it(self):
        p = self.streaming(levels=["1s", "5s"])
        self.fill(p)

        def is_merged():
            # (What a full copy holds is merged no more: there has to be something after it.)
            p.sql("INSERT INTO t(v) VALUES(?)", PLANTED)
            p.sync()
            return glob.glob(os.path.join(self.replica, "ltx", "1", "*.ltx"))
        self.eventually(is_merged, what="a merged file")
        txid = self.fill(p, large=False)
        p.end()
        files = self.ltx(self.replica)
        self.assertGreater(max(map(os.path.getsize, files)), 1 << 20)
        for path, data in contents(self.replica).items():
            self.assertNotIn(PLANTED.encode(), data, path)
            if path.endswith(".ltx"):
                self.assertTrue(data.startswith(b"age-encryption.org/v1\n"), path)
        # Nothing lies beside the files that tells of their content.
        self.assertEqual(glob.glob(os.path.join(self.replica, "walrust", "blocks-*")), [])
        for path in glob.glob(os.path.join(self.replica, "walrust", "manifest-*.json")):
            with open(path) as f:
                for entry in json.load(f)["files"]:
                    self.assertEqual((entry[6], entry[7], entry[10]), ("0" * 16, "0" * 8, ""), entry)
        out = self.path("by-litestream.db")
        self.litestream("restore", "-integrity-check", "full", "-o", out, f"file://{self.decrypted(self.replica)}")
        self.assertSameBytes(out, self.db)
        restored, at = self.restore(self.replica, env=self.opener())
        self.assertSameBytes(restored, self.db)
        self.assertGreaterEqual(at, txid)

    def test_the_program_age_both_ways(self):
        """`age -d` opens every file, and walrust opens what `age -r` makes of them."""
        p = self.streaming()
        self.fill(p)
        p.end()
        copy = self.path("copy")
        shutil.copytree(self.replica, copy)
        # (What its manifest says is of other age files.)
        shutil.rmtree(os.path.join(copy, "walrust"))
        for path in self.ltx(copy):
            clear = subprocess.run(["age", "-d", "-i", self.identity, path], capture_output=True, check=True).stdout
            self.assertEqual(clear[:4], b"LTX1", path)
            subprocess.run(["age", "-r", self.recipient, "-o", path], input=clear, check=True)
        restored, _ = self.restore(copy, env=self.opener())
        self.assertSameBytes(restored, self.db)
        r = self.peer(env=self.opener()).open(":memory:")
        r.sql(f"ATTACH 'file://{copy}' AS past")
        self.assertEqual(r.rows("PRAGMA past.integrity_check"), [("ok",)])

    def test_an_s3_server_and_a_mirror(self):
        s3 = door.S3(self)
        mirror = self.path("mirror")
        url = s3.url("app")
        p = self.streaming(url, env=s3.env(), mirrors=[mirror])
        self.fill(p)
        p.sql("SELECT walrust_sync(60, 'all')")
        p.end()
        bodies = {key: s3.get(key) for key in s3.keys()}
        self.assertTrue(any(key.endswith(".ltx") for key in bodies))
        for key, data in bodies.items():
            self.assertNotIn(PLANTED.encode(), data, key)
            self.assertEqual(data.startswith(b"age-encryption.org/v1\n"), key.endswith(".ltx"), key)
        for place in (url, mirror):
            restored, _ = self.restore(place, env=s3.env(**self.opener()))
            self.assertSameBytes(restored, self.db, place)
            self.assertVerifies(place, s3.env(**self.opener()))
            self.assertVerifies(place, s3.env())

    def test_a_restart_goes_on_without_an_identity(self):
        p = self.streaming()
        self.fill(p, 3)
        lineage = p.status()["replicated_txid"]
        p.end()
        before = self.ltx(self.replica)
        p = self.streaming()
        p.sql("INSERT INTO t(v) VALUES('after a restart')")
        after = p.sync()
        self.assertEqual(p.status()["state"], "streaming")
        self.assertGreater(after, lineage)
        # It went on: no snapshot of a new lineage, and each file that was there is there.
        self.assertEqual([f for f in self.ltx(self.replica) if "/9/" in f], [f for f in before if "/9/" in f])
        self.assertTrue(set(before) <= set(self.ltx(self.replica)))
        p.kill()
        p = self.streaming()
        p.sql("INSERT INTO t(v) VALUES('after a kill')")
        self.assertGreater(p.sync(), after)
        p.end()
        restored, _ = self.restore(self.replica, env=self.opener())
        self.assertSameBytes(restored, self.db)

    def test_killed_again_and_again_it_never_takes_its_own_file_for_a_rivals(self):
        for i in range(door.rounds(8)):
            p = self.streaming()
            for n in range(3):
                p.sql("INSERT INTO t(v) VALUES(?)", f"{PLANTED} {i} {n}")
                time.sleep(self.random.random() / 50)
            p.kill()
        for n in (1, 2, 5):
            # Between the age file and its PUT.
            dies = self.peer(so=door.CRASH_SO, env={"WALRUST_CRASH": f"ship.sealed:{n}"}).open(self.db)
            with self.assertRaises(AssertionError):
                dies.watch(self.replica, interval="0s", encrypt=[self.recipient])
                for i in range(100):
                    dies.sql("INSERT INTO t(v) VALUES(?)", f"{PLANTED} sealed {n} {i}")
                    dies.sync()
        p = self.streaming()
        p.sql("INSERT INTO t(v) VALUES('last')")
        p.sync()
        self.assertEqual(p.status()["state"], "streaming")
        p.end()
        restored, _ = self.restore(self.replica, env=self.opener())
        self.assertSameBytes(restored, self.db)
        self.assertVerifies(self.replica, self.opener())


class Reads(AgeTest):
    def setUp(self):
        super().setUp()
        p = self.streaming()
        self.first = self.fill(p)
        p.sql("INSERT INTO t(v) VALUES('newest')")
        p.sync()
        self.count = p.sql("SELECT count(*) FROM t")
        p.end()

    def test_in_place_with_the_identity(self):
        r = self.peer(env=self.opener()).open(":memory:")
        r.sql(f"ATTACH 'file://{self.replica}' AS past")
        self.assertEqual(r.rows("PRAGMA past.integrity_check"), [("ok",)])
        self.assertEqual(r.sql("SELECT count(*) FROM past.t"), self.count)
        self.assertEqual(r.sql("SELECT v FROM past.t ORDER BY id DESC LIMIT 1"), "newest")
        r.sql(f"ATTACH 'file://{self.replica}?at={self.first}' AS older")
        self.assertEqual(r.sql("SELECT count(*) FROM older.t"), self.count - 1)

    def test_in_place_over_s3_nothing_is_kept_on_disk(self):
        s3, cache = door.S3(self), self.path("cache")
        os.makedirs(cache)
        url = s3.url("other")
        p = self.streaming(url, env=s3.env(), spool_dir=self.path("other-spool"))
        self.fill(p, 3)
        p.end()
        env = s3.env(**self.opener(), WALRUST_CACHE_DIR=cache)
        r = self.peer(env=env).open(":memory:")
        r.sql(f"ATTACH {quote(url)} AS past")
        self.assertEqual(r.rows("PRAGMA past.integrity_check"), [("ok",)])
        r.end()
        for path, data in contents(cache).items():
            self.assertNotIn(PLANTED.encode(), data, path)

    def test_a_follower_follows(self):
        copy = self.path("copy.db")
        f = self.peer(env=self.opener()).open(":memory:")
        f.sql(f"SELECT walrust_replicate({quote('file://' + self.replica)}, {quote(copy)})")
        p = self.streaming()
        p.sql("INSERT INTO t(v) VALUES('to be followed')")
        p.sync()

        def there():
            return door.plain_rows(copy, "SELECT v FROM t ORDER BY id DESC LIMIT 1") == [("to be followed",)]
        self.eventually(there, what="the follower")

    def test_without_an_identity_one_line_says_what_to_do(self):
        for env, fragments in (({}, ("encrypted", "WALRUST_IDENTITY")),
                               (self.opener(self.others), ("no identity in WALRUST_IDENTITY",)),
                               (self.opener(self.path("absent.txt")), ("WALRUST_IDENTITY", "cannot read the file"))):
            with self.assertRaises(SqlError) as e:
                self.restore(self.replica, env=env)
            for fragment in fragments:
                self.assertIn(fragment, str(e.exception))
            self.assertEqual(str(e.exception).strip().count("\n"), 0)
            r = self.peer(env=env).open(":memory:")
            with self.assertRaises(SqlError):
                r.sql(f"ATTACH 'file://{self.replica}' AS past")
                r.sql("SELECT count(*) FROM past.t")
            r.end()

    def test_a_drill_passes_with_the_identity(self):
        said = self.shell(f"SELECT walrust_drill({quote('file://' + self.replica)}, '{{}}');", env=self.opener())
        self.assertEqual(said.splitlines()[-1], "Result: passed", said)

    def test_each_corruption_is_found(self):
        count = door.rounds(12)
        files = self.ltx(self.replica)
        chunk = (64 << 10) + 16
        self.assertVerifies(self.replica)
        self.assertVerifies(self.replica, self.opener())
        for i in range(count):
            path = self.random.choice(files)
            with open(path, "rb") as f:
                good = f.read()
            kind = ("flip", "cut", "swap", "cut at a chunk", "zero")[i % 5]
            bad = bytearray(good)
            head = good.index(b"\n", good.index(b"\n--- ") + 1) + 1 + 16
            if kind in ("swap", "cut at a chunk") and len(good) - head > 2 * chunk:
                if kind == "swap":
                    bad[head:head + 2 * chunk] = good[head + chunk:head + 2 * chunk] + good[head:head + chunk]
                else:
                    bad = bad[:head + chunk]
            elif kind == "cut":
                bad = bad[:self.random.randrange(len(bad))]
            elif kind == "zero":
                at = self.random.randrange(len(bad) - 20)
                bad[at:at + 20] = bytes(20)
            else:
                bad[self.random.randrange(len(bad))] ^= 1 << self.random.randrange(8)
            if bytes(bad) == good:
                continue
            with open(path, "wb") as f:
                f.write(bad)
            for env in ({}, self.opener()):
                sound, said = self.verify(self.replica, env=env)
                self.assertFalse(sound, f"{kind} of {path} with {sorted(env)}: {said}")
                self.assertIn(os.path.basename(path), said, f"{kind} with {sorted(env)}")
            if len(bad) != len(good):
                self.assertFalse(self.verify(self.replica, "quick")[0], f"{kind}, quick")
            with open(path, "wb") as f:
                f.write(good)


class Rekey(AgeTest):
    """`walrust_rekey`: other recipients for what is there."""

    def setUp(self):
        super().setUp()
        self.new, self.now = self.pair("new")
        self.both = self.path("both.txt")
        with open(self.both, "w") as out:
            for path in (self.identity, self.new):
                with open(path) as f:
                    out.write(f.read())
        self.p = self.streaming()
        self.txid = self.fill(self.p)

    def rekey(self, url, env=None, **options):
        return self.shell(f"SELECT walrust_rekey({quote(url)}, {quote(json.dumps(options))});", env=self.opener() if env is None else env)

    def assertOnlyTheNewOpens(self, url, env={}):
        self.assertVerifies(url, {**env, **self.opener(self.new)})
        self.assertVerifies(url, env)
        restored, _ = self.restore(url, env={**env, **self.opener(self.new)})
        self.assertSameBytes(restored, self.db)
        with self.assertRaises(SqlError) as e:
            self.restore(url, env={**env, **self.opener()})
        self.assertIn("no identity in WALRUST_IDENTITY", str(e.exception))

    def test_what_is_there_opens_for_the_new_keys_only(self):
        self.p.end()
        before = contents(self.replica)
        said = self.rekey(self.replica, encrypt=[self.now])
        self.assertRegex(said, r"Files to encrypt anew: \d+ \(")
        self.assertIn("Dry run", said)
        self.assertEqual(contents(self.replica), before, "a dry run changes nothing")
        said = self.rekey(self.replica, encrypt=[self.now], force=True, json=True)
        self.assertEqual(json.loads(said)["files"], len(self.ltx(self.replica)), said)
        self.assertOnlyTheNewOpens(self.replica)
        with open(self.new) as f:
            key = pyrage.x25519.Identity.from_str(f.read().splitlines()[-1])
        for path in self.ltx(self.replica):
            with open(path, "rb") as f:
                self.assertEqual(pyrage.decrypt(f.read(), [key])[:4], b"LTX1", path)
        self.assertNotIn(PLANTED.encode(), b"".join(contents(self.replica).values()))
        # The stream goes on, with the new key.
        self.recipient = self.now
        p = self.streaming()
        p.sql("INSERT INTO t(v) VALUES('after it')")
        self.assertGreater(p.sync(), self.txid)
        p.end()
        self.assertOnlyTheNewOpens(self.replica)

    def test_on_an_s3_server_beside_the_stream(self):
        self.p.end()
        s3 = door.S3(self)
        url = s3.url("app")
        p = self.streaming(url, env=s3.env(**self.opener()))
        self.fill(p)
        said = p.sql("SELECT walrust_rekey(NULL, ?)", json.dumps({"encrypt": [self.now], "force": True}))
        self.assertRegex(said, r"Files encrypted anew: \d+")
        self.assertNotIn("no entry yet", said)
        p.sql("INSERT INTO t(v) VALUES('for the old key still')")
        p.sync()
        p.watch(url, encrypt=[self.now])
        p.sql("INSERT INTO t(v) VALUES('for the new key')")
        p.sql("SELECT walrust_snapshot()")
        # What came between the two is done by a second call, which finds the first one's files again.
        p.end()
        self.rekey(url, env=s3.env(**self.opener(self.both)), encrypt=[self.now], force=True)
        self.assertOnlyTheNewOpens(url, s3.env())

    def test_killed_at_each_step_the_next_call_ends_it(self):
        self.p.end()
        call = f"walrust_rekey({quote(self.replica)}, {quote(json.dumps({'encrypt': [self.now], 'force': True}))})"
        for point in ("rekey.sealed:1", "rekey.sealed:3", "rekey.replaced:1", "rekey.replaced:3", "manifest.append:1"):
            with self.subTest(point=point):
                r = self.peer(so=door.CRASH_SO, env={**self.opener(self.both), "WALRUST_CRASH": point}).open(":memory:")
                with self.assertRaises(AssertionError):  # it dies over the call
                    r.sql(f"SELECT {call}")
                restored, _ = self.restore(self.replica, env=self.opener(self.both))
                self.assertSameBytes(restored, self.db, "each object opens for the old or the new key")
        self.rekey(self.replica, env=self.opener(self.both), encrypt=[self.now], force=True)
        self.assertOnlyTheNewOpens(self.replica)

    def test_what_cannot_be_done_is_refused_and_changes_nothing(self):
        self.p.end()
        clear = self.path("clear")
        p = self.streaming(clear, encrypt=False, spool_dir=self.path("other-spool"))
        self.fill(p, 2, large=False)
        p.end()
        before = contents(self.replica)
        for url, env, keys, fragment in (
            (self.replica, {}, [self.now], "set WALRUST_IDENTITY"),
            (self.replica, self.opener(self.others), [self.now], "no identity in WALRUST_IDENTITY"),
            (self.replica, self.opener(), ["age1nonsense"], "public keys of age"),
            (self.replica, self.opener(), [], "name the public keys"),
            (clear, self.opener(), [self.now], "in the clear"),
            (self.path("nothing"), self.opener(), [self.now], "holds no files of a replica"),
        ):
            with self.subTest(fragment):
                with self.assertRaises(SqlError) as e:
                    self.peer(env=env).open(":memory:").sql("SELECT walrust_rekey(?, ?)", url, json.dumps({"encrypt": keys, "force": True}))
                self.assertErrorLine(str(e.exception), fragment)
        self.assertEqual(contents(self.replica), before)

    def test_the_command_line(self):
        self.p.end()
        done = self.run_cli("rekey", self.replica, "--encrypt", self.now, "--force", env=self.opener())
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"Files encrypted anew: \d+")
        self.assertOnlyTheNewOpens(self.replica)


class Mixing(AgeTest):
    def refused(self, **how):
        with self.assertRaises(SqlError) as e:
            self.streaming(**how)
        return str(e.exception)

    def test_a_replica_is_encrypted_or_not(self):
        p = self.streaming(encrypt=False)
        self.fill(p, 2, large=False)
        p.end()
        self.assertIn("holds files in the clear", self.refused())
        self.assertIn("choose another URL", self.refused())
        p = self.streaming(self.path("second"))
        self.fill(p, 2, large=False)
        p.end()
        self.assertIn("encrypt is not set", self.refused(replica=self.path("second"), encrypt=False))
        for path in self.ltx(self.replica):
            with open(path, "rb") as f:
                self.assertEqual(f.read(4), b"LTX1", path)
        restored, _ = self.restore(self.path("second"), env=self.opener())
        self.assertSameBytes(restored, self.db)

    def test_another_machine_needs_the_identity_or_a_takeover(self):
        p = self.streaming()
        self.fill(p, 2, large=False)
        p.end()
        shutil.rmtree(self.db + "-walrust")
        self.assertIn("cannot be told without an identity", self.refused())
        p = self.streaming(takeover=True)
        p.sql("INSERT INTO t(v) VALUES('taken over')")
        p.sync()
        p.end()
        restored, _ = self.restore(self.replica, env=self.opener())
        self.assertSameBytes(restored, self.db)
        shutil.rmtree(self.db + "-walrust")
        p = self.streaming(env=self.opener())
        p.sql("INSERT INTO t(v) VALUES('proved by content')")
        p.sync()
        p.end()
        restored, _ = self.restore(self.replica, env=self.opener())
        self.assertSameBytes(restored, self.db)

    def test_what_is_no_public_key_is_refused_and_not_shown(self):
        secret = pyrage.x25519.Identity.generate()
        for keys, fragment in (([str(secret)], "a secret key does not belong here"),
                               ([self.recipient[:-1]], "public keys of age"),
                               (["ssh-ed25519 AAAA"], "public keys of age")):
            p = self.peer().open(self.path("other.db"))
            with self.assertRaises(SqlError) as e:
                p.watch(self.path("r"), encrypt=keys)
            self.assertIn(fragment, str(e.exception))
            self.assertNotIn(str(secret)[20:], str(e.exception))
            p.end()
        with self.assertRaises(SqlError) as e:
            self.streaming(append_only=True)
        self.assertIn("append_only does not go with encrypt", str(e.exception))


if __name__ == "__main__":
    unittest.main()
