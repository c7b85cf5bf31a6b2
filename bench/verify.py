"""What `walrust_verify` in mode quick reads of a large replica in a directory, and how long it takes.

    verify.py --so EXTENSION [--files 10000] [--rows 3]

The replica is made by streaming: one upload for each transaction, as of a shop that takes an order at a time. A transaction
inserts --rows orders and changes as many older ones; that touches the table and two indexes. All bytes that the process reads
while it verifies are counted, by the kernel (`rchar` of /proc/self/io): manifest, headers, indexes, trailers, and anything else.
"""

import argparse
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "door"))
import door  # noqa: E402

WRITE = """
import random
r = random.Random(1)
words = [''.join(r.choices('abcdefghijklmnopqrstuvwxyz', k=r.randint(3, 9))) for _ in range(2000)]
text = lambda: ' '.join(r.choices(words, k=60))
c = conns['main']
rows, n = args['rows'], 0
for i in range(args['commits']):
    c.execute('BEGIN')
    c.executemany('INSERT INTO orders(customer, placed, note) VALUES(?, ?, ?)',
                  [(r.randrange(5000), f'2026-11-24 {r.randrange(24):02}:{r.randrange(60):02}', text()) for _ in range(rows)])
    n += rows
    c.executemany('UPDATE orders SET note = ? WHERE id = ?', [(text(), r.randrange(n) + 1) for _ in range(rows)])
    c.execute('COMMIT')
    c.execute('SELECT walrust_sync(60)').fetchall()
"""

READ = """
def io():
    with open('/proc/self/io') as f:
        return {k: int(v) for k, v in (line.split(': ') for line in f)}
c = conns['main']
own = io()
own = {k: v - own[k] for k, v in io().items()}
before, begin = io(), time.perf_counter()
report = c.execute('SELECT walrust_verify(?, ?)', (args['url'], args['mode'])).fetchone()[0]
seconds, after = time.perf_counter() - begin, io()
result = [after['rchar'] - before['rchar'] - own['rchar'], after['syscr'] - before['syscr'] - own['syscr'], seconds, report]
"""


class Bench(door.DoorTest):
    def runTest(self):
        pass


def size(folder, suffix):
    found = [os.path.join(base, n) for base, _, names in os.walk(folder) for n in names if n.endswith(suffix)]
    return len(found), sum(os.path.getsize(f) for f in found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=3)
    args = parser.parse_args()
    door.SO = os.path.abspath(args.so)
    test = Bench()
    test.setUp()
    try:
        url = test.path("replica")
        p = test.peer().open(test.path("app.db"))
        p.watch(url, interval="0s")
        p.sql("PRAGMA synchronous=OFF")
        p.code("conns['main'].executescript(args['s'])", s="CREATE TABLE orders(id INTEGER PRIMARY KEY, customer, placed, note);"
               "CREATE INDEX by_customer ON orders(customer);CREATE INDEX by_time ON orders(placed)")
        begin = time.monotonic()
        while (missing := args.files - size(url, ".ltx")[0]) > 0:
            p.code(WRITE, commits=missing, rows=args.rows)
        p.end()
        took = time.monotonic() - begin
        (files, bytes_), (_, manifest) = size(url, ".ltx"), size(os.path.join(url, "walrust"), ".json")
        print(f"Replica: {files} files, {bytes_ / 1e6:.1f} MB, {bytes_ / files / 1000:.1f} KB each on average, and "
              f"{manifest / 1e6:.1f} MB of manifest; streamed in {took:.0f} s", flush=True)
        for mode in ("quick", "deep"):
            q = test.peer().open(":memory:")
            read, calls, seconds, report = q.code(READ, url=url, mode=mode)
            q.end()
            verdict = re.search(r"Exit code: .*", report).group()
            share = 100 * read / (bytes_ + manifest)
            print(f"{mode}: {read / 1e6:.2f} MB read = {share:.2f} % of the replica, {read / files:.0f} bytes a file ({manifest / files:.0f} of them "
                  f"manifest), {calls} reads, {seconds:.1f} s. {verdict}", flush=True)
            if mode == "quick":
                print(f"       2 % are not exceeded where files have {read / files / 0.02 / 1000:.1f} KB or more on average", flush=True)
    finally:
        test.doCleanups()


main()
