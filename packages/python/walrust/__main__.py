"""`python -m walrust`: the command line, which the package walrust-cli brings as a program."""

import os
import sys


def main() -> None:
    """Become the command line: its exit status, signals and terminal are this process's."""
    from walrust_cli import program

    os.execv(program(), [program(), *sys.argv[1:]])


if __name__ == "__main__":
    main()
