"""Pools, resampling and reductions: units stay, the axes that are mixed carry none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpap.graph.group import FloatArray
from dpap.graph.op_rules import elementwise, op_rule, out_shape
from dpap.graph.values import Value, plain
from dpap.graph.walk import Walk


def _pooled(walk: Walk, x: Value, node: Any, dims: int, divisor: FloatArray | float) -> Value:
    """Units stay on their axis. `divisor`: what the pool divides a sum by, per output position (1 for a maximum)."""
    example = node.meta["val"]
    out = elementwise(x, nonnegative=x.nonnegative)
    out.shape = tuple((example[0] if isinstance(example, (tuple, list)) else example).shape)
    for axis in range(len(out.shape) - dims, len(out.shape)):
        walk.protect(x.units[axis], "a pool mixes neighbouring units")
        out.units[axis], out.marks[axis] = None, {}
    if x.divisor is not None:
        scale = np.unique(x.divisor)
        # A pool of counts that are scaled unevenly cannot be undone position by position: booked as real-valued.
        out.divisor = np.broadcast_to(scale[0] * divisor, out.shape) if len(scale) == 1 else None
    return out


def _per_dim(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


def _outer(parts: Sequence[FloatArray]) -> FloatArray:
    product: FloatArray = np.ones((), dtype=np.float64)
    for part in parts:
        product = np.multiply.outer(product, part)
    return product


@op_rule("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def _avg_pool(
    walk: Walk,
    node: Any,
    x: Value,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    dims = int(str(node.target).split("pool")[1][0])
    if divisor_override is not None:
        return _pooled(walk, x, node, dims, float(divisor_override))
    kernel, padding = _per_dim(kernel, dims), _per_dim(padding, dims)
    stride = _per_dim(stride, dims) if stride else kernel
    parts = []
    for d in range(dims):
        size = x.shape[d - dims]
        start = np.arange(out_shape(node)[d - dims]) * stride[d] - padding[d]
        end = np.minimum(start + kernel[d], size + padding[d])
        if not count_include_pad:
            start, end = np.maximum(start, 0), np.minimum(end, size)
        parts.append((end - start).astype(np.float64))
    return _pooled(walk, x, node, dims, _outer(parts))


@op_rule("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
def _adaptive_avg_pool(walk: Walk, node: Any, x: Value, size: Any) -> Value:
    dims = int(str(node.target).split("pool")[1][0])
    parts = []
    for d in range(dims):
        n, m = x.shape[d - dims], out_shape(node)[d - dims]
        cells = np.arange(m)
        parts.append((-(-(cells + 1) * n // m) - cells * n // m).astype(np.float64))
    return _pooled(walk, x, node, dims, _outer(parts))


@op_rule(
    "aten.max_pool1d.default",
    "aten.max_pool2d.default",
    "aten.max_pool3d.default",
    *(f"aten.max_pool{dims}d_with_indices.default" for dims in (1, 2, 3)),
    *(f"aten.adaptive_max_pool{dims}d.default" for dims in (1, 2, 3)),
)
def _max_pool(walk: Walk, node: Any, x: Value, *rest: Any) -> Any:
    dims = int(str(node.target).split("pool")[1][0])
    out = _pooled(walk, x, node, dims, 1.0)
    example = node.meta["val"]
    return (out, plain(out.shape)) if isinstance(example, (tuple, list)) else out


@op_rule(
    *(f"aten.upsample_{kind}.vec" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "trilinear3d")),
    *(f"aten.upsample_{kind}.vec" for kind in ("bilinear2d", "bicubic2d")),
    *(f"aten._upsample_nearest_exact{dims}d.vec" for dims in (1, 2, 3)),
    *(f"aten._upsample_{kind}_aa.vec" for kind in ("bilinear2d", "bicubic2d")),
)
def _upsample(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    out = elementwise(walk.own(x), nonnegative=x.nonnegative and "bicubic" not in str(node.target))
    out.shape = out_shape(node)
    for axis in range(2, len(out.shape)):
        walk.protect(x.units[axis], "resampled along this axis")
        out.units[axis], out.marks[axis] = None, {}
    if "nearest" in str(node.target) and x.divisor is not None and len(np.unique(x.divisor)) == 1:
        out.divisor = np.broadcast_to(x.divisor.flat[0], out.shape)  # a spike that is copied is a spike at each place
    return out


# reductions


@op_rule(
    *(
        "aten.mean.dim",
        "aten.mean.default",
        "aten.sum.dim_IntList",
        "aten.sum.default",
        "aten.amax.default",
        "aten.amin.default",
    ),
    *("aten.logsumexp.default", "aten.std.dim", "aten.std.correction", "aten.var.dim", "aten.var.correction"),
    *("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", "aten.prod.dim_int"),
    *("aten.argmax.default", "aten.argmin.default", "aten.all.dim", "aten.any.dim"),
)
def _reduce(walk: Walk, node: Any, x: Value, *args: Any, **options: Any) -> Value:
    target = str(node.target)
    if "norm" in target and args:
        args = args[1:]  # the order of the norm
    dims = options.get("dim", args[0] if args else None)
    keepdim = len(out_shape(node)) == len(x.shape)
    listed = [dims] if isinstance(dims, int) else dims if dims else range(len(x.shape))
    reduced = {d % len(x.shape) for d in listed}
    return _reduced(walk, node, walk.own(x), reduced, keepdim)


@op_rule("aten.max.dim", "aten.min.dim", "aten.topk.default", "aten.sort.default", "aten.median.dim")
def _ranked(walk: Walk, node: Any, x: Value, *args: Any, **options: Any) -> tuple[Value, ...]:
    """(values, places) along one axis."""
    first = -1 if "sort" in str(node.target) else 0
    if "topk" in str(node.target):
        args = (args[1] if len(args) > 1 else -1,)
    axis = (args[0] if args else options.get("dim", first)) % len(x.shape)
    shape = tuple(node.meta["val"][0].shape)
    walk.protect(x.units[axis], "a ranking along this axis compares its units")
    out = plain(shape)
    kept = [d for d in range(len(x.shape)) if len(shape) == len(x.shape) or d != axis]
    out.units = [None if d == axis else x.units[d] for d in kept]
    out.marks = [{} if d == axis else x.marks[d] for d in kept]
    out.nonnegative, out.awaiting = x.nonnegative, x.awaiting
    places = plain(shape)
    places.units, places.marks = list(out.units), list(out.marks)
    return out, places


def _reduced(walk: Walk, node: Any, x: Value, reduced: set[int], keepdim: bool) -> Value:
    target = str(node.target)
    for d in reduced:
        walk.protect(x.units[d], "a reduction over this axis mixes its units")
    out = elementwise(x, nonnegative=x.nonnegative or "norm" in target, spikes=True)
    kept = [d for d in range(len(x.shape)) if keepdim or d not in reduced]
    out.shape = out_shape(node)
    out.units = [None if d in reduced else x.units[d] for d in kept]
    out.marks = [{} if d in reduced else x.marks[d] for d in kept]
    out.divisor = _reduced_divisor(x, reduced, target, out.shape)
    return out


def _reduced_divisor(x: Value, reduced: set[int], target: str, shape: tuple[int, ...]) -> FloatArray | None:
    name = target.split(".")[1]
    if x.divisor is None or len(np.unique(x.divisor)) > 1 or name not in ("mean", "sum", "amax"):
        return None
    count = int(np.prod([x.shape[d] for d in reduced])) if name == "mean" else 1
    return np.broadcast_to(x.divisor.flat[0] * count, shape)
