"""What a run writes of its neurons, step by step, beside what died in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import tiny

from dpap.report.files import RunFiles, read_run
from dpap.report.history import ResultLine
from dpap.report.page import page
from dpap.report.time_page import layers, silent_share
from dpap.training.activity import SIDE, _small
from dpap.training.loop import train

NEURONS = {"neuron1": "conv1", "neuron2": "conv2", "neuron3": "fc1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(tiny(control="true", development__time="leak", development__target__macs="0.5"), path)
    return read_run(path)


def finished(files: RunFiles | None) -> ResultLine:
    assert files is not None and files.result is not None
    return files.result


def test_the_dead_fire_nothing_and_rates_are_those_of_the_living(run: RunFiles) -> None:
    dead_units = dead_pairs = spoke = 0
    for item in finished(run).steps:
        assert NEURONS[item.name] == item.group
        alive, pairs = run.development[f"alive/{item.group}"][-1], run.development[f"pairs/{item.name}"][-1]
        fired, raster = run.activity[f"fired/{item.name}"], run.activity[f"raster/{item.name}"]
        assert fired.shape == raster.shape == pairs.shape == (len(alive), 4)
        living = alive[:, None] & pairs
        assert not fired[~living].any() and not raster[~living].any()
        spoke += int((fired[living] > 0).sum())
        assert item.rates == pytest.approx(fired[alive].mean(0).tolist(), abs=1e-6)
        rate = next(neuron.rate for neuron in finished(run).neurons if neuron.name == item.group)
        assert np.mean(item.rates) == pytest.approx(rate)
        dead_units, dead_pairs = dead_units + int((~alive).sum()), dead_pairs + int((alive[:, None] & ~pairs).sum())
    assert dead_units and dead_pairs and spoke, "nobody died or fired: nothing was checked"


def test_shares_of_time_are_those_of_the_record(run: RunFiles) -> None:
    result, last = finished(run), run.history.development[-1]
    steps = [layer.living.any(axis=0) for layer in layers(run)]
    assert result.living_steps == pytest.approx(np.concatenate(steps).mean())
    assert result.living_steps == pytest.approx(last.living_steps)
    assert 1 - result.dead_pairs == pytest.approx(last.living_pairs)


def test_the_anytime_curve_is_of_networks_without_dead_pairs(run: RunFiles) -> None:
    control = finished(run.control)
    assert finished(run).anytime == []
    assert len(control.anytime) == 4
    assert control.anytime[-1] == pytest.approx(control.test_accuracy)
    assert control.dead_pairs == 0 and control.living_steps == 1


def test_the_dead_that_were_silent_anyway(run: RunFiles) -> None:
    """Weighed by the neurons of a unit."""
    assert run.control is not None
    dead = silent = 0.0
    for item in finished(run).steps:
        alive, pairs = run.development[f"alive/{item.group}"][-1], run.development[f"pairs/{item.name}"][-1]
        for unit, step in np.argwhere(~pairs):
            weight = item.positions * alive[unit]
            dead += weight
            silent += weight * (run.control.activity[f"fired/{item.name}"][unit, step] == 0)
    assert dead
    assert silent_share(run) == pytest.approx(silent / dead)


def test_the_page_of_the_run_shows_it(run: RunFiles) -> None:
    markup = page(run.path)
    for name in ("pair-maps", "step-rates", "rasters", "living-steps", "anytime"):
        assert f'id="{name}"' in markup
    assert "frames" not in run.activity, "still pictures"
    assert run.activity["label"].shape == run.activity["answer"].shape == (1,)


def test_a_network_without_time_has_no_such_file(tmp_path: Path) -> None:
    done = train(tiny("digits-ann", epochs="2"), tmp_path / "run")
    assert not (tmp_path / "run" / "activity.npz").exists()
    assert done.result.steps == done.result.anytime == []


def test_spikes_of_encoded_pictures_are_frames(tmp_path: Path) -> None:
    train(tiny(epochs="2", data__encoding="rate"), tmp_path / "run")
    found = read_run(tmp_path / "run").activity
    assert found["frames"].shape == (3, 4, 1, 8, 8)
    assert set(np.unique(found["frames"])) == {0, 1}
    assert len(set(found["label"].tolist())) == 3


@pytest.mark.parametrize(
    ("shape", "small"),
    [((2, 34, 34), (34, 34)), ((2, 128, 100), (64, 50)), ((1, 130, 3), (44, 1)), ((70, 1, 1), (1, 1))],
)
def test_large_frames_are_added_up_and_nothing_is_lost(shape: tuple[int, int, int], small: tuple[int, int]) -> None:
    frames = torch.randint(0, 3, (2, 3, *shape)).float()
    found = _small(frames)
    assert found.shape == (2, 3, shape[0], *small)
    assert max(found.shape[-2:]) <= SIDE
    assert found.sum() == frames.sum()


def test_more_than_a_byte_holds_is_cut() -> None:
    assert int(_small(torch.full((1, 1, 1, 2, 2), 300.0)).max()) == 255
