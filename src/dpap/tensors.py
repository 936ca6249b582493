"""Tensors and nested values as safetensors and JSON, written atomically; nothing is unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dpap.atomic import replace_file
from dpap.errors import DPAPError

STATE_TENSORS, STATE = "tensors.safetensors", "state.json"
STATE_FORMAT, STATE_VERSION = "dpap.state", 1


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a tree of dicts, lists, plain values and tensors as the new folder `folder`, all or nothing.

    Raises:
        DPAPError: no space, no permission; nothing is left behind.
        TypeError: a value of another type.
    """
    packed = Packed()
    tree = _encode(state, packed)
    data = packed.data()
    description = {
        "format": STATE_FORMAT,
        "format_version": STATE_VERSION,
        "strides": packed.strides,
        "sha256": hashlib.sha256(data).hexdigest(),
        "state": tree,
    }
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_atomic(staging / STATE_TENSORS, data)
        write_atomic(staging / STATE, json.dumps(description).encode())
        with writing(folder):
            staging.chmod(0o755)
            staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, tensors on the CPU.

    Raises:
        DPAPError: a file is missing, damaged or foreign.
    """
    description = read_manifest(folder / STATE, STATE_FORMAT, STATE_VERSION)
    tensors = read_tensors(folder / STATE_TENSORS, description)
    try:
        state = _decode(description["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / STATE, f"{error} is missing or not as it should be") from error
    if not isinstance(state, dict):
        raise damaged(folder / STATE, "it holds no mapping")
    return state


def _encode(value: Any, packed: Packed) -> Any:
    """JSON has no tensors, tuples or keys that are no strings: those become objects with one entry, named `$...`."""
    if isinstance(value, Tensor):
        return {"$tensor": packed.add(value)}
    if isinstance(value, Mapping):
        return {"$map": [[_encode(key, packed), _encode(inner, packed)] for key, inner in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(inner, packed) for inner in value]}
    if isinstance(value, list):
        return [_encode(inner, packed) for inner in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state holds a {type(value).__name__}; only tensors and plain values can be written")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "$tensor":
        return tensors[inner]
    if kind == "$tuple":
        return tuple(_decode(entry, tensors) for entry in inner)
    if kind == "$map":
        return {_decode(key, tensors): _decode(entry, tensors) for key, entry in inner}
    raise ValueError(f"an entry of kind {kind}")


class Packed:
    """Tensors on their way into one safetensors file; the caller keeps them alive, since addresses are compared."""

    def __init__(self) -> None:
        self.strides: dict[str, list[int]] = {}
        """Of each tensor that is not plainly contiguous."""
        self._stored: dict[str, Tensor] = {}
        self._keys: dict[tuple[object, ...], str] = {}

    def add(self, tensor: Tensor, name: str | None = None) -> str:
        """The key the tensor is stored under; the same for a tensor that is the same memory."""
        tensor = tensor.detach()
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and place in self._keys:
            return self._keys[place]
        key = name if name is not None else str(len(self._stored))
        self._keys[place] = key
        if tensor.stride() != plain_stride(tensor.shape) and is_dense(tensor.shape, tensor.stride()):
            self.strides[key] = list(tensor.stride())
        stored = tensor.cpu().contiguous()
        part = stored.untyped_storage().nbytes() != stored.nbytes  # of a larger tensor; safetensors refuses to share
        self._stored[key] = stored.clone() if part else stored
        return key

    def shape(self, key: str) -> list[int]:
        return list(self._stored[key].shape)

    def data(self) -> bytes:
        return safetensors.torch.save(self._stored)


def plain_stride(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """No gaps and no overlaps, in any order of the axes."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def read_manifest(path: Path, kind: str, newest: int) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DPAPError(f"The file cannot be read: {error.strerror}.", where=str(path)) from error
    except ValueError as error:
        raise damaged(path, "it is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != kind:
        raise damaged(path, f"it is not a {kind} file")
    number = manifest.get("format_version")
    if not isinstance(number, int) or not 1 <= number <= newest:
        raise DPAPError(
            f"The file has format version {number}; this dpap {dpap_version()} reads 1 to {newest}.",
            where=str(path),
            fix="read it with the dpap that wrote it, or a newer one",
        )
    return manifest


def read_tensors(path: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DPAPError(f"The file cannot be read: {error.strerror}.", where=str(path)) from error
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise damaged(path, "its hash is not the one in the file beside it; it was cut short, changed or swapped")
    try:
        tensors = safetensors.torch.load(data)
        for key, stride in manifest["strides"].items():
            stored = tensors[key]
            if not is_dense(stored.shape, stride):
                raise ValueError(f"tensor {key} has strides {stride}")
            tensors[key] = torch.empty_strided(stored.shape, stride, dtype=stored.dtype).copy_(stored)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise damaged(path, str(error)) from error
    return tensors


def damaged(path: Path, why: str) -> DPAPError:
    return DPAPError(f"The file is damaged or not ours: {why}.", where=str(path), fix="use another copy of it")


class writing:
    """Turns what the system says about a full or read-only disk into one clear error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise DPAPError(
                f"The file cannot be written: {error.strerror or error}.",
                where=str(self.path),
                fix="free some space and go on from the last checkpoint" if full else "choose a place you may write to",
            ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises:
        DPAPError: no space or no permission; what was there stays, and no part of the new is left behind.
    """
    with writing(path):
        replace_file(path, data)


def dpap_version() -> str:
    """The installed version."""
    return version("dpap")
