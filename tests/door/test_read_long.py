"""Eight threads read three points of one replica while its writer, merges and retention go on; a share of it in each run, ten minutes in a campaign."""

import json
import unittest

import door
import pytest
import test_read

WRITER = """
import random
db, n, end = conns['main'], 0, time.monotonic() + args['seconds']
rng = random.Random(args['seed'])
while time.monotonic() < end:
    db.execute("BEGIN")
    for v in (7, -7):
        db.execute("INSERT INTO t(v, pad) VALUES(?, randomblob(?))", (v, rng.randrange(2000)))
    n += 2
    if rng.random() < 0.3:
        some = rng.randrange(1, 50)
        db.execute("UPDATE t SET pad = randomblob(length(pad)) WHERE id % 50 = ?", (some,))
    if n > 6000:
        gone = db.execute("SELECT id FROM t WHERE v > 0 ORDER BY id LIMIT 1000").fetchall()
        gone += db.execute("SELECT id FROM t WHERE v < 0 ORDER BY id LIMIT 1000").fetchall()
        db.executemany("DELETE FROM t WHERE id = ?", gone)
        n -= len(gone)
    db.execute("UPDATE c SET n = ?", (n,))
    db.execute("COMMIT")
    if rng.random() < 0.01:
        db.execute("VACUUM" if rng.random() < 0.2 else "PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    time.sleep(0.002)
result = n
"""

# Each state has sum(v) = 0 and as many rows as its counter says, and a point that was read once is always the same.
READERS = """
import threading, hashlib
url, seconds = args['url'], args['seconds']
begin, lock = time.monotonic(), threading.Lock()
points, seen, gone, wrong, other = {}, 0, 0, [], []

def told(db):
    return db.execute("SELECT walrust_last_error()").fetchone()[0] or ""

def newest(db):
    rows = db.execute("SELECT txid FROM walrust_points(?) WHERE txid >= ? ORDER BY txid", (url, args['since'])).fetchall()
    return [r[0] for r in rows]

def read(k):
    global seen, gone
    rng_state = k * 7919 + args['seed']
    db = connect(":memory:")
    while time.monotonic() - begin < seconds:
        rng_state = (rng_state * 6364136223846793005 + 1442695040888963407) % 2**64
        try:
            # Three points: the newest of some seconds ago, one in the middle, the oldest one; a new choice each three seconds.
            choice = int((time.monotonic() - begin) // 3)
            with lock:
                if choice not in points:
                    all_of_them = newest(db)
                    points[choice] = [all_of_them[-1], all_of_them[len(all_of_them) // 2], all_of_them[0]] if all_of_them else []
                three = points[choice]
            if not three:
                time.sleep(0.05)
                continue
            txid = three[(rng_state >> 33) % len(three)]
            db.execute("ATTACH ? AS r", (url + ("&" if "?" in url else "?") + f"at={txid}",))
        except Exception as e:
            text = f"{e}: {told(db)}"
            # A point may go while it is asked for: by retention, or merged into a later one.
            if any(word in text for word in ("gone", "outside the history", "cannot be rebuilt", "cannot be restored", "is not separately restorable any more", "each time it was read", "no file", "between")):
                gone += 1
            else:
                other.append(text)
            continue
        try:
            n = db.execute("SELECT n FROM r.c").fetchone()[0]
            h = hashlib.sha256()
            count = total = 0
            for row in db.execute("SELECT id, v, pad FROM r.t ORDER BY id"):
                count, total = count + 1, total + row[1]
                h.update(repr(tuple(row)).encode())
            got = (n, count, total, h.hexdigest())
            with lock:
                seen += 1
                first = points.setdefault(("content", txid), got)
            if (count, total) != (n, 0) or first != got:
                wrong.append([txid, list(got), list(first)])
            if (rng_state >> 20) % 7 == 0:
                told(db)
                check = db.execute("PRAGMA r.quick_check").fetchone()[0]
                why = told(db) if check != "ok" else ""
                # A page that cannot be read is no error of this statement's, but a line of its answer.
                unread = [line.endswith("unable to get the page. error code=266") for line in check.splitlines()[1:]]
                if check != "ok" and any(word in why for word in ("is gone", "each time it was read")) and unread and all(unread):
                    gone += 1
                elif check != "ok":
                    wrong.append([txid, check[:500], why])
        except Exception as e:
            text = f"{e}: {told(db)}"
            if any(word in text for word in ("is gone", "each time it was read")):
                gone += 1
            else:
                other.append(text)
        finally:
            for _ in range(3):
                try:
                    db.execute("DETACH r")
                    break
                except Exception as e:
                    time.sleep(0.01)

threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
contents = len([k for k in points if isinstance(k, tuple)])
result = [seen, contents, gone, wrong[:3], other[:3]]
"""


class Long(test_read.ReadTest):
    def run_for(self, seconds, url, env=None):
        p = self.peer(env=env).open(self.path("app.db"))
        p.watch(url, interval="0s", levels=["200ms", "600ms", "2s"], snapshot_interval="500ms", pitr_window="8s",
                retention={"hourly": 1, "daily": 1, "weekly": 1, "monthly": 1})
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, pad BLOB)")
        p.sql("CREATE TABLE c(n)")
        p.sql("INSERT INTO c VALUES(0)")
        since = p.sync()
        p.send(op="code", code=WRITER, args={"seconds": seconds + 1, "seed": door.SEED})
        r = self.peer(env=env).open(":memory:")
        got = r.code(READERS, url=url, since=since, seconds=seconds, seed=door.SEED)
        p.wait()
        seen, contents, gone, wrong, other = got
        print(f"\n{seen} reads of {contents} points, {gone} that went meanwhile", flush=True)
        self.assertEqual((wrong, other), ([], []), json.dumps([wrong, other]))
        self.assertGreater(seen, seconds)
        self.assertGreater(contents, 3)
        p.sync(60)
        # What is read at the end is what is there.
        r.sql("ATTACH ? AS past", url)
        self.eventually(lambda: r.rows("SELECT count(*), sum(v), max(id) FROM past.t") == p.rows("SELECT count(*), sum(v), max(id) FROM t"), timeout=20, every=0.5)

    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_eight_threads_and_three_points_in_a_directory(self):
        self.run_for(door.rounds(12), "file://" + self.path("replica"))

    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_eight_threads_and_three_points_over_s3(self):
        s3 = door.S3(self)
        cache = {"WALRUST_CACHE_DIR": self.path("cache"), "WALRUST_CACHE_SIZE": "4MB"}
        self.run_for(door.rounds(12), s3.url("app"), env=s3.env(**cache))


if __name__ == "__main__":
    unittest.main()
