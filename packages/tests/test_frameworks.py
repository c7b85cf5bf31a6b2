"""The frameworks, each the real one, with walrust from its package: loaded once at the start, databases named in one place."""

import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import unittest
import urllib.parse

import clean
import meta

REQUIREMENTS = ["django==5.2.19", "sqlalchemy==2.1.9", "greenlet", "aiosqlite==0.22.1", "fastapi", "httpx", "flask==3.1.3", "datasette==0.65.5",
                "peewee==4.5.3", "sqlite-utils==4.2.1"]


def python():
    """Debian's Python with the frameworks, kept between runs; walrust is put in anew."""
    venv = clean.scratch("frameworks")
    mark = os.path.join(venv, ".ready")
    pip = [os.path.join(venv, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check"]
    if not os.path.exists(mark):
        subprocess.run(["/usr/bin/python3", "-m", "venv", venv], check=True)
        subprocess.run([*pip, *REQUIREMENTS], check=True)
        open(mark, "w").close()
    subprocess.run([*pip, "--no-index", "--force-reinstall", "--no-deps", "--find-links", clean.OUT, "walrust", "walrust-cli"], check=True)
    return os.path.join(venv, "bin", "python")


class Restored(clean.CleanTest):
    def restored(self, sql, replica="replica"):
        """The answer of what the replica gives back, in a process of its own."""
        out = self.path(f"restored-{time.monotonic_ns()}.db")
        self.run_ok(meta.host().cli, "restore", self.path(replica), out)
        return self.run_ok("sqlite3", out, sql).strip()


class Frameworks(Restored):
    @classmethod
    def setUpClass(cls):
        cls.python = python()

    def tell(self, code, **env):
        return self.run_ok(self.python, self.file("program.py", code), env=self.env(**env))

    def test_sqlalchemy(self):
        self.tell(
            "import walrust; walrust.load()\n"
            "from sqlalchemy import create_engine, text\nfrom sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, Session\n"
            "class Base(DeclarativeBase): pass\nclass T(Base):\n    __tablename__ = 't'\n    id: Mapped[int] = mapped_column(primary_key=True)\n"
            "e = create_engine('sqlite:///app.db'); Base.metadata.create_all(e)\n"
            "for i in range(20):\n    with Session(e) as s: s.add(T()); s.commit()\n"
            "print(walrust.sync('app.db'))\n", WALRUST_REPLICA=self.path("replica"),
        )
        self.assertEqual(self.restored("SELECT count(*) FROM t"), "20")

    def test_aiosqlite_and_sqlalchemys_asyncio(self):
        self.tell(
            "import asyncio, walrust, aiosqlite; walrust.load()\n"
            "from sqlalchemy.ext.asyncio import create_async_engine\nfrom sqlalchemy import text\n"
            "async def main():\n"
            "    async with aiosqlite.connect('app.db') as db:\n"
            "        await db.execute('CREATE TABLE t(x)'); await db.execute('INSERT INTO t VALUES(1)'); await db.commit()\n"
            "        async with db.execute('SELECT walrust_sync()') as c: print(await c.fetchone())\n"
            "    e = create_async_engine('sqlite+aiosqlite:///app.db')\n"
            "    async with e.begin() as c: await c.execute(text('INSERT INTO t VALUES(2)'))\n"
            "    await e.dispose()\n"
            "asyncio.run(main())\n", WALRUST_REPLICA=self.path("replica"),
        )
        self.assertEqual(self.restored("SELECT sum(x) FROM t"), "3")

    def test_fastapi_and_flask(self):
        self.tell(
            "import sqlite3, walrust; walrust.load()\n"
            "from fastapi import FastAPI\nfrom fastapi.testclient import TestClient\nfrom flask import Flask\n"
            "def db(name): return sqlite3.connect(name, timeout=20)\n"
            "a = FastAPI()\n@a.post('/add')\ndef add():\n    c = db('fast.db')\n    c.execute('CREATE TABLE IF NOT EXISTS t(x)'); c.execute('INSERT INTO t VALUES(1)'); c.commit(); c.close()\n"
            "@a.get('/health')\ndef health(): return [r.state for r in walrust.status()]\n"
            "keep = db('fast.db')\n"
            "with TestClient(a) as t:\n    for _ in range(10): assert t.post('/add').status_code == 200\n    walrust.sync('fast.db'); print(t.get('/health').json())\n"
            "f = Flask('f')\n@f.post('/add')\ndef add2():\n    c = db('flask.db')\n    c.execute('CREATE TABLE IF NOT EXISTS t(x)'); c.execute('INSERT INTO t VALUES(1)'); c.commit(); c.close(); return 'ok'\n"
            "t = f.test_client()\nfor _ in range(10): assert t.post('/add').status_code == 200\n", WALRUST_REPLICA=self.path("{name}"),
        )
        self.assertEqual([self.restored("SELECT count(*) FROM t", n) for n in ("fast", "flask")], ["10", "10"])

    def test_peewee_and_sqlite_utils(self):
        self.tell(
            "import walrust; walrust.load()\nfrom peewee import *\nd = SqliteDatabase('app.db')\n"
            "class T(Model):\n    x = IntegerField()\n    class Meta: database = d\n"
            "d.connect(); d.create_tables([T])\nfor i in range(10): T.create(x=i)\nd.close()\n"
            "import sqlite_utils\nu = sqlite_utils.Database('app.db'); u['t'].insert({'x': 99}); u.close()\n", WALRUST_REPLICA=self.path("replica"),
        )
        self.assertEqual(self.restored("SELECT count(*), max(x) FROM t"), "11|99")

    def test_django(self):
        self.run_ok(os.path.join(os.path.dirname(self.python), "django-admin"), "startproject", "site1", self.dir)
        with open(self.path("site1", "settings.py"), "a") as f:
            f.write("\nINSTALLED_APPS += ['walrust.django']\nWALRUST = {'default': {'replica': str(BASE_DIR / 'replica'), 'interval': '0s'}}\n")
        manage = [self.python, self.path("manage.py")]
        self.run_ok(*manage, "migrate", "--verbosity", "0")
        create = ("from django.contrib.auth.models import User\nfrom django.db import transaction\n"
                  "for i in range(10):\n    with transaction.atomic(): User.objects.create(username=f'u{i}')\n")
        self.run_ok(*manage, "shell", "-c", create)
        self.assertEqual(self.restored("SELECT count(*) FROM auth_user"), "10")
        self.assertIn("state: streaming", self.run_ok(*manage, "walrust", "status").replace("catching up", "streaming"))
        self.assertIn("ok: ", self.run_ok(*manage, "walrust", "verify", "--mode", "deep"))
        self.assertIn("TXID", self.run_ok(*manage, "walrust", "restore", self.path("out.db")))
        self.assertEqual(self.run_ok("sqlite3", self.path("out.db"), "SELECT count(*) FROM auth_user").strip(), "10")
        self.run_ok(*manage, "test", "--verbosity", "0")  # its database is in memory
        with open(self.path("site1", "settings.py"), "a") as f:
            f.write("WALRUST = {'main': {}}\n")
        done = subprocess.run([*manage, "check"], text=True, capture_output=True, env=self.env(), cwd=self.dir)
        self.assertIn("WALRUST names the database 'main', which is not in DATABASES; allowed: default", done.stderr)

    def test_datasette(self):
        self.run_ok("sqlite3", self.path("app.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(7)")
        datasette = os.path.join(os.path.dirname(self.python), "datasette")
        said = json.loads(self.run_ok(datasette, "app.db", "--get", "/-/plugins.json"))
        self.assertIn("walrust", [p["name"] for p in said])

        def ask(sql):
            done = subprocess.run([datasette, "app.db", "--get", "/app.json?_shape=array&" + urllib.parse.urlencode({"sql": sql})],
                                  text=True, capture_output=True, env=self.env(), cwd=self.dir)
            return done.stdout

        self.assertIn(f"walrust {meta.VERSION}", ask("SELECT walrust_version() AS v"))
        self.assertIn("no such function: walrust_restore", ask("SELECT walrust_restore('/a', '/b')"))
        self.assertIn('"x": 7', ask("SELECT x FROM t"))
        for page in ("/-/databases.json", "/-/versions.json", "/app/t.json"):
            self.run_ok(datasette, "app.db", "--get", page)


class Local(http.client.HTTPConnection):
    """HTTP over a socket that has a path."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Servers(Restored):
    """Servers of several processes: all of them write, one streams, and what was written last leaves when they end."""

    REQUESTS = 60

    def story(self, argv, end, ask, env):
        """`ask(method, path)` gives the status and the body."""
        with open(self.path("server.log"), "w") as log:
            server = subprocess.Popen(argv, cwd=self.dir, env=env, stdout=log, stderr=log)
        try:
            self.wait(lambda: os.path.exists(self.path("s.sock")), server)
            with concurrent.futures.ThreadPoolExecutor(4) as threads:
                said = list(threads.map(lambda _: ask("POST", "/add"), range(self.REQUESTS)))
            self.assertEqual([s for s in said if s[0] != 200], [], self.log())
            self.assertGreater(len({text for _, text in said}), 1, f"{said[0]}: one process answered all requests")
            self.wait(lambda: any(r["state"] == "streaming" for r in json.loads(ask("GET", "/status")[1])), server)
        finally:
            server.send_signal(end)
            server.wait(60)
        self.assertEqual(self.restored("SELECT count(*) FROM t"), str(self.REQUESTS), self.log())

    def log(self):
        with open(self.path("server.log")) as f:
            return f.read()[-3000:]

    def wait(self, is_so, server, seconds=60):
        end = time.monotonic() + seconds
        while not is_so():
            self.assertIsNone(server.poll(), self.log())
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.05)

    def test_rails_and_puma(self):
        clean.setup("ruby-sqlite3", "ruby-activerecord", "ruby-railties", "ruby-minitest", "rake", "puma")
        gem = clean.package(f"walrust-{meta.VERSION}-{meta.host().ruby}.gem")
        self.run_ok("/usr/bin/gem", "install", "--silent", "--local", "--no-document", "--install-dir", self.path("gems"), gem)
        paths = self.run_ok("/usr/bin/ruby", "-e", "puts Gem.default_path").split()
        shutil.copy(os.path.join(clean.HERE, "rails", "config.ru"), self.dir)
        os.mkdir(self.path("config"))
        self.file("config/database.yml", "production:\n  adapter: sqlite3\n  database: app.db\n  pool: 3\n  timeout: 20000\n")
        self.run_ok("sqlite3", self.path("app.db"), "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        env = self.env(GEM_PATH=":".join([self.path("gems"), *paths]), RAILS_ENV="production", APP_HOME=self.dir, WALRUST_REPLICA=self.path("replica"))

        def ask(method, path):
            c = Local(self.path("s.sock"))
            c.request(method, path)
            answer = c.getresponse()
            text = answer.read().decode()
            c.close()
            return answer.status, text

        # One thread a process: this sqlite3 gem waits for a lock with the interpreter held, so that a second thread cannot end its transaction.
        puma = ["/usr/bin/puma", "--workers", "2", "--threads", "1:1", "--preload", "--bind", f"unix://{self.path('s.sock')}", "config.ru"]
        self.story(puma, signal.SIGTERM, ask, env)

    def test_laravel_and_php_fpm(self):
        clean.setup("php-fpm", "php-sqlite3", "php-laravel-framework", "libfcgi-bin")
        shutil.copytree(os.path.join(clean.HERE, "laravel"), self.dir, dirs_exist_ok=True)
        for folder in ("storage/framework/views", "resources/views", "bootstrap/cache"):
            os.makedirs(self.path(folder))
        self.run_ok("sqlite3", self.path("app.db"), "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        pool = {
            "listen": self.path("s.sock"), "pm": "static", "pm.max_children": 3, "pm.max_requests": 20, "catch_workers_output": "yes", "env[APP_HOME]": self.dir, "env[WALRUST_REPLICA]": self.path("replica"),
        }
        lines = [f"{k} = {v}" for k, v in pool.items()]
        root = ["user = root"] if os.getuid() == 0 else []
        conf = self.file("fpm.conf", "\n".join(["[global]", "error_log = /dev/stderr", "process_control_timeout = 30s", "[www]", *root, *lines, ""]))
        (fpm,) = [os.path.join("/usr/sbin", n) for n in os.listdir("/usr/sbin") if n.startswith("php-fpm")]

        def ask(method, path):
            asked = {
                **self.env(), "SCRIPT_FILENAME": self.path("public/index.php"), "SCRIPT_NAME": "/index.php", "REQUEST_URI": path,
                "REQUEST_METHOD": method, "SERVER_PROTOCOL": "HTTP/1.1", "CONTENT_LENGTH": "0",
            }
            head, _, text = self.run_ok("cgi-fcgi", "-bind", "-connect", self.path("s.sock"), env=asked).partition("\n\n")
            return int(head.split("Status: ")[1].split()[0]) if "Status: " in head else 200, text

        argv = [fpm, "--nodaemonize", *(["--allow-to-run-as-root"] if root else []), "-d", f"sqlite3.extension_dir={meta.host().dir}", "--fpm-config", conf]
        self.story(argv, signal.SIGQUIT, ask, self.env())


if __name__ == "__main__":
    unittest.main()
