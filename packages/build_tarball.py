"""A tar ball a platform with the extension and the command line; what sqlpkg and Docker are told; checksums of everything."""

import hashlib
import io
import json
import os
import tarfile

import meta


def name(target):
    return f"walrust-{meta.VERSION}-{target.name}.tar.gz"


def build(target):
    path = os.path.join(meta.OUT, name(target))
    files = {
        "walrust.so": (target.so, 0o755), "walrust": (target.cli, 0o755), "LICENSE": (os.path.join(meta.ROOT, "LICENSE"), 0o644),
        "README.md": (os.path.join(meta.ROOT, "README.md"), 0o644),
        "walrust.example.toml": (os.path.join(meta.ROOT, "walrust.example.toml"), 0o644),
    }
    with tarfile.open(path, "w:gz", compresslevel=9) as tar:
        for inside, (source, mode) in files.items():
            with open(source, "rb") as f:
                data = f.read()
            # (sqlpkg takes a file at the top, so there is no folder around them.)
            item = tarfile.TarInfo(inside)
            item.size, item.mode, item.mtime = len(data), mode, meta.epoch()
            tar.addfile(item, io.BytesIO(data))
    return [path]


def build_common(targets):
    sqlpkg = os.path.join(meta.OUT, "sqlpkg.json")
    with open(sqlpkg, "w") as f:
        json.dump({
            "owner": "walrust", "name": "walrust", "version": meta.VERSION, "description": meta.SUMMARY, "license": meta.LICENSE,
            "keywords": ["replication", "backup", "litestream", "s3"],
            "symbols": ["walrust_watch", "walrust_sync", "walrust_restore", "walrust_verify"],
            "assets": {
                # sqlpkg knows no musl; glibc's are the ones.
                "files": {f"linux-{'amd64' if t.cpu == 'x86_64' else 'arm64'}": name(t) for t in targets if t.libc == "glibc"},
                "checksums": {name(t): "sha256-" + digest(os.path.join(meta.OUT, name(t))) for t in targets if t.libc == "glibc"},
            },
        }, f, indent=2)
    dockerfile = os.path.join(meta.OUT, "Dockerfile")
    with open(os.path.join(meta.HERE, "docker", "Dockerfile")) as source, open(dockerfile, "w") as f:
        f.write(source.read())
    return [sqlpkg, dockerfile]


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sums():
    """SHA256SUMS over every package that is there."""
    path = os.path.join(meta.OUT, "SHA256SUMS")
    lines = [f"{digest(os.path.join(meta.OUT, n))}  {n}\n" for n in sorted(os.listdir(meta.OUT)) if n != "SHA256SUMS"]
    with open(path, "w") as f:
        f.writelines(lines)
    return path
