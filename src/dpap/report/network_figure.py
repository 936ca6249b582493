"""The network of a run before and after, to scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dpap.report.figures import FULL, NARROW, shortened
from dpap.report.history import LayerResult
from dpap.report.svg import share_of, svg, tag, text


def network(layers: Sequence[LayerResult]) -> str:
    """Every layer before and after, to scale: the width of a bar is its units, the area of a square its synapses."""
    return tag(
        "figure",
        tag(
            "ul",
            tag("li", tag("span", class_="key block alive"), tag("span", "alive")),
            tag("li", tag("span", class_="key block gone"), tag("span", "pruned")),
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
    name = text(0, y, shortened(label, 14 if plan.narrow else 24), "start", "name")
    return Markup("").join((*parts, name, text(0, y + 14, counted, "start", "tick")))


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
    return Markup("").join((*parts, *words))
