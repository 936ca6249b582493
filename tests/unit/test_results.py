"""benchmarks/results.py: what is taken in from run folders, what stays, and the page that is made of it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from report_runs import MadeUp, write_run

from dpap.config import Config, override
from dpap.errors import DPAPError
from dpap.recipes import recipe
from dpap.report.files import read_run
from dpap.report.history import ResultLine, RunLine, from_text, to_text
from dpap.report.numbers import numbers_of

pytestmark = pytest.mark.slow

Stored = dict[str, Any]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module. It lies outside of the package, beside the studies that it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield importlib.import_module("results")
        for name in ("results", "studies"):
            sys.modules.pop(name, None)


@pytest.fixture
def place(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script works on an empty repository."""
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "NUMBERS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(script, "PAGE", tmp_path / "docs" / "results.md")
    return tmp_path


HEADLINE = {"data.hold_out": "false", "test_each_epoch": "true"}


def settings(seed: int, **changes: str) -> dict[str, str]:
    return {"seed": str(seed), "control": "false", **HEADLINE, **{k.replace("__", "."): v for k, v in changes.items()}}


def planned(script: ModuleType, name: str, seeds: int, **changes: str) -> list[Any]:
    """The runs of an arm, as a study lists them."""
    config: Config = replace(recipe("digits-snn"), epochs=3)
    for key, value in settings(0, **changes).items():
        config = override(config, {key: value})
    return [script.Arm(study="trial", name=name, config=replace(config, seed=seed)) for seed in range(seeds)]


def run(runs: Path, name: str, seed: int, *, wrong: int = 9, study: str = "trial", **changes: str) -> Path:
    """A finished run of an arm, whose first `wrong` answers are wrong."""
    path = runs / study / name / str(seed)
    rule = changes.pop("development__rule", "dpap")
    write_run(path, MadeUp(epochs=3, control=False, rule=rule, settings=settings(seed, **changes)))
    lines = from_text((path / "history.jsonl").read_text(encoding="utf-8"), "here")
    for k, line in enumerate(lines):
        if isinstance(line, RunLine):
            lines[k] = replace(line, seed=seed)
        if isinstance(line, ResultLine):
            lines[k] = replace(line, test_accuracy=1 - wrong / 450, test_correct=450 - wrong)
    (path / "history.jsonl").write_text(to_text(lines), encoding="utf-8")
    np.savez(path / "answers.npz", correct=np.arange(450) >= wrong)
    return path


def none(name: str) -> dict[str, str]:
    return {"development__rule": "none"} if name == "control" else {}


def whole(script: ModuleType, runs: Path) -> Stored:
    """A study with two seeds of a control and of an arm."""
    arms = []
    for name, wrong in (("control", 4), ("dpap-90", 9)):
        arms += planned(script, name, 2, **none(name))
        for seed in (0, 1):
            run(runs, name, seed, wrong=wrong + seed, **none(name))
    values, said = script.collect("trial", arms, runs, None)
    assert said == []
    found: Stored = values
    return found


# run folders -> JSON


def test_what_is_written_is_what_was_measured(script: ModuleType, tmp_path: Path) -> None:
    numbers = numbers_of(read_run(run(tmp_path, "dpap-90", 3)))
    stored = json.loads(json.dumps(script.to_json(numbers)))
    again = script.from_json(stored, numbers.path, dict(numbers.config))
    assert stored["wrong"] == list(range(9))
    assert numbers.correct is not None
    assert np.array_equal(again.correct, numbers.correct)
    assert replace(again, correct=None) == replace(numbers, correct=None)


def test_nothing_of_the_test_labels_is_taken_in_where_the_validation_split_is_held_out(
    script: ModuleType, tmp_path: Path
) -> None:
    run(tmp_path, "dpap-90", 0, wrong=123, data__hold_out="true")
    values, _ = script.collect("trial", planned(script, "dpap-90", 1, data__hold_out="true"), tmp_path, None)
    (stored,) = values["arms"][0]["runs"]
    assert stored["split"] == "validation"
    assert (stored["wrong"], stored["samples"], stored["best_accuracy"]) == (None, None, None)
    text = json.dumps(values)
    assert str(1 - 123 / 450)[:6] not in text
    assert "test_accuracy" not in text
    page = script.page([values])
    assert "validation accuracy" in page and "| test accuracy" not in page and "McNemar p |" not in page


def test_only_finished_runs_are_taken_in(script: ModuleType, tmp_path: Path) -> None:
    run(tmp_path, "dpap-90", 0)
    (tmp_path / "trial" / "dpap-90" / "1").mkdir()
    path = write_run(tmp_path / "trial" / "dpap-90" / "2", MadeUp(epochs=3, done=1, control=False))
    np.savez(path / "answers.npz", correct=np.ones(450, dtype=np.bool_))  # written just before the last line
    values, _ = script.collect("trial", planned(script, "dpap-90", 4), tmp_path, None)
    assert [item["seed"] for item in values["arms"][0]["runs"]] == [0]
    page = script.page([values])
    assert "| `dpap-90` | 1 of 4 |" in page
    assert "Missing: `dpap-90` seed 1, 2, 3." in page


def test_what_was_taken_in_stays_when_its_folder_is_gone(script: ModuleType, tmp_path: Path) -> None:
    before = whole(script, tmp_path / "runs")
    arms = planned(script, "control", 2, development__rule="none") + planned(script, "dpap-90", 2)
    values, said = script.collect("trial", arms, tmp_path / "empty", before)
    assert (values, said) == (before, [])
    run(tmp_path / "more", "dpap-90", 2)
    arms += planned(script, "dpap-90", 3)[2:]
    values, said = script.collect("trial", arms, tmp_path / "more", before)
    assert [item["seed"] for item in values["arms"][1]["runs"]] == [0, 1, 2]
    assert said == []


def test_a_folder_wins_over_what_was_taken_in(script: ModuleType, tmp_path: Path) -> None:
    before = whole(script, tmp_path / "runs")
    run(tmp_path / "new", "dpap-90", 0, wrong=20)
    values, _ = script.collect("trial", planned(script, "dpap-90", 2), tmp_path / "new", before)
    assert [len(item["wrong"]) for item in values["arms"][0]["runs"]] == [20, 10]


def test_numbers_of_other_settings_are_not_mixed_in(script: ModuleType, tmp_path: Path) -> None:
    before = whole(script, tmp_path / "runs")
    run(tmp_path / "new", "dpap-90", 0, optimizer__lr="0.5")
    arms = planned(script, "dpap-90", 2, optimizer__lr="0.5")
    values, said = script.collect("trial", arms, tmp_path / "new", before)
    assert [item["seed"] for item in values["arms"][0]["runs"]] == [0]
    assert any("seed 1 was run with other settings" in line for line in said)
    assert any("arm 'control' is no longer planned" in line for line in said)


def test_runs_of_one_arm_have_the_same_settings(script: ModuleType, tmp_path: Path) -> None:
    run(tmp_path, "dpap-90", 0)
    run(tmp_path, "dpap-90", 1, optimizer__lr="0.5")
    with pytest.raises(DPAPError, match=r"different settings: optimizer.lr 0.004 -> 0.5"):
        script.collect("trial", planned(script, "dpap-90", 2), tmp_path, None)


def test_a_study_that_changed_since_its_runs_says_so(script: ModuleType, tmp_path: Path) -> None:
    run(tmp_path, "dpap-90", 0)
    values, said = script.collect("trial", planned(script, "dpap-90", 1, optimizer__lr="0.5"), tmp_path, None)
    assert values["arms"][0]["changed"] == ["optimizer.lr 0.004 -> 0.5"]
    assert said == ["dpap-90: was run with other settings than studies.py says now: optimizer.lr 0.004 -> 0.5."]
    assert "`dpap-90` was run before `studies.py` changed: optimizer.lr 0.004 -> 0.5." in script.page([values])


def test_a_config_from_before_a_setting_existed_has_its_default(script: ModuleType) -> None:
    config = {"recipe": "digits-snn", "data": {"name": "digits"}}
    assert script.differences(config, {**config, "model": {"kernel": 3}, "seed": 4}) == []
    assert script.differences(config, {**config, "model": {"kernel": 5}}) == ["model.kernel 3 -> 5"]
    assert "cannot be read" in script.differences(config, {"gone": 1})[0]


def test_folds_are_runs_of_their_own(script: ModuleType, tmp_path: Path) -> None:
    arms = []
    for name, wrong in (("control", 4), ("dpap-90", 9)):
        for fold in range(3):
            folds = {"data__folds": "3", "data__fold": f"{fold}", **none(name)}
            arms += planned(script, name, 1, **folds)
            made = run(tmp_path, name, 0, wrong=wrong + fold * (1 + (name == "control")), **folds)
            made.rename(made.with_name(f"0-{fold}"))
    values, said = script.collect("trial", arms, tmp_path, None)
    assert said == []
    again, said = script.collect("trial", arms, tmp_path / "gone", json.loads(json.dumps(values)))
    assert (again, said) == (values, [])
    page = script.page([again])
    assert "digits, 3-fold cross-validation" in page
    assert "| `dpap-90` | 1 x 3 folds |" in page
    assert "-0.89 [-1.44, -0.34]" in page  # of -5, -4, -3 in 450: -4/450 with 4.303 x (1/450)/sqrt(3) around it
    fewer, _ = script.collect("trial", arms[:-1], tmp_path / "gone", values)
    fewer["arms"][1]["runs"].pop()
    fewer["arms"][1]["seeds"].append("0 fold 2")
    assert "Missing: `dpap-90` seed 0 fold 2." in script.page([fewer])


def test_a_file_has_a_line_for_each_run(script: ModuleType, tmp_path: Path) -> None:
    values = whole(script, tmp_path)
    text = script.written(values)
    assert json.loads(text) == values
    assert sum('"wrong":' in line for line in text.splitlines()) == text.count('"wrong":') == 4
    with pytest.raises(ValueError, match="JSON"):
        script.written({"a": float("nan")})


def test_files_that_are_not_ours(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text('{"recipe": "digits-snn"}')
    assert script.read_study(path) is None
    path.write_text('{"study": "scores", "format": 0}')
    with pytest.raises(DPAPError, match="have format 0"):
        script.read_study(path)
    path.write_text("{")
    with pytest.raises(DPAPError, match="cannot be read") as caught:
        script.read_study(path)
    assert caught.value.where == str(path)


# JSON -> page


def test_a_row_says_what_was_measured(script: ModuleType, tmp_path: Path) -> None:
    page = script.page([whole(script, tmp_path)])
    (row,) = [line for line in page.splitlines() if line.startswith("| `dpap-90` | 2")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 9 and 10 wrong of 450 beside 4 and 5; the ten that only the control has right make McNemar's p
    assert cells[:5] == ["`dpap-90`", "2", "97.89 ± 0.16 %", "-1.11 [-1.11, -1.11]", "0.002"]
    assert cells[-1] == "98.76 ± 0.00 %"  # the paper's protocol
    assert "to the control's final accuracy" in page
    assert "| `control` | conv1 | 100 % | 100 % |" in page


def test_what_is_not_there_is_missing_and_never_zero(script: ModuleType, tmp_path: Path) -> None:
    values, _ = script.collect("trial", planned(script, "dpap-90", 3), tmp_path, None)
    page = script.page([values])
    assert "Missing: none of the 3 runs is finished yet." in page
    assert "| `dpap-90`" not in page
    run(tmp_path, "random", 0)
    arms = planned(script, "dpap-90", 3) + planned(script, "random", 1)
    values, _ = script.collect("trial", arms, tmp_path, None)
    page = script.page([values])
    assert "Missing: `dpap-90` seed 0, 1, 2." in page
    assert "No unpruned control: random." in page


def test_the_paper_and_another_arm_stand_beside(script: ModuleType, tmp_path: Path) -> None:
    values = whole(script, tmp_path)
    assert "paper |" not in script.page([values])
    values["arms"][1] |= {"paper": "99.59", "against": "control"}
    assert "to another arm" not in script.page([values])  # the control stands there already
    run(tmp_path, "random", 0, wrong=30, development__unit_score="random")
    arms = planned(script, "random", 1, development__unit_score="random")
    extra, _ = script.collect("trial", arms, tmp_path, None)
    values["arms"] += extra["arms"]
    values["arms"][2]["against"] = "dpap-90"
    page = script.page([values])
    assert "| 99.59 |" in page
    assert "-4.67 (one seed, no interval) to `dpap-90`" in page


def test_a_control_of_another_study_is_borrowed_and_named(script: ModuleType, tmp_path: Path) -> None:
    first = whole(script, tmp_path)
    run(tmp_path, "random", 1, wrong=30, development__unit_score="random")
    arms = planned(script, "random", 2, development__unit_score="random")
    second, _ = script.collect("trial", arms, tmp_path, None)
    page = script.page([first, {**second, "study": "second"}])
    part = page[page.index("## second") :]
    assert "The control is that of study `trial`." in part
    assert "| `control` | 1 |" in part  # only the seed that is needed
    assert "-5.56 (one seed, no interval)" in part
    other = planned(script, "random", 1, model__hidden="[32]")
    run(tmp_path / "other", "random", 0, model__hidden="[32]")
    third, _ = script.collect("trial", other, tmp_path / "other", None)
    part = script.page([first, {**third, "study": "third"}])
    assert "No unpruned control: random." in part[part.index("## third") :]


def test_arms_on_different_data_have_tables_of_their_own(script: ModuleType, tmp_path: Path) -> None:
    values = whole(script, tmp_path)
    run(tmp_path, "small", 0, data__limit="500")
    extra, _ = script.collect("trial", planned(script, "small", 1, data__limit="500"), tmp_path, None)
    values["arms"] = [values["arms"][0], *extra["arms"], values["arms"][1]]
    page = script.page([values])
    assert page.count("**digits, test split**") == 1
    assert page.count("**digits, 500 training samples, test split**") == 1


def test_where_the_runs_were_made(script: ModuleType) -> None:
    def arm(**environment: object) -> Stored:
        return {"runs": [{"environment": environment}]}

    assert script.provenance([arm(torch="2.13.0")]) == "torch 2.13.0, commit not recorded"
    arms = [arm(device_name="A", threads=1, commit="a" * 40), arm(device_name="B", threads=1)]
    assert script.provenance(arms) == f"A / B, threads 1, commit {'a' * 12}"


def test_the_page_depends_on_the_files_alone(
    script: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = planned(script, "control", 1, development__rule="none") + planned(script, "dpap-90", 1)
    monkeypatch.setattr(script, "STUDIES", {"trial": lambda: iter(arms)})
    for name in ("control", "dpap-90"):
        run(place / "runs", name, 0, **none(name))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["results.py", "--runs", str(place / "runs"), *arguments])
        code: int = script.main()
        return code

    assert call("--check") == 1  # there is no page yet
    assert call() == 0
    assert "trial: 2 of 2 runs" in capsys.readouterr().out
    (place / "runs" / "trial").rename(place / "runs" / "gone")
    assert call("--check") == 0
    file, page = place / "benchmarks" / "results" / "trial.json", place / "docs" / "results.md"
    before = page.read_text(encoding="utf-8")
    assert call("trial") == 0  # the runs are gone, the numbers stay
    assert page.read_text(encoding="utf-8") == before
    assert sorted(item.name for item in file.parent.iterdir()) == ["trial.json"]
    file.write_text(file.read_text(encoding="utf-8").replace('"macs": 1', '"macs": 2'), encoding="utf-8")
    assert call("--check") == 1
    assert "docs/results.md is not what the JSON files give, from line" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == before


def test_without_any_study(script: ModuleType, place: Path) -> None:
    assert script.stored_studies() == []
    assert "No study has been run yet." in script.page([])
