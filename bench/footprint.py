"""Memory, size and lag: what walrust adds to a process, how soon a commit is in a local replica, beside Litestream.

    footprint.py --so EXTENSION [--quiet-commits 30]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "door"))
import door  # noqa: E402


class Bench(door.DoorTest):
    def runTest(self):
        pass


def lag(p, folder, commits):
    """Milliseconds from the return of COMMIT to a new file in the replica, each after a quiet second."""
    found = []
    for n in range(commits):
        time.sleep(1.1)
        before = len(os.listdir(folder))
        p.sql("INSERT INTO t(v) VALUES(?)", f"commit {n}")
        begin = time.perf_counter()
        while len(os.listdir(folder)) == before:
            if time.perf_counter() - begin > 20:
                return None
            time.sleep(0.0002)
        found.append((time.perf_counter() - begin) * 1000)
    return found


def show(name, values):
    values.sort()
    print(f"  {name:<11} median {statistics.median(values):7.1f} ms   p90 {values[int(len(values) * .9) - 1]:7.1f} ms   "
          f"max {values[-1]:7.1f} ms   ({len(values)} commits)", flush=True)


def rss(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--quiet-commits", type=int, default=30)
    args = parser.parse_args()
    door.SO = os.path.abspath(args.so)
    test = Bench()
    test.setUp()
    try:
        print(f"Size of the extension: {os.path.getsize(door.SO) / 1e6:.2f} MB", flush=True)

        p = test.peer(so=None).open(test.path("m.db"))
        p.rows("PRAGMA journal_mode=wal")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for i in range(200):
            p.sql("INSERT INTO t(v) VALUES(?)", "x" * 100)
        before = p.rss_kb()
        p.load(so=door.SO)
        loaded = p.rss_kb()
        p.watch(test.path("rm"))
        for i in range(200):
            p.sql("INSERT INTO t(v) VALUES(?)", "x" * 100)
        p.sync()
        time.sleep(1.5)
        after = p.rss_kb()
        print(f"Resident memory of a process: {before / 1024:.1f} MB stock, +{(loaded - before) / 1024:.1f} MB loaded, "
              f"+{(after - before) / 1024:.1f} MB watching one database", flush=True)
        p.end()

        print("From COMMIT to a file in a local replica, after a quiet second:", flush=True)
        p = test.peer().open(test.path("a.db"))
        p.watch(test.path("r"))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sync()
        show("walrust", lag(p, test.path("r", "ltx", "0"), args.quiet_commits) or [float("inf")])
        p.end()
        if os.path.exists(door.LITESTREAM):
            q = test.peer(so=None).open(test.path("l.db"))
            q.rows("PRAGMA journal_mode=wal")
            q.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
            with open(test.path("litestream.log"), "wb") as log:
                daemon = subprocess.Popen([door.LITESTREAM, "replicate", test.path("l.db"), f"file://{test.path('rl')}"],
                                          stdout=log, stderr=log, env=door.clean_env(test.dir), cwd=test.dir)
            try:
                test.eventually(lambda: os.path.isdir(test.path("rl", "ltx", "0")), what="litestream")
                show("litestream", lag(q, test.path("rl", "ltx", "0"), max(5, args.quiet_commits // 3)) or [float("inf")])
                print(f"Resident memory of the litestream process: {rss(daemon.pid) / 1024:.1f} MB", flush=True)
            finally:
                daemon.terminate()
                daemon.wait()
    finally:
        test.doCleanups()


main()
