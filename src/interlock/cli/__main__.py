"""``python -m interlock.cli`` is ``interlock``."""

from interlock.cli import main

main()
