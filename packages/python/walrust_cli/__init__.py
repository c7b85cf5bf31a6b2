"""The program `walrust`, which stands beside this file."""

import os


def program() -> str:
    """Its path."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "walrust")
