"""The drill's result as a page, and its main picture as a file. Any part of the result may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from redoubt.report import drill_plots, plots
from redoubt.report.page import (
    Html,
    badge,
    count,
    facts,
    figure,
    finite,
    interval,
    number,
    page,
    percent,
    pictures,
    seconds,
    section,
    table,
    tiles,
    write,
)

ATTACK_NAMES = {"fgsm": "FGSM", "pgd": "PGD", "momentum": "momentum PGD"}
SHOWN = 8   # example pictures


def drill_report(path: Path | str, result: Mapping) -> Path:
    """Write the page for a drill's result, recovered or failed at any stage.

    Args:
        path: the HTML file; parent folders are made.
        result: the drill's JSON. Whatever is None or absent leaves out its part of the page.

    Returns:
        The path written.
    """
    recovered = result.get("outcome") == "recovered"
    mark = badge("recovered", "good") if recovered else badge("failed", "bad")
    body = [
        _tiles(result),
        _timeline(result),
        _accuracy(result),
        _strength(result),
        _examples(result),
        _stages(result),
        section("This run", facts(_facts(result))),
    ]
    foot = "The attacker's epsilon was known to the drill alone; the served system saw requests without labels."
    return write(path, page(title=_title(result), kicker="Redoubt drill", lead=headline(result), badge=mark, body=body,
                            foot=foot))


def drill_picture(path: Path | str, result: Mapping) -> Path:
    """Save the drill's story as one picture, 900 CSS pixels wide on white: timeline, accuracy and strength.

    Args:
        path: a .png or .svg file; parent folders are made.
        result: the drill's JSON; a part that is missing leaves its panel empty.
    """
    return plots.save(lambda fig, narrow: drill_plots.story(fig, result, _title(result), _in_figures(result)), path,
                      size=(9, 6.3))


def _attack(result: Mapping) -> str:
    return ATTACK_NAMES.get(str(result.get("attack")), str(result.get("attack") or "attack"))


def _title(result: Mapping) -> str:
    dataset = result.get("dataset") or "unknown data"
    return f"{_attack(result)} at epsilon {number(result.get('epsilon_true'))} on {dataset}"


def headline(result: Mapping) -> str:
    """What happened, in a sentence or two."""
    failure = result.get("failure") or {}
    if result.get("outcome") != "recovered":
        stage, reason = failure.get("stage") or "an unnamed stage", failure.get("reason") or "no reason was recorded"
        return f"The drill failed at {stage}: {str(reason).rstrip('.')}."
    strength = result.get("strength") or {}
    parts = [f"The served model raised the alarm {count(result.get('requests_until_alarm'))} requests into the attack"]
    if finite(strength.get("estimate")) is not None:
        parts.append(f"measured its strength as {number(strength['estimate'])} where "
                     f"{number(result.get('epsilon_true'))} was true")
    matched = finite(strength.get("matched"))
    parts.append("retrained itself" + (f" against {number(matched)}" if matched is not None else ""))
    parts.append(f"had the better model in service {seconds(result.get('seconds_alarm_to_swap'))} after the alarm")
    text = ", ".join(parts[:-1]) + f" and {parts[-1]}."
    total, failed = finite(result.get("total_requests")), finite(result.get("failed_requests"))
    if total is not None and failed is not None:
        lost = "None" if failed == 0 else count(failed)
        text += f" {lost} of {count(total)} requests failed."
    return text


def _in_figures(result: Mapping) -> str:
    if result.get("outcome") != "recovered":
        return headline(result)
    parts = (
        f"alarm after {count(result.get('requests_until_alarm'))} requests",
        f"better model in service {seconds(result.get('seconds_alarm_to_swap'))} later",
        f"{count(result.get('failed_requests'))} of {count(result.get('total_requests'))} requests failed",
    )
    return "   ·   ".join(parts)


def _tone(value: object, good) -> str:
    real = finite(value)
    return "" if real is None else ("good" if good(real) else "bad")


def _tiles(result: Mapping) -> Html:
    strength, accuracy = result.get("strength") or {}, result.get("accuracy") or {}
    before, after, oracle = ((accuracy.get(key) or {}).get("pgd20") for key in ("before", "after", "oracle"))
    matched, true = finite(strength.get("matched")), finite(result.get("epsilon_true"))
    off = matched / true - 1 if matched is not None and true else None
    return tiles([
        ("Accuracy under PGD-20, fresh", percent(after), f"before: {percent(before)}, oracle: {percent(oracle)}", ""),
        ("Requests until the alarm", count(result.get("requests_until_alarm")),
         f"false alarms on clean traffic: {count(result.get('clean_false_alarms'))}", ""),
        ("Alarm to swap", seconds(result.get("seconds_alarm_to_swap")), "new model in service", ""),
        ("Matched epsilon", number(matched), "" if off is None else f"true {number(true)}: {100 * off:+.0f} %",
         _tone(off, lambda v: -1e-9 <= v <= 0.25)),
        ("Failed requests", count(result.get("failed_requests")), f"of {count(result.get('total_requests'))}",
         _tone(result.get("failed_requests"), lambda v: v == 0)),
        ("Retraining runs", count(result.get("retrains")), "one is right",
         _tone(result.get("retrains"), lambda v: v == 1)),
    ])


def _timeline(result: Mapping) -> Html:
    events = drill_plots.known_events(result)
    if not drill_plots.has_timeline(result):
        return section("What happened when", _event_table(events))
    picture = plots.svg(
        lambda fig, narrow: drill_plots.timeline(fig, result, narrow=narrow),
        "Over time: the share of inputs flagged as adversarial, and the monitor's statistic with its alarm line.",
        name="timeline", wide=(9.4, 4.4), narrow=(3.9, 4.2),
    )
    return section(
        "What happened when", figure(picture), _event_table(events),
        note="The detector flags single inputs; the monitor adds up the evidence, and alarms when its statistic "
             "crosses the line. Neither sees a label. Shares are averaged over short stretches of time.",
    )


def _event_table(events) -> Html:
    return table(("", "Event", "Seconds"),
                 [(i, event.get("name"), number(event["t"], 1)) for i, event in enumerate(events, 1)], left=2)


def _accuracy(result: Mapping) -> Html:
    accuracy = result.get("accuracy") or {}
    models = [(name, accuracy.get(key)) for key, name, _ in drill_plots.MODELS if accuracy.get(key)]
    if not models:
        return Html("")
    picture = plots.svg(lambda fig, narrow: drill_plots.bars(fig.add_subplot(), result),
                        "Accuracy before and after, clean and under attack; the figures stand in the table below.",
                        name="bars", wide=(7, 3.3), narrow=(3.9, 3.2))
    rows = [(label, *(percent(row.get(key)) for _, row in models)) for key, label in drill_plots.MEASURES]
    return section(
        "Accuracy before and after", figure(picture, kind="mid"),
        table(("Test images", *(name for name, _ in models)), rows),
        note="Replayed: the images that were sent in the attack, made against the old model. Fresh: made against the "
             "model that is measured, with full knowledge of it. The oracle was trained with the true epsilon.",
    )


def _strength(result: Mapping) -> Html:
    strength = result.get("strength") or {}
    if finite(strength.get("estimate")) is None or finite(result.get("epsilon_true")) is None:
        return Html("")
    picture = plots.svg(lambda fig, narrow: drill_plots.strength(fig.add_subplot(), result),
                        "The attack's true epsilon, the estimate with its interval, and the matched training epsilon.",
                        name="strength", wide=(7, 2.1), narrow=(3.9, 2.1))
    caption = (f"True {number(result['epsilon_true'], 4)}, estimated {number(strength['estimate'], 4)} "
               f"({interval(strength.get('low'), strength.get('high'), lambda v: number(v, 4))}), "
               f"matched {number(strength.get('matched'), 4)}.")
    return section("How strong the attack was", figure(picture, caption, kind="mid"),
                   note="The model retrains at the matched epsilon. It should reach the true one and not exceed it by "
                        "more than 25 %, the shaded zone: too little leaves a hole, too much costs clean accuracy.")


def _examples(result: Mapping) -> Html:
    examples = result.get("examples") or {}
    stacks = {}
    for key in ("clean", "adversarial"):
        stack = np.asarray(examples.get(key) if examples.get(key) is not None else [], dtype=np.float64)
        stacks[key] = stack[:SHOWN] if stack.ndim == 4 else stack[:0]
    clean, adversarial = stacks["clean"], stacks["adversarial"]
    rows = [("Clean", [(picture, "", "") for picture in clean])] if len(clean) else []
    if len(clean) and clean.shape == adversarial.shape:
        delta = adversarial - clean
        change = float(np.nanmax(np.abs(delta)))
        factor = 0.5 / change if change > 0 else 1.0
        rows.append((f"Difference ×{factor:.1f}", [(0.5 + factor * part, "", "") for part in delta]))
    if len(adversarial):
        rows.append(("As sent", [(picture, "", "") for picture in adversarial]))
    return section("What was sent", pictures(rows)) if rows else Html("")


def _stages(result: Mapping) -> Html:
    tones = {"ok": "good", "done": "good", "passed": "good", "failed": "bad"}
    rows = [
        (stage.get("name"), badge(str(stage.get("status") or "–"), tones.get(str(stage.get("status")), "")),
         stage.get("detail") or "", seconds(stage.get("seconds")))
        for stage in result.get("stages") or ()
    ]
    return section("Stages", table(("Stage", "", "", "Time"), rows, left=3))


def _facts(result: Mapping) -> dict:
    names = {"dataset": "Dataset", "attack": "Attack", "norm": "Norm", "epsilon_true": "True epsilon", "seed": "Seed",
             "hardware": "Hardware", "started": "Started"}
    return {name: result[key] for key, name in names.items() if result.get(key) is not None}
