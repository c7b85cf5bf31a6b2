#!/usr/bin/env python3
"""What a store that is away costs a program: 100 opens, writes and closes by 8 threads, configured and not, in turns; of one database, and
of 100 new ones, each of which gets a spool of its own.

The store is a black hole (connections never come to be), silent (they do, and nothing is answered) or has a name that nobody resolves
(a resolver that never answers; needs root). Prints medians, tails and the ratio of the wall times; then the store comes back, and it is
counted how long it takes until each database has its replica, without another open.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

CHILD = r"""
import json, os, sqlite3, sys, threading, time
so, folder, n, linger, files = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(so)
took, at = [], iter(range(n))
def work():
    for i in at:
        begun = time.monotonic()
        c = sqlite3.connect(f"{folder}/{i % files}.db", timeout=30)
        opened = time.monotonic()
        c.execute("PRAGMA journal_mode = WAL")
        c.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
        for _ in range(5):
            c.execute("INSERT INTO t(v) VALUES(hex(randomblob(100)))")
            c.commit()
        written = time.monotonic()
        c.close()
        took.append((opened - begun, written - opened, time.monotonic() - written))
begun = time.monotonic()
threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps([time.monotonic() - begun, took]), flush=True)
end = time.monotonic() + linger
while time.monotonic() < end: time.sleep(0.1)
os._exit(0)
"""


class Away:
    """A store's address at which nobody answers."""

    def __init__(self, mode):
        self.mode, self.kept = mode, []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=0 if mode == "black hole" else 1000)
        self.port = self.listener.getsockname()[1]
        if mode == "black hole":
            # The queue of connections that nobody accepts is full from here on.
            for _ in range(4):
                s = socket.socket()
                s.setblocking(False)
                try:
                    s.connect(("127.0.0.1", self.port))
                except BlockingIOError:
                    pass
                self.kept.append(s)
        else:
            threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                self.kept.append(self.listener.accept()[0])
            except OSError:
                return

    def close(self):
        # A thread that waits in accept() holds the port until it is woken.
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        for s in self.kept:
            s.close()


def silent_resolver():
    """What begins a program whose resolver never answers."""
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.53", 53))
    conf = tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False)
    conf.write("nameserver 127.0.0.53\n")
    conf.close()
    return resolver, ["unshare", "-m", "sh", "-c", f'mount --bind {conf.name} /etc/resolv.conf && exec "$@"', "sh"]


def run(args, folder, endpoint, files, linger=0.0, before=()):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WALRUST_"))}
    if endpoint:
        env |= {
            "WALRUST_REPLICA": f"s3://bucket/{{name}}?endpoint={endpoint}&region=us-east-1&path_style=true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
    command = [*before, "/usr/bin/python3", "-c", CHILD, args.so, folder, str(args.opens), str(linger), str(files)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def measured(child):
    wall, took = json.loads(child.stdout.readline())
    return wall, took


def compare(args, what, endpoint, files, before):
    """Prints what `files` databases cost with and without a replica, and gives the ratio of the wall times."""
    walls, parts = {False: [], True: []}, {False: [], True: []}
    # (Eight threads at one database sleep in SQLite's busy handler, 100 ms at a time: a few turns say nothing.)
    for turn in range(args.turns * 5 if files == 1 else args.turns):
        for configured in (False, True) if turn % 2 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                child = run(args, folder, endpoint if configured else None, files, before=before)
                wall, took = measured(child)
                child.wait()
            walls[configured].append(wall)
            parts[configured] += took
    ratio = statistics.median(walls[True]) / statistics.median(walls[False])
    print(f"{what}: {statistics.median(walls[False]):.2f} s without, {statistics.median(walls[True]):.2f} s configured, ratio {ratio:.2f}")
    for at, name in enumerate(("open", "write", "close")):
        for configured in (False, True):
            one = sorted(t[at] for t in parts[configured])
            print(f"  {name:5} {'configured' if configured else 'without   '} median {one[len(one) // 2] * 1000:.1f} ms, "
                  f"99 % {one[len(one) * 99 // 100] * 1000:.1f} ms, longest {one[-1] * 1000:.1f} ms")
    return ratio


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--opens", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    moto = os.path.join(os.path.dirname(sys.executable), "moto_server")
    parser.add_argument("--s3", default=f"{moto} -H 127.0.0.1 -p {{port}}" if os.path.exists(moto) else None,
                        help="command of an S3 server to come back as; {port} stands for its port")
    args = parser.parse_args()
    args.so = os.path.abspath(args.so)
    worst = 0.0
    for mode in ("black hole", "silent", "no name"):
        before, endpoint, away = (), None, None
        if mode == "no name":
            try:
                resolver, before = silent_resolver()
                subprocess.run([*before, "true"], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as e:
                print(f"{mode}: not measured: {e}")
                continue
            endpoint = "http://store.example:9000"
        else:
            away = Away(mode)
            endpoint = f"http://127.0.0.1:{away.port}"
        for files, what in ((1, "opens of one database"), (args.opens, "new databases")):
            ratio = compare(args, f"{mode}: {args.opens} {what} by 8 threads", endpoint, files, before)
            if files == 1:
                worst = max(worst, ratio)
        if away and args.s3:
            with tempfile.TemporaryDirectory() as folder:
                child = run(args, folder, endpoint, args.opens, linger=60)
                measured(child)
                away.close()
                time.sleep(0.2)
                server = subprocess.Popen([c.replace("{port}", str(away.port)) for c in args.s3.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                print(f"  back: {arrived(args, folder, endpoint)}")
                child.kill()
                server.kill()
        elif away:
            away.close()
    sys.exit(worst > 1.2)


def arrived(args, folder, endpoint):
    import boto3

    begun = time.monotonic()
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret")
    have = set()
    while time.monotonic() - begun < 60:
        try:
            s3.create_bucket(Bucket="bucket")
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket")
            keys = [o["Key"] for page in pages for o in page.get("Contents", [])]
        except Exception:
            time.sleep(0.2)
            continue
        have = {k.split("/")[0] for k in keys if k.endswith(".ltx")}
        if len(have) >= args.opens:
            return f"all {len(have)} replicas hold files {time.monotonic() - begun:.1f} s later"
        time.sleep(0.5)
    return f"{len(have)} of {args.opens} replicas hold files after 60 s"


if __name__ == "__main__":
    main()
