"""walrust as a guest in a process that it does not own: the program's signals, its SQLite going away, its symbols, small stacks, trace, and
what its driver makes of numbers and texts."""

import json
import os
import subprocess
import sys
import unittest

import door

# A server that blocks its signals after everything is loaded, and waits for them.
SIGNALS = """
import os, signal, sqlite3, sys, time
so, d = sys.argv[1:]
a = sqlite3.connect(d + "/app.db", isolation_level=None); a.enable_load_extension(True); a.load_extension(so)
a.execute("SELECT walrust_watch(?, ?)", (d + "/replica", '{}')).fetchone()
a.execute("CREATE TABLE t(x)"); a.execute("SELECT walrust_sync(30)").fetchone()
a.execute("SELECT walrust_replicate(?, ?)", (d + "/replica", d + "/copy.db")).fetchone()
def threads():
    for tid in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{tid}/status") as f: status = f.read()
        fields = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
        if int(tid) != os.getpid(): yield fields["Name"], fields["SigBlk"]
end = time.time() + 20
while not {"walrust-seal", "walrust-ship", "walrust-follow"} <= {n for n, _ in threads()} and time.time() < end: time.sleep(0.02)
time.sleep(0.2)  # one that was made just now gives itself its name, and closes its mask
for name, mask in threads(): print("thread", name, mask)
wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
for s in sorted(wanted):
    os.kill(os.getpid(), s); print("got", signal.Signals(signal.sigwait({s})).name)
print("mask", sorted(signal.Signals(s).name for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])) == sorted(s.name for s in wanted))
"""

# A host that brings its SQLite as a library of its own and unloads it, as PHP does with its module and Lua with its state.
UNLOAD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
typedef struct sqlite3 sqlite3;
int main(int argc, char **argv){
  /* EXTENSION DATABASE SQL: loads, runs the SQL, closes everything, unloads SQLite; once more; waits a moment; ends. */
  int round, rc = 0;
  for(round=0; round<2; round++){
    void *lib = dlopen("libsqlite3.so.0", RTLD_NOW|RTLD_LOCAL);
    int (*open)(const char*, sqlite3**), (*enable)(sqlite3*, int), (*close)(sqlite3*);
    int (*load)(sqlite3*, const char*, const char*, char**), (*exec)(sqlite3*, const char*, void*, void*, char**);
    sqlite3 *db = 0;
    char *err = 0;
    if( !lib ) return 3;
    *(void**)&open = dlsym(lib, "sqlite3_open"); *(void**)&enable = dlsym(lib, "sqlite3_enable_load_extension");
    *(void**)&load = dlsym(lib, "sqlite3_load_extension"); *(void**)&exec = dlsym(lib, "sqlite3_exec");
    *(void**)&close = dlsym(lib, "sqlite3_close");
    open(argv[2], &db); enable(db, 1);
    if( load(db, argv[1], 0, &err) ){ printf("load: %s\n", err); rc = 4; }
    else if( exec(db, argv[3], 0, 0, &err) ){ printf("exec: %s\n", err); rc = 5; }
    if( close(db) ){ puts("close"); rc = 6; }
    if( dlclose(lib) ){ puts("dlclose"); rc = 7; }
  }
  usleep(30000);
  return rc;
}
"""


class Signals(door.DoorTest):
    def test_the_programs_signals_stay_the_programs(self):
        done = subprocess.run([sys.executable, "-c", SIGNALS, door.SO, self.dir], text=True, capture_output=True, timeout=120,
                              env=door.clean_env(self.dir), cwd=self.dir)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        lines = done.stdout.splitlines()
        self.assertEqual([x for x in lines if x.startswith("got")], ["got SIGINT", "got SIGUSR1", "got SIGTERM", "got SIGCHLD"])
        self.assertEqual(lines[-1], "mask True")
        threads = [x.split()[1:] for x in lines if x.startswith("thread")]
        names = {name for name, _ in threads}
        self.assertTrue({"walrust-seal", "walrust-ship", "walrust-follow"} <= names, names)
        # All but the faults that a thread raises itself.
        faults = {4, 5, 7, 8, 11, 31}
        unblockable = {9, 19, 32, 33}
        for name, mask in threads:
            open_ones = {n for n in range(1, 65) if not int(mask, 16) >> (n - 1) & 1} - unblockable
            self.assertEqual(open_ones, faults, name)


class Unloading(door.DoorTest):
    def test_a_host_may_unload_its_sqlite(self):
        source, program = self.path("host.c"), self.path("host")
        with open(source, "w") as f:
            f.write(UNLOAD)
        subprocess.run(["cc", "-O1", "-w", "-o", program, source, "-ldl"], check=True)
        p, _, url = self.watched()
        p.sql("INSERT INTO t VALUES(1, 'x')")
        p.sync()
        follow = f"SELECT walrust_replicate({door.quote(url)}, {door.quote(self.path('copy.db'))}, '{{\"interval\":\"10ms\"}}')"
        mine = f"SELECT walrust_watch({door.quote(self.path('mine-replica'))}); CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES(1)"
        for sql in (follow, mine):
            for _ in range(door.rounds(20)):
                done = subprocess.run([program, door.SO, self.path("mine.db"), sql], text=True, capture_output=True, timeout=60,
                                      env=door.clean_env(self.dir), cwd=self.dir)
                self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))


class Symbols(door.DoorTest):
    @unittest.skipUnless(sys.platform == "linux", "nm -D")
    def test_only_the_entry_points_are_exported(self):
        for so in (door.SO, door.CRASH_SO):
            done = subprocess.run(["nm", "-D", "--defined-only", so], text=True, capture_output=True, check=True)
            names = {line.split()[-1] for line in done.stdout.splitlines()}
            self.assertEqual(names, {"sqlite3_walrust_init", "sqlite3_extension_init", "sqlite3_walrust_auto_init"})


class Drivers(door.DoorTest):
    """What drivers of other languages do with calls and results."""

    def test_a_whole_real_is_a_txid(self):
        """JavaScript and R have no other numbers."""
        p, db, url = self.watched(interval="0s")
        for i in range(4):
            p.sql("INSERT INTO t VALUES(?, 'x')", i)
            txid = p.sync()
        for n, point in enumerate((float(txid - 1), float(txid))):
            self.assertEqual(p.sql("SELECT walrust_restore(?, ?, ?)", url, self.path(f"{n}.db"), point), int(point))
        for point in (2.5, -1.0, 0.0, 1e300, float(txid + 1)):
            with self.assertRaises(door.SqlError) as caught:
                p.sql("SELECT walrust_restore(?, ?, ?)", url, self.path("no.db"), point)
            self.assertErrorLine(str(caught.exception), "walrust_restore")
        self.assertEqual(p.sql("SELECT walrust_restore(?, ?, NULL, ?)", url, self.path("p.db"), '{"parallel":4.0}'), txid)
        self.assertEqual(p.sql("SELECT walrust_sync(5.0)"), txid)

    def test_results_of_one_line_are_ascii(self):
        p = self.peer().open(self.path("app.db"))
        said = [p.watch(self.path("replica"))]
        p.sql("CREATE TABLE t(x)")
        p.sync()
        said.append(p.watch(self.path("replica")))
        said.append(p.sql("SELECT walrust_replicate(?, ?)", self.path("replica"), self.path("copy.db")))
        said += [p.sql("SELECT walrust_version()"), p.sql("SELECT walrust_notify_test()"), p.sql("SELECT walrust_metrics()")]
        said += [str(v) for row in p.rows("SELECT * FROM walrust_status") for v in row]
        said += [str(v) for row in p.rows("SELECT name, value, source, default_value FROM walrust_config") for v in row]
        for sql, *args in (
            ("SELECT walrust_watch('s3:/x')",), ("SELECT walrust_watch('s3://u:p@h/x')",), ("SELECT walrust_watch(?)", "s3://" + "x" * 300),
            ("SELECT walrust_restore('/nowhere', ?, 'no such time')", self.path("x.db")), ("SELECT walrust_verify(?, 'x')", "y" * 200),
        ):
            with self.assertRaises(door.SqlError) as caught:
                p.sql(sql, *args)
            said.append(str(caught.exception))
        for text in said:
            self.assertTrue(text.isascii(), text)

    def test_errors_have_a_length_for_people(self):
        p = self.peer().open(self.path("app.db"))
        for options, *fragments in (
            ({"intervall": "1s"}, r'unknown option "intervall"; did you mean "interval"\?$'),
            ({"retention": {"houry": 3}}, "retention.houry"),
            ({"nonsense": 1}, "nonsense", "allowed: takeover", "walrust_config"),
        ):
            with self.assertRaises(door.SqlError) as caught:
                p.sql("SELECT walrust_watch(?, ?)", self.path("r"), json.dumps(options))
            self.assertErrorLine(str(caught.exception), "walrust_watch", *fragments)
            self.assertLess(len(str(caught.exception)), 160)

    def twice(self, p, sql, *params):
        """PHP's SQLite3 and LuaSQL step a SELECT for the check, reset it, and step it for the rows."""
        first, second = p.rows(sql, *params), p.rows(sql, *params)
        self.assertEqual(first, second)
        return first[0][0]

    def test_a_statement_that_is_stepped_twice_does_its_work_once(self):
        p, db, url = self.watched(interval="0s")
        p.sql("INSERT INTO t VALUES(1, 'x')")
        txid = p.sync()
        out = self.path("out.db")
        for point in (None, txid, float(txid), "now"):
            self.assertEqual(self.twice(p, "SELECT walrust_restore(?, ?, ?)", url, out, point), txid)
            inode = os.stat(out).st_ino
            self.assertEqual(p.sql("SELECT walrust_restore(?, ?, ?)", url, out, point), txid)
            self.assertEqual(os.stat(out).st_ino, inode)
            # What is there now is not what is asked for, or not as it was left.
            with self.assertRaises(door.SqlError) as caught:
                p.sql("SELECT walrust_restore(?, ?, 1)", url, out)
            self.assertErrorLine(str(caught.exception), "exists|outside|not separately")
            os.remove(out)
        p.sql("SELECT walrust_restore(?, ?)", url, out)
        c = door.plain_connect(out)
        c.execute("INSERT INTO t VALUES(100, 'mine')")
        c.close()
        for asked in ((url, out), (url + "/", out)):
            with self.assertRaises(door.SqlError) as caught:
                p.sql("SELECT walrust_restore(?, ?)", *asked)
            self.assertErrorLine(str(caught.exception), "exists")
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(2,)])
        newer = self.path("newer.db")
        p.sql("SELECT walrust_restore(?, ?)", url, newer)
        p.sql("INSERT INTO t VALUES(2, 'y')")
        p.sync()
        with self.assertRaises(door.SqlError) as caught:
            p.sql("SELECT walrust_restore(?, ?)", url, newer)
        self.assertErrorLine(str(caught.exception), "exists")

        copy = self.path("copy.db")
        p.sql("SELECT walrust_replicate(?, ?)", url, copy)
        self.twice(p, "SELECT walrust_unreplicate(?)", copy)
        with self.assertRaises(door.SqlError):
            p.sql("SELECT walrust_unreplicate(?)", self.path("never.db"))
        self.twice(p, "SELECT walrust_snapshot()")
        self.twice(p, "SELECT walrust_sync()")
        self.assertEqual(self.twice(p, "SELECT walrust_unwatch()"), txid + 1)
        p.open(self.path("other.db"), "other")
        with self.assertRaises(door.SqlError):
            p.sql("SELECT walrust_unwatch()", conn="other")
        p.watch(url)
        p.sql("INSERT INTO t VALUES(3, 'z')")
        self.assertEqual(self.twice(p, "SELECT walrust_unwatch()"), txid + 2)

    def test_a_configured_database_that_is_unwatched_twice_stays_unwatched(self):
        p = self.peer(env={"WALRUST_REPLICA": self.path("r")}).open(self.path("app.db"))
        p.sql("CREATE TABLE t(x)")
        p.sync()
        self.twice(p, "SELECT walrust_unwatch()")
        self.assertIsNone(p.status())


class StrangersSql(door.DoorTest):
    """`functions = "read"`, for a program that runs SQL of others."""

    READ = {"walrust_version", "walrust_metrics"}
    TABLES = {"walrust_status", "walrust_config"}

    def offered(self, p, conn="main"):
        functions = {n for n, in p.rows("SELECT DISTINCT name FROM pragma_function_list WHERE name LIKE 'walrust%'", conn=conn)}
        return functions, {n for n, in p.rows("SELECT name FROM pragma_module_list WHERE name LIKE 'walrust%'", conn=conn)}

    def assertReadsOnly(self, p, conn="main"):
        self.assertEqual(self.offered(p, conn), (self.READ, self.TABLES))
        before = sorted(os.listdir(self.dir))
        for sql in (
            "SELECT walrust_restore('r', 'x.db')", "SELECT walrust_snapshot('elsewhere')", "SELECT walrust_watch('elsewhere')",
            "SELECT walrust_unwatch()", "SELECT walrust_sync()", "SELECT walrust_compact('r')", "SELECT walrust_rekey('r')", "SELECT walrust_verify('r')",
            "SELECT * FROM walrust_verify('r')", "SELECT * FROM walrust_list('http://127.0.0.1:1')", "SELECT * FROM walrust_files('r')",
            "SELECT walrust_replicate('r', 'x.db')", "SELECT walrust_unreplicate('x.db')", "SELECT walrust_notify_test()", "SELECT walrust_explain()",
        ):
            with self.assertRaises(door.SqlError) as caught:
                p.sql(sql, conn=conn)
            self.assertErrorLine(str(caught.exception), "no such (function|table)")
        self.assertEqual(sorted(os.listdir(self.dir)), before)

    def test_by_environment_and_file(self):
        for n, how in enumerate(("env", "file")):
            with self.subTest(how):
                db, env = self.path(f"{n}.db"), {"WALRUST_REPLICA": self.path(f"r{n}")}
                if how == "env":
                    env["WALRUST_FUNCTIONS"] = "read"
                else:
                    env["WALRUST_CONFIG"] = door.toml(self, 'functions = "read"\n')
                p = self.peer(env=env).open(db)
                p.sql("CREATE TABLE t(x)")
                # Replication goes on as configured.
                self.eventually(lambda: p.status() and p.status()["replicated_txid"] == p.status()["txid"] > 0, what="the upload")
                self.assertReadsOnly(p)
                self.assertEqual(p.rows("SELECT value FROM walrust_config WHERE name = 'functions'"), [("read",)])
                # The command line is the operator's.
                self.assertEqual(self.run_cli("restore", self.path(f"r{n}"), self.path(f"out{n}.db"), env=env).returncode, 0)

    def test_a_configuration_that_cannot_be_read_allows_no_more(self):
        for n, text in enumerate(('functions = "read"\nnonsense = 1\n', 'functions = "reed"\n')):
            env = {"WALRUST_CONFIG": door.toml(self, text, f"{n}.toml")}
            p = self.peer(env=env).open(self.path("app.db"))
            self.assertEqual(self.offered(p), (self.READ, self.TABLES))
            p.end()
        p = self.peer(env={"WALRUST_FUNCTIONS": "reed"}).open(self.path("app.db"))
        self.assertEqual(self.offered(p), (self.READ, self.TABLES))
        p.end()
        # One that does not speak of functions is no reason to refuse a restore.
        p, db, url = self.watched()
        p.sync()
        q = self.peer(env={"WALRUST_CONFIG": door.toml(self, "nonsense = 1\n")}).open(":memory:")
        q.sql("SELECT walrust_restore(?, ?)", url, self.path("out.db"))

    def test_it_is_no_option_of_a_database(self):
        p = self.peer().open(self.path("app.db"))
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.path("r"), functions="all")
        self.assertErrorLine(str(caught.exception), "whole process", "WALRUST_FUNCTIONS")


# Every call on a thread with a small stack.
STACK = """
import json, sqlite3, sys, threading
so, kb, d, url = sys.argv[1:]
m = sqlite3.connect(":memory:"); m.enable_load_extension(True); m.load_extension(so)
said = []
def work():
    c = sqlite3.connect(d + "/app.db", isolation_level=None)
    def ask(sql, *args):
        try: said.append([sql, c.execute(sql, args).fetchone()[0]])
        except Exception as e: said.append([sql, "error: " + str(e)])
    ask("SELECT walrust_watch(?)", url)
    c.execute("CREATE TABLE IF NOT EXISTS t(x)"); c.execute("INSERT INTO t VALUES(randomblob(100000))")
    for sql in ("SELECT walrust_sync()", "SELECT walrust_snapshot()", "SELECT walrust_explain()", "SELECT walrust_compact()", "SELECT walrust_metrics()",
                "SELECT count(*) FROM walrust_config", "SELECT count(*) FROM walrust_files()", "SELECT count(*) FROM walrust_status"): ask(sql)
    for sql in ("SELECT walrust_verify(?)", "SELECT walrust_verify(?, 'deep')", "SELECT count(*) FROM walrust_list(?)", "SELECT count(*) FROM walrust_verify(?)"): ask(sql, url)
    ask("SELECT walrust_restore(?, ?)", url, d + "/r.db"); ask("SELECT walrust_replicate(?, ?)", url, d + "/c.db"); ask("SELECT walrust_unreplicate(?)", d + "/c.db")
    ask("SELECT walrust_unwatch()"); c.close()
threading.stack_size(int(kb) * 1024); t = threading.Thread(target=work); t.start(); t.join()
print(json.dumps(said))
"""


class Stacks(door.DoorTest):
    def check(self, url, env=None):
        for kb in (128, 96, 64):
            with self.subTest(kb=kb):
                done = subprocess.run(["/usr/bin/python3", "-c", STACK, door.SO, str(kb), self.path(str(kb)), url.format(kb=kb)],
                                      text=True, capture_output=True, timeout=120, env=door.clean_env(self.dir, env), cwd=self.dir)
                self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
                failed = [(sql, said) for sql, said in json.loads(done.stdout) if str(said).startswith("error")]
                if kb == 128:
                    self.assertEqual(failed, [])
                for _, said in failed:
                    self.assertErrorLine(said, "stack")

    def setUp(self):
        super().setUp()
        for kb in (128, 96, 64):
            os.mkdir(self.path(str(kb)))

    def test_directory(self):
        self.check(self.path("replica{kb}"))

    def test_http(self):
        s3 = door.S3(self)
        self.check(s3.url("app{kb}").replace("{{kb}}", "{kb}"), s3.env())


# A program that traces its statements, in every way that its driver has.
TRACE = """
import sqlite3, sys
so, d, how = sys.argv[1:]
seen = []
m = sqlite3.connect(":memory:"); m.enable_load_extension(True); m.load_extension(so)
c = sqlite3.connect(d + "/app.db", isolation_level=None)
c.set_trace_callback(seen.append)
if how == "loads": c.enable_load_extension(True); c.load_extension(so)
said = []
def do(sql, *args): said.append(sql.split("(")[0]); return c.execute(sql, args).fetchall()
do("SELECT walrust_watch(?)", d + "/replica"); do("CREATE TABLE t(x)"); do("INSERT INTO t VALUES(1)"); do("SELECT walrust_sync()")
do("SELECT walrust_snapshot()"); do("SELECT count(*) FROM walrust_status"); do("SELECT walrust_watch(?)", d + "/replica"); do("SELECT walrust_verify()"); do("SELECT walrust_unwatch()")
for s in seen:
    if s.split("(")[0] in said: said.remove(s.split("(")[0])
    else: print(s)
"""


class Traces(door.DoorTest):
    def test_statements_of_ours_are_not_in_the_programs_trace(self):
        for how in ("opens", "loads"):
            with self.subTest(how):
                os.mkdir(self.path(how))
                done = subprocess.run(["/usr/bin/python3", "-c", TRACE, door.SO, self.path(how), how], text=True, capture_output=True,
                                      timeout=60, env=door.clean_env(self.dir), cwd=self.dir)
                self.assertEqual((done.returncode, done.stderr, done.stdout), (0, "", ""))


if __name__ == "__main__":
    unittest.main()
