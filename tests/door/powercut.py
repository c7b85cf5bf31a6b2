"""A power cut without cutting power: what tests/support/powercut.c noted of a process, replayed without what was not synced.

What POSIX and the common file systems leave open is left to chance:

* the bytes written to a file since its last sync: all of them, none, the first few, or any subset of their 512-byte sectors;
* names made, changed and removed: those before the last sync of anything (`ordered`, as a journal keeps them) or of their
  directory or file (`strict`) are kept; of the later ones the first few, or under `strict` any of them.
"""

import os
import struct
import subprocess

import door

SECTOR = 512
HEAD = struct.Struct("<IIIIQQQ")


def build(directory):
    """The shim to preload."""
    out = os.path.join(directory, "powercut.so")
    source = os.path.join(door.ROOT, "tests", "support", "powercut.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", out, source, "-ldl", "-lpthread"], check=True)
    return out


def syncs(log):
    """The threads that synced something, in their order."""
    with open(log, "rb") as f:
        notes = f.read()
    at, threads = 0, []
    while at + HEAD.size <= len(notes):
        op, n1, n2, thread, _, _, length = HEAD.unpack_from(notes, at)
        at += HEAD.size + n1 + n2 + (length if chr(op) == "W" else 0)
        if chr(op) == "S":
            threads.append(thread)
    return threads


def environment(shim, directory, log):
    return {"LD_PRELOAD": shim, "POWERCUT_DIR": directory, "POWERCUT_LOG": log}


class File:
    def __init__(self, data=b""):
        self.durable = data
        self.later = []

    def sync(self):
        self.durable = self.apply(self.later)
        self.later = []

    def apply(self, changes):
        data = bytearray(self.durable)
        for offset, piece in changes:
            if piece is None:
                del data[offset:]
                data.extend(bytes(offset - len(data)))
            else:
                if len(data) < offset:
                    data.extend(bytes(offset - len(data)))
                data[offset:offset + len(piece)] = piece
        return bytes(data)

    def after(self, random):
        """What a cut leaves of it."""
        if not self.later:
            return self.durable
        fate = random.randrange(4)
        if fate == 0:
            return self.durable
        if fate == 1:
            return self.apply(self.later)
        if fate == 2:
            return self.apply(self.later[:random.randrange(len(self.later) + 1)])
        kept = []
        for offset, piece in self.later:
            if piece is None:
                kept.append((offset, None))
                continue
            for at in range(0, len(piece), SECTOR):
                if random.random() < 0.6:
                    kept.append((offset + at, piece[at:at + SECTOR]))
        return self.apply(kept)


class Disk:
    """The files below a directory: as they were, then changed by the notes."""

    def __init__(self, directory):
        self.directory, self.files, self.inodes, self.names, self.folders = directory, [], {}, {}, {directory}
        for base, folders, names in os.walk(directory):
            self.folders.update(os.path.join(base, f) for f in folders)
            self.inodes[os.stat(base).st_ino] = base
            for name in names:
                path = os.path.join(base, name)
                with open(path, "rb") as f:
                    self.names[path] = self.add(os.stat(path).st_ino, f.read())
        self.waiting = []

    def add(self, inode, data=b""):
        self.files.append(File(data))
        self.inodes[inode] = len(self.files) - 1
        return len(self.files) - 1

    def replay(self, log, ordered):
        with open(log, "rb") as f:
            notes = f.read()
        at, now = 0, dict(self.names)
        counts = {}
        while at + HEAD.size <= len(notes):
            op, n1, n2, _, inode, offset, length = HEAD.unpack_from(notes, at)
            at += HEAD.size
            op = chr(op)
            first, second = (notes[a:b].decode().rstrip("/") for a, b in ((at, at + n1), (at + n1, at + n1 + n2)))
            at += n1 + n2
            data = b""
            if op == "W":
                data = notes[at:at + length]
                at += length
                if len(data) < length:
                    break
            counts[op] = counts.get(op, 0) + 1
            which = self.inodes.get(inode)
            if op == "C":
                now[first] = self.add(inode)
                self.waiting.append(("C", first, now[first]))
            elif op == "W" and isinstance(which, int):
                self.files[which].later.append((offset, data))
            elif op == "T" and isinstance(which, int):
                self.files[which].later.append((length if n1 == 0 and length else 0, None))
            elif op == "R":
                now[second] = now.pop(first, None)
                self.waiting.append(("R", first, second))
            elif op == "L":
                now[second] = now.get(first)
                self.waiting.append(("L", first, second))
            elif op == "U":
                now.pop(first, None)
                self.waiting.append(("U", first))
            elif op == "M":
                self.inodes[inode] = first
                self.waiting.append(("M", first))
            elif op == "S":
                if isinstance(which, int):
                    self.files[which].sync()
                if ordered:
                    self.commit(self.waiting)
                    self.waiting = []
                else:
                    folder = which if isinstance(which, str) else None
                    mine = [w for w in self.waiting if w[0] == "M" or folder == os.path.dirname(w[-1] if w[0] in "RL" else w[1])
                            or (w[0] == "C" and w[2] == which)]
                    self.commit(mine)
                    self.waiting = [w for w in self.waiting if w not in mine]
        return counts

    def commit(self, changes):
        for change in changes:
            kind = change[0]
            if kind == "C":
                self.names[change[1]] = change[2]
            elif kind == "R" and change[1] in self.names:
                self.names[change[2]] = self.names.pop(change[1])
            elif kind == "L" and change[1] in self.names:
                self.names[change[2]] = self.names[change[1]]
            elif kind == "U":
                self.names.pop(change[1], None)
                self.folders.discard(change[1])
            elif kind == "M":
                self.folders.add(change[1])

    def cut(self, random, ordered):
        """Leaves in the directory what a cut leaves. A file that is still there stays the same file: an inode has a number."""
        if ordered:
            self.commit(self.waiting[:random.randrange(len(self.waiting) + 1)])
        else:
            self.commit([w for w in self.waiting if w[0] == "M" or random.random() < 0.5])
        left = {path: which for path, which in self.names.items() if which is not None and not path.endswith("-shm")}
        for base, _, names in os.walk(self.directory):
            for path in (os.path.join(base, name) for name in names):
                if path not in left:
                    os.unlink(path)
        for folder in sorted(self.folders):
            os.makedirs(folder, exist_ok=True)
        # One content, however many names it has.
        contents = {which: self.files[which].after(random) for which in sorted(set(left.values()))}
        for path, which in left.items():
            if os.path.isdir(os.path.dirname(path)):
                with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as f:
                    f.write(contents[which])
                    f.truncate()
