"""A registered version as the rest of the house sees it: number, aliases, facts, and how it stands with the gate."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime

from redoubt.errors import InvalidInput
from redoubt.names import ALIASES, CHALLENGER, CHAMPION, PREVIOUS
from redoubt.threat import ThreatModel, load_threats

__all__ = ["ALIASES", "CHALLENGER", "CHAMPION", "PREFIX", "PREVIOUS", "PROMOTED", "Version", "check_version"]
PREFIX = "redoubt."     # of Redoubt's own tags
PROMOTED = "promoted"   # tag of a version that has been champion: which entry of the history says so


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered version.

    Attributes:
        number: as MLflow counts, from 1.
        aliases: the aliases that point to it now.
        tags: Redoubt's own tags, without their prefix; decision records and figures are among them.
    """

    name: str
    number: int
    run_id: str
    source: str
    created: datetime
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def threats(self) -> tuple[ThreatModel, ...]:
        return load_threats(self.tags.get("threats", "[]"))

    @property
    def decision(self) -> dict | None:
        """The gate's decision record, None before it judged."""
        return json.loads(self.tags["decision"]) if "decision" in self.tags else None

    @property
    def override(self) -> dict | None:
        """{reason, by, at} when a person promoted it against the gate, else None."""
        return json.loads(self.tags["override"]) if "override" in self.tags else None

    @property
    def passed(self) -> bool:
        """Whether the gate passed it."""
        return bool((self.decision or {}).get("passed"))

    @property
    def sanctioned(self) -> bool:
        """Whether it may serve: the gate passed it, a person took the responsibility, or it has been champion by
        either. A gate that measures a former champion against a later one and refuses it does not take that away."""
        return self.passed or self.override is not None or PROMOTED in self.tags

    @property
    def verdict(self) -> str:
        """How the gate left it: `promoted`, `waiting` for a person, or `refused`, as a run's result says it."""
        words = self.tags.get("gate", "")
        return "waiting" if words.startswith("waiting") else "promoted" if self.passed else "refused"

    @property
    def standing(self) -> str:
        """How it stands with the gate, in a few words."""
        if self.decision is None and self.override is None:
            return "not judged"
        return self.tags.get("gate") or ("overridden" if self.override else "passed" if self.passed else "refused")


def check_version(text: str) -> None:
    """Raise InvalidInput for what names no version."""
    if text == "latest" or re.fullmatch(r"[vV][0-9]+", text):
        digits = text[1:] if text != "latest" else "3"
        raise InvalidInput(f"{text!r} is reserved by MLflow and is no alias here: give a number, such as {digits}, or "
                           f"{', '.join(ALIASES)}")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidInput(f"a version is a whole number or one of {', '.join(ALIASES)}, not {text!r}")
