"""From what is typed to a network and an example of its input: `find_model("cifar10-vgg16")`, `"timm:resnet18"`, ..."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from dpap.config import Config, read_config
from dpap.errors import DPAPError, unknown_name
from dpap.io import MANIFEST, load
from dpap.models import build, built_from
from dpap.recipes import RECIPES, recipe
from dpap.training.checkpoint import RunFolder
from dpap.training.data import spec_of

OTHERS = "a config.toml, a run folder, the folder of a saved model, timm:NAME, module:FUNCTION, file.py:FUNCTION"

NOT_THEIRS = (__file__, importlib.__file__)


class FoundModel(NamedTuple):
    """What `dpap.inspect` takes."""

    model: nn.Module
    example: Any
    """One batch of its input; random numbers where nothing else is known."""
    spiking_input: bool
    """Whether that input is events, or spikes that encode pictures."""


def find_model(name: str, *, shape: Sequence[int] | None = None, batch: int = 2) -> FoundModel:
    """A network and one batch of its input.

    Args:
        name: A recipe, a config.toml, a run folder (its finished network, else the one it began with), a folder that
            `dpap.save` wrote, `timm:NAME`, or `module:function` or `file.py:function`, a function without arguments
            that returns the network, or the network and an example of its input. Its code is imported, which runs it.
        shape: Of one sample, in place of the shape that is known.
        batch: Samples in the example.

    Raises:
        DPAPError: No such network, code that fails or returns something else, or a shape that cannot be found.
    """
    with torch.random.fork_rng(devices=[]):  # first weights are drawn; the caller's random numbers are not
        found = _found(name)
    if shape is None and found.example is not None:
        return FoundModel(found.model, found.example, False)
    sample = found.shape if shape is None else tuple(shape)
    if sample is None:
        raise DPAPError(
            "The shape of an input is not known.",
            where=name,
            fix="say that of one sample, as in --shape 3,64,64, or return (model, example_input) from the function",
        )
    if not sample or min(sample) < 1 or batch < 1:
        raise DPAPError(
            f"A batch of {batch} samples of shape {sample} is empty.", where=name, fix="give sizes of at least 1"
        )
    steps = () if found.steps is None else (found.steps,)
    example = torch.rand(*steps, batch, *sample, generator=torch.Generator().manual_seed(0))
    return FoundModel(found.model, example, found.steps is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    model: nn.Module
    shape: tuple[int, ...] | None = None
    """Of one sample, where it is known; of one frame of it, where it has several."""
    steps: int | None = None
    """Frames of a sample; None: it is a still picture."""
    example: Any = None
    """A batch, where there is one."""


def _found(name: str) -> _Found:
    folder = Path(name)
    if name.startswith("timm:"):
        return _of_timm(name.removeprefix("timm:"))
    if name in RECIPES:
        return _of_config(recipe(name))
    if name.endswith(".toml"):
        return _of_config(read_config(folder))
    if (folder / MANIFEST).is_file():
        return _saved(folder)
    if folder.is_dir():
        run = RunFolder.open(folder)
        finished = (run.model_path / MANIFEST).is_file()
        return replace(_saved(run.model_path), steps=_frames(run.config())) if finished else _of_config(run.config())
    if ":" in name:
        return _of_code(name)
    raise DPAPError(
        f"There is no model named {name!r}.", fix=f"{unknown_name('recipe', name, RECIPES).fix} Or {OTHERS}."
    )


def _of_config(config: Config) -> _Found:
    spec = spec_of(config)
    model = build(config.model.name, shape=spec.shape, classes=len(spec.classes), **config.model.arguments())
    return _Found(model=model, shape=spec.shape, steps=_frames(config))


def _frames(config: Config) -> int | None:
    """Frames of a sample, as the network of a config receives it."""
    return config.model.num_steps if spec_of(config).timed else None


def _saved(folder: Path) -> _Found:
    model = load(folder)
    made = built_from(model)
    assert made is not None, "load() built it"
    return _Found(model=model, shape=tuple(made.arguments["shape"]))


def _of_timm(name: str) -> _Found:
    if importlib.util.find_spec("timm") is None:
        raise DPAPError("timm is not installed.", where=f"timm:{name}", fix="pip install timm")
    timm = _run(f"timm:{name}", lambda: importlib.import_module("timm"), "see that `import timm` works")
    if not timm.is_model(name):  # of what is in the package: nothing is downloaded
        near = get_close_matches(name, timm.list_models())  # there are more than a thousand
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise DPAPError(f"There is no timm model named {name!r}.", fix=f"{hint}All names: timm.list_models()")
    model = _run(f"timm:{name}", lambda: timm.create_model(name, pretrained=False), "choose another one")
    return _Found(model=model, shape=tuple(model.default_cfg["input_size"]))


def _of_code(name: str) -> _Found:
    place, _, attribute = name.rpartition(":")
    path = Path(place)
    is_file = place.endswith(".py")
    if is_file and not path.is_file():
        raise DPAPError("There is no such file.", where=place, fix="name a Python file that is there")
    with _importing_from(path.resolve().parent if is_file else Path.cwd()):
        module = _run(name, lambda: _module_of_file(path) if is_file else importlib.import_module(place))
        if not hasattr(module, attribute):
            functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise unknown_name("function", attribute, functions or ["none"])
        made = _run(name, getattr(module, attribute))
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise DPAPError(
            f"{attribute}() returned a {type(model).__name__}, not a torch.nn.Module.",
            where=name,
            fix="return the network, or also an example of its input: return model, torch.rand(2, 3, 32, 32)",
        )
    return _Found(model=model, example=example)


def _module_of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_dpap_inspects_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None, "a .py file has one"
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # as an import does; dataclasses ask for it
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Modules of that folder can be imported, as when Python is started there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _run(name: str, call: Callable[[], Any], fix: str = "correct that; a function is called without arguments") -> Any:
    """Run a user's code; what it raises becomes an error that names the line."""
    try:
        return call()
    except DPAPError:
        raise
    except Exception as error:
        frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        theirs = [(path, line) for path, line in frames if path.is_file() and str(path) not in NOT_THEIRS]
        line = f", line {theirs[-1][1]} of {theirs[-1][0].name}" if theirs else ""
        raise DPAPError(
            f"The model could not be made: {type(error).__name__}: {error}", where=f"{name}{line}", fix=fix
        ) from error
