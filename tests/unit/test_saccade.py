"""The simulated event camera: against a pixel simulated by hand, its own recordings, and the real camera."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dpap.data import Dataset, DataSpec, Split, saccade_camera
from dpap.data.events import frames
from dpap.data.events.places import members, names_in
from dpap.data.events.readers import parse_bin
from dpap.data.idx import load_idx, read_idx
from dpap.data.saccade import as_saccades, saccade_events, saccade_frames, saccade_spec
from dpap.data.saccade_camera import Saccades
from dpap.data.sources import MNIST
from dpap.errors import DPAPError

PLAIN = Saccades(blur=0, spread=0, noise=0, refractory=0, negative=False, threshold_on=0.1, threshold_off=0.1)
SMALL = Saccades(window=(12, 10), noise=5.0, corners=((-1.0, -1.5), (0.5, 1.0), (1.25, -0.5)), steps=12)


def pictures(count: int, height: int = 9, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------- one pixel


def by_hand(times: list[float], levels: list[float], low: float, down: float, up: float, blind: float) -> list:
    """(time, ON) of one pixel, from one event to the next; `low` is the OFF bound at the start."""

    def level(time: float) -> float:
        return float(np.interp(time, times, levels))

    memory, sees, found = low + down, times[0], []
    while True:
        corners = [sees, *(time for time in times if time > sees)]
        for start, stop in pairwise(corners):
            rise = level(stop) - memory
            if rise > up or rise < -down:
                bound = memory + up if rise > 0 else memory - down
                now = start + (stop - start) * (bound - level(start)) / (level(stop) - level(start))
                found.append((now, rise > 0))
                break
        else:
            return found
        sees = now + blind
        if sees >= times[-1]:
            return found
        memory = level(sees)


@pytest.mark.parametrize("refractory", [0.0, 0.3, 2.5, 7.0])  # a step lasts 1 to 3
def test_a_pixel_fires_as_one_simulated_by_hand(refractory: float) -> None:
    draws = np.random.default_rng(1)
    times = np.cumsum(draws.uniform(1, 3, 25))
    levels = np.cumsum(draws.normal(0, 1, (25, 40)) * (draws.random((25, 40)) < 0.7), 0).astype(np.float32)
    down, up = draws.uniform(0.2, 0.7, (2, 40)).astype(np.float32)
    phase = draws.random(40, dtype=np.float32)
    pixels = saccade_camera._Pixels(levels[0], np.stack([down, up]), phase, refractory)
    low = pixels.low.copy()
    found: list[list[tuple[float, bool]]] = [[] for _ in range(40)]
    for step in range(24):
        fired = pixels.step(times[step], times[step + 1], levels[step], levels[step + 1])
        for cell, on, time in zip(fired.cell, fired.on, fired.time, strict=True):
            found[cell].append((time, bool(on)))
    assert sum(map(len, found)) > 150
    for cell, events in enumerate(found):
        expected = by_hand(list(times), list(levels[:, cell]), low[cell], down[cell], up[cell], refractory)
        assert [on for _, on in events] == [on for _, on in expected]
        assert [time for time, _ in events] == pytest.approx([time for time, _ in expected], abs=1e-4)


def test_a_pixel_at_rest_keeps_silent() -> None:
    level = np.zeros(5, np.float32)
    pixels = saccade_camera._Pixels(
        level, np.full((2, 5), 0.1, np.float32), np.linspace(0, 0.99, 5, dtype=np.float32), 3.0
    )
    assert not len(pixels.step(0.0, 10.0, level, level).time)


# --------------------------------------------------------------------------------------------------------- the camera


def test_what_the_pixels_see_is_the_moved_image() -> None:
    """Between two pixels it lies between their levels; a bar 2 to the right is the bar 2 columns on."""
    model = replace(PLAIN, window=(6, 8), corners=((0.0, 0.0), (2.0, 1.0)), onsets=(0, 100), moves=(50, 50))
    model = replace(model, duration=200, steps=2)
    image = pictures(1, 6, 8)
    times, places = saccade_camera._path(model)
    scene = saccade_camera._scene(image, model)
    views = [view.reshape(6, 8).copy() for view in saccade_camera._views(scene, places, model)]
    assert times.tolist() == [0, 25, 50, 100, 125, 150]
    assert places.tolist() == pytest.approx(np.array([(0, 0), (1, 0.5), (2, 1), (2, 1), (1, 0.5), (0, 0)]))
    level = np.log(image[0] / 255 + model.floor)
    assert views[0] == pytest.approx(level, abs=1e-6)
    assert views[2][1:, 2:] == pytest.approx(level[:-1, :-2], abs=1e-6)
    assert views[1][1:, 1:] == pytest.approx((level[1:, :-1] + level[:-1, :-1]) / 2, abs=1e-6)
    assert views[2][0, 2:] == pytest.approx(level[0, :-2], abs=1e-6)  # the border goes on outwards


def test_blur_keeps_the_light_and_spreads_it() -> None:
    image = np.zeros((1, 9, 9), np.uint8)
    image[0, 4, 4] = 255
    model = replace(PLAIN, window=(9, 9), corners=((0.0, 0.0), (0.0, 0.0)), onsets=(0, 9), moves=(1, 1), blur=0.6)
    light = np.exp(saccade_camera._scene(image, model)[..., 0]) - model.floor
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 0.6) ** 2)
    weights /= weights.sum()
    assert light.sum() == pytest.approx(1, abs=1e-4)
    assert light[3:8, 3:8] == pytest.approx(np.outer(weights, weights), abs=1e-6)


@pytest.mark.parametrize("negative", [False, True])
def test_a_bright_bar_switches_on_where_it_goes_and_off_where_it_was(negative: bool) -> None:
    """As often as the change of level holds the threshold, give or take a pixel's past; a negative swaps ON and OFF.

    The bar covers columns 6 to 9 at first and 10 to 13 in the end.
    """
    model = replace(PLAIN, window=(8, 20), corners=((-2.0, 0.0), (2.0, 0.0)), onsets=(0, 200_000), moves=(99_000,) * 2)
    model = replace(model, negative=negative)
    image = np.zeros((8, 20), np.uint8)
    image[:, 8:12] = 255
    events = saccade_events(image, model)
    there = events.between(0, 100_000)
    to, away = (there.x >= 10) & (there.x < 14), (there.x >= 6) & (there.x < 10)
    assert (there.p[to] != negative).all()
    assert (there.p[away] == negative).all()
    assert (to | away).all()
    climb = math.log((1 + model.floor) / model.floor) / 0.1
    for column in range(6, 14):
        counts = np.bincount(there.y[there.x == column], minlength=8)
        assert ((counts >= math.floor(climb) - 1) & (counts <= math.ceil(climb))).all()
    back = events.between(200_000, 315_000)
    assert np.bincount(back.x, minlength=20) == pytest.approx(np.bincount(there.x, minlength=20), abs=20)
    assert back.p[back.x == 12].any() == negative


def test_thresholds_of_on_and_off() -> None:
    """Half the threshold, twice the events of that polarity."""
    image = pictures(1)[0]
    model = replace(SMALL, noise=0, refractory=0)
    both = saccade_events(image, replace(model, threshold_on=0.05, threshold_off=0.05)).p
    finer = saccade_events(image, replace(model, threshold_on=0.05, threshold_off=0.025)).p
    assert (~finer).sum() == pytest.approx(2 * (~both).sum(), rel=0.05)
    assert finer.sum() == pytest.approx(both.sum(), rel=0.05)


def test_a_pixel_is_blind_after_an_event() -> None:
    model = replace(SMALL, noise=0, refractory=5_000, threshold_on=0.05, threshold_off=0.05)
    events = saccade_events(pictures(1)[0], model)
    order = np.lexsort((events.t, events.x, events.y))
    same = (np.diff(events.x[order]) == 0) & (np.diff(events.y[order]) == 0)
    waits = np.diff(events.t[order])[same]
    assert waits.min() >= 5_000 - 1  # times are cut to whole microseconds
    assert waits.min() < 6_500


def test_a_uniform_image_has_no_events_but_noise() -> None:
    image = np.full((9, 8), 77, np.uint8)
    empty = saccade_events(image, replace(SMALL, noise=0))
    assert (len(empty), empty.sensor) == (0, (12, 10))
    assert not saccade_frames(image[None], 3, replace(SMALL, noise=0)).any()
    noise = [saccade_events(image, SMALL, index=index) for index in range(50)]
    assert all(events.p.all() for events in noise)
    expected = 5.0 * 120 * 0.315
    assert np.mean([len(events) for events in noise]) == pytest.approx(expected, abs=4 * math.sqrt(expected / 50))
    assert min(events.t.min() for events in noise) >= 0
    assert 310_000 < max(events.t.max() for events in noise) < 315_000


def test_an_image_that_rests_has_no_events_but_noise() -> None:
    model = replace(SMALL, corners=((0.5, 0.25),) * 3, noise=0)
    assert not len(saccade_events(pictures(1)[0], model))


# ------------------------------------------------------------------------------------------------- frames and batches


@pytest.mark.parametrize("num_steps", [1, 10, 11])
def test_frames_are_those_of_the_recordings(num_steps: int) -> None:
    images = pictures(5)
    found = saccade_frames(images, num_steps, SMALL, seed=3)
    assert found.shape == (5, num_steps, 2, 12, 10)
    assert found.sum((1, 2, 3, 4), dtype=np.int64).min() > 300
    for index, image in enumerate(images):
        events = saccade_events(image, SMALL, seed=3, index=index)
        assert np.array_equal(found[index], frames(events, num_steps, start=0, duration=SMALL.duration))


def test_counts_above_a_byte_stay_at_its_largest() -> None:
    model = replace(SMALL, noise=30_000.0)
    events = saccade_events(pictures(1)[0], model)
    found = saccade_frames(pictures(1), 10, model)[0]
    assert found.max() == 255
    assert np.array_equal(found, frames(events, 10, start=0, duration=model.duration))


def test_events_end_with_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    late = saccade_camera._Fired(np.array([0, 1]), np.array([True, True]), np.array([314_999.5, 315_000.0]))
    monkeypatch.setattr(saccade_camera, "_changes", lambda *_: iter([late]))
    model = replace(SMALL, noise=0)
    assert saccade_events(pictures(1)[0], model).t.tolist() == [314_999]
    assert saccade_frames(pictures(1), 11, model).sum() == 1


def test_a_sample_has_the_same_events_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(7)
    whole = saccade_frames(images, 6, SMALL)
    assert np.array_equal(saccade_frames(images[4:5], 6, SMALL, indices=[4])[0], whole[4])
    order = [5, 0, 3]
    assert np.array_equal(saccade_frames(images[order], 6, SMALL, indices=order), whole[order])
    monkeypatch.setattr("dpap.data.saccade.CHUNK", 3)
    assert np.array_equal(saccade_frames(images, 6, SMALL), whole)


def test_seed_and_index_decide_what_is_drawn() -> None:
    """Without noise, what the pixels remember at the start."""
    image, quiet = np.repeat(pictures(1), 4, axis=0), replace(SMALL, noise=0)
    indices = [0, 1, 64, 60_000]
    one = saccade_frames(image, 6, quiet, indices=indices)
    assert len({frame.tobytes() for frame in one}) == 4
    assert np.array_equal(saccade_frames(image, 6, quiet, indices=indices), one)
    assert (saccade_frames(image, 6, quiet, seed=1)[0] != one[0]).any()
    assert (saccade_frames(image, 6, SMALL, indices=indices)[0] != one[0]).any()


def test_thresholds_belong_to_the_sensor() -> None:
    """Different from pixel to pixel, the same in every sample, other ones with another seed."""
    model = replace(SMALL, spread=0.1)
    down, up = saccade_camera._thresholds(model, 0)
    assert np.log([down, up]).std(axis=1) == pytest.approx([0.1, 0.1], rel=0.3)
    assert np.log(down).mean() == pytest.approx(math.log(model.threshold_off), abs=0.03)
    assert np.log(up).mean() == pytest.approx(math.log(model.threshold_on), abs=0.03)
    assert not np.array_equal(saccade_camera._thresholds(model, 1)[0], down)


def test_floats_are_the_bytes_they_stand_for() -> None:
    images = pictures(3)
    assert np.array_equal(saccade_frames(images / 255, 4, SMALL), saccade_frames(images, 4, SMALL))


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (np.zeros((28, 28), np.uint8), "images of shape (28, 28)"),
        (np.zeros((2, 1, 28, 28), np.uint8), "images of shape (2, 1, 28, 28)"),
        (np.zeros((2, 35, 28), np.uint8), "at most 34 x 34"),
        (np.zeros((2, 28, 0), np.uint8), "images of shape (2, 28, 0)"),
        (np.full((1, 28, 28), 1.5), "floats from 0 to 1"),
        (np.full((1, 28, 28), -0.1), "floats from 0 to 1"),
        (np.full((1, 28, 28), np.nan), "floats from 0 to 1"),
        (np.zeros((1, 28, 28), np.int64), "images of type int64"),
    ],
)
def test_images_of_another_kind_are_refused(images: np.ndarray, shown: str) -> None:
    with pytest.raises(DPAPError, match=re.escape(shown)):
        saccade_frames(images, 4)


def test_fewer_than_one_step_is_refused() -> None:
    with pytest.raises(DPAPError, match="0 steps"):
        saccade_frames(pictures(1), 0)


def test_not_as_many_indices_as_images_are_refused() -> None:
    with pytest.raises(DPAPError, match="2 images and 1 indices"):
        saccade_frames(pictures(2), 4, indices=[0])


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ({"window": (0, 34)}, "at least 1"),
        ({"duration": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"floor": 0.0}, "out of its range"),
        ({"threshold_on": 0.0}, "out of its range"),
        ({"threshold_off": -0.1}, "out of its range"),
        ({"blur": -1.0}, "out of its range"),
        ({"noise": math.inf}, "not finite"),
        ({"corners": ((math.nan, 0.0), (0.0, 1.0), (1.0, 0.0))}, "not finite"),
        ({"corners": ((0.0, 0.0), (0.0, 1.0))}, "2 corners, 3 onsets and 3 moves"),
        ({"onsets": (-1.0, 103_000, 212_000)}, "overlap or outlast"),
        ({"moves": (98_000, 94_000, 92_000)}, "overlap or outlast"),
        ({"moves": (85_000, 94_000, 104_000)}, "overlap or outlast"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(field: dict, shown: str) -> None:
    with pytest.raises(DPAPError, match=shown) as caught:
        Saccades(**field)
    assert caught.value.where == "Saccades"


# ------------------------------------------------------------------------------------------------------- the data set


def still(channels: int = 1, dtype: torch.dtype = torch.uint8) -> Dataset:
    def split(count: int, seed: int) -> Split:
        images = torch.from_numpy(pictures(count * channels, seed=seed)).view(count, channels, 9, 8)
        return Split(images=images if dtype == torch.uint8 else images.to(dtype) / 255, labels=torch.arange(count) % 2)

    spec = DataSpec(name="toy", shape=(channels, 9, 8), classes=("a", "b"), credit="us", mean=(0.5,), std=(0.5,))
    return Dataset(spec=spec, train=split(8, 1), validation=split(4, 2), test=split(2, 3))


def test_a_data_set_of_pictures_becomes_one_of_events() -> None:
    data = still()
    seen = as_saccades(data, 5, SMALL, seed=2)
    assert seen.spec.name == "toy-saccade"
    assert seen.spec.credit == "simulated events of: us"
    assert (seen.spec.shape, seen.spec.num_steps, seen.spec.mean) == ((2, 12, 10), 5, ())
    first = 0
    for name in ("train", "validation", "test"):
        part, before = getattr(seen, name), getattr(data, name)
        assert torch.equal(part.labels, before.labels)
        numbers = range(first, first + len(part))
        expected = saccade_frames(before.images[:, 0].numpy(), 5, SMALL, seed=2, indices=numbers)
        assert np.array_equal(part.images.numpy(), expected)
        first += len(part)
    assert seen.spec.prepared(seen.test.images).shape == (5, 2, 2, 12, 10)


def test_a_limit_leaves_every_sample_its_events() -> None:
    whole, part = as_saccades(still(), 3, SMALL), as_saccades(still(), 3, SMALL, limit=6)
    assert (len(part.train), len(part.validation), len(part.test)) == (4, 2, 2)
    assert part.train.labels.bincount().tolist() == [2, 2]
    known = {images.numpy().tobytes() for images in whole.train.images}
    assert all(images.numpy().tobytes() in known for images in part.train.images)
    assert torch.equal(part.test.images, whole.test.images)


@pytest.mark.parametrize("limit", [0, 13])
def test_a_limit_that_cannot_be_is_refused(limit: int) -> None:
    with pytest.raises(DPAPError, match=f"limit is {limit}"):
        as_saccades(still(), 3, SMALL, limit=limit)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_colours_become_grey(dtype: torch.dtype) -> None:
    data = still(3, dtype)
    pixels = data.test.images.numpy().astype(np.float64)
    grey = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    grey = grey.round().astype(np.uint8) if dtype == torch.uint8 else grey.astype(np.float32)
    expected = saccade_frames(grey, 3, SMALL, indices=[12, 13])
    assert np.array_equal(as_saccades(data, 3, SMALL).test.images.numpy(), expected)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(DPAPError, match="2 x 9 x 8 numbers, no grey or coloured picture"):
        as_saccades(still(2), 3, SMALL)
    with pytest.raises(DPAPError, match="no grey or coloured picture"):
        as_saccades(as_saccades(still(), 3, SMALL), 3, SMALL)


def test_silent_recordings_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    data = still()
    data.test.images[1] = 9
    with caplog.at_level(logging.WARNING):
        as_saccades(data, 3, replace(SMALL, noise=0))
    assert [record.getMessage() for record in caplog.records] == [
        "data set 'toy': 1 of 2 simulated recordings hold no event"
    ]


# ----------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.data
@pytest.mark.slow
def test_mnist_as_events() -> None:
    mnist = load_idx(MNIST)
    mnist = replace(mnist, test=mnist.test.part(torch.arange(10_000) < 20))  # all of them would take half a minute
    data = as_saccades(mnist, 2, limit=60)
    assert data.spec == saccade_spec(mnist.spec, 2)
    assert data.spec.name == "mnist-saccade"
    assert data.train.images.shape[1:] == (2, 2, 34, 34)
    assert 50 <= len(data.train) + len(data.validation) <= 70
    events = data.train.images.sum((1, 2, 3, 4)).double()
    assert 3_500 < events.mean() < 4_800


@pytest.mark.data
@pytest.mark.slow
def test_the_simulated_camera_resembles_the_real_one(data_dir: Path) -> None:
    """On 100 of the training samples that its constants were chosen on."""
    place, images = data_dir / "nmnist" / "nmnist-1100.tar.xz", data_dir / "mnist" / "train-images-idx3-ubyte.gz"
    if not place.is_file() or not images.is_file():
        pytest.skip("no N-MNIST and MNIST there")
    wanted = [name for name in names_in(place) if re.search(r"Train/\d/00\d\d\d\.bin$", name) and name[-5] == "5"]
    numbers = [int(name[-9:-4]) for name in wanted]
    assert len(numbers) == 100
    real = np.empty((100, 21, 2, 34, 34), np.uint8)
    for row, read, where in members(place, wanted):
        real[row] = frames(parse_bin(read(), (34, 34), where), 21, start=0, duration=315_000)
    simulated = saccade_frames(read_idx(images)[np.array(numbers) - 1].numpy(), 21)

    def alike(one: np.ndarray, other: np.ndarray) -> float:
        pairs = zip(one.reshape(100, -1), other.reshape(100, -1), strict=True)
        return float(np.median([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    assert alike(real.sum((1, 2)), simulated.sum((1, 2))) > 0.94
    assert alike(real, simulated) > 0.74
    assert alike(real, simulated[:, :, ::-1]) < 0.1  # polarities are the real ones
    events = [counts.sum((1, 2, 3, 4), dtype=np.int64) for counts in (real, simulated)]
    assert events[1].mean() == pytest.approx(events[0].mean(), rel=0.05)
    assert np.corrcoef(*events)[0, 1] > 0.96
    on = [counts[:, :, 1].sum() / counts.sum() for counts in (real, simulated)]
    assert on[1] == pytest.approx(on[0], abs=0.01)
    profiles = [counts.sum((0, 2, 3, 4)) / counts.sum() for counts in (real, simulated)]
    assert np.abs(profiles[0] - profiles[1]).sum() / 2 < 0.08
