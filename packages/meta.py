"""What every package says of itself: read from Cargo.toml, the one place where it is written."""

import os
import subprocess
import sys
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
OUT = os.path.join(ROOT, "dist", "packages")
TARGETS = os.path.join(ROOT, "dist", "targets")

with open(os.path.join(ROOT, "Cargo.toml"), "rb") as _file:
    _crate = tomllib.load(_file)["package"]

NAME = _crate["name"]
VERSION = _crate["version"]
LICENSE = _crate["license"]
SUMMARY = "SQLite extension that streams every commit to S3, GCS, Azure or a directory, and restores it"
assert len(SUMMARY) < 120


class Target:
    """A platform that packages are built for; its binaries lie in dist/targets/<name>."""

    def __init__(self, name, triple, cpu, libc, debian, ruby):
        self.name, self.triple, self.cpu, self.libc, self.debian, self.ruby = name, triple, cpu, libc, debian, ruby
        self.dir = os.path.join(TARGETS, name)
        self.so, self.cli = os.path.join(self.dir, "walrust.so"), os.path.join(self.dir, "walrust")

    @property
    def built(self):
        return os.path.exists(self.so) and os.path.exists(self.cli)

    @property
    def glibc(self):
        """The oldest glibc that both binaries run with, as (major, minor): measured, so that a tag cannot promise more. None: musl."""
        return None if self.libc == "musl" else max(newest_glibc(self.so), newest_glibc(self.cli))


#: The node names: npm's platform, cpu and libc make the first column.
ALL = [
    Target("linux-x64", "x86_64-unknown-linux-gnu", "x86_64", "glibc", "amd64", "x86_64-linux"),
    Target("linux-x64-musl", "x86_64-unknown-linux-musl", "x86_64", "musl", None, "x86_64-linux-musl"),
    Target("linux-arm64", "aarch64-unknown-linux-gnu", "aarch64", "glibc", "arm64", "aarch64-linux"),
    Target("linux-arm64-musl", "aarch64-unknown-linux-musl", "aarch64", "musl", None, "aarch64-linux-musl"),
]


def built():
    """The targets whose binaries are there."""
    return [t for t in ALL if t.built]


def host():
    """The target of this machine."""
    machine = os.uname().machine
    return next(t for t in ALL if t.cpu == machine and t.libc == "glibc")


def newest_glibc(path):
    """The newest version of glibc that an ELF file names among what it needs."""
    text = subprocess.run(["readelf", "-V", "-W", path], text=True, capture_output=True, check=True).stdout
    versions = [w.removeprefix("GLIBC_") for w in text.split() if w.startswith("GLIBC_")]
    numbers = [tuple(int(n) for n in v.split(".")[:2]) for v in versions if v[0].isdigit()]
    return max(numbers, default=(2, 17))


def epoch():
    """The time stamped on what is packed: the commit's, so that the same commit gives the same bytes."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True, capture_output=True)
    return int(done.stdout.strip() or 1700000000)


if __name__ == "__main__":
    print({"version": VERSION, "name": NAME}[sys.argv[1]])
