"""Rules that need no measuring: sanity checks out of a version's own report."""

from __future__ import annotations

from redoubt.promotion.policy import Policy
from redoubt.promotion.record import FAIL, NOT_APPLICABLE, PASS, Rule, rule


def sanity_rules(report: dict | None, policy: Policy) -> list[Rule]:
    """The evaluation's sanity checks as rules of the gate.

    Args:
        report: a version's report; its `checks` holds rows {title, verdict, detail, ...}, verdicts as in a decision
            record. A check that does not apply to the suite or the model is no fault.
    """
    checks = (report or {}).get("checks")
    if not checks:
        needed = policy.sanity == "required"
        return [rule("sanity checks of the evaluation", "none in its report", "all passed", False if needed else None)]
    failed = [row for row in checks if row.get("verdict") == FAIL]
    passed = sum(row.get("verdict") == PASS for row in checks)
    beside = sum(row.get("verdict") == NOT_APPLICABLE for row in checks)
    unknown = len(checks) - len(failed) - passed - beside
    value = f"{passed} passed" + f", {beside} not applicable" * bool(beside) + f", {unknown} unreadable" * bool(unknown)
    if failed:
        value = "failed: " + "; ".join(_words(row) for row in failed)
    return [rule("sanity checks of the evaluation", value, "all passed", not failed and not unknown and passed > 0)]


def _words(row: dict) -> str:
    return f"{row.get('title') or row.get('check') or 'a check without a name'} ({row.get('detail', 'no detail')})"
