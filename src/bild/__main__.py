"""``python -m bild`` is ``bild``."""

from bild.cli import main

main()
