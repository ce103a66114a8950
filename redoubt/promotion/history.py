"""The line of champions: each change of the alias as one record, and what follows from the records so far.

Where they are kept is the registry's matter.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

GATE, OVERRIDE, ROLLBACK, UNREADABLE = "gate", "override", "rollback", "unreadable"
MOST = 6000   # characters that MLflow keeps of a parameter; it cuts a longer one without a word
_BEGINNING = re.compile(r'\{"version": (\d+), "over": (\d+|null), "how": "(\w+)"')


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One change of champion.

    Attributes:
        version, over: who became champion (0 in an entry that cannot be read), and who was until then; None without.
        how: `gate`, `override` or `rollback`; `unreadable` where that is all that is known.
        by, why: who did it, and the reason in words.
        at: UTC, ISO 8601.
        nonce: tells two records apart that are equal otherwise.
        number: its place in the line, from 1; 0 before it has one.
        done: whether the aliases were set; between the record and that its process may have died.
    """

    version: int
    over: int | None
    how: str
    by: str
    why: str
    at: str
    nonce: str
    number: int = 0
    done: bool = False

    def text(self) -> str:
        """The record as it is kept: at most `MOST` characters, the reason cut where it has to be."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("number", "done")}
        while (beyond := len(found := json.dumps(kept, ensure_ascii=False)) - MOST) > 0 and kept["why"]:
            kept["why"] = kept["why"][: -max(1, beyond // 6)]   # a letter takes up to six when it is escaped
        return found

    def __str__(self) -> str:
        if not self.version:
            return f"entry {self.number} of the history, which cannot be read"
        before = f" over version {self.over}" if self.over else ""
        return f"version {self.version} became champion{before} at {self.at} ({self.how}, {self.by})"


def transition(version: int, over: int | None, how: str, *, why: str = "", by: str = "") -> Transition:
    """A change that is to be made now, by the person or machine that runs this process unless `by` says otherwise."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Transition(version=version, over=over, how=how, by=_storable(by or who())[:200], why=_storable(why)[:2000],
                      at=at, nonce=os.urandom(4).hex())


def entry(text: str, *, number: int, done: bool) -> Transition:
    """The record that `text` keeps.

    One that is no whole record, because it was cut or altered, says so itself in its place. Who became champion, over
    whom and how stands at its beginning, and is taken from there if it can be.
    """
    try:
        kept = json.loads(text)
        record = Transition(**{name: kept[name] for name in ("version", "over", "how", "by", "why", "at", "nonce")},
                            number=number, done=done)
        if isinstance(record.version, int) and isinstance(record.over, int | None):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    found = _BEGINNING.match(text)
    version, over, how = found.groups() if found else ("0", "null", UNREADABLE)
    return Transition(version=int(version), over=None if over == "null" else int(over), how=how, by="", at="", nonce="",
                      why=f"this entry cannot be read: {text[:80]!r}", number=number, done=done)


def _storable(text: str) -> str:
    """`text` without what no database takes: halves of characters, from a terminal with another encoding."""
    return text.encode("utf-8", "replace").decode()


def who() -> str:
    """Who runs this process: user@host. A pod's user need not have a name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def standing(history: Iterable[Transition], champion: int | None) -> tuple[list[int], set[int]]:
    """What a rollback may return to.

    Args:
        champion: whom the alias names now; a person may have set it by hand.

    Returns:
        The champions that stand behind the present one, the nearest last, and the versions that were rolled back from.
    """
    line: list[int] = []
    withdrawn: set[int] = set()

    def enter(version: int) -> None:
        if version in line:
            line.remove(version)
        line.append(version)

    for change in history:
        if not change.version:
            continue
        if change.over is not None and (not line or line[-1] != change.over):
            enter(change.over)
        if change.how == ROLLBACK:
            if change.over is not None:
                withdrawn.add(change.over)
            if change.version in line:
                del line[line.index(change.version) + 1 :]   # what lay between was passed over
        else:
            withdrawn.discard(change.version)
        enter(change.version)
    if champion is not None:
        enter(champion)
    return [version for version in line[:-1] if version not in withdrawn], withdrawn
