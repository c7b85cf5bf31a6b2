"""A program's descriptors are its own: how many walrust takes of them, and what happens when none is left."""

import os
import signal

import pytest

import door

# What is open in the peer, by what it is. (The listing has one itself.)
OPEN = """
import collections
kinds = collections.Counter()
for fd in os.listdir('/proc/self/fd'):
    try:
        target = os.readlink('/proc/self/fd/' + fd)
    except OSError:
        continue
    kinds[os.path.basename(target)] += 1
"""
COUNT = OPEN + "result = sum(kinds.values())"
KINDS = OPEN + "result = dict(kinds)"

# Tenants opened and closed one after another, then some held open, all under a small limit. Says what failed.
TENANTS = """
import resource
if args['limit']:
    resource.setrlimit(resource.RLIMIT_NOFILE, (args['limit'], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
failed = []
held = []
def tenant(name):
    c = connect(os.path.join(args['dir'], name + '.db'))
    c.execute('PRAGMA journal_mode=WAL')
    c.execute('CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)')
    c.execute('INSERT INTO t(v) VALUES(?)', (name,))
    return c
for n in range(args['come']):
    try:
        tenant('come%05d' % n).close()
    except Exception as e:
        failed.append('come %d: %s' % (n, e))
for n in range(args['held']):
    try:
        held.append(tenant('held%05d' % n))
    except Exception as e:
        failed.append('held %d: %s' % (n, e))
for turn in range(args['turns']):
    for n, c in enumerate(held):
        try:
            c.execute('INSERT INTO t(v) VALUES(?)', (turn,))
        except Exception as e:
            failed.append('turn %d of %d: %s' % (turn, n, e))
conns.update({'held%05d' % n: c for n, c in enumerate(held)})
result = failed[:5]
"""


class Shared(door.DoorTest):
    def count(self, p):
        return p.code(COUNT)

    def settled(self, p, most):
        """Not more than so many are open, once what was under way is done."""
        self.eventually(lambda: self.count(p) <= most, timeout=10, what=f"{most} descriptors: {p.code(KINDS)}", every=0.1)

    def tenants(self, limit, come, held, env=None, so=door.SO):
        p = self.peer(env=env, so=so)
        directory = self.path("tenants" if so else "stock")
        os.makedirs(directory, exist_ok=True)
        failed = p.code(TENANTS, dir=directory, limit=limit, come=come, held=held, turns=20)
        return p, failed

    def check_tenants(self, limit, come, held, env, url):
        _, without = self.tenants(limit, come, held, so=None)
        self.assertEqual(without, [], "stock SQLite can")
        p, failed = self.tenants(limit, come, held, env=env)
        self.assertEqual(failed, [], p.stderr()[-2000:])
        for n in {0, held - 1}:
            p.sync(conn=f"held{n:05}")
            out, _ = self.restore(url.replace("{name}", f"held{n:05}"), env=env)
            self.assertSameBytes(self.path("tenants", f"held{n:05}.db"), out)
        states = p.rows("SELECT database, last_error FROM walrust_status WHERE state = 'failed'", conn="held00000")
        self.assertEqual(states, [], "nothing that works is stopped")


class Descriptors(Shared):
    def test_a_database_that_was_watched_leaves_none(self):
        p = self.peer().open(":memory:", conn="other")
        for kind, options in (("async", {}), ("sync", {"durability": "sync"})):
            for n in range(12):
                db = self.path(f"{kind}{n}.db")
                p.open(db).watch(self.path("r", f"{kind}{n}"), interval="0s", **options)
                p.sql("CREATE TABLE t(x)")
                p.sql("SELECT walrust_unwatch()")
                p.close()
                if n == 0:
                    p.code("time.sleep(1)")
                    before = self.count(p)
            self.settled(p, before)

    def test_a_watch_that_is_refused_leaves_none(self):
        p = self.peer().open(":memory:", conn="other")
        _, _, replica = self.watched(replica=self.path("taken"))
        for n in range(8):
            p.open(self.path(f"refused{n}.db")).sql("CREATE TABLE t(x)")
            with self.assertRaises(door.SqlError):
                p.watch(replica, interval="0s")
            p.close()
            if n == 0:
                p.code("time.sleep(1)")
                before = self.count(p)
        self.settled(p, before)

    def test_a_closed_database_holds_none_and_stays_watched(self):
        p = self.peer().open(":memory:", conn="other")
        # The runtime's own, once for all databases.
        p.open(self.path("first.db")).watch(self.path("r", "first"), interval="0s")
        p.sql("CREATE TABLE t(x)")
        p.close()
        p.code("time.sleep(1)")
        before = self.count(p)
        for n in range(10):
            p.open(self.path(f"{n}.db")).watch(self.path("r", str(n)), interval="0s")
            p.sql("CREATE TABLE t(x)")
            p.close()
        self.settled(p, before)
        self.assertEqual(p.sql("SELECT count(*) FROM walrust_status", conn="other"), 11)
        # It is still this process that ships it: another one is told so.
        q = self.peer().open(self.path("3.db"))
        self.assertIn("standby", q.watch(self.path("r", "3"), interval="0s"))
        q.sql("INSERT INTO t VALUES(1)")
        q.sync()
        out, _ = self.restore(self.path("r", "3"))
        self.assertSameBytes(self.path("3.db"), out)

    def test_an_open_one_at_rest_holds_one_at_most(self):
        p = self.peer().open(":memory:", conn="other")
        p.open(self.path("first.db"), conn="first").watch(self.path("r", "first"), conn="first", interval="0s")
        p.sql("CREATE TABLE t(x)", conn="first")
        n, rest = 10, "time.sleep(1.5)"
        p.code(rest)
        before = self.count(p)
        for i in range(n):
            conn = f"c{i}"
            p.open(self.path(f"{i}.db"), conn=conn).watch(self.path("r", str(i)), conn=conn, interval="0s")
            p.sql("CREATE TABLE t(x)", conn=conn)
            p.sync(conn=conn)
        p.code(rest)
        # SQLite itself: the file, its WAL and the wal-index.
        ours = self.count(p) - before - 3 * n
        self.assertLessEqual(ours, n, p.code(KINDS))
        # A standby.
        before = self.count(self.peer().open(":memory:"))
        q = self.peer().open(":memory:", conn="other")
        q.open(self.path("0.db")).watch(self.path("r", "0"), interval="0s")
        q.sql("INSERT INTO t VALUES(1)")
        q.code(rest)
        self.assertLessEqual(self.count(q) - before - 3 - 3, 1, q.code(KINDS))

    def test_the_lock_of_the_shipper_dies_with_it(self):
        p, db, url = self.watched(interval="0s")
        q = self.peer().open(db)
        q.watch(url, interval="0s")
        self.assertEqual(q.status()["state"], "standby")
        # A child that lives on has nothing of it.
        child = p.code("""
pid = os.fork()
if pid == 0:
    time.sleep(60)
    os._exit(0)
result = pid
""")
        self.addCleanup(os.kill, child, signal.SIGKILL)
        p.kill()
        self.eventually(lambda: q.status()["state"] == "streaming", what="the standby ships")
        q.sql("INSERT INTO t(v) VALUES('after')")
        q.sync()
        out, _ = self.restore(url)
        self.assertSameBytes(db, out)

    def test_many_tenants_under_a_small_limit(self):
        url = self.path("r", "{name}")
        self.check_tenants(64, 120, 8, {"WALRUST_REPLICA": url}, url)

    def test_many_tenants_under_a_small_limit_on_s3(self):
        s3 = door.S3(self)
        url = s3.url("t/{name}")
        self.check_tenants(72, 60, 8, s3.env(WALRUST_REPLICA=url), url)

    def test_a_shortage_passes(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        short = p.code("""
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
taken = []
try:
    while True:
        taken.append(os.open('/dev/null', os.O_RDONLY))
except OSError:
    pass
errors = 0
end = time.time() + 3
n = 0
while time.time() < end:
    n += 1
    try:
        conns['main'].execute('INSERT INTO t(v) VALUES(?)', (n,))
    except Exception as e:
        errors += 1
    time.sleep(0.005)
state = conns['main'].execute('SELECT state, last_error FROM walrust_status').fetchall()[0]
for fd in taken:
    os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
result = [len(taken) > 10, errors, state[0] == 'failed', n, state]
""")
        self.assertEqual(short[:3], [True, 0, False], f"the program goes on writing, and nothing is given up: {short}")
        self.eventually(lambda: p.status()["state"] == "streaming", what=f"streaming again ({p.status()})")
        p.sync()
        out, _ = self.restore(url)
        self.assertSameBytes(db, out)
        self.assertEqual(len(plain(out)), short[3])

    def test_files_that_were_opened_once_are_forgotten(self):
        p = self.peer().open(":memory:", conn="other")
        grow = """
def go(n):
    for i in range(n):
        path = os.path.join(args['dir'], 'seen%d.db' % i)
        c = connect(path)
        c.execute('CREATE TABLE t(x)')
        c.close()
        os.unlink(path)
def heap():
    import ctypes
    class Info(ctypes.Structure):
        _fields_ = [(n, ctypes.c_size_t) for n in 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'.split()]
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Info
    return libc.mallinfo2().uordblks
go(100)
before = heap()
go(500)
result = (heap() - before) / 400
"""
        # (The first hundred are seen again: four hundred new paths.)
        self.assertLess(p.code(grow, dir=self.dir), 100, "bytes a path that was seen")


def plain(db):
    return door.plain_rows(db, "SELECT v FROM t")


@pytest.mark.campaign
class Campaign(Shared):
    def test_five_thousand_come_and_sixty_stay(self):
        url = self.path("r", "{name}")
        self.check_tenants(256, min(5000, door.rounds(100)), 60, {"WALRUST_REPLICA": url}, url)

    def test_five_thousand_come_and_sixty_stay_on_s3(self):
        s3 = door.S3(self)
        url = s3.url("t/{name}")
        self.check_tenants(256, min(5000, door.rounds(30)), 60, s3.env(WALRUST_REPLICA=url), url)
