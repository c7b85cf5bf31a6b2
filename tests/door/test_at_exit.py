"""A program that ends normally and leaves its connections open: what it committed last is in the replica."""

import os
import shutil
import subprocess
import time
import unittest

import door
from test_loading import find_sqlite_header

# Loads, watches with a long interval, commits one by one; how it ends is added.
PYTHON = """
import os, sqlite3, sys, threading, time
so, db, url = sys.argv[1:4]
m = sqlite3.connect(":memory:"); m.enable_load_extension(True); m.load_extension(so)
c = sqlite3.connect(db, isolation_level=None, check_same_thread=False)
c.execute("SELECT walrust_watch(?, '{\\"interval\\":\\"1h\\"}')", (url,)).fetchone()
c.execute("CREATE TABLE IF NOT EXISTS t(x)")
for i in range(20): c.execute("INSERT INTO t VALUES(?)", (i,))
keep = [c, c.execute("SELECT * FROM t")]; keep[1].fetchone()
import ctypes; ctypes.pythonapi.Py_IncRef(ctypes.py_object(c)); ctypes.pythonapi.Py_IncRef(ctypes.py_object(keep[1]))
"""

ENDS = {
    "returns": "",
    "sys.exit": "sys.exit(3)",
    "raises": "raise SystemExit(4)",
    "exit of C": "ctypes.CDLL(None).exit(5)",
    "exit of C on a thread": "t = threading.Thread(target=lambda: ctypes.CDLL(None).exit(6)); t.start(); t.join(); time.sleep(60)",
    "a daemon thread writes on": (
        "def on():\n"
        "    w = sqlite3.connect(db, isolation_level=None, timeout=60)\n"
        "    while True: w.execute('INSERT INTO t VALUES(100)')\n"
        "threading.Thread(target=on, daemon=True).start(); time.sleep(0.2)"
    ),
}
STATUS = {"returns": 0, "sys.exit": 3, "raises": 4, "exit of C": 5, "exit of C on a thread": 6, "a daemon thread writes on": 0}

HOST = r"""
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv){   /* SO DB URL HOW */
  sqlite3 *db; char *err = 0, sql[4000]; int i;
  sqlite3_open(":memory:", &db); sqlite3_enable_load_extension(db, 1);
  if( sqlite3_load_extension(db, argv[1], 0, &err) ){ puts(err); return 9; }
  sqlite3_open(argv[2], &db);
  sqlite3_snprintf(sizeof sql, sql, "SELECT walrust_watch(%Q, '{\"interval\":\"1h\"}')", argv[3]);
  if( sqlite3_exec(db, sql, 0, 0, &err) ){ puts(err); return 9; }
  sqlite3_exec(db, "CREATE TABLE IF NOT EXISTS t(x)", 0, 0, 0);
  for(i=0; i<20; i++) if( sqlite3_exec(db, "INSERT INTO t VALUES(1)", 0, 0, &err) ){ puts(err); return 9; }
  if( strcmp(argv[4], "open transaction")==0 ) sqlite3_exec(db, "BEGIN; INSERT INTO t VALUES(2)", 0, 0, 0);
  if( strcmp(argv[4], "shutdown")==0 ) sqlite3_shutdown();
  return 0;
}
"""

PERL = """
use DBI; my ($so, $db, $url) = @ARGV;
my $m = DBI->connect("dbi:SQLite:dbname=:memory:", "", "", {RaiseError => 1}); $m->sqlite_enable_load_extension(1); $m->sqlite_load_extension($so);
our $c = DBI->connect("dbi:SQLite:dbname=$db", "", "", {RaiseError => 1, AutoCommit => 1});
$c->selectall_arrayref("SELECT walrust_watch(?, '{\\"interval\\":\\"1h\\"}')", undef, $url);
$c->do("CREATE TABLE IF NOT EXISTS t(x)"); $c->do("INSERT INTO t VALUES(1)") for 1..20;
"""

PHP = """<?php
$m = new SQLite3(":memory:"); $m->loadExtension("walrust.so");
$c = new SQLite3($argv[1]);
$c->querySingle("SELECT walrust_watch('" . $argv[2] . "', '{\\"interval\\":\\"1h\\"}')");
$c->exec("CREATE TABLE IF NOT EXISTS t(x)"); for ($i = 0; $i < 20; $i++) $c->exec("INSERT INTO t VALUES(1)");
"""


class AtExit(door.DoorTest):
    def ended(self, argv, env=None):
        begun = time.monotonic()
        done = subprocess.run(argv, text=True, capture_output=True, env=door.clean_env(self.dir, env), cwd=self.dir, timeout=60)
        self.assertEqual((done.stdout, done.stderr), ("", ""))
        return done.returncode, time.monotonic() - begun

    def assertHasAll(self, db, url, env=None):
        out, _ = self.restore(url, env=env)
        wanted = door.plain_rows(db, "SELECT count(*), max(rowid) FROM t")
        self.assertEqual(door.plain_rows(out, "SELECT count(*), max(rowid) FROM t"), wanted)
        return wanted[0][0]

    def test_python(self):
        for how, end in ENDS.items():
            for n in range(door.rounds(3)):
                with self.subTest(how, n=n):
                    db, url = self.path(f"{how} {n}.db"), self.path(f"{how} {n}")
                    status, took = self.ended(["/usr/bin/python3", "-c", PYTHON + end, door.SO, db, url])
                    self.assertEqual(status, STATUS[how])
                    self.assertLess(took, 6)
                    if how != "a daemon thread writes on":
                        self.assertEqual(self.assertHasAll(db, url), 20)
                    else:
                        # What was committed before the end; the thread goes on until the process is gone.
                        out, _ = self.restore(url)
                        self.assertGreater(door.plain_rows(out, "SELECT count(*) FROM t")[0][0], 20)

    def test_python_over_http(self):
        s3 = door.S3(self)
        for n in range(door.rounds(2)):
            db, url = self.path(f"{n}.db"), s3.url(str(n))
            status, _ = self.ended(["/usr/bin/python3", "-c", PYTHON, door.SO, db, url], env=s3.env())
            self.assertEqual(status, 0)
            self.assertEqual(self.assertHasAll(db, url, env=s3.env()), 20)

    def test_a_configured_program_that_lives_for_a_moment(self):
        code = (
            "import sqlite3, sys, ctypes\n"
            "m = sqlite3.connect(':memory:'); m.enable_load_extension(True); m.load_extension(sys.argv[1])\n"
            "c = sqlite3.connect(sys.argv[2], isolation_level=None); ctypes.pythonapi.Py_IncRef(ctypes.py_object(c))\n"
            "c.execute('CREATE TABLE IF NOT EXISTS t(x)'); c.execute('INSERT INTO t VALUES(1)')\n"
        )
        db = self.path("app.db")
        for n in range(door.rounds(5)):
            env = {"WALRUST_REPLICA": self.path("r"), "WALRUST_INTERVAL": "1h"}
            _, took = self.ended(["/usr/bin/python3", "-c", code, door.SO, db], env=env)
            with self.subTest(n=n, took=took):
                self.assertEqual(self.assertHasAll(db, self.path("r")), n + 1)

    def test_while_the_database_is_read_anew(self):
        """Others changed it past walrust, and the program ends while it is read for that: what it committed is in the replica."""
        db, url = self.path("app.db"), self.path("r")
        anew = (
            "keep[1].fetchall()\n"
            "c.execute('WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60000) INSERT INTO t SELECT randomblob(1000) FROM n')\n"
            "c.execute('SELECT walrust_sync()').fetchone()\n"
            "import subprocess\n"
            "subprocess.run(['sqlite3', db, 'INSERT INTO t VALUES(-1); PRAGMA wal_checkpoint(TRUNCATE)'], check=True, stdout=subprocess.DEVNULL)\n"
            "c.execute('INSERT INTO t VALUES(-2)')\n"
            "end = time.monotonic() + 20\n"
            "while c.execute('SELECT state FROM walrust_status').fetchone()[0] != 'snapshotting':\n"
            "    assert time.monotonic() < end\n"
        )
        self.ended(["/usr/bin/python3", "-c", PYTHON + anew, door.SO, db, url])
        self.assertEqual(self.assertHasAll(db, url), 60022)

    def test_a_store_that_does_not_answer_holds_nobody_up(self):
        """As long as a close, and not at all if it is known."""
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        through = proxy.forward
        stuck = self.path("stuck")

        def forward(method, *request):
            while os.path.exists(stuck):
                time.sleep(0.05)
            return through(method, *request)

        proxy.forward = forward
        self.addCleanup(lambda: os.path.exists(stuck) and os.remove(stuck))
        end = f"c.execute('SELECT walrust_sync(20)').fetchone(); open({stuck!r}, 'w').close(); c.execute('INSERT INTO t VALUES(3)')"
        status, took = self.ended(
            ["/usr/bin/python3", "-c", PYTHON.replace("; keep[1].fetchone()", "") + end, door.SO, self.path("a.db"), s3.url("a", proxy.endpoint)],
            env=s3.env(),
        )
        self.assertEqual(status, 0)
        self.assertLess(took, 12)
        os.remove(stuck)

    def test_c(self):
        header = find_sqlite_header()
        self.assertTrue(header, "sqlite3.h is missing: install libsqlite3-dev, as `make` does")
        source, program = self.path("host.c"), self.path("host")
        with open(source, "w") as f:
            f.write(HOST)
        lib = next((x for x in ("/usr/lib/x86_64-linux-gnu/libsqlite3.so.0", "/usr/lib/aarch64-linux-gnu/libsqlite3.so.0") if os.path.exists(x)), "-lsqlite3")
        subprocess.run(["cc", "-O1", "-w", f"-I{header}", "-o", program, source, lib], check=True)
        for how in ("plain", "open transaction", "shutdown"):
            for n in range(door.rounds(3)):
                with self.subTest(how, n=n):
                    db, url = self.path(f"{how} {n}.db"), self.path(f"{how} {n}")
                    status, took = self.ended([program, door.SO, db, url, how])
                    self.assertEqual(status, 0)
                    self.assertLess(took, 6)
                    self.assertEqual(self.assertHasAll(db, url), 20)

    @unittest.skipUnless(shutil.which("perl") and subprocess.run(["perl", "-MDBD::SQLite", "-e1"], capture_output=True).returncode == 0,
                         "no DBD::SQLite")
    def test_perl(self):
        for n in range(door.rounds(3)):
            db, url = self.path(f"{n}.db"), self.path(str(n))
            status, _ = self.ended(["perl", "-e", PERL + "exit(3);", door.SO, db, url])
            self.assertEqual(status, 3)
            self.assertEqual(self.assertHasAll(db, url), 20)

    @unittest.skipUnless(shutil.which("php") and b"sqlite3" in subprocess.run(["php", "-m"], capture_output=True).stdout, "no PHP with SQLite3")
    def test_php(self):
        script = self.path("x.php")
        with open(script, "w") as f:
            f.write(PHP + "exit(3);")
        shutil.copy(door.SO, self.path("walrust.so"))
        for n in range(door.rounds(3)):
            db, url = self.path(f"{n}.db"), self.path(str(n))
            status, _ = self.ended(["php", "-d", f"sqlite3.extension_dir={self.dir}", script, db, url])
            self.assertEqual(status, 3)
            self.assertEqual(self.assertHasAll(db, url), 20)


if __name__ == "__main__":
    unittest.main()
