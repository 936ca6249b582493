"""From runs to docs/results.md, in two stages: run folders -> benchmarks/results/<study>.json -> the page.

    python benchmarks/results.py                # take in what is finished under runs/studies, then write the page
    python benchmarks/results.py scores units   # only these studies; the page is still that of all
    python benchmarks/results.py --check        # whether the page is up to date with the JSON files; needs no runs

Resumable: a run that was taken in stays in the JSON when its folder is gone. Each file holds every number of every run,
so the page can be made from the files alone. Of a study that holds the validation split out, nothing that was measured
with test labels is taken in.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from studies import RUNS, STUDIES, Arm

from dpap.atomic import replace_file
from dpap.config import from_dict, to_dict
from dpap.errors import DPAPError
from dpap.report.arm_names import IGNORED, data_of, family_of, flat
from dpap.report.compare import (
    ArmResult,
    Comparison,
    compared,
    said_key,
)
from dpap.report.compare_table import (
    said_accuracy,
    said_difference,
    said_layers,
    said_p,
    said_reached,
    said_runs,
    said_units,
)
from dpap.report.files import read_run
from dpap.report.history import LayerResult, NeuronResult
from dpap.report.numbers import EpochNumbers, Key, RunNumbers, numbers_of
from dpap.report.svg import MISSING, share_of

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
FORMAT = 1
Stored = dict[str, Any]

TITLE = """# Results

What the studies say together:

- A network that prunes itself in its one training run ends within about 0.2 points of its unpruned control on MNIST
  at 90 to 95 % sparsity, with about 40 % of the MACs, and on simulated events at 90 %, with 17 %.
- The default score is level with magnitude on convolutional networks. On a fully connected one it is above magnitude,
  and both are far above a random choice. Which *units* are pruned hardly matters on these data.
- On the simulated events, pruning half of the pairs of a unit and a time step is 0.30 [-0.03, +0.63] points more
  accurate than half as many frames at the same number of synaptic operations; fewer frames are faster.
- All data sets here are small, all machines CPUs. Nothing is known yet of CIFAR-10 at full width.
"""

SUMMARY = (
    ("mnist-snn", "dpap-95"),
    ("mnist-snn", "magnitude-95"),
    ("mnist-snn", "random-95"),
    ("scores-2fc", "weighted-input-98"),
    ("scores-2fc", "magnitude-98"),
    ("scores-2fc", "random-98"),
    ("mnist-ann", "dpap-90"),
    ("nmnist", "dpap"),
    ("nmnist", "random"),
    ("mnist-saccade", "dpap"),
    ("mnist-saccade", "dpap-5"),
    ("mnist-saccade", "random"),
)
"""Study and arm of the rows of the summary."""

READING = """## How to read this page

Made by `benchmarks/results.py` from the runs of [`benchmarks/studies.py`](../benchmarks/studies.py): `python
benchmarks/studies.py NAME` runs a study (what is finished is not run again), `python benchmarks/results.py` writes this
page. Every number of every run is in `benchmarks/results/NAME.json`. What is not run yet is shown as missing.

- Accuracy: mean ± standard deviation over the seeds, after the last epoch. The difference is to the unpruned control,
  paired by seed (same first weights, same batches), with the 95 % t-interval; a single seed has none. McNemar's test
  is pooled over the pairs. Of a cross-validation the numbers are over the folds, each the mean of its seeds: folds
  share training samples, so the intervals are a little too narrow, and McNemar's p, pooled over seeds that answer the
  same samples, too small.
- Studies that choose settings train on a fixed part of the data, hold the validation split out and give *validation*
  accuracy; nothing was chosen by test labels, and what a run measures with them at its end is left out here. Headline
  studies train on all training images and use the test split once; where test accuracy after every epoch is recorded,
  nothing was chosen by it.
- Arms that differ in their score share the target of the whole network, not counts for each layer: how much each
  layer loses is part of what is compared, and stands in the column "units".
- Connectivity and MACs are shares of the dense network, SOPs and energy (an estimate) of the control of the same
  seed; "of conv" is the connectivity of the convolutions alone, "units" the living units of each layer in percent, in
  the order of the layers. Spikes are counted on the images of the test split, which needs no labels. [What the
  numbers mean](metrics.md).
- Layer by layer: before pruning is what the control shows. The rate is the mean number of spikes of a living neuron
  in one time step (without spikes, the share of outputs that is not 0); silent units are alive and never fire.
- "Paper" is what the paper reports, for reference; a pruned network is compared with our own control. "Paper
  protocol" is the best test epoch after the last pruning, chosen on the test split itself, as the paper does: for
  comparison only.
"""


# stage one: run folders -> JSON --------------------------------------------------------------------------------------


def collect(study: str, planned: Sequence[Arm], runs: Path, before: Stored | None) -> tuple[Stored, list[str]]:
    """What is known of a study: its finished runs, and those taken in before.

    Args:
        planned: A run each, as the study lists them.
        runs: The folder that holds `<study>/<arm>/<seed>`.
        before: What the study's file holds; None when there is none.

    Returns:
        The content of the study's file, and what the caller should hear.

    Raises:
        DPAPError: a run folder is damaged, or the runs of one arm have different settings.
    """
    said: list[str] = []
    old = {arm["name"]: arm for arm in before["arms"]} if before else {}
    arms = [
        _collect_arm(name, group, runs / study / name, old.pop(name, None), said)
        for name, group in grouped(planned, lambda arm: arm.name).items()
    ]
    said += [f"{study}: arm {name!r} is no longer planned; it is left out." for name in old]
    about = " ".join((STUDIES[study].__doc__ or "").split()) if study in STUDIES else ""
    command = f"python benchmarks/studies.py {study}"
    return {"format": FORMAT, "study": study, "about": about, "command": command, "arms": arms}, said


def _collect_arm(name: str, planned: Sequence[Arm], folder: Path, old: Stored | None, said: list[str]) -> Stored:
    found = [run for arm in planned if (run := finished(folder / arm.path.name)) is not None]
    for run in found[1:]:
        if different := differences(found[0].config, run.config):
            raise DPAPError(
                f"The runs of arm {name!r} have different settings: {'; '.join(different)}.",
                where=f"{found[0].path} and {run.path}",
                fix="remove the older one and run the study again",
            )
    config = dict(found[0].config) if found else (old or {}).get("config")
    stored = {run.key: to_json(run) for run in found}
    for run in (old or {}).get("runs", ()):
        if key_of(run) in stored:
            continue
        if found and differences((old or {})["config"], found[0].config):
            seed = said_key(key_of(run))
            said.append(f"{name}: seed {seed} was run with other settings than {found[0].path}; it is left out.")
        else:
            stored[key_of(run)] = run
    changed = differences(config, to_dict(planned[0].config)) if stored and config else []
    if changed:
        said.append(f"{name}: was run with other settings than studies.py says now: {'; '.join(changed)}.")
    return {
        "name": name,
        "paper": planned[0].paper,
        "against": planned[0].against,
        "seeds": [said_key(arm.key) for arm in planned],
        "config": {k: v for k, v in config.items() if k not in ("seed", "control")} if stored and config else None,
        "changed": changed,
        "runs": [stored[seed] for seed in sorted(stored)],
    }


def key_of(run: Stored) -> Key:
    """Seed and fold of a stored run; the first ones were written before there were folds."""
    return run["seed"], run.get("fold")


def finished(folder: Path) -> RunNumbers | None:
    """The numbers of a run; None when it is not there or not finished."""
    if not (folder / "answers.npz").is_file():
        return None
    files = read_run(folder)
    return None if files.result is None else numbers_of(files)


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Settings in which two configs differ, in words; those on which no result depends do not count.

    A config that was written before a setting existed has its default.
    """
    try:
        first, second = (flat(to_dict(from_dict(config))) for config in (mine, theirs))
    except DPAPError as error:
        return [f"one cannot be read by this dpap ({error.what})"]
    unpruned = first["development.rule"] == second["development.rule"] == "none"  # how one would prune does not matter
    ignored = {key for key in first if key in IGNORED or (unpruned and key.startswith("development."))}
    keys = [key for key in first if key not in ignored and first[key] != second[key]]
    return [f"{key} {json.dumps(first[key])} -> {json.dumps(second[key])}" for key in keys]


APART = ("path", "config", "correct", "epochs", "layers", "neurons")
"""Fields of `RunNumbers` that are not written as they are."""


def to_json(run: RunNumbers) -> Stored:
    """The numbers of a run. Of the answers only the wrong ones are listed; their number is small."""
    values = {item.name: getattr(run, item.name) for item in fields(run) if item.name not in APART}
    right = run.correct
    return {
        **values,
        "environment": dict(run.environment),
        "samples": None if right is None else len(right),
        "wrong": None if right is None else np.flatnonzero(~right).tolist(),
        "epochs": [asdict(epoch) for epoch in run.epochs],
        "layers": [asdict(layer) for layer in run.layers],
        "neurons": [asdict(item) for item in run.neurons],
    }


def from_json(values: Stored, path: str, config: Stored) -> RunNumbers:
    """The inverse of `to_json`."""
    right = None
    if values["wrong"] is not None:
        right = np.ones(values["samples"], dtype=np.bool_)
        right[values["wrong"]] = False
    seed, fold = key_of(values)
    same = {item.name: values[item.name] for item in fields(RunNumbers) if item.name not in (*APART, "fold")}
    return RunNumbers(
        **same,
        fold=fold,
        path=path,
        config={**config, "seed": seed} | ({} if fold is None else {"data": {**config["data"], "fold": fold}}),
        correct=right,
        epochs=tuple(EpochNumbers(**epoch) for epoch in values["epochs"]),
        layers=tuple(LayerResult(**layer) for layer in values["layers"]),
        neurons=tuple(NeuronResult(**item) for item in values["neurons"]),
    )


def read_study(path: Path) -> Stored | None:
    """What a file of numbers holds; None when it is not one of a study.

    Raises:
        DPAPError: it is no JSON, or of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DPAPError(f"The numbers cannot be read: {error}.", where=str(path), fix="restore the file") from error
    if not isinstance(values, dict) or "study" not in values:
        return None
    if values.get("format") != FORMAT:
        raise DPAPError(
            f"The numbers have format {values.get('format')}, this script reads {FORMAT}.",
            where=str(path),
            fix="remove the file and collect the runs again",
        )
    return values


def written(values: Any, depth: int = 4, indent: str = "") -> str:
    """JSON with a line for each run: what lies deeper than `depth` stays on one line."""
    inner = indent + " "
    if depth and isinstance(values, dict) and values:
        lines = [f"{inner}{json.dumps(key)}: {written(value, depth - 1, inner)}" for key, value in values.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if depth and isinstance(values, list) and any(isinstance(value, dict) for value in values):
        return "[\n" + ",\n".join(inner + written(value, depth - 1, inner) for value in values) + f"\n{indent}]"
    return json.dumps(values, allow_nan=False)


# stage two: JSON -> page ---------------------------------------------------------------------------------------------


def page(studies: Sequence[Stored]) -> str:
    """docs/results.md, from the contents of the files of numbers alone."""
    ordered = sorted(studies, key=lambda s: list(STUDIES).index(s["study"]) if s["study"] in STUDIES else len(STUDIES))
    parts = [TITLE, *summary(ordered), READING, *(section(study, ordered) for study in ordered)]
    if not ordered:
        parts.append("No study has been run yet.\n")
    return "\n".join(parts)


def summary(studies: Sequence[Stored]) -> list[str]:
    """The arms that matter most, one line each."""
    rows = []
    for name, wanted in SUMMARY:
        study = next((study for study in studies if study["study"] == name), None)
        for group in (
            grouped([a for a in study["arms"] if a["runs"]], lambda a: data_of(a["config"])).values() if study else ()
        ):
            found, _ = compare(study, group, studies)
            rows += [
                [
                    f"[{name}](#{name}) `{arm.name}`",
                    f"{said_runs(arm)}",
                    f"{said_accuracy(arm.accuracy)} ({found.split})",
                    said_difference(arm.control),
                    *(share_of(value) for value in (arm.connectivity, arm.macs, arm.synops)),
                ]
                for arm in found.arms
                if arm.name == wanted
            ]
    head = ["study and arm", "seeds", "accuracy", "difference to the control, points", "connectivity", "MACs", "SOPs"]
    return ["\n".join([*table(head, rows), ""])] if rows else []


def section(study: Stored, studies: Sequence[Stored]) -> str:
    """One study; what it compares with an unpruned control of another study, it says."""
    lines = [f"## {study['study']}", "", study["about"], "", f"`{study['command']}`"]
    arms = [arm for arm in study["arms"] if arm["runs"]]
    if not arms:
        planned = sum(len(arm["seeds"]) for arm in study["arms"])
        return "\n".join([*lines, "", f"Missing: none of the {planned} runs is finished yet.", ""])
    lines[-1] += f" · {provenance(arms)}"
    for group in grouped(arms, lambda arm: data_of(arm["config"])).values():
        lines += ["", *data_part(study, group, studies)]
    if missing := [said for arm in study["arms"] if (said := said_missing(arm))]:
        lines += ["", f"Missing: {'; '.join(missing)}."]
    lines += [
        line
        for arm in arms
        if arm["changed"]
        for line in ("", f"`{arm['name']}` was run before `studies.py` changed: {'; '.join(arm['changed'])}.")
    ]
    return "\n".join([*lines, ""])


def grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """Items by key, in the order in which they come."""
    found: dict[Any, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def said_missing(arm: Stored) -> str:
    there = {said_key(key_of(run)) for run in arm["runs"]}
    missing = [str(seed) for seed in arm["seeds"] if str(seed) not in there]
    return f"`{arm['name']}` seed {', '.join(missing)}" if missing else ""


def provenance(arms: Sequence[Stored]) -> str:
    """Where the runs were made: processor, threads, versions, commit, as far as their environments say."""
    seen = [run["environment"] for arm in arms for run in arm["runs"]]
    words = []
    for key, name in (("device_name", ""), ("threads", "threads "), ("torch", "torch "), ("dpap", "dpap ")):
        found = sorted({str(item[key]) for item in seen if key in item})
        words += [name + " / ".join(found)] if found else []
    commits = sorted({str(item["commit"])[:12] for item in seen if item.get("commit")})
    words.append("commit " + " / ".join(commits) if commits else "commit not recorded")
    return ", ".join(words)


def data_part(study: Stored, arms: Sequence[Stored], studies: Sequence[Stored]) -> list[str]:
    """The tables of arms whose accuracies can be compared."""
    found, borrowed = compare(study, arms, studies)
    planned = {arm["name"]: arm for arm in arms}
    lines = [f"**{found.data}, {found.split} split**", "", *accuracy_table(found, planned)]
    notes = [note for note in found.notes if "McNemar" not in note]  # said once, at the top of the page
    if borrowed:
        notes.insert(0, f"The control is that of study {', '.join(sorted({f'`{name}`' for _, name in borrowed}))}.")
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    if any(arm.convergence for arm in found.arms):
        lines += ["", *convergence_table(found)]
    return [*lines, "", "<details><summary>Layer by layer</summary>", "", *layer_table(found), "", "</details>"]


def compare(
    study: Stored, arms: Sequence[Stored], studies: Sequence[Stored]
) -> tuple[Comparison, list[tuple[RunNumbers, str]]]:
    """These arms beside each other, and the controls that are taken from other studies."""
    names: dict[str, str] = {}
    runs = [run for arm in arms for run in runs_of(study, arm, arm["name"], names)]
    borrowed = controls_elsewhere(study, runs, studies, names)
    against = {arm["name"]: arm["against"] for arm in arms if arm["against"] in {other["name"] for other in arms}}
    found = compared(runs + [run for run, _ in borrowed], names=names, against=against, strict=False)
    return found, borrowed


def runs_of(study: Stored, arm: Stored, name: str, names: dict[str, str]) -> list[RunNumbers]:
    runs = [
        from_json(run, f"{study['study']}/{arm['name']}/{said_key(key_of(run))}", arm["config"]) for run in arm["runs"]
    ]
    names |= {run.path: name for run in runs}
    return runs


def controls_elsewhere(
    study: Stored, runs: Sequence[RunNumbers], studies: Sequence[Stored], names: dict[str, str]
) -> list[tuple[RunNumbers, str]]:
    """Controls of other studies, with the study's name, for arms that have none in their own."""
    own = {family_of(run.config) for run in runs if run.is_control}
    wanted = list(dict.fromkeys(f for run in runs if not run.is_control and (f := family_of(run.config)) not in own))
    taken: dict[tuple[Any, Key], tuple[RunNumbers, str]] = {}
    for other in studies:
        for arm in other["arms"]:
            if other is study or not arm["runs"] or family_of(arm["config"]) not in wanted:
                continue
            for run in runs_of(other, arm, "control", {}):
                if run.is_control and any(run.key == mine.key for mine in runs):
                    taken.setdefault((family_of(run.config), run.key), (run, other["study"]))
    labels = {family: f"control {k + 1}" if len(wanted) > 1 else "control" for k, family in enumerate(wanted)}
    names |= {run.path: labels[family] for (family, _), (run, _) in taken.items()}
    return list(taken.values())


def accuracy_table(found: Comparison, planned: Mapping[str, Stored]) -> list[str]:
    on_test = found.split == "test"
    head = ["arm", "seeds", f"{found.split} accuracy", "difference, points"]
    head += ["McNemar p"] * on_test
    compared_too = any(arm.against for arm in found.arms)
    head += ["to another arm, points", *["McNemar p"] * on_test] * compared_too
    head += ["connectivity", "of conv", "MACs", "SOPs", "energy", "units, %"]
    paper = any(arm["paper"] for arm in planned.values())
    best = any(arm.best_accuracy for arm in found.arms)
    head += ["paper"] * paper + ["paper protocol"] * best
    rows = []
    for arm in found.arms:
        plan = planned.get(arm.name)
        row = [f"`{arm.name}`", said_seeds(arm, plan), said_accuracy(arm.accuracy), said_difference(arm.control)]
        row += [said_p(arm.control)] * on_test
        if compared_too:
            to = f" to `{arm.against.to}`" if arm.against else ""
            row += [said_difference(arm.against) + to, *[said_p(arm.against)] * on_test]
        row += [share_of(value) for value in (arm.connectivity, arm.connectivity_conv, arm.macs, arm.synops)]
        row += [share_of(arm.energy), said_units(arm)]
        row += [(plan or {}).get("paper") or MISSING] * paper
        row += [said_accuracy(arm.best_accuracy) if arm.best_accuracy else MISSING] * best
        rows.append(row)
    return table(head, rows)


def said_seeds(arm: ArmResult, plan: Stored | None) -> str:
    n = len(arm.seeds)
    return said_runs(arm) if plan is None or n >= len(plan["seeds"]) else f"{n} of {len(plan['seeds'])}"


def convergence_table(found: Comparison) -> list[str]:
    """When each arm first is as accurate as the control of its seed is in the end."""
    rows = [
        [
            f"`{arm.name}`",
            said_reached(arm.convergence),
            share_of(arm.convergence.connectivity),
        ]
        for arm in found.arms
        if arm.convergence is not None
    ]
    return table(["arm", "epochs, training time to the control's final accuracy", "connectivity then"], rows)


def layer_table(found: Comparison) -> list[str]:
    """Each layer of each arm; before pruning is what the control shows."""
    rows = [[f"`{arm.name}`", layer, *shown] for arm in found.arms for layer, shown in said_layers(arm)]
    return table(["arm", "layer", "units", "synapses", "firing rate", "silent"], rows, names=2)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> list[str]:
    """Lines of Markdown; all but the first columns are numbers, set to the right."""
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, rule, *rows)]


# the command line ----------------------------------------------------------------------------------------------------


def stored_studies() -> list[Stored]:
    found = [read_study(path) for path in sorted(NUMBERS.glob("*.json"))]
    return [study for study in found if study is not None]


def write(path: Path, content: str) -> None:
    """Readers see the old file or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.encode())


def check() -> str:
    """What is wrong with the page; empty when it is up to date."""
    now = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    wanted = page(stored_studies())
    if now == wanted:
        return ""
    pairs = zip([*now.splitlines(), ""], [*wanted.splitlines(), ""], strict=False)
    line = next((n for n, (a, b) in enumerate(pairs, 1) if a != b), 1)
    return f"{PAGE.relative_to(ROOT)} is not what the JSON files give, from line {line} on: run benchmarks/results.py."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[[], *STUDIES], default=[])
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the studies ran")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the page is out of date")
    chosen = parser.parse_args()
    if chosen.check:
        problem = check()
        print(problem or f"{PAGE.relative_to(ROOT)} is up to date.")
        return 1 if problem else 0
    for name in chosen.studies or STUDIES:
        path = NUMBERS / f"{name}.json"
        values, said = collect(name, list(STUDIES[name]()), chosen.runs, read_study(path) if path.exists() else None)
        write(path, written(values) + "\n")
        there = sum(len(arm["runs"]) for arm in values["arms"])
        print(f"{name}: {there} of {sum(len(arm['seeds']) for arm in values['arms'])} runs", *said, sep="\n  ")
    write(PAGE, page(stored_studies()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DPAPError as error:
        sys.exit(f"Error: {error}")
