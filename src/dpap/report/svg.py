"""Small tools to draw with: SVG elements as text, scales with readable ticks, numbers for people, a PNG writer."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

MISSING = "–"  # noqa: RUF001  an en dash, as tables have it


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element. What is not markup is escaped; `_` in the names of attributes becomes `-`.

    >>> tag("line", x1=0, stroke_width=1.25, class_="axis")
    Markup('<line x1="0" stroke-width="1.25" class="axis"/>')
    >>> tag("p", "a < b", tag("b", "c"))
    Markup('<p>a &lt; b<b>c</b></p>')
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(content)
    if not inner and name in ("line", "rect", "path", "circle", "img", "col", "polygon"):
        return Markup("<{}{}/>").format(name, written)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, inner)


def text(x: float, y: float, words: str, anchor: str = "start", class_: str = "") -> Markup:
    """Text with its baseline at (x, y)."""
    return tag("text", words, x=x, y=y, text_anchor=anchor, class_=class_ or None)


def svg(name: str, width: float, height: float, label: str, *content: str, class_: str, **data: object) -> Markup:
    """A drawing that scales with the page. `label` is what a screen reader says."""
    return tag(
        "svg",
        *content,
        id=name,
        class_=class_,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        **data,
    )


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(str(value))


# scales


@dataclass(frozen=True, slots=True)
class Scale:
    """A map from values to [0, 1], with the ticks of its axis.

    Attributes:
        low: Value at 0.
        high: Value at 1.
        ticks: Values that get a line and a number.
        place: Strictly increasing; a value's place is between those of `low` and `high`.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    place: Callable[[float], float]

    def __call__(self, value: float) -> float:
        low, high = self.place(self.low), self.place(self.high)
        return (self.place(min(max(value, self.low), self.high)) - low) / (high - low)


def linear(low: float, high: float, count: int = 5) -> Scale:
    """From a round number at or below `low` to one at or above `high`.

    >>> linear(0.0, 0.93).ticks
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    step = _nice((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(k * step, 12) for k in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks, float)


def logarithmic(low: float, high: float) -> Scale:
    """For positive values over several orders of magnitude: whole decades, or 1, 2, 5 when there are few."""
    low, high = min(low, high / 2), max(high, low * 2)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1,) if last - first > 3 else (1, 2, 5)
    ticks = tuple(d * 10.0**k for k in range(first, last + 1) for d in digits if low <= d * 10.0**k <= high)
    return Scale(low, high, ticks, lambda value: math.log10(max(value, low)))


def by_error(low: float, high: float, best: float) -> Scale:
    """For shares near 1: places by the logarithm of the error, so that 98 and 99 % are as far apart as 96 and 98 %.

    Args:
        low, high: Smallest and largest share.
        best: A share below 1 at whose place all better ones are drawn, 1 included.
    """
    high = min(max(high, low), best)
    low = min(low, 1 - 2 * (1 - high))
    errors = [digit * 10.0**-k for k in range(6) for digit in (5, 2, 1) if digit * 10.0**-k <= 1]
    ticks = tuple(share for error in errors if low <= (share := round(1 - error, 9)) <= high)
    return Scale(low, high, ticks, lambda value: -math.log10(max(1 - value, 1 - best)))


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(d * power for d in (1, 2, 5, 10) if d * power >= step * (1 - 1e-9))


def thinned(ticks: Sequence[float], room: int) -> Sequence[float]:
    """At most `room` of the ticks, evenly."""
    return ticks[:: max(1, math.ceil(len(ticks) / max(room, 1)))]


# numbers


def percent(share: float | None, digits: int = 2) -> str:
    """
    >>> percent(0.98765)
    '98.77 %'
    """
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def short_percent(share: float) -> str:
    """As few digits as are needed, for axes.

    >>> short_percent(0.995), short_percent(0.9), short_percent(0.9999)
    ('99.5 %', '90 %', '99.99 %')
    """
    return f"{100 * share:.5g} %"


def share_of(share: float | None) -> str:
    """A ratio with three digits that matter, without an exponent.

    >>> share_of(0.1), share_of(0.07254), share_of(1.0), share_of(0.000431)
    ('10.0 %', '7.25 %', '100 %', '0.0431 %')
    """
    return MISSING if share is None else f"{_three(100 * share)} %"


def compact(value: float | None) -> str:
    """A count for people: three digits and K, M, G or T; whole below ten thousand.

    >>> compact(1507928), compact(9410), compact(130774.4), compact(0.25)
    ('1.51 M', '9,410', '131 K', '0.25')
    """
    if value is None:
        return MISSING
    if abs(value) < 9999.5:
        return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"
    for unit, size in (("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if abs(value) < 999.5 * size or unit == "T":
            return f"{_three(value / size)} {unit}"
    raise AssertionError("the last unit takes all")


def energy(picojoule: float | None) -> str:
    """
    >>> energy(212328.2)
    '212 nJ'
    """
    if picojoule is None:
        return MISSING
    for unit, size in (("pJ", 1.0), ("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9), ("J", 1e12)):
        if abs(picojoule) < 999.5 * size or unit == "J":
            return f"{_three(picojoule / size)} {unit}"
    raise AssertionError("the last unit takes all")


def duration(seconds: float | None) -> str:
    """
    >>> duration(11.36), duration(754.0), duration(9000.0)
    ('11.4 s', '12 min 34 s', '2 h 30 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{_three(seconds)} s"
    whole = round(seconds)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float | None) -> str:
    """Three digits that matter, for rates and losses."""
    return MISSING if value is None else f"{value:.3g}"


def _three(value: float) -> str:
    """Three digits that matter, at most six decimals, without an exponent.

    >>> _three(1.508), _three(130.77), _three(12.0), _three(0.99996), _three(0.0)
    ('1.51', '131', '12.0', '1.00', '0')
    """
    rounded = float(f"{value:.3g}")
    if not rounded:
        return "0"
    return f"{rounded:,.{min(max(2 - math.floor(math.log10(abs(rounded))), 0), 6)}f}"


# pictures


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of (height, width, 4) red, green, blue, opacity."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0, "none", in front of every row
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def points(places: Iterable[tuple[float, float]]) -> str:
    """The path through these points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
