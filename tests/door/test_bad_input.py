"""Bad input: one line that names the function, what was given and what is allowed; nothing changed anywhere."""

import os
import unittest

import door


class BadInput(door.DoorTest):
    """A table: a call, and what its error must say. Each runs beside a healthy watched database."""

    def setUp(self):
        super().setUp()
        self.p, self.db, self.url = self.watched()
        self.p.sql("INSERT INTO t VALUES(1, 'safe')")
        self.p.sync()
        with open(self.path("text.txt"), "w") as f:
            f.write("this is not a database, it is a text that is longer than one page header " * 20)

    def refused(self, call, *fragments, conn="main"):
        with self.subTest(call=call):
            try:
                got = self.p.rows("SELECT * FROM (" + call + ")" if call.startswith("SELECT") else "SELECT " + call, conn=conn)
            except door.SqlError as error:
                self.assertErrorLine(str(error), *fragments)
                return
            self.fail(f"{call} gave {got!r}, an error was wanted")

    def unchanged(self, directory=None):
        """Context: nothing below the test's directory changes, the live WAL and local state aside."""
        test = self

        class Unchanged:
            def snapshot(self):
                return {k: v for k, v in door.tree(directory or test.dir).items() if not k.startswith(("app.db-", "tmp", "moto"))
                        and "lease" not in k}

            def __enter__(self):
                self.before = self.snapshot()

            def __exit__(self, kind, *_):
                if kind is None:
                    test.assertEqual(self.snapshot(), self.before)

        return Unchanged()

    def test_urls(self):
        q = door.quote
        with self.unchanged():
            for url, fragment in (
                ("ftp://host/path", "ftp"), ("s3://", "bucket"), ("s3:///path", "bucket"), ("http://host/x", "http"),
                ("", "empty|url"), ("file://relative/dir", "file"), ("s3://user:hunter2@bucket/path", "environment"),
                ("s3://bucket/path?regoin=x", "regoin"), ("s3://bucket/path?endpoint=ftp://host", "endpoint"),
                ("s3://bucket/../../etc", r"\.\."), ("file:///tmp/x?endpoint=y", "endpoint"), ("gs://", "bucket"), ("az://", "container"),
                ("s3://bucket/a?region=us-east-1&path_style=perhaps", "path_style"),
            ):
                self.p.open(self.path("other.db"), "o")
                for function, call in (
                    ("walrust_watch", f"walrust_watch({q(url)})"),
                    ("walrust_restore", f"walrust_restore({q(url)}, {q(self.path('never.db'))})"),
                    ("walrust_verify", f"walrust_verify({q(url)})"),
                    ("walrust_list", f"SELECT * FROM walrust_list({q(url)})"),
                    ("walrust_files", f"SELECT * FROM walrust_files({q(url)})"),
                ):
                    self.refused(call, function, fragment, conn="o")
                self.p.close("o")
                if os.path.exists(self.path("other.db")):
                    os.unlink(self.path("other.db"))
        self.assertFalse(os.path.exists(self.path("never.db")))

    def test_the_password_in_a_url_is_not_repeated(self):
        for call in ("walrust_watch('s3://AKIA:hunter2secret@bucket/x')", "walrust_list('s3://AKIA:hunter2secret@bucket')",
                     "walrust_verify('s3://bucket/x?secret_access_key=hunter2secret')"):
            with self.subTest(call=call), self.assertRaises(door.SqlError) as caught:
                self.p.rows(f"SELECT * FROM {call}" if "list" in call else f"SELECT {call}")
            self.assertNotIn("hunter2secret", str(caught.exception))

    def test_a_url_where_none_belongs(self):
        secret = "s3://AKIA:hunter2secret@bucket/x?secret_access_key=hunter2secret"
        out = door.quote(self.path("never.db"))
        with self.unchanged():
            for function, call in (
                ("walrust_restore", f"walrust_restore({out}, '{secret}')"),
                ("walrust_restore", f"walrust_restore({door.quote(self.url)}, {out}, '{secret}')"),
                ("walrust_replicate", f"walrust_replicate({out}, '{secret}')"),
                ("walrust_unreplicate", f"walrust_unreplicate('{secret}')"),
                ("walrust_verify", f"walrust_verify({door.quote(self.url)}, '{secret}')"),
                ("walrust_sync", f"walrust_sync('{secret}')"),
            ):
                with self.subTest(call=call), self.assertRaises(door.SqlError) as caught:
                    self.p.rows(f"SELECT {call}")
                self.assertErrorLine(str(caught.exception), function)
                self.assertNotIn("hunter2", str(caught.exception))

    def test_an_error_is_short_whatever_was_given(self):
        long = "zeroblob(200000)"
        text = f"replace(hex({long}), '00', 'ab')"
        url = door.quote(self.url)
        with self.unchanged():
            for call in (f"walrust_restore({url}, {text})", f"walrust_restore({url}, 'x.db', {text})", f"walrust_replicate({url}, {text})",
                         f"walrust_unreplicate({text})", f"walrust_verify({url}, {text})", f"walrust_sync({text})", "walrust_sync(1e300)"):
                with self.subTest(call=call), self.assertRaises(door.SqlError) as caught:
                    self.p.rows(f"SELECT {call}")
                self.assertErrorLine(str(caught.exception), "walrust_")
                self.assertLess(len(str(caught.exception)), 500)

    def test_a_misspelt_parameter_of_the_uri(self):
        db = self.path("uri.db")
        replica = self.path("replica of uri")
        self.p.open(f"file:{db}?replica={replica}&intervall=5s", "u", uri=True)
        self.p.sql("CREATE TABLE t(x)", conn="u")
        row = self.p.status(database=db)
        self.assertEqual(row["state"], "failed")
        self.assertErrorLine(row["last_error"], "intervall", "did you mean", "interval")
        self.assertFalse(os.path.exists(replica))

    def test_options(self):
        out = door.quote(self.path("never.db"))
        url = door.quote(self.url)
        with self.unchanged():
            self.refused(f"walrust_watch({url}, '{{\"intervall\":\"1s\"}}')", "walrust_watch", "intervall", "interval")
            self.refused(f"walrust_watch({url}, '{{\"interval\":\"soon\"}}')", "walrust_watch", "interval", "soon")
            self.refused(f"walrust_watch({url}, '{{\"durability\":\"maybe\"}}')", "walrust_watch", "maybe", "async", "sync")
            self.refused(f"walrust_watch({url}, '[1,2]')", "walrust_watch", "object")
            self.refused(f"walrust_watch({url}, '{{')", "walrust_watch", "json")
            self.refused(f"walrust_watch({url}, 'interval=1s')", r"walrust_watch: options: not readable JSON \(.*\); give a JSON object, e\.g\. ")
            self.refused(f"walrust_watch({url}, 17)", "walrust_watch")
            self.refused(f"walrust_watch({url}, x'7b7d')", "walrust_watch")
            self.refused(f"walrust_watch({url}, '{{\"retention\":{{\"hourly\":-1}}}}')", "walrust_watch", "hourly")
            self.refused(f"walrust_watch({url}, '{{\"levels\":[\"5m\",\"30s\"]}}')", "walrust_watch", "levels")
            self.refused(f"walrust_restore({url}, {out}, NULL, '{{\"overwrit\":1}}')", "walrust_restore", "overwrit", "overwrite")
            self.refused(f"walrust_restore({url}, {out}, NULL, '{{\"parallel\":0}}')", "walrust_restore", "parallel")
            self.refused(f"walrust_restore({url}, {out}, NULL, '{{\"parallel\":\"many\"}}')", "walrust_restore", "parallel")
            self.refused(f"walrust_restore({url}, {out}, NULL, '{{\"check\":\"some\"}}')", "walrust_restore", "check", "quick")
            self.refused(f"walrust_verify({url}, 'thorough')", "walrust_verify", "thorough", "quick", "deep", "fix")
            self.refused(f"walrust_compact({url}, '{{\"hourli\":1}}')", "walrust_compact", "hourli")
            self.refused(f"walrust_explain('{{\"price\":1}}')", "walrust_explain", "price")
            self.refused(f"walrust_replicate({url}, {out}, '{{\"interval\":\"never\"}}')", "walrust_replicate", "interval")

    def test_types(self):
        """NULLs, blobs, huge integers, invalid UTF-8, at every argument that has a meaning."""
        out, url = door.quote(self.path("never.db")), door.quote(self.url)
        bad = "CAST(x'ff2f61' AS TEXT)"
        with self.unchanged():
            for value in ("x'00ff'", "17", "3.5", "NULL"):
                self.refused(f"walrust_restore({value}, {out})", "walrust_restore")
                self.refused(f"walrust_restore({url}, {value})", "walrust_restore")
            self.refused(f"walrust_watch({bad})", "walrust_watch")
            self.refused(f"walrust_restore({bad}, {out})", "walrust_restore")
            self.refused(f"walrust_restore({url}, {out}, x'01')", "walrust_restore")
            self.refused(f"walrust_restore({url}, {out}, 1.5)", "walrust_restore")
            self.refused(f"walrust_restore({url}, {out}, 9223372036854775807)", "walrust_restore")
            self.refused(f"walrust_restore({url}, {out}, -9223372036854775808)", "walrust_restore")
            for point in ("''", "'yesterday-ish'", "'2026-13-45T00:00:00Z'", "'999999999999999999 days ago'", "'-5 minutes ago'",
                          "'5 ago'", "'2026-11-22T25:00:00Z'", bad):
                self.refused(f"walrust_restore({url}, {out}, {point})", "walrust_restore")
            for value in ("-1", "'soon'", "x'01'"):
                self.refused(f"walrust_sync({value})", "walrust_sync")
            self.refused(f"walrust_watch('file:///{'x' * 100_000}')", "walrust_watch")
            self.refused("walrust_restore('file:///tmp/a' || char(0) || 'b', " + out + ")", "walrust_restore")
            self.refused("walrust_unreplicate(NULL)", "walrust_unreplicate")
            self.refused("walrust_unreplicate('/nowhere/to/be/found.db')", "walrust_unreplicate")
            self.refused("SELECT * FROM walrust_list(NULL)", "walrust_list")
            self.refused("SELECT * FROM walrust_list", "walrust_list")
            self.refused(f"SELECT * FROM walrust_list({door.quote(self.db)})", "walrust_list", "is a file; give the directory or the URL")
        self.assertFalse(os.path.exists(self.path("never.db")))

    def test_calls_that_need_a_watched_database(self):
        self.p.end()
        self.p = self.peer().open(self.path("plain.db"), "o")
        for call in ("walrust_sync()", "walrust_unwatch()", "walrust_snapshot()"):
            self.refused(call, call.split("(")[0], conn="o")
        # That another database is watched in the process does not make it this connection's.
        self.p.open(self.path("other.db"), "w")
        self.p.watch(self.path("other-replica"), conn="w")
        for call in ("walrust_sync()", "walrust_unwatch()", "walrust_snapshot()"):
            self.refused(call, call.split("(")[0], "plain.db", "not watched", conn="o")
        self.assertEqual(self.p.sql("SELECT count(*) FROM walrust_status", conn="w"), 1)

    def test_watch_of_what_cannot_be_watched(self):
        self.p.open(":memory:", "m")
        self.refused(f"walrust_watch({door.quote(self.path('m'))})", "walrust_watch", "memory|file", conn="m")
        self.p.open("", "temp")
        self.refused(f"walrust_watch({door.quote(self.path('m'))})", "walrust_watch", conn="temp")
        self.p.open(self.path("text.txt"), "text")
        self.refused(f"walrust_watch({door.quote(self.path('m'))})", "walrust_watch|not a database", conn="text")
        self.assertFalse(os.path.exists(self.path("m")) and door.tree(self.path("m")))

    def test_a_replica_that_cannot_be_one(self):
        p = self.peer().open(self.path("second.db"))
        spool = self.path("second.db-walrust")
        for call, fragment in (
            (f"walrust_watch({door.quote(spool)})", "spool"),
            (f"walrust_watch({door.quote(os.path.join(spool, 'replica'))})", "spool"),
            (f"walrust_watch({door.quote(self.path('r2'))}, '{{\"replica\":\"/elsewhere\"}}')", "twice"),
        ):
            with self.assertRaises(door.SqlError) as caught:
                p.rows(f"SELECT {call}")
            self.assertErrorLine(str(caught.exception), "walrust_watch", fragment)
        self.assertFalse(os.path.exists(spool) or os.path.exists(self.path("r2")))

    def test_watch_inside_a_transaction(self):
        self.p.open(self.path("tx.db"), "o")
        self.p.sql("CREATE TABLE x(y)", conn="o")
        self.p.sql("BEGIN IMMEDIATE", conn="o")
        self.refused(f"walrust_watch({door.quote(self.path('tx'))})", "walrust_watch", conn="o")
        self.p.sql("COMMIT", conn="o")

    def test_a_read_only_database(self):
        db = self.path("ro.db")
        q = door.plain_connect(db)
        q.execute("CREATE TABLE x(y)")
        q.close()
        self.p.open(f"file:{db}?mode=ro", "o", uri=True)
        self.refused(f"walrust_watch({door.quote(self.path('ro'))})", "walrust_watch", conn="o")

    def test_targets(self):
        url = door.quote(self.url)
        os.mkdir(self.path("adir"))
        with self.unchanged():
            self.refused(f"walrust_restore({url}, {door.quote(self.path('text.txt'))})", "walrust_restore", "text.txt", "overwrite")
            self.refused(f"walrust_restore({url}, {door.quote(self.path('no', 'such', 'dir.db'))})", "walrust_restore", "dir")
            self.refused(f"walrust_restore({url}, {door.quote(self.path('adir'))}, NULL, '{{\"overwrite\":1}}')", "walrust_restore")
            self.refused(f"walrust_restore({url}, '')", "walrust_restore")
            self.refused(f"walrust_restore({url}, ':memory:')", "walrust_restore")

    def test_replicas_that_are_not_there(self):
        with self.unchanged():
            for function, call in (
                ("walrust_restore", f"walrust_restore({door.quote(self.path('nothing'))}, {door.quote(self.path('n.db'))})"),
                ("walrust_restore", f"walrust_restore({door.quote(self.path('text.txt'))}, {door.quote(self.path('n.db'))})"),
                ("walrust_verify", f"SELECT * FROM walrust_verify({door.quote(self.path('text.txt'))})"),
            ):
                self.refused(call, function)
        self.assertFalse(os.path.exists(self.path("nothing")))

    @unittest.skipIf(os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), "root is refused nothing")
    def test_unreadable_and_unwritable_directories(self):
        os.mkdir(self.path("locked"))
        os.mkdir(self.path("home"))
        for d in (self.dir, self.path("home")):
            os.chmod(d, 0o777)
        os.chmod(self.path("locked"), 0o500)
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        so = self.path("walrust" + door.SUFFIX)
        import shutil

        shutil.copy(door.SO, so)
        os.chmod(so, 0o755)
        host = self.path("try.py")
        with open(host, "w") as f:
            f.write("import sqlite3, sys\nd = sqlite3.connect(sys.argv[2], isolation_level=None)\nd.enable_load_extension(True)\n"
                    "d.load_extension(sys.argv[1])\nd.execute('CREATE TABLE IF NOT EXISTS t(x)')\n"
                    "try:\n  print(d.execute(sys.argv[3]).fetchone()[0])\n"
                    "except sqlite3.Error as e:\n  print('error:', e)\nd.execute('INSERT INTO t VALUES(1)')\nprint('inserted')\n")
        import subprocess

        for call in (f"SELECT walrust_watch({door.quote(self.path('locked', 'r'))})",
                     f"SELECT walrust_restore({door.quote(self.url)}, {door.quote(self.path('locked', 'x.db'))})"):
            done = subprocess.run([*as_nobody, "/usr/bin/python3", host, so, self.path("home", "a.db"), call],
                                  capture_output=True, text=True, timeout=60, cwd=self.path("home"),
                                  env=door.clean_env(self.path("home")))
            lines = done.stdout.strip().splitlines()
            self.assertEqual(lines[-1:], ["inserted"], done.stdout + done.stderr)
            self.assertRegex(lines[0], r"error: .*(permission|denied|write)", call)

    def test_nested_and_misplaced_calls(self):
        """No crash when a function that talks to SQLite is called from odd places."""
        self.p.sql("CREATE TABLE IF NOT EXISTS log(x)")
        for statement in (
            "SELECT walrust_sync() FROM t",
            "INSERT INTO log SELECT walrust_sync(5)",
            "SELECT count(*) FROM t WHERE walrust_version() IS NOT NULL",
            "SELECT walrust_watch(walrust_watch(NULL))",
            "WITH w AS (SELECT * FROM walrust_status) SELECT count(*) FROM w, w AS w2",
        ):
            try:
                self.p.rows(statement)
            except door.SqlError as error:
                self.assertErrorLine(str(error))

    def test_side_effects_are_barred_from_schemas(self):
        """A view or trigger of a hostile database must not restore over files or send the data elsewhere."""
        self.p.sql("CREATE VIEW trap AS SELECT walrust_restore('/a', '/b')")
        self.p.sql("CREATE TRIGGER trap2 AFTER INSERT ON t BEGIN SELECT walrust_watch('/tmp/elsewhere'); END")
        for statement in ("SELECT * FROM trap", "INSERT INTO t(v) VALUES('x')"):
            with self.assertRaises(door.SqlError) as caught:
                self.p.rows(statement)
            self.assertErrorLine(str(caught.exception), "unsafe use")
        self.p.sql("DROP TRIGGER trap2")
        self.p.sql("DROP VIEW trap")

    def test_after_all_of_it_the_watched_database_is_well(self):
        for call in ("walrust_watch('ftp://x')", "walrust_restore(NULL, NULL)", "walrust_sync('x')"):
            with self.assertRaises(door.SqlError):
                self.p.sql(f"SELECT {call}")
        self.p.sql("INSERT INTO t VALUES(2, 'still')")
        self.p.sync()
        self.assertSameBytes(self.db, self.restore(self.url)[0])


class BadS3(door.DoorTest):
    def test_bucket_and_credentials(self):
        s3 = door.S3(self)
        for env, url, fragment in (
            (s3.env(), s3.url("app", bucket="nosuch"), "bucket|nosuch"),
            (s3.env(AWS_SECRET_ACCESS_KEY="wrongsecretwrongsecret"), s3.url("app"), "credential|denied|signature|403|forbidden"),
            (s3.env(AWS_ACCESS_KEY_ID="AKIAWRONG"), s3.url("app"), "credential|denied|key|403|forbidden"),
        ):
            door.SECRETS.add("wrongsecretwrongsecret")
            for function, call in (
                ("walrust_restore", f"SELECT walrust_restore({door.quote(url)}, 'never.db')"),
                ("walrust_files", f"SELECT * FROM walrust_files({door.quote(url)})"),
                ("walrust_verify", f"SELECT walrust_verify({door.quote(url)}, 'deep')"),
            ):
                with self.subTest(url=url, call=function):
                    done = self.run_shell(call + ";", env=env, timeout=60)
                    self.assertNotEqual(done.returncode, 0, done.stdout)
                    self.assertErrorLine(done.stderr, function, fragment)
        self.assertEqual(s3.keys(), [])
        self.assertFalse(os.path.exists(self.path("never.db")))

    def test_watch_with_wrong_credentials_shows(self):
        """watch itself says so, or the state does; commits go on either way."""
        s3 = door.S3(self)
        door.SECRETS.add("wrongsecretwrongsecret")
        p = self.peer(env=s3.env(AWS_SECRET_ACCESS_KEY="wrongsecretwrongsecret")).open(self.path("a.db"))
        try:
            p.watch(s3.url("app"))
        except door.SqlError as error:
            self.assertErrorLine(str(error), "walrust_watch", "credential|denied|signature|403|forbidden")
            p.sql("CREATE TABLE t(x)")
            return
        p.sql("CREATE TABLE t(x)")
        error = self.eventually(lambda: p.status()["last_error"], what="the state tells")
        self.assertErrorLine(error, "credential|denied|signature|403|forbidden")
        with self.assertRaises(door.SqlError) as caught:
            p.sync(5)
        self.assertErrorLine(str(caught.exception), "walrust_sync")

    def test_no_endpoint_listening(self):
        url = f"s3://bucket/app?endpoint=http://127.0.0.1:{door.free_port()}&region=us-east-1"
        env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        done = self.run_shell(f"SELECT walrust_restore({door.quote(url)}, 'never.db');", env=env, timeout=180)
        self.assertErrorLine(done.stderr, "walrust_restore", "127.0.0.1|connect|reach")

    def test_no_credentials_at_all(self):
        done = self.run_shell("SELECT * FROM walrust_files('s3://bucket/app?endpoint=http://127.0.0.1:1&region=us-east-1');", timeout=120)
        self.assertErrorLine(done.stderr, "walrust_files")


if __name__ == "__main__":
    unittest.main()
