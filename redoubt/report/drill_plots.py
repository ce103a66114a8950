"""The drill's plots: timeline, accuracy bars, the strength's number line, and all three in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from redoubt.report.page import finite, number
from redoubt.report.plots import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, percent_axis

MODELS = (("before", "Before", ORANGE), ("after", "After", BLUE), ("oracle", "Oracle", GREEN))
MEASURES = (("clean", "Clean"), ("replayed", "Old attack replayed"), ("fgsm", "FGSM, fresh"),
            ("pgd20", "PGD-20, fresh"))
_SHORT = {"replayed": "Replayed", "fgsm": "FGSM", "pgd20": "PGD-20"}


def has_timeline(result: Mapping) -> bool:
    return len(_points(result)) > 1


def _points(result: Mapping) -> list[Mapping]:
    points = [point for point in result.get("timeline") or () if finite(point.get("t")) is not None]
    return sorted(points, key=lambda point: point["t"])


def known_events(result: Mapping) -> list[Mapping]:
    """The events that have a time, by time."""
    events = [event for event in result.get("events") or () if finite(event.get("t")) is not None]
    return sorted(events, key=lambda event: event["t"])


def _column(points: Sequence[Mapping], key: str) -> np.ndarray:
    """One column as floats, NaN (a gap in the line) where a value is missing or not finite."""
    return np.array([np.nan if finite(point.get(key)) is None else float(point[key]) for point in points])


def _averaged(t: np.ndarray, values: np.ndarray, cuts: Sequence[float], bins: int = 120):
    """Mean times and values over `bins` equal stretches of time, of those that hold a value; none reaches across a cut.

    One reading covers so few inputs that its share jumps about.
    """
    known = np.isfinite(values)
    t, values = t[known], values[known]
    if len(t) <= bins:
        return t, values
    stretch = np.minimum((t - t[0]) / max(t[-1] - t[0], 1e-9) * bins, bins - 1).astype(int)
    stretch += (bins + 1) * np.searchsorted(np.sort(cuts), t)
    _, place, n = np.unique(stretch, return_inverse=True, return_counts=True)
    return np.bincount(place, weights=t) / n, np.bincount(place, weights=values) / n


def timeline(fig, result: Mapping, *, narrow: bool = False) -> None:
    """Share of flagged inputs above, monitor statistic with its alarm line below, events across both.

    On a narrow figure the events are numbered, as the table beside it numbers them.
    """
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    points = _points(result)
    t = _column(points, "t")
    moments = [*t, *(event["t"] for event in known_events(result))] or [0.0]
    first, last = min(moments), max(max(moments), min(moments) + 1)
    upper.set(ylim=(0, 1.03), xlim=(max(0.0, first - 0.02 * (last - first)), last))
    percent_axis(upper.yaxis)
    times, share = _averaged(t, _column(points, "flagged_share"), [event["t"] for event in known_events(result)])
    upper.plot(times, share, color=BLUE)
    upper.fill_between(times, share, color=BLUE, alpha=0.12, linewidth=0)
    statistic, threshold = _column(points, "statistic"), _column(points, "threshold")
    lower.plot(t, statistic, color=PURPLE)
    lower.plot(t, threshold, color=INK, linewidth=1.1, linestyle="--")
    known = threshold[np.isfinite(threshold)]
    if len(known):
        if np.nanmax(statistic, initial=0) > 4 * known[0] > 0:   # evidence goes on growing: keep the line visible
            lower.set_yscale("symlog", linthresh=float(known[0]))
            lower.set_ylim(bottom=min(0.0, float(np.nanmin(statistic))))
        lower.annotate("alarm line", (0.5, known[0]), xycoords=lower.get_yaxis_transform(), xytext=(0, 2), ha="center",
                       textcoords="offset points", va="bottom", color=INK, fontsize=8)
    lower.set_xlabel("seconds since the start")
    for axes, text in ((upper, "Inputs flagged"), (lower, "Monitor, log")):
        axes.set_ylabel(text, color=INK)
        axes.grid(axis="x", visible=False)
    fig.align_ylabels((upper, lower))
    _events(upper, lower, result, narrow)


def _events(upper, lower, result: Mapping, narrow: bool) -> None:
    """A line for each event, with its label above. Labels are laid from the last to the first, each in the lowest
    row where it ends before the next label and the next line, so that none is crossed."""
    first, last = upper.get_xlim()
    per_character = (last - first) / (40 if narrow else 112)
    free = [np.inf] * 6   # for each row, where its leftmost label or passing line is
    for i, event in reversed(list(enumerate(known_events(result), 1))):
        t, text = float(event["t"]), str(i) if narrow else str(event.get("name"))
        length = (len(text) + 1.5) * per_character
        hangs = t + length > last   # no room to the right of the line: write to its left
        begin, end = (t - length, t) if hangs else (t, t + length)
        row = next((r for r, taken in enumerate(free) if end <= taken), len(free) - 1)
        free[: row + 1] = [min(begin, taken) for taken in free[: row + 1]]
        for axes in (upper, lower):
            axes.axvline(t, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        upper.annotate(
            "", (t, 1), xycoords=upper.get_xaxis_transform(), xytext=(0, 13 + 12 * row), textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )
        upper.annotate(
            text, (t, 1), xycoords=upper.get_xaxis_transform(), xytext=(-3 if hangs else 3, 4 + 12 * row),
            textcoords="offset points", ha="right" if hangs else "left", va="bottom", color=MUTED, fontsize=8,
            annotation_clip=False,
        )


def bars(axes, result: Mapping) -> None:
    """Clean, replayed, FGSM and PGD-20 accuracy: before, after and the oracle side by side."""
    accuracy = result.get("accuracy") or {}
    models = [(label, colour, accuracy[key]) for key, label, colour in MODELS if accuracy.get(key)]
    width = 0.8 / max(len(models), 1)
    for i, (label, colour, row) in enumerate(models):
        drawn = False
        for place, (key, _) in enumerate(MEASURES):
            value = finite(row.get(key))
            if value is None:
                continue
            at = place + (i - (len(models) - 1) / 2) * width
            axes.bar(at, value, width * 0.92, color=colour, label="" if drawn else label)
            axes.annotate(f"{100 * value:.0f}", (at, value), xytext=(0, 2), textcoords="offset points", ha="center",
                          color=MUTED, fontsize=8)
            drawn = True
    axes.set_xticks(range(len(MEASURES)), [_SHORT.get(key, label) for key, label in MEASURES])
    axes.tick_params(axis="x", length=0, labelcolor=INK)
    axes.grid(axis="x", visible=False)
    axes.set(ylim=(0, 1.08), yticks=(0, 0.25, 0.5, 0.75, 1))
    percent_axis(axes.yaxis)
    axes.set_title("Accuracy, %", pad=20)
    if models:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, handlelength=1, columnspacing=1.2,
                    borderpad=0, handletextpad=0.5)


def strength(axes, result: Mapping) -> None:
    """A number line: the true epsilon with the zone up to 25 % above, the estimate with its interval, the match."""
    found = result.get("strength") or {}
    true = finite(result.get("epsilon_true"))
    estimate, matched, low, high = (finite(found.get(key)) for key in ("estimate", "matched", "low", "high"))
    known = [v for v in (true, estimate, matched, low, high, 1.25 * true if true else None) if v is not None]
    span = (max(known) - min(known)) or 0.1 if known else 0.1
    if true is not None:
        axes.axvspan(true, 1.25 * true, color=GREEN, alpha=0.14, linewidth=0)
        axes.axvline(true, color=INK, linewidth=1.4)
    rows = [("true", true, INK, "|"), ("estimated", estimate, PURPLE, "o"), ("matched", matched, BLUE, "D")]
    for y, (_, value, colour, marker) in zip((2, 1, 0), rows, strict=True):
        if value is None:
            continue
        reach = value
        if marker == "o" and low is not None and high is not None:
            axes.plot([low, high], [y, y], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
            reach = max(value, high)
        axes.plot([value], [y], marker, color=colour, markersize=7)
        axes.annotate(number(value), (reach, y), xytext=(8, 0), textcoords="offset points", va="center", color=INK)
    if known:
        axes.set_xlim(min(known) - 0.25 * span, max(known) + 0.25 * span)
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks((2, 1, 0), [row[0] for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set(ylim=(-0.6, 2.6), xlabel="epsilon (shaded: true to 25 % above)")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def story(fig, result: Mapping, title: str, line: str) -> None:
    """All three panels under a title and one line of figures."""
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    top, upper, lower = fig.subfigures(3, 1, height_ratios=(0.5, 3.2, 2.6))
    top.text(0.016, 0.62, title, fontsize=12.5, weight="bold", va="center")
    top.text(0.016, 0.08, line, color=MUTED, va="center")
    timeline(upper, result)
    left, right = lower.subplots(1, 2, width_ratios=(3, 2))
    bars(left, result)
    strength(right, result)
    right.set_title("Strength of the attack", pad=8)
    for part in (top, upper, lower):
        part.patch.set_alpha(0)
