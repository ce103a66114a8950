"""The robustness report of one model version as a page, from what `redoubt.evaluation.robustness` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from redoubt.report import plots, trust
from redoubt.report.page import (
    Html,
    count,
    esc,
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
from redoubt.report.trust import NORM_NAMES, ball

MATRIX_LIMIT = 20   # above this many classes the confusion matrix becomes a list of the commonest confusions


def robustness_report(
    path: Path | str,
    *,
    title: str,
    report: Mapping,
    examples: Sequence[Mapping] | None = None,
    strength: Sequence[tuple[str, float, float]] | None = None,
    card: Mapping | None = None,
) -> Path:
    """Write the page.

    Args:
        path: the HTML file; parent folders are made.
        report: what `evaluate` returned. Missing parts leave out their section.
        examples: what `examples` returned.
        strength: (attack, true epsilon, estimated epsilon) for each input or campaign whose strength was estimated.
        card: facts about the model, such as architecture, data, threat models, objective; nested mappings are fine.

    Returns:
        The path written.
    """
    rows = list(report.get("attacks") or ())
    body = [
        _tiles(report),
        trust.checks(report),
        _curves(rows),
        trust.classes_under_attack(report),
        _examples(examples),
        trust.visibility(report),
        _classes(report),
        trust.calibration(report),
        trust.corruptions(report),
        _estimates(strength),
        section("Every measurement", _attack_table(rows), note="Bounds are 95 % Wilson intervals."),
        trust.cost(report),
        trust.card(report, card or {}),
    ]
    foot = (f"Evaluated on {count(report.get('n'))} images, seed {report.get('seed', '–')}, in "
            f"{seconds(report.get('seconds'))}. Epsilon is in units of the [0, 1] pixel range. Accuracy under an "
            "attack is an upper bound for stronger attackers.")
    return write(path, page(title=title, kicker="Redoubt robustness report", lead=_lead(report),
                            badge=trust.verdict(report), body=body, foot=foot))


def _lead(report: Mapping) -> str:
    text = f"{percent(report.get('clean_accuracy'))} of clean test images are classified correctly."
    for row in report.get("robust") or ():
        text += (f" Under {row['label']} with perturbations up to {ball(row['norm'], row['epsilon'])} it is "
                 f"{percent(row['accuracy'])} ({interval(row['low'], row['high'])}).")
    if not report.get("defended", bool(report.get("robust"))):
        text += " The model was trained against no attack."
    failed = sum(check["verdict"] == "fail" for check in report.get("checks") or ())
    if failed:
        text += f" {failed} of the checks below failed: do not rely on these figures."
    return text


def _tiles(report: Mapping) -> Html:
    items = [("Clean accuracy", percent(report.get("clean_accuracy")),
              interval(report.get("clean_low"), report.get("clean_high")), "")]
    for row in report.get("robust") or ():
        items.append((f"{row['label']}, {ball(row['norm'], row['epsilon'])}", percent(row["accuracy"]),
                      interval(row["low"], row["high"]), ""))
    for row in report.get("worst_case") or ():
        if len(row["attacks"]) > 1:
            items.append((f"All attacks, {ball(row['norm'], row['epsilon'])}", percent(row["accuracy"]),
                          interval(row["low"], row["high"]), ""))
        worst = row["worst_class"]
        items.append((f"Worst class, {ball(row['norm'], row['epsilon'])}", percent(worst["accuracy"]),
                      f"{worst['class']} (n = {worst['n']})", ""))
    worst = report.get("worst_class")
    if worst:
        items.append(("Worst class, clean", percent(worst["accuracy"]), f"{worst['class']} (n = {worst['n']})", ""))
    items.append(("Images", count(report.get("n")), f"seed {report.get('seed', '–')}", ""))
    return tiles(items)


def _curves(rows: Sequence[Mapping]) -> Html:
    norms = sorted({row["norm"] for row in rows}, reverse=True)
    parts = [figure(plots.svg(
        lambda fig, narrow, norm=norm: _draw_curve(fig, [row for row in rows if row["norm"] == norm]),
        f"Accuracy against epsilon in {norm}, one line an attack; the figures stand in the table below.",
        name=f"curve-{norm}", wide=(7, 3.8) if len(norms) == 1 else (4.8, 3.6), narrow=(3.9, 3.3),
    ), kind="mid" if len(norms) == 1 else "half") for norm in norms]
    return section(
        "Accuracy against epsilon", Html(f'<div class="columns">{"".join(parts)}</div>' if parts else ""),
        note="Each line is one attack that knows the model; bands are 95 % intervals. A defended model falls late "
             "and slowly.",
    )


def _draw_curve(fig, rows: Sequence[Mapping]) -> None:
    axes = fig.add_subplot()
    labels = dict.fromkeys(row["label"] for row in rows)
    for label, (colour, marker, dash) in zip(labels, plots.SERIES * 3, strict=False):
        line = sorted((row for row in rows if row["label"] == label), key=lambda row: row["epsilon"])
        epsilon, shares = [row["epsilon"] for row in line], [row["accuracy"] for row in line]
        axes.fill_between(epsilon, [row["low"] for row in line], [row["high"] for row in line], color=colour,
                          alpha=0.14, linewidth=0)
        axes.plot(epsilon, shares, color=colour, marker=marker, linestyle=dash, label=label)
        if len(line) == 2 and epsilon[0] == 0:   # measured at one epsilon only: the line between is a guide for the eye
            axes.lines[-1].set_alpha(0.55)
    axes.set(ylim=(0, 1.02), xlabel=f"epsilon ({NORM_NAMES.get(rows[0]['norm'], rows[0]['norm'])})", title="Accuracy")
    axes.set_xlim(left=0)
    plots.percent_axis(axes.yaxis)
    axes.legend(loc="lower left")


def _estimates(strength) -> Html:
    points = [(str(attack), finite(true), finite(guess)) for attack, true, guess in strength or ()]
    points = [point for point in points if None not in point[1:]]
    if not points:
        return Html("")
    picture = plots.svg(lambda fig, narrow: _draw_estimates(fig, points),
                        f"Estimated against true epsilon of {len(points)} attacks.",
                        name="strength", wide=(5.4, 4.6), narrow=(3.9, 3.8))
    return section(
        "Strength, estimated and true", figure(picture, kind="half"),
        note="Estimates scatter round the line. What is trained for is their upper bound, which is meant to lie in the "
             "shaded zone, up to 25 % above the true epsilon.",
    )


def _draw_estimates(fig, points) -> None:
    axes = fig.add_subplot()
    top = 1.12 * max(max(true, guess) for _, true, guess in points)
    axes.fill_between([0, top], [0, top], [0, 1.25 * top], color=plots.GREEN, alpha=0.13, linewidth=0)
    axes.plot([0, top], [0, top], color=plots.INK, linewidth=1, label="estimated = true")
    axes.plot([0, top], [0, 1.25 * top], color=plots.MUTED, linewidth=1, linestyle="--", label="25 % above")
    for name, (colour, marker, _) in zip(dict.fromkeys(name for name, *_ in points), plots.SERIES * 3, strict=False):
        own = [(true, guess) for attack, true, guess in points if attack == name]
        axes.scatter(*zip(*own, strict=True), color=colour, marker=marker, s=26, alpha=0.75, linewidths=0, label=name)
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="true epsilon", title="Estimated epsilon")
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    axes.legend(loc="upper left")


def report_figures(folder: Path | str, report: Mapping) -> Path:
    """Write the page's plots as PNG files to `folder`; a part that the report lacks leaves its file out."""
    folder, rows = Path(folder), list(report.get("attacks") or ())
    for norm in sorted({row["norm"] for row in rows}):
        own = [row for row in rows if row["norm"] == norm]
        plots.save(lambda fig, narrow, own=own: _draw_curve(fig, own), folder / f"accuracy-{norm}.png", size=(7, 3.8))
    for name, draw in trust.drawings(report).items():
        plots.save(draw, folder / f"{name}.png", size=(6, 4))
    return folder


def _examples(examples: Sequence[Mapping] | None) -> Html:
    if not examples:
        return Html("")
    first = examples[0]
    rows = [
        ("Clean", [(e["clean"], f"{e['predicted']} ({100 * e['confidence']:.0f} %)",
                    "" if e["predicted"] == e["label"] else "bad") for e in examples]),
        ("Perturbation", [(e["perturbation"], f"×{e['amplified']:.1f}", "") for e in examples]),
        ("Adversarial", [(e["adversarial"], f"{e['predicted_adversarial']} ({100 * e['confidence_adversarial']:.0f} %)",
                          "" if e["predicted_adversarial"] == e["label"] else "bad") for e in examples]),
    ]
    return section(
        "Examples", pictures(rows),
        note=f"Drawn at random, attacked by {first['attack']} at {ball(first['norm'], first['epsilon'])}. Below "
             "each picture stands what the model says and how sure it is, coloured where it is wrong; the perturbation "
             "is amplified as stated, mid-grey being no change.",
    )


def _classes(report: Mapping) -> Html:
    rows = [(row["class"], count(row["n"]), percent(row["accuracy"]), interval(row["low"], row["high"]))
            for row in report.get("per_class") or ()]
    parts = (_confusion(report), table(("Class", "Images", "Accuracy", "95 % interval"), rows, caption="Each class"))
    if not any(parts):
        return Html("")
    inside = "".join(f"<div>{part}</div>" for part in parts)
    return section("Classes, clean", Html(f'<div class="columns">{inside}</div>'))


def _confusion(report: Mapping) -> Html:
    matrix, names = report.get("confusion"), [row["class"] for row in report.get("per_class") or ()]
    if not matrix:
        return Html("")
    names = names or [str(i) for i in range(len(matrix))]
    if len(matrix) > MATRIX_LIMIT:
        pairs = sorted(((n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j),
                       reverse=True)[:MATRIX_LIMIT]
        return table(("True class", "Predicted as", "Images"), [(names[i], names[j], n) for n, i, j in pairs], left=2,
                     caption="The commonest confusions")
    turned = " class=turned" if max(map(len, names)) > 3 else ""
    head = "".join(f"<th{turned}>{esc(name)}</th>" for name in names)
    body = ""
    for name, row in zip(names, matrix, strict=False):
        total = max(sum(row), 1)
        cells = "".join(f'<td{" class=zero" if n == 0 else ""} style="--share:{n / total:.3f}">{n}</td>' for n in row)
        body += f"<tr><th>{esc(name)}</th>{cells}</tr>"
    return Html(
        '<div class="scroll"><table class="confusion"><caption>Confusion matrix: true class by row, predicted class by '
        f"column, a stronger colour is a larger share of the row</caption><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _attack_table(rows: Sequence[Mapping]) -> Html:
    return table(
        ("Attack", "Norm", "Epsilon", "Accuracy", "95 % interval", "Images"),
        [(row["label"], NORM_NAMES.get(row["norm"], row["norm"]), number(row["epsilon"], 4), percent(row["accuracy"]),
          interval(row["low"], row["high"]), count(row["n"])) for row in rows],
        left=2,
    )
