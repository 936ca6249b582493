"""Maps of survival: the units of a group over the development steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpap.report.svg import data_uri, png, tag

# Colours of a map of survival, at opacity 1: from units about to be pruned to the most used; they hold on light and
# dark.
LOW, MIDDLE, HIGH = np.array([214, 158, 70]), np.array([118, 160, 140]), np.array([24, 128, 120])
MAP_ROWS = 150
"""Rows of a map: a row is at least one pixel of the page."""


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
    """Units from the one that lives with the highest survival to the one that was pruned first."""
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
    """One map: units below each other, sorted by the time they were pruned, development steps from left to right.

    Args:
        progress: (K,), the share of the run that was over at each development step.
        ends: F at the ends of the colours.
        begin: Progress at which pruning begins, for a line; None for none.
    """
    units, living = item.alive.shape[1], int(item.alive[-1].sum())
    shown = f"{MAP_ROWS} of {units:,} units, evenly chosen" if units > MAP_ROWS else ""
    gone = units - living
    deaths = f"{gone:,} pruned" if gone else "none pruned"
    picture = tag(
        "img",
        class_="map",
        src=data_uri(png(survival_pixels(item, *ends))),
        alt=f"Survival of the {units} units of {item.group} over {len(progress)} development steps; {deaths}",
    )
    return tag(
        "figure",
        tag("figcaption", tag("h3", item.group), tag("span", f"{living:,} of {units:,} alive", class_="at")),
        tag("div", picture, _mark(progress, begin), class_="frame"),
        tag(
            "div",
            tag("span", f"epoch {progress[0] * epochs:.2g}"),
            tag("span", f"{progress[-1] * epochs:.3g}"),
            class_="under",
        ),
        tag("p", shown, class_="note") if shown else "",
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
