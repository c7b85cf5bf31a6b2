"""Power loss: unsynced writes of database, WAL and spool are lost, torn or reordered, with real SQLite at synchronous NORMAL
and FULL. The replica may be ahead of the file then. walrust must see it, go on under a new lineage, never use a TXID
for other content, and end equal to the database.

Each row's `h` is a digest over the row before it, so a mixture of two histories is seen in any restored file.
"""

import hashlib
import os
import threading
import time
import unittest

import door
import powercut
import pytest

WRITER = """
import hashlib, time
db, now, said = conns["main"], time.monotonic, []
h = db.execute("SELECT h FROM t ORDER BY n DESC LIMIT 1").fetchone()
n, h = db.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()[0], h[0] if h else ""
out = open(args["said"], "a", buffering=1)
end = now() + args["seconds"]
k = 0
while now() < end:
    k += 1
    n += 1
    h = hashlib.sha256(f"{h} {n} {args['epoch']}".encode()).hexdigest()
    db.execute("INSERT INTO t VALUES(?, ?, ?, randomblob(?))", (n, args["epoch"], h, (n * 7919) % args["size"]))
    print("row", n, h, file=out)
    if k % 9 == 0:
        db.execute("UPDATE t SET v = randomblob(300) WHERE n % 5 = ?", (n % 5,))
    if k % 31 == 0:
        db.execute("PRAGMA wal_checkpoint(%s)" % ("PASSIVE", "RESTART", "TRUNCATE")[k // 31 % 3]).fetchone()
    if k % 40 == 0:
        print("sync", db.execute("SELECT walrust_sync(20)").fetchone()[0], n, h, file=out)
    time.sleep(args["pause"])
"""

REQUESTS = """
for _ in range(args["n"]):
    c = connect(args["db"])
    c.execute("PRAGMA journal_mode = WAL")
    c.execute("CREATE TABLE IF NOT EXISTS t(v)")
    c.execute("INSERT INTO t VALUES(1)")
    c.close()
"""


@unittest.skipUnless(os.path.exists(door.SO), "needs `make quick`")
class Power(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.shim = powercut.build(self.dir)

    def test_a_close_waits_for_no_sync_of_ours(self):
        """A program that opens and closes its database for each request, the store away: its thread syncs what SQLite does, and what the
        closes left in the spool is synced by a thread of ours soon after."""
        counts = {}
        for so in (None, door.SO):
            home, log = self.path(f"home-{bool(so)}"), self.path(f"log-{bool(so)}")
            os.mkdir(home)
            env = powercut.environment(self.shim, home, log)
            if so:
                env |= {"WALRUST_REPLICA": "s3://bucket/app?endpoint=http://127.0.0.1:9&region=us-east-1&path_style=true",
                        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
            p = self.peer(env=env, so=so)
            requests = lambda n: p.code(REQUESTS, db=os.path.join(home, "app.db"), n=n)
            requests(1)
            if so:
                self.eventually(lambda: os.path.exists(os.path.join(home, "app.db-walrust", "position.json")), what="a position")
            time.sleep(1.5)
            before = len(powercut.syncs(log))
            requests(10)
            mine = lambda: [t for t in powercut.syncs(log)[before:] if t == p.proc.pid]
            counts[bool(so)] = len(mine())
            if so:
                others = lambda: len(powercut.syncs(log)) - before - len(mine())
                self.eventually(lambda: others() >= 2, what="syncs of a thread of ours")
                # (A piece, its directory, the position and its own, once for closes that come one after the other.)
                self.assertLessEqual(others(), 40)
        self.assertGreaterEqual(counts[False], 30)
        self.assertEqual(counts[True], counts[False])

    def write(self, home, url, epoch, mode, env, options, seconds):
        """A process that writes until it is killed. Gives what it said it had done."""
        said = self.path(f"said-{epoch}-{self.random.getrandbits(32):x}")
        p = self.peer(env=env).open(os.path.join(home, "app.db"))
        p.sql(f"PRAGMA synchronous={mode}")
        p.sql("PRAGMA wal_autocheckpoint=60")
        p.watch(url, **options)
        p.sql("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, epoch, h, v)")
        p.send(op="code", code=WRITER, args={
            "said": said, "seconds": 30, "epoch": epoch, "size": self.random.choice([200, 3000]),
            "pause": self.random.choice([0, 0.002]),
        })
        time.sleep(seconds)
        p.kill()
        lines = open(said).read().splitlines() if os.path.exists(said) else []
        return [line.split() for line in lines if len(line.split()) >= 3]

    def chain(self, path):
        """The digest at the end of a file's rows, each of which must follow from the one before."""
        h, last = "", 0
        if not door.plain_rows(path, "SELECT 1 FROM sqlite_schema WHERE name = 't'"):
            return last, h
        for n, epoch, digest in door.plain_rows(path, "SELECT n, epoch, h FROM t ORDER BY n"):
            h = hashlib.sha256(f"{h} {n} {epoch}".encode()).hexdigest()
            self.assertEqual((n, digest), (last + 1, h), f"{path}: a mixture of two histories")
            last = n
        return last, h

    def remember(self, url, contents):
        """Every TXID that restores gives what it always gave."""
        newest = max(int(name[17:33], 16) for _, _, names in os.walk(url) for name in names if name.endswith(".ltx"))
        picks = {newest} | {self.random.randint(1, newest) for _ in range(6)} | {t for t in list(contents)[-4:]}
        for txid in sorted(picks):
            try:
                out, got = self.restore(url, point=txid)
            except door.SqlError as e:
                # A TXID between the end of one history and the snapshot that begins the next.
                self.assertRegex(str(e), "not in|no |outside|missing|restorable")
                self.assertNotIn(txid, contents)
                continue
            self.assertEqual(got, txid)
            self.assertSound(out)
            self.chain(out)
            with open(out, "rb") as f:
                digest = hashlib.sha256(f.read()).hexdigest()
            self.assertEqual(contents.setdefault(txid, digest), digest, f"TXID {txid} has two contents")
            os.unlink(out)
        return newest

    def turn(self, mode, cuts):
        home, url = self.path(f"home-{mode}-{self.random.getrandbits(32):x}"), self.path(f"r-{self.random.getrandbits(32):x}")
        os.mkdir(home)
        db = os.path.join(home, "app.db")
        contents, ahead, gaps, rows = {}, 0, 0, 0
        options = {"interval": self.random.choice(["0s", "100ms", "1s"])}
        for cut in range(cuts):
            epoch = f"{mode}{cut}"
            log = self.path(f"log-{cut}")
            disk = powercut.Disk(home)
            env = powercut.environment(self.shim, home, log)
            said = self.write(home, url, epoch, mode, env, options, self.random.uniform(0.3, 1.5))
            ordered = self.random.random() < 0.6
            counts = disk.replay(log, ordered)
            os.unlink(log)
            self.assertGreater(counts.get("W", 0), 10, "the shim noted nothing")
            self.assertGreater(counts.get("S", 0), 0, "the shim noted no sync")
            disk.cut(self.random, ordered)

            # SQLite's own promise, or the simulated disk is wrong.
            probe = self.path("probe.db")
            with open(probe, "wb") as f:
                f.write(door.image(db) if os.path.exists(db) and os.path.getsize(db) else b"")
            if not os.path.getsize(probe):
                continue
            self.assertSound(probe)
            has_table = door.plain_rows(probe, "SELECT count(*) FROM sqlite_master WHERE name = 't'")[0][0]
            last, _ = self.chain(probe) if has_table else (0, "")
            told = [int(w[1]) for w in said if w[0] == "row"]
            rows += len(told)
            if mode == "FULL" and told:
                self.assertGreaterEqual(last, told[-1], "FULL lost a commit: the simulated disk is wrong")
            acknowledged = [(int(w[1]), int(w[2]), w[3]) for w in said if w[0] == "sync" and len(w) == 4]

            # What a sync acknowledged is in the replica, whatever the disk lost.
            for txid, n, h in acknowledged[-1:]:
                out, _ = self.restore(url, point=txid)
                got = self.chain(out)
                self.assertGreaterEqual(got[0], n)
            before = self.remember(url, contents) if os.path.isdir(url) and os.listdir(url) else 0
            if before:
                out, _ = self.restore(url)
                ahead += self.chain(out)[0] > last

            # The machine comes back.
            p = self.peer().open(db)
            p.sql(f"PRAGMA synchronous={mode}")
            answer = p.watch(url, **options)
            p.sql("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, epoch, h, v)")
            n, h = self.chain(db)
            p.sql("INSERT INTO t VALUES(?, 'after', ?, zeroblob(50))", n + 1,
                  hashlib.sha256(f"{h} {n + 1} after".encode()).hexdigest())
            txid = p.sync(60)
            self.assertGreater(txid, 0)
            out, got = self.restore(url)
            self.assertEqual(got, txid, answer)
            self.assertSameBytes(out, db, f"after cut {cut} ({mode}, ordered: {ordered})")
            self.remember(url, contents)
            p.end()
            gaps += 1
        return cuts, ahead, rows

    @pytest.mark.campaign
    def test_normal(self):
        self.campaign("NORMAL")

    @pytest.mark.campaign
    def test_full(self):
        self.campaign("FULL")

    def campaign(self, mode):
        cuts = ahead = rows = 0
        for _ in range(door.rounds(1)):
            c, a, r = self.turn(mode, 4)
            cuts, ahead, rows = cuts + c, ahead + a, rows + r
        print(f"\n{cuts} power cuts at synchronous={mode}, {rows} commits: the replica was ahead of the file {ahead} times; "
              "0 lost, 0 mixed, 0 TXIDs with two contents", flush=True)


if __name__ == "__main__":
    unittest.main()
