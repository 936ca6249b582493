"""What a report says and draws of time: living pairs, rates, frames of events, spikes; and records that do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import Reader, classed, cut, drawing, other
from report_runs import KINDS, MadeUp, activity, fired, pairs, record, result, shares, write_run

from dpap.errors import DPAPError
from dpap.report.files import read_run
from dpap.report.page import page
from dpap.report.survival_figure import HIGH, LOW, MAP_ROWS, evenly_chosen
from dpap.report.svg import number, share_of
from dpap.report.time_figures import (
    DEAD,
    FAINTEST,
    FRAMES,
    RASTER_ROWS,
    LayerPairs,
    frame_pixels,
    pair_map,
    pair_order,
    pair_pixels,
    raster,
    raster_pixels,
    raster_rows,
    sample_frames,
)
from dpap.report.time_page import silent_share

TIME = KINDS["time"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", TIME)


def layer(living: list[list[int]], units: list[int] | None = None, positions: int = 1) -> LayerPairs:
    there = np.ones(len(living), dtype=bool) if units is None else np.array(units, dtype=bool)
    return LayerPairs(name="neuron", group="fc1", positions=positions, units=there, pairs=np.array(living, dtype=bool))


# what the page says


def test_dead_time_in_words_and_in_the_table(run: Path) -> None:
    text = Reader(page(run)).text
    living_pairs, living_steps = shares(TIME)
    silent = share_of(silent_share(read_run(run)))
    assert f"{share_of(1 - living_pairs)} of the pairs of a living hidden neuron and a time step are dead" in text
    assert f"are dead; {silent} of these never fired in the unpruned control" in text
    assert f"{share_of(living_steps)} of the time steps of the hidden layers live" in text
    assert f"Dead pairs, rho_t {share_of(1 - living_pairs)} 0 % " in text
    assert f"Of these, silent in the control {silent} – " in text  # noqa: RUF001
    assert f"Living layer steps {share_of(living_steps)} 100 % " in text
    assert "time steps pruned by leak" in text


@pytest.mark.parametrize("mode", ["leak", "silence"])
def test_what_a_dead_pair_does_and_what_it_spares(tmp_path: Path, mode: str) -> None:
    """In the section, below the maps, and in the table: each mode has its own words, and none of the other's."""
    text = Reader(page(write_run(tmp_path / "run", replace(TIME, settings={"development.time": mode})))).text
    words = {
        "leak": [
            "its own work is spared, and that of the layers that read it alone",
            "the pair is dead: it gets no input current and gives no spike.",
            "A dead pair gets no input current and gives no spike; its membrane leaks.",
            "living neurons x T, less the dead pairs",
            "At a dead one the layer computes nothing.",
        ],
        "silence": [
            "its layer works at every step. Spared are the spikes",
            "the pair is dead: its membrane integrates the input current, but may not fire.",
            "integrates its input current, but may not fire, and is not reset.",
            "A dead pair is charged as well, so none is spared.",
            "At a dead one the layer integrates and is silent",
        ],
    }
    assert f"time steps pruned by {mode}" in text
    for said, wanted in words.items():
        assert [sentence in text for sentence in wanted] == [said == mode] * len(wanted)


@pytest.mark.parametrize(
    ("readout", "words"),
    [("current", "by the mean readout of these"), ("last", "by the potential at step t"), ("max", "by the highest")],
)
def test_the_curve_names_the_readout(tmp_path: Path, readout: str, words: str) -> None:
    like = replace(KINDS["time, nothing dead"], settings={"model.readout": readout})
    text = Reader(page(write_run(tmp_path / "run", like))).text
    assert f"after the first t steps, {words}" in text
    assert (f"readout {readout}" in text) == (readout != "current")


def test_the_dead_that_were_silent_in_the_control_by_hand(run: Path) -> None:
    """In the made-up control the first half of a layer says nothing at the first step, at which all are dead here."""
    alive, dead, silent = record(TIME), 0, 0
    for name, units, positions in zip(TIME.names, TIME.widths, (64, 64, 1), strict=True):
        lives = alive[f"alive/{name}"][-1]
        dead += positions * int((~pairs(TIME, units, 1.0))[lives].sum())
        silent += positions * int(lives[: units // 2].sum())
    assert silent_share(read_run(run)) == pytest.approx(silent / dead)


@pytest.mark.parametrize(
    ("kind", "ids", "absent"),
    [
        ("time", {"living-steps", "anytime", "pair-maps", "step-rates", "rasters", "samples"}, set()),
        ("time without control", {"living-steps", "pair-maps", "step-rates", "rasters"}, {"anytime"}),
        ("time, nothing dead", {"anytime", "step-rates", "rasters"}, {"living-steps"}),
        ("time, not finished", {"living-steps"}, {"anytime", "pair-maps", "step-rates", "samples"}),
        ("spiking", {"rates"}, {"time", "samples", "anytime"}),
        ("ordinary", {"rates"}, {"time", "samples", "anytime"}),
    ],
)
def test_each_kind_of_run_shows_what_there_is(tmp_path: Path, kind: str, ids: set[str], absent: set[str]) -> None:
    read = Reader(page(write_run(tmp_path / "run", KINDS[kind])))
    assert ids <= set(read.ids())
    assert not absent & set(read.ids())
    assert ("Dead pairs" in read.text) == (kind.startswith("time") and "living-steps" in ids and "step-rates" in ids)
    assert ("never fired in the unpruned control" in read.text) == (kind == "time")


def test_a_run_without_a_record_of_activity_has_the_rest(run: Path) -> None:
    for folder in (run, run / "control"):
        (folder / "activity.npz").unlink()
    read = Reader(page(run))
    assert {"pair-maps", "step-rates"} <= set(read.ids())
    assert "samples" not in read.ids()
    assert "never fired in the unpruned control" not in read.text


def test_a_history_from_before_has_the_page_of_a_run_without_time(run: Path) -> None:
    """Such a run has no record of activity either, and no pairs."""
    for folder in (run, run / "control"):
        (folder / "activity.npz").unlink()
        *lines, last = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        old = {k: v for k, v in json.loads(last).items() if k not in ("steps", "anytime", "living_steps", "dead_pairs")}
        (folder / "history.jsonl").write_text("\n".join([*lines, json.dumps(old)]), encoding="utf-8")
    files = read_run(run)
    assert files.result is not None
    assert (files.result.steps, files.result.anytime, files.result.living_steps) == ([], [], 1.0)
    assert not {"pair-maps", "step-rates", "samples", "anytime"} & set(Reader(page(run)).ids())


def test_the_anytime_curve_has_time_steps_on_its_axis(tmp_path: Path) -> None:
    like = KINDS["time, nothing dead"]
    markup = page(write_run(tmp_path / "run", like))
    root = drawing(markup, "anytime")
    (mine,) = classed(root, "curve run")
    places = [tuple(map(float, place.split())) for place in mine["d"][1:].split("L")]
    left, right = float(root.get("data-left", "")), float(root.get("data-right", ""))
    assert [x for x, _ in places] == pytest.approx([left + (right - left) * t / 4 for t in (1, 2, 3, 4)], abs=0.06)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True), "it rises"
    assert "time step" in [item.text for item in root.iter() if item.get("class") == "tick"]
    assert 'data-axis="time step"' in markup and 'data-axis="epoch"' in markup
    assert f"{100 * result(like).anytime[-1]:.2f} %" in Reader(markup).text


def test_bars_are_as_high_as_the_rates(run: Path) -> None:
    """On one scale for all layers: the highest of all rates, the control's included, fills the height."""
    markup = page(run)
    bars = re.findall(r'<div class="step-bars".*?</div>', markup, flags=re.DOTALL)
    assert len(bars) == len(TIME.names)
    control = fired(MadeUp(rule="none", deaths=False, steps=TIME.steps))
    most = max(float(rates.mean(axis=0).max()) for rates in (*control.values(), *living_rates().values()))
    for name, drawn in zip(TIME.names, bars, strict=True):
        heights = {
            arm: [float(h) for h in re.findall(rf'<i class="{arm}" style="height:([\d.]+)%">', drawn)]
            for arm in ("run", "control")
        }
        assert heights["run"] == pytest.approx((100 * living_rates()[name].mean(axis=0) / most).tolist(), abs=0.01)
        assert heights["control"] == pytest.approx((100 * control[name].mean(axis=0) / most).tolist(), abs=0.01)
        assert [m == "dead" for m in re.findall(r'<span(?: class="(\w+)")?>', drawn)] == [True] + [False] * 9
    assert f"up to {number(most)}" in Reader(markup).text


def living_rates() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.floating]]]:
    alive = record(TIME)
    return {name: rates[alive[f"alive/{name}"][-1]] for name, rates in fired(TIME).items()}


# maps of pairs


def test_units_are_sorted_by_their_living_steps() -> None:
    living = np.array([[0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0]], dtype=bool)
    assert pair_order(living).tolist() == [2, 1, 4, 3, 0]
    pixels = pair_pixels(living)
    assert (pixels[..., 3] > 0).tolist() == living[[2, 1, 4, 3, 0]].tolist()
    assert pixels[0, 0].tolist() == [*HIGH.tolist(), 255]


def test_dead_units_are_no_rows_and_dead_steps_are_named() -> None:
    item = layer([[0, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], units=[1, 0, 1])
    assert item.dead_steps == (0, 1, 3)
    markup = pair_map(item)
    assert "3 of 10 pairs live" in markup
    assert "dead at steps 1-2, 4 of 5" in markup
    assert "evenly chosen" not in markup
    assert "The whole layer" not in pair_map(layer([[1, 1], [0, 1]]))
    assert "dead at step 2 of 2" in pair_map(layer([[1, 0]]))


def test_a_large_layer_is_thinned_evenly() -> None:
    living = np.ones((4 * MAP_ROWS, 6), dtype=bool)
    living[: 2 * MAP_ROWS, 3:] = False
    pixels = pair_pixels(living)
    assert pixels.shape == (MAP_ROWS, 6, 4)
    assert (pixels[:, 5, 3] > 0).mean() == pytest.approx(0.5, abs=1.01 / MAP_ROWS)
    assert f"{MAP_ROWS} of {4 * MAP_ROWS} units, evenly chosen" in pair_map(layer(living.tolist()))
    assert evenly_chosen(np.arange(9), 3).tolist() == [0, 4, 8]


# frames and spikes


def test_colours_say_on_or_off_and_opacity_how_many() -> None:
    frame = np.zeros((2, 1, 5), dtype=np.uint8)
    frame[0, 0, 1], frame[1, 0, 2], frame[:, 0, 3], frame[1, 0, 4] = 4, 4, 4, 1
    (row,) = frame_pixels(frame, 4.0).astype(int).tolist()
    assert row[0][3] == 0
    assert row[1] == [*LOW.tolist(), 255]
    assert row[2] == [*HIGH.tolist(), 255]
    assert row[3] == [*((LOW + HIGH) / 2).round().astype(int).tolist(), 255]
    assert row[4] == [*HIGH.tolist(), round(FAINTEST + (255 - FAINTEST) / 4)]
    alone = frame_pixels(frame[:1], 4.0)
    assert alone[0, 1].tolist() == [*HIGH.tolist(), 255], "one channel has no polarity"


def test_frames_of_a_sample() -> None:
    frames = np.ones((30, 2, 5, 4), dtype=np.uint8)
    markup = sample_frames("three & four", frames, "sample 1")
    assert markup.count("<img") == FRAMES
    assert "1,200 events" in markup and "three &amp; four" in markup
    assert f"{FRAMES} of 30 frames, evenly chosen" in markup
    assert "<small>1</small>" in markup and "<small>30</small>" in markup
    few = sample_frames("", np.zeros((4, 1, 5, 4), dtype=np.uint8), "sample 1")
    assert few.count("<img") == 4 and "0 counts" in few and "evenly" not in few


@pytest.mark.parametrize(
    ("inputs", "said"), [(700, "A row is 5 of the 700 inputs, added up."), (60, "A row is one of 60 inputs.")]
)
def test_inputs_without_a_picture_are_lines(inputs: int, said: str) -> None:
    markup = sample_frames("", np.ones((30, inputs, 1, 1), dtype=np.uint8), "sample 1")
    assert markup.count("<img") == 1
    assert said in markup


def test_spikes_and_dead_pairs() -> None:
    spikes = np.array([[0.0, 0.5], [0.25, 0.0]])
    pixels = raster_pixels(spikes, np.array([[False, True], [True, True]]))
    assert pixels[0, 0].tolist() == list(DEAD)
    assert pixels[0, 1].tolist() == [*HIGH.tolist(), 255]
    assert pixels[1, 0, 3] == round(FAINTEST + (255 - FAINTEST) / 2)
    assert pixels[1, 1, 3] == 0
    markup = raster(layer([[0, 1], [1, 1], [1, 1]], units=[1, 1, 0], positions=4), np.vstack([spikes, [[9, 9]]]))
    assert "3 spikes" in markup, "of the living, of all of their neurons: (0.5 + 0.25) x 4"
    assert "A unit is 4 neurons; at full strength 50.0 % of them fire." in markup
    assert "A unit is 4 neurons.<" in raster(layer([[1]], positions=4), np.zeros((1, 1)))


def test_a_large_layer_shows_some_of_its_living_units() -> None:
    units = [k % 2 for k in range(400)]
    item = layer([[1, 1]] * 400, units=units)
    rows = raster_rows(item)
    assert len(rows) == RASTER_ROWS and all(units[row] for row in rows)
    assert f"{RASTER_ROWS} of 200 units, evenly chosen" in raster(item, np.zeros((400, 2)))


# bad input


@pytest.mark.parametrize("inner", ["", "control"])
@pytest.mark.parametrize("harm", [cut, other])
def test_a_damaged_record_is_named(run: Path, harm: Callable[[Path, str], None], inner: str) -> None:
    harm(run / inner, "activity.npz")
    with pytest.raises(DPAPError, match="record of activity cannot be read") as caught:
        page(run)
    assert caught.value.where == str(run / inner / "activity.npz")


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("label", None, "no lists `label` and `answer`"),
        ("answer", np.array(["a"]), "answer has 1 samples, label 3"),
        ("answer", np.zeros(3), "answer holds no names"),
        ("fired/neuron_fc1", np.array([["a"]]), "fired/neuron_fc1 holds no numbers"),
        ("raster/neuron_fc1", np.zeros(10), "raster/neuron_fc1 has 1 axes instead of 2"),
        ("frames", np.zeros((2, 10, 2, 4, 4)), "frames has 2 samples, label 3"),
        ("raster/neuron_fc1", np.zeros((256, 9)), "neuron_fc1 does not fit together: .*raster 256 x 9"),
        ("fired/neuron_fc1", np.zeros((255, 10)), "neuron_fc1 does not fit together: .*fired 255 x 10"),
    ],
)
def test_a_record_that_does_not_fit(
    run: Path, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None, problem: str
) -> None:
    arrays = {key: value for key, value in activity(TIME).items() if key != name}
    if values is not None:
        arrays[name] = values
    with (run / "activity.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DPAPError, match=problem):
        page(run)


def test_a_record_of_pairs_has_three_axes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MadeUp(steps=4, control=False))
    arrays = record(MadeUp(steps=4)) | {"pairs/neuron_fc1": np.ones((25, 256), dtype=bool)}
    with (run / "development.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DPAPError, match="pairs/neuron_fc1 has 2 axes instead of 3"):
        page(run)
