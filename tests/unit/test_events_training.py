"""Events and encoded pictures on their way into a network: configs, augmentation, runs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny
from torch import Tensor

from dpap.config import Config, DataConfig, ModelConfig, from_dict, override, to_dict, to_toml
from dpap.data import EVENTS, EventSettings, load_dataset
from dpap.data.augment import Augment, random_drop, random_jitter, random_rotation
from dpap.data.encoding import Encoding
from dpap.data.events import EVENT_SOURCES
from dpap.data.spec import Dataset, DataSpec, Split
from dpap.errors import DPAPError
from dpap.report.history import read_history
from dpap.report.page import write_report
from dpap.training.data import BATCH, evaluation_batch, in_format, load_data, spec_of
from dpap.training.evaluate import evaluate_run
from dpap.training.loop import resume, train
from dpap.training.run import Run


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(*shape: int, most: int = 4) -> Tensor:
    return torch.randint(0, most, shape, generator=generator(9)).float()


# ------------------------------------------------------------------------------------------------------------ encoding


def test_latency_by_hand() -> None:
    pictures = torch.tensor([1.0, 0.76, 0.5, 0.26, 0.01, 0.0]).view(1, 1, 2, 3)
    spikes = Encoding(name="latency", num_steps=5)(pictures)
    assert spikes.shape == (5, 1, 1, 2, 3)
    assert spikes.flatten(1).argmax(0).tolist()[:5] == [0, 1, 2, 3, 4]
    assert spikes.sum(0).flatten().tolist() == [1, 1, 1, 1, 1, 0], "one spike each, none of a black pixel"


def test_rate_is_the_intensity() -> None:
    pictures = torch.tensor([0.0, 0.25, 0.9, 1.0]).view(1, 1, 2, 2)
    spikes = Encoding(name="rate", num_steps=20_000)(pictures, generator())
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    rates = spikes.mean(0).flatten()
    assert rates[0] == 0
    assert rates[3] == 1
    assert rates[1:3].tolist() == pytest.approx([0.25, 0.9], abs=0.015)  # four standard errors
    later, sooner = spikes[1:, 0, 0, 0, 1], spikes[:-1, 0, 0, 0, 1]
    assert float(((later - 0.25) * (sooner - 0.25)).mean()) == pytest.approx(0, abs=0.01), "steps are independent"


def test_what_is_drawn_does_not_depend_on_the_batches() -> None:
    pictures = torch.rand(10, 1, 3, 3, generator=generator())
    data = Dataset(
        spec=DataSpec(
            name="n", shape=(1, 3, 3), classes=("a", "b"), credit="", encoding=Encoding(name="rate", num_steps=4)
        ),
        **{name: Split(images=pictures, labels=torch.arange(10) % 2) for name in ("train", "validation", "test")},
    )
    whole = torch.cat([seen for seen, _ in data.batches(data.test, 10)], 1)
    assert torch.equal(torch.cat([seen for seen, _ in data.batches(data.test, 3)], 1), whole)
    assert torch.equal(torch.cat([seen for seen, _ in data.batches(data.test, 10)], 1), whole), "every pass"
    assert not torch.equal(data.spec.encoding(pictures, generator(1)), whole)  # type: ignore[misc]


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_only_pictures_from_0_to_1_are_encoded(wrong: float) -> None:
    with pytest.raises(DPAPError, match="lie between"):
        Encoding(name="rate", num_steps=2)(torch.tensor([0.5, wrong]).view(1, 1, 1, 2))


@pytest.mark.parametrize(("name", "steps"), [("rates", 2), ("rate", 0)])
def test_encodings_that_are_not_there(name: str, steps: int) -> None:
    with pytest.raises(DPAPError, match="An encoding is"):
        Encoding(name=name, num_steps=steps)


# --------------------------------------------------------------------------------------------------------- augmentation


def test_frames_of_a_recording_move_alike() -> None:
    still = counts(6, 1, 2, 8, 8).expand(6, 5, 2, 8, 8).contiguous()
    moved = Augment(crop=3, flip=True, rotation=30).of_frames(still, generator())
    assert moved.shape == still.shape
    for step in range(1, 5):
        assert torch.equal(moved[:, step], moved[:, 0])
    assert not torch.equal(moved, still)
    assert Augment().of_frames(still, generator()).eq(still).all()


def test_counts_stay_counts() -> None:
    frames = counts(6, 5, 2, 8, 9)
    found = Augment(crop=2, flip=True, rotation=45, drop=0.3, jitter=2).of_frames(frames, generator())
    assert torch.equal(found, found.round())
    assert 0 <= found.min() <= found.max() <= frames.max()
    assert torch.equal(frames, counts(6, 5, 2, 8, 9)), "never changed in place"


def test_drop_thins_every_count_by_itself() -> None:
    frames = torch.full((2, 50, 2, 20, 20), 10.0)
    kept = random_drop(frames, 0.3, generator())
    assert float(kept.mean()) == pytest.approx(7, abs=0.03)
    assert float(kept.var()) == pytest.approx(10 * 0.3 * 0.7, rel=0.05), "binomial, not all events of a pixel at once"
    assert torch.equal(random_drop(torch.zeros(1, 1, 1, 2, 2), 0.9, generator()), torch.zeros(1, 1, 1, 2, 2))


def test_jitter_moves_in_time_and_lets_nothing_in() -> None:
    frames = torch.arange(1.0, 6).view(1, 5, 1, 1, 1).expand(64, 5, 1, 1, 1)
    found = {tuple(row) for row in random_jitter(frames, 2, generator()).flatten(1).int().tolist()}
    assert found == {(1, 2, 3, 4, 5), (2, 3, 4, 5, 0), (3, 4, 5, 0, 0), (0, 1, 2, 3, 4), (0, 0, 1, 2, 3)}


@pytest.mark.parametrize("size", [(7, 7), (6, 10)])
def test_rotation_about_the_middle(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    images = counts(1, 2, *size)
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.ones(n, dtype=torch.float64))  # the largest angle
    assert torch.equal(random_rotation(images, 180, generator()), images.flip(2, 3))
    quarter = random_rotation(images, 90, generator())
    height, width = size
    if height == width:
        assert torch.equal(quarter, images.rot90(1, (2, 3))) or torch.equal(quarter, images.rot90(-1, (2, 3)))
    else:  # the middle square turns, the ends leave the picture
        side = (width - height) // 2
        square = images[..., side : width - side]
        turned = quarter[..., side : width - side]
        assert torch.equal(turned, square.rot90(1, (2, 3))) or torch.equal(turned, square.rot90(-1, (2, 3)))
        assert quarter[..., :side].sum() == 0


@pytest.mark.parametrize("wrong", [{"rotation": 181}, {"drop": 1.0}, {"jitter": -1}])
def test_augmentation_of_frames_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(DPAPError, match="rotation is"):
        Augment(**wrong)


# -------------------------------------------------------------------------------------------------------------- configs


def test_what_is_for_events_alone_and_for_pictures_alone() -> None:
    events, pictures = DataConfig(name="nmnist"), DataConfig(name="mnist")
    assert events.events
    assert not pictures.events
    assert all(DataConfig(name=name, path="here" if name == "events" else None).events for name in EVENTS)
    of_events = to_dict(events).keys() - to_dict(pictures).keys()
    assert of_events == {
        "framing", "duration", "sensor", "on_bad_sample", "test_on_train", "rotation", "drop", "jitter",
    }  # fmt: skip
    for name, value in (("framing", "count"), ("drop", 0.1), ("on_bad_sample", "skip"), ("duration", 5)):
        with pytest.raises(DPAPError, match=f"data.{name} = .* is not allowed") as caught:
            DataConfig(name="mnist", **{name: value})
        assert "it is for events alone" in caught.value.fix
    for name, value in (
        ("erasing", 0.1),
        ("randaugment", 3),
        ("encoding", "rate"),
        ("train_normalization", "imagenet"),
    ):
        with pytest.raises(DPAPError, match=f"data.{name} = .* is not allowed") as caught:
            DataConfig(name="nmnist", **{name: value})
        assert "it is for pictures alone" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("data.sensor", [3], "[height, width], or none"),
        ("data.sensor", [3, 0], "[height, width], or none"),
        ("data.duration", 0, "a whole number, at least 1, or none"),
        ("data.rotation", 46, "a number from 0 to 45"),
        ("data.drop", 1, "a number from 0 to below 1"),
        ("data.jitter", -1, "a whole number, at least 0"),
        ("data.test_on_train", True, "hold_out true"),
    ],
)
def test_bad_values(key: str, value: Any, allowed: str) -> None:
    name = key.partition(".")[2]
    with pytest.raises(DPAPError) as caught:
        from_dict({"data": {"name": "events", "path": "here", name: value}})
    assert key in caught.value.where
    assert allowed in caught.value.fix


def test_events_and_spikes_need_a_network_with_time() -> None:
    for data in (DataConfig(name="nmnist"), DataConfig(encoding="rate")):
        for model in (ModelConfig(name="resnet18"), ModelConfig(neuron="relu", num_steps=1)):
            with pytest.raises(DPAPError, match="model.name") as caught:
                Config(data=data, model=model)
            assert "a network with time" in caught.value.fix
        Config(data=data, model=ModelConfig(name="sew-resnet18"))


def test_noise_is_no_rate() -> None:
    with pytest.raises(DPAPError, match="data.erasing"):
        DataConfig(encoding="rate", erasing=0.1)


def test_a_config_of_events_comes_back() -> None:
    config = Config(
        data=DataConfig(name="events", path="here", sensor=(3, 4), framing="count", duration=300, drop=0.1, jitter=2)
    )
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert config.data.event_settings(7) == EventSettings(num_steps=7, by="count", duration=300, sensor=(3, 4))


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings of two classes on 8 x 8 pixels: what is ON drifts to the left or to the right."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(40):
            t = np.sort(rng.integers(0, 1000, 60))
            middle = t * 7 // 1000 if label else 7 - t * 7 // 1000
            x = (middle + rng.integers(0, 2, 60)).clip(0, 7)
            arrays = {"t": t, "x": x, "y": rng.integers(0, 8, 60), "p": rng.integers(0, 2, 60), "sensor": (8, 8)}
            np.savez(tmp_path / "own" / name / f"{number}.npz", **arrays)
    return tmp_path / "own"


def events_config(own: Path, **changes: str) -> Config:
    # The path and the name only go together.
    return override(
        tiny(data__batch_size="16", epochs="4", model__num_steps="5", data__hold_out="false"),
        {"data.name": "events", "data.path": str(own), **changes},
    )


def test_a_batch_of_events_is_frames_of_counts(own: Path) -> None:
    run = Run(events_config(own, **{"data.crop": "0"}))
    seen, labels = next(run.batches(0))
    assert seen.shape == (5, 16, 2, 8, 8)
    order = torch.randperm(len(run.samples), generator=_order(run))[:16]
    assert torch.equal(seen, run.samples.images[order].float().transpose(0, 1)), "neither scaled nor normalised"
    assert torch.equal(labels, run.samples.labels[order])
    assert run.samples.images.dtype == torch.uint8
    (again, _), (next_epoch, _) = next(run.batches(0)), next(run.batches(1))
    assert torch.equal(again, seen)
    assert not torch.equal(next_epoch, seen)


def _order(run: Run) -> torch.Generator:
    from dpap.training.randomness import generator

    return generator(run.config.seed, "order", 0)


def test_augmentation_follows_from_the_place_in_the_run(own: Path) -> None:
    settings = {"data.crop": "1", "data.drop": "0.2", "data.jitter": "1", "data.rotation": "10", "data.flip": "true"}
    run = Run(events_config(own, **settings))
    first = [seen for seen, _ in run.batches(2)]
    assert all(torch.equal(one, other) for one, (other, _) in zip(first, run.batches(2), strict=True))
    plain = next(Run(events_config(own, **{"data.crop": "0"})).batches(2))[0]
    assert not torch.equal(first[0], plain)
    assert torch.equal(first[0], first[0].round())


def test_a_run_on_events(own: Path, tmp_path: Path) -> None:
    config = events_config(own)
    done = train(config, tmp_path / "run")
    epochs = read_history(tmp_path / "run" / "history.jsonl").epochs
    assert epochs[-1].loss < epochs[0].loss
    assert 0.3 < done.result.connectivity < 0.45
    assert done.result.test_samples == 16
    assert done.result.latency_batch == 16
    page = write_report(tmp_path / "run").read_text()
    assert "data.framing" in page or "framing" in page
    again = evaluate_run(tmp_path / "run").result
    assert again.test_accuracy == done.result.test_accuracy
    assert again.synops == done.result.synops


@pytest.mark.slow
def test_a_run_on_events_goes_on_where_it_stopped(own: Path, tmp_path: Path) -> None:
    config = events_config(own, **{"data.drop": "0.1", "epochs": "3"})

    def stop(now: Any) -> None:
        if (now.epoch, now.batch) == (3, 2):
            raise KeyboardInterrupt

    whole = train(config, tmp_path / "whole").result
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", watch=stop)
    parts = resume(tmp_path / "parts").result
    assert (parts.test_accuracy, parts.synops, parts.connectivity) == (
        whole.test_accuracy, whole.synops, whole.connectivity,
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["rate", "latency"])
def test_a_run_on_encoded_pictures(encoding: str, tmp_path: Path) -> None:
    config = tiny(data__encoding=encoding, epochs="2", data__limit="300", model__num_steps="5")
    run = Run(config)
    seen, _ = next(run.batches(0))
    assert seen.shape == (5, 256, 1, 8, 8)
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(next(run.batches(0))[0], seen)
    done = train(config, tmp_path / "run")
    assert evaluate_run(tmp_path / "run").result.test_accuracy == done.result.test_accuracy


def test_facts_of_a_set_without_it(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DPAP_DATA", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name, source in EVENT_SOURCES.items():
        spec = spec_of(Config(data=DataConfig(name=name), model=ModelConfig(num_steps=7)))
        assert (spec.name, spec.shape, spec.num_steps) == (name, source.shape, 7)
        assert len(spec.classes) == {"dvsgesture": 11, "ncaltech101": 101, "shd": 20, "ssc": 35}.get(name, 10)
    assert spec_of(Config(data=DataConfig(name="mnist"))).encoding is None
    encoded = spec_of(Config(data=DataConfig(name="mnist", encoding="rate"), model=ModelConfig(num_steps=3)))
    assert encoded.encoding == Encoding(name="rate", num_steps=3)
    assert encoded.timed
    assert spec_of(events_config(own)).name == "own"


def test_batches_of_evaluation_fit_into_memory(own: Path) -> None:
    data = load_data(events_config(own))
    assert evaluation_batch(data.spec) == BATCH
    big = DataSpec(name="big", shape=(2, 128, 128), classes=("a", "b"), credit="", num_steps=20)
    assert 1 <= evaluation_batch(big) * 20 * 2 * 128 * 128 <= 2**22
    still = DataSpec(name="still", shape=(3, 512, 512), classes=("a", "b"), credit="")
    assert evaluation_batch(still) == BATCH


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 3, 4, 5, 6)])
def test_memory_formats_of_pictures_with_and_without_time(shape: tuple[int, ...]) -> None:
    seen = torch.rand(shape)
    found = in_format(seen, torch.channels_last)
    assert torch.equal(found, seen)
    assert found.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)
    assert in_format(seen.transpose(0, 1), torch.contiguous_format).is_contiguous()


def test_recordings_that_are_not_mirrored(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    spec = load_dataset("events", own, EventSettings(num_steps=2)).spec
    assert not spec.unmirrored
    monkeypatch.setattr("dpap.training.data.load_dataset", lambda *_: _with(spec, unmirrored="it is left or right"))
    with pytest.raises(DPAPError, match="are not mirrored: it is left or right") as caught:
        load_data(events_config(own, **{"data.flip": "true"}))
    assert caught.value.where == "setting data.flip"
    load_data(events_config(own))


@pytest.mark.parametrize("name", ["crop", "rotation"])
def test_spikes_of_sound_are_no_picture(monkeypatch: pytest.MonkeyPatch, own: Path, name: str) -> None:
    spec = load_dataset("events", own, EventSettings(num_steps=2)).spec
    monkeypatch.setattr("dpap.training.data.load_dataset", lambda *_: _with(spec, shape=(700, 1, 1)))
    with pytest.raises(DPAPError, match="no picture to move or turn") as caught:
        load_data(events_config(own, **{"data.crop": "0"} | {f"data.{name}": "1"}))
    assert caught.value.where == f"setting data.{name}"


def _with(spec: DataSpec, **changes: Any) -> Dataset:
    from dataclasses import replace

    spec = replace(spec, **changes)
    split = Split(images=torch.zeros(2, *spec.sample_shape, dtype=torch.uint8), labels=torch.tensor([0, 1]))
    return Dataset(spec=spec, train=split, validation=split, test=split)
