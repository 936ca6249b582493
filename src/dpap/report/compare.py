"""`dpap compare`: what several runs say together. Runs become arms, arms are set beside their unpruned control.

    compare_runs(runs)          reads run folders into a Comparison, which is plain data
    compared(numbers)           the same from numbers that were read before

`numbers` reads the run folders, `compare_table` shows a comparison in a terminal, `compare_page` on a page; `arm_names`
names the arms.

Runs whose configs differ in nothing but the seed and the fold are one arm. Its control is the arm without pruning whose
config is otherwise equal, be it given or found in `control/` of a run; runs are paired by seed and fold, so what they
share (first weights, order of the samples, test split) falls out of the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch

from dpap.errors import DPAPError, unknown_name
from dpap.metrics.accuracy import McNemar, Summary, difference, mcnemar, summary
from dpap.report.arm_names import family_of, flat, identity, labels, setting
from dpap.report.numbers import EpochNumbers, Key, RunNumbers, Splits, check_same, read_numbers
from dpap.report.svg import percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of the accuracies of an arm and another one, paired by seed, and by fold."""

    to: str
    seeds: tuple[str, ...]
    """In words: "0", or "0 fold 2"."""
    accuracy: Summary
    """Of the differences; 0.01 is one point."""
    answers: McNemar | None
    """Pooled over the pairs, this arm first; None where the answers are not recorded."""
    unpaired: tuple[str, ...]
    """Seeds of this arm that the other one has not, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """When an arm first reaches the final accuracy of the control of its seed. Means are over the runs that do."""

    runs: int
    reached: int
    epochs: float | None
    seconds: float | None
    """Of training."""
    connectivity: float | None
    """After that epoch: near 1 means that it was reached before much was pruned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNumbers:
    """A convolution or linear layer, mean over the seeds."""

    name: str
    unit_density: float
    synapse_density: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronNumbers:
    """The neurons of a layer, mean over the seeds."""

    name: str
    rate: float
    silent: float
    """Share of the living units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """Runs that differ in their seed and fold alone. Shares and counts are means over the runs."""

    name: str
    series: str
    """Arms of one series differ in nothing but their target."""
    is_control: bool
    seeds: tuple[int, ...]
    """One a run."""
    folds: int | None
    """Of a cross-validation: how many of them were run. Accuracies are summed up over the folds then."""
    paths: tuple[str, ...]
    accuracy: Summary
    accuracies: tuple[float, ...]
    """In the order of the runs."""
    best_accuracy: Summary | None
    control: Difference | None
    """To the unpruned control; None where there is none."""
    against: Difference | None
    """To the arm that was asked for."""
    connectivity: float
    connectivity_conv: float | None
    macs: float
    """Share of the dense network's."""
    synops: float | None
    """Share of the control's; None without a control, or without spikes."""
    energy: float | None
    """Share of the control's."""
    parameters: float
    """Share of the dense network's."""
    parameter_count: float
    layers: tuple[LayerNumbers, ...]
    neurons: tuple[NeuronNumbers, ...]
    seconds: float | None
    latency: float | None
    """Time of a batch / time of the dense network's."""
    convergence: Convergence | None
    """None where no accuracy was measured after the epochs, or there is no control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Arms, controls first."""

    data: str
    split: Splits
    arms: tuple[ArmResult, ...]
    notes: tuple[str, ...]
    """What a reader must know."""

    @property
    def over(self) -> Literal["seed", "fold"]:
        """What an interval is taken over."""
        return "seed" if self.arms[0].folds is None else "fold"

    def arm(self, name: str) -> ArmResult:
        """The arm of that name.

        Raises:
            DPAPError: there is none; the nearest names are shown.
        """
        found = [arm for arm in self.arms if arm.name == name]
        if not found:
            raise unknown_name("arm", name, [arm.name for arm in self.arms])
        return found[0]


def compare_runs(runs: Sequence[Path], *, against: str | None = None, split: Splits | None = None) -> Comparison:
    """Compare finished runs, and the controls in their folders.

    Args:
        runs: Run folders.
        against: An arm, by its name or by the folder of one of its runs, to which every other one is compared too.
        split: Whose accuracies; by default the validation split where it is held out, which is where settings are
            chosen, and else the test split.

    Raises:
        DPAPError: a folder is no run, or not finished, or given twice; the runs are of different data, or otherwise not
            comparable; a run has no partner of its seed in the control, or in the arm `against`.
    """
    return compared(read_numbers(runs, split=split), against=against)


@dataclass(frozen=True, slots=True)
class _Arm:
    """Runs by seed and fold, all with equal settings."""

    name: str
    series: str
    family: frozenset[tuple[str, str]]
    runs: Mapping[Key, RunNumbers]

    @property
    def is_control(self) -> bool:
        return next(iter(self.runs.values())).is_control


def compared(
    runs: Sequence[RunNumbers],
    *,
    against: str | Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Comparison:
    """Compare runs whose numbers have been read.

    Args:
        runs: Those given first; of controls with equal settings and seed the first is taken.
        against: As in `compare_runs`; or for some arms, by name, the arm to which they are compared too.
        names: Path -> name of the arm, instead of names made from what differs.
        strict: Refuse runs without a partner of their seed; else they are left out of the difference, which says so.

    Raises:
        DPAPError: the runs are not comparable, or cannot be paired.
    """
    if not runs:
        raise DPAPError("There is no run to compare.", fix="give run folders, such as runs/digits-snn-1")
    check_same([(run.path, run.config) for run in runs])
    _check_splits(runs)
    notes: list[str] = []
    arms = _arms(runs, names or {}, notes)
    controls = {arm.family: arm for arm in reversed(arms) if arm.is_control}
    partners = _partners(against, arms)
    results = [_result(arm, controls.get(arm.family), partners.get(arm.name), strict) for arm in arms]
    without = [r.name for r, arm in zip(results, arms, strict=True) if not arm.is_control and r.control is None]
    if without:
        notes.append(f"No unpruned control: {', '.join(without)}. No difference to it is given.")
    notes += [
        f"{arm.name}: no {d.to} with seed {listed(d.unpaired)}; the difference is over seed {listed(d.seeds)}."
        for arm in results
        for d in (arm.control, arm.against)
        if d is not None and d.unpaired
    ]
    if runs[0].split == "validation":
        notes.append(
            "Accuracies are those of the validation split, which is held out. McNemar's test is left out: single "
            "answers are recorded on the test split only."
        )
    data, limit, folds = (setting(runs[0].config, f"data.{key}") for key in ("name", "limit", "folds"))
    words = [str(data)] + ([] if limit is None else [f"{limit:,} training samples"])
    words += [] if folds is None else [f"{folds}-fold cross-validation"]
    return Comparison(
        data=", ".join(words),
        split=runs[0].split,
        arms=tuple(results),
        notes=tuple(notes),
    )


def _check_splits(runs: Sequence[RunNumbers]) -> None:
    first = runs[0]
    answered = {first.fold: first}  # the test splits of two folds need not be of one size
    for run in runs[1:]:
        if run.split != first.split:
            raise DPAPError(
                f"One accuracy is that of the {first.split} split, another that of the {run.split} split.",
                where=f"{first.path} and {run.path}",
                fix="compare them on one split",
            )
        if run.correct is None:
            continue
        same = answered.setdefault(run.fold, run)
        if same.correct is not None and len(run.correct) != len(same.correct):
            raise DPAPError(
                f"One run answers {len(same.correct):,} test samples, another {len(run.correct):,}.",
                where=f"{same.path} and {run.path}",
                fix="compare runs that were measured on the same test split",
            )


def _arms(runs: Sequence[RunNumbers], names: Mapping[str, str], notes: list[str]) -> list[_Arm]:
    """Arms in the order of their first runs, controls in front."""
    grouped: dict[tuple[str, frozenset[tuple[str, str]]], dict[Key, RunNumbers]] = {}
    for run in runs:
        key = (names.get(run.path, ""), identity(run.config))
        members = grouped.setdefault(key, {})
        if run.key not in members:
            members[run.key] = run
        elif run.is_control and Path(run.path).name == "control":
            _note_other(members[run.key], run, notes)
        else:
            raise DPAPError(
                f"Two runs have the same settings and the same seed, {said_key(run.key)}: they are one run, not two.",
                where=f"{members[run.key].path} and {run.path}",
                fix="leave one of them out",
            )
    firsts = [next(iter(members.values())) for members in grouped.values()]
    configs = [flat(run.config) for run in firsts]
    arms = [
        _Arm(name=given or label, series=series, family=family_of(run.config), runs=dict(sorted(members.items())))
        for ((given, _), members), run, label, series in zip(
            grouped.items(), firsts, labels(configs), labels(configs, targets=False), strict=True
        )
    ]
    twice = [arm.name for k, arm in enumerate(arms) if arm.name in [other.name for other in arms[:k]]]
    if twice:
        raise DPAPError(
            f"The runs of arm {twice[0]!r} have different settings.", fix="give one name to runs with equal settings"
        )
    return sorted(arms, key=lambda arm: not arm.is_control)


def _note_other(first: RunNumbers, second: RunNumbers, notes: list[str]) -> None:
    """Controls of one seed should be one; on another machine or device they are not, to the last bit."""
    if first.accuracy != second.accuracy:
        notes.append(
            f"The control of seed {said_key(first.key)} was trained twice and came out at {percent(first.accuracy)} "
            f"({first.path}) and {percent(second.accuracy)} ({second.path}); the first one is taken."
        )


def _partners(against: str | Mapping[str, str] | None, arms: Sequence[_Arm]) -> dict[str, _Arm]:
    """Arm -> the one that it is compared with besides the control."""
    if against is None:
        return {}
    by_name = {arm.name: arm for arm in arms}
    if isinstance(against, str):
        chosen = by_name.get(against) or _arm_of_folder(Path(against), arms)
        against = {arm.name: chosen.name for arm in arms if arm is not chosen} if chosen else {"": against}
    for name in against.values():
        if name not in by_name:
            raise unknown_name("arm", name, by_name)
    return {arm: by_name[name] for arm, name in against.items()}


def _arm_of_folder(path: Path, arms: Sequence[_Arm]) -> _Arm | None:
    real = path.resolve()
    return next((arm for arm in arms for run in arm.runs.values() if Path(run.path).resolve() == real), None)


def _result(arm: _Arm, control: _Arm | None, partner: _Arm | None, strict: bool) -> ArmResult:
    runs = list(arm.runs.values())
    pairs = [(run, control.runs[key]) for key, run in arm.runs.items() if key in control.runs] if control else []
    best = [(run.fold, run.best_accuracy) for run in runs if run.best_accuracy is not None]
    return ArmResult(
        name=arm.name,
        series=arm.series,
        is_control=arm.is_control,
        seeds=tuple(run.seed for run in runs),
        folds=None if runs[0].fold is None else len({run.fold for run in runs}),
        paths=tuple(run.path for run in runs),
        accuracy=summary(_over_folds([(run.fold, run.accuracy) for run in runs])),
        accuracies=tuple(run.accuracy for run in runs),
        best_accuracy=summary(_over_folds(best)) if len(best) == len(runs) else None,
        control=None if arm.is_control or control is None else _difference(arm, control, strict),
        against=None if partner is None or partner is control else _difference(arm, partner, strict),
        connectivity=fmean(run.connectivity for run in runs),
        connectivity_conv=_mean(run.connectivity_conv for run in runs),
        macs=fmean(run.macs / run.dense_macs for run in runs),
        synops=_mean(run.synops / other.synops if other.synops else None for run, other in pairs),
        energy=_mean(run.energy_pj / other.energy_pj if other.energy_pj else None for run, other in pairs),
        parameters=fmean(run.parameters / run.dense_parameters for run in runs),
        parameter_count=fmean(run.parameters for run in runs),
        layers=_layers(runs),
        neurons=_neurons(runs),
        seconds=_mean(run.seconds for run in runs),
        latency=_mean(_ratio(run.latency_ms, run.dense_latency_ms) for run in runs),
        convergence=_convergence(pairs),
    )


def _difference(arm: _Arm, other: _Arm, strict: bool) -> Difference | None:
    """None without a common seed, unless that is refused."""
    keys = [key for key in arm.runs if key in other.runs]
    unpaired = [key for key in arm.runs if key not in other.runs]
    if unpaired and strict:
        raise DPAPError(
            f"Seed {listed(map(said_key, unpaired))} of arm {arm.name!r} cannot be paired: arm {other.name!r} has seed "
            f"{listed(map(said_key, other.runs))} only.",
            where=", ".join(arm.runs[key].path for key in unpaired),
            fix=f"train what is missing of {other.name!r}, or leave these runs out",
        )
    if not keys:
        return None
    mine, theirs = ([side.runs[key] for key in keys] for side in (arm, other))
    return Difference(
        to=other.name,
        seeds=tuple(map(said_key, keys)),
        accuracy=difference(*(_over_folds([(run.fold, run.accuracy) for run in half]) for half in (mine, theirs))),
        answers=_mcnemar(mine, theirs),
        unpaired=tuple(map(said_key, unpaired)),
    )


def _over_folds(values: Sequence[tuple[int | None, float]]) -> list[float]:
    """What an interval is taken over: runs of the published splits, and of a cross-validation the mean of each fold
    over its seeds, for seeds of one fold share their training samples and are not independent."""
    if all(fold is None for fold, _ in values):
        return [value for _, value in values]
    by_fold: dict[int | None, list[float]] = {}
    for fold, value in values:
        by_fold.setdefault(fold, []).append(value)
    return [fmean(by_fold[fold]) for fold in sorted(by_fold, key=lambda fold: fold or 0)]


def _mcnemar(mine: Sequence[RunNumbers], theirs: Sequence[RunNumbers]) -> McNemar | None:
    known = [run.correct for run in (*mine, *theirs) if run.correct is not None]
    if len(known) < len(mine) + len(theirs):
        return None
    first, second = (torch.from_numpy(np.concatenate(half)) for half in (known[: len(mine)], known[len(mine) :]))
    return mcnemar(first, second)


def _convergence(pairs: Sequence[tuple[RunNumbers, RunNumbers]]) -> Convergence | None:
    known = [(run, other.epochs[-1].accuracy) for run, other in pairs if other.epochs]
    curves = [
        (run, goal)
        for run, goal in known
        if goal is not None and all(epoch.accuracy is not None for epoch in run.epochs)
    ]
    if not curves:
        return None
    found = [(run, k) for run, goal in curves if (k := _first_at(run.epochs, goal)) is not None]
    return Convergence(
        runs=len(curves),
        reached=len(found),
        epochs=_mean(k + 1 for _, k in found),
        seconds=_mean(sum(epoch.seconds for epoch in run.epochs[: k + 1]) for run, k in found),
        connectivity=_mean(run.epochs[k].connectivity for run, k in found),
    )


def _first_at(epochs: Sequence[EpochNumbers], goal: float) -> int | None:
    return next((k for k, epoch in enumerate(epochs) if epoch.accuracy is not None and epoch.accuracy >= goal), None)


def _layers(runs: Sequence[RunNumbers]) -> tuple[LayerNumbers, ...]:
    return tuple(
        LayerNumbers(
            name=layers[0].name,
            unit_density=fmean(layer.alive_outputs / layer.outputs for layer in layers),
            synapse_density=fmean(layer.living_synapses / layer.synapses for layer in layers),
        )
        for layers in zip(*(run.layers for run in runs), strict=True)
    )


def _neurons(runs: Sequence[RunNumbers]) -> tuple[NeuronNumbers, ...]:
    return tuple(
        NeuronNumbers(
            name=neurons[0].name,
            rate=fmean(item.rate for item in neurons),
            silent=fmean(item.silent / item.units if item.units else 0.0 for item in neurons),
        )
        for neurons in zip(*(run.neurons for run in runs), strict=True)
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """None when there is no value, or one is unknown: a mean over some seeds would be taken for one over all."""
    found = list(values)
    known = [value for value in found if value is not None]
    return fmean(known) if known and len(known) == len(found) else None


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def said_key(key: Key) -> str:
    """A seed, and the fold where there is one, in words."""
    seed, fold = key
    return str(seed) if fold is None else f"{seed} fold {fold}"


def listed(seeds: Iterable[object]) -> str:
    """Seeds in words."""
    return ", ".join(map(str, seeds))
