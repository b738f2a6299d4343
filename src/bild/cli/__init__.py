"""The command line: results on stdout, everything else on stderr."""

from bild.cli.app import main

__all__ = ["main"]
