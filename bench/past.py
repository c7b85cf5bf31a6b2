"""How soon the past of a large live database is there, and what a rewind costs its readers.

    past.py --so EXTENSION [--megabytes 2000] [--rewind-megabytes 100]

The database is streamed into a directory. Some rows are changed; then the state before is attached and a row is read, which was changed or was not.
A rewind of a smaller database runs while readers read and a writer writes.
"""

import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "door"))
import door  # noqa: E402

ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{}) INSERT INTO t SELECT i, 'then', randomblob(1000) FROM n"

# What the readers saw: errors by their text, and states that never were.
READERS = """
import threading
stop, errors, wrong, reads = threading.Event(), {}, [], [0]
def read(db):
    while not stop.is_set():
        try:
            got = tuple(db.execute("SELECT sum(v = 'then'), sum(v = 'now') FROM t").fetchone())
            reads[0] += 1
            if got not in ((args['rows'], 0), (args['rows'] - args['changed'], args['changed'])):
                wrong.append(got)
        except Exception as e:
            errors[str(e)] = errors.get(str(e), 0) + 1
def begin():
    threads = [threading.Thread(target=read, args=(connect(args['db']),)) for _ in range(4)]
    [t.start() for t in threads]
    return threads
conns['readers'] = (stop, begin(), errors, wrong, reads)
"""


class Bench(door.DoorTest):
    def runTest(self):
        pass


def filled(test, name, megabytes):
    db, rows = test.path(name), megabytes * 1000
    p = test.peer(so=None).open(db)
    p.sql("PRAGMA journal_mode=OFF")
    p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad BLOB)")
    p.sql(ROWS.format(rows))
    p.close()
    p.kill()
    p = test.peer().open(db)
    p.watch(test.path(name + "-r"), interval="0s")
    return p, db, rows, p.sync(1200)


def cpu_ms(p):
    """Processor time of the process so far: what a busy machine does not change much."""
    with open(f"/proc/{p.pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def attach(test, megabytes):
    p, db, rows, txid = filled(test, "large.db", megabytes)
    for n in range(20):
        p.sql("UPDATE t SET v = 'now' WHERE id % 20000 = ?", n)
        p.sync(60)
    took, changed, spent = [], [], cpu_ms(p)
    for n in range(20):
        name = p.sql("SELECT walrust_past(?)", txid)
        begin = time.monotonic()
        p.sql("ATTACH ? AS past", name)
        got = p.sql("SELECT v FROM past.t WHERE id = ?", 1 + 31 * n * rows // 1000)
        took.append((time.monotonic() - begin) * 1000)
        begin = time.monotonic()
        assert p.sql("SELECT v FROM past.t WHERE id = ?", 20000 * (n + 1) % rows + n % 20) == "then" == got
        changed.append((time.monotonic() - begin) * 1000)
        p.sql("DETACH past")
    print(f"{os.path.getsize(db) / 1e6:.0f} MB: attach and a row {statistics.median(took):.1f} ms (at most {max(took):.1f}), "
          f"{(cpu_ms(p) - spent) / len(took):.1f} ms of processor with all that is done beside it; "
          f"a row that was changed {statistics.median(changed):.1f} ms", flush=True)
    p.close()
    p.kill()


def rewind(test, megabytes):
    p, db, rows, txid = filled(test, "small.db", megabytes)
    p.sql("UPDATE t SET v = 'now' WHERE id % 10 = 3")
    changed = p.sql("SELECT sum(v = 'now') FROM t")
    late = p.sync(60)
    q = test.peer()
    q.open(db)
    q.code(READERS, db=db, rows=rows, changed=changed)
    time.sleep(0.5)
    begin = time.monotonic()
    undo = p.sql("SELECT walrust_rewind(?)", txid)
    took = time.monotonic() - begin
    time.sleep(0.5)
    errors, wrong, reads = q.code("stop, threads, errors, wrong, reads = conns['readers']\nstop.set()\n[t.join() for t in threads]\n"
                                  "result = [errors, wrong[:3], reads[0]]")
    p.sync(60)
    then = p.rows("SELECT sum(v = 'then'), sum(v = 'now'), sum(length(pad)) FROM t")
    out, _ = test.restore("file://" + test.path("small.db-r"), point=txid)
    assert door.plain_rows(out, "SELECT sum(v = 'then'), sum(v = 'now'), sum(length(pad)) FROM t") == then == [(rows, 0, 1000 * rows)]
    p.sql("SELECT walrust_rewind(?)", undo)
    assert p.sql("SELECT sum(v = 'now') FROM t") == changed
    print(f"{os.path.getsize(db) / 1e6:.0f} MB rewound in {took:.2f} s; 4 readers read {reads} times, errors: {errors or 'none'}, states that never were: {wrong or 'none'}; "
          f"undone by TXID {undo} (that of the state before: {late})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--rewind-megabytes", type=int, default=100)
    args = parser.parse_args()
    door.SO = os.path.abspath(args.so)
    test = Bench()
    test.setUp()
    try:
        rewind(test, args.rewind_megabytes)
        attach(test, args.megabytes)
    finally:
        test.doCleanups()


if __name__ == "__main__":
    main()
