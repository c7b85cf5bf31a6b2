"""The race campaign: two machines, one replica, one history each time.

    python tests/door/race.py --rounds 1000 [--seed N] [--keep DIR]

A machine is a process with a directory of its own: its database and its spool. Both begin with what the replica holds, watch
it at the same moment and write. In a part of the rounds the one that won is frozen (SIGSTOP) for longer than its lease, the
other takes over by waiting, and the first is revived. What counts, by the logs of both (see kill.py):

    lost     the restore lacks what walrust_sync acknowledged to a machine before the other took over
    differs  the restore is the state of no commit, or holds commits of both that do not follow each other
    failed   a restore is refused, or nobody won

Takes the test build, whose lease can be made short. The second guard, create-only objects, is at work as in the real one.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time

import door
import kill

LEASE_MS = 240


def machine(worker, db, url, log, ready, go):
    """Waits for the start, then writes until it is killed; tries again while the other holds the replica."""
    os.environ["WALRUST_LEASE_MS"] = str(LEASE_MS)
    worker.begin(log)
    say, rng = worker.say, worker.rng
    c = kill.connect(db)
    options = json.dumps({**kill.NEVER, "interval": "0s", "retry": kill.FAST_RETRY})
    ready()
    os.read(go, 1)
    while True:
        try:
            c.execute("SELECT walrust_watch(?, ?)", (url, options)).fetchone()
            say("w 0 0")
            break
        except sqlite3.OperationalError as e:
            refused = "held by" in str(e) or "fenced" in str(e) or "another database" in str(e)
            if not refused:
                raise
            say("r 0 0")
            if "another database" in str(e):
                # The other's history went on: go on from where it is, as a machine does that takes over.
                c.close()
                mem = kill.connect(":memory:")
                mem.execute("SELECT walrust_restore(?, ?, NULL, ?)", (url, db, '{"overwrite":1}')).fetchone()
                mem.close()
                c = kill.connect(db)
            time.sleep(0.02)
    while True:
        n = kill.commit(c, rng, say)
        if n and rng.random() < 0.5:
            try:
                txid, = c.execute("SELECT walrust_sync(10)").fetchone()
                say(f"a {n} {txid}")
            except sqlite3.OperationalError as e:
                if "fenced" not in str(e) and "already with other content" not in str(e) and "held by" not in str(e):
                    raise
                say("f 0 0")
                time.sleep(60)


class Race:
    def __init__(self, args):
        self.args, self.rng = args, random.Random(args.seed)
        self.dir = tempfile.mkdtemp(prefix="race-", dir=args.dir)
        self.errors = os.path.join(self.dir, "errors")
        self.restorer = kill.Helper(kill.restorer(args.so), self.errors)
        self.judge = kill.Helper(kill.judge, self.errors)
        self.count = {k: 0 for k in ("rounds", "frozen", "takeovers", "fenced", "refused", "acknowledged", "lost", "differs", "failed")}

    def read(self, log):
        """What a machine said: (made, acknowledged, words, the first commit after its watch began)."""
        made, acks, words, first = {}, [], [], None
        with contextlib.suppress(FileNotFoundError), open(log) as f:
            for line in f:
                kind, n, *rest = line.split()
                rest = tuple(map(int, rest))
                if kind == "w":
                    first = None
                if kind in "td":
                    first = first or int(n)
                    made.setdefault(int(n), set()).add(rest)
                elif kind == "a":
                    acks.append((int(n), rest[0]))
                words.append(kind)
        return made, acks, words, first

    def one(self, number):
        base = os.path.join(self.dir, f"r{number}")
        url = os.path.join(base, "replica")
        os.mkdir(base)
        # Something to begin with, by a third machine that left.
        w = kill.Worker(self.args.so, None, self.rng.getrandbits(60))
        os.mkdir(os.path.join(base, "m"))
        log0, answer = os.path.join(base, "log0"), os.path.join(base, "txid")
        pid, ready = kill.spawn(lambda _: self.seed(w, os.path.join(base, "m", "app.db"), url, log0, answer), self.errors)
        os.close(ready)
        if os.waitpid(pid, 0)[1]:
            raise kill.Failed("the first machine did not end well")
        dbs = []
        for name in "ab":
            os.mkdir(os.path.join(base, name))
            dbs.append(os.path.join(base, name, "app.db"))
            self.restorer.restore(url, dbs[-1], None)
        start = tuple(self.judge.look(dbs[0]))
        logs = [os.path.join(base, "log-" + name) for name in "ab"]
        go_read, go_write = os.pipe()
        machines = []
        for db, log in zip(dbs, logs):
            w = kill.Worker(self.args.so, None, self.rng.getrandbits(60))
            machines.append(kill.spawn(lambda ready, w=w, db=db, log=log: machine(w, db, url, log, ready, go_read), self.errors))
        try:
            for _, ready in machines:
                os.read(ready, 1)
            os.write(go_write, b"..")
            for _ in range(1000):
                if any("w" in self.read(log)[2] for log in logs):
                    break
                time.sleep(0.01)
            time.sleep(self.rng.uniform(0.01, 0.12))
            frozen = None
            if self.rng.random() < 0.3:
                won = [i for i in (0, 1) if "w" in self.read(logs[i])[2]]
                if len(won) == 1:
                    frozen = won[0]
                    os.kill(machines[frozen][0], signal.SIGSTOP)
                    time.sleep(LEASE_MS / 1000 * self.rng.uniform(1.2, 4))
                    os.kill(machines[frozen][0], signal.SIGCONT)
                    time.sleep(self.rng.uniform(0.02, 0.4))
                    self.count["frozen"] += 1
        finally:
            for pid, ready in machines:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            statuses = [os.waitpid(pid, 0)[1] for pid, _ in machines]
            for fd in (go_read, go_write, *(ready for _, ready in machines)):
                os.close(fd)
        if any(s != signal.SIGKILL for s in statuses):
            with open(self.errors) as f:
                raise kill.Failed(f"a machine ended by itself: {f.read()[-1200:]}")
        said = [self.read(log) for log in logs]
        won = [i for i in (0, 1) if "w" in said[i][2]]
        if not won:
            raise kill.Failed("nobody won")
        self.count["takeovers"] += len(won) == 2
        self.count["fenced"] += sum("f" in s[2] for s in said)
        self.count["refused"] += sum("r" in s[2] for s in said)
        self.count["acknowledged"] += sum(len(s[1]) for s in said)
        out = os.path.join(base, "out.db")
        self.restorer.restore(url, out, None)
        try:
            found = self.judge.look(out)
        except kill.Failed as e:
            raise kill.Differs(str(e)) from None
        n, state = found[0], tuple(found[1:])
        of = [i for i in (0, 1) if state in said[i][0].get(n, ())]
        if not of and tuple(found) != start:
            raise kill.Differs(f"the restore is of no machine's commit: {found}")
        # Every TXID that anybody was told is durable is there, with what it was told about.
        newest = {}
        for i in (0, 1):
            for number_, txid in said[i][1]:
                newest.setdefault(txid, []).append((i, number_))
        for txid, told in newest.items():
            if len({i for i, _ in told}) > 1:
                raise kill.Differs(f"TXID {txid:x} was acknowledged to both machines")
        if newest:
            top = max(newest)
            i, number_ = max(newest[top], key=lambda t: t[1])
            if of and i not in of and said[of[0]][3] <= number_:
                # The other may only have gone on from there.
                raise kill.Lost(f"TXID {top:x} was acknowledged to machine {i} as commit {number_}, the restore is of the other, "
                                f"which began with commit {said[of[0]][3]}")
            if n < number_:
                raise kill.Lost(f"machine {i} was told commit {number_} is durable, the restore ends at {n}")
        for txid in self.rng.sample(sorted(newest), min(2, len(newest))):
            point = os.path.join(base, "point.db")
            self.restorer.restore(url, point, txid)
            at = self.judge.look(point)
            i, number_ = max(newest[txid], key=lambda t: t[1])
            if at[0] != number_ or tuple(at[1:]) not in said[i][0].get(number_, ()):
                raise kill.Differs(f"TXID {txid:x}, acknowledged to machine {i} as commit {number_}, restores as {at}")
        shutil.rmtree(base)

    def seed(self, w, db, url, log, answer):
        os.environ["WALRUST_LEASE_MS"] = str(LEASE_MS)
        w.begin(log)
        c = kill.connect(db)
        c.execute("SELECT walrust_watch(?, ?)", (url, json.dumps({**kill.NEVER, "interval": "0s"}))).fetchone()
        kill.make_schema(c)
        for _ in range(3):
            kill.commit(c, w.rng, w.say)
        c.execute("SELECT walrust_unwatch()").fetchone()
        c.close()

    def run(self):
        begin, complaints = time.monotonic(), 0
        while self.count["rounds"] < self.args.rounds and complaints < 10:
            try:
                self.one(self.count["rounds"])
            except (kill.Failed, kill.Lost, kill.Differs) as e:
                self.count[type(e).__name__.lower()] += 1
                complaints += 1
                number = self.count["rounds"]
                print(f"{type(e).__name__.lower()} (seed {self.args.seed}, round {number}): {e}", flush=True)
                if self.args.keep:
                    shutil.copytree(os.path.join(self.dir, f"r{number}"), os.path.join(self.args.keep, f"race-{number}"), dirs_exist_ok=True)
            self.count["rounds"] += 1
            if self.count["rounds"] % 100 == 0:
                print(f"{time.monotonic() - begin:.0f} s: {self.summary()}", flush=True)
        self.restorer.end()
        self.judge.end()
        shutil.rmtree(self.dir, ignore_errors=True)
        print(f"{time.monotonic() - begin:.0f} s: {self.summary()}", flush=True)
        return 1 if complaints else 0

    def summary(self):
        c = self.count
        return (f"{c['rounds']} races of two machines, {c['frozen']} with the holder frozen past its lease, {c['takeovers']} takeovers, "
                f"{c['fenced']} fenced, {c['refused']} refused, {c['acknowledged']} acknowledgements: "
                f"{c['lost']} lost, {c['differs']} mixed, {c['failed']} failed")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--seed", type=int, default=door.SEED)
    p.add_argument("--dir", default="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    p.add_argument("--keep")
    p.add_argument("--so", default=door.CRASH_SO)
    args = p.parse_args()
    for name in list(os.environ):
        if name.startswith(("WALRUST_", "AWS_", "LITESTREAM_")):
            del os.environ[name]
    sys.exit(Race(args).run())


if __name__ == "__main__":
    main()
