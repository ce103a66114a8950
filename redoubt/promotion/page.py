"""A version's facts and its decision record as Markdown, for MLflow's page and for a run's."""

from __future__ import annotations

import json

from redoubt.promotion.record import plain, table
from redoubt.version import Version

_FACTS = ("epsilon", "norm", "objective", "robust_accuracy", "clean_accuracy", "suite", "dataset", "cause",
          "parent_version")


def describe(version: Version) -> str:
    """What a person wants to see first: how the version stands, its facts, every rule of the gate."""
    lines = [f"**{version.standing}**"]
    if version.override:
        note = version.override
        lines.append(f"Promoted against the gate by {note['by']} at {note.get('at', 'an unknown time')}: "
                     f"{plain(note['reason'])}")
    facts = [(name.replace("_", " "), version.tags[name]) for name in _FACTS if version.tags.get(name)]
    if version.threats:
        facts.insert(0, ("trained for", ", ".join(map(str, version.threats))))
    if facts:
        lines.append("\n".join(f"- {name}: **{plain(value)}**" for name, value in facts))
    record = version.decision
    if record:
        against = f"champion version {record['champion']}" if record.get("champion") else "no champion"
        lines.append(f"Gate, {record['attack']} on {record['n']} pictures, against {against}: "
                     + plain(record["reason"]))
        lines.append(table(record["rules"]))
    return "\n\n".join(lines)


def robust_summary(tags: dict[str, str]) -> dict[str, float]:
    """Accuracy under each attack out of a version's tags; an early release kept it under another name."""
    try:
        found = json.loads(tags.get("robust_accuracies") or tags.get("robust_accuracy") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
