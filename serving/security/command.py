"""`python -m serving keys`: make, list and revoke API keys."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from redoubt.errors import InvalidInput
from serving.security.keys import ROLES, KeyStore, new_key
from serving.settings import load_settings

_UNITS = {"m": 60, "h": 3600, "d": 86400}


def keys(arguments: list[str]) -> int:
    """Carry out one subcommand; returns the exit code.

    Raises:
        InvalidInput: for a wrong role, id or time, or a file that cannot be used.
        SystemExit: after --help, or with 2 for an unknown option.
    """
    given = _parser().parse_args(arguments)
    settings = load_settings(**({"home": given.home} if given.home else {}))
    store = KeyStore(given.file or settings.keys_file or settings.home / "keys.json")
    if given.action == "add":
        expires = time.time() + _seconds(given.expires) if given.expires else None
        token, entry = new_key(given.name, tuple(given.role), expires_at=expires, rate=given.rate)
        store.add(entry)
        print(f"{entry.name}: {', '.join(entry.roles)}. Keep this key, it is shown only now:\n{token}")
    elif given.action == "revoke":
        entry = store.revoke(given.id)
        print(f"revoked {entry.id} ({entry.name}); running servers follow within a second")
    else:
        for entry in store.entries():
            until = "never expires" if entry.expires_at is None else f"until {time.ctime(entry.expires_at)}"
            print(f"{entry.id}  {entry.name}  {','.join(entry.roles)}  {until}")
        if not len(store):
            print(f"no keys in {store.file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving keys", description="Make, list and revoke API keys.")
    parser.add_argument("--home", type=Path, help="the server's home folder (default: REDOUBT_HOME, or .redoubt)")
    parser.add_argument("--file", type=Path, help="the file of keys (default: REDOUBT_KEYS_FILE, or HOME/keys.json)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", help="whose key it is, as the audit log shows it")
    add.add_argument(
        "--role", action="append", required=True, metavar="ROLE",
        help="may be given again; " + "; ".join(f"{role}: {meaning}" for role, meaning in ROLES.items()),
    )
    add.add_argument("--expires", metavar="TIME", help="from now: a number with m, h or d, such as 30d")
    add.add_argument("--rate", type=float, help="requests a second (default: the server's REDOUBT_RATE_LIMIT)")
    actions.add_parser("list", help="show every key, without its secret")
    actions.add_parser("revoke", help="take a key away").add_argument("id", help="as `list` shows it")
    return parser


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text)
    if not found:
        raise InvalidInput(f"--expires {text!r}: write a number with m, h or d, such as 30d")
    return float(found[1]) * _UNITS[found[2]]
