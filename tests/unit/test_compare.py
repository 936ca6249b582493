"""Comparing runs: how they are grouped, named and paired, what is refused, and what the tables and the page say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import MadeUp, write_run
from rich.console import Console

from dpap.config import override, to_dict
from dpap.errors import DPAPError
from dpap.recipes import recipe
from dpap.report.compare import Comparison, compare_runs, compared
from dpap.report.compare_page import comparison_page, write_comparison
from dpap.report.compare_table import (
    comparison_table,
    said_accuracy,
    said_difference,
    said_p,
    said_reached,
    said_runs,
)
from dpap.report.history import LayerResult, NeuronResult, ResultLine, RunLine, from_text, to_text
from dpap.report.numbers import EpochNumbers, RunNumbers, read_numbers
from dpap.report.svg import MISSING

COUNT = itertools.count()
LAYER = LayerResult(
    name="conv1",
    kind="conv",
    outputs=8,
    alive_outputs=6,
    inputs=1,
    alive_inputs=1,
    synapses=72,
    living_synapses=36,
    macs=300,
    dense_macs=1000,
    sops=None,
)


def numbers(
    accuracy: float = 0.98,
    seed: int = 0,
    *,
    wrong: Sequence[int] | None = None,
    curve: Sequence[float | None] = (),
    made: str = "digits-snn",
    path: str = "",
    settings: dict[str, str] | None = None,
    **changes: Any,
) -> RunNumbers:
    """A pruned run on ten test samples; `settings` are changes of its config."""
    config = replace(recipe(made), seed=seed)
    for key, value in (settings or {}).items():
        config = override(config, {key: value})
    correct = None
    if wrong is not None:
        correct = np.ones(10, dtype=np.bool_)
        correct[list(wrong)] = False
    values: dict[str, Any] = {
        "path": path or f"runs/{next(COUNT)}",
        "seed": seed,
        "fold": None,
        "config": to_dict(config),
        "environment": {},
        "split": "test",
        "accuracy": accuracy,
        "best_accuracy": None,
        "correct": correct,
        "epochs": tuple(
            EpochNumbers(accuracy=a, seconds=2.0, connectivity=1 - 0.1 * k) for k, a in enumerate(curve, 1)
        ),
        "connectivity": 0.1,
        "connectivity_conv": 0.5,
        "macs": 300.0,
        "dense_macs": 1000.0,
        "synops": 50.0,
        "energy_pj": 40.0,
        "parameters": 20,
        "dense_parameters": 100,
        "layers": (LAYER,),
        "neurons": (NeuronResult(name="conv1", units=6, silent=3, rate=0.25),),
        "seconds": 10.0,
        "latency_ms": 2.0,
        "dense_latency_ms": 4.0,
    }
    return RunNumbers(**{**values, **changes})


def control(accuracy: float = 0.99, seed: int = 0, **changes: Any) -> RunNumbers:
    settings = {**changes.pop("settings", {}), "development.rule": "none"}
    dense = {"connectivity": 1.0, "macs": 1000.0, "synops": 200.0, "energy_pj": 80.0, "parameters": 100}
    return numbers(accuracy, seed, settings=settings, **{**dense, **changes})


def target(share: float) -> dict[str, str]:
    return {"development.target.connectivity": f"{share}"}


# arms and their names


def test_runs_that_differ_in_their_seed_are_one_arm_and_controls_come_first() -> None:
    runs = [
        numbers(0.97, 1),
        control(0.99, 1),
        numbers(0.95, 0),
        control(0.98, 0),
        numbers(0.9, 0, settings=target(0.05)),
    ]
    found = compared(runs)
    assert [(arm.name, arm.seeds, arm.accuracies) for arm in found.arms] == [
        ("control", (0, 1), (0.98, 0.99)),
        ("connectivity 0.1", (0, 1), (0.95, 0.97)),
        ("connectivity 0.05", (0,), (0.9,)),
    ]
    assert [arm.is_control for arm in found.arms] == [True, False, False]


def test_settings_on_which_nothing_depends_make_no_arm() -> None:
    runs = [
        numbers(0.97, 0, settings={"control": "true", "test_each_epoch": "true"}),
        numbers(0.97, 1, settings={"control": "false", "recipe": "mine"}),
    ]
    assert [arm.name for arm in compared(runs).arms] == ["dpap"]


def test_a_run_older_than_a_setting_is_of_one_arm_with_those_that_leave_it_out() -> None:
    old = numbers(seed=0)
    config = to_dict(recipe("digits-snn"))
    del config["data"]["folds"], config["development"]["time_score"]
    older = numbers(seed=1, config=config)
    assert [arm.seeds for arm in compared([old, older]).arms] == [(0, 1)]


def test_without_pruning_it_does_not_matter_how_one_would_have_pruned() -> None:
    runs = [control(seed=0, settings=target(0.3)), control(seed=1, settings=target(0.2))]
    assert [arm.seeds for arm in compared(runs).arms] == [(0, 1)]


def test_an_interval_of_a_cross_validation_is_over_folds_and_runs_are_paired_by_fold() -> None:
    def at(fold: int) -> dict[str, str]:
        return {"data.folds": "3", "data.fold": f"{fold}"}

    dense = [control(0.90 + 0.02 * fold, seed, fold=fold, settings=at(fold)) for fold in range(3) for seed in (0, 1)]
    drop = {(0, 0): 0.01, (0, 1): 0.03, (1, 0): 0.02, (1, 1): 0.04, (2, 0): 0.03, (2, 1): 0.05}
    small = [
        numbers(0.90 + 0.02 * fold - less, seed, fold=fold, settings=at(fold)) for (fold, seed), less in drop.items()
    ]
    found = compared([*small, *dense])
    arm = found.arms[1]
    assert found.data == "digits, 3-fold cross-validation"
    assert (arm.name, arm.seeds, arm.folds) == ("dpap", (0, 0, 0, 1, 1, 1), 3)
    assert arm.control is not None
    assert arm.control.accuracy.n == 3
    assert arm.control.accuracy.mean == pytest.approx(-0.03)
    assert arm.control.accuracy.sd == pytest.approx(0.01)  # of -0.02, -0.03, -0.04: the mean of each fold
    with pytest.raises(DPAPError, match=r"Seed 1 fold 2 of arm 'dpap' cannot be paired"):
        compared([*small, *dense[:-1]])


def test_words_of_a_cross_validation_speak_of_folds() -> None:
    def runs(make: Callable[..., RunNumbers], places: Sequence[tuple[int, int]]) -> list[RunNumbers]:
        return [
            make(0.9, seed, fold=fold, settings={"data.folds": "3", "data.fold": f"{fold}"}) for fold, seed in places
        ]

    grid = [(fold, seed) for fold in range(3) for seed in range(2)]
    full = compared([*runs(numbers, grid[:-1]), *runs(control, grid)])
    assert [said_runs(arm) for arm in full.arms] == ["2 x 3 folds", "5 in 3 folds"]
    text = comparison_page(full)
    assert "means over folds" in text and "Paired by seed and fold; lines are" in text
    one = compared([*runs(numbers, grid[:2]), *runs(control, grid[:2])])
    assert said_difference(one.arm("dpap").control) == "+0.00 (one fold, no interval)"
    text = comparison_page(one)
    assert "One fold each: no intervals." in text and "Paired by seed and fold; one fold, no intervals." in text


def test_folds_may_differ_in_size_and_splits_not() -> None:
    at = {"data.folds": "3", "data.fold": "1"}
    shorter = np.ones(9, dtype=np.bool_)
    runs = [numbers(wrong=(), fold=0, settings={"data.folds": "3"}), numbers(correct=shorter, fold=1, settings=at)]
    assert len(compared(runs).arms) == 1
    with pytest.raises(DPAPError, match="answers 10 test samples, another 9"):
        compared([numbers(wrong=()), numbers(seed=1, correct=shorter)])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{}], ["dpap"]),
        ([target(0.1), target(0.05)], ["connectivity 0.1", "connectivity 0.05"]),
        ([{}, {"development.unit_score": "magnitude"}], ["dpap", "unit_score magnitude"]),
        ([{}, {"development.rule": "paper", "development.target.connectivity": "none"}], None),
        (
            [target(0.1), {**target(0.1), "optimizer.lr": "0.5"}],
            ["lr 0.004", "lr 0.5"],
        ),
        (
            [{"data.crop": "1", "model.kernel": "5"}, {"model.kernel": "3"}],
            ["crop 1, kernel 5", "crop 0, kernel 3"],
        ),
        (
            [{"development.start": "0.2", **target(0.1)}, {"development.start": "0.3", **target(0.05)}],
            ["start 0.2, connectivity 0.1", "start 0.3, connectivity 0.05"],
        ),
    ],
)
def test_an_arm_is_named_by_what_differs(changes: list[dict[str, str]], names: list[str] | None) -> None:
    found = [arm.name for arm in compared([numbers(settings=change) for change in changes]).arms]
    assert len(set(found)) == len(changes)
    if names is not None:
        assert found == names


def test_recipes_name_the_networks_where_they_tell_them_apart() -> None:
    runs = [numbers(), numbers(made="digits-ann"), control(), control(made="digits-ann")]
    names = [arm.name for arm in compared(runs).arms]
    assert names == ["control, digits-snn", "control, digits-ann", "digits-snn", "digits-ann"]


def test_given_names_win_and_may_not_hide_different_settings() -> None:
    runs = [numbers(path="a"), numbers(seed=1, path="b"), numbers(settings=target(0.05), path="c")]
    names = {"a": "large", "b": "large", "c": "small"}
    assert [(arm.name, arm.seeds) for arm in compared(runs, names=names).arms] == [("large", (0, 1)), ("small", (0,))]
    with pytest.raises(DPAPError, match="arm 'large' have different settings"):
        compared(runs, names={**names, "c": "large"})


def test_arms_of_one_series_differ_in_their_target_alone() -> None:
    score = {"development.unit_score": "random"}
    runs = [numbers(settings={**target(x), **s}) for s in ({}, score) for x in (0.1, 0.05)]
    series = [arm.series for arm in compared(runs).arms]
    assert series == ["dpap", "dpap", "unit_score random", "unit_score random"]


# pairs


def test_the_difference_is_paired_by_seed_not_by_place() -> None:
    runs = [numbers(0.98, 0), numbers(0.96, 1), control(0.98, 1), control(0.99, 0)]
    difference = compared(runs).arm("dpap").control
    assert difference is not None
    assert difference.seeds == ("0", "1")
    assert difference.accuracy.mean == pytest.approx(-0.015)
    assert difference.accuracy.sd == pytest.approx(0.01 / 2**0.5)  # of -0.01 and -0.02
    assert difference.accuracy.low == pytest.approx(-0.015 - 12.7062 * 0.005, abs=1e-6)
    assert said_difference(difference) == "-1.50 [-7.85, +4.85]"


def test_answers_are_pooled_over_the_pairs() -> None:
    runs = [
        numbers(0.8, 0, wrong=[0, 1]),
        numbers(0.7, 1, wrong=[5, 6, 7]),
        control(0.9, 1, wrong=[9]),
        control(0.9, 0, wrong=[1]),
    ]
    difference = compared(runs).arm("dpap").control
    assert difference is not None
    assert difference.answers is not None
    assert (difference.answers.only_first, difference.answers.only_second) == (1, 4)
    assert difference.answers.p_value == pytest.approx(2 * (1 + 5) / 2**5)
    assert said_p(difference) == "0.38"


def test_one_seed_has_no_interval_and_says_so() -> None:
    arm = compared([numbers(0.97), control(0.98)]).arm("dpap")
    assert said_accuracy(arm.accuracy) == "97.00 %"
    assert said_difference(arm.control) == "-1.00 (one seed, no interval)"


def test_a_control_is_of_the_same_network() -> None:
    other = {"model.hidden": "[32]"}
    found = compared([numbers(settings=other), control()])
    assert found.arms[1].control is None
    assert any("No unpruned control: hidden [32]" in note for note in found.notes)
    found = compared([numbers(settings=other), control(), control(0.5, settings=other)])
    assert said_difference(found.arm("hidden [32]").control) == "+48.00 (one seed, no interval)"


def test_without_a_control_there_is_no_difference_and_that_is_no_error() -> None:
    found = compared([numbers(0.97), numbers(0.96, 1)])
    arm = found.arm("dpap")
    assert (arm.control, arm.synops, arm.energy, arm.convergence) == (None, None, None, None)
    assert arm.macs == pytest.approx(0.3)
    assert found.notes == ("No unpruned control: dpap. No difference to it is given.",)


def test_seeds_without_a_partner_are_named() -> None:
    runs = [numbers(0.97, seed, path=f"runs/s{seed}") for seed in range(3)] + [control(0.98, 1)]
    with pytest.raises(DPAPError, match="Seed 0, 2 of arm 'dpap' cannot be paired") as caught:
        compared(runs)
    assert caught.value.where == "runs/s0, runs/s2"
    found = compared(runs, strict=False)
    difference = found.arm("dpap").control
    assert difference is not None
    assert (difference.seeds, difference.unpaired, difference.accuracy.n) == (("1",), ("0", "2"), 1)
    assert found.notes == ("dpap: no control with seed 0, 2; the difference is over seed 1.",)
    assert compared([numbers(0.97, 5), control(0.98, 1)], strict=False).arm("dpap").control is None


def test_more_controls_than_runs_are_no_problem() -> None:
    found = compared([numbers(0.97, 1), *(control(0.98, seed) for seed in range(3))])
    assert found.arm("control").accuracy.n == 3
    assert said_difference(found.arm("dpap").control) == "-1.00 (one seed, no interval)"


def test_another_arm_to_compare_with_by_name_or_by_folder(tmp_path: Path) -> None:
    runs = [
        numbers(0.97, wrong=[0], path=str(tmp_path / "a")),
        numbers(0.93, wrong=[1], settings=target(0.05)),
        control(0.98, wrong=[]),
    ]
    for against in ("connectivity 0.1", str(tmp_path / "b" / ".." / "a")):
        found = compared(runs, against=against)
        assert said_difference(found.arm("connectivity 0.05").against) == "-4.00 (one seed, no interval)"
        assert found.arm("connectivity 0.1").against is None
    one = compared(runs, against={"connectivity 0.05": "connectivity 0.1"})
    assert [arm.against is None for arm in one.arms] == [True, True, False]
    assert compared(runs, against="control").arm("connectivity 0.05").against is None  # it stands there already
    with pytest.raises(DPAPError, match="no arm named 'connectivity 0.2'") as caught:
        compared(runs, against="connectivity 0.2")
    assert "connectivity 0.1" in caught.value.fix


def test_an_unknown_arm() -> None:
    with pytest.raises(DPAPError, match="no arm named 'dpep'"):
        compared([numbers()]).arm("dpep")


def test_controls_inside_runs_are_one_when_their_seeds_are() -> None:
    runs = [
        numbers(0.97, settings=target(0.1)),
        numbers(0.96, settings=target(0.05)),
        control(0.98, path="a/control"),
        control(0.98, path="b/control"),
    ]
    assert compared(runs).notes == ()
    assert compared(runs).arm("control").accuracy.n == 1
    (note,) = compared([*runs, control(0.97, path="c/control")]).notes
    assert "98.00 % (a/control) and 97.00 % (c/control)" in note


# numbers


def test_shares_are_of_the_dense_network_or_of_the_control_of_the_seed() -> None:
    runs = [
        numbers(seed=0),
        numbers(seed=1, macs=500.0, synops=90.0, connectivity=0.3, latency_ms=1.0),
        control(seed=0),
        control(seed=1, synops=100.0),
    ]
    arm = compared(runs).arm("dpap")
    assert arm.connectivity == pytest.approx(0.2)
    assert arm.macs == pytest.approx(0.4)
    assert arm.synops == pytest.approx((50 / 200 + 90 / 100) / 2)
    assert arm.energy == pytest.approx(0.5)
    assert arm.parameters == pytest.approx(0.2)
    assert arm.latency == pytest.approx((0.5 + 0.25) / 2)
    assert [(x.name, x.unit_density, x.synapse_density) for x in arm.layers] == [("conv1", 0.75, 0.5)]
    assert [(x.rate, x.silent) for x in arm.neurons] == [(0.25, 0.5)]


def test_what_one_seed_does_not_know_no_mean_pretends_to_know() -> None:
    runs = [numbers(seed=0), numbers(seed=1, latency_ms=None, seconds=None, connectivity_conv=None)]
    arm = compared(runs).arm("dpap")
    assert (arm.latency, arm.seconds, arm.connectivity_conv) == (None, None, None)


def test_a_network_without_spikes_has_no_share_of_sops() -> None:
    arm = compared([numbers(synops=0.0), control(synops=0.0)]).arm("dpap")
    assert arm.synops is None
    assert "synops" not in comparison_page(compared([numbers(synops=0.0), control(synops=0.0)]))


def test_the_papers_protocol_stands_apart() -> None:
    assert compared([numbers(best_accuracy=0.99), numbers(seed=1)]).arm("dpap").best_accuracy is None
    best = compared([numbers(best_accuracy=0.99), numbers(seed=1, best_accuracy=0.97)]).arm("dpap").best_accuracy
    assert best is not None
    assert best.mean == pytest.approx(0.98)


def test_convergence_is_to_the_final_accuracy_of_the_control_of_the_seed() -> None:
    runs = [
        numbers(seed=0, curve=[0.8, 0.95, 0.9]),
        numbers(seed=1, curve=[0.8, 0.85, 0.97]),
        numbers(seed=2, curve=[0.1, 0.2, 0.3]),
        control(seed=0, curve=[0.7, 0.96, 0.94]),
        control(seed=1, curve=[0.7, 0.98, 0.97]),
        control(seed=2, curve=[0.7, 0.8, 0.9]),
    ]
    found = compared(runs).arm("dpap").convergence
    assert found is not None
    assert (found.runs, found.reached) == (3, 2)
    assert (found.epochs, found.seconds) == (2.5, 5.0)
    assert found.connectivity == pytest.approx((0.8 + 0.7) / 2)
    assert said_reached(found) == "2.5 epochs, 5.00 s (2 of 3)"
    own = compared(runs).arm("control").convergence
    assert own is not None
    assert own.epochs == pytest.approx((2 + 2 + 3) / 3)


def test_convergence_that_is_not_reached_or_not_recorded() -> None:
    found = compared([numbers(curve=[0.1]), control(curve=[0.9])]).arm("dpap").convergence
    assert said_reached(found) == "not reached (0 of 1)"
    for mine, theirs in (((), ()), ((None, None), (0.9, 0.9)), ((0.9, 0.9), (0.9, None))):
        assert compared([numbers(curve=mine), control(curve=theirs)]).arm("dpap").convergence is None
    assert said_reached(None) == MISSING


def test_one_epoch_is_one() -> None:
    found = compared([numbers(curve=[0.9]), control(curve=[0.9])]).arm("dpap").convergence
    assert said_reached(found) == "1 epoch, 2.00 s"


# what is refused


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"data.name": "mnist"}, "different data sets: data.name is digits in one and mnist"),
        ({"data.limit": "500"}, "different parts of the data: data.limit is none in one and 500"),
        ({"data.hold_out": "true"}, "data.hold_out is false in one and true"),
    ],
)
def test_runs_of_other_data_are_refused(settings: dict[str, str], what: str) -> None:
    with pytest.raises(DPAPError, match=what) as caught:
        compared([numbers(path="runs/one"), numbers(seed=1, settings=settings, path="runs/two")])
    assert caught.value.where == "runs/one and runs/two"


def test_other_test_samples_are_refused() -> None:
    with pytest.raises(DPAPError, match="One run answers 10 test samples, another 9"):
        compared([numbers(wrong=[]), numbers(seed=1, correct=np.ones(9, dtype=np.bool_))])


def test_accuracies_of_two_splits_are_refused() -> None:
    with pytest.raises(DPAPError, match="test split, another that of the validation split"):
        compared([numbers(), numbers(seed=1, split="validation")])


def test_one_arm_may_hold_a_seed_once() -> None:
    with pytest.raises(DPAPError, match="the same seed, 3") as caught:
        compared([numbers(seed=3, path="runs/a"), numbers(seed=3, path="runs/b")])
    assert caught.value.where == "runs/a and runs/b"


def test_nothing_to_compare() -> None:
    for call in (compare_runs, compared):
        with pytest.raises(DPAPError, match="no run to compare"):
            call([])


# run folders


def folder(path: Path, seed: int = 0, wrong: int = 9, *, control_wrong: int | None = 5, **settings: str) -> Path:
    """A finished run folder with answers; its first `wrong` answers are wrong."""
    changes = {"data__hold_out": "false", "test_each_epoch": "true", **settings}
    named = {key.replace("__", "."): value for key, value in changes.items()}
    write_run(path, MadeUp(epochs=3, control=control_wrong is not None, settings={**named, "seed": str(seed)}))
    answered(path, seed, wrong)
    if control_wrong is not None:
        answered(path / "control", seed, control_wrong)
    return path


def answered(path: Path, seed: int, wrong: int) -> None:
    changed = []
    for line in from_text((path / "history.jsonl").read_text(encoding="utf-8"), "here"):
        if isinstance(line, RunLine):
            line = replace(line, seed=seed)
        if isinstance(line, ResultLine):
            line = replace(line, test_accuracy=1 - wrong / 450, test_correct=450 - wrong)
        changed.append(line)
    (path / "history.jsonl").write_text(to_text(changed), encoding="utf-8")
    np.savez(path / "answers.npz", correct=np.arange(450) >= wrong)


def test_folders_are_read_with_the_controls_inside(tmp_path: Path) -> None:
    runs = [folder(tmp_path / f"s{seed}", seed) for seed in (0, 1)]
    found = compare_runs(runs)
    assert [(arm.name, arm.seeds) for arm in found.arms] == [("control", (0, 1)), ("dpap", (0, 1))]
    difference = found.arm("dpap").control
    assert difference is not None
    assert difference.accuracy.mean == pytest.approx(-4 / 450)
    assert difference.answers is not None
    assert (difference.answers.only_first, difference.answers.only_second) == (0, 8)
    assert found.arm("dpap").convergence is not None
    assert found.arm("control").paths == (str(runs[0] / "control"), str(runs[1] / "control"))


def test_a_control_may_be_given_itself(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    assert len(compare_runs([run, run / "control"]).arms) == 2
    assert [item.path for item in read_numbers([run], controls=False)] == [str(run)]


def test_the_same_run_twice(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    with pytest.raises(DPAPError, match="given twice"):
        compare_runs([run, tmp_path / "other" / ".." / "run"])


def test_the_validation_split_is_taken_where_it_is_held_out(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", wrong=450, data__hold_out="true")
    found = compare_runs([run])
    arm = found.arm("dpap")
    assert found.split == "validation"
    assert arm.accuracy.mean > 0.5  # no test answer is right
    assert arm.best_accuracy is None
    assert arm.control is not None
    assert arm.control.answers is None
    assert all(item.correct is None for item in read_numbers([run]))
    assert any("McNemar's test is left out" in note for note in found.notes)
    assert compare_runs([run], split="test").arm("dpap").accuracy.mean == 0.0


def test_a_split_that_was_not_measured(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    path = run / "history.jsonl"
    path.write_text(re.sub('"validation_accuracy": [0-9.]+', '"validation_accuracy": null', path.read_text()))
    with pytest.raises(DPAPError, match="no validation accuracy") as caught:
        compare_runs([run], split="validation")
    assert caught.value.where == str(run)


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MadeUp(epochs=12, done=5, control=False))
    with pytest.raises(DPAPError, match="not finished: 5 of 12 epochs") as caught:
        compare_runs([run])
    assert caught.value.fix.endswith(f"dpap resume {run}")


def test_a_run_whose_control_is_not_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MadeUp(control_done=3))
    with pytest.raises(DPAPError, match="not finished: 3 of 12 epochs") as caught:
        compare_runs([run])
    assert caught.value.where == str(run / "control")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DPAPError, match="no run folder"):
            compare_runs([path])


def spoil_missing(path: Path) -> None:
    path.unlink()


def spoil_bytes(path: Path) -> None:
    path.write_bytes(b"nothing of the kind")


def spoil_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def spoil_name(path: Path) -> None:
    np.savez(path, other=np.ones(450, dtype=np.bool_))


def spoil_pickle(path: Path) -> None:
    np.savez(path, correct=np.array([object()] * 450))


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_bytes, spoil_cut, spoil_name, spoil_pickle])
def test_answers_that_cannot_be_read(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = folder(tmp_path / "run", control_wrong=None) / "answers.npz"
    spoil(path)
    with pytest.raises(DPAPError, match="answers of the run cannot be read") as caught:
        compare_runs([path.parent])
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "answers",
    [np.arange(449) >= 8, np.arange(450) >= 8, (np.arange(450) >= 9).astype(np.int64)],
    ids=["one sample less", "one right more", "numbers"],
)
def test_answers_that_do_not_fit_the_result(tmp_path: Path, answers: np.ndarray[Any, Any]) -> None:
    run = folder(tmp_path / "run", control_wrong=None)
    np.savez(run / "answers.npz", correct=answers)
    with pytest.raises(DPAPError, match="do not fit the result of the run, which has 441 of 450 right"):
        compare_runs([run])


# what is shown


def sample(seeds: int = 2) -> Comparison:
    runs = []
    for seed in range(seeds):
        runs += [control(0.99 - 0.001 * seed, seed, wrong=[0], curve=[0.5, 0.9])]
        for share, accuracy in ((0.1, 0.97), (0.05, 0.96), (0.02, 0.94)):
            runs.append(
                numbers(accuracy + 0.002 * seed, seed, wrong=[1, 2], settings=target(share), connectivity=share)
            )
    return compared(runs, against="connectivity 0.1")


def test_the_tables_say_it_all() -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(comparison_table(sample()))
    shown = captured.get()
    for words in (
        "98.95 ± 0.07 %",
        "-1.85 [-3.76, +0.06]",
        "to connectivity 0.1, points",
        "McNemar p",
        "2 epochs, 4.00 s",
        "30.0 %",
        "25.0 %",
    ):
        assert words in shown, words
    assert "…" not in shown


class Elements(HTMLParser):
    """Start tags with their attributes, and the words; open elements must close in order."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def places(page: Elements, name: str, class_: str) -> list[tuple[float, float]]:
    """Where the marks of a class lie in the drawing of that id."""
    inside, found = False, []
    for tag, attributes in page.found:
        if tag == "svg":
            inside = attributes.get("id") == name
        if inside and attributes.get("class") == class_:
            x, y = re.findall(r"[\d.]+", attributes["transform"] or "")
            found.append((float(x), float(y)))
    return found


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    text = comparison_page(sample())
    page = Elements(text)
    ids = {attributes["id"] for tag, attributes in page.found if tag == "svg" and "id" in attributes}
    names = {f"plot-{name}" for name in ("connectivity", "macs", "synops", "difference")}
    assert ids == names | {f"{name}-narrow" for name in names}
    assert not [tag for tag, _ in page.found if tag == "script"]
    assert not re.search(r"https?://|url\(|@import", text)
    assert [a["href"] for tag, a in page.found if tag == "link"] == ["data:,"]


def test_points_lie_where_their_numbers_are() -> None:
    page = Elements(comparison_page(sample()))
    marks = places(page, "plot-connectivity", "marker c0")
    assert len(marks) == 3
    xs, ys = zip(*marks, strict=True)  # from the smallest connectivity, which has the lowest accuracy
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)
    assert not places(page, "plot-connectivity", "marker cc")  # a single control is a band


def test_nothing_is_drawn_outside_of_its_figure() -> None:
    """With two seeds intervals are far wider than the figure."""
    page, size = Elements(comparison_page(sample())), (0.0, 0.0)
    lines = 0
    for tag, attributes in page.found:
        if tag == "svg":
            width, height = (attributes.get("viewbox") or "").split()[2:]
            size = (float(width), float(height))
        for key in ("x1", "x2", "y1", "y2"):
            if tag == "line":
                lines += 1
                assert 0 <= float(attributes[key] or "nan") <= size[key[0] == "y"]
    assert lines


def test_points_at_one_place_are_drawn_beside_each_other() -> None:
    settings = [{"development.unit_score": score} for score in ("random", "magnitude", "activity")]
    page = Elements(comparison_page(compared([numbers(settings=change) for change in settings])))
    xs = sorted(places(page, "plot-macs", f"marker c{k}")[0][0] for k in range(3))
    assert np.diff(xs).min() >= 5


def test_several_controls_are_points_and_not_bands() -> None:
    runs = [numbers(), numbers(made="digits-ann"), control(), control(made="digits-ann")]
    text = comparison_page(compared(runs))
    assert len(places(Elements(text), "plot-macs", "marker cc")) == 2
    assert "One seed each: no intervals." in text


def test_a_run_alone_and_controls_alone_have_a_page() -> None:
    for run in (numbers(), control()):
        page = Elements(comparison_page(compared([run])))
        assert "plot-difference" not in {attributes.get("id") for _, attributes in page.found}


def test_names_are_words_and_not_markup() -> None:
    odd = '<script>alert("x")</script>[bold]'
    runs = [numbers(path=f"runs/{odd}"), control(path="b")]
    found = compared(runs, names={runs[0].path: odd}, strict=False)
    page = Elements(comparison_page(found))
    assert "script" not in {tag for tag, _ in page.found}
    assert odd in "".join(page.words)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(comparison_table(found))
    assert odd in captured.get()


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    found = sample()
    path = write_comparison(found, tmp_path / "compare.html")
    assert path.read_text(encoding="utf-8") == comparison_page(found)
    assert [item.name for item in tmp_path.iterdir()] == ["compare.html"]
    with pytest.raises(DPAPError, match="cannot be written"):
        write_comparison(sample(), tmp_path / "absent" / "compare.html")
