"""Where commands print: on a terminal as wide as it is, into a file or a pipe as wide as the text."""

from __future__ import annotations

import os
import sys

from rich.console import Console

_WIDE = 1000   # characters; tables take no more than they need


def make_console() -> Console:
    """A console whose tables are cut to the window only where there is one, or where COLUMNS asks for it."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE)
