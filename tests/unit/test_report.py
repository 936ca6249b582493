"""The report of a run: what it says, that it draws to scale, that it needs nothing else, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import Reader, classed, cut, drawing, other, without
from report_runs import KINDS, ODD, MadeUp, config, result, write_run
from tiny_runs import tiny

from dpap.data.digits import load_digits
from dpap.errors import DPAPError
from dpap.report.files import read_run
from dpap.report.history import LayerResult, read_history
from dpap.report.page import page, write_report
from dpap.report.render import script
from dpap.report.survival_figure import (
    HIGH,
    LOW,
    MAP_ROWS,
    SurvivalMap,
    survival_map,
    survival_order,
    survival_pixels,
    survival_scale,
)
from dpap.report.svg import by_error, compact, data_uri, duration, energy, linear, logarithmic, png, share_of, tag
from dpap.training.loop import train
from dpap.training.run import Run


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    def make(like: MadeUp | None = None) -> Path:
        return write_run(tmp_path / "run", like)

    return make


# the whole page


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_page_that_is_well_formed_and_needs_nothing_else(tmp_path: Path, kind: str) -> None:
    markup = page(write_run(tmp_path / "run", KINDS[kind]))
    read = Reader(markup)
    ids = read.ids()
    assert len(ids) == len(set(ids))
    assert {"lead", "curves", "reproduce", "accuracy", "accuracy-narrow", "loss"} <= set(ids)
    for _, attributes in read.elements:
        for key in ("src", "href", "data", "action"):
            address = attributes.get(key)
            assert address is None or address.startswith(("data:", "#")), address
    for target in [link["href"] for link in read.named("a")]:
        assert target is not None
        assert target[1:] in ids, f"{target} leads nowhere"
    assert not re.search(r"url\(|@import|https?://", markup)
    for svg in re.findall(r"<svg.*?</svg>", markup, flags=re.DOTALL):
        assert "nan" not in svg and "inf" not in ET.tostring(ET.fromstring(svg), encoding="unicode").split(">")[0]


def test_the_policy_allows_the_script_of_the_page_and_no_other(made: Callable[..., Path]) -> None:
    markup = page(made())
    policy = next(meta["content"] for meta in Reader(markup).named("meta") if "http-equiv" in meta)
    (written,) = re.findall(r"<script>(.*?)</script>", markup, flags=re.DOTALL)
    assert written == script()
    assert policy is not None and policy.startswith("default-src 'none'")
    assert f"'sha256-{base64.b64encode(hashlib.sha256(written.encode()).digest()).decode()}'" in policy


def test_the_head_says_whose_data_they_are_and_which_part(made: Callable[..., Path]) -> None:
    """A part of a published set is never called as the set is; what a credit holds is text."""
    credit = "N-MNIST, Orchard & al., CC BY-SA 4.0; a subset: <1,000> of 60,000 (train) recordings"
    run = made(MadeUp(data=("nmnist-subset", credit), control=False))
    read = Reader(page(run))
    assert "data set nmnist-subset, 1,078 training samples" in read.text
    assert f"Data: {credit}." in read.text
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    old = {k: v for k, v in json.loads(lines[0]).items() if k not in ("data", "credit")}
    (run / "history.jsonl").write_text("\n".join([json.dumps(old), *lines[1:]]), encoding="utf-8")
    before = Reader(page(run))
    assert "data set digits, 1,078 training samples" in before.text
    assert "credit" not in before.ids()


def test_the_head_says_which_fold_was_tested_and_what_scored_the_steps(tmp_path: Path) -> None:
    settings = {"data.folds": "5", "data.fold": "2", "development.time": "leak", "development.time_score": "random"}
    text = Reader(page(write_run(tmp_path / "fold", MadeUp(settings=settings, control=False)))).text
    assert "training samples · fold 2 (from 0) of a 5-fold cross-validation ·" in text
    assert "time steps pruned by leak, scored by random ·" in text
    plain = Reader(page(write_run(tmp_path / "plain", MadeUp(settings={"development.time": "leak"})))).text
    assert "cross-validation" not in plain and "time steps pruned by leak ·" in plain


def test_a_run_records_its_data_and_their_credit() -> None:
    line = Run(tiny()).run_line()
    assert (line.data, line.credit) == ("digits", load_digits().spec.credit)


def test_the_page_depends_on_the_folder_alone_and_making_it_writes_nothing(made: Callable[..., Path]) -> None:
    run = made()
    before = sorted(run.rglob("*"))
    assert page(run) == page(run)
    assert sorted(run.rglob("*")) == before


def test_the_report_is_written_whole(made: Callable[..., Path]) -> None:
    run = made()
    (run / "report.html").write_text("old", encoding="utf-8")
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8") == page(run)
    assert not list(run.glob(".report*"))


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made()
    (run / "report.html").write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DPAPError, match="No space left") as caught:
        write_report(run)
    assert caught.value.where.endswith("report.html")
    assert (run / "report.html").read_text(encoding="utf-8") == "old"
    assert not list(run.glob(".report*"))


@pytest.mark.slow
def test_a_run_that_was_really_trained(tmp_path: Path) -> None:
    """What training writes is what the report reads."""
    run = tmp_path / "run"
    done = train(tiny(control="true"), run)
    read = Reader(write_report(run).read_text(encoding="utf-8"))
    for value in (done.result.test_accuracy, done.control.test_accuracy if done.control else None):
        assert value is not None
        assert f"{100 * value:.2f} %" in read.text
    assert {"accuracy", "network", "survival-maps", "rates", "silent", "energy", "speed"} <= set(read.ids())
    for layer in done.result.layers:
        assert f"{layer.living_synapses:,} of {layer.synapses:,}" in read.text


# what it says


def test_the_result_in_one_sentence(made: Callable[..., Path]) -> None:
    text = Reader(page(made())).text
    share = share_of(result(MadeUp()).connectivity)
    assert f"With {share} of its synapses the network classifies 98.00 % of the 450 test samples correctly" in text
    assert "its unpruned control reaches 98.50 %. The difference is -0.50 points , 2 of 450 samples" in text
    assert "(one seed, no interval)" in text


@pytest.mark.parametrize(
    ("kind", "said", "unsaid"),
    [
        ("without control", ["no control beside it", "One seed, no interval"], ["of control", "The difference is"]),
        (
            "dense",
            ["Nothing was pruned in this run", "Nothing was pruned: the network"],
            ["survival F", "The difference"],
        ),
        (
            "nothing dead",
            ["Nothing was pruned: the network at the end is the network at the beginning", "none pruned"],
            [],
        ),
        ("not finished", ["This run is not finished: 5 of 12 epochs", "dpap resume"], ["SOPs", "Layer by layer"]),
        ("control not finished", ["Its unpruned control is not finished", "control, validation"], ["The difference"]),
        ("ordinary", ["Share of outputs above 0", "ReLU"], ["Firing rate", "real input", "SOPs per", "Neuron updates"]),
        ("paper's rule", ["rule paper"], ["window of development", "The dashed line"]),
        (
            "large",
            ["The test split was measured after every epoch", "98.76 %, the best epoch", "150 of 4,096 units"],
            ["not finished"],
        ),
    ],
)
def test_each_kind_of_run_is_called_what_it_is(tmp_path: Path, kind: str, said: list[str], unsaid: list[str]) -> None:
    markup = page(write_run(tmp_path / "run", KINDS[kind]))
    text = Reader(markup).text + " ".join(re.findall(r'alt="([^"]*)"', markup))
    assert [words for words in said if words not in text] == []
    assert [words for words in unsaid if words in text] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data.limit": "500"}, "limited to about 500 samples: this is not the benchmark's result"),
        ({"data.hold_out": "false"}, "No validation split was held out"),
        ({"optimizer.ema": "0.99"}, "a running mean of the weights"),
    ],
)
def test_a_special_protocol_is_said(made: Callable[..., Path], settings: dict[str, str], said: str) -> None:
    run = made(MadeUp(settings=settings))
    assert said in Reader(page(run)).text
    shutil.rmtree(run)
    assert said not in Reader(page(made())).text


def test_tiles_compare_with_the_control(made: Callable[..., Path]) -> None:
    mine, control = result(MadeUp()), result(MadeUp(rule="none", deaths=False))
    markup = page(made())
    assert f"{share_of(mine.macs / control.macs)} of control" in Reader(markup).text
    widths = [float(w) for w in re.findall(r'<i style="width:([\d.]+)%">', markup)]
    ratios = [mine.connectivity / control.connectivity, mine.macs / control.macs, mine.synops / control.synops]
    assert widths[:3] == pytest.approx([100 * r for r in ratios], abs=0.01)


def test_the_config_and_the_environment_are_there_to_reproduce_it(made: Callable[..., Path]) -> None:
    run = made()
    text = "".join(Reader(page(run)).words)
    assert (run / "config.toml").read_text(encoding="utf-8") in text
    assert "a processor" in text
    assert f"dpap train {run}/config.toml" in text


def test_warnings_are_counted(made: Callable[..., Path]) -> None:
    assert "Warnings of development: 3" in Reader(page(made(MadeUp(warnings=("a", "b", "a"))))).text


def test_names_from_files_are_text_and_never_markup(made: Callable[..., Path]) -> None:
    run = made(KINDS["odd names"])
    (run / "environment.json").write_text(json.dumps({ODD: ODD}), encoding="utf-8")
    read = Reader(page(run))
    assert len(read.named("script")) == 1
    assert ODD in read.words


# to scale


def test_the_network_is_drawn_to_scale(made: Callable[..., Path]) -> None:
    markup = page(made())
    layers = result(MadeUp()).layers
    for name in ("network", "network-narrow"):
        root = drawing(markup, name)
        for style, count in (("gone", lambda n: n.outputs), ("alive", lambda n: n.alive_outputs)):
            widths = [float(bar["width"]) for bar in classed(root, f"units {style}")][1:]  # the first is the input
            wanted = [count(layer) for layer in layers]
            unit = max(widths) / max(wanted)
            assert widths == pytest.approx([max(unit * n, 2) for n in wanted], abs=0.02)
        before, after = ([float(s["width"]) for s in classed(root, f"square {style}")] for style in ("gone", "alive"))
        most = max(layer.synapses for layer in layers)
        for layer, outer, inner in zip(layers, before, after, strict=True):
            assert outer == pytest.approx(max(max(before) * (layer.synapses / most) ** 0.5, 2), abs=0.02)
            assert inner == pytest.approx(max(max(before) * (layer.living_synapses / most) ** 0.5, 2), abs=0.02)


def test_curves_go_through_their_values(made: Callable[..., Path]) -> None:
    """Connectivity on a linear axis from 0 to 1: the height of the curve is its value, the window 0.1 to 0.5 of 12."""
    root = drawing(page(made()), "connectivity")
    left, right = float(root.get("data-left", "")), float(root.get("data-right", ""))
    (window,) = classed(root, "window")
    assert float(window["x"]) == pytest.approx(left + 0.1 * (right - left), abs=0.02)
    assert float(window["width"]) == pytest.approx(0.4 * (right - left), abs=0.02)
    top, bottom = float(window["y"]), float(window["y"]) + float(window["height"])
    (curve,) = classed(root, "curve run")
    places = [tuple(map(float, place.split())) for place in curve["d"][1:].split("L")]
    assert places[0] == pytest.approx((left, top), abs=0.06)
    assert places[-1] == pytest.approx((right, bottom - 0.1 * (bottom - top)), abs=0.06)
    at_the_middle = (
        min(y for x, y in places if x <= left + 0.30 * (right - left) + 0.06),
        bottom - 0.55 * (bottom - top),
    )
    assert max(y for x, y in places if x <= left + 0.30 * (right - left) + 0.06) == pytest.approx(
        at_the_middle[1], abs=0.1
    )


def test_energy_is_split_only_where_its_parts_add_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MadeUp(control=False))
    assert len(classed(drawing(page(run), "energy"), "bar b2")) == 1
    text = (run / "history.jsonl").read_text(encoding="utf-8")
    other = re.sub(r'"energy_pj": [\d.]+', '"energy_pj": 123456.0', text)
    (run / "history.jsonl").write_text(other, encoding="utf-8")
    assert classed(drawing(page(run), "energy"), "bar b2") == []


# survival


def a_map() -> SurvivalMap:
    """Four units over three steps: unit 2 dies before the second step, unit 0 before the third."""
    survival = np.array([[0.2, 1.0, 0.1, 2.0], [0.1, 1.2, 0.0, 1.5], [0.0, 1.1, 0.0, 1.0]])
    alive = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1]], dtype=bool)
    return SurvivalMap(group="fc1", survival=survival, alive=alive)


def test_units_are_sorted_by_their_death_and_then_by_their_survival() -> None:
    assert survival_order(a_map()).tolist() == [1, 3, 0, 2]


def test_the_dead_are_clear_and_colours_follow_survival() -> None:
    pixels = survival_pixels(a_map(), 0.1, 2.0)
    assert pixels.shape == (4, 3, 4)
    assert pixels[..., 3].tolist() == [[255] * 3, [255] * 3, [255, 255, 0], [255, 0, 0]]
    assert pixels[1, 0, :3].tolist() == HIGH.tolist()  # unit 3, F = 2.0
    assert pixels[3, 0, :3].tolist() == LOW.tolist()  # unit 2, F = 0.1


def test_a_large_group_is_thinned_evenly_and_keeps_its_share_of_dead() -> None:
    alive = np.ones((5, 4 * MAP_ROWS), dtype=bool)
    alive[3:, :MAP_ROWS] = False  # a quarter dies
    item = SurvivalMap(group="fc1", survival=np.ones((5, 4 * MAP_ROWS)), alive=alive)
    pixels = survival_pixels(item, 0.0, 1.0)
    assert pixels.shape == (MAP_ROWS, 5, 4)
    assert (pixels[:, -1, 3] == 0).mean() == pytest.approx(0.25, abs=1.01 / MAP_ROWS)
    assert f"{MAP_ROWS} of {4 * MAP_ROWS:,} units" in survival_map(item, np.linspace(0.1, 0.5, 5), 10, (0.0, 1.0))


def test_the_ends_of_the_colours_are_those_of_the_living() -> None:
    low, high = survival_scale([a_map()])
    assert 0.1 <= low < 0.15
    assert 1.9 < high <= 2.0
    nobody = SurvivalMap(group="fc1", survival=np.full((1, 2), np.nan), alive=np.ones((1, 2), dtype=bool))
    assert survival_scale([nobody]) == (0.0, 1.0)


def test_the_line_stands_where_the_window_begins() -> None:
    progress = np.array([0.05, 0.15, 0.25])
    assert 'style="left:33.33%"' in survival_map(a_map(), progress, 10, (0.0, 1.0), 0.1)
    assert "mark" not in survival_map(a_map(), progress, 10, (0.0, 1.0))


def test_png() -> None:
    """Read back by hand: signature, header, checksums, rows with filter 0."""
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    content = png(pixels)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"] == struct.pack(">IIBBBBB", 3, 2, 8, 6, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == b"\0" + pixels[0].tobytes() + b"\0" + pixels[1].tobytes()
    assert data_uri(b"abc") == "data:image/png;base64,YWJj"


# scales and numbers


def test_scales_place_their_ends_and_are_monotone() -> None:
    for scale in (linear(0.0, 0.93), logarithmic(0.001, 3.0), by_error(0.3, 0.999, 0.9999), linear(2.0, 2.0)):
        values = np.linspace(scale.low, scale.high, 50)
        places = [scale(float(v)) for v in values]
        assert places[0] == 0 and places[-1] == pytest.approx(1)
        assert (np.diff(places) > 0).all()
        assert scale.ticks
        assert all(scale.low - 1e-9 <= tick <= scale.high + 1e-9 for tick in scale.ticks)


def test_halving_the_error_is_the_same_step_anywhere() -> None:
    scale = by_error(0.5, 0.999, 0.9999)
    assert scale(0.98) - scale(0.96) == pytest.approx(scale(0.99) - scale(0.98))
    assert scale.ticks == (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def test_all_right_lies_on_the_upper_edge() -> None:
    assert by_error(0.9, 1.0, 0.999)(1.0) == 1.0


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (compact(999_600), "1.00 M"),
        (compact(9_999.6), "10.0 K"),
        (compact(0), "0"),
        (compact(None), "–"),  # noqa: RUF001
        (compact(2.5e15), "2,500 T"),
        (energy(999.9), "1.00 nJ"),
        (energy(0.0), "0 pJ"),
        (share_of(0.9999), "100 %"),
        (share_of(1.2), "120 %"),
        (share_of(0.0), "0 %"),
        (duration(119.9), "120 s"),
        (duration(7199.6), "2 h 0 min"),
        (tag("a", "x", title='"<&'), '<a title="&#34;&lt;&amp;">x</a>'),
    ],
)
def test_numbers_for_people(written: str, wanted: str) -> None:
    assert written == wanted


# bad input


DAMAGE = [
    (harm, inner, name)
    for inner in ("", "control")
    for name in ("config.toml", "environment.json", "history.jsonl", "development.npz")
    for harm in (without, cut, other)
    # Nothing develops in a control, and one without a history has not begun.
    if not (inner and (name == "development.npz" or (name == "history.jsonl" and harm is without)))
]


@pytest.mark.parametrize(("harm", "inner", "name"), DAMAGE)
def test_a_missing_or_damaged_file_is_named_and_nothing_is_written(
    made: Callable[..., Path], harm: Callable[[Path, str], None], inner: str, name: str
) -> None:
    run = made()
    harm(run / inner, name)
    with pytest.raises(DPAPError) as caught:
        write_report(run)
    assert str(run / inner / name) in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_control_that_has_not_begun_is_left_out(made: Callable[..., Path]) -> None:
    run = made()
    (run / "control" / "history.jsonl").unlink()
    assert "no control beside it" in Reader(page(run)).text


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DPAPError, match=r"no run folder.*config\.toml"):
        page(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("progress", None, "no list `progress`"),
        ("survival/fc1", np.zeros((25, 3)), "alive/fc1 does not fit survival/fc1"),
        ("alive/fc1", None, "alive/fc1 does not fit survival/fc1"),
        ("survival/fc1", np.zeros(25), "1 axes instead of 2"),
        ("survival/conv1", np.zeros((4, 16)), "survival/conv1 has 4 steps, progress 25"),
        ("use/fc1", np.array(["a"] * 25), "use/fc1 holds no numbers"),
    ],
)
def test_a_record_of_development_that_does_not_fit(
    made: Callable[..., Path], name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None, problem: str
) -> None:
    run = made(MadeUp(control=False))
    with np.load(run / "development.npz") as stored:
        arrays = {key: stored[key] for key in stored.files if key != name}
    if values is not None:
        arrays[name] = values
    with (run / "development.npz").open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(DPAPError, match=re.escape(problem)) as caught:
        page(run)
    assert caught.value.where == str(run / "development.npz")


def test_nothing_is_unpickled(made: Callable[..., Path]) -> None:
    run = made(MadeUp(control=False))
    buffer = io.BytesIO()
    np.savez(buffer, progress=np.array([{"a": 1}], dtype=object))
    (run / "development.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DPAPError, match="cannot be read"):
        page(run)


def test_settings_are_found_by_their_path(made: Callable[..., Path]) -> None:
    files = read_run(made())
    assert files.setting("development.start") == config(MadeUp()).development.start
    assert files.setting("data.limit", 3) == 3  # the word "none"
    assert files.setting("no.such.thing") is None
    assert files.groups() == ("conv1", "conv2", "fc1")


def test_the_made_up_runs_are_histories_as_training_writes_them(made: Callable[..., Path]) -> None:
    history = read_history(made() / "history.jsonl")
    assert history.result == result(MadeUp())
    assert history.result is not None
    assert all(isinstance(layer, LayerResult) for layer in history.result.layers)
    assert asdict(history.run)["recipe"] == "digits-snn"
    assert len(history.epochs) == 12
    assert replace(history.run) == history.run
