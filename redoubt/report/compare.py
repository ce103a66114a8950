"""Two versions side by side: what both reports measured, as rows for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from redoubt.report import plots, trust
from redoubt.report.page import NONE, Html, badge, esc, facts, figure, number, page, percent, seconds, section, table
from redoubt.report.page import write as write_page
from redoubt.report.trust import NORM_NAMES, ball


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of both versions.

    Attributes:
        first, second, difference: as they are written.
        tone: `good` or `bad` when the second is better or worse by more than both intervals leave room for.
    """

    name: str
    first: str
    second: str
    difference: str = ""
    tone: str = ""


def lines(first: Mapping, second: Mapping) -> list[Line]:
    """Every figure that both reports hold, the second against the first."""
    found = [_share("Clean accuracy", _clean(first), _clean(second))]
    for threat in _common(first, second, "worst_case", ("norm", "epsilon")):
        one, two = (_of(report, "worst_case", threat) for report in (first, second))
        where = ball(*threat)
        if one["attacks"] == two["attacks"]:
            found.append(_share(f"{', '.join(one['attacks'])} together, {where}", one, two))
        found.append(_share(f"Worst class, {where}", one["worst_class"], two["worst_class"]))
    for key in _common(first, second, "attacks", ("label", "norm", "epsilon")):
        if key[2]:
            one, two = (_of(report, "attacks", key, ("label", "norm", "epsilon")) for report in (first, second))
            found.append(_share(f"{key[0]}, {ball(*key[1:])}", one, two))
    found.append(_share("Worst class, clean", first.get("worst_class"), second.get("worst_class")))
    for name, keys, write_ in (
        ("Expected calibration error", ("calibration", "ece"), percent),
        ("Mean accuracy under corruptions", ("corruptions", "mean"), percent),
        ("Structural similarity of the attack", ("imperceptibility", "ssim", "mean"), number),
        ("Training time", ("training", "seconds"), seconds),
        ("Training, times a standard epoch", ("training", "times_standard"), lambda value: number(value, 1)),
    ):
        found.append(_plain(name, _dig(first, keys), _dig(second, keys), write_))
    found.append(_plain("Checks that failed", *(_failed(report) for report in (first, second)), str))
    return [line for line in found if line is not None]


def mismatch(first: Mapping, second: Mapping) -> str:
    """Why the two must not be compared figure by figure; empty when they may."""
    told = [(what, first.get(key), second.get(key)) for what, key in (
        ("data", "data_checksum"), ("images", "n"), ("suite", "suite"), ("seed", "seed"))]
    apart = [f"{what} ({str(one)[:12]} and {str(two)[:12]})" for what, one, two in told if one != two]
    return f"They were not evaluated alike: other {', '.join(apart)}." if apart else ""


def comparison(path: Path | str, names: tuple[str, str], reports: tuple[Mapping, Mapping],
               cards: tuple[Mapping, Mapping]) -> Path:
    """Write the page.

    Args:
        names: what the two versions are called.
        reports: their robustness reports.
        cards: facts about each.

    Returns:
        The path written.
    """
    rows = [(line.name, line.first, line.second, Html(f'<span class="{line.tone}">{line.difference}</span>'))
            for line in lines(*reports)]
    why = mismatch(*reports)
    body = [
        section("Figures", table(("", *names, "Difference"), rows),
                note="Coloured where the two 95 % intervals do not overlap. The gate's paired test on its own images "
                     "sees smaller differences."),
        _curves(names, reports),
        _classes(names, reports),
        _checks(names, reports),
        section("Model cards", Html('<div class="columns">' + "".join(
            f"<div><h3>{esc(name)}</h3>{facts(card)}</div>" for name, card in zip(names, cards, strict=True)
        ) + "</div>")),
    ]
    lead = why or "Both were evaluated on the same images, with the same attacks and seed."
    return write_page(path, page(title=f"{names[0]} and {names[1]}", kicker="Redoubt comparison", lead=lead,
                            badge=badge("not alike", "bad") if why else "", body=body,
                            foot="Epsilon is in units of the [0, 1] pixel range."))


def _clean(report: Mapping) -> dict:
    return {"accuracy": report.get("clean_accuracy"), "low": report.get("clean_low"), "high": report.get("clean_high")}


def _common(first: Mapping, second: Mapping, part: str, keys: Sequence[str]) -> list[tuple]:
    """The keys of rows that both reports have, in the first one's order."""
    theirs = {tuple(row[key] for key in keys) for row in second.get(part) or ()}
    mine = [tuple(row[key] for key in keys) for row in first.get(part) or ()]
    return [key for key in dict.fromkeys(mine) if key in theirs]


def _of(report: Mapping, part: str, key: tuple, keys: Sequence[str] = ("norm", "epsilon")) -> Mapping:
    return next(row for row in report[part] if tuple(row[k] for k in keys) == key)


def _share(name: str, one: Mapping | None, two: Mapping | None) -> Line | None:
    if not one or not two or one.get("accuracy") is None or two.get("accuracy") is None:
        return None
    gain = two["accuracy"] - one["accuracy"]
    apart = one["high"] < two["low"] or two["high"] < one["low"]
    suffix = [f" ({row['class']})" if "class" in row else "" for row in (one, two)]
    return Line(name=name, first=percent(one["accuracy"]) + suffix[0], second=percent(two["accuracy"]) + suffix[1],
                difference=f"{100 * gain:+.1f}", tone=("good" if gain > 0 else "bad") if apart else "")


def _plain(name: str, one: object, two: object, write_: Callable) -> Line | None:
    return None if one is None or two is None else Line(name=name, first=write_(one), second=write_(two))


def _dig(report: Mapping, keys: Iterable[str]) -> object:
    found: object = report
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _failed(report: Mapping) -> str | None:
    checks = report.get("checks")
    if not checks:
        return None
    return ", ".join(check["check"].replace("_", " ") for check in checks if check["verdict"] == "fail") or "none"


def _curves(names: tuple[str, str], reports: tuple[Mapping, Mapping]) -> Html:
    """The strongest curve that both have, one plot for each norm."""
    keys = _common(*reports, "attacks", ("label", "norm"))
    have = [key[0] for key in keys]
    label = "PGD-20" if "PGD-20" in have else next(iter(have), None)
    parts = [figure(plots.svg(lambda fig, narrow, norm=norm: _draw(fig, names, reports, label, norm),
                              f"Accuracy under {label} against epsilon in {norm} for both versions.",
                              name=f"compare-{norm}", wide=(6.4, 3.7), narrow=(3.9, 3.3)), kind="mid")
             for norm in dict.fromkeys(key[1] for key in keys if key[0] == label)]
    return section(f"Accuracy under {label} against epsilon", *parts) if parts else Html("")


def _draw(fig, names, reports, label: str, norm: str) -> None:
    axes = fig.add_subplot()
    for name, report, (colour, marker, dash) in zip(names, reports, plots.SERIES, strict=False):
        rows = sorted((row for row in report["attacks"] if (row["label"], row["norm"]) == (label, norm)),
                      key=lambda row: row["epsilon"])
        epsilon = [row["epsilon"] for row in rows]
        axes.fill_between(epsilon, [row["low"] for row in rows], [row["high"] for row in rows], color=colour,
                          alpha=0.14, linewidth=0)
        axes.plot(epsilon, [row["accuracy"] for row in rows], color=colour, marker=marker, linestyle=dash, label=name)
    axes.set(ylim=(0, 1.02), xlabel=f"epsilon ({NORM_NAMES.get(norm, norm)})", title="Accuracy")
    axes.set_xlim(left=0)
    plots.percent_axis(axes.yaxis)
    axes.legend(loc="lower left")


def _classes(names: tuple[str, str], reports: tuple[Mapping, Mapping]) -> Html:
    own = [{row["class"]: row["accuracy"] for row in report.get("per_class") or ()} for report in reports]
    rows = [(name, percent(own[0][name]), percent(own[1][name])) for name in own[0] if name in own[1]]
    return section("Classes, clean", table(("Class", *names), rows))


def _checks(names: tuple[str, str], reports: tuple[Mapping, Mapping]) -> Html:
    own = [{check["check"]: check for check in report.get("checks") or ()} for report in reports]

    def mark(check: Mapping | None) -> object:
        return NONE if check is None else badge(check["verdict"], trust.TONES.get(check["verdict"], ""))

    rows = [(check["title"], mark(check), mark(own[1].get(name))) for name, check in own[0].items()]
    return section("Checks", table(("Check", *names), rows, left=3))
