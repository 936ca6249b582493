"""The figures of a report: curves, bars, the network to scale, maps of survival. Each function turns data into markup.

A figure is drawn twice, wide and narrow, and the page shows the one that fits: text keeps its size on a small screen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dpap.report.history import LayerResult
from dpap.report.svg import (
    Scale,
    data_uri,
    percent,
    png,
    points,
    share_of,
    short_percent,
    svg,
    tag,
    text,
    thinned,
)

NARROW, HALF, FULL = 344, 536, 1100
"""Widths of drawings: on a small screen, in one of two columns, over both."""

# Widths of a letter in generous fonts: what is drawn beside other words is cut to fit by these.
LETTER, BOLD_LETTER = 7.2, 7.9

# Colours of a map of survival, at opacity 1: from units about to die to the most used; they hold on light and dark.
LOW, MIDDLE, HIGH = np.array([214, 158, 70]), np.array([118, 160, 140]), np.array([24, 128, 120])
MAP_ROWS = 150
"""Rows of a map: a row is at least one pixel of the page."""


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
    """Epochs between which deaths fall."""
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
            tag("span", escape(series.label)),
            tag("b", escape(item.value(series.y[-1])), class_="value"),
        )
        for series in item.series
    ]
    data = [
        {"x": [round(x, 3) for x in s.x], "y": [item.value(y) for y in s.y], "hold": s.is_step} for s in item.series
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h3", escape(item.title)), tag("span", class_="at")),
        tag("ul", *keys, class_="legend"),
        _curves(item, HALF, 250, "wide"),
        _curves(item, NARROW, 220, "narrow"),
        tag("p", escape(item.note), class_="note") if item.note else "",
        class_="chart",
        data_axis=item.axis,
        data_series=json.dumps(data, separators=(",", ":")),
    )


def _curves(item: Chart, width: int, height: int, fit: str) -> str:
    left, right, top, bottom = 48.0, width - 16.0, 24.0, height - 38.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * min(x / item.end, 1.0), bottom - (bottom - top) * item.scale(y)

    parts = []
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
    legend = [tag("li", tag("span", class_=f"key block {style}"), tag("span", escape(label))) for style, label in keys]
    return tag(
        "figure",
        tag("figcaption", tag("h3", escape(title))),
        tag("ul", *legend, class_="legend") if legend else "",
        _bars(name, title, rows, most, HALF, "wide"),
        _bars(f"{name}-narrow", title, rows, most, NARROW, "narrow"),
        tag("p", escape(note), class_="note") if note else "",
    )


def _bars(name: str, title: str, rows: Sequence[BarRow], most: float, width: int, fit: str) -> str:
    parts, y = [], 4.0
    for row in rows:
        room = int((width - LETTER * len(row.value)) / BOLD_LETTER) - 1
        parts.append(text(0, y + 11, _shortened(row.label, max(room, 8)), "start", "name"))
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


# the network


def network(layers: Sequence[LayerResult]) -> str:
    """Every layer before and after, to scale: the width of a bar is its units, the area of a square its synapses."""
    return tag(
        "figure",
        tag(
            "ul",
            tag("li", tag("span", class_="key block alive"), tag("span", "alive")),
            tag("li", tag("span", class_="key block gone"), tag("span", "died")),
            tag("li", tag("span", class_="key block ribbon-key"), tag("span", "stronger: denser synapses")),
            class_="legend",
        ),
        _network("network", layers, FULL, "wide"),
        _network("network-narrow", layers, NARROW, "narrow"),
        tag(
            "p",
            "Layers in the order in which they are computed, the input on top. The width of a bar is its number of "
            "units (channels of a convolution, neurons of a linear layer), on one scale. The area of a square is the "
            "number of synapses between two bars, filled by those that live, on one scale too. What is very small is "
            "drawn two pixels wide.",
            class_="note",
        ),
        class_="full",
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Places of a drawing of a network."""

    width: float
    middle: float
    """Where the bars are centred."""
    bar: float
    """Width of the widest bar."""
    pitch: float
    square: float
    """Right edge of the squares."""
    side: float
    """Side of the largest square."""
    narrow: bool


def _network(name: str, layers: Sequence[LayerResult], width: int, fit: str) -> str:
    pitch = min(76.0, max(50.0, 900 / len(layers)))
    plan = (
        _Plan(width, 205, 160, pitch, width, min(40.0, pitch - 20), True)
        if fit == "narrow"
        else _Plan(width, 460, 520, pitch, 850, pitch - 12, False)
    )
    widest = max(max(layer.outputs for layer in layers), layers[0].inputs)
    most = max(layer.synapses for layer in layers)
    given = "channels" if layers[0].kind == "conv" else "values"
    bars = [("input", layers[0].inputs, layers[0].alive_inputs, given)]
    bars += [
        (layer.name, layer.outputs, layer.alive_outputs, "channels" if layer.kind == "conv" else "neurons")
        for layer in layers
    ]
    parts = []
    for k, layer in enumerate(layers):
        y = _bar_y(plan, k)
        above, below = bars[k], bars[k + 1]
        parts.append(_ribbon(plan, y, [plan.bar * n / widest for n in (*above[1:3], *below[1:3])], layer))
        parts.append(_synapses(plan, y, layer, most))
    for k, (label, before, after, word) in enumerate(bars):
        parts.append(_units(plan, _bar_y(plan, k), label, before, after, word, plan.bar / widest))
    return svg(
        name, width, _bar_y(plan, len(layers)) + 22, "The network before and after, to scale", *parts, class_=fit
    )


def _bar_y(plan: _Plan, k: int) -> float:
    return 12.0 + k * plan.pitch


def _ribbon(plan: _Plan, y: float, widths: Sequence[float], layer: LayerResult) -> str:
    """The synapses between two bars: pale for all there were, darker where the living are dense."""
    top, bottom = y + 5, y + plan.pitch - 5
    before_above, after_above, before_below, after_below = (max(w, 1.0) / 2 for w in widths)

    def shape(above: float, below: float) -> str:
        x = plan.middle
        return " ".join(
            f"{a:.1f},{b:.1f}"
            for a, b in ((x - above, top), (x + above, top), (x + below, bottom), (x - below, bottom))
        )

    density = layer.living_synapses / layer.synapses if layer.synapses else 0.0
    return tag("polygon", points=shape(before_above, before_below), class_="ribbon gone") + tag(
        "polygon",
        points=shape(after_above, after_below),
        class_="ribbon alive",
        fill_opacity=round(0.08 + 0.62 * density, 3),
    )


def _units(plan: _Plan, y: float, label: str, before: int, after: int, word: str, scale: float) -> str:
    x = plan.middle
    drawn = [max(scale * n, 2.0) if n else 0.0 for n in (before, after)]
    parts = [
        tag("rect", x=x - w / 2, y=y - 5, width=w, height=10, rx=min(2.0, w / 2), class_=f"units {style}")
        for w, style in zip(drawn, ("gone", "alive"), strict=True)
    ]
    counted = f"{after:,} of {before:,}"
    if not plan.narrow or len(counted) + len(word) < 18:
        counted += f" {word}"
    name = text(0, y, _shortened(label, 14 if plan.narrow else 24), "start", "name")
    return "".join((*parts, name, text(0, y + 14, counted, "start", "tick")))


def _synapses(plan: _Plan, y: float, layer: LayerResult, most: int) -> str:
    """A square for all synapses, filled by the living, and what that is in numbers."""
    middle = y + plan.pitch / 2
    outer, inner = (
        max(plan.side * math.sqrt(n / most), 2.0) if n else 0.0 for n in (layer.synapses, layer.living_synapses)
    )
    share = share_of(layer.living_synapses / layer.synapses if layer.synapses else None)
    shift = 8 if plan.narrow else 0  # room for the share below the square
    left, low = plan.square - (plan.side + outer) / 2, middle - shift + outer / 2
    parts = [
        tag("rect", x=left, y=low - outer, width=outer, height=outer, class_="square gone"),
        tag("rect", x=left, y=low - inner, width=inner, height=inner, class_="square alive"),
    ]
    if plan.narrow:
        words = [text(plan.square, middle - shift + plan.side / 2 + 13, share, "end", "tick")]
    else:
        words = [
            text(plan.square + 18, middle - 2, f"{share} of synapses", "start", "name"),
            text(plan.square + 18, middle + 14, f"{layer.living_synapses:,} of {layer.synapses:,}", "start", "tick"),
        ]
    return "".join((*parts, *words))


def _shortened(name: str, length: int) -> str:
    """The end of a long name: the end tells layers apart."""
    return name if len(name) <= length else "…" + name[1 - length :]


# survival


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalMap:
    """Survival of the units of a group: (K, units), with the alive and the share of the run that was over."""

    group: str
    survival: npt.NDArray[np.floating]
    alive: npt.NDArray[np.bool_]


def survival_scale(maps: Sequence[SurvivalMap]) -> tuple[float, float]:
    """F at the ends of the colours: all but the outermost hundredth of what the living had, in all groups."""
    values = np.concatenate([item.survival[item.alive].ravel() for item in maps])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.quantile(values, (0.01, 0.99)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def survival_order(item: SurvivalMap) -> npt.NDArray[np.intp]:
    """Units from the one that lives with the highest survival to the one that died first."""
    lived = item.alive.sum(axis=0)
    last = item.survival[np.maximum(lived - 1, 0), np.arange(len(lived))]
    return np.lexsort((-np.nan_to_num(last), -lived))


def evenly_chosen(order: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """All, or at most so many of them, first and last included."""
    return order if len(order) <= most else order[np.linspace(0, len(order) - 1, most).round().astype(int)]


def survival_pixels(item: SurvivalMap, low: float, high: float) -> npt.NDArray[np.uint8]:
    """(rows, K, 4): a row for a unit, at most `MAP_ROWS` of them, a column for a development step. Dead: clear."""
    order = evenly_chosen(survival_order(item), MAP_ROWS)
    alive, values = item.alive[:, order].T, item.survival[:, order].T
    place = np.clip(np.nan_to_num((values - low) / (high - low)), 0, 1)[..., None]
    colours = np.where(place < 0.5, LOW + (MIDDLE - LOW) * 2 * place, MIDDLE + (HIGH - MIDDLE) * (2 * place - 1))
    opacity = np.where(alive, 255, 0)[..., None]
    return np.concatenate([colours, opacity], axis=-1).round().astype(np.uint8)


def survival_map(
    item: SurvivalMap,
    progress: npt.NDArray[np.floating],
    epochs: int,
    ends: tuple[float, float],
    begin: float | None = None,
) -> str:
    """One map: units below each other, sorted by the time of death, development steps from left to right.

    Args:
        progress: (K,), the share of the run that was over at each development step.
        ends: F at the ends of the colours.
        begin: Progress at which deaths begin, for a line; None for none.
    """
    units, living = item.alive.shape[1], int(item.alive[-1].sum())
    shown = f"{MAP_ROWS} of {units:,} units, evenly chosen" if units > MAP_ROWS else ""
    gone = units - living
    deaths = f"{gone:,} died" if gone else "none died"
    picture = tag(
        "img",
        class_="map",
        src=data_uri(png(survival_pixels(item, *ends))),
        alt=f"Survival of the {units} units of {item.group} over {len(progress)} development steps; {deaths}",
    )
    return tag(
        "figure",
        tag("figcaption", tag("h3", escape(item.group)), tag("span", f"{living:,} of {units:,} alive", class_="at")),
        tag("div", picture, _mark(progress, begin), class_="frame"),
        tag(
            "div",
            tag("span", f"epoch {progress[0] * epochs:.2g}"),
            tag("span", f"{progress[-1] * epochs:.3g}"),
            class_="under",
        ),
        tag("p", escape(shown), class_="note") if shown else "",
        class_="survival",
    )


def _mark(progress: npt.NDArray[np.floating], begin: float | None) -> str:
    """A line between the last column before `begin` and the first after it; none when all are on one side."""
    before = 0 if begin is None else int((progress < begin - 1e-9).sum())
    if not 0 < before < len(progress):
        return ""
    return tag("i", "", class_="mark", style=f"left:{100 * before / len(progress):.2f}%")


def survival_key(low: float, high: float) -> str:
    """What the colours of all maps mean."""
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in (LOW, MIDDLE, HIGH))
    return tag(
        "p",
        tag("span", f"survival F = {low:.3g} or less"),
        tag("span", class_="ramp", style=f"background:linear-gradient(90deg,{stops})"),
        tag("span", f"{high:.3g} or more"),
        tag("span", class_="key block empty"),
        tag("span", "dead"),
        class_="legend",
    )


__all__ = [
    "Bar",
    "BarRow",
    "Chart",
    "Series",
    "SurvivalMap",
    "bars",
    "chart",
    "evenly_chosen",
    "held",
    "network",
    "percent",
    "short_percent",
    "survival_key",
    "survival_map",
    "survival_scale",
]
