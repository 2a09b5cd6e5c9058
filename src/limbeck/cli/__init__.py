"""The command line: parse, call, print. Everything it does can be done from Python."""

from limbeck.cli.entry import main

__all__ = ["main"]
