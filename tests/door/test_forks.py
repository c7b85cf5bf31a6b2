"""fork() while threads of walrust are at work: in the middle of reading a whole database, of rewriting one, holding a lock.

A child must neither hang nor see half of a commit, and the parent must not be held up by more than moments.
"""

import json
import os
import sqlite3
import unittest

import door

#: What a fork may take while walrust reads hundreds of megabytes. (Letting go takes a few milliseconds; the machine may be busy.)
SOON = 0.6


def large(path, mib, zero=False):
    """A database that takes long to read, made without walrust."""
    c = sqlite3.connect(path, isolation_level=None)
    for s in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA page_size=4096", "CREATE TABLE big(v)", "BEGIN"):
        c.execute(s)
    c.execute("CREATE TABLE t(n INTEGER PRIMARY KEY, who)")
    for _ in range(mib):
        c.execute(f"INSERT INTO big VALUES ({'zeroblob' if zero else 'randomblob'}(1048000))")
    c.execute("COMMIT")
    c.close()


class Readings(door.DoorTest):
    def test_fork_while_the_database_is_read(self):
        """Children commit, and read twice in one transaction over the parent's commit and RESTART checkpoint."""
        db = self.path("app.db")
        large(db, 400)
        p = self.peer().open(db)
        p.sql("PRAGMA journal_mode=WAL")
        p.sql("PRAGMA wal_autocheckpoint=0")
        forks, seen, failed, lost = p.code(
            """
import json
c = conns["main"]
fetch(c, "SELECT walrust_watch(?, ?)", (args["url"], json.dumps({"snapshot_interval": "0"})))
state = lambda: fetch(c, "SELECT state FROM walrust_status")[0][0]
forks, seen, failed, lost = [], [], 0, 0
while len(forks) < 8 and (state() == "snapshotting" or not forks):
    base = 1000 * len(forks)
    ready, go = os.pipe(), os.pipe()
    at = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mine = connect(args["db"])
            mine.execute("PRAGMA busy_timeout=20000")
            mine.execute("INSERT INTO t VALUES (?, 'child')", (base,))
            mine.execute("BEGIN")
            first = fetch(mine, "SELECT count(*) FROM t")[0][0]
            os.write(ready[1], b".")
            os.read(go[0], 1)
            # (A large range: pages that the first statement has not read, and the cache does not hold.)
            second = fetch(mine, "SELECT count(*) FROM t WHERE who IS NOT NULL")[0][0]
            mine.execute("COMMIT")
            mine.execute("INSERT INTO t VALUES (?, 'child')", (base + 1,))
            code = 0 if first == second else 7
        except BaseException as e:
            os.write(2, repr(e).encode())
        os._exit(code)
    forks.append(time.monotonic() - at)
    os.close(ready[1])
    os.read(ready[0], 1)
    c.execute("INSERT INTO t SELECT value + ?, 'parent' FROM (WITH RECURSIVE s(value) AS (SELECT 100 UNION ALL SELECT value + 1 FROM s WHERE value < 899) SELECT value FROM s)", (base,))
    c.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    os.write(go[1], b".")
    status = os.waitpid(pid, 0)[1]
    failed += status != 0
    lost += fetch(c, "SELECT 802 - count(*) FROM t WHERE n >= ? AND n < ?", (base, base + 1000))[0][0]
    seen.append(status)
result = [forks, seen, failed, lost]
""",
            db=db, url=self.path("replica"),
        )
        self.assertLess(max(forks), SOON, f"forks took {forks}")
        self.assertEqual((failed, lost), (0, 0), f"{seen}: {p.stderr()}")
        # The reading was begun again, and its snapshot is that of the database.
        p.sync(120)
        self.eventually(lambda: p.status()["state"] == "streaming", what="streaming", timeout=60)
        p.end()
        out, _ = self.restore(self.path("replica"))
        self.assertSameBytes(db, out)
        self.assertSound(out)

    def test_fork_while_a_snapshot_and_a_copy_are_made(self):
        db = self.path("app.db")
        large(db, 250)
        p = self.peer().open(db)
        p.sql("PRAGMA journal_mode=WAL")
        p.watch(self.path("replica"), snapshot_interval="0")
        p.sync(60)
        for n, call in enumerate(("walrust_snapshot()", f"walrust_snapshot({door.quote(self.path('copy'))})")):
            with self.subTest(call=call):
                p.sql("INSERT INTO t VALUES (?, 'new')", n)
                forks, done = p.code(
                    """
got = []
def work():
    other = connect(args["db"])
    try: got.append(fetch(other, "SELECT " + args["call"])[0][0])
    except Exception as e: got.append(repr(e))
t = threading.Thread(target=work)
t.start()
forks, end = [], time.monotonic() + 60
while t.is_alive() and time.monotonic() < end:
    time.sleep(0.3 if len(forks) < 6 else 2)
    at = time.monotonic()
    pid = os.fork()
    if pid == 0: os._exit(0)
    forks.append(time.monotonic() - at)
    os.waitpid(pid, 0)
t.join()
result = [forks, got[0]]
""",
                    db=db, call=call,
                )
                self.assertIsInstance(done, int, done)
                self.assertLess(max(forks), SOON, f"forks took {forks}")
        p.end()
        for replica in ("replica", "copy"):
            out, _ = self.restore(self.path(replica))
            self.assertSameBytes(db, out)

    def test_fork_while_a_restore_is_checked(self):
        """PRAGMA integrity_check runs on a connection of walrust's own: interrupted, and begun again."""
        db = self.path("app.db")
        c = sqlite3.connect(db, isolation_level=None)
        c.execute("CREATE TABLE t(a, b)")
        c.execute("CREATE INDEX i ON t(b)")
        c.execute(
            "INSERT INTO t SELECT value, hex(randomblob(40)) FROM "
            "(WITH RECURSIVE s(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM s WHERE value < 60000) SELECT value FROM s)"
        )
        c.close()
        p = self.peer().open(db)
        p.watch(self.path("replica"), snapshot_interval="0")
        p.sync(60)
        out = self.path("out.db")
        forks, done = p.code(
            """
got = []
def work():
    other = connect(":memory:")
    try: got.append(fetch(other, "SELECT walrust_restore(?, ?, NULL, ?)", (args["url"], args["out"], '{"check":"full"}'))[0][0])
    except Exception as e: got.append(repr(e))
t = threading.Thread(target=work)
t.start()
forks, end = [], time.monotonic() + 60
while t.is_alive() and time.monotonic() < end:
    time.sleep(0.1 if len(forks) < 30 else 2)
    at = time.monotonic()
    pid = os.fork()
    if pid == 0: os._exit(0)
    forks.append(time.monotonic() - at)
    os.waitpid(pid, 0)
t.join()
result = [forks, got[0]]
""",
            url=self.path("replica"), out=out,
        )
        self.assertIsInstance(done, int, done)
        self.assertLess(max(forks), SOON, f"forks took {forks}")
        self.assertSound(out)

    def test_fork_while_a_followed_file_is_rewritten(self):
        """The rewrite ends at a safe place, and is begun again; the child may read the file, and sees a whole state."""
        db, copy, url = self.path("app.db"), self.path("copy.db"), self.path("replica")
        large(db, 200)
        p = self.peer().open(db)
        p.sql("PRAGMA journal_mode=WAL")
        p.watch(url, snapshot_interval="0")
        p.sync(60)
        f = self.peer().open(self.path("other.db"))
        f.sql("SELECT walrust_replicate(?, ?, ?)", url, copy, json.dumps({"interval": "200ms"}))
        # Somebody else's write: the whole file is compared, journaled and written anew.
        c = sqlite3.connect(copy, isolation_level=None)
        c.execute("PRAGMA synchronous=OFF")
        c.execute("UPDATE big SET v = zeroblob(1048000)")
        c.close()
        forks, failed, state = f.code(
            """
c = conns["main"]
forks, failed, begun, end = [], 0, False, time.monotonic() + 90
while time.monotonic() < end:
    state, error = fetch(c, "SELECT state, last_error FROM walrust_status")[0]
    begun = begun or "full copy" in (error or "") or state != "streaming"
    if begun and state == "streaming":
        break
    time.sleep(0.4 if len(forks) < 8 else 3)
    at = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mine = connect(args["copy"])
            mine.execute("PRAGMA busy_timeout=20000")
            # All old, or all new.
            zeros = fetch(mine, "SELECT sum(v = zeroblob(1048000)) FROM big")[0][0]
            code = 0 if zeros in (0, 200) else 7
        except BaseException as e:
            os.write(2, repr(e).encode())
        os._exit(code)
    forks.append(time.monotonic() - at)
    failed += os.waitpid(pid, 0)[1] != 0
result = [forks, failed, state]
""",
            copy=copy,
        )
        self.assertEqual((failed, state), (0, "streaming"), f"{forks} {f.stderr()}")
        self.assertLess(max(forks), SOON, f"forks took {forks}")
        self.assertEqual(
            door.plain_rows(copy, "SELECT count(*), sum(v = zeroblob(1048000)) FROM big"), [(200, 0)]
        )
        self.assertSound(copy)


class Locks(door.DoorTest):
    def test_children_of_a_process_that_works(self):
        """Replicas in directories, whose locks are held over a sync: no child waits for a thread that it does not have."""
        p = self.peer()
        for i in range(3):
            p.open(self.path(f"p{i}.db"), f"p{i}")
            p.watch(self.path(f"r{i}"), f"p{i}", interval="0s", snapshot_interval="0")
            p.sql("CREATE TABLE t(x)", conn=f"p{i}")
            p.sql("INSERT INTO t VALUES (0)", conn=f"p{i}")
        statuses = p.code(
            """
import random, signal
random.seed(args["seed"])
statuses = []
for n in range(args["n"]):
    end = time.monotonic() + random.random() * 0.05
    while time.monotonic() < end:
        for i in range(3):
            conns["p%d" % i].execute("UPDATE t SET x = x + 1")
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        code = 3
        try:
            d = os.path.join(args["dir"], "c%d" % n)
            mine = connect(d + ".db")
            fetch(mine, "SELECT walrust_watch(?)", (d,))
            mine.execute("CREATE TABLE t(x)")
            fetch(mine, "SELECT walrust_sync(15)")
            code = 0
        except BaseException as e:
            os.write(2, repr(e).encode())
        os._exit(code)
    statuses.append(os.waitpid(pid, 0)[1])
result = statuses
""",
            n=door.rounds(25), dir=self.dir, seed=str(self.random.random()),
        )
        self.assertEqual([s for s in statuses if s], [], p.stderr())

    def test_forty_generations(self):
        """A child's child's child, and so on: each is a process of its own."""
        p = self.peer().open(self.path("app.db"))
        p.watch(self.path("replica"), snapshot_interval="0")
        p.sql("CREATE TABLE t(x)")
        status = p.code(
            """
import signal
def generation(n):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    signal.alarm(60)
    code = 3
    try:
        mine = connect(args["db"])
        mine.execute("PRAGMA busy_timeout=20000")
        mine.execute("INSERT INTO t VALUES (?)", (n,))
        if n % 10 == 0: fetch(mine, "SELECT walrust_sync(20)")
        mine.close()
        code = 0 if n == 40 or generation(n + 1) == 0 else 4
    except BaseException as e:
        os.write(2, repr(e).encode())
    os._exit(code)
result = generation(1)
""",
            db=self.path("app.db"),
        )
        self.assertEqual(status, 0, p.stderr())
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 40)
        p.sync()
        p.end()
        out, _ = self.restore(self.path("replica"))
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(40,)])

    def test_a_child_tells_its_own_webhook(self):
        """Its parent's queue and thread are not its own."""
        hook = door.Hook(self)
        p = self.peer().open(self.path("app.db"))
        hooks = [{"url": hook.url, "events": ["snapshot_complete"]}]
        p.sql("SELECT walrust_watch(?, ?)", self.path("replica"), json.dumps({"webhooks": hooks}))
        p.sql("CREATE TABLE t(x)")
        self.eventually(lambda: hook.events("snapshot_complete"), what="the parent's webhook")
        status = p.code(
            """
pid = os.fork()
if pid == 0:
    code = 3
    try:
        mine = connect(args["dir"] + "/child.db")
        fetch(mine, "SELECT walrust_watch(?, ?)", (args["dir"] + "/child", args["options"]))
        mine.execute("CREATE TABLE t(x)")
        fetch(mine, "SELECT walrust_sync(20)")
        time.sleep(2)
        code = 0
    except BaseException as e:
        os.write(2, repr(e).encode())
    os._exit(code)
result = os.waitpid(pid, 0)[1]
""",
            dir=self.dir, options=json.dumps({"webhooks": hooks}),
        )
        self.assertEqual(status, 0, p.stderr())
        told = {os.path.basename(e["database"]) for e in hook.events("snapshot_complete")}
        self.assertEqual(told, {"app.db", "child.db"})


if __name__ == "__main__":
    unittest.main()
