"""One Debian package: the extension, where SQLite finds it by its bare name, the command line, its manual and completions, a service."""

import gzip
import os
import shutil
import subprocess
import tempfile
import time

import manual
import meta

SOURCE = os.path.join(meta.HERE, "deb")
TRIPLET = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
VERSION = meta.VERSION + "-1"
MAINTAINER = "The walrust developers <developers@walrust.invalid>"
DESCRIPTION = """\
 walrust is loaded by SQLite and streams each commit of a database in WAL mode
 to S3, Google Cloud Storage, Azure or a directory, laid out as Litestream lays
 it out. It restores a database as it was at any upload.
 .
 Any program of this machine loads it by its bare name: .load walrust in the
 sqlite3 shell. The command line walrust verifies and restores, and streams for
 programs that cannot load an extension (systemctl start walrust@NAME).
"""


def build(target):
    if target.debian is None:
        return []
    with tempfile.TemporaryDirectory(prefix="walrust-deb-") as root:
        stage(target, root)
        path = os.path.join(meta.OUT, f"walrust_{VERSION}_{target.debian}.deb")
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(meta.epoch())}
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, path], check=True, env=env, stdout=subprocess.DEVNULL)
        return [path]


def stage(target, root):
    def put(name, data=None, source=None, mode=0o644):
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if source:
            shutil.copyfile(source, path)
        else:
            with open(path, "wb") as f:
                f.write(data.encode() if isinstance(data, str) else data)
        os.chmod(path, mode)

    os.chmod(root, 0o755)
    # The program of this machine speaks for those of the others.
    program = meta.host().cli if meta.host().built else target.cli
    date = time.gmtime(meta.epoch())
    put(f"usr/lib/{TRIPLET[target.debian]}/walrust.so", source=target.so)
    put("usr/bin/walrust", source=target.cli, mode=0o755)
    put("usr/share/man/man1/walrust.1.gz", gz(manual.page(program, time.strftime("%Y-%m-%d", date))))
    for shell, name in manual.SHELLS.items():
        put(name, manual.said(program, "completions", shell))
    put("usr/lib/systemd/system/walrust@.service", source=os.path.join(SOURCE, "walrust@.service"))
    doc = "usr/share/doc/walrust"
    put(f"{doc}/examples/walrust.toml", source=os.path.join(meta.ROOT, "walrust.example.toml"))
    put(f"{doc}/copyright", (
        "Copyright: the authors of walrust\n\n"
        f"walrust is licensed under the {meta.LICENSE} licence; on Debian systems its text is in\n/usr/share/common-licenses/Apache-2.0.\n"
    ))
    with open(os.path.join(meta.ROOT, "CHANGELOG.md"), "rb") as f:
        put(f"{doc}/changelog.gz", gz(f.read()))
    put(f"{doc}/changelog.Debian.gz", gz(
        f"walrust ({VERSION}) stable; urgency=medium\n\n  * Version {meta.VERSION}: see changelog.gz.\n\n"
        f" -- {MAINTAINER}  {time.strftime('%a, %d %b %Y %H:%M:%S +0000', date)}\n"
    ))
    # It is a plug-in of SQLite's, and stands among libraries so that its bare name is enough.
    put("usr/share/lintian/overrides/walrust", "walrust: sharedobject-in-library-directory-missing-soname [usr/lib/*/walrust.so]\n")
    os.makedirs(os.path.join(root, "etc/walrust"), mode=0o755)
    installed = sum(os.path.getsize(os.path.join(b, f)) for b, _, fs in os.walk(root) for f in fs) // 1024
    put("DEBIAN/control", "".join([
        "Package: walrust\n", f"Version: {VERSION}\n", f"Architecture: {target.debian}\n", f"Maintainer: {MAINTAINER}\n",
        f"Installed-Size: {installed}\n", f"Depends: libc6 (>= {target.glibc[0]}.{target.glibc[1]})\n", "Recommends: ca-certificates\n",
        "Enhances: sqlite3, libsqlite3-0\n", "Provides: libsqlite3-mod-walrust\n", "Section: database\n", "Priority: optional\n",
        "Description: SQLite extension that streams every commit to a replica\n", DESCRIPTION,
    ]))


def gz(data):
    return gzip.compress(data.encode() if isinstance(data, str) else data, 9, mtime=0)
