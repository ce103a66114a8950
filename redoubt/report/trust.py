"""The parts of the robustness page that say how far its figures can be trusted, and what they do not show: checks,
classes under attack, calibration, corruptions, visibility, cost, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from redoubt.report import plots
from redoubt.report.page import (
    Html,
    badge,
    count,
    facts,
    figure,
    interval,
    number,
    percent,
    seconds,
    section,
    table,
)

TITLES = {"jpeg": "JPEG"}
TONES = {"pass": "good", "fail": "bad"}
NORM_NAMES = {"Linf": "L∞", "L2": "L2"}


def ball(norm: object, epsilon: object) -> str:
    """A threat model as a reader knows it: `L∞ 0.100`."""
    return f"{NORM_NAMES.get(str(norm), norm)} {number(epsilon)}"


def verdict(report: Mapping) -> Html:
    """A badge for the page's head: whether every check that applies was passed."""
    checks = report.get("checks") or ()
    if not checks:
        return Html("")
    failed = sum(check["verdict"] == "fail" for check in checks)
    return badge(f"{failed} {'check' if failed == 1 else 'checks'} failed", "bad") if failed else badge(
        "all checks passed", "good")


def checks(report: Mapping) -> Html:
    """Every sanity check with its verdict and what it found."""
    rows = [(check["title"], badge(check["verdict"], TONES.get(check["verdict"], "")), check["detail"])
            for check in report.get("checks") or ()]
    inside = Html(f'<div class="checks">{table(("Check", "", "Found"), rows, left=3)}</div>')
    return section(
        "Can these figures be trusted?", inside if rows else "",
        note="Robust accuracy is easily overstated: by gradients that mislead the attack, by chance in the model, by "
             "an attack that stops too soon. A check that fails means that the figures are no evidence of robustness.",
    )


def classes_under_attack(report: Mapping) -> Html:
    """For each threat model, each class's accuracy under all attacks together."""
    parts = []
    for one in report.get("worst_case") or ():
        rows = [(row["class"], count(row["n"]), percent(row["accuracy"]), interval(row["low"], row["high"]))
                for row in sorted(one["per_class"], key=lambda row: (row["accuracy"] is None, row["accuracy"] or 0))]
        caption = f"{ball(one['norm'], one['epsilon'])}, {', '.join(one['attacks'])} together, weakest class first"
        parts.append(table(("Class", "Images", "Accuracy", "95 % interval"), rows, caption=caption))
    inside = "".join(f"<div>{part}</div>" for part in parts)
    return section("Classes under attack", Html(f'<div class="columns">{inside}</div>') if inside else "",
                   note="An image counts as right only if it withstood every attack of the suite.")


def calibration(report: Mapping) -> Html:
    """The reliability diagram and the figures beside it."""
    found = report.get("calibration")
    if not found:
        return Html("")
    picture = plots.svg(drawings(report)["reliability"],
                        f"Reliability diagram; the expected calibration error is {percent(found['ece'])}.",
                        name="reliability", wide=(5.0, 4.2), narrow=(3.9, 3.5))
    text = (f"Expected calibration error {percent(found['ece'])} over {len(found['bins'])} bins, "
            f"n = {count(found['n'])}. On average the model is {percent(found['mean_confidence'])} sure and right "
            f"{percent(found['accuracy'])} of the time. Brier score {number(found['brier'])}.")
    return section("Does it know when it is wrong?", figure(picture, text, kind="half"),
                   note="Clean images by how sure the model is. On the diagonal it is right as often as it says, "
                        "below it is too sure. Larger marks stand for more images.")


def drawings(report: Mapping) -> dict[str, plots.Draw]:
    """Those of this file's plots that the report has figures for, by name."""
    found: dict[str, plots.Draw] = {}
    if report.get("calibration"):
        found["reliability"] = lambda fig, narrow: _draw_reliability(fig, report["calibration"]["bins"])
    if report.get("corruptions"):
        rows = report["corruptions"]["rows"]
        kinds = list(dict.fromkeys(row["corruption"] for row in rows))
        found["corruptions"] = lambda fig, narrow: _draw_corruptions(fig, rows, kinds, report.get("clean_accuracy"))
    return found


def _draw_reliability(fig, bins: Sequence[Mapping]) -> None:
    axes = fig.add_subplot()
    filled = [row for row in bins if row["n"]]
    total = max(sum(row["n"] for row in filled), 1)
    axes.plot([0, 1], [0, 1], color=plots.MUTED, linewidth=1, linestyle="--")
    for row in filled:
        axes.plot([row["confidence"]] * 2, [row["confidence"], row["accuracy"]], color=plots.ORANGE, linewidth=1.4)
    axes.scatter([row["confidence"] for row in filled], [row["accuracy"] for row in filled], color=plots.BLUE,
                 s=[14 + 170 * row["n"] / total for row in filled], zorder=3, linewidths=0)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", title="Accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        plots.percent_axis(axis)


def corruptions(report: Mapping) -> Html:
    """Accuracy under harmless damage, by severity."""
    found = report.get("corruptions")
    if not found:
        return Html("")
    kinds = list(dict.fromkeys(row["corruption"] for row in found["rows"]))
    picture = plots.svg(drawings(report)["corruptions"],
                        "Accuracy under common corruptions by severity; the figures stand in the table.",
                        name="corruptions", wide=(6.2, 3.6), narrow=(3.9, 3.5))
    rows = [(TITLES.get(kind, kind.capitalize()),
             *(percent(row["accuracy"], 0) for row in found["rows"] if row["corruption"] == kind)) for kind in kinds]
    return section(
        "Harmless damage", figure(picture, kind="mid"), table(("Severity", "1", "2", "3", "4", "5"), rows),
        note=f"Noise, blur, JPEG, brightness and contrast in five severities, {count(found['n'])} images each. "
             f"Mean over all: {percent(found['mean'])}. Withstanding an attacker does not mean withstanding these.",
    )


def _draw_corruptions(fig, rows: Sequence[Mapping], kinds: Sequence[str], clean: object) -> None:
    axes = fig.add_subplot()
    if clean is not None:
        axes.axhline(clean, color=plots.MUTED, linewidth=1, linestyle="--")
        axes.annotate("clean", (5.0, clean), xytext=(0, 3), textcoords="offset points", ha="right", color=plots.MUTED)
    for kind, (colour, marker, dash) in zip(kinds, (*plots.SERIES, (plots.INK, "x", "-")) * 2, strict=False):
        own = [row for row in rows if row["corruption"] == kind]
        axes.plot([row["severity"] for row in own], [row["accuracy"] for row in own], color=colour, marker=marker,
                  linestyle=dash, label=TITLES.get(kind, kind))
    axes.set(ylim=(0, 1.02), xticks=(1, 2, 3, 4, 5), xlabel="severity", title="Accuracy")
    plots.percent_axis(axes.yaxis)
    axes.legend(loc="lower left", ncols=2)


def visibility(report: Mapping) -> Html:
    """How much an attack changes what a person sees."""
    found = report.get("imperceptibility")
    if not found:
        return Html("")
    rows = [(name, *(number(found[key][part], digits) for part in ("mean", "low", "high")))
            for name, key, digits in (("Structural similarity (1: the same)", "ssim", 3), ("L2 of the change", "l2", 3),
                                      ("Largest change of a pixel", "linf", 4))]
    return section("How visible the attack is", table(("", "Mean", "5 %", "95 %"), rows),
                   note=f"{found['label']} at {ball(found['norm'], found['epsilon'])}, {count(found['n'])} images.")


def cost(report: Mapping) -> Html:
    """What attacking and training took."""
    rows = [(row["label"], ball(row["norm"], row["epsilon"]) if row["norm"] else "", count(row["n"]),
             seconds(row["seconds"]), count(row["images_per_second"])) for row in report.get("cost") or ()]
    training, text = report.get("training") or {}, ""
    if training.get("times_standard"):
        text = (f"Training took {seconds(training['seconds'])}: {training['epochs']} epochs of "
                f"{count(training['pictures'])} images. A standard epoch of this network takes "
                f"{seconds(training['standard_epoch_seconds'])} here, so the training cost "
                f"{number(training['times_standard'], 1)} times as much as that many standard epochs (if it ran on a "
                "machine like this one).")
    hardware = report.get("hardware")
    return section("What it took", table(("Attack", "Within", "Images", "Time", "Images/s"), rows, left=2),
                   note=" ".join(filter(None, (f"On {hardware}." if hardware else "", text))))


def card(report: Mapping, given: Mapping) -> Html:
    """The model card: data, threat model, objective, intended use, limits, how it was evaluated."""
    threats = ", ".join(ball(*threat) for threat in report.get("threats") or ())
    suite = ", ".join(dict.fromkeys(row["label"] for row in report.get("attacks") or ()))
    defended = report.get("defended", bool(report.get("threats")))
    limits = [
        "Attackers outside the threat model (other norms, larger epsilons, rotations, patches, new classes) are not "
        "covered.",
        "Accuracy under an attack is an upper bound: a stronger attack may leave less.",
        "Images unlike those of the test split were not measured.",
    ]
    if report.get("suite") == "quick":
        limits.insert(0, "The suite quick is for comparing versions; a figure to publish needs AutoAttack (standard).")
    if not defended:
        limits.insert(0, "The model was trained without a defence: it must not be relied on under attack.")
    intended = (f"classifying {'×'.join(map(str, report.get('shape') or ()))} pictures like those of "
                f"{report.get('dataset')}, " + ("where someone may have tampered with them" if defended else
                                                "where nobody tampers with them"))
    facts_ = {
        **given,
        "Threat model": (threats or "none") + ("" if defended else " (measured; not trained for)"),
        "Intended use": intended if report.get("shape") else None,
        "Evaluated with": f"suite {report.get('suite', 'quick')}: {suite}; white-box, untargeted, on the test split",
        "Evaluated on": f"{count(report.get('n'))} images, seed {report.get('seed', '–')}"
                        + (f", {report['twins_left_out']} twins of training images left out"
                           if report.get("twins_left_out") else ""),
        "Images shared with training": "none (by hash)" if report.get("split") else None,
        "Parameters": count((report.get("model") or {}).get("parameters")) if report.get("model") else None,
        "Weights": (report.get("model") or {}).get("weights_sha256", "")[:16] or None,
    }
    listed = "".join(f"<li>{limit}</li>" for limit in limits)
    return section("Model card", facts({k: v for k, v in facts_.items() if v}), Html("<h3>Limits</h3>"),
                   Html(f'<ul class="limits">{listed}</ul>'))
