"""The operator's command line: the same surface, exit codes, --json, container start."""

import json
import os
import signal
import subprocess
import time
import unittest

import door


class Cli(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.p, self.db, self.url = self.watched(interval="0s")
        for i in range(8):
            self.p.sql("INSERT INTO t VALUES(?, randomblob(500))", i)
            self.txid = self.p.sync()

    def ok(self, *args, **kwargs):
        done = self.run_cli(*args, **kwargs)
        self.assertEqual(done.returncode, 0, f"{args}: {done.stdout}{done.stderr}")
        return done.stdout

    def json(self, *args, **kwargs):
        return json.loads(self.ok(*args, "--json", **kwargs))

    def damage(self):
        os.unlink(door.ltx_files(self.url, 0)[4][3])

    def test_help_and_version(self):
        text = self.ok("--help")
        for command in ("verify", "explain", "list", "files", "snapshot", "restore", "replicate", "compact", "watch", "status"):
            self.assertIn(command, text)
            self.assertTrue(self.ok(command, "--help"))
        self.assertRegex(self.ok("--version"), r"\d+\.\d+\.\d+")

    def test_verify_exit_codes(self):
        self.assertIn("Exit code: 0", self.ok("verify", self.url))
        self.ok("verify", self.url, "--mode", "deep")
        self.p.end()
        self.damage()
        done = self.run_cli("verify", self.url)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("Exit code: 1 (issues found)", done.stdout)
        os.mkdir(self.path("empty"))
        done = self.run_cli("verify", self.path("empty"))
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertIn("Exit code: 2 (critical)", done.stdout)

    def test_verify_json(self):
        rows = self.json("verify", self.url)
        self.assertTrue(json.dumps(rows))
        self.p.end()
        self.damage()
        done = self.run_cli("verify", self.url, "--json")
        self.assertIn(done.returncode, (1, 2))
        json.loads(done.stdout)

    def test_a_database_stands_for_its_replica(self):
        """URL_OR_DB: the configured replica of a database file, else the directory beside it."""
        self.p.end()
        os.rename(self.url, self.db + "-replica")
        beside = {name: self.ok(name, self.db) for name in ("verify", "files", "compact")}
        os.rename(self.db + "-replica", self.path("elsewhere"))
        self.assertNotEqual(self.run_cli("files", self.db).returncode, 0)
        with open(self.path("walrust.toml"), "w") as f:
            f.write('[[databases]]\npath = "app.db"\nreplica = "elsewhere"\n')
        for name, text in beside.items():
            self.assertEqual(self.ok(name, self.db).replace("elsewhere", "app.db-replica"), text.replace(self.db + "-replica", self.path("app.db-replica")))
            self.assertEqual(self.ok(name, self.path("elsewhere")), self.ok(name, self.db))

    def test_a_database_stands_for_the_replica_that_a_call_named(self):
        """Where no configuration says it: the spool knows where the database went. `list`, too, takes a database."""
        self.assertEqual(self.json("list", self.db)[0]["max_txid"], self.txid)
        self.p.end()
        os.rename(self.url, self.path("named"))
        s = self.peer().open(self.db)
        s.watch(self.path("named"), interval="0s")
        s.sync()
        s.end()
        for name in ("verify", "files", "compact", "points", "list", "drill"):
            with self.subTest(name=name):
                said = [self.json(name, target) for target in (self.db, self.path("named"))]
                for one in said:
                    if name == "drill":
                        for key in ("began", "restore_seconds"):
                            del one[key]
                self.assertEqual(*said)
        seen, = self.json("explain", self.db)["databases"]
        self.assertEqual(seen["replica"], "file://" + self.path("named"))
        self.assertGreater(seen["replica_files"], 0)
        # What is configured goes before what was.
        seen, = self.json("explain", self.db, env={"WALRUST_REPLICA": self.path("to-be")})["databases"]
        self.assertEqual((seen["replica"], seen["replica_files"]), ("file://" + self.path("to-be"), 0))

    def test_every_option_reaches_its_function(self):
        self.p.end()
        text = self.ok("compact", self.url, "--hourly", "5", "--daily", "4", "--weekly", "3", "--monthly", "2")
        self.assertRegex(text, r"(?m)^Policy: hourly 5, daily 4, weekly 3, monthly 2; ")
        self.assertRegex(self.ok("explain", self.db, "-o", "price_per_gb=0.125"), r"(?m)^Monthly cost: .* @ \$0\.125/GB \(configured price\)$")
        self.ok("restore", self.url, self.path("o.db"), "--check", "full", "--parallel", "2")
        for args, word in ((("--check", "some"), "some"), (("--parallel", "0"), "parallel"), (("--parallel", "65"), "parallel")):
            done = self.run_cli("restore", self.url, self.path("never.db"), *args)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(word, done.stderr)
        self.assertFalse(os.path.exists(self.path("never.db")))
        done = self.run_cli("snapshot", self.plain("stranger.db"), self.url)
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "another database's history")
        self.assertGreater(self.json("snapshot", self.path("stranger.db"), self.url, "--takeover")["txid"], self.txid)
        self.assertSameBytes(self.path("stranger.db"), self.restore(self.url)[0])

    def test_replicate_in_json_until_terminated(self):
        proc = self.spawn("replicate", self.url, self.path("copy.db"), "--interval", "20ms", "--json")
        line = json.loads(proc.stdout.readline())
        self.assertEqual((set(line), line["path"]), ({"path", "message"}, self.path("copy.db")))
        self.p.sql("INSERT INTO t VALUES(100, 'later')")
        self.p.sync()
        count = "SELECT count(*) FROM t"
        self.eventually(lambda: door.plain_rows(self.path("copy.db"), count) == door.plain_rows(self.db, count), timeout=4, what="the later row")
        proc.terminate()
        self.assertEqual((proc.wait(30), proc.stderr.read()), (0, ""))

    def test_json_on_each(self):
        """Every command that ends by itself answers one JSON document; rows are arrays of objects, a report is an object."""
        self.p.end()
        for args, kind, key in (
            (("verify", self.url), dict, "findings"), (("explain", self.db), dict, "databases"), (("list", self.url), list, "name"),
            (("files", self.url), list, "key"), (("compact", self.url), dict, "removed_files"), (("compact", self.url, "--force"), dict, "removed_files"),
            (("drill", self.url), dict, "parts"),
            (("restore", self.url, self.path("j.db")), dict, "txid"), (("snapshot", self.db, self.url), dict, "txid"),
            (("sync", self.db, self.url), dict, "txid"), (("status", self.db), list, "replicated_txid"), (("config", self.db), list, "source"),
        ):
            with self.subTest(args=args):
                answer = self.json(*args)
                self.assertIsInstance(answer, kind)
                self.assertIn(key, answer[0] if kind is list else answer)
        for table, columns in (("status", door.STATUS_LINE_COLUMNS), ("files", door.FILES_COLUMNS), ("list", door.LIST_COLUMNS)):
            row = self.json(table, self.db if table == "status" else self.url)[0]
            self.assertEqual(list(row), columns, table)

    def test_json_reports_are_values_with_their_units_in_their_names(self):
        """What a report says for people, its JSON says as numbers; the exit status is in it, and is the program's."""
        self.p.end()
        text = self.ok("compact", self.url)
        done = self.json("compact", self.url)
        self.assertEqual((done["exit"], done["dry_run"], done["replica"]), (0, True, "file://" + self.url))
        files = door.ltx_files(self.url)
        self.assertEqual(done["files"], len(files))
        self.assertEqual(done["bytes"], sum(os.path.getsize(f[3]) for f in files))
        self.assertEqual(sum(r["files"] for r in done["removed"] + done["kept"]), len(files))
        self.assertEqual(sum(r["bytes"] for r in done["removed"]), done["removed_bytes"])
        self.assertEqual(done["points"]["max_txid"], self.txid)
        self.assertEqual(done["policy"], {"hourly": 24, "daily": 7, "weekly": 12, "monthly": 12, "every_upload_seconds": 86400})
        self.assertIn(f"Files: {done['files']} (", text)
        self.assertFalse(self.json("compact", self.url, "--force")["dry_run"])

        text = self.ok("explain", self.db, "-o", "price_per_gb=0.5", "-o", "validation_interval=6h")
        said = self.json("explain", self.db, "-o", "price_per_gb=0.5", "-o", "validation_interval=6h")
        row, = said["databases"]
        self.assertEqual((said["exit"], row["database"], row["database_bytes"]), (0, self.db, os.path.getsize(self.db)))
        self.assertEqual((row["snapshot_interval_seconds"], row["validation_interval_seconds"]), (3600, 21600))
        self.assertEqual(row["prices"]["dollars_per_gb_month"], 0.5)
        estimate = row["estimate"]
        self.assertIn(f"{estimate['put_requests_per_month']} PUT and {estimate['list_requests_per_month']} LIST per month", text)
        money = row["dollars_per_month"]
        self.assertAlmostEqual(money["total"], money["storage"] + money["requests"] + money["reads"], places=3)
        self.assertEqual(said["total"]["active_bytes"], estimate["active_bytes"])

        said = self.json("drill", self.url)
        self.assertEqual((said["exit"], said["result"], said["txid"]), (0, "passed", self.txid))
        self.assertGreater(said["database_bytes"], 0)
        self.assertEqual({p["result"] for p in said["parts"]} - {"well", "not tried"}, set())
        self.damage()
        done = self.run_cli("drill", self.url, "--json")
        said = json.loads(done.stdout)
        self.assertEqual((done.returncode, said["exit"], said["result"]), (1, 1, "failed"))
        self.assertIn("wrong", [p["result"] for p in said["parts"]])

        series = self.json("metrics")
        self.assertTrue(all(set(s) == {"name", "labels", "value"} for s in series))
        shown = [line for line in self.ok("metrics").splitlines() if line and not line.startswith("#")]
        self.assertEqual(len(series), len(shown))

    def test_notify_test_in_json(self):
        hook = door.Hook(self)
        closed = f"http://127.0.0.1:{door.free_port()}"
        self.assertEqual(self.json("notify-test"), [])
        door.toml(self, f'[[webhooks]]\nurl = "{hook.url}"\n[[webhooks]]\nurl = "{closed}/secret"\n')
        for args in ((), (self.plain("any.db"),)):
            good, bad = self.json("notify-test", *args)
            self.assertEqual((good["ok"], good["status"], good["error"]), (True, 200, None))
            self.assertEqual((bad["webhook"], bad["ok"], bad["status"]), (closed, False, None))
            self.assertTrue(bad["error"])

    def test_list_and_files(self):
        self.assertIn(f"{self.txid:016x}", self.ok("files", self.url))
        rows = self.json("files", self.url)
        self.assertEqual(len(rows), len(door.ltx_files(self.url)))
        self.assertEqual(set(rows[0]), set(door.FILES_COLUMNS))
        rows = self.json("list", self.url)
        self.assertEqual(set(rows[0]), set(door.LIST_COLUMNS))
        self.assertEqual(rows[0]["max_txid"], self.txid)

    def test_restore(self):
        out = self.path("out.db")
        self.ok("restore", self.url, out)
        self.assertSameBytes(self.db, out)
        done = self.run_cli("restore", self.url, out)
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "out.db", "overwrite")
        self.ok("restore", self.url, out, "--overwrite")
        answer = self.json("restore", self.url, self.path("two.db"), "--txid", str(self.txid - 2))
        self.assertEqual(answer["txid"], self.txid - 2)

    def test_container_start(self):
        self.ok("restore", "--if-replica-exists", "--if-db-not-exists", self.path("nothing"), self.path("fresh.db"))
        self.assertFalse(os.path.exists(self.path("fresh.db")))
        before = door.tree(self.dir)["app.db"]
        self.ok("restore", "--if-replica-exists", "--if-db-not-exists", self.url, self.db)
        self.assertEqual(door.tree(self.dir)["app.db"], before)
        self.ok("restore", "--if-replica-exists", "--if-db-not-exists", self.url, self.path("fresh.db"))
        self.assertSameBytes(self.db, self.path("fresh.db"))

    def test_snapshot_explain_status_compact(self):
        q = door.plain_connect(self.path("plain.db"))
        q.execute("CREATE TABLE t(x)")
        q.close()
        self.ok("snapshot", self.path("plain.db"), self.path("rp"))
        self.assertTrue(door.ltx_files(self.path("rp")))
        self.assertIn("Walrust Configuration Preview", self.ok("explain", self.db))
        self.ok("status", self.db)
        self.assertRegex(self.ok("compact", self.url), "(?i)dry")

    def test_watch_until_terminated(self):
        self.p.end()
        other = self.path("w.db")
        q = self.peer(so=None).open(other)
        q.rows("PRAGMA journal_mode=wal")
        q.sql("CREATE TABLE t(x)")
        proc = subprocess.Popen([door.CLI, "watch", other, self.path("rw")], env=door.clean_env(self.dir), cwd=self.dir,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(proc.stdout.close)
        self.addCleanup(proc.stderr.close)
        self.addCleanup(proc.kill)
        self.eventually(lambda: door.ltx_files(self.path("rw")), what="the first file")
        q.sql("INSERT INTO t VALUES(1)")

        def equal():
            try:
                return door.image(self.restore(self.path("rw"))[0]) == door.image(other)
            except door.SqlError:
                return False

        self.eventually(equal, what="a foreign commit shipped", every=0.2)
        proc.terminate()
        self.assertIn(proc.wait(30), (0, 143, -15))

    def test_replicate_once_or_until_terminated(self):
        proc = subprocess.Popen([door.CLI, "replicate", self.url, self.path("copy.db")], env=door.clean_env(self.dir), cwd=self.dir,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(proc.wait)
        self.addCleanup(proc.kill)

        def count():
            try:
                return door.plain_rows(self.path("copy.db"), "SELECT count(*) FROM t")[0][0]
            except Exception:
                return -1

        self.eventually(lambda: count() == 8, what="the copy")

    def test_errors(self):
        for args in (("verify", "ftp://x"), ("restore", self.path("nothing"), self.path("n.db")), ("files", self.path("nothing")),
                     ("restore", self.url, self.path("n.db"), "--txid", "99999")):
            done = self.run_cli(*args)
            self.assertNotEqual(done.returncode, 0, args)
            self.assertErrorLine(done.stderr)
        self.assertEqual(self.run_cli("frobnicate").returncode, 2)
        self.assertFalse(os.path.exists(self.path("n.db")))

    def spawn(self, *args, env=None):
        proc = subprocess.Popen([door.CLI, *args], env=door.clean_env(self.dir, env), cwd=self.dir,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(proc.stdout.close)
        self.addCleanup(proc.stderr.close)
        self.addCleanup(proc.wait)
        self.addCleanup(proc.kill)
        return proc

    def plain(self, name, mode="wal"):
        """A database that no process streams."""
        q = door.plain_connect(self.path(name))
        q.execute(f"PRAGMA journal_mode={mode}")
        q.execute("CREATE TABLE t(x)")
        q.close()
        return self.path(name)

    def test_verify_that_could_not_be_done_is_neither_good_nor_bad(self):
        closed = f"s3://bucket/app?endpoint=http://127.0.0.1:{door.free_port()}&region=us-east-1"
        env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        for args in (("verify", closed), ("verify", "ftp://x"), ("verify", closed, "--json")):
            done = self.run_cli(*args, env=env)
            self.assertEqual((done.returncode, done.stdout), (3, ""), done.stderr)
            self.assertErrorLine(done.stderr)
        self.assertEqual(self.run_cli("verify").returncode, 3)
        self.assertEqual(self.run_cli("verify", self.url, "--mode", "slow").returncode, 3)

    def test_verify_json_says_what_the_report_says(self):
        good = self.json("verify", self.url)
        self.assertEqual(good["exit"], 0)
        self.assertEqual(list(good["findings"][0]), door.VERIFY_COLUMNS)
        self.assertEqual({f["severity"] for f in good["findings"]}, {"ok"})
        self.p.end()
        self.damage()
        done = self.run_cli("verify", self.url, "--json")
        self.assertEqual(json.loads(done.stdout)["exit"], done.returncode)
        self.assertEqual(self.run_cli("verify", self.url).returncode, done.returncode)

    def test_points(self):
        for point in (str(self.txid - 2), f"{self.txid - 2:016x}"):
            out = self.path(f"at-{point}.db")
            self.assertEqual(self.json("restore", self.url, out, "--point", point)["txid"], self.txid - 2)
        self.assertEqual(self.json("restore", self.url, self.path("now.db"), "--point", "0 seconds ago")["txid"], self.txid)
        done = self.run_cli("restore", self.url, self.path("n.db"), "--timestamp", "2001-01-01T00:00:00Z")
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "history")

    def test_status_of_a_database_that_another_process_streams(self):
        row, = self.json("status", self.db)
        self.assertEqual(list(row), door.STATUS_LINE_COLUMNS)
        self.assertEqual((row["health"], row["told_by"]), ("healthy", "the spool"))
        self.assertEqual((row["state"], row["txid"], row["replicated_txid"]), ("streaming", self.txid, self.txid))
        self.assertIn(f"{self.txid:016x}", self.ok("status", self.db))
        self.p.end()
        row, = self.json("status", self.db)
        self.assertEqual((row["state"], row["health"]), ("stopped", "healthy"), "nobody streams it, and the replica has all of it")
        # Where what was committed may not be in the replica, whoever asks by the exit status learns it.
        q = door.plain_connect(self.db)
        q.execute("INSERT INTO t VALUES(500, 'unseen')")
        q.close()
        done = self.run_cli("status", self.db, "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout)[0]["health"]), (1, "unhealthy"))
        self.assertErrorLine(done.stderr, "stopped", "changed since")
        done = self.run_cli("status", self.plain("other.db"), "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout)), (1, []))
        self.assertErrorLine(done.stderr, "not streamed from here")
        self.assertFalse(os.path.exists(self.path("other.db-walrust")))

    def test_status_asks_the_process_and_its_exit_status_says_whether_all_is_well(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        port = door.free_port()
        env = s3.env(WALRUST_METRICS_LISTEN=f"127.0.0.1:{port}")
        names = [self.path("one.db"), self.path("two.db")]
        p = self.peer(env=env)
        for i, name in enumerate(names):
            p.open(name, conn=name)
            p.watch(s3.url(f"db{i}", proxy.endpoint), conn=name, interval="0s", retry={"breaker_threshold": 1000, "max": "200ms"})
            p.sql("CREATE TABLE t(v)", conn=name)
            p.sync(conn=name)
        asked = {"WALRUST_METRICS_LISTEN": f"127.0.0.1:{port}"}
        done = self.run_cli("status", *names, "--max-lag", "5", "--json", env=asked)
        rows = json.loads(done.stdout)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual([(r["database"], r["state"], r["health"], r["lag_seconds"], r["told_by"]) for r in rows],
                         [(n, "streaming", "healthy", 0, f"process {p.pid} at 127.0.0.1:{port}") for n in names])
        # Asked by nothing but the spool, it cannot say how late it is.
        done = self.run_cli("status", names[0], "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout)[0]["told_by"]), (0, "the spool"))
        proxy.down = True
        p.sql("INSERT INTO t VALUES(1)", conn=names[1])
        time.sleep(1.2)
        done = self.run_cli("status", *names, "--max-lag", "1", "--json", env=asked)
        self.assertEqual((done.returncode, [r["lag_seconds"] > 1 for r in json.loads(done.stdout)]), (1, [False, True]))
        self.assertErrorLine(done.stderr, r"two\.db: ")
        self.assertEqual(self.run_cli("status", names[0], "--max-lag", "1", env=asked).returncode, 0)
        done = self.run_cli("status", names[0], "--max-lag", "-3", env=asked)
        self.assertNotEqual(done.returncode, 0)
        # The process has ended: the spool tells, and that it was left with something.
        p.kill()
        done = self.run_cli("status", *names, "--json", env=asked)
        self.assertEqual((done.returncode, [r["state"] for r in json.loads(done.stdout)]), (1, ["stopped", "stopped"]))

    def test_looking_starts_nothing(self):
        db = self.plain("conf.db", mode="delete")
        with open(self.path("walrust.toml"), "w") as f:
            f.write('[[databases]]\npath = "conf.db"\nreplica = "conf-replica"\n')
        before = door.tree(self.dir)
        for command in ("status", "explain", "config", "verify", "compact", "files"):
            self.run_cli(command, db)
        self.ok("list", self.dir)
        self.assertEqual(door.tree(self.dir), before)
        rows = {r["name"]: r for r in self.json("config", db)}
        self.assertEqual(rows["replica"]["value"], self.path("conf-replica"))

    def test_sync_and_snapshot_carry_a_history_on(self):
        db, url = self.plain("cron.db"), self.path("cron-replica")
        first = self.json("snapshot", db, url)["txid"]
        q = door.plain_connect(db)
        q.execute("INSERT INTO t VALUES(1)")
        q.close()
        second = self.json("sync", db, url)["txid"]
        self.assertGreater(second, first)
        self.assertSameBytes(db, self.restore(url)[0])
        self.assertEqual(self.json("sync", db, url)["txid"], second, "nothing has changed")
        self.assertIn("Exit code: 0", self.ok("verify", url))
        self.assertEqual(self.json("status", db)[0]["state"], "stopped")

    def test_snapshot_goes_where_it_is_told(self):
        db = self.plain("conf.db")
        with open(self.path("walrust.toml"), "w") as f:
            f.write('[[databases]]\npath = "conf.db"\nreplica = "conf-replica"\n')
        self.ok("snapshot", db, self.path("elsewhere"))
        self.assertTrue(door.ltx_files(self.path("elsewhere")))
        self.assertFalse(os.path.exists(self.path("conf-replica")))

    def test_watch_what_is_configured(self):
        """Without arguments: every database in walrust.toml, and those that appear later."""
        self.plain("tenant-a.db")
        with open(self.path("walrust.toml"), "w") as f:
            f.write('interval = "0s"\n[[databases]]\npath = "tenant-*.db"\nreplica = "rt/{name}"\n')
        proc = self.spawn("watch", "--json")
        line = json.loads(proc.stdout.readline())
        self.assertEqual(set(line), {"database", "replica", "message"})
        self.assertIn("tenant-a.db", line["database"])
        self.plain("tenant-b.db")
        self.eventually(lambda: door.ltx_files(self.path("rt", "tenant-b")), what="the later one")
        door.plain_connect(self.path("tenant-b.db")).execute("INSERT INTO t VALUES(1)").connection.close()
        proc.send_signal(signal.SIGINT)
        self.assertEqual(proc.wait(30), 0)
        ends = [json.loads(line) for line in proc.stdout.read().splitlines()]
        self.assertEqual([set(e) for e in ends[-2:]], [{"database", "txid"}] * 2)
        self.assertSameBytes(self.path("tenant-b.db"), self.restore(self.path("rt", "tenant-b"))[0])

    def test_watch_ships_what_came_just_before_the_end(self):
        """A commit of a process without the extension, and SIGTERM at once: it is in the replica."""
        db = self.plain("late.db")
        proc = self.spawn("watch", db, self.path("rl"), "-o", "interval=1h")
        self.assertIn("late.db", proc.stdout.readline())
        q = door.plain_connect(db)
        for i in range(5):
            q.execute("INSERT INTO t VALUES(?)", (i,))
        proc.terminate()
        self.assertEqual(proc.wait(30), 0, proc.stderr.read())
        q.close()
        self.assertSameBytes(db, self.restore(self.path("rl"))[0])

    def test_watch_refused(self):
        for args in (("watch", self.path("absent.db"), self.path("r")), ("watch",), ("watch", self.plain("w.db"), self.url)):
            done = self.run_cli(*args)
            self.assertEqual((done.returncode, done.stdout), (1, ""), args)
            self.assertErrorLine(done.stderr)
        self.assertFalse(os.path.exists(self.path("absent.db")))
        self.assertErrorLine(self.run_cli("watch", self.path("w.db"), self.path("r2"), "-o", "intervall=1s").stderr, "interval")

    def test_a_reader_that_has_seen_enough(self):
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run([door.CLI, "files", self.url], env=door.clean_env(self.dir), stdout=write,
                                  stderr=subprocess.PIPE, text=True, timeout=60)
        finally:
            os.close(write)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_completions(self):
        self.assertIn("walrust", self.ok("completions", "bash"))

    def test_speed_of_start(self):
        begin = time.monotonic()
        self.ok("--version")
        self.assertLess(time.monotonic() - begin, 2)


if __name__ == "__main__":
    unittest.main()
