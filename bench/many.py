#!/usr/bin/env python3
"""Many databases in one process, with and without a replica each, side by side: what opening them takes, memory, descriptors, the CPU of
a process at rest, one busy database among idle ones, and all of them busy.

    many.py --so EXTENSION [--counts 1,100,1000,10000] [--seconds 5]

The replicas are a directory. Each figure is of a process of its own; ratios are walrust to stock.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile

CHILD = r"""
import collections, json, os, random, sqlite3, sys, time
so, folder, n, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
loader = sqlite3.connect(":memory:")
if so:
    loader.enable_load_extension(True)
    loader.load_extension(so)

def cpu():
    t = os.times()
    return t.user + t.system

def rss():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024

def descriptors():
    ours = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        ours += "-walrust" in name or "/replica/" in name
    return len(os.listdir("/proc/self/fd")), ours

def tenth(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] * 1000

def pending():
    if not so:
        return 0
    return loader.execute("SELECT count(*) FROM walrust_status WHERE state <> 'streaming' OR txid > replicated_txid").fetchone()[0]

def settle(longest=300):
    begun = time.monotonic()
    while pending() and time.monotonic() - begun < longest:
        time.sleep(0.5)
    return time.monotonic() - begun

def busy(connections, seconds):
    "Commits as fast as they go, drawn by chance. Gives commits a second, and median and tails of a commit."
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        c = connections[random.randrange(len(connections))]
        at = time.perf_counter()
        c.execute("INSERT INTO t(v) VALUES(?)", ("x" * 100,))
        took.append(time.perf_counter() - at)
    return {"commits_s": len(took) / seconds, "median_ms": tenth(took, .5), "p99_ms": tenth(took, .99), "p999_ms": tenth(took, .999)}

out = {}
begun = time.monotonic()
all_ = []
for i in range(n):
    c = sqlite3.connect(f"{folder}/{i}.db", isolation_level=None, cached_statements=4)
    c.execute("PRAGMA journal_mode=WAL")
    c.execute("PRAGMA synchronous=NORMAL")
    c.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
    all_.append(c)
out["open_s"] = time.monotonic() - begun
out["settle_s"] = settle()
time.sleep(3)
out["rss_mb"], (out["descriptors"], out["ours"]) = rss(), descriptors()
at, wall = cpu(), time.monotonic()
time.sleep(max(10.0, seconds))
out["idle_cpu"] = (cpu() - at) / (time.monotonic() - wall)
out["one"] = busy(all_[:1], seconds)
if so:
    lags, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        all_[0].execute("INSERT INTO t(v) VALUES(1)")
        path = f"{folder}/0.db"
        at = time.monotonic()
        while loader.execute("SELECT txid > replicated_txid FROM walrust_status WHERE database = ?", (path,)).fetchone()[0]:
            time.sleep(0.002)
        lags.append(time.monotonic() - at)
        time.sleep(0.3)
    out["one_lag_s"] = sorted(lags)[len(lags) // 2]
settle(30)
at, wall = cpu(), time.monotonic()
out["all"] = busy(all_, seconds)
out["all_cpu"] = (cpu() - at) / (time.monotonic() - wall)
out["all_lag_s"] = loader.execute("SELECT max(lag_seconds) FROM walrust_status").fetchone()[0] if so else 0
print(json.dumps(out), flush=True)
os._exit(0)
"""


def run(args, n, so):
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        folder = os.path.realpath(folder)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WALRUST_"))}
        if so:
            env["WALRUST_REPLICA"] = f"file://{folder}/replica/{{name}}"
        need = n * 4 + 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), max(hard, need)))
        except (ValueError, OSError):
            return None
        done = subprocess.run(["/usr/bin/python3", "-c", CHILD, so, folder, str(n), str(args.seconds)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--counts", default="1,100,1000,10000")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of each, in turns; medians are printed")
    parser.add_argument("--dir", help="where the databases are made")
    args = parser.parse_args()
    so = os.path.abspath(args.so)
    print(f"{'databases':>9} {'':8} {'open s':>7} {'RSS MB':>7} {'fds':>6} {'ours':>5} {'idle CPU':>8} {'one: ms':>8} {'p99':>6} {'lag s':>6} "
          f"{'all: /s':>8} {'p99 ms':>7} {'CPU':>5} {'lag s':>6}")
    for n in map(int, args.counts.split(",")):
        found = {"": [], so: []}
        for _ in range(args.rounds):
            for which in found:
                one = run(args, n, which)
                if one is None:
                    break
                found[which].append(one)
        if not all(found.values()):
            print(f"{n:>9} not measured: descriptors are limited")
            continue
        mid = {which: flat(runs) for which, runs in found.items()}
        for which, m in mid.items():
            print(f"{n:>9} {'walrust' if which else 'stock':8} {m['open_s']:7.2f} {m['rss_mb']:7.1f} {m['descriptors']:6.0f} {m['ours']:5.0f} "
                  f"{m['idle_cpu'] * 100:7.1f}% {m['one.median_ms']:8.3f} {m['one.p99_ms']:6.2f} {m.get('one_lag_s', 0):6.2f} "
                  f"{m['all.commits_s']:8.0f} {m['all.p99_ms']:7.2f} {m['all_cpu']:5.2f} {m['all_lag_s'] or 0:6.1f}", flush=True)
        stock, ours = mid[""], mid[so]
        print(f"{n:>9} {'':8} memory {(ours['rss_mb'] - stock['rss_mb']):+.1f} MB, one {ours['one.median_ms'] / stock['one.median_ms']:.2f}, "
              f"all {ours['all.commits_s'] / stock['all.commits_s']:.2f} of stock's commits a second; all were replicated {ours['settle_s']:.1f} s after the opens",
              flush=True)


def flat(runs):
    keys = {}
    for r in runs:
        for k, v in r.items():
            for name, value in ([(f"{k}.{i}", x) for i, x in v.items()] if isinstance(v, dict) else [(k, v)]):
                keys.setdefault(name, []).append(value or 0)
    return {k: statistics.median(v) for k, v in keys.items()}


main()
