"""The figures of time: living pairs of units and steps, rates per step, frames of events, spikes of one sample.

Pictures are as small as what they show, a pixel for a pair or a count, and the page makes them larger. Bars are boxes
of the page, so that their words keep their size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpap.report.survival_figure import HIGH, LOW, MAP_ROWS, evenly_chosen
from dpap.report.svg import data_uri, number, png, share_of, tag

RASTER_ROWS = 64
FRAMES = 12
"""Frames of a sample that are shown at most."""
OFF, ON = LOW, HIGH
DEAD = (128, 128, 128, 88)
"""Of pairs in a raster; it holds on light and dark."""
MANY_STEPS = 24
"""More than these, and bars stand in front of each other."""
FAINTEST = 96
"""Opacity of the smallest count or share that is not 0."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPairs:
    """Which units live when in one layer of the finished network."""

    name: str
    """Of the neurons' module."""
    group: str
    positions: int
    """Neurons of a unit."""
    units: BoolArray
    """(units,): which units of the dense network live."""
    pairs: BoolArray
    """(units, T); of dead units it says nothing."""

    @property
    def living(self) -> BoolArray:
        """(living units, T)."""
        return self.pairs[self.units]

    @property
    def dead_steps(self) -> tuple[int, ...]:
        """From 0: steps at which no living unit lives."""
        return tuple(np.flatnonzero(~self.living.any(axis=0)).tolist())


# living pairs


def pair_order(living: BoolArray) -> npt.NDArray[np.intp]:
    """Units with the most living steps first; among equals those that live early, then as they are numbered."""
    return np.lexsort((*(~living).T[::-1], -living.sum(axis=1)))


def pair_pixels(living: BoolArray) -> npt.NDArray[np.uint8]:
    """(rows, T, 4): a row for a unit, at most `MAP_ROWS` of them, a column for a step. Dead: clear."""
    rows = living[evenly_chosen(pair_order(living), MAP_ROWS)]
    pixels = np.zeros((*rows.shape, 4), dtype=np.uint8)
    pixels[rows] = (*HIGH, 255)
    return pixels


def pair_map(layer: LayerPairs) -> str:
    """The living units of a layer below each other, steps from left to right."""
    living = layer.living
    units, steps = living.shape
    said = f"{living.sum():,} of {living.size:,} pairs live"
    notes = [f"{MAP_ROWS} of {units:,} units, evenly chosen."] if units > MAP_ROWS else []
    if layer.dead_steps:
        notes.append(f"The whole layer is dead at {_steps(layer.dead_steps)} of {steps}.")
    picture = tag(
        "img",
        class_="map",
        src=data_uri(png(pair_pixels(living))),
        alt=f"Living pairs of {units} units of {layer.group} and {steps} time steps; {said}",
    )
    return tag(
        "figure",
        tag("figcaption", tag("h3", layer.group), tag("span", said, class_="at")),
        tag("div", picture, class_="frame"),
        _under(steps),
        tag("p", " ".join(notes), class_="note") if notes else "",
    )


# rates


def step_rates(
    group: str, rates: Sequence[float], control: Sequence[float] | None, dead: Collection[int], most: float
) -> str:
    """A pair of bars for each step, of this run and the control; dead steps are marked.

    Args:
        rates, control: (T,).
        dead: Steps, from 0.
        most: Rate that fills the height.
    """
    columns, words = [], []
    for step, rate in enumerate(rates):
        arms = [("control", control[step])] if control is not None else []
        arms.append(("run", rate))
        bars = [tag("i", "", class_=style, style=f"height:{100 * value / most:.2f}%") for style, value in arms]
        columns.append(tag("span", *bars, class_="dead" if step in dead else None))
        words.append(f"step {step + 1}: {'dead' if step in dead else number(rate)}")
    top = f"at most {number(max(rates))}" + (f", control {number(max(control))}" if control else "")
    return tag(
        "figure",
        tag("figcaption", tag("h3", group), tag("span", top, class_="at")),
        tag(
            "div",
            *columns,
            class_="step-bars many" if len(rates) > MANY_STEPS else "step-bars",
            role="img",
            aria_label=f"Rates of {group}. {', '.join(words)}",
        ),
        _under(len(rates)),
    )


# frames


def sample_frames(title: str, frames: npt.NDArray[np.uint8], name: str) -> str:
    """Some frames of one sample side by side; where they are lines, one picture of lines over time.

    Args:
        title: What is known of the sample.
        frames: (T, channels, height, width) of counts.
        name: Of the sample, for a screen reader.
    """
    steps, _, height, width = frames.shape
    most = max(float(np.quantile(frames[frames > 0], 0.95)) if frames.any() else 1.0, 1.0)
    if min(height, width) == 1:
        content, note = _lines(frames, name)
    else:
        shown = evenly_chosen(np.arange(steps), FRAMES)
        pictures = [
            tag(
                "span",
                tag("img", src=data_uri(png(frame_pixels(frames[t], most))), alt=f"Frame {t + 1} of {name}"),
                tag("small", f"{t + 1}"),
            )
            for t in shown.tolist()
        ]
        content = tag("div", *pictures, class_="film")
        note = f"{len(shown)} of {steps} frames, evenly chosen." if len(shown) < steps else ""
    counts = f"{int(frames.sum(dtype=np.int64)):,} {'events' if frames.shape[1] == 2 else 'counts'}"
    return tag(
        "figure",
        tag("figcaption", tag("h3", title), tag("span", counts, class_="at")),
        content,
        tag("p", note, class_="note") if note else "",
        class_="full",
    )


def frame_pixels(frame: npt.NDArray[np.uint8], most: float) -> npt.NDArray[np.uint8]:
    """(height, width, 4): the colour says ON or OFF, its opacity how many; nothing is clear.

    Args:
        frame: (channels, height, width): OFF and ON where there are two channels.
        most: Count of full opacity.
    """
    total = frame.sum(axis=0, dtype=np.float64)
    on = frame[1] / np.maximum(total, 1) if len(frame) == 2 else np.ones_like(total)
    colours = OFF + (ON - OFF) * on[..., None]
    return np.concatenate([colours, _opacity(total / most)[..., None]], axis=-1).round().astype(np.uint8)


def _lines(frames: npt.NDArray[np.uint8], name: str) -> tuple[str, str]:
    """Channels (or pixels of a line) below each other, added up where they are many, over time; and what was added."""
    lines = frames.reshape(len(frames), -1).T.astype(np.float64)
    by = -(-len(lines) // MAP_ROWS)
    sums = np.add.reduceat(lines, np.arange(0, len(lines), by), axis=0)
    pixels = _tinted(sums / max(sums.max(), 1.0))
    picture = tag("img", class_="map", src=data_uri(png(pixels)), alt=f"Counts of {name} over {len(frames)} steps")
    note = f"A row is {by} of the {len(lines)} inputs, added up." if by > 1 else f"A row is one of {len(lines)} inputs."
    return tag("div", picture, class_="frame") + _under(len(frames)), note


# spikes


def raster_rows(layer: LayerPairs) -> npt.NDArray[np.intp]:
    """Units of the dense network that are shown: the living, evenly chosen where they are many."""
    return evenly_chosen(np.flatnonzero(layer.units), RASTER_ROWS)


def raster_pixels(spikes: FloatArray, pairs: BoolArray) -> npt.NDArray[np.uint8]:
    """(units, T, 4): the more of a unit's neurons fire the stronger, the most in the layer at full strength; dead pairs
    grey, silent ones clear."""
    pixels = _tinted(spikes / (float(spikes.max(initial=0)) or 1.0))
    pixels[~pairs] = DEAD
    return pixels


def raster(layer: LayerPairs, spikes: FloatArray) -> str:
    """Spikes of one sample: units below each other, steps from left to right.

    Args:
        spikes: (units, T): share of each unit's neurons that fire; of the dense network's units.
    """
    rows, living = raster_rows(layer), int(layer.units.sum())
    steps = spikes.shape[1]
    fired = round(float(spikes[layer.units].sum()) * layer.positions)
    picture = tag(
        "img",
        class_="map",
        src=data_uri(png(raster_pixels(spikes[rows], layer.pairs[rows]))),
        alt=f"Spikes of {len(rows)} units of {layer.group} over {steps} time steps",
    )
    notes = [f"{len(rows)} of {living:,} units, evenly chosen."] if len(rows) < living else []
    if layer.positions > 1:
        most = float(spikes[rows].max(initial=0))
        strongest = f"; at full strength {share_of(most)} of them fire" if most else ""
        notes.append(f"A unit is {layer.positions:,} neurons{strongest}.")
    return tag(
        "figure",
        tag("figcaption", tag("h3", layer.group), tag("span", f"{fired:,} spikes", class_="at")),
        tag("div", picture, class_="frame"),
        _under(steps),
        tag("p", " ".join(notes), class_="note") if notes else "",
    )


# parts


def _tinted(shares: FloatArray) -> npt.NDArray[np.uint8]:
    """Shares of full strength in one colour; 0 is clear."""
    pixels = np.empty((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = HIGH
    pixels[..., 3] = _opacity(shares).round()
    return pixels


def _opacity(shares: FloatArray) -> FloatArray:
    """0 for nothing; whatever is there can be seen."""
    return np.where(shares > 0, FAINTEST + (255 - FAINTEST) * np.minimum(shares, 1.0), 0.0)


def _under(steps: int) -> str:
    return tag("div", tag("span", "step 1"), tag("span", f"{steps}"), class_="under")


def _steps(steps: Sequence[int]) -> str:
    """Steps counted from 1, those that follow one another as a range.

    >>> _steps((0, 1, 2, 5)), _steps((3,))
    ('steps 1-3, 6', 'step 4')
    """
    runs: list[list[int]] = []
    for step in steps:
        if runs and runs[-1][-1] == step - 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    words = [f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1}-{run[-1] + 1}" for run in runs]
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(words)}"


__all__ = ["LayerPairs", "pair_map", "raster", "sample_frames", "step_rates"]
