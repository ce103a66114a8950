"""The skeleton that every report shares: page, section, tiles, table, figure, pictures, and how numbers are written.

Whatever comes in is escaped, unless it is `Html`, which only the functions here and in `plots` make.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

NONE = "–"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def esc(value: object) -> Html:
    """`value` as markup: escaped, `Html` as it is, None as a dash."""
    if isinstance(value, Html):
        return value
    return Html(NONE if value is None else html.escape(str(value)))


def finite(value: object) -> float | None:
    """`value` as a float; None when it is missing, not a number or not finite."""
    try:
        number = float(value)   # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def number(value: object, digits: int = 3) -> str:
    """`value` with that many decimals, a dash when there is none."""
    real = finite(value)
    return NONE if real is None else f"{real:,.{digits}f}"


def count(value: object) -> str:
    """A whole number with thousands separated."""
    return number(value, 0)


def percent(value: object, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    real = finite(value)
    return NONE if real is None else f"{100 * real:.{digits}f} %"


def seconds(value: object) -> str:
    """A duration in the unit that suits it."""
    real = finite(value)
    if real is None:
        return NONE
    return f"{real:.1f} s" if real < 120 else f"{int(real // 60)} min {int(real % 60)} s"


def interval(low: object, high: object, write=percent) -> str:
    """`low to high`, written by `write`."""
    if finite(low) is None or finite(high) is None:
        return NONE
    first, last = write(low), write(high)
    return f"{first.removesuffix(' %')}–{last}" if last.endswith(" %") else f"{first}–{last}"


def page(*, title: str, kicker: str, lead: object, body: Iterable[str], badge: str = "", foot: str = "") -> str:
    """A whole document with its style inside."""
    css = resources.files("redoubt.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>\n{css}</style></head><body>\n"
        f'<header><p class="kicker">{esc(kicker)}</p><h1>{esc(title)}{badge}</h1>'
        f'<p class="lead">{esc(lead)}</p></header>\n'
        f"<main>{''.join(part for part in body if part)}</main>\n<footer>{esc(foot)}</footer>\n</body></html>\n"
    )


def write(path: Path | str, document: str) -> Path:
    """Write `document` to `path` in one move, so that a reader never sees half of it; parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(document, encoding="utf-8")
    temporary.replace(path)
    return path


def badge(text: str, tone: str = "") -> Html:
    return Html(f'<span class="badge {esc(tone)}">{esc(text)}</span>')


def section(title: str, *parts: str, note: object = "") -> Html:
    """A titled section; empty when it has no parts."""
    inside = "".join(part for part in parts if part)
    if not inside:
        return Html("")
    note = f'<p class="note">{esc(note)}</p>' if note else ""
    return Html(f"<section><h2>{esc(title)}</h2>{note}{inside}</section>\n")


def tiles(items: Iterable[tuple]) -> Html:
    """Stat tiles of (label, value, small print, tone); tone is `good`, `bad` or nothing. A dash gets no tile."""
    inside = "".join(
        f'<div class="tile"><dt>{esc(label)}</dt><dd><span class="{esc(tone)}">{esc(value)}</span>'
        f'<span class="sub">{esc(small)}</span></dd></div>'
        for label, value, small, tone in items
        if value != NONE
    )
    return Html(f'<dl class="tiles">{inside}</dl>' if inside else "")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], *, left: int = 1, caption: str = "") -> Html:
    """A table whose first `left` columns are text and whose others are figures; empty without rows."""
    rows = list(rows)
    if not rows:
        return Html("")

    def cells(values, tag):
        return "".join(
            f'<{tag}{" class=left" if i < left else ""}>{esc(value)}</{tag}>' for i, value in enumerate(values)
        )

    top = f"<caption>{esc(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return Html(
        f'<div class="scroll"><table>{top}<thead><tr>{cells(header, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(values: Mapping[str, object]) -> Html:
    """Names and values, nested ones flattened by a dot; empty without any."""
    flat = dict(_flatten(values))
    inside = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in flat.items())
    return Html(f'<dl class="facts">{inside}</dl>' if inside else "")


def _flatten(values: Mapping[str, object], prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield prefix + str(name), ", ".join(" ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v)
                                                for v in value)
        else:
            yield prefix + str(name).replace("_", " "), value


def figure(picture: str, caption: object = "", *, kind: str = "") -> Html:
    caption = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    return Html(f'<figure class="{esc(kind)}">{picture}{caption}</figure>')


def image(pixels, alt: str) -> Html:
    """An <img> with the picture inside: pixels [C, H, W] in [0, 1], one or three channels."""
    from PIL import Image

    array = np.asarray(pixels, dtype=np.float64)
    bytes_ = (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(bytes_[0] if len(bytes_) == 1 else np.ascontiguousarray(bytes_.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Html(f'<img alt="{esc(alt)}" src="data:image/png;base64,{data}">')


def pictures(rows: Iterable[tuple[str, Sequence[tuple]]]) -> Html:
    """Rows of pictures: (row title, [(pixels, text below, tone), ...])."""
    inside = ""
    for title, cells in rows:
        inside += f'<tr><th class="left">{esc(title)}</th>'
        for pixels, text, tone in cells:
            below = f'<small class="{esc(tone)}">{esc(text)}</small>' if text else ""
            inside += f"<td>{image(pixels, f'{title}: {text}' if text else title)}{below}</td>"
        inside += "</tr>"
    return Html(f'<div class="scroll"><table class="pictures"><tbody>{inside}</tbody></table></div>' if inside else "")
