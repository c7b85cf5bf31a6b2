"""The Debian package, installed from its file into a Debian of its own; the tar ball; what sqlpkg and Docker are told."""

import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import unittest

import clean
import meta


def debian():
    """A minimal Debian with sqlite3, made once."""
    root = clean.scratch("debian")
    if not os.path.exists(os.path.join(root, "usr/bin/sqlite3")):
        clean.setup("debootstrap")
        subprocess.run(["debootstrap", "--variant=minbase", "--include=sqlite3", "bookworm", root], check=True, stdout=subprocess.DEVNULL)
    return root


@unittest.skipUnless(os.getuid() == 0 and shutil.which("dpkg"), "needs root, for a chroot")
class Deb(clean.CleanTest):
    def setUp(self):
        super().setUp()
        self.root = self.path("root")
        subprocess.run(["cp", "-a", debian(), self.root], check=True)
        shutil.copy(clean.package(f"walrust_{meta.VERSION}-*_{meta.host().debian}.deb"), os.path.join(self.root, "walrust.deb"))
        self.inside("dpkg", "-i", "/walrust.deb")

    def inside(self, *argv, text=None):
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return self.run_ok("chroot", self.root, *argv, env=env, text=text)

    def test_installed_used_and_removed(self):
        """The shell loads it by its bare name; the command line verifies and restores; the last file goes with the package."""
        script = (
            ".load walrust\nSELECT walrust_watch('/var/lib/replica');\nCREATE TABLE t(x);\nINSERT INTO t VALUES(1);\nSELECT walrust_sync();\n"
        )
        said = self.inside("sqlite3", "-batch", "-bail", "/var/lib/app.db", text=script)
        self.assertIn("streaming from a first snapshot", said)
        self.inside("walrust", "verify", "/var/lib/replica")
        self.inside("walrust", "restore", "/var/lib/replica", "/var/lib/copy.db")
        self.assertEqual(self.inside("sqlite3", "/var/lib/copy.db", "SELECT x FROM t").strip(), "1")
        self.assertIn(meta.VERSION, self.inside("walrust", "--version"))
        self.assertIn("walrust", self.inside("bash", "-c", ". /usr/share/bash-completion/completions/walrust; complete -p walrust"))
        self.inside("dpkg", "--purge", "walrust")
        left = [os.path.join(base, n) for base, dirs, names in os.walk(self.root) for n in dirs + names if "walrust" in n]
        self.assertEqual([p for p in left if "/var/lib/" not in p and not p.endswith("/walrust.deb")], [])

    def test_the_manual_and_the_service(self):
        done = subprocess.run(["man", "--warnings", "-l", os.path.join(self.root, "usr/share/man/man1/walrust.1.gz")], text=True, capture_output=True,
                              env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        text = " ".join(re.sub(".\b", "", done.stdout).split())
        for line in ("walrust - stream SQLite databases", "walrust watch app.db s3://bucket/app", "--if-replica-exists", "WALRUST_CONFIG"):
            self.assertIn(line, text)
        if shutil.which("systemd-analyze"):
            unit = os.path.join(self.root, "usr/lib/systemd/system/walrust@.service")
            with open(unit) as f:
                text = f.read()
            here = self.file("walrust@app.service", text.replace("/usr/bin/walrust", meta.host().cli))
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", here], text=True, capture_output=True)
            self.assertEqual((done.returncode, done.stderr.strip()), (0, ""))

    def test_the_service_streams_what_its_file_names(self):
        """Its command and environment, as the unit has them, without systemd."""
        with open(os.path.join(self.root, "usr/lib/systemd/system/walrust@.service")) as f:
            unit = f.read()
        (command,) = re.findall("^ExecStart=(.*)$", unit, re.M)
        (setting,) = re.findall("^Environment=(.*)$", unit, re.M)
        self.inside("sqlite3", "/var/lib/app.db", "CREATE TABLE t(x)")
        with open(os.path.join(self.root, "etc/walrust/app.toml"), "w") as f:
            f.write('[[databases]]\npath = "/var/lib/app.db"\nreplica = "/var/lib/replica"\n')
        service = subprocess.Popen(["chroot", self.root, "/usr/bin/env", "-i", setting.replace("%i", "app"), *command.split()])
        try:
            for i in range(200):
                self.inside("sqlite3", "-cmd", ".timeout 20000", "/var/lib/app.db", f"INSERT INTO t VALUES({i})")
                if glob.glob(self.root + "/var/lib/replica/ltx/*/*.ltx"):
                    break
        finally:
            service.terminate()
            self.assertEqual(service.wait(60), 0)
        self.inside("walrust", "restore", "/var/lib/replica", "/var/lib/copy.db")
        self.assertEqual(self.inside("sqlite3", "/var/lib/copy.db", "SELECT count(*) FROM t").strip(), str(i + 1))


class Tarball(clean.CleanTest):
    def test_it_unpacks_and_runs(self):
        with tarfile.open(clean.package(f"walrust-{meta.VERSION}-{meta.host().name}.tar.gz")) as tar:
            tar.extractall(self.dir)
        self.assertIn(meta.VERSION, self.run_ok("./walrust", "--version"))
        self.assertIn(meta.VERSION, self.run_ok("sqlite3", ":memory:", text=".load ./walrust\nSELECT walrust_version();\n"))

    def test_the_checksums_are_those_of_the_files(self):
        self.run_ok("sha256sum", "--quiet", "--check", "SHA256SUMS", cwd=clean.OUT)
        with open(os.path.join(clean.OUT, "SHA256SUMS")) as f:
            self.assertEqual(len(f.readlines()), len(os.listdir(clean.OUT)) - 1)

    def test_sqlpkg_names_the_files(self):
        with open(os.path.join(clean.OUT, "sqlpkg.json")) as f:
            spec = json.load(f)
        self.assertEqual((spec["owner"], spec["name"], spec["version"]), ("walrust", "walrust", meta.VERSION))
        for name in spec["assets"]["files"].values():
            with open(os.path.join(clean.OUT, name), "rb") as f:
                self.assertEqual(spec["assets"]["checksums"][name], "sha256-" + hashlib.sha256(f.read()).hexdigest())

    def test_the_image_is_the_two_files(self):
        """No engine builds it here: what it copies is there, and it has nothing else."""
        with open(os.path.join(clean.OUT, "Dockerfile")) as f:
            lines = [line.split() for line in f if line.strip() and not line.startswith("#")]
        self.assertEqual(lines[0], ["FROM", "scratch"])
        self.assertEqual([w[0] for w in lines[1:]], ["COPY", "COPY"])
        for _, origin, source, target in lines[1:]:
            self.assertEqual(origin, "--from=walrust")
            self.assertTrue(os.path.exists(os.path.join(meta.host().dir, source)))
            self.assertEqual(target, "/" + source)


if __name__ == "__main__":
    unittest.main()
