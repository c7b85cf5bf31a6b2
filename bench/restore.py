"""How long a restore takes, beside `cp` and Litestream, and what one that continues or takes the difference fetches.

    restore.py --so EXTENSION [--megabytes 500] [--rounds 5] [--dir DIRECTORY]

A database of random bytes, and a replica in a directory, both on tmpfs. Each round runs all of them, one after the other; what is
printed are medians, their ratio to `cp`, and the peak memory of the process.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "door"))
import door  # noqa: E402

FILL = """
PRAGMA page_size=4096;
CREATE TABLE b(id INTEGER PRIMARY KEY, x);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) INSERT INTO b(x) SELECT randomblob(4050) FROM n;
"""

# A process that runs one statement and tells its own peak of memory.
ONE = r"""
import json, resource, sqlite3, sys
so, sql = sys.argv[1:]
db = sqlite3.connect(":memory:")
db.enable_load_extension(True)
db.load_extension(so)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
db = sqlite3.connect(":memory:")
db.execute(sql).fetchall()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def timed(command, env):
    begin = time.monotonic()
    done = subprocess.run(command, text=True, capture_output=True, env=env)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stderr[-500:]}")
    return time.monotonic() - begin, done.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    args = parser.parse_args()
    so = os.path.abspath(args.so)
    work = tempfile.mkdtemp(prefix="restore-", dir=args.dir)
    try:
        db, replica, out = (os.path.join(work, n) for n in ("app.db", "replica", "restored.db"))
        env = door.clean_env(work)
        subprocess.run([door.SHELL, db], input=FILL.format(rows=args.megabytes * 240), text=True, check=True, env=env)
        begin = f'.load "{so}"\n.open {door.quote(db)}\nSELECT walrust_watch({door.quote(replica)});\nSELECT walrust_sync(600);\n'
        subprocess.run([door.SHELL, "-batch", "-bail", ":memory:"], input=begin, text=True, capture_output=True, check=True, env=env)
        call = f"SELECT walrust_restore({door.quote(replica)}, {door.quote(out)}, NULL, '%s')"
        ways = {
            "cp": lambda: timed(["cp", db, out], env),
            "walrust": lambda: timed([sys.executable, "-c", ONE, so, call % '{"check":"none"}'], env),
            "walrust, quick_check": lambda: timed([sys.executable, "-c", ONE, so, call % "{}"], env),
            "walrust, delta of the same": lambda: timed([sys.executable, "-c", ONE, so, call % '{"delta":true,"check":"none"}'], env),
        }
        if os.path.exists(door.LITESTREAM):
            ways["litestream"] = lambda: timed([door.LITESTREAM, "restore", "-o", out, f"file://{replica}"], env)
        took, memory = {w: [] for w in ways}, {}
        for _ in range(args.rounds):
            for way, run in ways.items():
                if "delta" not in way and os.path.exists(out):
                    os.unlink(out)
                seconds, said = run()
                took[way].append(seconds)
                if way.startswith("walrust"):
                    memory[way] = max(memory.get(way, 0), json.loads(said))
                if os.path.getsize(out) != os.path.getsize(db):
                    sys.exit(f"{way}: another size")
        cp = statistics.median(took["cp"])
        print(f"{os.path.getsize(db) / 1e6:.0f} MB, {args.rounds} rounds:")
        for way, all_of_them in took.items():
            median = statistics.median(all_of_them)
            more = f", {memory[way] / 1024:.0f} MB of memory" if way in memory else ""
            print(f"  {way}: {median:.2f} s, {median / cp:.1f} of cp{more}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
