"""Settings of a run: what each does to batches, rates, weights and what is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny
from torch import Tensor, nn

from dpap.config import DevelopmentConfig, OptimizerConfig, override
from dpap.data import Dataset, load_dataset
from dpap.data.spec import unit_range
from dpap.errors import DPAPError
from dpap.io import load
from dpap.method.scores import TIME_SCORES
from dpap.metrics import accuracy
from dpap.recipes import recipe
from dpap.report.history import DevelopmentLine, EpochLine, read_history
from dpap.training.loop import best_after_last_death, train, train_epoch
from dpap.training.run import Run, make_rule, rate_share

# learning rates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "share"),
    [
        (0.0, 0.1 + 0.9 * 0.5),  # half of the warm-up is over at the end of the first of two steps
        (0.1, 1.0),
        (0.2, 1.0),  # the top of the cosine
        (0.45, 0.05 + 0.95 * 0.5),  # halfway down
        (0.7, 0.05),
        (0.9, 0.05),  # cooldown
    ],
)
def test_rates_by_hand(p: float, share: float) -> None:
    settings = OptimizerConfig(warmup=0.2, warmup_from=0.1, lr_end=0.05, cooldown=0.3)
    assert rate_share(p, 0.1, settings) == pytest.approx(share)


def test_rates_without_warm_up_and_cooldown() -> None:
    settings = OptimizerConfig(warmup=0.0)
    assert rate_share(0.0, 0.1, settings) == 1.0
    assert rate_share(0.5, 0.1, settings) == pytest.approx(0.5)
    assert rate_share(0.9, 0.1, settings) == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)


def test_a_run_of_warm_up_and_cooldown_alone() -> None:
    settings = OptimizerConfig(warmup=0.5, cooldown=0.5, lr_end=0.25)
    assert [rate_share(p / 4, 0.25, settings) for p in range(4)] == [0.5, 1.0, 1.0, 0.25]


# batches -------------------------------------------------------------------------------------------------------------


def test_a_limit_takes_a_fixed_stratified_part() -> None:
    whole, part = Run(tiny(development__rule="none")), Run(tiny(development__rule="none", data__limit="300"))
    counts = whole.samples.labels.bincount()
    assert part.samples.labels.bincount().tolist() == [round(300 / 1078 * n) for n in counts.tolist()]
    assert torch.equal(part.samples.images, Run(tiny(seed="1", data__limit="300")).samples.images)
    rows = {tuple(image) for image in whole.samples.images.flatten(1).tolist()}
    assert all(tuple(image) in rows for image in part.samples.images.flatten(1).tolist())
    assert len(part.data.test) == 450, "what is measured is whole"
    assert len(Run(tiny(development__rule="none", data__limit="1078")).samples) == 1078


def test_a_limit_above_the_samples_is_refused() -> None:
    with pytest.raises(DPAPError, match="data.limit = 1079, but there are 1078 training samples"):
        Run(tiny(data__limit="1079"))


def colour(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The digits in three colours of bytes, with a mean and a standard deviation."""
    digits = load_dataset("digits")
    scale = torch.tensor([255.0, 128.0, 64.0]).reshape(1, 3, 1, 1)
    splits = {
        name: replace(part, images=(part.images * scale).to(torch.uint8))
        for name, part in (("train", digits.train), ("validation", digits.validation), ("test", digits.test))
    }
    spec = replace(digits.spec, shape=(3, 8, 8), mean=(0.3, 0.2, 0.1), std=(0.4, 0.2, 0.1))
    data = Dataset(spec=spec, **splits)
    monkeypatch.setattr("dpap.training.data.load_dataset", lambda name, path: data)
    return data


def test_training_images_may_be_normalised_unlike_those_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    data = colour(monkeypatch)
    pixels = {name: [] for name in ("data", "imagenet")}
    for name, found in pixels.items():
        run = Run(tiny(data__train_normalization=name, data__crop="0"))
        images, _ = next(run.batches(0))
        found.append(images)
        tested, _ = next(run.data.batches(run.data.test, 256))
        torch.testing.assert_close(tested, data.spec.prepared(data.test.images[:256]))
    (own,), (imagenet,) = pixels["data"], pixels["imagenet"]

    def raw(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return images * torch.tensor(std).reshape(1, 3, 1, 1) + torch.tensor(mean).reshape(1, 3, 1, 1)

    torch.testing.assert_close(
        raw(own, data.spec.mean, data.spec.std), raw(imagenet, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    assert (own - imagenet).abs().max() > 0.5


def test_imagenet_has_three_channels() -> None:
    with pytest.raises(DPAPError, match="of three channels") as caught:
        Run(tiny(data__train_normalization="imagenet"))
    assert "data.train_normalization" in str(caught.value)


def test_black_comes_in_at_the_border_before_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    data = colour(monkeypatch)
    run = Run(tiny(data__crop="4", data__flip="true", development__rule="none"))
    images, _ = next(run.batches(0))
    black = data.spec.normalized(torch.zeros(1, 3, 1, 1))
    corner = images[:, :, 0, 0]
    assert (corner == black.reshape(3)).all(1).float().mean() > 0.5, "most crops have a black corner"
    assert torch.equal(images, next(run.batches(0))[0]), "the same position of a run, the same batch"
    assert not torch.equal(images, next(run.batches(1))[0])


def test_erasing_puts_noise_on_normalised_images(monkeypatch: pytest.MonkeyPatch) -> None:
    colour(monkeypatch)
    plain, erased = (
        next(Run(tiny(data__crop="0", data__erasing=share, development__rule="none")).batches(0))[0]
        for share in ("0.0", "1.0")
    )
    changed = (plain != erased).any(1)
    assert 0.02 < changed.float().mean() < 0.6
    assert (erased.movedim(1, -1)[changed] < plain.min()).any(), "darker than black: it is noise around zero"


# precision and memory format -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["dpap", "none"])
def test_bfloat16_on_a_cpu(rule: str) -> None:
    run = Run(tiny(optimizer__precision="bfloat16", development__rule=rule))
    seen: list[torch.dtype] = []
    run.model.get_submodule("fc1").register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    images, labels = next(run.batches(0))
    outputs, loss = run.forward(images, labels)
    assert seen == [torch.bfloat16]
    assert (outputs.dtype, loss.dtype) == (torch.float32, torch.float32)
    lines = train_epoch(run, 0)
    epoch = next(line for line in lines if isinstance(line, EpochLine))
    assert math.isfinite(epoch.loss)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in run.model.parameters())


def test_float32_is_not_cast() -> None:
    run = Run(tiny(development__rule="none"))
    seen: list[torch.dtype] = []
    run.model.get_submodule("fc1").register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    run.forward(*next(run.batches(0)))
    assert seen == [torch.float32]


@pytest.mark.slow
def test_channels_last_reaches_images_and_convolutions(tmp_path: Path) -> None:
    run = Run(tiny(channels_last="true", development__rule="none"))
    images, _ = next(run.batches(0))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert run.model.get_parameter("conv2.weight").is_contiguous(memory_format=torch.channels_last)
    assert not run.model.get_parameter("conv2.weight").is_contiguous(), "the two formats must be told apart here"
    other = Run(tiny(development__rule="none"))
    other.model.load_state_dict(run.model.state_dict())
    batches = list(run.data.batches(run.data.test, 256))
    assert abs(accuracy(run.model, batches) - accuracy(other.model, batches)) <= 1e-3
    done = train(tiny(channels_last="true", epochs="2"), tmp_path / "run")
    epochs = read_history(tmp_path / "run" / "history.jsonl").epochs
    assert all(math.isfinite(line.loss) for line in epochs)
    assert done.result.connectivity < 1
    plain = train(tiny(epochs="2"), tmp_path / "plain")
    assert abs(epochs[0].loss - read_history(tmp_path / "plain" / "history.jsonl").epochs[0].loss) < 1e-2
    assert done.result.units == plain.result.units


# the mean of the weights ---------------------------------------------------------------------------------------------


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}


def test_the_mean_of_the_weights_by_hand() -> None:
    """The first update takes the weights as they are; the next: mean <- 0.75 mean + 0.25 weight; statistics too."""
    run = Run(tiny(optimizer__ema="0.75"))
    assert run.averaged is not None
    batches = run.batches(0)
    seen = []
    for _ in range(3):
        _, loss = run.forward(*next(batches))
        run.update(loss)
        seen.append(weights(run.model))
    first, second, third = seen
    for name, mean in weights(run.averaged.module).items():
        wanted = 0.75 * (0.75 * first[name] + 0.25 * second[name]) + 0.25 * third[name]
        torch.testing.assert_close(mean, wanted, msg=name)
    assert {"norm1.running_mean", "fc1.weight"} <= first.keys()
    assert (first["fc1.weight"] - third["fc1.weight"]).abs().max() > 1e-3


def test_the_mean_is_what_is_measured_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    means: list[dict[str, Tensor]] = []
    real = Run.final_model

    def final_model(self: Run) -> nn.Module:
        assert self.averaged is not None
        runs.append(self)
        means.append(weights(self.averaged.module))
        assert not torch.equal(means[0]["fc1.weight"], self.model.get_parameter("fc1.weight"))
        return real(self)

    monkeypatch.setattr(Run, "final_model", final_model)
    config = tiny(optimizer__ema="0.9", epochs="4", test_each_epoch="true")
    result = train(config, tmp_path / "run").result
    ((run,), (mean,)) = runs, means
    assert run.dev is not None and run.averaged is not None
    epochs = read_history(tmp_path / "run" / "history.jsonl").epochs
    assert result.test_accuracy == epochs[-1].test_accuracy
    assert epochs[-1].validation_accuracy == accuracy(run.averaged.module, run.data.batches(run.data.validation, 256))
    # What is dead is zero in the mean, not a rest of what it was.
    dead = {name: ~mask for name, mask in run.dev.synapse_masks.items()}
    assert any(mask.any() for mask in dead.values())
    for name, mask in dead.items():
        assert (mean[name][mask] == 0).all(), name
    saved = load(tmp_path / "run" / "model")
    alive = run.dev.alive["fc1"]
    torch.testing.assert_close(saved.get_parameter("classifier.weight"), mean["classifier.weight"][:, alive])
    torch.testing.assert_close(saved.get_buffer("norm3.running_mean"), mean["norm3.running_mean"][alive])


def test_without_a_mean_the_weights_are_measured() -> None:
    run = Run(tiny())
    assert run.averaged is None
    assert run.measured is run.model


# what is measured after every epoch ----------------------------------------------------------------------------------


def epoch_line(epoch: int, test_accuracy: float | None) -> EpochLine:
    return EpochLine(
        epoch=epoch,
        loss=1.0,
        train_accuracy=0.5,
        validation_accuracy=None,
        test_accuracy=test_accuracy,
        lr=0.1,
        connectivity=1.0,
        alive_units={},
        seconds=1.0,
        samples_per_second=1.0,
    )


def death(epoch: int, *, units: int = 0, isolated: int = 0, synapses: int = 0) -> DevelopmentLine:
    return DevelopmentLine(
        epoch=epoch,
        step=1,
        progress=0.5,
        connectivity=0.9,
        died_units={"fc1": list(range(units))} if units else {},
        isolated_units={"fc1": list(range(isolated))} if isolated else {},
        died_synapses={"fc1.weight": synapses} if synapses else {},
    )


@pytest.mark.parametrize("last", [{"units": 1}, {"isolated": 1}, {"synapses": 3}])
def test_the_best_epoch_is_one_after_the_last_death(last: dict[str, int]) -> None:
    accuracies = {1: 0.9, 2: 0.6, 3: 0.7, 4: 0.8, 5: 0.75}
    epochs = {n: epoch_line(n, value) for n, value in accuracies.items()}
    lines = [epochs[1], death(2, units=1), epochs[2], death(3, **last), epochs[3], death(4), epochs[4], epochs[5]]
    assert best_after_last_death(lines) == 0.8, "not the 0.9 of the network that was still whole"
    assert best_after_last_death([death(2, **last), epochs[2], epochs[3]]) == 0.7
    assert best_after_last_death([*lines, death(5, **last)]) == 0.75
    assert best_after_last_death([epochs[1], epochs[2], death(2)]) == 0.9, "a step without deaths is none"


def test_no_best_epoch_when_none_was_measured() -> None:
    assert best_after_last_death([epoch_line(1, None), epoch_line(2, None)]) is None


@pytest.mark.slow
def test_the_test_split_after_every_epoch_changes_nothing_else(tmp_path: Path) -> None:
    """Four epochs; the window ends at half of the run, so the last death is in the second."""
    measured = train(tiny(epochs="4", test_each_epoch="true", data__hold_out="false"), tmp_path / "a").result
    plain = train(tiny(epochs="4", data__hold_out="false"), tmp_path / "b").result
    a, b = (read_history(tmp_path / name / "history.jsonl") for name in "ab")
    accuracies = [line.test_accuracy for line in a.epochs]
    assert all(value is not None and 0 <= value <= 1 for value in accuracies)
    assert all(line.test_accuracy is None for line in b.epochs)
    assert accuracies[-1] == measured.test_accuracy == plain.test_accuracy
    last = max(line.epoch for line in a.development if line.died_units or line.died_synapses)
    assert 1 < last < 4
    assert measured.best_test_accuracy == max(value or 0 for value in accuracies[last - 1 :])
    assert plain.best_test_accuracy is None
    assert [line.loss for line in a.epochs] == [line.loss for line in b.epochs]


# rules and scores ----------------------------------------------------------------------------------------------------


def test_scores_and_levels_reach_the_rule() -> None:
    rule = make_rule(DevelopmentConfig(unit_score="outgoing", synapse_score="magnitude", kappa_unit=0.1))
    plain = make_rule(DevelopmentConfig())
    run = Run(tiny(development__unit_score="norm-scale", development__synapse_score="bcm"))
    assert run.dev is not None
    assert rule.score is not plain.score
    assert rule.score.needs == frozenset({"outgoing"})  # type: ignore[attr-defined]
    assert make_rule(DevelopmentConfig(rule="paper")).name == "paper"
    assert make_rule(DevelopmentConfig(time_score="random")).time_score is TIME_SCORES["random"]
    assert plain.time_score is TIME_SCORES["importance"]
    assert {"norm_scale", "pairs"} <= run.dev.rule.score.needs  # type: ignore[attr-defined]


def test_a_part_of_a_batch_in_bytes_is_seen_in_the_unit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    data = colour(monkeypatch)
    run = Run(tiny(data__crop="0", development__rule="none"))
    images, labels = next(run.batches(0))
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (data.spec.mean, data.spec.std))
    wanted = {tuple((image * 255).round().flatten().tolist()) for image in unit_range(data.train.images)}
    found = ((images * std + mean) * 255).round()
    assert all(tuple(image.flatten().tolist()) in wanted for image in found)
    assert len(images) == len(labels) == 256


def test_a_last_batch_of_one_sample_is_refused_where_a_norm_would_stumble() -> None:
    digits = recipe("digits-snn")
    with pytest.raises(DPAPError, match="is a single sample"):
        Run(override(digits, {"data.batch_size": "2"}))
    assert Run(override(digits, {"data.batch_size": "2", "data.full_batches": "true"})).batch_count == 673
    assert Run(override(digits, {"data.batch_size": "2", "model.norm": "false"})).batch_count == 674


def test_a_limit_that_empties_a_class_is_refused() -> None:
    with pytest.raises(DPAPError, match="leaves no sample of class"):
        Run(override(recipe("digits-snn"), {"data.limit": "3"}))


def test_a_released_run_and_its_control_have_the_same_batches() -> None:
    no_target = {"development.target.connectivity": "none", "development.target.macs": "none"}
    config = override(recipe("digits-snn"), {"development.rule": "released"} | no_target)
    assert Run(config).batch_count == Run(config.as_control()).batch_count == 21
