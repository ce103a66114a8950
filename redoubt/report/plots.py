"""The look of every plot, and how one becomes inline SVG that follows the page's light or dark colours.

A plot is a function (figure, narrow) that draws on a matplotlib Figure. It uses the colours named here; in the page
they turn into the style sheet's variables. matplotlib is imported when a plot is drawn, pyplot never.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

from redoubt.report.page import Html, esc

PAPER, INK, MUTED, LINE = "#ffffff", "#1b1f24", "#5f6b7a", "#dfe3e8"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a4508b"   # told apart by colour-blind readers
SERIES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (PURPLE, "D", ":"))
_VARIABLES = {PAPER: "paper", INK: "ink", MUTED: "muted", LINE: "line",
              BLUE: "c1", ORANGE: "c2", GREEN: "c3", PURPLE: "c4"}
_STYLE = {
    "font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE,
    "grid.linewidth": 0.7, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED, "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5,
    "svg.hashsalt": "redoubt",
}
Draw = Callable[[object, bool], None]


def svg(draw: Draw, alt: str, *, name: str, wide: tuple[float, float], narrow: tuple[float, float] | None) -> Html:
    """The plot as inline SVG: one for wide screens and paper and, if `narrow` is given, one drawn for a phone.

    Args:
        alt: what a reader who cannot see it should know.
        name: a word that keeps its ids apart from those of the page's other plots.
        wide, narrow: width and height in inches; about a hundredth of the width in pixels that it is shown at gives
            text of the page's own size.
    """
    if narrow is None:
        return Html(_inline(draw, alt, name, wide, False, ""))
    return Html(_inline(draw, alt, name + "-w", wide, False, "wide")
                + _inline(draw, alt, name + "-n", narrow, True, "narrow"))


def _inline(draw: Draw, alt: str, name: str, size: tuple[float, float], narrow: bool, kind: str) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.fonttype": "none"}):
        fig = Figure(figsize=size, layout="constrained", facecolor="none")
        draw(fig, narrow)
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    box = re.search(r'viewBox="([^"]+)"', text)[1]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    opening = f'<svg class="{kind}" role="img" aria-label="{esc(alt)}" viewBox="{box}">'
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def save(draw: Draw, path: Path | str, *, size: tuple[float, float]) -> Path:
    """Save the plot on white as a file; the suffix chooses .png (two pixels a CSS pixel at 100 an inch) or .svg."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=size, layout="constrained", facecolor=PAPER)
        draw(fig, False)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        fig.savefig(path, dpi=200, metadata=metadata)
    return path


def percent_axis(axis, top: float = 1.0) -> None:
    """Label a matplotlib axis that runs over shares as percentages."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0 if top > 0.05 else 1))
