"""`walrust`, which is the same for all, and one package a platform, of which npm installs the one that fits."""

import json
import os
import shutil
import subprocess
import tempfile

import meta

SOURCE = os.path.join(meta.HERE, "npm")


def pack(manifest, files):
    """`npm pack` of a package.json and some files."""
    with tempfile.TemporaryDirectory(prefix="walrust-npm-") as folder:
        for name, path in files.items():
            shutil.copy(path, os.path.join(folder, name))
        with open(os.path.join(folder, "package.json"), "w") as f:
            json.dump(manifest, f, indent=2)
        done = subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", meta.OUT], cwd=folder, text=True, capture_output=True, check=True
        )
        return os.path.join(meta.OUT, done.stdout.strip().splitlines()[-1])


def common(name):
    return {"name": name, "version": meta.VERSION, "description": meta.SUMMARY, "license": meta.LICENSE}


def package_name(target):
    return f"walrust-{target.name}"


def build(target):
    cpu = {"x86_64": "x64", "aarch64": "arm64"}[target.cpu]
    manifest = {
        **common(package_name(target)), "os": ["linux"], "cpu": [cpu], "libc": [target.libc], "files": ["walrust.so"],
    }
    return [pack(manifest, {"walrust.so": target.so, "LICENSE": os.path.join(meta.ROOT, "LICENSE")})]


def build_common(targets):
    manifest = {
        **common("walrust"), "keywords": ["sqlite", "sqlite-extension", "replication", "backup", "litestream", "s3"],
        "main": "./index.cjs", "module": "./index.mjs", "types": "./index.d.ts",
        "exports": {
            ".": {
                "import": {"types": "./index.d.mts", "default": "./index.mjs"},
                "require": {"types": "./index.d.ts", "default": "./index.cjs"},
            },
            "./package.json": "./package.json",
        },
        "files": ["index.cjs", "index.mjs", "index.d.ts", "index.d.mts"],
        # Each is optional: npm takes those whose os, cpu and libc are the machine's.
        "optionalDependencies": {package_name(t): meta.VERSION for t in targets},
        "engines": {"node": ">=16"},
    }
    names = ["index.cjs", "index.mjs", "index.d.ts", "README.md"]
    files = {n: os.path.join(SOURCE, n) for n in names}
    files["index.d.mts"] = os.path.join(SOURCE, "index.d.ts")
    files["LICENSE"] = os.path.join(meta.ROOT, "LICENSE")
    return [pack(manifest, files)]
