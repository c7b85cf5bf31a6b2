"""The wheels, installed from their files into Pythons of every kind: Debian's, those of pyenv that cannot load extensions."""

import glob
import json
import os
import subprocess
import unittest
import zipfile

import clean
import meta

# Streams, restores, reads back, verifies, and says what it saw.
PROGRAM = """
import json, os, sqlite3, sys, datetime
import walrust
d = sys.argv[1] + "/data"
os.mkdir(d)
db, url = os.path.join(d, "app.db"), os.path.join(d, "replica")
walrust.load(); walrust.load()
assert walrust.loadable_path().startswith(os.path.dirname(walrust.__file__)) and os.path.exists(walrust.loadable_path())
first = walrust.watch(db, url, interval="0s")
c = sqlite3.connect(db, isolation_level=None)
c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
for i in range(300): c.execute("INSERT INTO t(v) VALUES(?)", (b"x" * 100,))
txid = walrust.sync(db)
c.execute("DELETE FROM t")
assert walrust.sync(c, timeout=20) > txid
(row,) = walrust.status()
out = os.path.join(d, "past.db")
try: walrust.restore(url + "-nothing", out); refused = ""
except walrust.Error as e: refused = str(e)
try: walrust.watch(db, url, intervall="1s"); wrong = ""
except walrust.Error as e: wrong = str(e)
print(json.dumps({
    "extensions": hasattr(sqlite3.Connection, "enable_load_extension"), "sqlite": sqlite3.sqlite_version, "version": walrust.__version__,
    "state": [first.state, row.state], "txid": txid, "restored": walrust.restore(url, out, txid),
    "rows": sqlite3.connect(out).execute("SELECT count(*) FROM t").fetchone()[0],
    "now": walrust.connect(url).execute("SELECT count(*) FROM t").fetchone()[0],
    "past": walrust.connect(url, txid).execute("SELECT count(*) FROM t").fetchone()[0],
    "soon": walrust.connect(url, datetime.timedelta(seconds=0)).execute("SELECT count(*) FROM t").fetchone()[0],
    "ok": walrust.verify(url).ok, "deep": walrust.verify(url, "deep").ok, "snapshot": walrust.snapshot(db),
    "upload": row.last_upload.tzinfo is datetime.timezone.utc and abs((datetime.datetime.now(datetime.timezone.utc) - row.last_upload).total_seconds()) < 60,
    "refused": refused, "wrong": wrong, "unwatched": walrust.unwatch(db), "left": walrust.status(),
    "libraries": sorted({l.split()[-1] for l in open("/proc/self/maps") if "libsqlite3" in l}),
    "leftovers": [n for n in os.listdir(d) if n not in ("app.db", "app.db-wal", "app.db-shm", "app.db-walrust", "replica", "past.db", "past.db-wal", "past.db-shm")],
}))
"""


def pythons():
    """Every Python from 3.7 on that stands on this machine, one a version."""
    found = {}
    for path in ["/usr/bin/python3", *sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python3"))), *sorted(glob.glob("/opt/python/*/bin/python3"))]:
        done = subprocess.run([path, "-c", "import sys, venv, sqlite3; print(*sys.version_info[:2])"], text=True, capture_output=True)
        if done.returncode == 0 and tuple(map(int, done.stdout.split())) >= (3, 7):
            found[path] = done.stdout.split()
    return list(found)


class Installed(clean.CleanTest):
    def install(self, python, *more):
        """A fresh virtual environment with the wheels from their files, and nothing from an index but what is asked for."""
        venv = self.path("venv")
        self.run_ok(python, "-m", "venv", venv)
        pip = [os.path.join(venv, "bin", "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        self.run_ok(*pip, "--no-index", "--find-links", clean.OUT, "walrust")
        if more:
            self.run_ok(*pip, *more)
        return os.path.join(venv, "bin", "python")

    def test_every_python_of_this_machine(self):
        self.assertTrue(pythons())
        seen = set()
        for python in pythons():
            with self.subTest(python):
                self.setUp()
                done = self.run_ok(self.install(python), "-c", PROGRAM, self.dir)
                said = json.loads(done)
                self.assertEqual(said["version"], meta.VERSION)
                self.assertEqual(said["state"], [said["state"][0], "streaming"])
                self.assertEqual(said["restored"], said["txid"])
                self.assertEqual([said["rows"], said["past"], said["now"], said["soon"]], [300, 300, 0, 0])
                self.assertEqual([said["ok"], said["deep"], said["upload"]], [True, True, True])
                self.assertIn("walrust_restore", said["refused"])
                self.assertIn("interval", said["wrong"])
                self.assertEqual(said["left"], [])
                self.assertGreaterEqual(said["unwatched"], said["snapshot"])
                self.assertLessEqual(len(said["libraries"]), 1, "a second SQLite is in the process")
                self.assertEqual(said["leftovers"], [])
                seen.add(said["extensions"])
        if any(".pyenv" in p for p in pythons()):
            self.assertEqual(seen, {True, False}, "both ways of loading are tried")

    def test_the_command_line(self):
        python = self.install("/usr/bin/python3")
        script = os.path.join(os.path.dirname(python), "walrust")
        for command in ([script], [python, "-m", "walrust"]):
            self.assertIn(meta.VERSION, self.run_ok(*command, "--version"))
        self.run_ok("sqlite3", self.path("app.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        self.run_ok(script, "sync", self.path("app.db"), self.path("replica"))
        self.run_ok(script, "restore", self.path("replica"), self.path("copy.db"))
        self.run_ok(script, "verify", self.path("replica"))
        self.assertEqual(self.run_ok("sqlite3", self.path("copy.db"), "SELECT * FROM t").strip(), "1")
        done = subprocess.run([script, "verify", self.path("nothing")], capture_output=True, env=self.env(), cwd=self.dir)
        self.assertNotEqual(done.returncode, 0, "the program's exit status is the script's")

    def test_apsw_and_connections_that_were_open_before(self):
        python = self.install("/usr/bin/python3", "apsw")
        code = (
            "import apsw, walrust, sys\nc = apsw.Connection(sys.argv[1] + '/a.db')\n"
            "walrust.load(c)\n"
            "c.cursor().execute('SELECT walrust_watch(?)', (sys.argv[1] + '/r',)).fetchall(); c.cursor().execute('CREATE TABLE t(x)')\n"
            "print(walrust.sync(c))\n"
        )
        self.assertGreater(int(self.run_ok(python, "-c", code, self.dir)), 0)
        code = (
            "import sqlite3, walrust, sys\nc = sqlite3.connect(sys.argv[1] + '/b.db')\ntry: walrust.load(c)\n"
            "except walrust.Error as e: print('error', e)\nelse: print(c.execute('SELECT walrust_version()').fetchone()[0])\n"
            "print(sqlite3.connect(':memory:').execute('SELECT walrust_version()').fetchone()[0])\n"
        )
        for which in pythons():
            if "3.11" in which or which.startswith("/usr"):
                self.setUp()
                first, second = self.run_ok(self.install(which), "-c", code, self.dir).splitlines()
                self.assertRegex(first, "^(walrust |error this connection was opened before)", which)
                self.assertRegex(second, "^walrust ", which)

    def test_a_fork_has_connections_of_its_own(self):
        python = self.install("/usr/bin/python3")
        code = (
            "import os, sqlite3, sys, walrust\ndb, url = sys.argv[1] + '/app.db', sys.argv[1] + '/replica'\n"
            "walrust.watch(db, url)\nc = sqlite3.connect(db); c.execute('CREATE TABLE t(x)'); c.close()\nwalrust.sync(db)\n"
            "pid = os.fork()\n"
            "if pid == 0:\n    c = sqlite3.connect(db); c.execute('INSERT INTO t VALUES(1)'); c.commit(); c.close(); os._exit(0)\n"
            "assert os.waitpid(pid, 0)[1] == 0\nwalrust.sync(db)\nprint(walrust.connect(url).execute('SELECT count(*) FROM t').fetchone()[0])\n"
        )
        self.assertEqual(self.run_ok(python, "-c", code, self.dir).strip(), "1")

    def test_a_watch_that_is_refused_leaves_nothing_open(self):
        python = self.install("/usr/bin/python3")
        code = (
            "import os, sqlite3, sys, walrust\ndb = sys.argv[1] + '/app.db'\nc = sqlite3.connect(db); c.execute('CREATE TABLE t(x)'); c.close()\n"
            "for url, more in (('nosuch://x', {}), (sys.argv[1] + '/r', {'intervall': '1s'})):\n"
            "    try: walrust.watch(db, url, **more)\n    except walrust.Error as e: assert len(str(e).splitlines()) == 1\n    else: print('watched')\n"
            "assert [n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n) and os.readlink('/proc/self/fd/' + n) == db] == []\n"
            "try: walrust.sync(sys.argv[1] + '/nothing.db')\nexcept walrust.Error as e: print(e)\n"
            "print(os.path.exists(sys.argv[1] + '/nothing.db'))\n"
        )
        said = self.run_ok(python, "-c", code, self.dir).splitlines()
        self.assertEqual([len(said), said[-1]], [2, "False"], said)
        self.assertIn("unable to open database file", said[0])

    def test_it_is_typed(self):
        python = self.install("/usr/bin/python3", "mypy")
        use = self.file("use.py", (
            "import datetime, sqlite3\nimport walrust\n"
            "a: walrust.Status = walrust.watch('app.db', 's3://b/p', interval='5s')\n"
            "b: int = walrust.restore('u', 'p', datetime.timedelta(minutes=5), overwrite=True)\n"
            "c: sqlite3.Connection = walrust.connect('u')\nd: bool = walrust.verify('u').ok\n"
        ))
        self.assertIn("Success", self.run_ok(python, "-m", "mypy", "--strict", use))
        wrong = self.file("wrong.py", "import walrust\nx: str = walrust.sync('app.db')\n")
        done = subprocess.run([python, "-m", "mypy", "--strict", wrong], capture_output=True, text=True, env=self.env(), cwd=self.dir)
        self.assertIn("Incompatible types", done.stdout)


class Files(clean.CleanTest):
    def test_the_record_and_the_metadata(self):
        for path in glob.glob(os.path.join(clean.OUT, "*.whl")):
            with zipfile.ZipFile(path) as z:
                self.assertIsNone(z.testzip())
                names = z.namelist()
                record = next(n for n in names if n.endswith("/RECORD"))
                listed = [line.split(",")[0] for line in z.read(record).decode().splitlines()]
                self.assertEqual(sorted(listed), sorted(names))
                (info,) = [n for n in names if n.endswith("METADATA")]
                self.assertIn(f"Version: {meta.VERSION}\n", z.read(info).decode())

    def test_auditwheel_agrees_with_the_tag(self):
        """It reads what the library needs of glibc. (Of musl's it cannot on a machine without musl's loader in its place.)"""
        tools = clean.scratch("auditwheel")
        if not os.path.exists(os.path.join(tools, "bin", "auditwheel")):
            subprocess.run(["/usr/bin/python3", "-m", "venv", tools], check=True)
            subprocess.run([os.path.join(tools, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "auditwheel==6.8.2"], check=True)
        wheels = glob.glob(os.path.join(clean.OUT, "*manylinux*.whl"))
        self.assertTrue(wheels)
        for wheel in wheels:
            said = " ".join(self.run_ok(os.path.join(tools, "bin", "auditwheel"), "show", wheel).split())
            platform = os.path.basename(wheel).split("-none-")[1].split(".whl")[0].split(".")[0]
            self.assertRegex(said, f'(consistent with|compatible with).*"{platform}"', wheel)


if __name__ == "__main__":
    unittest.main()
