"""Each script of sql/ is run as its head says, from the repository's root, and its output compared."""

import glob
import os
import re
import subprocess
import unittest

import door

TXID = r"[0-9a-f]{16}"
REPORT = r"(?s)Verifying backup: \S+ in \S+\n=+\nSnapshot: ✅ .*\nExit code: 0 \(.*\)"
PROBLEMS = r"0 problems"

# script: (the database it is run on, parameters, what its whole output must be)
EXPECTED = {
    "version": (":memory:", (), r"(walrust )?\d+\.\d+\.\d+.*3\.\d+\.\d+.*"),
    "watch": ("app.db", ("replica",), r"(?s).*{replica}.*\ndurable up to TXID " + TXID),
    "sync": ("app.db", ("replica",), r"durable up to TXID " + TXID),
    "unwatch": ("app.db", ("replica",), r"stopped at TXID " + TXID),
    "status": ("app.db", ("replica",), r"\s*newest_txid = {txid}\s+newest_time = 20\d\d-\S+\s+files = \d+\s+bytes = \d+\s*"),
    "snapshot": ("app.db", ("replica",), r"snapshot at TXID " + TXID),
    "restore": (":memory:", ("replica", "path"), r"restored TXID {hex}"),
    "restore_point": (":memory:", ("replica", "path", "point"), r"restored TXID 0000000000000002"),
    "verify": (":memory:", ("replica",), REPORT),
    "verify_deep": (":memory:", ("replica",), PROBLEMS),
    "verify_fix": (":memory:", ("replica",), r"(?s)Verifying backup: .*"),
    "explain": ("app.db", (), r"(?s)Walrust Configuration Preview\n=+\n.*Monthly cost: .*\nValidation:\n.*"),
    "list": (":memory:", ("url",), r"name\|snapshots\|files\|bytes\|min_txid\|max_txid\|last_time\n"
                                   r"replica\|\d+\|\d+\|\d+\|1\|{txid}\|20\d\d-\S+"),
    "files": (":memory:", ("replica",), r"(?s)level\|min_txid\|max_txid\|bytes\|pages\|time\n"
                                        r"(\d\|[0-9a-f]{16}\|[0-9a-f]{16}\|\d+\|\d+\|20\d\d-\S+(\n|$))+"),
    "compact": (":memory:", ("replica",), r"(?is).*dry.run.*"),
    "compact_force": (":memory:", ("replica",), r"(?s).+"),
    "replicate": (":memory:", ("replica", "path"), r"(?s).*{path}.*\n1"),
    "config": ("app.db", (), r"(?s)name +value +source *\n-+ +-+ +-+ *\n.*\binterval +1s +default.*"),
    "metrics": ("app.db", (), r"(?s)# HELP .*"),
    "notify_test": ("app.db", (), r"(?is).*no webhook.*"),
}


# Those that look: run on a read-only connection, as their heads say, they leave everything as it is.
LOOKING = ("version", "status", "config", "explain", "list", "files", "metrics", "verify", "verify_deep", "compact")


class Scripts(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.p, self.db, self.replica = self.watched(interval="0s")
        for i in range(3):
            self.p.sql("INSERT INTO t VALUES(?, 'x')", i)
            self.txid = self.p.sync()
        self.p.end()

    def run_script(self, name, env=None):
        database, parameters, expected = EXPECTED[name]
        values = {"replica": self.replica, "path": self.path(f"out-{name}.db"), "point": "2", "url": self.dir, "txid": str(self.txid), "hex": f"{self.txid:016x}"}
        looks = ["-readonly"] if name in LOOKING and database != ":memory:" else []
        argv = [door.SHELL, "-batch", "-bail", *looks, database if database == ":memory:" else self.db]
        for parameter in parameters:
            argv += ["-cmd", f".parameter set :{parameter} '{values[parameter]}'"]
        root = self.path("root")
        if not os.path.exists(root):
            os.makedirs(os.path.join(root, "dist"))
            os.symlink(door.SO, os.path.join(root, "dist", "walrust" + door.SUFFIX))
        with open(os.path.join(door.ROOT, "sql", name + ".sql")) as script:
            done = subprocess.run(argv, stdin=script, capture_output=True, text=True, timeout=120, env=door.clean_env(self.dir, env), cwd=root)
        self.assertEqual((done.returncode, done.stderr), (0, ""), name)
        pattern = re.sub(r"\{(replica|path|point|url|txid|hex)\}", lambda m: re.escape(values[m[1]]), expected)
        self.assertRegex(done.stdout.rstrip("\n"), "^(?:" + pattern + ")$" if not pattern.startswith("(?") else anchored(pattern), name)

    def test_those_that_look_begin_nothing(self):
        """Whether or not the database is configured to be streamed, and one that never was."""
        def told():
            return {k: v for k, v in door.tree(self.dir).items() if not k.endswith(("-wal", "-shm")) and not k.startswith("root/")}

        before = told()
        for name in LOOKING:
            with open(os.path.join(door.ROOT, "sql", name + ".sql")) as f:
                head = f.read()
            if EXPECTED[name][0] == "app.db":
                self.assertIn("--   sqlite3 -readonly app.db", head, name)
            for env in (None, {"WALRUST_REPLICA": self.replica}, {"WALRUST_REPLICA": self.path("elsewhere")}):
                if name == "config" and env:
                    continue  # its words differ then; it is looked at below
                self.run_script(name, env)
                self.assertEqual(told(), before, (name, env))

    def test_each_script_has_an_expectation(self):
        names = {os.path.basename(f)[:-4] for f in glob.glob(os.path.join(door.ROOT, "sql", "*.sql"))}
        self.assertEqual(names, set(EXPECTED))

    def test_each_script_says_what_it_does_and_how_to_run_it(self):
        for name in EXPECTED:
            with open(os.path.join(door.ROOT, "sql", name + ".sql")) as f:
                head = f.read()
            self.assertRegex(head, rf"^-- {name}\.sql: .+\n--\n--   sqlite3 ", name)


def anchored(pattern):
    """^...$ inside the flags that a pattern opens with."""
    flags = re.match(r"\(\?[a-z]+\)", pattern).group(0)
    return flags + "^(?:" + pattern[len(flags):] + r")\Z"


def add(name):
    setattr(Scripts, f"test_{name}", lambda self: self.run_script(name))


for script in EXPECTED:
    add(script)

if __name__ == "__main__":
    unittest.main()
