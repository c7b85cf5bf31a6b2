"""A VFS that is not one of SQLite's own: a cipher, a shim that knows its files. Loading walrust changes nothing for its files,
watching is refused in one line, and nothing of them reaches a replica."""

import os
import shutil
import subprocess
import sys
import unittest

import door
from test_loading import find_sqlite_header

VENV = os.path.dirname(door.BIN)
CIPHERS = os.path.join(VENV, "ciphers")
NODE_MODULE = os.path.join(VENV, "npm", "node_modules", "better-sqlite3-multiple-ciphers")
MARK = b"PLAINTEXTMARKER"
REFUSED = (r"is open through the VFS %s, which is not one of SQLite's own", "leaves the file alone", "vfs=unix")

# A loadable extension that makes the suite's shim (tests/sqlite/foreign.h) the default VFS: it ends the process with a line if
# somebody exchanges the methods of its files, or of SQLite's files inside them.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1
#include "foreign.h"
int sqlite3_shim_init(sqlite3 *db, char **err, const sqlite3_api_routines *api){
  SQLITE_EXTENSION_INIT2(api)
  return foreignRegister()==SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : SQLITE_ERROR;
}
"""

# One life of a program with an encrypted database: rows are changed, a second connection reads, and the process dies by SIGKILL.
LIFE = """
import apsw, os, sys
db, so, order, options = sys.argv[1:5]
def load():
    m = apsw.Connection(":memory:"); m.enable_load_extension(True); m.load_extension(so); m.close()
def connect():
    c = apsw.Connection(db); c.pragma("key", "secret"); return c
if order == "before": load()
c = connect()
if order == "after":
    c.execute("SELECT count(*) FROM sqlite_schema").fetchall(); load(); c.enable_load_extension(True); c.load_extension(so)
c.pragma("journal_mode", "wal"); c.pragma("wal_autocheckpoint", 0)
c.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)")
for i in range(20): c.execute("INSERT INTO t(x) VALUES('PLAINTEXTMARKER' || hex(randomblob(700)))")
c.execute("UPDATE t SET x = x || 'PLAINTEXTMARKER' WHERE id % 7 = 3")
second = connect()
print(second.execute("SELECT count(*) FROM t").fetchall()[0][0], second.pragma("integrity_check"), flush=True)
if options == "close": second.close(); c.close()
else: os.kill(os.getpid(), 9)
"""

NODE_LIFE = """
const [db, so, order, module] = process.argv.slice(1);
const D = require(module);
const load = () => { const m = new D(":memory:"); m.loadExtension(so); m.close(); };
const connect = () => { const c = new D(db); c.pragma("key='secret'"); return c; };
if (order == "before") load();
const c = connect();
if (order == "after") { c.prepare("SELECT count(*) FROM sqlite_schema").get(); c.loadExtension(so); }
c.pragma("journal_mode=wal"); c.pragma("wal_autocheckpoint=0");
c.exec("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)");
for (let i = 0; i < 20; i++) c.exec("INSERT INTO t(x) VALUES('PLAINTEXTMARKER' || hex(randomblob(700)))");
c.exec("UPDATE t SET x = x || 'PLAINTEXTMARKER' WHERE id % 7 = 3");
const second = connect();
console.log(second.prepare("SELECT count(*) n FROM t").get().n, second.pragma("integrity_check", {simple: true}));
if (order != "none") {
  try { c.prepare("SELECT walrust_watch(?)").get(db + "-r"); console.log("watched"); } catch (e) { console.log(e.message); }
}
process.kill(process.pid, 9);
"""


class ForeignTest(door.DoorTest):
    def python(self, code, *args, env=None):
        """Run code in a fresh interpreter: its output."""
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120, cwd=self.dir,
                              env=door.clean_env(self.dir, env))
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout.strip()


class CipherTest(ForeignTest):
    def no_plain_text(self, db):
        for name in (db, db + "-wal"):
            if os.path.exists(name):
                with open(name, "rb") as f:
                    self.assertNotIn(MARK, f.read(), f"plain text in {os.path.basename(name)}")

    def encrypted(self, **kwargs):
        return self.peer(module="apsw", env={"PYTHONPATH": CIPHERS, **kwargs.pop("env", {})}, **kwargs)

    def life(self, db, order, options):
        return subprocess.run([sys.executable, "-c", LIFE, db, door.SO, order, options], text=True, capture_output=True, timeout=60,
                              env=door.clean_env(self.dir, {"PYTHONPATH": CIPHERS}), cwd=self.dir)


class MultipleCiphers(CipherTest):
    """apsw-sqlite3mc: SQLite3 Multiple Ciphers encrypts a page of the WAL only if the file has its own table of methods."""

    def test_its_database_is_as_without_walrust_loaded_before_or_after(self):
        for order in ("none", "before", "after"):
            with self.subTest(loaded=order):
                db = self.path(order + ".db")
                for n in range(1, (2 if order == "none" else door.rounds(20)) + 1):
                    done = self.life(db, order, "kill")
                    self.assertEqual((done.stdout.strip(), done.returncode), (f"{20 * n} ok", -9), done.stderr)
                    self.no_plain_text(db)
                done = self.life(db, order, "close")
                self.assertEqual((done.stdout.strip(), done.returncode), (f"{20 * (n + 1)} ok", 0), done.stderr)
                self.no_plain_text(db)
                self.assertEqual(sorted(f for f in os.listdir(self.dir) if f.startswith(order)), [order + ".db"])

    def test_watching_is_refused_and_nothing_is_shipped(self):
        for order in ("before", "after"):
            with self.subTest(loaded=order):
                db, url = self.path(order + ".db"), self.path(order + "-replica")
                p = self.encrypted(so=door.SO if order == "before" else None).open(db)
                p.sql("PRAGMA key='secret'")
                p.sql("CREATE TABLE t(x)")
                if order == "after":
                    p.load()
                with self.assertRaises(door.SqlError) as caught:
                    p.watch(url)
                self.assertErrorLine(str(caught.exception), *(f.replace("%s", "multipleciphers-unix") for f in REFUSED))
                p.sql("INSERT INTO t VALUES('PLAINTEXTMARKER')")
                p.sql("PRAGMA journal_mode=wal")
                p.sql("INSERT INTO t VALUES('PLAINTEXTMARKER')")
                self.no_plain_text(db)
                self.assertEqual(p.rows("SELECT * FROM walrust_status"), [])
                self.assertFalse(os.path.exists(url) or os.path.exists(db + "-walrust"))

    def test_a_configured_one_says_why_it_is_not_shipped(self):
        db, url = self.path("app.db"), self.path("replica")
        p = self.encrypted(env={"WALRUST_REPLICA": url}).open(db)
        p.sql("PRAGMA key='secret'")
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(x)")
        p.sql("INSERT INTO t VALUES('PLAINTEXTMARKER')")
        row = p.status(database=db)
        self.assertEqual(row["state"], "failed")
        self.assertErrorLine(row["last_error"], *(f.replace("%s", "multipleciphers-unix") for f in REFUSED))
        self.assertEqual(p.end(), 0)
        self.no_plain_text(db)
        self.assertFalse(os.path.exists(url) or os.path.exists(db + "-walrust"))

    def test_a_plain_database_through_sqlites_own_vfs_is_watched(self):
        db, url = self.path("app.db"), self.path("replica")
        p = self.encrypted().open(f"file:{db}?vfs=unix", uri=True)
        self.assertIn(url, p.watch(url))
        p.sql("CREATE TABLE t(x)")
        p.sql("INSERT INTO t VALUES(1)")
        p.sync()
        self.assertSameBytes(db, self.restore(url)[0])
        # A cipher cannot come in by that way later: it is refused by the cipher itself.
        with self.assertRaises(door.SqlError):
            p.sql("PRAGMA key='secret'")
            p.sql("PRAGMA rekey='secret'")
        p.sql("INSERT INTO t VALUES('PLAINTEXTMARKER')")
        p.sync()
        self.assertSameBytes(db, self.restore(url)[0])

    def test_the_other_functions_work_in_such_a_program(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t VALUES(1, 'x')")
        p.sync()
        q, out = self.encrypted().open(":memory:"), self.path("out.db")
        self.assertEqual(q.sql("SELECT count(*) FROM walrust_verify(?) WHERE severity <> 'ok'", url) is not None, True)
        q.sql("SELECT walrust_restore(?, ?)", url, out)
        self.assertSameBytes(db, out)

    def test_node(self):
        if not shutil.which("npm"):
            self.skipTest("there is no npm on this machine")
        self.assertTrue(os.path.isdir(NODE_MODULE), "npm is there, the package is not: run `make` again")
        for order in ("none", "before", "after"):
            with self.subTest(loaded=order):
                db = self.path(order + ".db")
                for n in range(1, (2 if order == "none" else door.rounds(20)) + 1):
                    done = subprocess.run(["node", "-e", NODE_LIFE, db, door.SO, order, NODE_MODULE], text=True, capture_output=True,
                                          timeout=60, env=door.clean_env(self.dir), cwd=self.dir)
                    lines = done.stdout.splitlines()
                    self.assertEqual((lines[:1], done.returncode), ([f"{20 * n} ok"], -9), done.stderr)
                    if order != "none":
                        self.assertErrorLine(lines[1], *(f.replace("%s", "multipleciphers-unix") for f in REFUSED))
                    self.no_plain_text(db)
                    self.assertFalse(os.path.exists(db + "-r") or os.path.exists(db + "-walrust"))


class Cipher(CipherTest):
    """SQLCipher encrypts in the pager, above SQLite's own VFS."""

    def test_it_is_watched_and_what_it_ships_is_encrypted(self):
        db, url = self.path("app.db"), self.path("replica")
        out = self.python(
            """
import sys
from sqlcipher3 import dbapi2
db, so, url = sys.argv[1:]
c = dbapi2.connect(db, isolation_level=None); c.execute("PRAGMA key='secret'")
c.execute("CREATE TABLE t(x)"); c.enable_load_extension(True); c.load_extension(so)
print(c.execute("SELECT walrust_watch(?)", (url,)).fetchone()[0])
c.execute("INSERT INTO t VALUES('PLAINTEXTMARKER')"); c.execute("SELECT walrust_sync(30)")
c.execute("SELECT walrust_restore(?, ?, NULL, '{\\"check\\":\\"none\\"}')", (url, db + "-out")).fetchall()
r = dbapi2.connect(db + "-out"); r.execute("PRAGMA key='secret'"); print(r.execute("SELECT x FROM t").fetchall())
""",
            db, door.SO, url, env={"PYTHONPATH": CIPHERS},
        )
        self.assertIn(url, out)
        self.assertIn("[('PLAINTEXTMARKER',)]", out)
        for name in door.tree(url):
            with open(os.path.join(url, name), "rb") as f:
                self.assertNotIn(MARK, f.read(), name)


class Shims(door.DoorTest):
    """A VFS between SQLite and its own that knows its files by their table, as the default or by name."""

    def setUp(self):
        super().setUp()
        header = find_sqlite_header()
        self.assertTrue(header, "sqlite3ext.h is missing: install libsqlite3-dev, as `make` does")
        source, self.shim = self.path("shim.c"), self.path("shim" + door.SUFFIX)
        with open(source, "w") as f:
            f.write(SHIM)
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-w", f"-I{header}", f"-I{os.path.join(door.ROOT, 'tests', 'sqlite')}",
             "-o", self.shim, source, "-ldl"],
            check=True,
        )

    def work(self, p, db):
        """What a program does with its database."""
        for mode in ("wal", "delete", "wal"):
            p.sql(f"PRAGMA journal_mode={mode}")
            p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
            p.many("INSERT INTO t(v) VALUES(?)", [("x" * 300,) for _ in range(50)])
        p.sql("ATTACH ? AS other", db + "-other")
        p.sql("PRAGMA other.journal_mode=wal")
        p.sql("CREATE TABLE IF NOT EXISTS other.u(x)")
        p.sql("INSERT INTO other.u VALUES(1)")
        p.sql("PRAGMA wal_checkpoint")
        p.sql("DETACH other")

    def refused(self, p, url):
        with self.assertRaises(door.SqlError) as caught:
            p.watch(url)
        self.assertErrorLine(str(caught.exception), *(f.replace("%s", "foreign") for f in REFUSED))
        self.assertFalse(os.path.exists(url))

    def test_its_files_are_left_alone(self):
        for order in ("shim first", "walrust first", "file open"):
            with self.subTest(order=order):
                db, url = self.path(order.replace(" ", "-") + ".db"), self.path("replica")
                p = self.peer(so=None).open(":memory:", "boot")
                loads = {"shim first": [self.shim, door.SO], "walrust first": [door.SO, self.shim], "file open": [self.shim]}
                for so in loads[order]:
                    p.load("boot", so)
                p.open(db)
                p.sql("SELECT count(*) FROM sqlite_schema")
                if order == "file open":
                    p.load("main", door.SO)
                self.work(p, db)
                self.refused(p, url)
                self.work(p, db + "2")
                # Beside it, a file of SQLite's own is served as always.
                p.open(f"file:{db}-own?vfs=unix", "own", uri=True)
                p.watch(self.path(order + "-own-replica"), conn="own")
                p.sql("CREATE TABLE t(x)", conn="own")
                p.sync(conn="own")
                self.assertSameBytes(db + "-own", self.restore(self.path(order + "-own-replica"))[0])
                self.assertEqual((p.end(), p.stderr()), (0, ""))
                self.assertSound(db)

    def test_a_configured_one_says_why(self):
        db, url = self.path("app.db"), self.path("replica")
        p = self.peer(so=None, env={"WALRUST_REPLICA": url}).open(":memory:", "boot")
        p.load("boot", self.shim)
        p.load("boot")
        p.open(db)
        self.work(p, db)
        row = p.status(database=db)
        self.assertEqual(row["state"], "failed")
        self.assertErrorLine(row["last_error"], *(f.replace("%s", "foreign") for f in REFUSED))
        self.assertFalse(os.path.exists(url))
        # By the URI, too.
        q = self.peer(so=None).open(":memory:", "boot")
        q.load("boot", self.shim)
        q.load("boot")
        q.open(f"file:{self.path('by-uri.db')}?replica={url}", uri=True)
        q.sql("CREATE TABLE t(x)")
        self.assertEqual(q.status(database=self.path("by-uri.db"))["state"], "failed")
        self.assertFalse(os.path.exists(url))

    def test_one_over_walrust_by_name_is_left_alone(self):
        p = self.peer(module="apsw").open(":memory:", "boot")
        p.code(
            """
import apsw
class Shim(apsw.VFS):
    def __init__(self): super().__init__("over", base="walrust")
    def xOpen(self, name, flags): return File(name, flags)
class File(apsw.VFSFile):
    def __init__(self, name, flags): super().__init__("walrust", name, flags)
    def flip(self, data): return bytes(b ^ 0xA5 for b in data)
    def xRead(self, n, at): return self.flip(super().xRead(n, at))
    def xWrite(self, data, at): super().xWrite(self.flip(data), at)
sys.kept = Shim()
"""
        )
        db, url = self.path("app.db"), self.path("replica")
        p.open(f"file:{db}?vfs=over", uri=True)
        p.sql("CREATE TABLE t(x)")
        p.sql("INSERT INTO t VALUES('PLAINTEXTMARKER')")
        with self.assertRaises(door.SqlError) as caught:
            p.watch(url)
        self.assertErrorLine(str(caught.exception), *(f.replace("%s", "over") for f in REFUSED))
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 1)
        with open(db, "rb") as f:
            self.assertNotIn(MARK, f.read())


class SameVfs(ForeignTest):
    """What SQLite knows by the address of its VFS is one thing before and after the load."""

    URI = "file:shop?mode=memory&cache=shared"

    def test_a_named_in_memory_database_stays_one(self):
        # (apsw's SQLite has no shared cache; its in-memory databases with a name are those of the VFS memdb.)
        for module, uri in (("sqlite3", self.URI), ("sqlite3", "file:/shop?vfs=memdb"), ("apsw", "file:/shop?vfs=memdb")):
            with self.subTest(module=module, uri=uri):
                p = self.peer(module=module, so=None).open(uri, "a", uri=True)
                p.sql("CREATE TABLE t(x)", conn="a")
                p.sql("INSERT INTO t VALUES(1)", conn="a")
                p.load("a")
                for again in (uri, uri + "&vfs=unix" if uri == self.URI else uri):
                    p.open(again, "b", uri=True)
                    self.assertEqual(p.rows("SELECT x FROM t", conn="b"), [(1,)])
                p.open(":memory:", "c", uri=True)
                p.sql("ATTACH ? AS shop", uri, conn="c")
                self.assertEqual(p.rows("SELECT x FROM shop.t", conn="c"), [(1,)])

    def test_a_shared_cache_of_a_file_stays_one(self):
        uri = f"file:{self.path('app.db')}?cache=shared"
        p = self.peer(so=None).open(uri, "a", uri=True)
        p.sql("CREATE TABLE t(x)", conn="a")
        p.load("a")
        p.open(uri, "b", uri=True)
        p.sql("BEGIN", conn="a")
        p.sql("INSERT INTO t VALUES(1)", conn="a")
        p.sql("PRAGMA read_uncommitted=1", conn="b")
        self.assertEqual(p.sql("SELECT count(*) FROM t", conn="b"), 1, "connections of one cache see what is not committed")
        p.sql("COMMIT", conn="a")

    def test_after_shutdown_and_a_new_start(self):
        out = self.python(
            """
import apsw, sys
def load(): c = apsw.Connection(":memory:"); c.enable_load_extension(True); c.load_extension(sys.argv[1]); c.close()
for n in range(3):
    load(); c = apsw.Connection("app.db"); print(c.execute("SELECT walrust_version() IS NOT NULL").fetchall(), apsw.vfs_names()[0]); c.close(); apsw.shutdown()
    c = apsw.Connection("app.db"); c.execute("CREATE TABLE IF NOT EXISTS t(x)"); c.close(); apsw.shutdown()
""",
            door.SO,
        )
        self.assertEqual(out.splitlines(), ["[(1,)] unix"] * 3)


if __name__ == "__main__":
    unittest.main()
