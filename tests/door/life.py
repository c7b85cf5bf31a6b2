"""A day of a small application in minutes, and a watcher that holds every word of walrust against what a restore gives.

Workers open and close the database, or keep it open, and are deployed anew or killed; a cron job without the extension writes too; the
store is away, slow or refuses; keys are rotated; a worker's clock jumps; the machine dies and comes back without its spool. Each worker
says when it committed what (by the clock that all processes share), what `walrust_status` told it and what `walrust_sync` answered. The
watcher restores the replica about once a second, past the faults, and judges:

* a row that says "lag L" at a moment: all that was committed more than L (and some grace) before is in the restore that began afterwards;
* `replicated_txid` is not beyond what that restore reached;
* a `walrust_sync` that succeeded: all that was committed before it was called is there;
* /health and the metrics likewise; `failed` and `fenced` only while there is, or was a moment ago, a reason;
* webhooks: no `corruption_detected`; a `history_gap` only where somebody wrote past walrust or was killed.
"""

import collections
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import door

# What the words may be behind: a look of the sealer is a quarter of a second, and these machines are busy.
GRACE = 1.5
# How long after a fault a state may still speak of it: retries back off up to 10 s here, a lease lives up to a minute.
AFTER = 25.0
AFTER_REBUILD = 120.0

WORKER = r"""
import json, os, sqlite3, sys, threading, time
so, db, name, style = sys.argv[1:5]
out = threading.Lock()
def say(**what):
    with out:
        os.write(1, (json.dumps(what) + "\n").encode())
loader = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
loader.enable_load_extension(True)
loader.load_extension(so)
COLUMNS = "state, txid, replicated_txid, lag_seconds, last_error"
over = threading.Event()
def fetch(c, sql):
    return [list(r) for r in c.execute(sql)]
def look():
    n = 0
    while not over.wait(0.4):
        n += 1
        t0 = time.monotonic()
        try:
            rows = fetch(loader, f"SELECT {COLUMNS} FROM walrust_status")
            say(k="status", t0=t0, t1=time.monotonic(), rows=rows)
            if n % 5 == 0:
                t0 = time.monotonic()
                say(k="metrics", t0=t0, text=fetch(loader, "SELECT walrust_metrics()")[0][0], t1=time.monotonic())
        except Exception as e:
            say(k="trouble", t=time.monotonic(), what=str(e))
def write():
    n, c = 0, None
    while not over.is_set():
        n += 1
        token = f"{name}-{n}"
        try:
            if c is None:
                c = sqlite3.connect(db, timeout=20, isolation_level=None)
                c.execute("CREATE TABLE IF NOT EXISTS t(token TEXT PRIMARY KEY, fill)")
            c.execute("INSERT INTO t VALUES(?, hex(randomblob(40)))", (token,))
            say(k="commit", token=token, t=time.monotonic())
            if n % 40 == 0:
                t0 = time.monotonic()
                try:
                    txid = fetch(c, "SELECT walrust_sync(5)")[0][0]
                    say(k="sync", t0=t0, t1=time.monotonic(), txid=txid)
                except sqlite3.Error as e:
                    say(k="unsynced", t0=t0, t1=time.monotonic(), why=str(e))
            if style == "short":
                c.close()
                c = None
        except sqlite3.Error as e:
            say(k="trouble", t=time.monotonic(), what=str(e), token=token)
            if c is not None:
                c.close()
            c = None
        over.wait(0.07)
    if c is not None:
        c.close()
threads = [threading.Thread(target=look), threading.Thread(target=write)]
for t in threads: t.start()
sys.stdin.readline()
over.set()
for t in threads: t.join()
say(k="end", t=time.monotonic())
"""


class Worker:
    """One process of the application."""

    def __init__(self, life, name, style, env):
        self.life, self.name = life, name
        self.proc = subprocess.Popen(
            [sys.executable, "-c", WORKER, door.SO, life.db, name, style], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=life.errors, text=True, env=door.clean_env(life.test.dir, env), cwd=life.test.dir,
        )
        life.test.addCleanup(self.kill)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.proc.stdout:
            self.life.heard(self.name, json.loads(line))

    def end(self):
        self.proc.stdin.close()
        status = self.proc.wait(60)
        self.reader.join(10)
        return status

    def kill(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        self.reader.join(10)
        for stream in (self.proc.stdin, self.proc.stdout):
            try:
                stream.close()
            except OSError:
                pass


class Life:
    """The application, its store, its faults, and the watcher."""

    def __init__(self, test, seconds):
        self.test, self.seconds, self.random = test, seconds, test.random
        self.db = test.path("app.db")
        self.errors = open(test.path("workers.err"), "wb")
        test.addCleanup(self.errors.close)
        self.s3 = door.S3(test, actions=("s3:*", "iam:*"))
        self.proxy = door.FaultProxy(test, self.s3.port)
        self.hook = door.Hook(test)
        self.port = door.free_port()
        self.credentials = test.path("credentials")
        self.keys = collections.deque([(self.s3.access_key, self.s3.secret_key)])
        self.write_keys()
        self.shim = test.path("clock.so")
        source = os.path.join(door.ROOT, "tests", "support", "clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", self.shim, source, "-ldl"], check=True)
        door.toml(
            test,
            f"""interval = "100ms"
metrics_listen = "127.0.0.1:{self.port}"
snapshot_interval = "20s"
validation_interval = "15s"
levels = ["2s", "10s"]
[retry]
base = "100ms"
max = "2s"
breaker_cooldown = "3s"
[[webhooks]]
url = "{self.hook.url}"
[[databases]]
path = "{self.db}"
replica = "{self.s3.url("app", self.proxy.endpoint)}"
""",
        )
        self.lock = threading.Lock()
        self.commits = {}
        self.words = collections.deque()
        self.untrue, self.counts = [], collections.Counter()
        # (from, until, what): when a fault was, by the shared clock.
        self.faults = []
        self.gaps_may_be = []
        self.workers, self.number = [], 0

    # -- what is heard --------------------------------------------------------------------------------------------------

    def heard(self, name, word):
        with self.lock:
            self.counts[word["k"]] += 1
            if word["k"] == "commit":
                self.commits[word["token"]] = word["t"]
            else:
                self.words.append((name, word))

    def say_untrue(self, what):
        at = f"{time.monotonic() - self.begun:.1f}s"
        self.untrue.append(f"{at}: {what} | faults: {[(round(a - self.begun, 1), round(b - self.begun, 1), w) for a, b, w in self.faults[-4:]]}")

    def fault(self, seconds, what, after=AFTER):
        now = time.monotonic()
        self.faults.append((now, now + seconds + after, what))

    def is_troubled(self, t0, t1):
        return any(a <= t1 and t0 <= b for a, b, _ in self.faults)

    # -- the application ------------------------------------------------------------------------------------------------

    def env(self):
        return {"AWS_SHARED_CREDENTIALS_FILE": self.credentials, "AWS_REGION": "us-east-1"}

    def write_keys(self):
        key, secret = self.keys[-1]
        door.SECRETS.add(secret)
        with open(self.credentials + ".new", "w") as f:
            f.write(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        os.rename(self.credentials + ".new", self.credentials)

    def start_worker(self, offset=None):
        self.number += 1
        name, env = f"w{self.number}", self.env()
        style = self.random.choice(["long", "long", "short"])
        if offset is not None:
            with open(self.test.path(name), "w") as f:
                f.write(f"{offset}\n")
            env |= {"LD_PRELOAD": self.shim, "CLOCK_OFFSET": self.test.path(name)}
        self.workers.append(Worker(self, name, style, env))

    def deploy(self):
        worker = self.workers.pop(0)
        self.start_worker()
        if worker.end() != 0:
            self.say_untrue(f"{worker.name} ended with {worker.proc.returncode}")

    def kill(self):
        # (A kill between a restart of the WAL and its word of it is told as a gap, by design.)
        self.gaps_may_be.append(time.monotonic())
        self.fault(0, "kill", 3)
        self.workers.pop(self.random.randrange(len(self.workers))).kill()
        self.start_worker()

    def cron(self):
        self.gaps_may_be.append(time.monotonic())
        self.number += 1
        token = f"cron{self.number}"
        sql = f".timeout 20000\nINSERT INTO t VALUES('{token}', 'cron');\n"
        done = subprocess.run([door.SHELL, "-batch", self.db], input=sql, text=True, capture_output=True, env=door.clean_env(self.test.dir))
        if done.returncode == 0 and not done.stderr:
            self.heard("cron", {"k": "commit", "token": token, "t": time.monotonic()})

    def outage(self):
        seconds = self.random.uniform(2, 10)
        self.fault(seconds, "outage")
        self.proxy.down = True
        self.later(seconds, lambda: setattr(self.proxy, "down", False))

    def storm(self):
        seconds = self.random.uniform(2, 8)
        self.fault(seconds, "storm")
        chance = self.random.random
        self.proxy.fault = lambda method, path: ("status", 503) if chance() < 0.4 else ("lose",) if chance() < 0.1 else None
        self.later(seconds, lambda: setattr(self.proxy, "fault", None))

    def slow(self):
        seconds = self.random.uniform(3, 8)
        self.fault(seconds, "slow", 5)
        self.proxy.fault = lambda method, path: ("delay", 0.4)
        self.later(seconds, lambda: setattr(self.proxy, "fault", None))

    def rotate(self):
        """The old key goes first: what is refused asks for the new one."""
        iam = self.s3.client("iam")
        new = iam.create_access_key(UserName="walrust")["AccessKey"]
        old = self.keys[-1][0]
        self.keys.append((new["AccessKeyId"], new["SecretAccessKey"]))
        self.s3.access_key, self.s3.secret_key = self.keys[-1]
        seconds = self.random.uniform(0, 3)
        self.fault(seconds, "rotation")
        self.s3.client("iam").delete_access_key(UserName="walrust", AccessKeyId=old)
        self.later(seconds, self.write_keys)

    def jump(self):
        """A worker whose clock is wrong."""
        self.start_worker(self.random.choice([-7200, -60, 60, 7200]))
        worker = self.workers.pop(0)
        worker.end()

    def rebuild(self):
        """The machine is lost with its disk, and its successor begins with a restore: the lease of the dead one runs out first."""
        for worker in self.workers:
            worker.kill()
        self.proxy.down, self.proxy.fault = False, None
        self.write_keys()
        now = time.monotonic()
        self.faults.append((now, now + AFTER_REBUILD, "rebuild"))
        self.gaps_may_be.append(now)
        count, self.workers = len(self.workers), []
        _, txid, tokens, why = self.restore()
        if txid is None:
            return self.say_untrue(f"nothing restores: {why}")
        subprocess.run(["rm", "-rf", self.db + "-walrust", self.db + "-wal", self.db + "-shm", self.db], check=True)
        os.rename(self.test.path("truth.db"), self.db)
        with self.lock:
            self.commits = {n: t for n, t in self.commits.items() if n in tokens}
            # (What the dead machine said last is judged with the commits that are lost.)
            self.words.clear()
        for _ in range(count):
            self.start_worker()

    def later(self, seconds, what):
        timer = threading.Timer(seconds, what)
        timer.daemon = True
        timer.start()
        self.test.addCleanup(timer.cancel)

    # -- the watcher ----------------------------------------------------------------------------------------------------

    def restore(self):
        """What is in the replica: tokens and TXID, and from when that is."""
        out = self.test.path("truth.db")
        if os.path.exists(out):
            os.remove(out)
        begun = time.monotonic()
        env = {"AWS_ACCESS_KEY_ID": self.s3.access_key, "AWS_SECRET_ACCESS_KEY": self.s3.secret_key, "AWS_REGION": "us-east-1"}
        done = self.test.run_cli("restore", self.s3.url("app"), out, "--json", env=env)
        if done.returncode != 0:
            return begun, None, set(), done.stderr
        told = json.loads(done.stdout)
        told = told[0] if isinstance(told, list) else told
        tokens = {r[0] for r in door.plain_rows(out, "SELECT token FROM t")}
        return begun, int(str(told["txid"]), 16) if isinstance(told["txid"], str) else told["txid"], tokens, ""

    def missing(self, tokens, before):
        with self.lock:
            return sorted(n for n, t in self.commits.items() if t < before and n not in tokens)

    def judge_lag(self, who, t0, lag, tokens):
        lost = self.missing(tokens, t0 - lag - GRACE)
        if lost:
            ages = [round(t0 - self.commits[n], 2) for n in lost[:3]]
            self.say_untrue(f"{who} said lag {lag} at {t0 - self.begun:.1f}s; the replica lacked {len(lost)} commits, {ages} s old then: {lost[:3]}")

    def judge_row(self, who, word, txid, tokens):
        if not word["rows"]:
            return
        state, _, replicated, lag, error = word["rows"][0]
        if replicated > txid:
            self.say_untrue(f"{who} said replicated_txid {replicated}, a restore reached {txid}")
        if lag is not None:
            self.judge_lag(f"{who} {word['rows'][0]}, TXID {txid} restored,", word["t0"], lag, tokens)
        if state in ("failed", "fenced") and not self.is_troubled(word["t0"], word["t1"]):
            self.say_untrue(f"{who} said {state} ({error}) without a reason")
        self.counts[f"state {state}"] += 1

    def judge_metrics(self, who, word, tokens):
        found = re.search(r'^walrust_lag_seconds\{database="%s"\} (\S+)' % re.escape(self.db), word["text"], re.M)
        if found:
            self.judge_lag(f"{who}'s metrics", word["t0"], float(found[1]), tokens)

    def judge(self, word, who, truth):
        begun, txid, tokens, _ = truth
        if word["k"] == "status":
            self.judge_row(who, word, txid, tokens)
        elif word["k"] == "metrics":
            self.judge_metrics(who, word, tokens)
        elif word["k"] == "sync":
            lost = self.missing(tokens, word["t0"])
            if lost:
                self.say_untrue(f"{who}'s walrust_sync succeeded, and the replica lacks {lost[:3]}")
        elif word["k"] == "unsynced" and not self.is_troubled(word["t0"] - 5, word["t1"]):
            self.say_untrue(f"{who}'s walrust_sync failed without a reason: {word['why']}")
        elif word["k"] == "trouble" and "locked" not in word["what"]:
            self.say_untrue(f"{who} met an error: {word['what']}")
        elif word["k"] == "health":
            is_well = word["status"] == 200
            if is_well:
                # Nothing worse than what a row says: the newest commit is at most a minute behind.
                self.judge_lag("/health", word["t0"], 60, tokens)
            elif not self.is_troubled(word["t0"] - 5, word["t0"]):
                self.say_untrue(f"/health said {word['status']} without a reason: {word['text'][:300]}")

    def ask_health(self):
        t0 = time.monotonic()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            status, text = e.code, e.read().decode()
        except OSError:
            return
        with self.lock:
            self.counts["health"] += 1
            self.words.append(("health", {"k": "health", "t0": t0, "t1": time.monotonic(), "status": status, "text": text}))

    def watch(self):
        """One look."""
        self.ask_health()
        with self.lock:
            words, self.words = list(self.words), collections.deque()
        truth = self.restore()
        if truth[1] is None:
            said = [w for _, w in words if w["k"] == "status" and w["rows"] and w["rows"][0][2] > 0]
            if said:
                self.say_untrue(f"a row spoke of TXID {said[0]['rows'][0][2]}, and nothing restores: {truth[3].strip()[:200]}")
            return
        self.counts["restores"] += 1
        for who, word in words:
            self.judge(word, who, truth)

    def judge_events(self):
        for event in self.hook.events():
            self.counts[event["event"]] += 1
            if event["event"] == "corruption_detected":
                self.say_untrue(f"an alarm of damage that was none: {json.dumps(event)}")
            if event["event"] == "history_gap" and not self.gaps_may_be:
                self.say_untrue(f"a gap that was none: {event['message']}")

    # -- the day --------------------------------------------------------------------------------------------------------

    def run(self):
        self.begun = time.monotonic()
        self.fault(0, "start", 8)
        for _ in range(3):
            self.start_worker()
        happenings = [self.deploy, self.deploy, self.kill, self.cron, self.cron, self.outage, self.storm, self.slow, self.rotate, self.jump]
        end = self.begun + self.seconds
        next_at = self.begun + 3
        rebuild_at = self.begun + self.seconds / 2 if self.seconds >= 300 else None
        while time.monotonic() < end:
            if rebuild_at and time.monotonic() >= rebuild_at:
                rebuild_at = None
                self.rebuild()
            elif time.monotonic() >= next_at:
                happening = self.random.choice(happenings)
                self.counts[happening.__name__] += 1
                happening()
                next_at = time.monotonic() + self.random.uniform(2, 8)
            self.watch()
            time.sleep(0.3)
        self.proxy.down, self.proxy.fault = False, None
        time.sleep(3)
        self.write_keys()
        self.watch()
        for worker in self.workers:
            worker.end()
        self.watch()
        self.settle()
        self.judge_events()
        return self.untrue, self.counts

    def settle(self):
        """At the end of the day: within half a minute all is in the replica, with no other open than one that syncs."""
        p = self.test.peer(env=self.env()).open(self.db)
        p.sync(60)
        live = {r[0] for r in p.rows("SELECT token FROM t")}
        truth = self.restore()
        if truth[2] != live:
            self.say_untrue(f"at the end the replica lacks {sorted(live - truth[2])[:5]} and has {sorted(truth[2] - live)[:5]} too many")
        with self.lock:
            gone = sorted(set(self.commits) - live)
        if gone:
            self.say_untrue(f"commits are gone from the database itself: {gone[:5]}")
        p.end()
