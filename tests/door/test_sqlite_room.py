"""How walrust sits inside SQLite: the VFS, hot attach, panics, forks, other libraries and copies.

These need the test build (dist/walrust-crash.so, `make crash-lib`): it has functions named walrust_debug_* and, with
WALRUST_DEBUG_HOST=1, hooks every database file with an observer that counts what it sees.
"""

import os
import shutil
import subprocess
import sys
import unittest

import door

HOST = {"WALRUST_DEBUG_HOST": "1"}
MODULES = ("sqlite3", "apsw")


class RoomTest(door.DoorTest):
    def setUp(self):
        super().setUp()
        if not os.path.exists(door.CRASH_SO):
            self.fail(f"{door.CRASH_SO} does not exist: run `make crash-lib`")

    def room(self, module="sqlite3", host=True):
        return self.peer(module=module, so=door.CRASH_SO, env=HOST if host else None)

    def count(self, p, what, conn="main"):
        return p.sql("SELECT walrust_debug_count(?)", what, conn=conn)

    def python(self, code, *args, env=None, timeout=120):
        """Run code in a fresh interpreter: its output; nothing may come on stderr."""
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=timeout, cwd=self.dir,
            env=door.clean_env(self.dir, env),
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout.strip()


class Hooks(RoomTest):
    def test_files_opened_later_are_hooked_and_commits_counted(self):
        for module in MODULES:
            with self.subTest(module=module):
                p = self.room(module).open(self.path(module + ".db"))
                p.sql("PRAGMA journal_mode=wal")
                p.sql("CREATE TABLE t(x)")
                before = self.count(p, "commits")
                for i in range(100):
                    p.sql("INSERT INTO t VALUES(?)", i)
                for statement in ("BEGIN", "INSERT INTO t VALUES(1)", "ROLLBACK", "SELECT count(*) FROM t"):
                    p.sql(statement)
                self.assertEqual(self.count(p, "commits") - before, 100)
                self.assertEqual((self.count(p, "vfs_opens"), self.count(p, "hot_attaches")), (1, 0))

    def test_hot_attach_sees_the_next_commit(self):
        for module in MODULES:
            with self.subTest(module=module):
                p = self.peer(module=module, so=None, env=HOST).open(self.path(module + ".db"))
                p.sql("PRAGMA journal_mode=wal")
                p.sql("CREATE TABLE t(x)")
                p.sql("ATTACH ? AS other", self.path(module + "-other.db"))
                p.sql("CREATE TABLE other.u(x)")
                p.load(so=door.CRASH_SO)
                self.assertEqual((self.count(p, "vfs_opens"), self.count(p, "hot_attaches")), (0, 2))
                p.sql("INSERT INTO t VALUES(1)")
                self.assertEqual(self.count(p, "commits"), 1)
                p.load(so=door.CRASH_SO)
                self.assertEqual(self.count(p, "hot_attaches"), 2)
                p.close()
                p.open(":memory:")
                self.assertEqual((self.count(p, "closes"), self.count(p, "last_closes")), (2, 1))

    def test_loading_from_a_running_statement(self):
        p = self.peer(so=None, env=HOST).open(self.path("app.db"))
        p.code("conns['main'].enable_load_extension(True)")
        for _ in range(2):
            p.sql("SELECT load_extension(?)", door.CRASH_SO)
            self.assertEqual(p.sql("SELECT walrust_debug_echo(7)"), 7)

    def test_memory_and_temporary_databases_are_left_alone(self):
        p = self.room().open(":memory:").open("", "temporary").open("file:/shared?vfs=memdb", "memdb", uri=True)
        for conn in ("main", "temporary", "memdb"):
            p.sql("CREATE TABLE t AS SELECT 1", conn=conn)
        self.assertEqual((self.count(p, "vfs_opens"), self.count(p, "hot_attaches")), (0, 0))

    def test_a_connection_that_names_another_vfs_is_taken_in(self):
        p = self.room().open(f"file:{self.path('app.db')}?vfs=unix-excl", uri=True)
        self.assertEqual((self.count(p, "vfs_opens"), self.count(p, "hot_attaches")), (0, 1))
        for n, name in enumerate(("unix", "walrust")):
            p.open(f"file:{self.path(name + '.db')}?vfs={name}", name, uri=True)
            self.assertEqual((self.count(p, "vfs_opens"), self.count(p, "hot_attaches")), (n + 1, 1))

    def test_what_is_attached_is_taken_in(self):
        """Also on a connection that was open at the load, and where the program has a VFS of somebody else's registered, as the
        shell has."""
        for module in MODULES:
            with self.subTest(module=module):
                p = self.peer(module=module, so=None, env=HOST).open(self.path(module + ".db")).open(":memory:", "other")
                p.load(so=door.CRASH_SO)
                for n, conn in enumerate(("main", "other")):
                    p.sql("ATTACH ? AS other", self.path(f"{module}-{conn}.db"), conn=conn)
                    self.assertEqual((self.count(p, "vfs_opens"), self.count(p, "hot_attaches")), (n + 1, 1))
                    p.sql("PRAGMA other.journal_mode=wal", conn=conn)
                    p.sql("CREATE TABLE other.t(x)", conn=conn)
                    before = self.count(p, "commits")
                    p.sql("INSERT INTO other.t VALUES(1)", conn=conn)
                    self.assertEqual(self.count(p, "commits") - before, 1)
        out = self.shell(
            f".load {door.shell_word(door.CRASH_SO)}\nATTACH {door.quote(self.path('shell.db'))} AS s;\nCREATE TABLE s.t(x);\n"
            "SELECT walrust_debug_count('vfs_opens');\n", load=False, env=HOST)
        self.assertEqual(out, "1")

    def test_the_vfs_names_itself_before_the_one_below(self):
        code = "import apsw; c = conns['main'].db; result = c.filename and apsw.Connection(c.filename).open_vfs"
        p = self.room("apsw").open(self.path("app.db"))
        self.assertEqual(p.code(code), "unix", "the default VFS is the one it was")
        out = self.shell(
            f".load {door.shell_word(door.CRASH_SO)}\n.open {door.shell_word(self.path('app.db'))}\n.vfsname\n",
            load=False, env=HOST,
        )
        self.assertEqual(out, "walrust/unix")

    def test_pragmas_reach_the_observer_first(self):
        p = self.room().open(self.path("app.db"))
        with self.assertRaisesRegex(door.SqlError, "refused by the observer"):
            p.sql("PRAGMA walrust_debug_refuse")
        self.assertEqual(p.sql("PRAGMA walrust_debug_answer=hello"), "hello")

    def test_two_threads(self):
        p = self.room().open(self.path("app.db"))
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(x)")
        before = self.count(p, "commits")
        p.code(
            """
def work(n):
    c = connect(args["db"])
    for i in range(150):
        c.execute("INSERT INTO t VALUES(?)", (n,))
    c.close()
threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
""",
            db=self.path("app.db"),
        )
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 300)
        self.assertEqual(self.count(p, "commits") - before, 300)
        self.assertEqual(self.count(p, "closes"), 2)

    def test_memory_mapped_reading(self):
        p = self.room().open(self.path("app.db"))
        self.assertEqual(p.sql("PRAGMA mmap_size=100000000"), 100000000)
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(x)")
        before = self.count(p, "commits")
        p.many("INSERT INTO t VALUES(?)", [(bytes([i]) * 3000,) for i in range(50)])
        p.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self.assertEqual(p.sql("SELECT sum(length(x)) FROM t"), 150000)
        self.assertEqual(self.count(p, "commits") - before, 50)
        with open(f"/proc/{p.pid}/maps") as f:
            self.assertIn(self.path("app.db") + "\n", f.read())

    def test_a_storm_of_resets_meets_a_veto(self):
        """BUSY for the reset's lock: SQLite appends, no error reaches the app, no frame is overwritten."""
        for module in MODULES:
            with self.subTest(module=module):
                db = self.path(module + ".db")
                p = self.room(module).open(db)
                for statement in ("PRAGMA journal_mode=wal", "PRAGMA wal_autocheckpoint=5", "PRAGMA synchronous=off", "CREATE TABLE t(x)"):
                    p.sql(statement)

                def salts():
                    with open(db + "-wal", "rb") as f:
                        return f.read(24)[16:]

                p.sql("SELECT walrust_debug_veto(1)")
                before = salts()
                p.many("INSERT INTO t VALUES(?)", [(i,) for i in range(400)])
                p.open(db, "two")
                p.many("INSERT INTO t VALUES(?)", [(i,) for i in range(400)], conn="two")
                self.assertEqual(salts(), before)
                self.assertGreater(self.count(p, "vetoes"), 100)
                p.sql("SELECT walrust_debug_veto(0)")
                p.sql("PRAGMA wal_checkpoint(RESTART)")
                p.sql("INSERT INTO t VALUES(1)")
                self.assertNotEqual(salts(), before)
                self.assertEqual(p.end(), 0)
                self.assertSound(db)
                self.assertEqual(door.plain_rows(db, "SELECT count(*) FROM t"), [(801,)])


class Guest(RoomTest):
    def workload(self, p, mode, mmap):
        p.sql(f"PRAGMA mmap_size={mmap}")
        p.sql(f"PRAGMA journal_mode={mode}")
        p.sql("PRAGMA synchronous=off")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for i in range(40):
            p.sql("BEGIN")
            p.many("INSERT INTO t(v) VALUES(?)", [("x" * (i * 7 % 900),) for _ in range(20)])
            if i % 9 == 0:
                p.sql("DELETE FROM t WHERE id % 3 = 0")
            p.sql("ROLLBACK" if i % 7 == 3 else "COMMIT")
        p.sql("PRAGMA wal_checkpoint")
        p.sql("CREATE INDEX i ON t(v)")
        p.sql("VACUUM")
        p.sql("UPDATE t SET v = v || 'y'")

    def test_files_are_the_same_bytes_with_and_without(self):
        for n, (mode, mmap) in enumerate(
            [("delete", 0), ("truncate", 0), ("persist", 1 << 20), ("memory", 0), ("off", 0), ("wal", 0), ("wal", 1 << 20)]
        ):
            with self.subTest(mode=mode, mmap=mmap):
                names, contents = [], []
                for who, so, env in (("plain", None, None), ("loaded", door.CRASH_SO, None), ("hooked", door.CRASH_SO, HOST)):
                    here = self.path(f"{n}-{who}")
                    os.mkdir(here)
                    p = self.peer(so=so, env=env).open(os.path.join(here, "app.db"))
                    self.workload(p, mode, mmap)
                    self.assertEqual(p.end(), 0)
                    names.append(sorted(os.listdir(here)))
                    with open(os.path.join(here, "app.db"), "rb") as f:
                        contents.append(f.read())
                self.assertEqual(names[0], names[1])
                self.assertEqual(names[0], names[2])
                self.assertTrue(contents[0] == contents[1] == contents[2], "the files differ")

    def test_a_panic_in_a_function_is_an_error(self):
        for module in MODULES:
            with self.subTest(module=module):
                p = self.room(module).open(self.path(module + ".db"))
                with self.assertRaisesRegex(door.SqlError, "walrust_debug_panic: .*asked to panic in a function"):
                    p.sql("SELECT walrust_debug_panic()")
                for where in ("open", "next"):
                    with self.assertRaisesRegex(door.SqlError, "walrust_debug_rows: .*asked to panic"):
                        p.rows("SELECT * FROM walrust_debug_rows(?)", where)
                self.assertEqual(p.rows("SELECT * FROM walrust_debug_rows('drop')"), [(0,)])
                self.assertEqual(p.sql("SELECT 1"), 1)
                self.assertEqual(p.end(), 0)
                self.assertEqual(p.stderr(), "")

    def test_a_panic_in_an_observer_costs_no_commit(self):
        p = self.room().open(self.path("app.db"))
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(x)")
        p.sql("SELECT walrust_debug_panic_observer(1)")
        p.many("INSERT INTO t VALUES(?)", [(i,) for i in range(20)])
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 20)
        self.assertEqual(self.count(p, "panics"), 1)
        self.assertEqual(p.end(), 0)
        self.assertEqual(p.stderr(), "")

    def test_arguments(self):
        p = self.room().open(":memory:")
        with self.assertRaisesRegex(door.SqlError, "walrust_debug_rows: say where to panic"):
            p.rows("SELECT * FROM walrust_debug_rows")
        with self.assertRaisesRegex(door.SqlError, "wrong number of arguments"):
            p.sql("SELECT walrust_debug_echo(1, 2, 3)")
        with self.assertRaisesRegex(door.SqlError, "walrust_debug_echo: argument 1: .*UTF-8"):
            p.sql("SELECT walrust_debug_echo(CAST(x'C328' AS TEXT))")
        self.assertEqual(p.sql("SELECT length(walrust_debug_echo(zeroblob(1048576)))"), 1048576)
        with self.assertRaisesRegex(door.SqlError, "argument 1: 1048577 bytes are more than any argument takes"):
            p.sql("SELECT walrust_debug_echo(zeroblob(1048577))")
        # An argument that comes from another table of the join.
        with self.assertRaisesRegex(door.SqlError, "open, next or drop, not elsewhere"):
            p.rows("SELECT * FROM (SELECT 'elsewhere' AS a) AS x, walrust_debug_rows(x.a)")

    def test_a_hostile_schema_cannot_call(self):
        p = self.room().open(self.path("app.db"))
        p.sql("CREATE TABLE t(x)")
        p.sql("CREATE VIEW v AS SELECT walrust_debug_echo(1)")
        p.sql("CREATE VIEW w AS SELECT * FROM walrust_debug_rows('drop')")
        p.sql("CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT walrust_debug_echo(1); END")
        for sql in ("SELECT * FROM v", "SELECT * FROM w", "INSERT INTO t VALUES(1)"):
            with self.assertRaisesRegex(door.SqlError, "unsafe use", msg=sql):
                p.sql(sql)

    def test_log_lines_go_to_the_apps_log(self):
        out = self.python(
            """
import apsw, sys
lines = []
apsw.config(apsw.SQLITE_CONFIG_LOG, lambda code, text: lines.append(text))
c = apsw.Connection(":memory:"); c.enable_load_extension(True); c.load_extension(sys.argv[1])
try: c.execute("SELECT walrust_debug_panic()")
except apsw.SQLError: pass
print([l for l in lines if l.startswith("walrust: panic at ")] != [])
""",
            door.CRASH_SO,
        )
        self.assertEqual(out, "True")

    def test_the_apps_log_is_called_on_the_apps_threads_only(self):
        """A callback of a program with one thread need not stand another (Tcl aborts)."""
        out = self.python(
            """
import apsw, os, shutil, sys, tempfile, threading, time
lines = []
apsw.config(apsw.SQLITE_CONFIG_LOG, lambda code, text: lines.append((threading.get_native_id(), text)))
d = tempfile.mkdtemp()
c = apsw.Connection(d + "/app.db"); c.enable_load_extension(True); c.load_extension(sys.argv[1])
c.execute("SELECT walrust_watch(?, '{\\"interval\\":\\"0s\\"}')", (d + "/replica",)).fetchall()
c.execute("CREATE TABLE t(x)")
os.rename(d + "/app.db-walrust", d + "/gone")
end = time.time() + 30
while time.time() < end and not any("beginning anew" in t for _, t in lines):
    c.execute("INSERT INTO t VALUES(1)")
    time.sleep(0.05)
print(any("beginning anew" in t for _, t in lines), {i for i, _ in lines} == {threading.get_native_id()})
shutil.rmtree(d, ignore_errors=True)
""",
            door.CRASH_SO,
        )
        self.assertEqual(out, "True True")


class Processes(RoomTest):
    def test_without_load_extension_through_auto_extension(self):
        """A Python without enable_load_extension: ctypes puts the entry on SQLite's own list."""
        out = self.python(
            """
import ctypes, sqlite3, sys
lib = ctypes.CDLL("libsqlite3.so.0")
so = ctypes.CDLL(sys.argv[1])
assert lib.sqlite3_auto_extension(so.sqlite3_walrust_auto_init) == 0
for n in range(2):
    c = sqlite3.connect("app.db", isolation_level=None)
    c.execute("PRAGMA journal_mode=wal"); c.execute("CREATE TABLE t%d(x)" % n)
    print(*c.execute("SELECT walrust_version() LIKE 'walrust %', walrust_debug_count('commits'), "
                     "walrust_debug_count('hot_attaches'), walrust_debug_count('vfs_opens')").fetchone())
    c.close()
""",
            door.CRASH_SO, env=HOST,
        )
        first, second = out.splitlines()
        self.assertEqual(first.split()[0], "1")
        self.assertEqual((first.split()[2:], second.split()[2:]), (["1", "0"], ["1", "1"]))
        self.assertGreater(int(second.split()[1]), int(first.split()[1]))

    def test_a_second_library_is_refused_both_ways_round(self):
        code = """
import sqlite3, apsw, sys
a = sqlite3.connect(":memory:"); b = apsw.Connection(":memory:")
order = [("python", a), ("apsw", b)]
if sys.argv[2] == "apsw": order.reverse()
for name, c in order:
    c.enable_load_extension(True)
    try: c.load_extension(sys.argv[1]); print("loaded", c.execute("SELECT walrust_version()").fetchone()[0])
    except Exception as e: print(e)
"""
        for who in ("python", "apsw"):
            with self.subTest(first=who):
                first, second = self.python(code, door.CRASH_SO, who).splitlines()
                self.assertTrue(first.startswith("loaded walrust "), first)
                self.assertIn("walrust is already loaded in this process by another SQLite library", second)

    def test_a_second_copy_of_the_file_is_refused(self):
        copy = shutil.copy(door.CRASH_SO, self.path("copy.so"))
        p = self.room().open(":memory:")
        with self.assertRaisesRegex(door.SqlError, "walrust is already loaded in this process from another file"):
            p.load(so=copy)
        self.assertEqual(p.sql("SELECT walrust_debug_echo(1)"), 1)

    def test_extended_result_codes_at_open(self):
        """What an auto-extension answers, and what its statements leave behind, must not fail the app's open."""
        p = self.room("apsw").open(self.path("app.db"))
        code = "import apsw; f = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_EXRESCODE; result = apsw.Connection(args['db'], flags=f).open_flags & f == f"
        self.assertTrue(p.code(code, db=self.path("app.db")))

    def test_fork_waits_for_our_own_handles(self):
        p = self.room().open(self.path("app.db"))
        p.sql("CREATE TABLE t(x)")
        p.sql("SELECT walrust_debug_hold(?, 1200)", self.path("app.db"))
        self.assertEqual(p.sql("SELECT walrust_debug_own()"), 1)
        waited, status, left = p.code(
            """
c = conns["main"]
start = time.monotonic()
pid = os.fork()
if pid == 0:
    os._exit(c.execute("SELECT walrust_debug_own()").fetchone()[0])
waited = time.monotonic() - start
result = [waited, os.waitpid(pid, 0)[1], c.execute("SELECT walrust_debug_own()").fetchone()[0]]
"""
        )
        self.assertEqual((status, left), (0, 0))
        self.assertTrue(0.5 < waited < 4, waited)

    def test_a_file_that_could_not_be_let_go_of_is_refused_in_the_child(self):
        """A handle that stays open for longer than a fork waits: SQLite in the child would believe in locks that nobody holds."""
        p = self.room().open(self.path("app.db"))
        p.sql("CREATE TABLE t(x)")
        p.sql("SELECT walrust_debug_hold(?, 7000)", self.path("app.db"))
        waited, said = p.code(
            """
r, w = os.pipe()
start = time.monotonic()
pid = os.fork()
if pid == 0:
    said = []
    for db in args["dbs"]:
        try:
            mine = connect(db)
            mine.execute("CREATE TABLE u(x)")
            said.append("ok")
        except Exception as e:
            said.append(str(e))
    os.write(w, "|".join(said).encode())
    os._exit(0)
waited = time.monotonic() - start
os.waitpid(pid, 0)
result = [waited, os.read(r, 1000).decode().split("|")]
""",
            dbs=[self.path("app.db"), self.path("other.db")],
        )
        self.assertEqual(said, ["unable to open database file", "ok"])
        self.assertTrue(4 < waited < 6.5, waited)
        p.sql("CREATE TABLE v(x)")
        self.assertSound(self.path("app.db"))

    def test_fork_while_threads_work(self):
        """Parent forks again and again while threads commit; each child opens the database for itself and commits."""
        p = self.room().open(self.path("app.db"))
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(x)")
        stuck = p.code(
            """
import signal
stop = threading.Event()
def work():
    while not stop.is_set():
        c = connect(args["db"])
        for i in range(5): c.execute("INSERT INTO t VALUES(0)")
        c.close()
threads = [threading.Thread(target=work) for _ in range(2)]
[t.start() for t in threads]
stuck = 0
for n in range(20):
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None); c.execute('INSERT INTO t VALUES(1)')", args["db"]])
    status = os.waitpid(pid, 0)[1]
    stuck += status != 0
stop.set()
[t.join() for t in threads]
result = stuck
""",
            db=self.path("app.db"),
        )
        self.assertEqual(stuck, 0)
        self.assertEqual(p.sql("SELECT count(*) FROM t WHERE x=1"), 20)
        p.end()
        self.assertSound(self.path("app.db"))


if __name__ == "__main__":
    unittest.main()
