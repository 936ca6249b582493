"""Training runs: `train` makes one, `resume` goes on with one that was interrupted, `train_epoch` is the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from dpap.config import Config
from dpap.errors import DPAPError
from dpap.io import save
from dpap.report.history import DevelopmentLine, EpochLine, Line, ResultLine
from dpap.training.checkpoint import RunFolder
from dpap.training.evaluate import Evaluation, evaluate_saved
from dpap.training.randomness import seed_global
from dpap.training.run import NotFinite, Progress, Run, set_rate

Watch = Callable[[Progress], None]


def train(config: Config, path: str | Path, *, watch: Watch | None = None) -> Evaluation:
    """One run and, if the config asks for it, its unpruned control, in a new folder.

    Args:
        config: The whole run.
        path: The folder to make; `dpap.training.checkpoint` says what will be in it.
        watch: Called after every batch.

    Raises:
        DPAPError: what the config asks for is not possible here (nothing is written then); the loss is no longer finite
            or the disk is full (the folder then holds the last good state).
        KeyboardInterrupt: passed on; `resume(path)` goes on after the last complete epoch.
    """
    with own_settings(config):
        run = Run(config)
        return _finish(run, RunFolder.create(Path(path), config), watch)


def resume(path: str | Path, *, watch: Watch | None = None) -> Evaluation:
    """Go on after the last complete epoch of a run. On a CPU the end is, bit for bit, that of an uninterrupted run.

    Raises:
        DPAPError: no run folder, all checkpoints damaged, or a config that was changed since.
    """
    folder = RunFolder.open(Path(path))
    config = folder.config()
    with own_settings(config):
        folder.warn_of_changes()
        return _finish(Run(config), folder, watch)


def _finish(run: Run, folder: RunFolder, watch: Watch | None) -> Evaluation:
    """Train what is left of a run, then of its control."""
    result = _train_rest(run, folder, watch)
    if not run.config.control or run.dev is None:
        return Evaluation(path=folder.path, result=result, control=None)
    config = run.config.as_control()
    inner = RunFolder(folder.control_path)
    if not inner.config_path.exists():
        inner = RunFolder.create(inner.path, config)
    return Evaluation(path=folder.path, result=result, control=_train_rest(Run(config), inner, watch))


def _train_rest(run: Run, folder: RunFolder, watch: Watch | None) -> ResultLine:
    done, lines = run.go_back_to(folder)
    if isinstance(lines[-1], ResultLine):
        return lines[-1]
    for epoch in range(done, run.config.epochs):
        try:
            lines += train_epoch(run, epoch, watch)
        except NotFinite as error:
            raise _diverged(error, epoch, folder) from None
        folder.write_lines(lines)
        folder.write_development(run.record())
        folder.write_checkpoint(epoch + 1, run.state(len(lines)))
    save(run.final_model(), folder.model_path, alive=run.alive)
    seconds = sum(line.seconds for line in lines if isinstance(line, EpochLine))
    measured = evaluate_saved(
        folder.model_path,
        run.data,
        device=run.config.device,
        channels_last=run.config.channels_last,
        seconds=seconds,
        best_test_accuracy=best_after_last_death(lines),
    )
    folder.write_answers(measured.correct)
    folder.write_activity(measured.activity)
    folder.write_lines([*lines, measured.result])
    return measured.result


def best_after_last_death(lines: Sequence[Line]) -> float | None:
    """The paper's protocol: the best test accuracy over the epochs after the last pruning; None if none was
    measured."""
    deaths = [
        line.epoch
        for line in lines
        if isinstance(line, DevelopmentLine) and (line.died_units or line.isolated_units or line.died_synapses)
    ]
    last = max(deaths, default=0)  # its epoch's accuracy is measured after it, at the epoch's end
    found = [line.test_accuracy for line in lines if isinstance(line, EpochLine) and line.epoch >= last]
    return max((value for value in found if value is not None), default=None)


def train_epoch(run: Run, epoch: int, watch: Watch | None = None) -> list[Line]:
    """One pass over the training split: the lines it adds to the history."""
    config, model, optimizer = run.config, run.model, run.optimizer
    lines: list[Line] = []
    loss_sum = right = seen = 0.0
    started = time.perf_counter()
    model.train()
    for batch, (images, labels) in enumerate(run.batches(epoch)):
        lr = set_rate(optimizer, config.optimizer, epoch * run.batch_count + batch, run.total_batches)
        seed_global(config.seed, "dropout", epoch, batch)
        with run.observing():
            outputs, loss = run.forward(images, labels)
        if not math.isfinite(value := loss.item()):
            raise NotFinite(f"The loss became {value}", batch)
        run.update(loss)
        lines += run.develop(epoch, batch)
        loss_sum, seen = loss_sum + value * len(labels), seen + len(labels)
        right += int((outputs.argmax(1) == labels).sum())
        if watch is not None:
            watch(run.progress(epoch, batch, loss_sum / seen, right / seen))
    seconds = time.perf_counter() - started
    run.check_finite(batch)
    run.measure_epoch()
    return [*lines, run.epoch_line(epoch, loss_sum / seen, right / seen, lr, seconds, int(seen))]


@contextmanager
def own_settings(config: Config) -> Iterator[None]:
    """A run seeds PyTorch's generators and may set its threads; the caller gets both back as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_num_threads(threads)


def _diverged(error: NotFinite, epoch: int, folder: RunFolder) -> DPAPError:
    kept = f"the state after epoch {epoch} is kept in {folder.checkpoints_path}" if epoch else "no epoch was completed"
    return DPAPError(
        f"{error.what} in epoch {epoch + 1}, batch {error.batch + 1}; {kept}.",
        where=str(folder.path),
        fix="lower optimizer.lr, or set optimizer.clip, and start a new run",
    )


__all__ = ["Progress", "Run", "resume", "train", "train_epoch"]
