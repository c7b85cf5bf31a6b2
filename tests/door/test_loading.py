"""How walrust comes into a process, and the four ways to say which database goes where."""

import os
import re
import subprocess
import sys
import unittest
import urllib.parse

import door

OLD_HOST = r"""
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <dlfcn.h>
#include <sqlite3ext.h>
/* An SQLite that says it is 3.20.0: every slot of its API table past the version is poison. */
static int version(void){ return 3020000; }
static const char *text(void){ return "3.20.0"; }
static char *format(const char *f, ...){ static char b[500]; va_list a; va_start(a, f); vsnprintf(b, sizeof b, f, a); va_end(a); return b; }
static void *grab(int n){ static char b[4096]; return n < 4096 ? b : 0; }
static void *grab64(sqlite3_uint64 n){ static char b[4096]; return n < 4096 ? b : 0; }
int main(int argc, char **argv){
  static sqlite3_api_routines api;
  char *err = 0;
  int (*init)(void*, char**, const sqlite3_api_routines*);
  void *so = dlopen(argv[1], RTLD_NOW);
  if( !so ){ puts(dlerror()); return 3; }
  api.libversion = text; api.libversion_number = version; api.mprintf = (char*(*)(const char*,...))format;
  api.malloc = grab; api.malloc64 = grab64;
  *(void**)&init = dlsym(so, "sqlite3_walrust_init");
  int rc = init((void*)&api, &err, &api);
  printf("%d %s\n", rc, err ? err : "(none)");
  return 0;
}
"""


class Loading(door.DoorTest):
    def rows(self, db):
        return door.plain_rows(db, "SELECT id, v FROM t ORDER BY id")

    def test_hot_attach_in_the_shell(self):
        """open, .load, watch, insert: the very next commit is captured, with no re-open."""
        db, url = self.path("app.db"), self.path("r")
        out = self.shell(
            f"CREATE TABLE t(id INTEGER PRIMARY KEY, v);\nINSERT INTO t VALUES(1, 'before');\n.load {door.shell_word(door.SO)}\n"
            f"SELECT walrust_watch('{url}');\nINSERT INTO t VALUES(2, 'after');\nSELECT walrust_sync(30);\n",
            db, load=False,
        )
        line, txid = out.splitlines()[-2:]
        self.assertIn(url, line)
        restored, at = self.restore(url)
        self.assertEqual(at, int(txid))
        self.assertEqual(self.rows(restored), [(1, "before"), (2, "after")])
        self.assertSameBytes(db, restored)

    def test_hot_attach_of_a_wal_database_with_frames(self):
        """The database is in WAL mode, with commits not yet checkpointed, before the extension comes."""
        db, url = self.path("app.db"), self.path("r")
        p = self.peer(so=None).open(db)
        p.sql("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "x" * 500) for i in range(50)])
        p.load()
        p.watch(url)
        p.sql("INSERT INTO t VALUES(100, 'after')")
        p.sync()
        restored, _ = self.restore(url)
        self.assertSameBytes(db, restored)

    def test_commit_after_watch_of_a_second_connection(self):
        """A connection opened later by plain path is captured too."""
        p, db, url = self.watched()
        p.open(db, "two")
        p.sql("INSERT INTO t VALUES(1, 'two')", conn="two")
        p.close("main")
        p.sql("INSERT INTO t VALUES(2, 'two')", conn="two")
        p.sync(conn="two")
        self.assertEqual(self.rows(self.restore(url)[0]), [(1, "two"), (2, "two")])

    def test_loading_twice_is_harmless(self):
        db, url = self.path("app.db"), self.path("r")
        p = self.peer().open(db)
        p.load()
        p.load()
        p.watch(url)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.load()
        p.sql("INSERT INTO t VALUES(1, 'x')")
        p.sync()
        self.assertSameBytes(db, self.restore(url)[0])

    def test_loading_changes_nothing_for_an_unconfigured_database(self):
        db = self.path("app.db")
        p = self.peer().open(db)
        for mode in ("truncate", "wal", "delete"):
            self.assertEqual(p.sql(f"PRAGMA journal_mode={mode}"), mode)
            p.sql(f"CREATE TABLE {mode}_t(x)")
        p.end()
        self.assertEqual(sorted(os.listdir(self.dir)), ["app.db"])
        self.assertEqual(door.plain_rows(db, "SELECT count(*) FROM sqlite_schema"), [(3,)])

    def test_a_directory_that_is_no_replica_is_sqlites_to_refuse(self):
        """What stock SQLite says of it, open and attach, is what is said."""
        os.makedirs(self.path("folder", "inside"))
        for sql in (f"ATTACH '{self.path('folder')}' AS f; SELECT * FROM f.sqlite_schema;", ".open folder\nSELECT * FROM sqlite_schema;"):
            told = [self.run_shell(sql, load=load).stderr for load in (False, True)]
            self.assertTrue(told[0])
            self.assertEqual(told[0].split(":", 1)[-1], told[1].split(":", 1)[-1])

    def test_the_vfs_is_named_and_default(self):
        out = self.shell(".vfsname\n", self.path("x.db"), load=False)
        self.assertNotIn("walrust", out)
        out = self.shell(f".open {door.shell_word(self.path('y.db'))}\n.vfsname\n")
        self.assertIn("walrust", out)

    def test_apsw(self):
        db, url = self.path("app.db"), self.path("r")
        p = self.peer(module="apsw").open(db)
        self.assertGreater(tuple(int(x) for x in p.sqlite_version.split(".")), (3, 50))
        p.watch(url)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "x") for i in range(20)])
        p.sync()
        self.assertSameBytes(db, self.restore(url)[0])

    def test_an_old_sqlite_is_refused_in_one_line(self):
        source, program = self.path("host.c"), self.path("host")
        with open(source, "w") as f:
            f.write(OLD_HOST)
        header = find_sqlite_header()
        if not header:
            self.skipTest("sqlite3ext.h is not installed")
        subprocess.run(["cc", "-o", program, "-I", header, source, "-ldl"], check=True)
        done = subprocess.run([program, door.SO], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(done.stdout.strip().splitlines()), 1)
        self.assertEqual(done.stdout.split()[0], "1", done.stdout)
        self.assertErrorLine(done.stdout, r"3\.24\.0 or newer", r"3\.20\.0")

    def test_a_second_sqlite_in_the_process_is_refused(self):
        """apsw brings its own SQLite: what is loaded into one must not be swapped under the other."""
        code = (
            "import sqlite3, apsw, sys\n"
            "a = sqlite3.connect(':memory:'); a.enable_load_extension(True); a.load_extension(sys.argv[1])\n"
            "b = apsw.Connection(':memory:'); b.enable_load_extension(True)\n"
            "try:\n    b.load_extension(sys.argv[1]); print('loaded')\n"
            "except Exception as e:\n    print(str(e))\n"
            "print(a.execute('SELECT walrust_version()').fetchone()[0])\n"
        )
        done = subprocess.run([sys.executable, "-c", code, door.SO], capture_output=True, text=True, timeout=60, cwd=self.dir)
        self.assertEqual(done.returncode, 0, done.stderr)
        first, version = done.stdout.strip().splitlines()
        self.assertNotEqual(first, "loaded")
        self.assertIn("SQLite", first)
        self.assertRegex(version, r"\d+\.\d+\.\d+")


class Configured(door.DoorTest):
    def fill(self, p, n=5):
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.many("INSERT INTO t VALUES(?, 'x')", [(i,) for i in range(n)])

    def test_environment(self):
        p = self.peer(env={"WALRUST_REPLICA": self.path("replicas", "{name}")}).open(self.path("app.db"))
        p.sql("PRAGMA journal_mode=wal")
        self.fill(p)
        p.sync()
        name = os.listdir(self.path("replicas"))
        self.assertEqual(len(name), 1)
        self.assertIn(name[0], ("app", "app.db"))
        self.assertSameBytes(self.path("app.db"), self.restore(self.path("replicas", name[0]))[0])
        self.assertIn("WALRUST_REPLICA", p.sql("SELECT source FROM walrust_config WHERE name='replica'"))

    def test_uri_parameters(self):
        url = self.path("r")
        uri = f"file:{self.path('app.db')}?vfs=walrust&replica={url.replace('/', '%2F')}&interval=2s"
        p = self.peer().open(uri, uri=True)
        p.sql("PRAGMA journal_mode=wal")
        self.fill(p)
        p.sync()
        self.assertSameBytes(self.path("app.db"), self.restore(url)[0])
        self.assertEqual(p.rows("SELECT value FROM walrust_config WHERE name='interval'"), [("2s",)])

    def test_toml_of_the_environment(self):
        door.toml(self, f'interval = "3s"\n[[databases]]\npath = "{self.dir}/*.db"\nreplica = "{self.dir}/out/{{name}}"\n', "w.toml")
        p = self.peer(env={"WALRUST_CONFIG": self.path("w.toml")})
        for name in ("one", "two"):
            p.open(self.path(name + ".db"), name)
            p.sql("PRAGMA journal_mode=wal", conn=name)
            p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", conn=name)
            p.sync(conn=name)
        self.assertEqual(len(os.listdir(self.path("out"))), 2)
        self.assertEqual(p.rows("SELECT value FROM walrust_config WHERE name='interval'", conn="one"), [("3s",)])

    def test_toml_of_the_working_directory(self):
        door.toml(self, f'[[databases]]\npath = "{self.dir}/app.db"\nreplica = "{self.dir}/r"\n')
        p = self.peer().open(self.path("app.db"))
        p.sql("PRAGMA journal_mode=wal")
        self.fill(p)
        p.sync()
        self.assertSameBytes(self.path("app.db"), self.restore(self.path("r"))[0])

    def test_a_file_not_named_is_left_alone(self):
        door.toml(self, f'[[databases]]\npath = "{self.dir}/app.db"\nreplica = "{self.dir}/r"\n')
        p = self.peer().open(self.path("other.db"))
        p.sql("PRAGMA journal_mode=wal")
        self.fill(p)
        p.end()
        self.assertEqual(sorted(n for n in os.listdir(self.dir) if n.startswith(("other", "r"))), ["other.db"])

    def test_the_call_goes_before_the_environment(self):
        p = self.peer(env={"WALRUST_REPLICA": self.path("env", "{name}"), "WALRUST_INTERVAL": "7s"}).open(self.path("app.db"))
        p.watch(self.path("call"), interval="0s")
        self.fill(p)
        p.sync()
        self.assertSameBytes(self.path("app.db"), self.restore(self.path("call"))[0])
        self.assertEqual(p.status()["replica"], "file://" + self.path("call"))
        # Streaming to the configured place may have begun before the call; it has ended with it.
        before = door.ltx_files(self.path("env", "app"))
        p.sql("INSERT INTO t(v) VALUES('later')")
        p.sync()
        self.assertEqual(door.ltx_files(self.path("env", "app")), before)

    def test_embedded_default(self):
        """Without a url and a configuration: the directory <database file>-replica/ beside the database."""
        p = self.peer().open(self.path("app.db"))
        self.assertIn(self.path("app.db-replica"), p.sql("SELECT walrust_watch()"))
        self.fill(p)
        p.sync()
        self.assertSameBytes(self.path("app.db"), self.restore(self.path("app.db-replica"))[0])

    def test_watch_without_url_takes_the_configured_one(self):
        p = self.peer(env={"WALRUST_REPLICA": self.path("env", "{name}")}).open(self.path("app.db"))
        self.assertIn(self.path("env"), p.sql("SELECT walrust_watch()"))
        self.fill(p)
        p.sync()
        self.assertFalse(os.path.exists(self.path("app.db-replica")))

    def test_options_of_watch(self):
        p = self.peer().open(self.path("app.db"))
        p.watch(self.path("r"), interval="250ms", spool_dir=self.path("spool"))
        self.fill(p)
        p.sync()
        self.assertTrue(os.path.isdir(self.path("spool")))
        self.assertFalse(os.path.exists(self.path("app.db-walrust")))
        value, source = p.rows("SELECT value, source FROM walrust_config WHERE name='interval'")[0]
        self.assertEqual(value, "250ms")
        self.assertTrue(source)

    def config_error(self, text, *fragments):
        path = door.toml(self, text, "bad.toml")
        p = self.peer(env={"WALRUST_CONFIG": path}).open(self.path("app.db"))
        with self.assertRaises(door.SqlError) as caught:
            p.sql("SELECT walrust_watch()")
        self.assertErrorLine(str(caught.exception), "bad.toml", *fragments)
        p.end()

    def test_mistakes_in_the_file(self):
        head = f'[[databases]]\npath = "{self.dir}/app.db"\nreplica = "{self.dir}/r"\n'
        self.config_error('intervall = "1s"\n' + head, r"intervall", r"(line )?1\b")
        self.config_error('interval = "soon"\n' + head, r"interval", r"soon", r"(line )?1\b")
        self.config_error(head + 'snapshot_intervall = "1h"\n', r"snapshot_intervall", r"(line )?4\b")
        self.config_error('[retention]\nhourly = 24\ndayly = 3\n' + head, r"dayly", r"(line )?3\b")
        self.config_error(f'[[databases]]\npath = "{self.dir}/app.db"\nreplica = "ftp://x/y"\n', r"bad\.toml:3: replica: .*ftp")
        self.config_error('[retry\n', r"line 1\b|:1\b")

    def test_mistakes_in_the_environment_and_in_a_uri(self):
        """One line that names the variable or the parameter; nothing is silently ignored."""
        for env, fragments in (
            ({"WALRUST_INTERVAL": "soon"}, ("WALRUST_INTERVAL: ", "soon", "5s")), ({"WALRUST_INTERVALL": "1s"}, ("WALRUST_INTERVALL", "WALRUST_INTERVAL\\b")),
            ({"WALRUST_REPLICA": "ftp://x"}, ("WALRUST_REPLICA", "ftp", "s3://")), ({"WALRUST_CONFIG": "/nowhere/w.toml"}, ("WALRUST_CONFIG", "/nowhere/w")),
        ):
            with self.subTest(env=env), self.assertRaises(door.SqlError) as caught:
                self.peer(env=env).open(self.path("app.db")).sql("SELECT walrust_watch()")
            self.assertErrorLine(str(caught.exception), "walrust_watch", *fragments)
        with self.assertRaises(door.SqlError) as caught:
            p = self.peer().open(f"file:{self.path('app.db')}?vfs=walrust&replica=r&interval=soon", uri=True)
            p.sql("SELECT walrust_watch()")
        self.assertErrorLine(str(caught.exception), "URI parameter interval: ", "soon")

    def test_two_databases_on_one_replica_are_refused(self):
        door.toml(self, f'[[databases]]\npath = "{self.dir}/*.db"\nreplica = "{self.dir}/same"\n', "two.toml")
        p = self.peer(env={"WALRUST_CONFIG": self.path("two.toml")})
        errors = []
        for name in ("one.db", "two.db"):
            p.open(self.path(name), name)
            try:
                p.sql("SELECT walrust_watch()", conn=name)
                p.sql("CREATE TABLE IF NOT EXISTS t(x)", conn=name)
            except door.SqlError as error:
                errors.append(str(error))
        self.assertEqual(len(errors), 1, errors)
        self.assertErrorLine(errors[0], r"one\.db", r"two\.db")

    SETTINGS = {
        "interval": "2s", "durability": "sync", "sync_timeout": "3s", "snapshot_interval": "2h", "levels": "10s,1m", "pitr_window": "12h",
        "retention_hourly": "5", "retention_daily": "4", "retention_weekly": "3", "retention_monthly": "2", "validation_interval": "6h",
        "retention_by": "janitor", "append_only": "false",  # (what goes with durability "sync", and with a directory)
        "retain": "0", "retain_mode": "compliance", "storage_class_level0": "STANDARD", "storage_class_merged": "ONEZONE_IA",
        "storage_class_snapshot": "STANDARD_IA", "sse": "aws:kms", "sse_kms_key": "alias/backup",
        "encrypt": "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", "auto_label": "ddl", "drill_interval": "5h",
        "spool_dir": None, "spool_limit": "2GB", "retry_base": "50ms", "retry_max": "10s", "retry_breaker_threshold": "7",
        "retry_breaker_cooldown": "30s", "webhooks": "http://127.0.0.1:1/hook", "price_per_gb": "0.5", "price_per_1000_put": "0.25",
    }

    def is_count(self, name):
        return name.startswith(("retention", "retry_breaker_t")) and name != "retention_by"

    def given(self):
        """A value other than the default for each setting of a database but its replica."""
        return {**self.SETTINGS, "spool_dir": self.path("spool"), "mirrors": f"{self.path('m1')},{self.path('m2')}"}

    def assertShown(self, p, source, conn="main"):
        """walrust_config has each given value, and where it was said (a pattern, {NAME} the setting's)."""
        rows = {name: (value, said) for name, value, said in p.rows("SELECT name, value, source FROM walrust_config", conn=conn)}
        self.assertEqual(set(rows), {*self.given(), "replica", "metrics_listen", "metrics_token", "heartbeat_url", "heartbeat_interval", "bandwidth", "cache_dir", "cache_size", "functions"})
        for name, wanted in self.given().items():
            value, said = rows[name]
            # Of a webhook only scheme and host are shown.
            self.assertRegex(value, r"^http://127\.0\.0\.1\b" if name == "webhooks" else f"^{re.escape(wanted)}$", name)
            self.assertRegex(said, source.replace("NAME", name.upper()), name)
        return rows

    def test_every_setting_by_the_environment(self):
        env = {f"WALRUST_{name.upper()}": value for name, value in self.given().items()}
        p = self.peer(env={**env, "WALRUST_REPLICA": self.path("r"), "WALRUST_METRICS_LISTEN": "127.0.0.1:0",
                           "WALRUST_HEARTBEAT_URL": "http://127.0.0.1:1/secret-path", "WALRUST_HEARTBEAT_INTERVAL": "7m",
                           "WALRUST_METRICS_TOKEN": "a-word-of-the-environment"}).open(self.path("app.db"))
        rows = self.assertShown(p, "^env WALRUST_NAME$")
        self.assertEqual(rows["heartbeat_url"], ("http://127.0.0.1:1", "env WALRUST_HEARTBEAT_URL"), "its path is a capability")
        self.assertEqual(rows["heartbeat_interval"], ("7m", "env WALRUST_HEARTBEAT_INTERVAL"))
        self.assertEqual(rows["metrics_token"], ("***", "env WALRUST_METRICS_TOKEN"), "it is never shown")
        self.assertEqual(rows["replica"], (self.path("r"), "env WALRUST_REPLICA"))
        self.assertEqual(rows["metrics_listen"], ("127.0.0.1:0", "env WALRUST_METRICS_LISTEN"))

    def test_every_setting_by_the_file(self):
        top, sections = [], {"retention": [], "retry": [], "storage_class": []}
        for name, value in self.given().items():
            section, _, key = name.rpartition("_") if name.startswith("storage_class") else name.partition("_")
            plain = re.fullmatch(r"[\d.]+|true|false", value)
            if name in ("webhooks", "mirrors"):
                continue
            text = "[" + ", ".join(f'"{v}"' for v in value.split(",")) + "]" if name == "levels" else value if plain else f'"{value}"'
            if section in sections:
                sections[section].append(f"{key} = {text}")
            else:
                top.append(f"{name} = {text}")
        lines = [*top, 'metrics_listen = "127.0.0.1:0"', 'metrics_token = "a-word-of-the-file"', 'heartbeat_url = "http://127.0.0.1:1/x"', 'heartbeat_interval = "8m"', "[retention]", *sections["retention"], "[retry]", *sections["retry"], "[storage_class]", *sections["storage_class"], "[[webhooks]]",
                 'url = "http://127.0.0.1:1/hook"', "[[databases]]", f'path = "{self.dir}/app.db"', f'replica = "{self.dir}/r"',
                 "[[databases.mirror]]", f'replica = "{self.dir}/m1"', "[[databases.mirror]]", f'replica = "{self.dir}/m2"']
        door.toml(self, "\n".join(lines) + "\n")
        p = self.peer().open(self.path("app.db"))
        rows = self.assertShown(p, r"walrust\.toml:\d+$")
        for name, text in (("interval", "interval ="), ("retention_daily", "daily ="), ("retry_breaker_threshold", "breaker_threshold ="),
                           ("replica", "replica ="), ("metrics_listen", "metrics_listen ="), ("metrics_token", "metrics_token ="), ("heartbeat_url", "heartbeat_url ="),
                           ("heartbeat_interval", "heartbeat_interval =")):
            line = next(n for n, line in enumerate(lines, 1) if line.startswith(text))
            self.assertTrue(rows[name][1].endswith(f"walrust.toml:{line}"), (name, rows[name]))

    def test_every_setting_by_uri_parameters(self):
        parameters = "&".join(f"{name}={urllib.parse.quote(value, safe='')}" for name, value in {**self.given(), "replica": self.path("r")}.items())
        p = self.peer().open(f"file:{self.path('app.db')}?vfs=walrust&{parameters}", uri=True)
        rows = self.assertShown(p, "^uri$")
        self.assertEqual(rows["replica"], (self.path("r"), "uri"))

    def test_every_setting_by_the_call(self):
        p = self.peer().open(self.path("app.db"))
        p.watch(self.path("r"), **{name: int(value) if self.is_count(name) else value
                                   for name, value in self.given().items()})
        rows = self.assertShown(p, "^sql$")
        self.assertEqual(rows["replica"][1], "sql")

    def test_where_nothing_is_said_the_default_stands(self):
        p = self.peer().open(self.path("app.db"))
        for name, value, source, default in p.rows("SELECT name, value, source, default_value FROM walrust_config"):
            wanted = self.path("app.db-walrust") if name == "spool_dir" else default
            self.assertEqual((value, source), (wanted, "default"), name)

    def test_the_earlier_way_wins(self):
        """Call, URI, file, environment: with one more of them each time, the value is the new one's."""
        names = ("interval", "retry_max", "pitr_window", "snapshot_interval")
        env = {f"WALRUST_{n.upper()}": "41s" for n in names}
        door.toml(self, "".join(f'{n} = "31s"\n' for n in ("interval", "pitr_window", "snapshot_interval")))
        p = self.peer(env=env).open(f"file:{self.path('app.db')}?vfs=walrust&interval=21s&snapshot_interval=21s&replica={self.path('r')}", uri=True)
        p.watch(self.path("r"), interval="11s")
        shown = dict(p.rows("SELECT name, value || ' ' || source FROM walrust_config"))
        self.assertEqual((shown["interval"], shown["snapshot_interval"], shown["retry_max"]), ("11s sql", "21s uri", "41s env WALRUST_RETRY_MAX"))
        self.assertRegex(shown["pitr_window"], r"^31s .*walrust\.toml:2$")

    def test_what_is_for_the_whole_process_is_no_option(self):
        p = self.peer().open(self.path("app.db"))
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.path("r"), metrics_listen="127.0.0.1:0")
        self.assertErrorLine(str(caught.exception), "walrust_watch", "metrics_listen", "whole process", "WALRUST_METRICS_LISTEN")

    def test_every_default_can_be_said(self):
        """What walrust_config shows as a default is accepted as an option of watch."""
        p = self.peer().open(self.path("app.db"))
        for name, value in p.rows("SELECT name, default_value FROM walrust_config"):
            if name in ("replica", "webhooks", "spool_dir", "metrics_listen", "metrics_token", "bandwidth", "cache_dir", "cache_size", "functions") or name.startswith(("price", "heartbeat")):
                continue  # no default that could be written, or for the whole process
            options = {name: int(value) if self.is_count(name) else value}
            with self.subTest(name=name):
                p.watch(self.path("r"), **options)
                self.assertEqual(p.sql("SELECT value FROM walrust_config WHERE name = ?", name), value)


def find_sqlite_header():
    for base in ("/usr/include", os.path.join(door.ROOT, "target", "sqlite", "build")):
        if os.path.exists(os.path.join(base, "sqlite3ext.h")):
            return base
    return None


if __name__ == "__main__":
    unittest.main()
