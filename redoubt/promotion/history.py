"""The line of champions: each change of the alias as one record, and what follows from the records so far.

Where they are kept is the registry's matter.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

GATE, OVERRIDE, ROLLBACK = "gate", "override", "rollback"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One change of champion.

    Attributes:
        version, over: who became champion, and who was until then; None without one.
        how: `gate`, `override` or `rollback`.
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
        """The record as it is kept."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("number", "done")}
        return json.dumps(kept)

    def __str__(self) -> str:
        before = f" over version {self.over}" if self.over else ""
        return f"version {self.version} became champion{before} at {self.at} ({self.how}, {self.by})"


def transition(version: int, over: int | None, how: str, *, why: str = "", by: str = "") -> Transition:
    """A change that is to be made now, by the person or machine that runs this process unless `by` says otherwise."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Transition(version=version, over=over, how=how, by=by or who(), why=why[:2000], at=at,
                      nonce=os.urandom(4).hex())


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
