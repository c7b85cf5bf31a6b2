#!/usr/bin/env python3
"""What encryption costs (`encrypt`): the same commits without walrust, streamed in the clear, and streamed encrypted, in turns.

Prints, each as a ratio to the run in the clear (and of that to stock SQLite): the median and tail of a COMMIT, the CPU of the whole process
until the replica has everything, and the resident memory at its highest.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

CHILD = r"""
import json, os, resource, sqlite3, sys, time
so, folder, commits, pages, recipient = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
c = sqlite3.connect(f"{folder}/app.db", isolation_level=None)
c.enable_load_extension(True)
c.load_extension(so)
c.execute("PRAGMA journal_mode = WAL")
c.execute("PRAGMA synchronous = NORMAL")
c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
if recipient != "stock":
    keys = [recipient] if recipient != "clear" else []
    c.execute("SELECT walrust_watch(?, ?)", (f"{folder}/replica", json.dumps({"encrypt": keys, "snapshot_interval": "0"}))).fetchone()
    c.execute("SELECT walrust_sync(60)").fetchone()
began, took = resource.getrusage(resource.RUSAGE_SELF), []
for _ in range(commits):
    blob = os.urandom(pages * 4000)
    at = time.monotonic()
    c.execute("INSERT INTO t(v) VALUES(?)", (blob,))
    took.append(time.monotonic() - at)
if recipient != "stock":
    c.execute("SELECT walrust_sync(300)").fetchone()
ended = resource.getrusage(resource.RUSAGE_SELF)
cpu = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
print(json.dumps([took, cpu, ended.ru_maxrss]), flush=True)
os._exit(0)
"""


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--so", required=True)
    p.add_argument("--turns", type=int, default=7)
    p.add_argument("--commits", type=int, default=2000)
    p.add_argument("--pages", type=int, default=10, help="pages of random bytes in each COMMIT")
    p.add_argument("--recipient", default="age1cy0su9fwf3gf9mw868g5yut09p6nytfmmnktexz2ya5uqg9vl9sss4euqm")
    args = p.parse_args()
    ways = {"stock": "stock", "clear": "clear", "encrypted": args.recipient}
    seen = {way: [] for way in ways}
    for turn in range(args.turns):
        for way in list(ways) if turn % 2 else reversed(ways):
            with tempfile.TemporaryDirectory() as folder:
                command = ["/usr/bin/python3", "-c", CHILD, os.path.abspath(args.so), folder, str(args.commits), str(args.pages), ways[way]]
                took, cpu, rss = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            took.sort()
            seen[way].append((took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6, cpu, rss / 1024))
    print(f"{args.commits} COMMITs of {args.pages} pages of random bytes, medians of {args.turns} turns")
    for way, rows in seen.items():
        median, tail, cpu, rss = (statistics.median(column) for column in zip(*rows))
        print(f"  {way:9} COMMIT median {median:.0f} us, 99 % {tail:.0f} us; CPU {cpu:.2f} s; memory {rss:.0f} MB")
    for way, of in (("clear", "stock"), ("encrypted", "clear")):
        ratios = [statistics.median(a[i] / b[i] for a, b in zip(seen[way], seen[of])) for i in range(4)]
        print(f"  {way} / {of}: COMMIT median {ratios[0]:.2f}, 99 % {ratios[1]:.2f}; CPU {ratios[2]:.2f}; memory {ratios[3]:.2f}")


if __name__ == "__main__":
    main()
