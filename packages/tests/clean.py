"""What the tests of packages stand on: a clean directory and environment, and the files that `make packages` left."""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.dirname(HERE))
import meta  # noqa: E402

OUT = meta.OUT
SCRATCH = os.environ.get("WALRUST_PACKAGES_SCRATCH", os.path.join(ROOT, "target", "packages"))


class CleanTest(unittest.TestCase):
    """A test with a directory of its own, in an environment that has neither settings nor this tree."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="packages-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def file(self, name, text):
        with open(self.path(name), "w") as f:
            f.write(text)
        return self.path(name)

    def env(self, **extra):
        return {**environment(self.dir), **extra}

    def run_ok(self, *argv, env=None, timeout=300, cwd=None, text=None):
        """The standard output of a program that must end well, and say nothing on standard error that is not expected."""
        done = subprocess.run(argv, text=True, capture_output=True, env=env or self.env(), cwd=cwd or self.dir, timeout=timeout, input=text)
        self.assertEqual(done.returncode, 0, f"{' '.join(map(str, argv))[:300]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout


def environment(home):
    """Without what names Python, Node, walrust or a store, but with how this machine reaches its registries."""
    foreign = r"(AWS|WALRUST|LITESTREAM|GOOGLE|AZURE)_|PYTHON|VIRTUAL_ENV|NODE_|GEM_|GO|LD_"
    env = {k: v for k, v in os.environ.items() if not re.match(foreign, k)}
    return {**env, "HOME": home, "TZ": "UTC", "LC_ALL": "C.UTF-8", "AWS_EC2_METADATA_DISABLED": "true"}


def scratch(*names):
    """A directory that is kept between runs: what was fetched and installed for the tests."""
    path = os.path.join(SCRATCH, *names)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def package(pattern):
    """The one file of dist/packages that the pattern names."""
    found = glob.glob(os.path.join(OUT, pattern))
    if len(found) != 1:
        raise AssertionError(f"{len(found)} files {pattern} in {OUT}: run `make packages`")
    return found[0]


def setup(*debian_packages):
    """Debian packages, those that are missing."""
    subprocess.run([os.path.join(ROOT, "tests", "setup"), *debian_packages], check=True)
