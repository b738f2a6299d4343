"""Translate a file line by line on all processors of a machine or a cluster of Ray; line n stays line n.

    python examples/translate_file.py in.txt out.txt --actors 4

With the bundled German → English pair, or --pair. Needs the extra ``ray``. The file is read and written piece by piece,
so it may have any number of lines; one that cannot be translated becomes an empty line, and the exit code is then 2.
"""

from __future__ import annotations

import argparse
import sys

from bild.serving.ray import translate_file


def main() -> int:
    """Translate; 2 if a line could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="one text a line")
    parser.add_argument("target", help="is written")
    parser.add_argument("--pair", default=None, help="folder; default: the bundled pair")
    parser.add_argument("--actors", type=int, default=2, help="processes, each with a pair of its own")
    parser.add_argument("--batch-size", type=int, default=256, help="lines a process is handed at once")
    args = parser.parse_args()
    options = {"actors": args.actors, "batch_size": args.batch_size}
    lines, failed = translate_file(args.source, args.target, pair=args.pair, **options)
    print(f"{lines} lines, {failed} of them could not be translated", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
