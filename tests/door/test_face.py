"""The page at `/` of metrics_listen, in Debian's Chromium: what it says in each state, that its commands do what they say, that it asks
nobody else, and that a keyboard, a screen reader and a telephone do.

WALRUST_SCREENSHOTS=docs  writes docs/page-*.png
"""

import atexit
import contextlib
import http.server
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib

import door

AXE = os.path.join(os.path.dirname(door.BIN), "npm", "node_modules", "axe-core", "axe.min.js")
SHOTS = os.environ.get("WALRUST_SCREENSHOTS")
BROWSER = []


def browser():
    """One Chromium for the tests of this process."""
    if not BROWSER:
        from playwright.sync_api import sync_playwright

        play = sync_playwright().start()
        atexit.register(play.stop)
        # (A name that a stranger lets point here.)
        args = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP rebound.example 127.0.0.1"]
        BROWSER.append(play.chromium.launch(executable_path=shutil.which("chromium"), args=args))
        atexit.register(BROWSER[0].close)
    return BROWSER[0]


def packed(png):
    """The same picture in fewer bytes: the browser packs in a hurry."""
    chunks, at = [], 8
    while at < len(png):
        n, kind = struct.unpack(">I4s", png[at:at + 8])
        chunks.append((kind, png[at + 8:at + 8 + n]))
        at += 12 + n
    data = zlib.compress(zlib.decompress(b"".join(d for k, d in chunks if k == b"IDAT")), 9)
    out = png[:8]
    for kind, d in [c for c in chunks if c[0] == b"IHDR"] + [(b"IDAT", data), (b"IEND", b"")]:
        out += struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d))
    return out


@contextlib.contextmanager
def plain_site(port):
    """A web page of somebody else's."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>elsewhere</title>")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class Face(door.DoorTest):
    def setUp(self):
        super().setUp()
        if not shutil.which("chromium"):
            if not os.path.exists("/etc/debian_version"):
                self.skipTest("not Debian: no chromium package")
            self.fail("there is no chromium: run `make target/venv/.ready`")
        self.port = door.free_port()
        self.env = {"WALRUST_METRICS_LISTEN": f"127.0.0.1:{self.port}", "TZ": "UTC"}
        self.home = f"http://127.0.0.1:{self.port}/"

    def view(self, width=1000, scheme="light", url=None):
        """A new tab at the page. Every console error, and every request to another server, fails the test at its end."""
        context = browser().new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, timezone_id="UTC", locale="en-GB")
        self.addCleanup(context.close)
        page = context.new_page()
        page.set_default_timeout(60000)
        page.errors, page.asked = [], []
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.on("request", lambda r: page.asked.append(r.url))
        page.goto(url or self.home)
        self.until(page, "document.querySelector('#overall').textContent !== 'Asking …'")
        return page

    def judge(self, page, name=None):
        """Nothing of it is wrong: no error, no stranger asked, accessible in light and dark, no wider than a telephone."""
        self.assertEqual(page.errors, [])
        self.assertEqual([u for u in page.asked if not u.startswith((self.home, "data:"))], [])
        if not os.path.exists(AXE):
            self.fail(f"{AXE} does not exist: install npm, then `make target/venv/.ready`")
        with open(AXE) as f:
            axe = f.read()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate(axe)
            found = page.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete']})")
            said = [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found["violations"]]
            self.assertEqual(said, [], f"axe, {scheme}")
        page.emulate_media(color_scheme="light")
        self.shoot(page, name)
        size = page.viewport_size
        page.set_viewport_size({"width": 320, "height": 700})
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 320)
        page.set_viewport_size(size)

    def shoot(self, page, name):
        if SHOTS and name:
            # (A picture of some machine, not of this one.)
            page.evaluate("""([own, shown]) => {
                const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(own, shown);
            }""", [self.dir, "/data"])
            path = os.path.join(door.ROOT, SHOTS, f"page-{name}.png")
            with open(path, "wb") as f:
                f.write(packed(page.screenshot()))
            self.assertLessEqual(os.path.getsize(path), 150_000, path)

    def until(self, page, expression, timeout=60):
        """Waits until the page's own state is so. (Playwright's own wait evaluates in the page's time, which its policy forbids.)"""
        self.eventually(lambda: page.evaluate(expression), timeout=timeout, what=expression, every=0.05)

    def overall(self, page, pattern, timeout=30):
        """Waits until the page says so, by itself."""
        end = time.monotonic() + timeout
        while not re.search(pattern, page.locator("#overall").inner_text()):
            if time.monotonic() > end:
                self.fail(f"{pattern}: {page.locator('#overall').inner_text()}; {page.locator('#rows').inner_text()[:400]}")
            page.wait_for_timeout(50)

    def field(self, page, label):
        return page.locator(f"dl > div:has(dt:text-is('{label}')) dd").inner_text()

    def get(self, path, host=None):
        request = urllib.request.Request(self.home.rstrip("/") + path, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    TOKEN = "correct-horse-battery-staple"

    def post(self, question, token=TOKEN, header="Authorization", scheme="Bearer "):
        """What is answered to `POST /act.json?question`."""
        headers = {header: scheme + token} if token is not None else {}
        request = urllib.request.Request(f"{self.home}act.json?{question}", data=b"", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())

    def outcome(self, question):
        """Waits for what came of the last deed."""
        last = lambda: (lambda d: d if d and d["ended"] else None)(json.loads(self.get(f"/act.json?{question}")[1]))
        return self.eventually(last, what="its end", timeout=60)

    # -- states

    def test_a_newcomers_questions_are_answered_within_one_click(self):
        p, db, url = self.watched(env=self.env, replica=self.path("the replica"), interval="0s")
        for n in range(6):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            p.sync()
            time.sleep(1.1 if n in (2, 3) else 0.05)
        points = p.rows("SELECT txid, time FROM walrust_points ORDER BY txid")
        page = self.view()
        # Is it safe now? Since when? (No click.)
        self.overall(page, "Safe: the replica has every commit of the database")
        self.assertIn("Safe now", page.locator(".safe").inner_text())
        self.assertRegex(self.field(page, "In this state since"), r"^\d\d:\d\d:\d\d")
        self.assertRegex(self.field(page, "Last upload"), r"^\d\d:\d\d:\d\d \([\d.]+ s ago\)")
        self.assertEqual(self.field(page, "Newest TXID in the replica"), f"{points[-1][0]:016x}")
        # How much is there? (Where nothing is clicked, the newest point is picked.)
        self.until(page, "document.querySelector('.picked-point').textContent.startsWith('Picked')")
        self.assertIn(f"{len(points)} points from ", page.locator(".told").inner_text())
        self.assertRegex(self.field(page, "Replica holds"), r"^\d+ files, ")
        # What does it cost? A directory costs no requests.
        self.assertIn("a directory", self.field(page, "Requests to the store"))
        self.assertEqual(page.locator("select option").count(), len(points))
        # Which point is before that time? One click.
        wanted = [t for t, at in points if at[:19] < points[-1][1][:19]][-1]
        at = [at for t, at in points if t == wanted][0]
        page.get_by_label("The newest point at or before").fill(at[:19].replace(" ", "T"))
        # (To the second: whatever came within the rest of it is later.)
        whole = [t for t, a in points if a[:19] < at[:19] or a[:23] == at[:19] + ".000"][-1]
        page.get_by_role("button", name="Find").click()
        self.until(page, f"document.querySelector('.picked-point').textContent.includes('{whole:016x}')")
        page.set_viewport_size({"width": 1000, "height": 1200})
        page.evaluate("scrollTo(0, 0)")
        self.shoot(page, "healthy")
        # What do I type? It is typed as it stands there.
        restore, attach, rewind = (page.locator("pre").nth(i).inner_text() for i in range(3))
        bin_dir = self.path("bin")
        os.mkdir(bin_dir)
        os.symlink(door.CLI, os.path.join(bin_dir, "walrust"))
        env = door.clean_env(self.dir, {"PATH": bin_dir + ":" + os.environ["PATH"]})
        done = subprocess.run(["sh", "-c", restore], env=env, cwd=self.dir, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, restore + done.stderr)
        restored = self.path("app.restored.db")
        want = door.plain_rows(restored, "SELECT v FROM t ORDER BY id")
        self.assertTrue(0 < len(want) < 6, want)
        self.assertEqual(self.shell(f"{attach}\nSELECT v FROM past.t ORDER BY id;").split(), [str(v) for v, in want])
        p.rows(rewind)
        self.assertEqual(p.rows("SELECT v FROM t ORDER BY id"), want)
        # Another point, by the keyboard and by the mouse.
        page.locator("select").focus()
        page.keyboard.press("End")
        self.until(page, f"document.querySelector('.picked-point').textContent.includes('{points[0][0]:016x}')")
        box = page.locator(".timeline").bounding_box()
        page.mouse.click(box["x"] + box["width"] - 4, box["y"] + 10)
        self.until(page, f"document.querySelector('.picked-point').textContent.includes('{points[-1][0]:016x}')")
        page.get_by_role("button", name="Copy: Restore it").click()
        self.until(page, "/Copied|Marked/.test(document.querySelector('#said').textContent)")
        # A time before everything.
        page.get_by_label("The newest point at or before").fill("2001-01-01T00:00:00")
        page.get_by_role("button", name="Find").click()
        self.until(page, "document.querySelector('.picked-point').textContent.includes('No point is as old as 2001-01-01')")
        page.locator("select").press("Home")
        self.judge(page)

    def test_lagging_and_well_again_without_a_reload(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        db = self.path("orders.db")
        p = self.peer(env=s3.env(**self.env)).open(db)
        p.watch(s3.url("orders", proxy.endpoint), interval="0s", retry={"base": "5ms", "max": "50ms", "breaker_threshold": 3, "breaker_cooldown": "1s"})
        p.sql("CREATE TABLE t(v)")
        p.sync()
        page = self.view()
        self.overall(page, "Safe")
        begun = len(page.asked)
        proxy.down = True
        for n in range(20):
            p.sql("INSERT INTO t VALUES(?)", "x" * 5000)
        self.overall(page, "Not safe: 1 of 1")
        self.assertRegex(page.locator(".safe").inner_text(), r"Not safe: what was committed since \d\d:\d\d:\d\d is not in the replica")
        self.assertRegex(page.locator(".wrong").inner_text(), "cannot (put|reach)")
        self.assertRegex(page.locator(".brief").inner_text(), r"[\d.]+ s behind, [\d.]+ KB pending")
        # The store does not answer: that is said, and nobody hangs.
        page.get_by_role("button", name="Ask the replica again").click()
        self.judge(page, "lagging")
        self.assertEqual(self.get("/metrics")[0], 200)
        proxy.down = False
        self.overall(page, "Safe: the replica has every commit", timeout=60)
        self.assertGreater(len(page.asked), begun)
        self.assertNotIn(self.home, page.asked[begun:], "without a reload")
        self.eventually(lambda: page.wait_for_timeout(200) or page.locator(".chart polyline").count() == 2, what="lag and pending, drawn")
        self.assertRegex(page.locator(".chart").first.get_attribute("aria-label"), r"at most [\d.]+ s; kept since")

    def test_requests_and_what_they_cost(self):
        """What a bill counts, as counted at the store's door; the prices are those of `walrust_explain`; a restart begins anew, and says so."""
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env(**self.env)).open(self.path("app.db"))
        p.watch(s3.url("app", proxy.endpoint), interval="0s", price_per_1000_put=2.0)
        p.sql("CREATE TABLE t(v)")
        for n in range(5):
            p.sql("INSERT INTO t VALUES(?)", n)
            p.sync()
        p.sql("SELECT walrust_verify()")
        page = self.view()
        self.overall(page, "Safe")
        self.until(page, "/[1-9]\\d* PUT and LIST/.test(document.querySelector('dl').textContent)")

        def counted():
            seen = [(method, path) for method, path, _ in list(proxy.seen)]
            lists = sum(1 for m, path in seen if m == "GET" and "list-type=2" in path)
            about = lambda path: "/walrust/" in path.split("?")[0] or path.split("?")[0].endswith(".ltx")
            puts = sum(1 for m, path in seen if m == "PUT" and about(path))
            return lists + puts, sum(1 for m, path in seen if m in ("GET", "HEAD") and about(path) and "list-type=2" not in path)

        def same():
            row, = json.loads(self.get("/status.json")[1])["databases"]
            said = row["requests"]
            return said if (said["put_and_list"], said["get_and_head"]) == counted() else None

        said = self.eventually(same, what="the page's count is the store's")
        self.assertGreater(said["put_and_list"], 6)
        self.assertGreater(said["get_and_head"], 6)
        # (No list price is known for this address: the one that is set counts.)
        self.assertAlmostEqual(said["dollars"], said["put_and_list"] * 2.0 / 1000)
        self.assertRegex(self.field(page, "Requests to the store"),
                         r"^\d+ PUT and LIST, \d+ GET and HEAD since \d\d:\d\d:\d\d, when its process began: about \$0\.\d+ \(configured price\)$")
        self.judge(page)

    def test_fenced(self):
        s3 = door.S3(self)
        # (With the usual life of a lease it learns within 25 s that it has lost it.)
        p = self.peer(so=door.CRASH_SO, env=s3.env(**self.env, WALRUST_LEASE_MS="3000")).open(self.path("app.db"))
        p.watch(s3.url("app"), interval="0s")
        p.sql("CREATE TABLE t(v)")
        p.sync()
        other = self.peer(env=s3.env()).open(self.path("other.db"))
        other.watch(s3.url("app"), takeover=True)
        other.sql("CREATE TABLE mine(v)")
        other.sync()
        p.sql("INSERT INTO t VALUES(1)")
        page = self.view()
        self.overall(page, "Not safe")
        self.eventually(lambda: "fenced" in page.locator(".badge").inner_text(), what="fenced", every=0.2)
        self.assertIn("Another machine owns the replica", page.locator(".body").inner_text())
        self.judge(page, "fenced")

    def test_empty(self):
        p, _, _ = self.watched(env=self.env)
        p.sync()
        p.sql("SELECT walrust_unwatch()")
        page = self.view()
        self.overall(page, "No database is watched here")
        self.assertIn("walrust_watch", page.locator("#empty").inner_text())
        self.judge(page, "empty")

    def test_two_hundred_databases(self):
        # (In memory: 200 databases wait for 2000 syncs of a disk, and it is not the disk that is looked at.)
        if os.path.isdir("/dev/shm"):
            self.dir = tempfile.mkdtemp(prefix="door-", dir="/dev/shm")
            self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        # (Nor is what merges and snapshots take.)
        still = {"WALRUST_LEVELS": "1h", "WALRUST_SNAPSHOT_INTERVAL": "0"}
        p = self.peer(env={**self.env, **still, "WALRUST_REPLICA": self.path("replicas", "{name}")})
        names = [f"{n:03d}" for n in range(199)] + ["<img src=x onerror='document.title=1'>&amp;"]
        for name in names:
            p.open(self.path(f"{name}.db"), conn=name)
            p.sql("CREATE TABLE t(v)", conn=name)
        for name in names:
            p.sync(conn=name)
        for _ in range(3):
            self.get("/health"), self.get("/metrics")
        before = p.rss_kb()
        page = self.view()
        # (A busy machine paints after the page is loaded.)
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        shown = page.evaluate("performance.now()")
        size = sum(page.evaluate("performance.getEntries().map(e => e.transferSize || 0)"))
        self.overall(page, "Safe: the replica has every commit of all 200 databases")
        self.assertEqual(page.locator("#rows > li").count(), 200)
        self.assertLess(size, 300_000, "bytes")
        one = sum(len(self.get(path)[1].encode()) for path in ("/", "/status.json"))
        self.assertLessEqual(one, 300_000, "the page and its data, without what it asks for again")
        page.wait_for_timeout(5000)
        grown = p.rss_kb() - before
        self.assertLess(grown, 2048, f"KiB more while somebody looks ({paint:.0f} ms, {shown:.0f} ms, {size} bytes)")
        self.assertIn(names[-1], page.locator("#rows").inner_text())
        self.shoot(page, "many")
        page.get_by_label("Filter").fill("17")
        self.assertEqual(page.locator("#rows > li:visible").count(), sum("17" in self.path(f"{n}.db") + self.path("replicas", n) for n in names))
        self.assertRegex(page.locator("#count").inner_text(), "of 200 shown")
        # By the keyboard alone: to the row, open it, close it.
        page.get_by_label("Filter").fill("117.db")
        page.get_by_label("Filter").press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        self.assertEqual(page.locator(".body:visible").count(), 1)
        self.until(page, "[...document.querySelectorAll('.picked-point')].some(p => p.textContent.startsWith('Picked'))")
        self.judge(page)
        page.keyboard.press("Enter")
        self.assertEqual(page.locator(".body:visible").count(), 0)

    # -- replicas without their process

    def serve(self, target):
        """`walrust serve` at this test's address."""
        proc = subprocess.Popen([door.CLI, "serve", target, "--listen", f"127.0.0.1:{self.port}"], env=door.clean_env(self.dir, {"TZ": "UTC"}),
                                cwd=self.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for clean in (proc.stdout.close, proc.stderr.close, proc.wait, proc.kill):
            self.addCleanup(clean)
        self.assertIn(self.home, proc.stdout.readline())
        return proc

    def test_a_replica_without_its_process(self):
        p, db, url = self.watched(replica=self.path("replicas", "shop"), interval="0s")
        for n in range(4):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            p.sync()
        p.sql("SELECT walrust_label('before-migration')")
        points = p.rows("SELECT txid, time FROM walrust_points ORDER BY txid")
        p.end()
        os.rename(db, db + ".gone")
        before = door.tree(url)
        proc = self.serve(url)
        page = self.view()
        # Is it safe? What a replica alone can say, and that the rest is not known.
        self.overall(page, "The replica can be read. Whether every commit is in it is not known from here")
        self.until(page, "document.querySelector('.picked-point').textContent.startsWith('Picked')")
        self.assertRegex(page.locator(".safe").inner_text(), rf"can be restored to any of {len(points)} points, the newest of \d\d:\d\d:\d\d")
        self.assertEqual(self.field(page, "Streamed to now, and behind by"), "not known from here")
        self.assertEqual((self.field(page, "Points"), self.field(page, "Labels")), (str(len(points)), "1"))
        self.assertIn("never: walrust serve --verify 6h asks for it", self.field(page, "Last checked from here and found good"))
        self.assertEqual(page.locator("select option").count(), len(points))
        self.assertIn("before-migration", page.locator("select").inner_text())
        self.assertEqual(page.locator(".chart").count(), 0, "no lag is drawn that nobody knows")
        self.assertEqual(page.get_by_label("Token").count(), 0)
        # What do I type? It is typed as it stands there; a database that is not here cannot be rewound.
        page.locator("select").select_option(str(points[-2][0]))
        restore, attach = page.locator("pre:visible").all_inner_texts()
        bin_dir = self.path("bin")
        os.mkdir(bin_dir)
        os.symlink(door.CLI, os.path.join(bin_dir, "walrust"))
        done = subprocess.run(["sh", "-c", restore], env=door.clean_env(self.dir, {"PATH": bin_dir + ":" + os.environ["PATH"]}), cwd=self.dir, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, restore + done.stderr)
        want = [str(v) for v, in door.plain_rows(self.path("shop.restored.db"), "SELECT v FROM t ORDER BY id")]
        self.assertEqual(want, ["0", "1", "2"])
        self.assertEqual(self.shell(f"{attach}\nSELECT v FROM past.t ORDER BY id;").split(), want)
        self.assertEqual(self.post("do=verify&database=" + urllib.request.quote(f"file://{url}"))[0], 403, "it only looks")
        self.judge(page)
        self.assertEqual(door.tree(url), before, "nothing is written")
        proc.kill()
        self.overall(page, r"No answer since \d\d:\d\d:\d\d: the process may have ended")

    def test_two_hundred_replicas_without_their_process(self):
        p, db, url = self.watched(replica=self.path("replicas", "000"), interval="0s")
        p.sync()
        p.end()
        names = [f"{n:03d}" for n in range(1, 199)] + ["<img src=x onerror='document.title=1'>&amp;"]
        for name in names:
            shutil.copytree(url, self.path("replicas", name))
        self.serve(self.path("replicas"))
        page = self.view()
        self.overall(page, "Each of 200 replicas can be read")
        self.assertEqual(page.locator("#rows > li").count(), 200)
        # (Encoded and with their heads: what went over the line. The page asks for its data every two seconds; one answer counts.)
        sizes = dict(page.evaluate("performance.getEntries().filter(e => e.transferSize).map(e => [e.name, e.transferSize])"))
        self.assertEqual(set(sizes), {self.home, self.home + "status.json"})
        self.assertLessEqual(sum(sizes.values()), 300_000, sizes)
        self.assertIn("%3Cimg%20src=x%20onerror='document.title=1'%3E%26amp;", page.locator("#rows").inner_text().splitlines()[1])
        page.get_by_label("Filter").fill("117")
        self.assertEqual(page.locator("#rows > li:visible").count(), 1)
        page.locator("#rows > li:visible button").first.click()
        self.until(page, "[...document.querySelectorAll('.picked-point')].some(p => p.textContent.startsWith('Picked'))")
        self.judge(page)

    # -- who shows the token

    def test_with_the_token_it_snapshots_checks_drills_and_labels(self):
        p, db, url = self.watched(env={**self.env, "WALRUST_METRICS_TOKEN": self.TOKEN}, replica=self.path("replica"), interval="0s")
        for n in range(3):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            newest = p.sync()
        page = self.view()
        self.overall(page, "Safe: the replica has every commit of the database")
        self.until(page, "document.querySelector('.picked-point').textContent.startsWith('Picked')")
        outcome, click = page.locator(".outcome"), lambda name: page.get_by_role("button", name=name, exact=True).click()

        def came(*words):
            self.eventually(lambda: page.wait_for_timeout(50) or all(w in outcome.inner_text() for w in words), what=f"{words}: {outcome.inner_text()}", timeout=60)

        # Without a token nothing is asked for; with a wrong one nothing is done.
        before, asked = door.tree(url), len(page.asked)
        click("Take a full copy")
        came("Give the token first")
        self.assertEqual([u for u in page.asked[asked:] if "act.json" in u], [])
        page.get_by_label("Token").fill("correct-horse-battery-stapl3")
        click("Take a full copy")
        came("Not done: the token is not the one")
        self.assertEqual(len(page.errors), 1, page.errors)
        self.assertIn("403", page.errors.pop())
        self.assertEqual(door.tree(url), before)
        page.get_by_label("Token").fill(self.TOKEN)
        # Enter in a field takes none of the buttons.
        page.get_by_label("Token").press("Enter")
        click("Check")
        came("verify, ", "\u2713 well", "Issues found: 0", "Exit code: 0 (all good)")
        self.assertEqual(door.tree(url), before, "it only reads")
        self.until(page, "/\\d\\d:\\d\\d:\\d\\d \\(/.test([...document.querySelectorAll('dt')].find(d => d.textContent.startsWith('Last checked')).nextSibling.textContent)")
        click("Drill")
        came("drill, ", "\u2713 well", "Result: passed")
        self.assertEqual(p.rows("SELECT result, txid FROM walrust_drills"), [("passed", newest)])
        # The label goes to the point that is picked.
        page.locator("select").select_option(str(newest - 1))
        page.get_by_label("Label", exact=True).fill("before-migration-42")
        click("Label the picked point")
        came("label, ", f"before-migration-42 is the label of TXID {newest - 1:016x}")
        self.assertEqual(p.rows("SELECT txid FROM walrust_points WHERE label = 'before-migration-42'"), [(newest - 1,)])
        # The list is read anew by itself.
        self.until(page, "[...document.querySelectorAll('option')].some(o => o.textContent.includes('before-migration-42'))")
        page.get_by_label("Label", exact=True).fill("latest")
        click("Label the picked point")
        came("Not done: ", "latest", "label")
        self.assertIn("400", page.errors.pop())
        p.sql("INSERT INTO t(v) VALUES(7)")
        click("Take a full copy")
        came("snapshot, ", "\u2713 well", "A full copy is in the replica: TXID ")
        copies = [f for f in door.ltx_files(url, 9)]
        self.assertIn(f"TXID {max(f[2] for f in copies):016x}", outcome.inner_text())
        self.assertEqual(page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length + document.cookie.length"), 0)
        self.assertIn("What does something asks for the token", page.locator("#times").inner_text())
        self.judge(page)
        # Who only looks sees what came of it, and is told what is missing.
        other = self.view()
        self.until(other, "(document.querySelector('.outcome') || {textContent: ''}).textContent.includes('A full copy is in the replica')")
        self.assertEqual(other.get_by_label("Token").input_value(), "")

    def test_who_shows_no_token_does_nothing(self):
        p, db, url = self.watched(env={**self.env, "WALRUST_METRICS_TOKEN": self.TOKEN}, interval="0s")
        p.sync()
        drill = "do=drill&database=" + urllib.request.quote(db)
        before = door.tree(url)
        for said, status in (({"token": None}, 401), ({"scheme": "Basic "}, 401), ({"header": "Cookie", "scheme": "token="}, 401), ({"token": ""}, 401),
                             ({"token": self.TOKEN[:-1]}, 403), ({"token": self.TOKEN + "x"}, 403), ({"token": self.TOKEN.upper()}, 403)):
            got, answer = self.post(drill, **said)
            self.assertEqual(got, status, (said, answer))
            self.assertErrorLine(answer["error"], "token")
        rebound = urllib.request.Request(f"{self.home}act.json?{drill}", data=b"", headers={"Authorization": f"Bearer {self.TOKEN}", "Host": "evil.example"})
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(rebound, timeout=10)
        self.assertEqual(caught.exception.code, 403)
        self.assertEqual(self.get(f"/act.json?database={urllib.request.quote(db)}"), (200, "null\n"), "nothing was begun")
        # Another web page, in a browser whose user has the page open: neither with the header, nor without.
        stranger = door.free_port()
        with plain_site(stranger):
            context = browser().new_context()
            self.addCleanup(context.close)
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{stranger}/")
            send = "([url, headers]) => fetch(url, {method: 'POST', headers, credentials: 'include'}).then(() => 'answered', e => e.name)"
            for headers in ({"Authorization": f"Bearer {self.TOKEN}"}, {}):
                self.assertEqual(page.evaluate(send, [f"{self.home}act.json?{drill}", headers]), "TypeError")
        self.assertEqual(self.get(f"/act.json?database={urllib.request.quote(db)}"), (200, "null\n"), "nothing was begun")
        self.assertEqual(door.tree(url), before)
        # It is shown nowhere.
        shown = [self.get(page)[1] for page in ("/", "/status.json", "/metrics", "/health")]
        shown += [json.dumps(p.rows("SELECT * FROM walrust_config")), self.run_cli("config", env={"WALRUST_METRICS_TOKEN": self.TOKEN}).stdout]
        self.assertNotIn(self.TOKEN, "".join(shown))
        self.assertIn("***", shown[-1])
        # With it, and with a question that is none.
        for question, status, words in (("do=drill", 400, "name a database"), ("do=rewind&database=x", 400, "snapshot, verify, drill or label"),
                                        ("do=drill&database=none", 404, "no such database")):
            got, answer = self.post(question)
            self.assertEqual(got, status)
            self.assertErrorLine(answer["error"], words)
        self.assertEqual(self.post(drill), (202, {"do": "drill"}))
        self.assertEqual((self.outcome("database=" + urllib.request.quote(db))["is_well"]), True)

    def test_where_no_token_is_set_nobody_does_anything(self):
        p, db, url = self.watched(env=self.env)
        p.sync()
        for token in (None, "", self.TOKEN):
            status, answer = self.post("do=drill&database=" + urllib.request.quote(db), token)
            self.assertEqual(status, 403)
            self.assertErrorLine(answer["error"], "only looks", "metrics_token")
        page = self.view()
        self.overall(page, "Safe")
        self.until(page, "document.querySelector('.picked-point').textContent.startsWith('Picked')")
        self.assertEqual(page.get_by_label("Token").count(), 0)
        self.assertIn("This page only looks", page.locator("#times").inner_text())
        p.end()
        # A word that is too short is no token: the mistake is told, and what it was is not.
        done = self.run_cli("config", env={"WALRUST_METRICS_TOKEN": "hunter2"})
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "WALRUST_METRICS_TOKEN", "16 to 512")
        self.assertNotIn("hunter2", done.stderr)

    def test_what_cannot_be_done_says_why_and_one_thing_is_done_at_a_time(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        db = self.path("app.db")
        p = self.peer(env=s3.env(**self.env, WALRUST_METRICS_TOKEN=self.TOKEN)).open(db)
        p.watch(s3.url("app", proxy.endpoint), retry={"base": "5ms", "max": "50ms"})
        p.sql("CREATE TABLE t(v)")
        p.sync()
        question = "database=" + urllib.request.quote(db)
        proxy.down = True
        self.assertEqual(self.post(f"do=verify&{question}"), (202, {"do": "verify"}))
        status, answer = self.post(f"do=drill&{question}")
        self.assertEqual(status, 409)
        self.assertErrorLine(answer["error"], "verify of this database is under way")
        self.assertEqual(self.get("/health")[0] in (200, 503), True, "nobody waits for it")
        proxy.down = False
        done = self.outcome(question)
        self.assertEqual(done["do"], "verify")
        for secret in (*door.SECRETS, self.TOKEN):
            self.assertNotIn(secret, json.dumps(done))
        self.assertEqual(self.post(f"do=drill&{question}"), (202, {"do": "drill"}))
        self.assertEqual(self.outcome(question)["is_well"], True)

    # -- manners

    def test_it_asks_while_it_is_seen_and_says_when_nobody_answers(self):
        p, _, _ = self.watched(env=self.env)
        p.sync()
        page = self.view()
        self.overall(page, "Safe")
        hide = "Object.defineProperty(document, 'hidden', {get: () => %s, configurable: true}); document.dispatchEvent(new Event('visibilitychange'))"
        page.evaluate(hide % "true")
        page.wait_for_timeout(300)
        seen = len(page.asked)
        page.wait_for_timeout(4500)
        self.assertEqual(len(page.asked), seen, "hidden, it asks nothing")
        page.evaluate(hide % "false")
        self.eventually(lambda: page.wait_for_timeout(50) or len(page.asked) > seen, what="it asks again")
        p.kill()
        self.overall(page, r"No answer since \d\d:\d\d:\d\d: the process may have ended")

    def test_no_name_of_a_strangers_leads_to_it(self):
        p, db, _ = self.watched(env=self.env)
        p.sync()
        context = browser().new_context()
        self.addCleanup(context.close)
        page = context.new_page()
        for path in ("", "status.json", "history.json?database=x", "points.json?database=x"):
            answer = page.goto(f"http://rebound.example:{self.port}/{path}")
            self.assertEqual(answer.status, 403)
            self.assertNotIn(db, answer.text())
        self.assertEqual(page.goto(f"http://localhost:{self.port}/status.json").status, 200)
        # What machines ask for is given under every name.
        self.assertEqual(page.goto(f"http://rebound.example:{self.port}/metrics").status, 200)
        # And the address that only a proxy knows.
        self.assertEqual(self.get("/status.json", host="evil.example")[0], 403)
        self.assertEqual(self.get("/status.json", host="192.0.2.1:80")[0], 200)

    def test_what_it_asks_for_holds_no_secret_and_bad_questions_have_an_answer(self):
        s3 = door.S3(self)
        p = self.peer(env=s3.env(**self.env)).open(self.path("app.db"))
        p.watch(s3.url("app"))
        p.sql("CREATE TABLE t(v)")
        p.sync()
        status, text = self.get("/status.json")
        row, = json.loads(text)["databases"]
        self.assertEqual((status, row["state"], row["health"], row["lag_seconds"]), (200, "streaming", "healthy", 0))
        for secret in door.SECRETS:
            self.assertNotIn(secret, text)
        question = "/points.json?database=" + urllib.request.quote(row["database"])
        said = self.eventually(lambda: (lambda a: None if a["asking"] else a)(json.loads(self.get(question)[1])), what="points")
        self.assertEqual([t["txid"] for t in said["points"]], [t for t, in p.rows("SELECT txid FROM walrust_points ORDER BY txid")])
        for path, status, said in (("/points.json", 400, "name a database"), ("/points.json?database=none", 404, "no such database"),
                                   (question + "&from=now", 400, "milliseconds"), ("/history.json?x=1", 400, "no others"), ("/x", 404, "/metrics")):
            got, text = self.get(path)
            self.assertEqual(got, status, path)
            self.assertErrorLine(text, said)
