"""The manual page walrust(1), made from what the program says of itself; and its completions."""

import re
import subprocess

import meta

SHELLS = {"bash": "usr/share/bash-completion/completions/walrust", "zsh": "usr/share/zsh/vendor-completions/_walrust",
          "fish": "usr/share/fish/vendor_completions.d/walrust.fish"}


def said(program, *arguments):
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "78", "LC_ALL": "C.UTF-8"}
    return subprocess.run([program, *arguments], text=True, capture_output=True, check=True, env=env).stdout


def roff(text):
    """Text as it stands, in roff."""
    lines = text.rstrip("\n").replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join("\\&" + line if line[:1] in ".'" else line for line in lines)


def commands(program):
    """The commands that `walrust --help` lists, but for `help`."""
    listing = said(program, "--help").split("Commands:\n", 1)[1].split("\n\n", 1)[0]
    return [name for name in re.findall(r"^  (\S+)", listing, re.M) if name != "help"]


def page(program, date):
    top = said(program, "--help")
    parts = [
        f'.TH WALRUST 1 "{date}" "walrust {meta.VERSION}" "User Commands"', ".SH NAME",
        roff("walrust - stream SQLite databases to a replica, check it, restore from it"), ".SH SYNOPSIS", ".B walrust",
        ".I COMMAND", "[\\fIOPTIONS\\fR]", ".SH DESCRIPTION", ".nf", roff(top), ".fi", ".SH COMMANDS",
    ]
    for name in commands(program):
        parts += [f".SS {roff(name)}", ".nf", roff(said(program, name, "--help")), ".fi"]
    parts += [
        ".SH ENVIRONMENT", ".TP", ".B WALRUST_CONFIG",
        roff("The TOML file of settings; otherwise walrust.toml in the working directory."), ".TP",
        ".B WALRUST_REPLICA", roff("Where databases go, e.g. s3://bucket/{name}. Every setting has such a variable: see walrust config."),
        ".SH FILES", ".TP", ".I /etc/walrust/NAME.toml", roff("The databases that the service walrust@NAME streams."), ".TP",
        ".I /etc/walrust/NAME.env", "Its credentials.", ".SH SEE ALSO", ".BR sqlite3 (1)", "",
    ]
    return "\n".join(parts)
