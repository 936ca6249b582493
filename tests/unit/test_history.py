"""The schema of history.jsonl."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dpap.errors import DPAPError
from dpap.report.history import (
    TIME_FIELDS,
    DevelopmentLine,
    EpochLine,
    LayerResult,
    Line,
    NeuronResult,
    ResultLine,
    RunLine,
    from_text,
    read_history,
    to_text,
    without_time,
)

RUN = RunLine(recipe="digits-snn", seed=0, rule="dpap", epochs=1, batches=2, samples=100)
EPOCH = EpochLine(
    epoch=1,
    loss=0.5,
    train_accuracy=0.75,
    validation_accuracy=None,
    test_accuracy=None,
    lr=1e-3,
    connectivity=0.9,
    alive_units={"conv1": 3},
    seconds=1.5,
    samples_per_second=66.7,
)
DEVELOPMENT = DevelopmentLine(
    epoch=1, step=2, progress=0.5, connectivity=0.9, died_units={"conv1": [2]}, died_synapses={"fc1.weight": 7}
)
RESULT = ResultLine(
    test_accuracy=0.9,
    test_correct=9,
    test_samples=10,
    best_test_accuracy=None,
    connectivity=0.1,
    connectivity_conv=None,
    sparsity_paper=0.85,
    parameters=5,
    dense_parameters=50,
    macs=6,
    dense_macs=60,
    macs_real=2,
    dense_macs_real=20,
    synops=7.5,
    neuron_updates=3,
    dense_neuron_updates=4,
    energy_pj=8.5,
    memory_pj=100.5,
    dense_snn_pj=80.5,
    dense_ann_pj=90.5,
    paper_proxy_pj=9.5,
    alive_units={"conv1": 3},
    units={"conv1": 4},
    layers=[
        LayerResult(
            name="conv1",
            kind="conv",
            outputs=4,
            alive_outputs=3,
            inputs=1,
            alive_inputs=1,
            synapses=36,
            living_synapses=27,
            macs=6,
            dense_macs=60,
            sops=None,
        )
    ],
    neurons=[NeuronResult(name="conv1", units=3, silent=1, rate=0.25)],
    latency_ms=0.5,
    dense_latency_ms=1.5,
    latency_batch=64,
    threads=1,
    seconds=2.0,
)
LINES: list[Line] = [RUN, DEVELOPMENT, EPOCH, RESULT]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(to_text(LINES))
    history = read_history(path)
    assert (history.run, history.epochs, history.development, history.result) == (RUN, (EPOCH,), (DEVELOPMENT,), RESULT)
    assert from_text(path.read_text(), "here") == LINES
    assert isinstance(history.result, ResultLine)
    assert history.result.layers[0].kind == "conv", "nested lines are objects again, not dicts"


def test_each_line_is_one_json_object_that_says_its_type() -> None:
    objects = [json.loads(line) for line in to_text(LINES).splitlines()]
    assert [entry["type"] for entry in objects] == ["run", "development", "epoch", "result"]
    assert objects[1]["died_units"] == {"conv1": [2]}


def test_a_run_that_is_not_over_has_no_result(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(to_text([RUN, EPOCH]))
    assert read_history(path).result is None


def test_without_time_hides_the_clock_and_nothing_else() -> None:
    clock = replace(RESULT, seconds=None, latency_ms=9.0, dense_latency_ms=9.0, threads=2)
    slower = [RUN, DEVELOPMENT, replace(EPOCH, seconds=9.0, samples_per_second=1.0), clock]
    assert without_time(slower) == without_time(LINES)
    assert without_time([replace(EPOCH, loss=0.6)]) != without_time([EPOCH])
    assert without_time([EPOCH])[0].keys() == {"type", *EPOCH.__dataclass_fields__} - set(TIME_FIELDS)


def test_no_nan_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_text([replace(EPOCH, loss=float("nan"))])


@pytest.mark.parametrize(
    "text",
    ["{not json", '{"type": "epic"}', "[1]", "3", '{"epoch": 1}'],
)
def test_a_foreign_line_is_refused_with_its_number(text: str) -> None:
    with pytest.raises(DPAPError, match="no line of a history") as caught:
        from_text(to_text([RUN]) + text, "history.jsonl")
    assert "line 2 of history.jsonl" in caught.value.where


def test_other_fields_are_refused() -> None:
    with pytest.raises(DPAPError, match="other fields than schema 2"):
        from_text('{"type": "epoch", "epoch": 1}', "history.jsonl")


@pytest.mark.parametrize("part", [{"name": "conv1"}, "conv1"])
def test_other_fields_inside_a_result_are_refused(part: object) -> None:
    line = json.loads(to_text([RESULT]))
    line["layers"] = [part]
    with pytest.raises(DPAPError, match="'result/layers' has other fields than schema 2") as caught:
        from_text(to_text([RUN]) + json.dumps(line), "history.jsonl")
    assert "line 2 of history.jsonl" in caught.value.where


def test_a_file_that_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(DPAPError, match="cannot be read"):
        read_history(tmp_path / "history.jsonl")
    path = tmp_path / "history.jsonl"
    for text in ("", to_text([EPOCH])):
        path.write_text(text)
        with pytest.raises(DPAPError, match="does not begin with a line of type 'run'"):
            read_history(path)


def test_fields_that_older_runs_lack_take_their_default() -> None:
    lines = [json.loads(line) for line in to_text([RUN, EPOCH, DEVELOPMENT]).splitlines()]
    assert any(line.pop("living_synapses", None) is not None for line in lines)
    read = from_text("".join(json.dumps(line) + "\n" for line in lines), "here")
    assert [line.living_synapses for line in read if isinstance(line, DevelopmentLine)] == [{}]
