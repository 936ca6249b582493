"""The command line: parse, call, print."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Annotated, Self

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dpap.config import Config, override
from dpap.data.events import EVENT_SOURCES
from dpap.data.events.status import event_status, fetch_events, verify_events
from dpap.data.set_status import SetStatus, fetch, status, verify
from dpap.data.sources import SOURCES
from dpap.errors import DPAPError, unknown_name
from dpap.find_model import find_model
from dpap.inspection import inspect as inspect_model
from dpap.inspection_table import tables
from dpap.recipes import DEFAULT_RECIPE, RECIPES, config_of_file, recipe
from dpap.report.compare import compare_runs
from dpap.report.compare_page import write_comparison
from dpap.report.compare_table import comparison_table
from dpap.report.page import write_report
from dpap.training import loop
from dpap.training.checkpoint import RunFolder
from dpap.training.evaluate import Evaluation, evaluate_run, require_device
from dpap.training.result_table import result_table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune networks, spiking or not, while they train.",
)
console = Console()
errors = Console(stderr=True)


def _use_data_dir(folder: Path | None) -> Path | None:
    """Data sets are looked for in the folder that DPAP_DATA names; the option is another way to name it."""
    if folder is not None:
        if not folder.is_dir():
            raise DPAPError("There is no such folder.", where=f"--data-dir {folder}", fix="make it, or name another")
        os.environ["DPAP_DATA"] = str(folder)
    return folder


DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="DPAP_DATA", callback=_use_data_dir, help="Where data sets are.", show_default=False
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]


@app.command()
def train(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe (see `dpap recipes`) or a config.toml.")
    ] = DEFAULT_RECIPE,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be given again.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder to make; by default runs/RECIPE-N.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default=False)] = None,
    data_dir: DataDirOption = None,
    no_control: Annotated[bool, typer.Option("--no-control", help="Leave out the unpruned control.")] = False,
    shrink: Annotated[
        str | None,
        typer.Option(help="When pruned units leave the tensors: auto, never or always.", show_default=False),
    ] = None,
    on_bad_sample: Annotated[
        str | None,
        typer.Option(help="Of recordings of events that cannot be used: error, or skip them.", show_default=False),
    ] = None,
) -> None:
    """Train a recipe, and its unpruned control, into a run folder."""
    config = _config(name)
    changes = [_setting(text) for text in settings or ()]
    flags = {"epochs": epochs, "seed": seed, "device": device, "control": "false" if no_control else None}
    flags |= {"development.shrink": shrink, "data.on_bad_sample": on_bad_sample}
    changes += [(key, str(value)) for key, value in flags.items() if value is not None]
    config = override(config, dict(changes))
    path = out if out is not None else _free_folder(config.recipe)
    require_device(config.device)  # before anything is downloaded
    _have_data(config)
    with _interruptible(path), _Display(config) as display:
        done = loop.train(config, path, watch=display.watch)
    _show(done)
    _report(path)


@app.command()
def resume(run: RunArgument, data_dir: DataDirOption = None) -> None:
    """Continue a run that was interrupted."""
    config = RunFolder.open(run).config()
    with _interruptible(run), _Display(config) as display:
        done = loop.resume(run, watch=display.watch)
    _show(done)
    _report(run)


@app.command()
def evaluate(run: RunArgument, data_dir: DataDirOption = None) -> None:
    """Measure the saved network of a finished run, and its control, on the test split."""
    _show(evaluate_run(run))


@app.command()
def report(run: RunArgument) -> None:
    """Write report.html of a run: one page, readable offline."""
    _report(run)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; those that differ in their seed alone are one arm.")],
    against: Annotated[
        str | None, typer.Option(help="Also the difference to this arm, as the table names it.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plot and table as a page.", show_default=False)] = None,
) -> None:
    """Compare runs on the same data: means, intervals of the difference to the control, McNemar's test."""
    compared = compare_runs(runs, against=against)
    console.print(comparison_table(compared))
    if out is not None:
        written = write_comparison(compared, out)
        console.print(f"page: {written}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="A recipe, a run folder, the folder of a saved model, timm:NAME, or module:FUNCTION or "
            "file.py:FUNCTION, a function without arguments that returns the network, or it and an example input. "
            "Such code is imported, which runs it: name only files you trust.",
            show_default=False,
        ),
    ],
    shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Of one sample, in place of the usual.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples in the example input.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    unknown: Annotated[
        str, typer.Option(help="Operators without a rule: refuse them, or protect what touches them.")
    ] = "refuse",
) -> None:
    """Show what can be pruned of a network and what each layer costs. Nothing is trained."""
    network = find_model(model, shape=None if shape is None else _sizes(shape), batch=batch)
    found = inspect_model(*network, name=model, unknown=unknown)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        console.print(tables(found))


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise DPAPError(f"--shape {text} is no shape.", where="--shape", fix="write --shape 3,64,64") from None


@app.command()
def data(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="list, fetch or verify.")] = "list",
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Data sets; all of them for list and verify.")
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the data sets that are here and those that are missing; fetch or verify them.

    Sets of events are fetched by hand: `fetch` says how.
    """
    if action not in DATA_ACTIONS:
        raise unknown_name("action", action, DATA_ACTIONS)
    if action == "fetch" and not names:
        raise DPAPError(
            "There is nothing named to fetch.", where="dpap data fetch", fix=f"name one: {', '.join(SOURCES)}"
        )
    found = [
        (EVENT_ACTIONS if name in EVENT_SOURCES else DATA_ACTIONS)[action](name)
        for name in names or (*SOURCES, *EVENT_SOURCES)
    ]
    table = Table("data set", "state", "files", "where", "to download", box=None, pad_edge=False)
    for part in found:
        here = len(part.files) - len(part.missing)
        size = f"{part.to_download / 1e6:.1f} MB" if part.to_download else "by hand" if part.missing else ""
        table.add_row(part.name, part.state, f"{here} of {len(part.files)}", escape(str(part.where or "")), size)
    console.print(table)
    for part in found:
        for file in part.files:
            if file.problem:
                console.print(str(file), highlight=False, soft_wrap=True, markup=False)
    if any(part.state == "damaged" for part in found):
        raise typer.Exit(1)


def _have_data(config: Config) -> None:
    """Download what is missing where it shows, before the run begins."""
    if config.data.name in SOURCES and status(config.data.name).missing:
        _fetched(config.data.name)


def _fetched(name: str) -> SetStatus:
    """Download with a bar for each file."""
    with Bars(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=errors) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(file: str, here: int, size: int) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=size)
            bars.update(tasks[file], completed=here)

        return fetch(name, progress)


DATA_ACTIONS: dict[str, Callable[[str], SetStatus]] = {"list": status, "fetch": _fetched, "verify": verify}
EVENT_ACTIONS: dict[str, Callable[[str], SetStatus]] = {
    "list": event_status,
    "fetch": fetch_events,
    "verify": verify_events,
}


@app.command()
def recipes() -> None:
    """List the recipes."""
    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name, make in RECIPES.items():
        table.add_row(name, (make.__doc__ or "").strip().splitlines()[0])
    console.print(table)


def main() -> None:
    """Run the command line. A `DPAPError` becomes one paragraph on standard error and exit code 1."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False)],
    )
    try:
        app()
    except DPAPError as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _config(name: str) -> Config:
    return config_of_file(Path(name)) if name.endswith(".toml") else recipe(name)


def _setting(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise DPAPError(f"--set {text} is not KEY=VALUE.", where="--set", fix="write --set optimizer.lr=0.01")
    return key.strip(), value.strip()


def _free_folder(name: str) -> Path:
    """runs/NAME-N with the lowest N that is free."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "run"
    return next(path for n in count(1) if not (path := Path("runs") / f"{stem}-{n}").exists())


@contextmanager
def _interruptible(path: Path) -> Iterator[None]:
    """Ctrl-C says how to go on, and exits with 130 as a shell expects."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (path / "config.toml").exists()
        then = (
            f"Go on after the last complete epoch: dpap resume {shlex.quote(str(path))}"
            if begun
            else "Nothing was written."
        )
        _say(f"Interrupted. {then}")
        raise typer.Exit(130) from None


class _Display:
    """Live progress: a bar for the run and one for its control; without a terminal, a line ten times a run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=6),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=errors,
            disable=not errors.is_terminal,
        )
        self.tasks: dict[bool, TaskID] = {}
        self.started: dict[bool, tuple[float, int]] = {}
        """Run or control -> when it began, and the batches that were behind it then (more than 0 when resumed)."""

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def watch(self, now: loop.Progress) -> None:
        done, total = (now.epoch - 1) * now.batches + now.batch, now.epochs * now.batches
        if now.control not in self.started:
            self._announce(now)
            self.started[now.control] = time.monotonic(), done
        name = "pruned" if not now.control else "control" if self._has_control else "unpruned"
        text = (
            f"{now.epoch}/{now.epochs} loss {now.loss:.3f} train acc {now.accuracy:.1%}"
            + (f" val {now.validation_accuracy:.1%}" if now.validation_accuracy is not None else "")
            + ("" if now.control else f" kept {now.connectivity:.1%}")
        )
        if self.bars.disable:
            if now.batch == now.batches and (now.epoch % -(-now.epochs // 10) == 0 or now.epoch == now.epochs):
                began, before = self.started[now.control]
                seconds = (time.monotonic() - began) / max(done - before, 1) * (total - done)
                _say(f"{name} epoch {text}, {timedelta(seconds=round(seconds))} to go")
            return
        if now.control not in self.tasks:
            self.tasks[now.control] = self.bars.add_task(name, total=total, text="")
        self.bars.update(self.tasks[now.control], completed=done, text=text)

    def _announce(self, now: loop.Progress) -> None:
        """What is about to be trained, on what; the first run also says what comes after it."""
        config = self.config
        if now.control and self._has_control:
            _say("The unpruned control: the same first weights, batches and epochs")
            return
        where = f"cpu ({torch.get_num_threads()} threads)" if config.device == "cpu" else config.device
        after = ", then the unpruned control" if self._has_control else ""
        _say(f"{config.recipe}: {now.parameters:,} parameters, {now.samples:,} training samples of {config.data.name}")
        _say(f"{now.epochs} epochs on {where}{after}")
        if not now.control:
            _say("kept: connections of the dense network that are left")

    @property
    def _has_control(self) -> bool:
        return self.config.control and self.config.development.rule != "none"


def _say(text: str) -> None:
    errors.print(text, highlight=False, soft_wrap=True, markup=False)


def _report(run: Path) -> None:
    console.print(f"report: {write_report(run)}", highlight=False, soft_wrap=True, markup=False)


def _show(done: Evaluation) -> None:
    console.print(result_table(done))
    console.print(f"run: {done.path}", highlight=False, soft_wrap=True, markup=False)
