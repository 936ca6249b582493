"""Curves and bars of a report. Each function turns data into markup.

A figure is drawn twice, wide and narrow, and the page shows the one that fits: text keeps its size on a small screen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dpap.report.svg import Scale, points, svg, tag, text, thinned

NARROW, HALF, FULL = 344, 536, 1100
"""Widths of drawings: on a small screen, in one of two columns, over both."""

# Widths of a letter in generous fonts: what is drawn beside other words is cut to fit by these.
LETTER, BOLD_LETTER = 7.2, 7.9


# curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve. `style` is a class of the style sheet: run or control, with thin or dashed."""

    label: str
    style: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    is_step: bool = False
    """The value holds until the next point."""

    @property
    def is_point(self) -> bool:
        return len(self.x) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves over the epochs of a run, or over time steps."""

    name: str
    """Id in the page."""
    title: str
    series: tuple[Series, ...]
    scale: Scale
    end: int
    """Where the axis ends that begins at 0."""
    tick: Callable[[float], str]
    value: Callable[[float], str]
    axis: str = "epoch"
    """What its numbers count."""
    window: tuple[float, float] | None = None
    """Epochs between which units are pruned."""
    note: str = ""


def held(label: str, style: str, x: tuple[float, ...], y: tuple[float, ...], end: float) -> Series:
    """A curve of values that hold until the next, and of which the last holds until the end."""
    return Series(label=label, style=style, x=(*x, max(end, x[-1])), y=(*y, y[-1]), is_step=True)


def chart(item: Chart) -> str:
    """Curves with a legend that shows the last value of each, and under the pointer the value there."""
    keys = [
        tag(
            "li",
            tag("span", class_=f"key {'point' if series.is_point else ''} {series.style}"),
            tag("span", series.label),
            tag("b", item.value(series.y[-1]), class_="value"),
        )
        for series in item.series
    ]
    data = [
        {"x": [round(x, 3) for x in s.x], "y": [item.value(y) for y in s.y], "hold": s.is_step} for s in item.series
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h3", item.title), tag("span", class_="at")),
        tag("ul", *keys, class_="legend"),
        _curves(item, HALF, 250, "wide"),
        _curves(item, NARROW, 220, "narrow"),
        tag("p", item.note, class_="note") if item.note else "",
        class_="chart",
        data_axis=item.axis,
        data_series=json.dumps(data, separators=(",", ":")),
    )


def _curves(item: Chart, width: int, height: int, fit: str) -> str:
    left, right, top, bottom = 48.0, width - 16.0, 24.0, height - 38.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * min(x / item.end, 1.0), bottom - (bottom - top) * item.scale(y)

    parts: list[str] = []
    if item.window is not None:
        begin, end = (at(x, item.scale.low)[0] for x in item.window)
        parts.append(tag("rect", x=begin, y=top, width=end - begin, height=bottom - top, class_="window"))
        parts.append(_window_label(begin, end, left, right, top))
    for value in thinned(item.scale.ticks, 7):
        y = at(0, value)[1]
        parts += [tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid")]
        parts += [text(left - 7, y + 4, item.tick(value), "end", "tick")]
    for whole in _whole_ticks(item.end, 4 if fit == "narrow" else 8):
        parts.append(text(at(whole, item.scale.low)[0], bottom + 17, f"{whole}", "middle", "tick"))
    parts.append(text((left + right) / 2, height - 4, item.axis, "middle", "tick"))
    parts += [_curve(series, at) for series in reversed(item.series)]  # the first one lies on top
    parts.append(tag("line", x1=left, x2=left, y1=top, y2=bottom, class_="cross"))
    return svg(
        item.name if fit == "wide" else f"{item.name}-{fit}",
        width,
        height,
        f"{item.title} over {item.end} {item.axis}s",
        *parts,
        class_=fit,
        data_left=left,
        data_right=right,
        data_end=item.end,
    )


def _curve(series: Series, at: Callable[[float, float], tuple[float, float]]) -> str:
    places = [at(x, y) for x, y in zip(series.x, series.y, strict=True)]
    if series.is_point:
        ((x, y),) = places
        return tag("circle", cx=x, cy=y, r=4, class_=f"dot {series.style}")
    if series.is_step:
        places = [q for a, b in pairwise(places) for q in (a, (b[0], a[1]))] + places[-1:]
    return tag("path", d=points(places), class_=f"curve {series.style}")


def _window_label(begin: float, end: float, left: float, right: float, top: float) -> str:
    """Above the window, as near to its middle as the drawing allows."""
    words = "window of development"
    half = 3.3 * len(words)
    middle = min(max((begin + end) / 2, left - 40 + half), right - half)
    return text(middle, top - 7, words, "middle", "hint")


def _whole_ticks(end: int, count: int) -> list[int]:
    """0, round numbers, and not both the last round number and an end too close to it."""
    step = next(s * 10**k for k in range(9) for s in (1, 2, 5) if s * 10**k * count >= end)
    return list(range(0, end + 1, step))


# bars


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar; `parts` are lengths with their styles, one after the other."""

    parts: tuple[tuple[float, str], ...]

    @property
    def length(self) -> float:
        return sum(length for length, _ in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class BarRow:
    """A line of words, the values at its end, and the bars below."""

    label: str
    value: str
    bars: tuple[Bar, ...]


def bars(
    name: str,
    title: str,
    rows: Sequence[BarRow],
    keys: Sequence[tuple[str, str]],
    *,
    note: str = "",
    most: float = 0.0,
) -> str:
    """Horizontal bars from a common zero.

    Args:
        name: Id in the page.
        keys: (style, label) of each colour.
        most: Length that fills the width; the longest bar if that is longer.
    """
    longest = max((bar.length for row in rows for bar in row.bars), default=0.0)
    most = max(most, longest) or 1.0
    legend = [tag("li", tag("span", class_=f"key block {style}"), tag("span", label)) for style, label in keys]
    return tag(
        "figure",
        tag("figcaption", tag("h3", title)),
        tag("ul", *legend, class_="legend") if legend else "",
        _bars(name, title, rows, most, HALF, "wide"),
        _bars(f"{name}-narrow", title, rows, most, NARROW, "narrow"),
        tag("p", note, class_="note") if note else "",
    )


def _bars(name: str, title: str, rows: Sequence[BarRow], most: float, width: int, fit: str) -> str:
    parts, y = [], 4.0
    for row in rows:
        room = int((width - LETTER * len(row.value)) / BOLD_LETTER) - 1
        parts.append(text(0, y + 11, shortened(row.label, max(room, 8)), "start", "name"))
        parts.append(text(width, y + 11, row.value, "end", "figure"))
        y += 17
        for bar in row.bars:
            thick, x = (9.0 if len(row.bars) == 1 else 6.0), 0.0
            parts.append(tag("rect", x=0, y=y, width=width, height=thick, rx=2, class_="track"))
            for length, style in bar.parts:
                drawn = width * length / most
                if length > 0:
                    parts.append(tag("rect", x=x, y=y, width=max(drawn, 1.0), height=thick, class_=f"bar {style}"))
                x += drawn
            y += thick + 2
        y += 11
    return svg(name, width, max(y - 7, 1.0), title, *parts, class_=fit)


def shortened(name: str, length: int) -> str:
    """The end of a long name: the end tells layers apart."""
    return name if len(name) <= length else "…" + name[1 - length :]
