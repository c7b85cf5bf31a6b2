"""Who may read a database may read what is made of it, and nobody else; what root makes beside it is its user's."""

import os
import shutil
import stat
import subprocess
import sys
import unittest

import door

USER = 65534  # nobody


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def everything(top):
    for base, folders, names in os.walk(top):
        for name in (*folders, *names):
            yield os.path.join(base, name)


class ModesTest(door.DoorTest):
    def database(self, permissions, name="app.db", umask="022"):
        """A database with these permissions, and a process under the usual umask that streams it."""
        db = self.path(name)
        c = door.plain_connect(db)
        c.execute("CREATE TABLE t(x)")
        c.close()
        os.chmod(db, permissions)
        p = self.peer(prefix=("sh", "-c", f'umask {umask}; exec "$@"', "sh")).open(db)
        return p, db

    def assertNotWider(self, top, permissions):
        directories = permissions | (permissions & 0o444) >> 2
        self.assertEqual(oct(mode(top)), oct(directories), top)
        found = list(everything(top))
        self.assertGreater(len(found), 2)
        for name in found:
            wanted = directories if os.path.isdir(name) else permissions
            self.assertEqual(oct(mode(name)), oct(wanted), name)


class Modes(ModesTest):
    def test_spool_replica_and_copies_are_as_open_as_the_database(self):
        for permissions in (0o600, 0o640, 0o660, 0o644, 0o666):
            with self.subTest(oct(permissions)):
                top = f"{permissions:o}"
                p, db = self.database(permissions, top + ".db")
                url = self.path(top, "backup")
                p.watch(url, interval="0s", levels=["1s"])
                for i in range(3):
                    p.sql("INSERT INTO t VALUES(?)", f"secret {i}")
                    p.sync()
                p.sql("SELECT walrust_snapshot()")
                second = self.path(top + "-second")
                p.sql("SELECT walrust_snapshot(?)", second)
                copy = self.path(top + "-copy.db")
                p.sql("SELECT walrust_replicate(?, ?)", url, copy)
                out = self.path(top + "-out.db")
                p.sql("SELECT walrust_restore(?, ?)", url, out)
                self.assertNotWider(url, permissions)
                self.assertNotWider(second, permissions)
                self.assertNotWider(db + "-walrust", permissions)
                self.assertEqual([oct(mode(f)) for f in (out, copy)], [oct(permissions)] * 2)
                p.end()
                self.assertNotWider(db + "-walrust", permissions)
                # Its next process, and the command line.
                q, _ = self.peer().open(db), None
                q.watch(url)
                q.sql("INSERT INTO t VALUES('later')")
                q.sync()
                q.end()
                self.assertNotWider(db + "-walrust", permissions)
                self.assertNotWider(url, permissions)
                self.assertEqual(self.run_cli("restore", url, self.path(top + "-cli.db")).returncode, 0)
                self.assertEqual(oct(mode(self.path(top + "-cli.db"))), oct(permissions))

    def test_nothing_is_readable_while_it_is_made(self):
        """A restore that is under way is not readable by others, whatever the umask."""
        p, db = self.database(0o600)
        url = self.path("backup")
        p.watch(url)
        p.sql("INSERT INTO t SELECT randomblob(1000) FROM (WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c LIMIT 20000) SELECT i FROM c)")
        p.sync()
        p.send(op="sql", conn="main", sql="SELECT walrust_restore(?, ?)", params=[url, self.path("out", "r.db")])
        with self.assertRaises(door.SqlError):
            p.wait()
        os.mkdir(self.path("out"))
        p.send(op="sql", conn="main", sql="SELECT walrust_restore(?, ?)", params=[url, self.path("out", "r.db")])
        seen = set()
        while "r.db" not in {os.path.basename(n) for n in seen}:
            for name in everything(self.path("out")):
                try:
                    seen.add(name)
                    self.assertEqual(oct(mode(name) & 0o077), oct(0), name)
                except FileNotFoundError:
                    pass
        p.wait()

    def test_directories_that_were_there_stay_as_they_are(self):
        p, db = self.database(0o600)
        os.makedirs(self.path("backup"))
        os.chmod(self.path("backup"), 0o755)
        p.watch(self.path("backup"))
        p.sql("INSERT INTO t VALUES('secret')")
        p.sync()
        self.assertEqual(mode(self.path("backup")), 0o755)
        for name in everything(self.path("backup")):
            self.assertEqual(mode(name) & 0o077, 0, name)
        # The replica says how private its database is.
        out, _ = self.restore(self.path("backup"))
        self.assertEqual(oct(mode(out)), oct(0o600))

    def test_a_bucket_does_not_know_so_the_umask_does(self):
        s3 = door.S3(self)
        p, db = self.database(0o600)
        p.end()
        p, db, url = self.watched(db, s3.url("app"), schema="", env=s3.env())
        p.sql("INSERT INTO t VALUES(1)")
        p.sync()
        for umask in ("022", "077", "027"):
            out = self.path(umask + ".db")
            done = subprocess.run(
                ["sh", "-c", f'umask {umask}; exec "$@"', "sh", door.CLI, "restore", url, out],
                env=door.clean_env(self.dir, s3.env()), capture_output=True, text=True,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(oct(mode(out)), oct(0o666 & ~int(umask, 8)))

    def test_overwriting_keeps_the_mode(self):
        p, db = self.database(0o644)
        p.watch(self.path("backup"))
        p.sync()
        out, _ = self.restore(self.path("backup"))
        os.chmod(out, 0o620)
        self.restore(self.path("backup"), out, overwrite=True)
        self.assertEqual(oct(mode(out)), oct(0o620))


@unittest.skipUnless(hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("setpriv"), "needs root and setpriv")
class Root(ModesTest):
    """Root looks after a program that runs as another user."""

    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o755)
        self.so = self.path("walrust.so")
        shutil.copy(door.SO, self.so)
        os.chmod(self.so, 0o755)
        for name in ("data", "backup"):
            os.mkdir(self.path(name))
            os.chown(self.path(name), USER, USER)

    AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    PYTHON = "/usr/bin/python3"

    def python(self, code, *args, env=None, prefix=()):
        text = "import os, sqlite3, sys, time\nargs = sys.argv[1:]\nos.umask(0o022)\n" + code
        done = subprocess.run([*prefix, self.PYTHON, "-c", text, *args], capture_output=True, text=True, cwd="/",
                              env=door.clean_env(self.dir, env), timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    LOADED = "m = sqlite3.connect(':memory:'); m.enable_load_extension(True); m.load_extension(args[0])\nc = sqlite3.connect(args[1], isolation_level=None)\n"

    def test_what_root_makes_is_the_databases(self):
        db, env = self.path("data", "app.db"), {"WALRUST_REPLICA": self.path("backup", "sub", "{name}")}
        self.python("os.umask(0o077); c = sqlite3.connect(args[0]); c.execute('CREATE TABLE t(x)'); c.commit()", db, prefix=self.AS_USER)
        # Root's first look begins the watch.
        self.python(self.LOADED + "c.execute('INSERT INTO t VALUES(0)'); c.execute('SELECT walrust_sync(20)')", self.so, db, env=env)
        for top in (db + "-walrust", self.path("backup")):
            for name in everything(top):
                s = os.stat(name)
                self.assertEqual((s.st_uid, s.st_gid), (USER, USER), name)
        said = self.python(
            self.LOADED + "c.execute('INSERT INTO t VALUES(1)'); c.execute('SELECT walrust_sync(20)')\n"
            "print(c.execute('SELECT state FROM walrust_status').fetchone()[0], c.execute('SELECT count(*) FROM t').fetchone()[0])",
            self.so, db, env=env, prefix=self.AS_USER,
        )
        self.assertEqual(said.split(), ["streaming", "2"])
        # A restore by root over the user's file, and to a new one beside it.
        url = self.path("backup", "sub", "app")
        for out in (self.path("data", "again.db"), self.path("data", "new.db")):
            if out.endswith("again.db"):
                self.python("sqlite3.connect(args[0]).execute('CREATE TABLE x(y)')", out, prefix=self.AS_USER)
                os.chmod(out, 0o640)
            done = self.run_cli("restore", "--overwrite", url, out)
            self.assertEqual(done.returncode, 0, done.stderr)
            s = os.stat(out)
            self.assertEqual((s.st_uid, s.st_gid), (USER, USER), out)
            self.python("c = sqlite3.connect(args[0]); c.execute('INSERT INTO t VALUES(2)'); c.commit()", out, prefix=self.AS_USER)
        self.assertEqual(oct(mode(self.path("data", "again.db"))), oct(0o640))
        self.assertEqual(oct(mode(self.path("data", "new.db"))), oct(0o600))

    def test_from_a_bucket_it_is_that_of_its_directory(self):
        s3 = door.S3(self)
        p, db, url = self.watched(replica=s3.url("app"), env=s3.env())
        p.sync()
        out = self.path("data", "out.db")
        self.restore(url, out, env=s3.env())
        self.assertEqual(os.stat(out).st_uid, USER)


if __name__ == "__main__":
    unittest.main()
