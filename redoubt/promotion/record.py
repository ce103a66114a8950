"""The decision record: every rule that was judged, with what it was held against. Stored with the version."""

from __future__ import annotations

from dataclasses import asdict, dataclass

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
_WAITS = "; the version waits for a person"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of the record: `value` was held against `limit`, and the verdict is PASS, FAIL or NOT_APPLICABLE."""

    rule: str
    value: str
    limit: str
    verdict: str

    @property
    def failed(self) -> bool:
        return self.verdict == FAIL


def rule(name: str, value: str, limit: str, passed: bool | None) -> Rule:
    """A line; `passed` None says that the rule does not apply."""
    return Rule(rule=name, value=value, limit=limit,
                verdict=NOT_APPLICABLE if passed is None else PASS if passed else FAIL)


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """What the gate found.

    Attributes:
        rules: every rule, in the order in which people read them.
        n: pictures that the models were compared on.
        attack: with what, in words.
        promoted: whether the version became champion for it.
        waiting: whether it passed and waits for a person, because the policy says so.
    """

    rules: tuple[Rule, ...]
    n: int
    attack: str
    promoted: bool = False
    waiting: bool = False

    @property
    def passed(self) -> bool:
        """Whether no rule failed."""
        return not any(rule.failed for rule in self.rules)

    @property
    def status(self) -> str:
        """`promoted`, `waiting` or `refused`: how a run ends that asked the gate."""
        return "promoted" if self.promoted else "waiting" if self.waiting else "refused"

    @property
    def reason(self) -> str:
        """One line: the rules that failed, or that all passed."""
        failed = [f"{rule.rule} is {rule.value}, needs {rule.limit}" for rule in self.rules if rule.failed]
        if failed:
            return "; ".join(failed)
        return "every rule passed" + (_WAITS if self.waiting else "")

    def to_json(self) -> dict:
        """The record as it is stored."""
        return {"passed": self.passed, "reason": self.reason, "n": self.n, "attack": self.attack,
                "rules": [asdict(rule) for rule in self.rules]}

    @classmethod
    def from_json(cls, record: dict, *, promoted: bool = False) -> GateDecision:
        """Read what `to_json` wrote."""
        return cls(rules=tuple(Rule(**line) for line in record["rules"]), n=record["n"], attack=record["attack"],
                   promoted=promoted)


def said(record: dict) -> str:
    """A record's reason for a promotion: whoever is promoted waits for nobody any more."""
    return record.get("reason", "").removesuffix(_WAITS)


def table(rules: list[dict]) -> str:
    """A record's rules as a Markdown table."""
    rows = ["| rule | value | limit | verdict |", "|---|---|---|---|"]
    rows += ["| " + " | ".join(plain(line[key]) for key in ("rule", "value", "limit")) +
             f" | {'**FAIL**' if line['verdict'] == FAIL else line['verdict']} |" for line in rules]
    return "\n".join(rows)


def plain(text: str) -> str:
    """Class names may hold what Markdown would take for markup."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
