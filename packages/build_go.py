"""The Go module, with the extension of each platform inside, as a tar ball to unpack beside a program (go.mod: replace)."""

import io
import os
import tarfile

import meta

SOURCE = os.path.join(meta.HERE, "go")
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def build(target):
    return []


def build_common(targets):
    # A C driver is linked with glibc as a rule, and Go has no name for the other libc.
    mine = {GOARCH[t.cpu]: t for t in targets if t.libc == "glibc"}
    files = {"go.mod": b"module walrust\n\ngo 1.19\n", "VERSION": meta.VERSION.encode()}
    with open(os.path.join(meta.ROOT, "LICENSE"), "rb") as f:
        files["LICENSE"] = f.read()
    with open(os.path.join(SOURCE, "walrust.go"), "rb") as f:
        files["walrust.go"] = f.read()
    for arch, target in mine.items():
        with open(os.path.join(SOURCE, f"library_linux_{arch}.go"), "rb") as f:
            files[f"library_linux_{arch}.go"] = f.read()
        with open(target.so, "rb") as f:
            files[f"walrust_linux_{arch}.so"] = f.read()
    path = os.path.join(meta.OUT, f"walrust-{meta.VERSION}-go.tar.gz")
    with tarfile.open(path, "w:gz", compresslevel=6) as tar:
        for name, data in files.items():
            item = tarfile.TarInfo(f"walrust/{name}")
            item.size, item.mode, item.mtime = len(data), 0o644, meta.epoch()
            tar.addfile(item, io.BytesIO(data))
    return [path]
