"""The command for a GPU, in miniature on the CPU: every stage runs, what is done is not done again, nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpap import DPAPError

pytestmark = pytest.mark.slow

STAGES = ("tests", "throughput", "cifar", "run-time", "vgg16", "released")


@pytest.fixture
def gpu(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu", repository / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


def test_every_stage_in_miniature(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--tiny", "--results", str(tmp_path)]
    gpu.main([*arguments, "--list"])
    assert capsys.readouterr().out.count("not measured") == 18

    gpu.main(arguments)
    rows = {stage: json.loads((tmp_path / f"{stage}.json").read_text())["rows"] for stage in STAGES}
    assert all(row["device"].startswith("CPU") and row["commit"] for part in rows.values() for row in part.values())
    assert rows["tests"]["pytest"]["counts"]["passed"] == 1 and not rows["tests"]["pytest"]["not passed"]
    libraries = {row["library"] for row in rows["throughput"]["backend torch"]["rows"]}
    assert {"dpap", "dpap, nhwc"} <= libraries
    assert rows["cifar"]["dpap-20, 2 epochs"]["connectivity"] == pytest.approx(0.2, abs=0.02)
    pruned, narrow = (rows["cifar"][f"{arm}, 2 epochs"]["macs"] for arm in ("dpap-20", "narrow"))
    assert narrow == pytest.approx(pruned, rel=0.5)  # whole widths of four and six channels are few to choose from
    capsys.readouterr()
    gpu.main([*arguments, "--list"])
    assert capsys.readouterr().out == "Nothing is missing.\n"

    path = tmp_path / "vgg16.json"
    content = json.loads(path.read_text())
    del content["rows"]["dpap"]
    path.write_text(json.dumps(content))
    gpu.main(arguments)
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == ["vgg16, dpap: done"]

    with pytest.raises(DPAPError, match="The results there are tiny, and these would be real"):
        gpu.main(["--device", "cpu", "--results", str(tmp_path)])


def test_a_step_that_was_cut_off_or_failed_is_tried_again(gpu: ModuleType, tmp_path: Path) -> None:
    store = gpu.Store(tmp_path, tiny=True)
    tried: list[str] = []

    def step(key: str, result: dict[str, Any] | Exception, seconds: float = 0.0) -> Any:
        def run(deadline: float, note: Any) -> Any:
            tried.append(key)
            note({"history": [1]})
            assert json.loads((tmp_path / "some.json").read_text())["rows"][key]["partial"]
            if isinstance(result, Exception):
                raise result
            return result

        return gpu.Step(key=key, run=run, seconds=lambda: seconds)

    steps = [
        step("whole", {}),
        step("cut", {"partial": True}),
        step("broken", ValueError("no data")),
        step("long", {}, 1e6),
    ]
    stage = gpu.Stage("some", 1.0, lambda context: iter(steps))
    context = gpu.Context(device="cpu", tiny=True, store=store)
    begun = time.monotonic()
    gpu.run(context, 60, [stage]), gpu.run(context, 60, [stage])
    assert tried == ["whole", "cut", "broken", "cut", "broken"] and time.monotonic() - begun < 60
    assert gpu.missing(context, [stage]) == [
        "some, cut: in part", "some, broken: ValueError: no data", "some, long: not measured"
    ]  # fmt: skip


def test_the_page_says_what_is_not_measured_and_is_current(gpu: ModuleType, repository: Path, tmp_path: Path) -> None:
    gpu.main(["--page", str(tmp_path / "empty.md"), "--results", str(tmp_path)])
    assert (tmp_path / "empty.md").read_text().count("Not measured yet.") == len(STAGES)
    gpu.main(["--page", str(tmp_path / "gpu.md")])
    assert (tmp_path / "gpu.md").read_text() == (repository / "docs" / "gpu.md").read_text()


def test_no_device_and_no_such_stage(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DPAPError, match="no CUDA device"):
        gpu.main(["--results", str(tmp_path)])
    with pytest.raises(DPAPError, match="no stage named 'cifr'"):
        gpu.main(["--results", str(tmp_path), "--stages", "cifr"])
