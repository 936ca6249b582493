"""Files: safetensors and JSON only, written atomically. Nothing is ever unpickled.

A saved network is `save` and `load`; the state of a run is `write_state` and `read_state` of `dpap.tensors`. A tensor
comes back with the strides it had, since another memory format picks another kernel and other bits; tensors that are
one in memory are stored once and come back as one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.module_rules import follow_all, require_rule
from dpap.models import MODELS, build, built_from
from dpap.tensors import (
    Packed,
    damaged,
    dpap_version,
    read_manifest,
    read_tensors,
    write_atomic,
    writing,
)
from dpap.time.graph import MODES, Mode, TimeGraph
from dpap.time.timing import Timing, timing_of, without_timing

TENSORS, MANIFEST = "model.safetensors", "manifest.json"
FORMAT, FORMAT_VERSION = "dpap.model", 2
TIMELESS_VERSION = 1
"""Of a network without dead time steps: what reads no more than that can read it."""

ModelT = TypeVar("ModelT", bound=nn.Module)


# ---------------------------------------------------------------------------------------------------- a saved network


def save(model: nn.Module, path: str | Path, *, alive: Mapping[str, Tensor] | None = None) -> None:
    """Write a network to the folder `path`: `model.safetensors` and `manifest.json`.

    The manifest says how to build the network (for the models of this library), the shape of each tensor in it and in
    the dense network, and a hash of the tensors. Files of that name in the folder are replaced.

    Args:
        model: Any module; compacted, masked or dense.
        path: A folder; made if it is not there.
        alive: `dev.alive`, to keep on record which units of each group of the dense network are left.

    Raises:
        DPAPError: the folder cannot be written. What was there before stays as it was.
    """
    folder = Path(path)
    packed = Packed()
    names = {name: packed.add(tensor, name) for name, tensor in _tensors(model).items()}
    time = _packed_time(model, packed)
    data = packed.data()
    dense = _dense_shapes(model)
    made = built_from(model)
    manifest = {
        "format": FORMAT,
        "format_version": TIMELESS_VERSION if time is None else FORMAT_VERSION,
        "dpap_version": dpap_version(),
        "built_from": asdict(made) if made else None,
        "tensors": {
            name: {"stored_as": key, "shape": packed.shape(key), "dense_shape": dense.get(name)}
            for name, key in names.items()
        },
        "strides": packed.strides,
        "kept_units": {
            group: {"of": len(units), "kept": units.nonzero().flatten().tolist()}
            for group, units in (alive or {}).items()
        },
        "time": time,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / TENSORS, data)
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The network that `save` wrote.

    Args:
        path: The folder.
        model: A network to load into, in place: of the saved widths, or dense; a dense one is cut to the saved widths
            first (parameters that change shape become new ones: make the optimizer afterwards). Without it, the network
            is built from the manifest, which needs one of this library's models.

    Returns:
        `model`, or the new network in evaluation mode.

    Raises:
        DPAPError: a missing, damaged or foreign file, or a network that does not fit; `model` is untouched then.
    """
    folder = Path(path)
    manifest = read_manifest(folder / MANIFEST, FORMAT, FORMAT_VERSION)
    tensors = read_tensors(folder / TENSORS, manifest)
    try:
        entries = manifest["tensors"]
        values = {name: tensors[entry["stored_as"]] for name, entry in entries.items()}
        dense = {name: entry["dense_shape"] for name, entry in entries.items()}
        made = manifest["built_from"]
        time = _Time.of(manifest.get("time"), tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise damaged(folder / MANIFEST, f"{error} is missing or not as it should be") from error
    given = _rebuild(made, folder) if model is None else model
    if time is not None:
        time.check(given, folder)
    filled = _fill(given, values, dense, folder, keep_dtype=model is None)
    without_timing(filled)
    if time is not None:
        Timing(filled, time.times, time.mode).update(time.pairs)
    return filled.eval() if model is None else filled


@dataclass(frozen=True, slots=True)
class _Time:
    """The dead time steps of a saved network."""

    times: TimeGraph
    mode: Mode
    pairs: dict[str, Tensor]

    @classmethod
    def of(cls, entry: Any, tensors: Mapping[str, Tensor]) -> _Time | None:
        if entry is None:
            return None
        times = TimeGraph.from_json(entry["graph"])
        pairs = {name: tensors[key] for name, key in entry["pairs"].items()}
        if entry["mode"] not in MODES or {n.name: (n.units, times.num_steps) for n in times.neurons} != {
            name: tuple(alive.shape) for name, alive in pairs.items()
        }:
            raise ValueError("time")
        return cls(times, entry["mode"], pairs)

    def check(self, model: nn.Module, folder: Path) -> None:
        modules = dict(model.named_modules())
        wanted = {n.name for n in self.times.neurons} | {layer.name for layer in self.times.layers}
        missing = sorted(wanted - modules.keys())
        if missing:
            raise DPAPError(
                f"The saved network has dead time steps in {_some(missing)}, which this network does not have.",
                where=str(folder),
                fix="pass the network that was saved, dense or of the saved widths",
            )


def _packed_time(model: nn.Module, packed: Packed) -> dict[str, Any] | None:
    timing = timing_of(model)
    if timing is None:
        return None
    return {
        "mode": timing.mode,
        "graph": timing.times.to_json(),
        "pairs": {name: packed.add(alive, f"pairs of {name}") for name, alive in timing.pairs.items()},
    }


def kept_units(path: str | Path) -> dict[str, tuple[int, list[int]]]:
    """Of each group on record when `save` was called: units of the dense network, and the indices that are left."""
    manifest = read_manifest(Path(path) / MANIFEST, FORMAT, FORMAT_VERSION)
    return {group: (int(entry["of"]), list(entry["kept"])) for group, entry in manifest["kept_units"].items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    extra = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if extra:
        raise DPAPError(
            f"The state of the model holds something that is no tensor: {', '.join(extra)}.",
            fix="keep such state out of the state_dict (get_extra_state); only tensors are saved",
        )
    return state


def _dense_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Shapes of the network as it was built; empty for a network of another origin."""
    made = built_from(model)
    if made is None:
        return {}
    with torch.device("meta"):
        dense = build(made.name, **made.arguments)
    return {name: list(tensor.shape) for name, tensor in dense.state_dict().items()}


def _rebuild(made: Any, folder: Path) -> nn.Module:
    if made is None:
        raise DPAPError(
            "The saved network is not one of this library's models, so it cannot be built from the file alone.",
            where=str(folder),
            fix="make the dense network and pass it: dpap.load(path, model)",
        )
    try:
        name, arguments = made["name"], dict(made["arguments"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced; the caller's random numbers are not
            return build(name, **arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(
            folder / MANIFEST, f"built_from does not describe one of the models {', '.join(MODELS)}"
        ) from error


def _fill(
    model: ModelT, values: Mapping[str, Tensor], dense: Mapping[str, Any], folder: Path, *, keep_dtype: bool = False
) -> ModelT:
    """Put `values` into `model`, cutting it where they are smaller. All is checked before anything is changed."""
    present = _tensors(model)
    if present.keys() != values.keys():
        raise DPAPError(
            "The network has other tensors than the saved one: "
            f"missing in the file {_some(present.keys() - values.keys())}, missing in the network "
            f"{_some(values.keys() - present.keys())}.",
            where=str(folder),
            fix="pass the network that was saved, dense or of the saved widths",
        )
    resized = []
    for name, value in values.items():
        if value.shape == present[name].shape:
            continue
        wide = present[name].shape
        fits = len(value.shape) == len(wide) and all(a <= b for a, b in zip(value.shape, wide, strict=True))
        if not fits or (dense[name] is not None and list(wide) != dense[name]):
            raise DPAPError(
                f"{name} has shape {tuple(wide)} in the network; the saved one has {tuple(value.shape)}"
                + (f", cut from {tuple(dense[name])}." if dense[name] is not None else "."),
                where=str(folder),
                fix="pass the dense network that was pruned, or one of the saved widths",
            )
        owner = name.rpartition(".")[0]
        require_rule(model.get_submodule(owner), owner)
        resized.append(name)
    replaced: dict[int, Tensor] = {}
    for name, value in values.items():
        dtype = value.dtype if keep_dtype else present[name].dtype
        _put(model, name, present[name], value.to(dtype), replaced)
    follow_all(model, {name.rpartition(".")[0] for name in resized})
    return model


def _put(model: nn.Module, name: str, old: Tensor, value: Tensor, replaced: dict[int, Tensor]) -> None:
    """In place where the layout in memory is the same; else a new tensor takes the name, one for tied names."""
    if (old.shape, old.stride(), old.dtype) == (value.shape, value.stride(), value.dtype):
        with torch.no_grad():
            old.copy_(value)
        return
    if id(old) not in replaced:
        new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=old.device).copy_(value)
        replaced[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    path, _, leaf = name.rpartition(".")
    owner, tensor = model.get_submodule(path), replaced[id(old)]
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
