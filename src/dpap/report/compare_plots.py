"""The plots of a comparison: accuracy against size, and differences to the control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from dpap.report.compare import ArmResult, Comparison, Difference
from dpap.report.compare_table import said_accuracy, said_difference
from dpap.report.figures import HALF, NARROW
from dpap.report.svg import Scale, linear, logarithmic, points, short_percent, svg, tag, text, thinned

COLOURS = 6
"""Of the style sheet, `.c0` to `.c5`."""
AXES: tuple[tuple[str, str, Callable[[ArmResult], float | None]], ...] = (
    ("connectivity", "connectivity, share of the dense network", lambda arm: arm.connectivity),
    ("macs", "MACs, share of the dense network", lambda arm: arm.macs),
    ("synops", "SOPs, share of the control", lambda arm: arm.synops),
)
SHAPES = (
    "M-4.6 0A4.6 4.6 0 1 0 4.6 0A4.6 4.6 0 1 0 -4.6 0Z",
    "M-4.2 -4.2H4.2V4.2H-4.2Z",
    "M0 -5.8L5.8 0L0 5.8L-5.8 0Z",
    "M0 -5.4L5.4 4.2H-5.4Z",
    "M0 5.4L5.4 -4.2H-5.4Z",
    "M-5.4 -2V2H-2V5.4H2V2H5.4V-2H2V-5.4H-2V-2Z",
)


def plots(found: Comparison) -> str:
    """Accuracy against connectivity, MACs and SOPs, and the differences to the control, with a common key."""
    styles = _styles(found)
    keys = [
        tag("li", tag("svg", _mark(style, 7, 7), viewBox="0 0 14 14", aria_hidden="true"), tag("span", name))
        for name, style in styles.items()
    ]
    panels = [_scatter(found, styles, *axis) for axis in AXES] + [_forest(found, styles)]
    return tag("ul", *keys, class_="legend series-key") + tag("div", *panels, class_="grid")


def _styles(found: Comparison) -> dict[str, tuple[str, str]]:
    """Series -> class of its colour, and shape; both tell it apart. Past the sixth, colours come with other shapes."""
    pruned = list(dict.fromkeys(arm.series for arm in found.arms if not arm.is_control))
    controls = [arm.series for arm in found.arms if arm.is_control]
    styles = {name: ("cc", SHAPES[k % len(SHAPES)]) for k, name in enumerate(controls)}
    return styles | {
        name: (f"c{k % COLOURS}", SHAPES[(k + k // COLOURS) % len(SHAPES)]) for k, name in enumerate(pruned)
    }


def _mark(style: tuple[str, str], x: float, y: float, words: str = "") -> str:
    title = tag("title", words) if words else ""
    return tag("path", title, d=style[1], class_=f"marker {style[0]}", transform=f"translate({x:.1f} {y:.1f})")


def _scatter(
    found: Comparison,
    styles: Mapping[str, tuple[str, str]],
    name: str,
    title: str,
    value: Callable[[ArmResult], float | None],
) -> str:
    controls = [arm for arm in found.arms if arm.is_control]
    band = controls[0] if len(controls) == 1 else None  # several bands would hide each other: points then
    placed = [(arm, x) for arm in found.arms if arm is not band and (x := value(arm)) is not None]
    if not placed:
        return ""
    intervals = any(arm.accuracy.low is not None for arm in found.arms)
    note = (
        f"Bars and band: 95 % t-intervals of the means over {found.over}s, cut where they leave the figure. Points at "
        "one place are drawn beside each other."
        if intervals
        else f"One {found.over} each: no intervals."
    )
    return tag(
        "figure",
        tag("figcaption", tag("h3", f"Accuracy against {title}")),
        *(_scatter_drawing(found, styles, name, placed, band, width, fit) for width, fit in _FITS),
        tag("p", note, class_="note"),
    )


CLOSE = 6.0
"""Pixels between two points of equal place."""
_FITS = ((HALF, "wide"), (NARROW, "narrow"))


def _scatter_drawing(
    found: Comparison,
    styles: Mapping[str, tuple[str, str]],
    name: str,
    placed: Sequence[tuple[ArmResult, float]],
    band: ArmResult | None,
    width: int,
    fit: str,
) -> str:
    left, right, top, bottom, height = 56.0, width - 20.0, 10.0, 252.0, 280
    xs = _x_scale([x for _, x in placed])
    ys = _y_scale([arm for arm, _ in placed] + ([band] if band else []))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * xs(x), bottom - (bottom - top) * ys(y)

    parts: list[str] = []
    for y in thinned(ys.ticks, 7):
        place = at(xs.low, y)[1]
        parts.append(tag("line", x1=left, x2=right, y1=place, y2=place, class_="grid"))
        parts.append(text(left - 7, place + 4, short_percent(y), "end", "tick"))
    for x in thinned(xs.ticks, 6 if fit == "wide" else 4):
        parts.append(text(at(x, ys.low)[0], bottom + 18, short_percent(x), "middle", "tick"))
    if band is not None:
        parts.append(_band(band, left, right, lambda y: at(xs.low, y)[1]))
    places = _beside([at(x, ys.low)[0] for _, x in placed])
    for series in dict.fromkeys(arm.series for arm, _ in placed):
        members = sorted(
            ((arm, place) for (arm, _), place in zip(placed, places, strict=True) if arm.series == series),
            key=lambda pair: pair[1],
        )
        colour = styles[series][0]
        if len(members) > 1:
            line = points((place, at(xs.low, arm.accuracy.mean)[1]) for arm, place in members)
            parts.append(tag("path", d=line, class_=f"link {colour}"))
        for arm, place in members:
            middle = at(xs.low, arm.accuracy.mean)[1]
            ends = [at(xs.low, end)[1] for end in (arm.accuracy.low, arm.accuracy.high) if end is not None]
            if ends:
                parts.append(tag("line", x1=place, x2=place, y1=ends[0], y2=ends[1], class_=f"whisker {colour}"))
            parts.append(_mark(styles[series], place, middle, f"{arm.name}: {said_accuracy(arm.accuracy)}"))
    label = f"{found.split} accuracy against {name}, {len(placed)} arms"
    return svg(f"plot-{name}" + ("" if fit == "wide" else "-narrow"), width, height, label, *parts, class_=fit)


def _beside(places: Sequence[float]) -> list[float]:
    """Places that would hide each other are moved a little apart."""
    moved = list(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    while order:
        close = [k for k in order if places[k] - places[order[0]] < CLOSE]
        for n, k in enumerate(close):
            moved[k] = places[k] + CLOSE * (n - (len(close) - 1) / 2)
        order = order[len(close) :]
    return moved


def _band(control: ArmResult, left: float, right: float, at: Callable[[float], float]) -> str:
    parts: list[str] = []
    values = control.accuracy
    if values.low is not None and values.high is not None:
        high, low = at(values.high), at(values.low)
        parts.append(tag("rect", x=left, y=high, width=right - left, height=low - high, class_="band"))
    y = at(values.mean)
    title = tag("title", f"{control.name}: {said_accuracy(values)}")
    parts.append(tag("line", title, x1=left, x2=right, y1=y, y2=y, class_="level"))
    return Markup("").join(parts)


def _x_scale(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    if 0 < low < 0.2:
        return logarithmic(0.85 * low, max(high, 1.0))
    return linear(0.0, max(high, 1.0))


def _y_scale(arms: Sequence[ArmResult]) -> Scale:
    """From means and intervals. Intervals over two seeds are wide: they may not squeeze the means together."""
    means = [arm.accuracy.mean for arm in arms]
    room = max(max(means) - min(means), 0.004)
    floor, ceiling = min(means) - 0.75 * room, max(means) + 0.75 * room
    ends = [e for arm in arms for e in (arm.accuracy.low, arm.accuracy.high) if e is not None]
    shown = [min(max(value, floor), ceiling) for value in (*means, *ends)]
    pad = 0.06 * room
    return linear(max(0.0, min(shown) - pad), min(1.0, max(shown) + pad))


def _forest(found: Comparison, styles: Mapping[str, tuple[str, str]]) -> str:
    """The differences to the control, a line for each arm."""
    rows = [(arm, arm.control) for arm in found.arms if arm.control is not None]
    if not rows:
        return ""
    one = all(difference.accuracy.low is None for _, difference in rows)
    paired = "Paired by seed" + (" and fold" if found.over == "fold" else "")
    note = f"{paired}; " + (f"one {found.over}, no intervals." if one else "lines are 95 % t-intervals.")
    return tag(
        "figure",
        tag("figcaption", tag("h3", "Difference to the control, points")),
        *(_forest_drawing(rows, styles, width, fit) for width, fit in _FITS),
        tag("p", note, class_="note"),
    )


def _forest_drawing(
    rows: Sequence[tuple[ArmResult, Difference]], styles: Mapping[str, tuple[str, str]], width: int, fit: str
) -> str:
    ends = [
        100 * end
        for _, found in rows
        for end in (found.accuracy.mean, found.accuracy.low, found.accuracy.high)
        if end is not None
    ]
    scale = linear(min(0.0, *ends), max(0.0, *ends))
    left, right, pitch = 12.0, width - 12.0, 38.0
    bottom = 8 + pitch * len(rows)

    def at(value: float) -> float:
        return left + (right - left) * scale(100 * value)

    parts: list[str] = [
        tag("line", x1=at(v / 100), x2=at(v / 100), y1=4, y2=bottom, class_="grid") for v in scale.ticks
    ]
    parts.append(tag("line", x1=at(0), x2=at(0), y1=4, y2=bottom, class_="level"))
    for k, (arm, found) in enumerate(rows):
        y, values = 16 + pitch * k, found.accuracy
        name = _cut(arm.name, 44 if fit == "wide" else 24)
        parts += [text(0, y, name, "start", "name halo")]
        parts += [text(width, y, said_difference(found).partition(" (")[0], "end", "figure halo")]
        if values.low is not None and values.high is not None:
            parts.append(
                tag(
                    "line",
                    x1=at(values.low),
                    x2=at(values.high),
                    y1=y + 13,
                    y2=y + 13,
                    class_=f"whisker {styles[arm.series][0]}",
                )
            )
        parts.append(_mark(styles[arm.series], at(values.mean), y + 13))
    for v in thinned(scale.ticks, 8 if fit == "wide" else 5):
        parts.append(text(at(v / 100), bottom + 17, f"{v:+g}" if v else "0", "middle", "tick"))
    name = "plot-difference" + ("" if fit == "wide" else "-narrow")
    return svg(name, width, bottom + 26, "Differences to the control", *parts, class_=fit)


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
