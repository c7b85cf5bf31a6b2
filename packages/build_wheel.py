"""Two wheels a target: `walrust`, the extension with its Python functions, and `walrust-cli`, the program, on which it depends.

They are two so that neither grows past what an index gladly keeps. A wheel is a zip with a list of its files; there is nothing to
compile, and no ABI tag: the extension meets SQLite, not Python.
"""

import base64
import hashlib
import os
import sys
import time
import zipfile

import meta

PYTHON = os.path.join(meta.HERE, "python")
# What the Python code is written for.
REQUIRES_PYTHON = ">=3.7"
ENTRY_POINTS = """[console_scripts]
walrust = walrust.__main__:main

[datasette]
walrust = walrust.datasette
"""


def tag(target):
    if target.libc == "musl":
        return f"py3-none-musllinux_1_2_{target.cpu}"
    minor = target.glibc[1]
    if minor <= 17:
        return f"py3-none-manylinux_2_17_{target.cpu}.manylinux2014_{target.cpu}"
    return f"py3-none-manylinux_2_{minor}_{target.cpu}"


def metadata(name, extra=()):
    with open(os.path.join(PYTHON, "README.md")) as f:
        text = f.read()
    lines = [
        "Metadata-Version: 2.1", f"Name: {name}", f"Version: {meta.VERSION}", f"Summary: {meta.SUMMARY}", f"License: {meta.LICENSE}",
        f"Requires-Python: {REQUIRES_PYTHON}", "Keywords: sqlite,replication,backup,litestream,s3", *extra,
        "Classifier: Operating System :: POSIX :: Linux", "Classifier: Topic :: Database", "Classifier: Typing :: Typed",
        "Description-Content-Type: text/markdown", "", text,
    ]
    return "\n".join(lines)


class Wheel:
    def __init__(self, name, target, requires=(), entry_points=None):
        base = f"{name}-{meta.VERSION}"
        self.path = os.path.join(meta.OUT, f"{base}-{tag(target)}.whl")
        self.info, self.records = f"{base}.dist-info", []
        self.time = time.gmtime(max(meta.epoch(), 315532800))[:6]
        self.zip = zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED, compresslevel=9)
        tags = [f"Tag: py3-none-{t}" for t in tag(target).removeprefix("py3-none-").split(".")]
        self.add(f"{self.info}/METADATA", metadata(name.replace("_", "-"), [f"Requires-Dist: {r}" for r in requires]))
        self.add(f"{self.info}/WHEEL", "\n".join(["Wheel-Version: 1.0", "Generator: walrust", "Root-Is-Purelib: false", *tags, ""]))
        with open(os.path.join(meta.ROOT, "LICENSE")) as f:
            self.add(f"{self.info}/LICENSE", f.read())
        if entry_points:
            self.add(f"{self.info}/entry_points.txt", entry_points)

    def add(self, name, data, mode=0o644):
        data = data.encode() if isinstance(data, str) else data
        item = zipfile.ZipInfo(name, self.time)
        item.external_attr, item.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
        self.zip.writestr(item, data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        self.records.append(f"{name},sha256={digest},{len(data)}")

    def add_file(self, name, path, mode=0o644):
        with open(path, "rb") as f:
            self.add(name, f.read(), mode)

    def add_package(self, name):
        for base, dirs, files in sorted(os.walk(os.path.join(PYTHON, name))):
            dirs[:] = [d for d in dirs if d != "__pycache__"]
            for file in sorted(files):
                path = os.path.join(base, file)
                self.add_file(os.path.relpath(path, PYTHON), path)

    def close(self):
        record = f"{self.info}/RECORD"
        self.zip.writestr(zipfile.ZipInfo(record, self.time), "\n".join([*self.records, f"{record},,", ""]))
        self.zip.close()
        return self.path


def build(target):
    library = Wheel("walrust", target, [f"walrust-cli=={meta.VERSION}"], ENTRY_POINTS)
    library.add_package("walrust")
    library.add("walrust/VERSION", meta.VERSION + "\n")
    library.add_file("walrust/walrust.so", target.so, 0o755)
    program = Wheel("walrust_cli", target)
    program.add_package("walrust_cli")
    program.add_file("walrust_cli/walrust", target.cli, 0o755)
    return [library.close(), program.close()]


if __name__ == "__main__":
    sys.exit("run packages/build.py wheel")
