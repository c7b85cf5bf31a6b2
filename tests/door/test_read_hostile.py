"""Replicas made to harm, read in place: the fuzzers' seeds served as objects, and good replicas of which some bytes were changed.

No crash, no hang, no memory that an object claims, and never a row that the database did not have at that point.
"""

import glob
import os
import random
import shutil
import time
import unittest

import door
import pytest
import test_hostile
import test_read
from door import SqlError, quote

SEEDS = [os.path.join(door.ROOT, "tests", "vectors", "ltx"), *glob.glob(os.path.join(door.ROOT, "fuzz", "seeds", "*")),
         *glob.glob(os.path.join(door.ROOT, "fuzz", "corpus", "*"))]
#: The longest that one object may keep a reader, on a machine that does other things, too.
LONGEST = 60


def corpus(folder, rng, most=door.rounds(12)):
    """The bytes of the fuzzers' seeds of one kind, and of what a campaign found, if there was one here."""
    names = sorted(n for n in glob.glob(os.path.join(folder, "*")) if os.path.isfile(n) and not n.endswith(".md"))
    if len(names) > most:
        names = rng.sample(names, most)
    out = []
    for name in names:
        with open(name, "rb") as f:
            out.append(f.read())
    return out


def mutated(rng, data, others):
    """As the fuzzers do it."""
    data = bytearray(data or b"\0")
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(8)
        if not data or kind == 0:
            data.insert(at, rng.randrange(256))
        elif kind == 1:
            data[at] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del data[at:at + 1 + rng.randrange(8)]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            other = rng.choice(others)
            begin = rng.randrange(len(other)) if other else 0
            piece = other[begin:begin + rng.randrange(1, 64)]
            data[at:at + len(piece)] = piece
        elif kind == 6:
            data[at:at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4))
        else:
            data = bytearray(rng.choice(others))
    return bytes(data)


class Hostile(test_hostile.Memory, test_read.ReadTest):
    def setUp(self):
        super().setUp()
        self.rng = random.Random(door.SEED)
        self.env = {"WALRUST_CACHE_SIZE": "0"}
        self.r = None

    def alive(self):
        """A reader: the one there was, unless it has read much."""
        if self.r is None:
            self.r, self.reads = self.reader(env=self.env), 0
        self.reads += 1
        return self.r

    def look(self, name):
        """What is read under `name`: its digest and soundness, or the error. The process lives on, and soon."""
        r = self.alive()
        began, before = time.monotonic(), self.peak(r)
        try:
            got = self.digest(r, name)
        except SqlError as e:
            got = None
            self.assertEqual(len(str(e).splitlines()), 1, str(e)[:300])
            told = r.sql("SELECT walrust_last_error()")
            self.assertTrue(told is None or (len(told) < 5000 and "\n" not in told), told)
        self.assertLess(time.monotonic() - began, LONGEST, name)
        self.assertLess(self.peak(r) - before, 96 << 20, name)
        self.assertEqual(r.sql("SELECT 1"), 1)
        return got


class Corpus(Hostile):
    """Each seed as a file, as a manifest, as the sums and the guide beside a file."""

    @pytest.mark.campaign
    def test_the_fuzz_corpus_served_as_a_replica(self):
        rng, ltx = self.rng, corpus(SEEDS[0], self.rng)
        for folder in SEEDS[1:]:
            if "ltx" in folder:
                ltx += corpus(folder, rng)
        others = [data for folder in SEEDS[1:] if "ltx" not in folder for data in corpus(folder, rng)]
        self.assertTrue(ltx and others)
        p, _, good = self.watched()
        p.sql("INSERT INTO t(v) VALUES('one')")
        p.sync()
        p.close()
        p.kill()
        base = {}
        for at, _, names in os.walk(good):
            for name in names:
                if not name.startswith("."):
                    with open(os.path.join(at, name), "rb") as f:
                        base[os.path.relpath(f.name, good)] = f.read()
        self.assertTrue(base)
        opened = refused = 0
        jobs = [(data, None) for data in ltx + others] + [(None, data) for data in others]
        jobs += [(mutated(rng, rng.choice(ltx), ltx + others), rng.choice((None, mutated(rng, rng.choice(others), ltx + others))))
                 for _ in range(door.rounds(150))]
        for n, (file, manifest) in enumerate(jobs):
            at = self.path(f"replica-{n}")
            # Alone, or beside what is good.
            files = dict(rng.choice((base, {})))
            if file is not None:
                files[self.name_of(file)] = file
            if manifest is not None:
                files["walrust/manifest-0000000000000001.json"] = manifest
                files["walrust/lease.json"] = rng.choice(others)
            for key in [k for k in files if k.startswith("ltx/")]:
                level, name = key.split("/")[1:]
                files[f"walrust/blocks-{level}-{name.removesuffix('.ltx')}"] = rng.choice(others + ltx)
            for key, data in files.items():
                os.makedirs(os.path.dirname(os.path.join(at, key)), exist_ok=True)
                with open(os.path.join(at, key), "wb") as f:
                    f.write(data)
            with self.subTest(job=n):
                got = self.look("walrust:" + at)
                for read in (f"SELECT count(*) FROM walrust_points({quote(at)})", f"SELECT count(*) FROM walrust_changes({quote(at)}, 1)"):
                    self.bounded(self.r, read)
                if got is None:
                    refused += 1
                else:
                    opened += 1
                    try:
                        out, _ = self.restore(at)
                    except SqlError:
                        out = None
                    # What a restore accepts as well is the same.
                    if out is not None:
                        self.assertEqual(got, self.digest(self.r, out))
                        os.remove(out)
            shutil.rmtree(at)
        print(f"\n{opened} opened, {refused} refused", flush=True)
        self.assertGreater(opened, 3)
        self.assertGreater(refused, 3)

    @staticmethod
    def name_of(data):
        """The name that a file's header asks for, or that of a snapshot."""
        low, high = (int.from_bytes(data[16:24], "big") or 1, int.from_bytes(data[24:32], "big") or 1) if len(data) >= 32 else (1, 1)
        high = max(low, high)
        return f"ltx/{9 if low == 1 else 0}/{low:016x}-{high:016x}.ltx"


class Changed(Hostile):
    """A good replica with a full copy that has a guide, small files of each kind, merged ones; some of its bytes are changed."""

    def good(self, url, env=None):
        p = self.peer(env=env).open(self.path("app.db"))
        p.watch(url, interval="0s", levels=["1h"])
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v BLOB)")
        p.sql("CREATE INDEX tk ON t(k)")
        p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1200) INSERT INTO t(k, v) SELECT i * 7919 % 1009, randomblob(900) FROM n")
        p.sql("SELECT walrust_snapshot()")
        for n, rows in enumerate((1, 30, 60, 3, 400)):
            p.sql("UPDATE t SET v = randomblob(900) WHERE id % 1200 < ?", rows)
            txid = p.sync()
        p.close()
        p.kill()
        return txid

    def rounds(self, names, read, put, name, txid):
        expected = self.look(name(0, txid))
        self.assertEqual(expected[1], [("ok",)])
        files = {n: read(n) for n in names}
        sizes = sorted(len(d) for n, d in files.items() if n.endswith(".ltx"))
        self.assertTrue(sizes[-1] > 256 << 10 and any(16 << 10 < s <= 256 << 10 for s in sizes) and sizes[0] <= 16 << 10, sizes)
        same = other = 0
        for n in range(1, door.rounds(60) + 1):
            victims = self.rng.sample(sorted(files), self.rng.choice((1, 1, 1, 2, 3)))
            changed = {v: mutated(self.rng, files[v], list(files.values())) for v in victims}
            for key, data in files.items():
                put(n, key, changed.get(key, data))
            with self.subTest(round=n, victims=victims):
                got = self.look(name(n, txid))
                # All of it and nothing else, or an error.
                if got is None:
                    other += 1
                else:
                    same += 1
                    self.assertEqual(got, expected)
        print(f"\n{same} read as they were, {other} refused", flush=True)
        self.assertGreater(same, 3)
        self.assertGreater(other, 3)

    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_changed_bytes_in_a_directory(self):
        good = self.path("replica-0")
        txid = self.good("file://" + good)
        names = [os.path.relpath(os.path.join(at, n), good) for at, _, found in os.walk(good) for n in found if not n.startswith(".")]

        def read(key):
            with open(os.path.join(good, key), "rb") as f:
                return f.read()

        def put(n, key, data):
            shutil.rmtree(self.path(f"replica-{n - 2}"), ignore_errors=True) if n > 2 else None
            path = os.path.join(self.path(f"replica-{n}"), key)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)

        self.rounds(names, read, put, lambda n, txid: f"walrust:file://{self.path(f'replica-{n}')}?at={txid}", txid)

    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_changed_bytes_over_s3(self):
        s3 = door.S3(self)
        self.env = s3.env(WALRUST_CACHE_SIZE="0")
        txid = self.good(s3.url("app-0"), env=self.env)
        names = [k.removeprefix("app-0/") for k in s3.keys("app-0/")]
        put = lambda n, key, data: s3.s3.put_object(Bucket="bucket", Key=f"app-{n}/{key}", Body=data)
        self.rounds(names, lambda key: s3.get("app-0/" + key), put, lambda n, txid: s3.url(f"app-{n}") + f"&at={txid}", txid)


if __name__ == "__main__":
    unittest.main()
