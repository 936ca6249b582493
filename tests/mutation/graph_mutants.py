"""Break one rule of an operator or a module at a time and see a test fail: what `mutants.py` does for the method.

`python tests/mutation/graph_mutants.py [PATTERN [RECORD]]`; PATTERN picks by file and line, RECORD is a file that a run
leaves its verdicts in, so that it can be resumed. All of them take more than an hour.
"""

from __future__ import annotations

import sys

from mutants import Mutant, main

TESTS = (
    "tests/unit/test_graph_rules.py",
    "tests/unit/test_graph.py",
    "tests/equivalence/test_zoo.py::test_what_may_go_is_what_was_worked_out_by_hand",
    "tests/equivalence/test_zoo.py::test_counts_are_those_of_the_compacted_network",
    "tests/equivalence/test_foreign.py",
)

ELEMENTWISE = "graph/ops/elementwise.py"
CONTRACTIONS = "graph/ops/contractions.py"
LAYERS = "graph/ops/layers.py"
NORMS = "graph/ops/norms.py"
POOLING = "graph/ops/pooling.py"
SHAPE = "graph/ops/shape.py"
SELECT = "graph/ops/select.py"
MODULES = "graph/module_rules.py"
MARKERS = "graph/ops/markers.py"
REGISTRY = "graph/op_rules.py"
UNITS = "graph/units.py"
SPLITS = "graph/splits.py"
MUTANTS = (
    Mutant(
        ELEMENTWISE,
        "return elementwise(walk.own(x), nonnegative=True, spikes=True)",
        "return elementwise(walk.own(x), nonnegative=True)",
    ),
    Mutant(
        ELEMENTWISE,
        "return elementwise(walk.own(x), nonnegative=True, spikes=True)",
        "return elementwise(walk.own(x), spikes=True)",
    ),
    Mutant(
        ELEMENTWISE, "    return elementwise(walk.own(x), nonnegative=True)\n", "    return elementwise(walk.own(x))\n"
    ),
    Mutant(
        ELEMENTWISE,
        "    return elementwise(walk.own(x), nonnegative=True)\n",
        "    return elementwise(walk.own(x), nonnegative=True, spikes=True)\n",
    ),
    Mutant(
        ELEMENTWISE,
        '    return elementwise(walk.own(x))\n\n\n@op_rule("aten._assert',
        '    return elementwise(walk.own(x), nonnegative=x.nonnegative)\n\n\n@op_rule("aten._assert',
    ),
    Mutant(
        ELEMENTWISE,
        '    return elementwise(walk.own(x))\n\n\n@op_rule("aten._assert',
        '    return elementwise(walk.own(x), spikes=True)\n\n\n@op_rule("aten._assert',
    ),
    Mutant(ELEMENTWISE, "        walk.attach(ids, weight, 0, masked=False)", "        pass"),
    Mutant(ELEMENTWISE, "        walk.attach(ids, weight, 0, masked=False)", "        walk.attach(ids, weight, 0)"),
    Mutant(
        ELEMENTWISE, "ids = x.units[1] if len(x.units) > 1 else None", "ids = x.units[-1] if len(x.units) > 1 else None"
    ),
    Mutant(ELEMENTWISE, "and weight.shape[0] > 1:", "and weight.shape[0] > 0:"),
    Mutant(ELEMENTWISE, "        walk.tie(np.split(ids, 2)[0], gate)\n", ""),
    Mutant(ELEMENTWISE, "walk.tie(np.split(ids, 2)[0], gate)", "walk.tie(np.split(ids, 2)[0], gate[::-1])"),
    Mutant(ELEMENTWISE, "nonnegative=x.nonnegative, spikes=True)", "nonnegative=x.nonnegative)"),
    Mutant(ELEMENTWISE, "nonnegative=x.nonnegative, spikes=True)", "spikes=True)"),
    Mutant(ELEMENTWISE, 'masked=name in ("add", "sub", "mul"))', "masked=True)"),
    Mutant(ELEMENTWISE, 'masked=name in ("add", "sub", "mul"))', "masked=False)"),
    Mutant(
        ELEMENTWISE,
        'name in ("add", "mul", "div", "maximum") and all(',
        'name in ("add", "sub", "mul", "div", "maximum") and all(',
    ),
    Mutant(ELEMENTWISE, "else v >= 0 for v in (a, b)", "else True for v in (a, b)"),
    Mutant(
        ELEMENTWISE,
        'name in ("add", "mul", "div", "maximum") and all(',
        'name in ("add", "mul", "div", "maximum") and any(',
    ),
    Mutant(ELEMENTWISE, "        tensors = [walk.own(v) for v in tensors]", "        pass"),
    Mutant(
        ELEMENTWISE,
        "    out.awaiting = frozenset().union(*(v.awaiting for v in tensors))\n    return out\n\n\ndef tie_axis",
        "    return out\n\n\ndef tie_axis",
    ),
    Mutant(
        ELEMENTWISE,
        "(v, axis - len(shape) + len(v.shape)) for v in tensors]",
        "(v, axis) for v in tensors if axis < len(v.shape)]",
    ),
    Mutant(ELEMENTWISE, "        out.marks[axis] = {**out.marks[axis], **value.marks[k]}", "        pass"),
    Mutant(ELEMENTWISE, '            walk.protect(value.units[k], "a single unit is repeated")', "            pass"),
    Mutant(ELEMENTWISE, "            walk.attach(ids, value, k, masked=masked)", "            pass"),
    Mutant(
        ELEMENTWISE, "            walk.attach(ids, value, k, masked=masked)", "            walk.attach(ids, value, k)"
    ),
    Mutant(ELEMENTWISE, 'if name != "add" or a.divisor is None', 'if name not in ("add", "mul") or a.divisor is None'),
    Mutant(ELEMENTWISE, "return a.divisor if np.array_equal(a.divisor, b.divisor) else None", "return a.divisor"),
    Mutant(
        ELEMENTWISE, "        return out\n    out.nonnegative = name in", "        pass\n    out.nonnegative = name in"
    ),
    Mutant(ELEMENTWISE, "isinstance(b, (int, float)) or b <= 0 or name", "isinstance(b, (int, float)) or name"),
    Mutant(ELEMENTWISE, 'return a.divisor / b if name == "mul"', 'return a.divisor * b if name == "mul"'),
    Mutant(ELEMENTWISE, "operands, masked=False)", "operands, masked=True)"),
    Mutant(CONTRACTIONS, "                walk.protect(value.units[axis], CONTRACTED)", "                pass"),
    Mutant(CONTRACTIONS, "    operands = [walk.own(v) for v in operands]\n", ""),
    Mutant(
        CONTRACTIONS,
        "out.nonnegative = all(v.nonnegative for v in operands)",
        "out.nonnegative = any(v.nonnegative for v in operands)",
    ),
    Mutant(CONTRACTIONS, "    out.nonnegative = all(v.nonnegative for v in operands)\n", ""),
    Mutant(CONTRACTIONS, "    out.awaiting = frozenset().union(*(v.awaiting for v in operands))\n", ""),
    Mutant(CONTRACTIONS, "    if any(len(set(term)) <", "    if False and any(len(set(term)) <"),
    Mutant(CONTRACTIONS, "            walk.protect_value(value, CONTRACTED)", "            pass"),
    Mutant(CONTRACTIONS, "letters[most - own :]", "letters[:own]"),
    Mutant(CONTRACTIONS, 'result.replace("...", letters)', 'result.replace("...", "")'),
    Mutant(CONTRACTIONS, '+ "nk") if len(a.shape) > 1', '+ "kn") if len(a.shape) > 1'),
    Mutant(CONTRACTIONS, "left = (batch[len(batch) - len(a.shape) + 2 :] +", "left = (batch[: len(a.shape) - 2] +"),
    Mutant(CONTRACTIONS, "right = (batch[len(batch) - len(b.shape) + 2 :] +", "right = (batch[: len(b.shape) - 2] +"),
    Mutant(CONTRACTIONS, "(bias, axis - len(out.shape) + len(bias.shape))], masked=False)", "], masked=False)"),
    Mutant(CONTRACTIONS, "    out.awaiting = product.awaiting\n", ""),
    Mutant(CONTRACTIONS, 'options.get("enable_gqa") and', "False and"),
    Mutant(CONTRACTIONS, '[batch + "nm", batch + "me"]', '[batch + "nm", batch + "em"]'),
    Mutant(
        CONTRACTIONS, "        weights = combined(walk, weights.shape, [weights, mask], masked=True)", "        pass"
    ),
    Mutant(CONTRACTIONS, "        walk.protect(query.units[-3]", "        walk.protect(None"),
    Mutant(LAYERS, "    out.marks[:-1] = x.marks[:-1]\n", ""),
    Mutant(LAYERS, "    keep_other_axes(walk, x, out, axis)\n", ""),
    Mutant(
        LAYERS,
        'walk.protect(ids, "lies on an axis that the next layer does not read")\n            out.units[other] = ids',
        "out.units[other] = ids",
    ),
    Mutant(LAYERS, "            out.units[other] = ids", "            pass"),
    Mutant(LAYERS, "    out.marks[0] = x.marks[0]\n", ""),
    Mutant(LAYERS, "    _mixed_space(walk, x)\n", ""),
    Mutant(
        LAYERS,
        "spatial = (stride, padding, dilation, output_padding)",
        "spatial = (stride, padding, 1, output_padding)",
    ),
    Mutant(LAYERS, "stride, padding, dilation, groups=groups)", "stride, padding, 1, groups=groups)"),
    Mutant(
        LAYERS,
        '            walk.protect_value(value, "read by a weight that is computed',
        '            walk.protect_value(plain(()), "read by a weight that is computed',
    ),
    Mutant(LAYERS, "        for value in (x, weight):", "        for value in (weight,):"),
    Mutant(LAYERS, "        walk.attach(ids, bias, 0)\n", "        pass\n"),
    Mutant(LAYERS, '        walk.activated(x, Seen(entered[0], entered[1], "input", x, axis))', "        pass"),
    Mutant(
        LAYERS,
        '        walk.protect(ids, "nn.MultiheadAttention works',
        '        walk.protect(None, "nn.MultiheadAttention works',
    ),
    Mutant(LAYERS, "walk.produce(ids, weight.parameter, int(transposed))", "walk.produce(ids, weight.parameter, 0)"),
    Mutant(
        LAYERS,
        "walk.consume(in_ids, weight.parameter, int(not transposed), why_none)",
        "walk.consume(in_ids, weight.parameter, 1)",
    ),
    Mutant(LAYERS, "        walk.consume(in_ids, weight.parameter, int(not transposed), why_none)\n", ""),
    Mutant(
        LAYERS,
        "np.repeat(unit, rows // groups), np.repeat(unit, len(in_ids) // groups)",
        "np.tile(unit, rows // groups), np.repeat(unit, len(in_ids) // groups)",
    ),
    Mutant(
        LAYERS,
        "np.repeat(unit, rows // groups), np.repeat(unit, len(in_ids) // groups)",
        "np.repeat(unit, rows // groups), np.tile(unit, len(in_ids) // groups)",
    ),
    Mutant(LAYERS, "    walk.tie(read, in_ids,", "    walk.tie(read[:0], in_ids[:0],"),
    Mutant(
        LAYERS, "walk.produce(read if transposed else ids, weight.parameter)", "walk.produce(ids, weight.parameter)"
    ),
    Mutant(
        LAYERS, "groups=groups,\n            transposed=transposed,", "groups=1,\n            transposed=transposed,"
    ),
    Mutant(LAYERS, "groups=groups,\n            transposed=transposed,", "groups=groups,"),
    Mutant(LAYERS, "stride, padding, output_padding, 1, dilation).sum()", "stride, padding, 0, 1, dilation).sum()"),
    Mutant(
        LAYERS,
        "conv(x, weight, None, stride, padding, dilation).sum()",
        "conv(x, weight, None, stride, 0, dilation).sum()",
    ),
    Mutant(LAYERS, "    if len(x.shape) < len(weight.shape):", "    if False:"),
    Mutant(NORMS, "for value in (weight, bias, mean, var):", "for value in (weight, bias, mean):"),
    Mutant(NORMS, "for value in (weight, bias, mean, var):", "for value in (weight, bias, var):"),
    Mutant(NORMS, "for value in (weight, bias, mean, var):", "for value in (weight, mean, var):"),
    Mutant(NORMS, "for value in (weight, bias, mean, var):", "for value in (bias, mean, var):"),
    Mutant(
        NORMS,
        "    ids = x.units[1]\n    if ids is not None:\n        for",
        "    ids = x.units[-1]\n    if ids is not None:\n        for",
    ),
    Mutant(NORMS, "return _batch_norm(walk, node, x, weight, bias, mean, var)", "return elementwise(x)"),
    Mutant(
        NORMS,
        "return _batch_norm(walk, node, x, weight, bias, mean, var)",
        "return _batch_norm(walk, node, x, weight, bias, None, None)",
    ),
    Mutant(NORMS, "first = len(x.units) - len(shape)", "first = len(x.units) - 1"),
    Mutant(NORMS, "if axis >= first and ids", "if axis > first and ids"),
    Mutant(NORMS, "if axis >= first and ids", "if axis >= first - 1 and ids"),
    Mutant(NORMS, "            walk.protect(ids, STATISTICS)\n            for", "            for"),
    Mutant(NORMS, "                walk.attach(ids, value, axis - first)", "                pass"),
    Mutant(
        NORMS, "                walk.attach(ids, value, axis - first)", "                walk.attach(ids, value, 0)"
    ),
    Mutant(NORMS, "    if groups == 1:\n        walk.protect(ids, STATISTICS)\n    elif weight", "    if weight"),
    Mutant(NORMS, "    elif weight is None:", "    elif False:"),
    Mutant(NORMS, "ids.reshape(groups, -1)", "ids.reshape(-1, groups).T"),
    Mutant(NORMS, "    walk.tie(of_group, np.broadcast_to(of_group[:, :1], of_group.shape))\n", ""),
    Mutant(NORMS, "    for value in (weight, bias):\n", "    for value in (weight,):\n"),
    Mutant(NORMS, '    walk.protect(x.units[axis], "a softmax takes', '    walk.protect(x.units[-1], "a softmax takes'),
    Mutant(NORMS, 'nonnegative="log" not in str(node.target)', "nonnegative=True"),
    Mutant(NORMS, 'nonnegative="log" not in str(node.target)', "nonnegative=False"),
    Mutant(
        POOLING,
        "    out = elementwise(x, nonnegative=x.nonnegative)\n    out.shape = tuple((",
        "    out = elementwise(x)\n    out.shape = tuple((",
    ),
    Mutant(POOLING, '        walk.protect(x.units[axis], "a pool mixes', '        walk.protect(None, "a pool mixes'),
    Mutant(
        POOLING,
        "        out.units[axis], out.marks[axis] = None, {}\n    if x.divisor",
        "        out.units[axis] = None\n    if x.divisor",
    ),
    Mutant(POOLING, "if len(scale) == 1 else None", "if len(scale) >= 1 else None"),
    Mutant(POOLING, "scale[0] * divisor", "divisor"),
    Mutant(POOLING, "    if divisor_override is not None:", "    if False:"),
    Mutant(POOLING, "    stride = _per_dim(stride, dims) if stride else kernel", "    stride = kernel"),
    Mutant(POOLING, "* stride[d] - padding[d]", "* stride[d]"),
    Mutant(POOLING, "np.minimum(start + kernel[d], size + padding[d])", "start + kernel[d]"),
    Mutant(POOLING, "        if not count_include_pad:", "        if count_include_pad:"),
    Mutant(POOLING, "(-(-(cells + 1) * n // m) - cells * n // m)", "((cells + 1) * n // m - cells * n // m)"),
    Mutant(POOLING, "    out = _pooled(walk, x, node, dims, 1.0)", "    out = _pooled(walk, x, node, dims, 2.0)"),
    Mutant(POOLING, 'nonnegative=x.nonnegative and "bicubic" not in str(node.target)', "nonnegative=x.nonnegative"),
    Mutant(POOLING, 'nonnegative=x.nonnegative and "bicubic" not in str(node.target)', "nonnegative=False"),
    Mutant(POOLING, '        walk.protect(x.units[axis], "resampled', '        walk.protect(None, "resampled'),
    Mutant(POOLING, '    if "nearest" in str(node.target) and x', "    if x"),
    Mutant(POOLING, '    if "nearest" in str(node.target) and x', "    if False and x"),
    Mutant(POOLING, '    if "norm" in target and args:\n        args = args[1:]  # the order of the norm\n', ""),
    Mutant(POOLING, "keepdim = len(out_shape(node)) == len(x.shape)", "keepdim = False"),
    Mutant(POOLING, "dims if dims else range(len(x.shape))", "dims if dims else [0]"),
    Mutant(POOLING, "reduced = {d % len(x.shape) for d in listed}", "reduced = {listed[0] % len(x.shape)}"),
    Mutant(POOLING, "walk.own(x), reduced, keepdim)", "x, reduced, keepdim)"),
    Mutant(POOLING, 'first = -1 if "sort" in str(node.target) else 0', "first = 0"),
    Mutant(POOLING, "        args = (args[1] if len(args) > 1 else -1,)", "        pass"),
    Mutant(POOLING, '    walk.protect(x.units[axis], "a ranking', '    walk.protect(None, "a ranking'),
    Mutant(
        POOLING,
        "kept = [d for d in range(len(x.shape)) if len(shape) == len(x.shape) or d != axis]",
        "kept = [d for d in range(len(x.shape)) if d != axis]",
    ),
    Mutant(
        POOLING,
        "    out.units = [None if d == axis else x.units[d] for d in kept]",
        "    out.units = [None for d in kept]",
    ),
    Mutant(
        POOLING,
        "out.nonnegative, out.awaiting = x.nonnegative, x.awaiting\n    places",
        "out.nonnegative = x.nonnegative\n    places",
    ),
    Mutant(
        POOLING,
        "out.nonnegative, out.awaiting = x.nonnegative, x.awaiting\n    places",
        "out.awaiting = x.awaiting\n    places",
    ),
    Mutant(POOLING, "    places.units, places.marks = list(out.units), list(out.marks)\n", ""),
    Mutant(
        POOLING, '        walk.protect(x.units[d], "a reduction over', '        walk.protect(None, "a reduction over'
    ),
    Mutant(POOLING, 'nonnegative=x.nonnegative or "norm" in target', "nonnegative=x.nonnegative"),
    Mutant(POOLING, 'nonnegative=x.nonnegative or "norm" in target', 'nonnegative="norm" in target'),
    Mutant(POOLING, "if keepdim or d not in reduced]", "if d not in reduced]"),
    Mutant(
        POOLING,
        "    out.marks = [{} if d in reduced else x.marks[d] for d in kept]",
        "    out.marks = [{} for d in kept]",
    ),
    Mutant(POOLING, "len(np.unique(x.divisor)) > 1 or name not in", "name not in"),
    Mutant(POOLING, '("mean", "sum", "amax")', '("mean", "sum", "amax", "amin", "var")'),
    Mutant(POOLING, 'if name == "mean" else 1', 'if name != "mean" else 1'),
    Mutant(
        SHAPE, "    out.divisor = None if x.divisor is None else x.divisor.reshape(out.shape)", "    out.divisor = None"
    ),
    Mutant(SHAPE, "                    walk.folds.append(", "                    ("),
    Mutant(
        SHAPE,
        "elementwise(x, nonnegative=x.nonnegative, spikes=True)\n    out.shape = out_shape(node)\n    out.units = [N",
        "elementwise(x, spikes=True)\n    out.shape = out_shape(node)\n    out.units = [N",
    ),
    Mutant(SHAPE, "if (index == index[:1]).all() else []", "if False else []"),
    Mutant(SHAPE, '        walk.protect(ids, "its axis is squeezed away")', "        pass"),
    Mutant(SHAPE, "        walk.tie(wide[axis], wide[axis][:, :1])\n", ""),
    Mutant(
        SHAPE,
        '            walk.protect(several, "a reshape folds two',
        '            walk.protect(None, "a reshape folds two',
    ),
    Mutant(
        SHAPE,
        "    out.units = [x.units[d] for d in order]",
        "    out.units = [x.units[order.index(d)] for d in range(len(order))]",
    ),
    Mutant(SHAPE, "    out.marks = [x.marks[d] for d in order]", "    out.marks = list(x.marks)"),
    Mutant(SHAPE, "x.divisor.transpose([d % len(order) for d in order])", "x.divisor"),
    Mutant(
        SHAPE,
        'swapped = order[::-1] if "mT" not in str(node.target) else [*order[:-2], order[-1], order[-2]]',
        "swapped = order[::-1]",
    ),
    Mutant(
        SHAPE,
        "order.insert(target % len(order), order.pop(source % len(order)))",
        "order.insert(source % len(order), order.pop(target % len(order)))",
    ),
    Mutant(SHAPE, "    order[a], order[b] = order[b], order[a]\n", "    order[a], order[b] = order[a], order[b]\n"),
    Mutant(SHAPE, "    out.units = [*[None] * new, *x.units]", "    out.units = [*x.units, *[None] * new]"),
    Mutant(SHAPE, '            walk.protect(out.units[axis], "a single unit is repeated")\n', ""),
    Mutant(
        SHAPE,
        "            out.units[axis] = None\n    out.divisor = None if x.divisor is None else np.broadcast",
        "    out.divisor = None if x.divisor is None else np.broadcast",
    ),
    Mutant(
        SHAPE,
        "            out.marks[axis] = {walk.new_mark(): np.arange(out.shape[axis])}\n            walk.protect(out",
        "            walk.protect(out",
    ),
    Mutant(SHAPE, "np.broadcast_to(x.divisor, out.shape)", "None"),
    Mutant(SHAPE, "    if all(t == 1 or s == 1 for", "    if any(t == 1 or s == 1 for"),
    Mutant(
        SHAPE,
        'walk.protect_value(x, "repeated along its own axis")\n    return plain(out_shape(node))\n',
        "return plain(out_shape(node))\n",
    ),
    Mutant(SELECT, '    walk.protect(x.units[axis], "single units are selected by number")\n    out', "    out"),
    Mutant(SELECT, "np.take(x.divisor, index, axis)", "x.divisor[..., 0]"),
    Mutant(SELECT, "    axis %= len(inner.shape) + 1", "    axis %= len(inner.shape)"),
    Mutant(
        SELECT,
        "        tie_axis(walk, inner, k, [(value, k) for value in values])",
        "        tie_axis(walk, inner, k, [(values[0], k)])",
    ),
    Mutant(SELECT, "    inner.nonnegative = all(", "    inner.nonnegative = any("),
    Mutant(SELECT, "    inner.awaiting = frozenset().union(*(value.awaiting for value in values))\n", ""),
    Mutant(SELECT, "out.divisor = np.stack(divisors, axis)", "out.divisor = np.stack(divisors, 0)"),
    Mutant(SELECT, "    out.units.insert(axis, None)", "    out.units.insert(0, None)"),
    Mutant(SELECT, "for value in values if len(value.shape) == len(shape)]", "for value in values]"),
    Mutant(
        SELECT,
        "            tie_axis(walk, out, k, [(value, k) for value in values])",
        "            tie_axis(walk, out, k, [(values[0], k)])",
    ),
    Mutant(SELECT, "            tie_axis(walk, out, k, [(value, k) for value in values])", "            pass"),
    Mutant(
        SELECT,
        "np.concatenate([_ids(value, k) for value in values])",
        "np.concatenate([_ids(value, k) for value in values][::-1])",
    ),
    Mutant(
        SELECT,
        "    out.nonnegative = all(value.nonnegative for value in values)\n    out.awaiting",
        "    out.nonnegative = any(value.nonnegative for value in values)\n    out.awaiting",
    ),
    Mutant(
        SELECT,
        "    out.awaiting = frozenset().union(*(value.awaiting for value in values))\n    divisors",
        "    divisors",
    ),
    Mutant(SELECT, "out.divisor = np.concatenate(divisors, axis)", "out.divisor = None"),
    Mutant(
        SELECT,
        "    if len(divisors) == len(values):\n        out.divisor = np.conc",
        "    if divisors:\n        out.divisor = np.conc",
    ),
    Mutant(SELECT, "size = -(-x.shape[axis] // chunks)", "size = x.shape[axis] // chunks"),
    Mutant(SELECT, "        _tie_pieces(walk, ids, sizes)\n    starts", "        pass\n    starts"),
    Mutant(SELECT, "if len(set(sizes)) > 1 or sizes[0] == 1:", "if len(set(sizes)) > 1:"),
    Mutant(SELECT, "if len(set(sizes)) > 1 or sizes[0] == 1:", "if sizes[0] == 1:"),
    Mutant(SELECT, "    pieces = ids.reshape(len(sizes), -1)", "    pieces = ids.reshape(-1, len(sizes)).T"),
    Mutant(SELECT, "    walk.tie(pieces, pieces[:1])", "    walk.tie(pieces[:2], pieces[:1])"),
    Mutant(SELECT, "{name: index[part] for name, index in x.marks[axis].items()}", "{}"),
    Mutant(SELECT, "np.broadcast_to(x.divisor, x.shape)[where]", "None"),
    Mutant(SELECT, "    if ids is not None and size < total:", "    if ids is not None and size < 0:"),
    Mutant(SELECT, "total % size == 0 and first % size == 0", "total % size == 0"),
    Mutant(SELECT, "equal = step == 1 and size > 0", "equal = size > 0"),
    Mutant(SELECT, "[size] * (total // size) if equal", "[size, total - size] if equal"),
    Mutant(
        SELECT,
        'dims = rest[-1] if "flip" in str(node.target) or len(rest) > 1 else range(len(x.shape))',
        'dims = rest[-1] if "flip" in str(node.target) or len(rest) > 1 else [0]',
    ),
    Mutant(
        SELECT,
        '        walk.protect(x.units[axis], "moved along its own axis")\n        out.marks[axis] = {}',
        "        out.marks[axis] = {}",
    ),
    Mutant(
        SELECT,
        "    out = elementwise(walk.own(x), nonnegative=x.nonnegative)\n    for axis in dims",
        "    out = elementwise(walk.own(x))\n    for axis in dims",
    ),
    Mutant(SHAPE, "axis = len(x.shape) - 1 - pair", "axis = pair"),
    Mutant(
        SHAPE, "np.pad(ids, (before, after), constant_values=-1)", "np.pad(ids, (after, before), constant_values=-1)"
    ),
    Mutant(
        SHAPE,
        '                out.units[axis] = None\n                walk.protect(ids, "repeated',
        '                out.units[axis] = None\n                walk.protect(None, "repeated',
    ),
    Mutant(
        SHAPE,
        "            out.marks[axis] = {}\n            if ids is not None and min",
        "            if ids is not None and min",
    ),
    Mutant(SHAPE, "squares = ids.reshape(-1, factor * factor)", "squares = ids.reshape(factor * factor, -1).T"),
    Mutant(SHAPE, "        walk.tie(squares, squares[:, :1])\n", ""),
    Mutant(SHAPE, "np.repeat(ids, factor * factor)", "np.tile(ids, factor * factor)"),
    Mutant(
        SHAPE,
        '        walk.protect(x.units[axis], "moved along its own axis")\n        out.units[axis] = None',
        "        out.units[axis] = None",
    ),
    Mutant(SHAPE, "    out.marks[-3:] = [{}, {}, {}]\n", ""),
    Mutant(SHAPE, "split = plain((groups, x.shape[1] // groups))", "split = plain((x.shape[1] // groups, groups))"),
    Mutant(
        SHAPE,
        "np.broadcast_to(line, split.shape[::-1]).reshape(-1)",
        "np.broadcast_to(line, split.shape[::-1]).T.reshape(-1)",
    ),
    Mutant(SHAPE, "np.repeat(ids, times)", "np.tile(ids, times)"),
    Mutant(SHAPE, "np.repeat(np.broadcast_to(x.divisor, x.shape), times, axis)", "None"),
    Mutant(SHAPE, '        walk.protect_value(x, "repeated along its own axis")\n        return', "        return"),
    Mutant(
        SELECT,
        "    out.units[-1] = walk.own(weight).units[-1]",
        "    out.units[-1] = walk.own(weight).units[0] if weight.shape[0] == weight.shape[-1] else None",
    ),
    Mutant(SELECT, "    out.units[-1] = walk.own(weight).units[-1]\n", ""),
    Mutant(SELECT, "place = axis - len(x.shape) + len(out.shape)", "place = axis"),
    Mutant(SELECT, "out.units[place], out.marks[place] = ids, x.marks[axis]", "pass"),
    Mutant(SELECT, "if leading and axis > 0:", "if axis > 0:"),
    Mutant(SELECT, "and len(rest[0]) == 1", "and True"),
    Mutant(
        SELECT,
        '            walk.protect(ids, "single units are selected by number")\n    out.nonneg',
        "            pass\n    out.nonneg",
    ),
    Mutant(
        SELECT,
        "    out.nonnegative, out.awaiting = x.nonnegative, x.awaiting\n    return out",
        "    return out",
    ),
    Mutant(SHAPE, "return dataclasses.replace(elementwise(x), awaiting=frozenset())", "return elementwise(x)"),
    Mutant(SHAPE, "return dataclasses.replace(elementwise(x), awaiting=frozenset())", "return plain(out_shape(node))"),
    Mutant(SHAPE, 'rest[:1] not in ((), ("constant",)) if', "False if"),
    Mutant(SHAPE, 'else "constant" not in name', "else False"),
    Mutant(MODULES, "module.out_features, module.in_features = module.weight.shape", "pass"),
    Mutant(
        MODULES,
        "    module.out_channels = module.weight.shape[0]\n    if module.groups > 1:  # whole",
        "    if module.groups > 1:  # whole",
    ),
    Mutant(MODULES, "        module.groups = module.out_channels // rows", "        pass"),
    Mutant(
        MODULES,
        "    module.in_channels = module.weight.shape[1] * module.groups",
        "    module.in_channels = module.weight.shape[1]",
    ),
    Mutant(MODULES, "        module.groups = module.in_channels // columns", "        pass"),
    Mutant(
        MODULES,
        "    module.out_channels = module.weight.shape[1] * module.groups",
        "    module.out_channels = module.weight.shape[1]",
    ),
    Mutant(MODULES, "    module.in_channels = module.weight.shape[0]\n", "    pass\n"),
    Mutant(MODULES, "            module.num_features = tensor.shape[0]", "            pass"),
    Mutant(MODULES, "for tensor in (module.weight, module.running_mean):", "for tensor in (module.weight,):"),
    Mutant(MODULES, "for tensor in (module.weight, module.running_mean):", "for tensor in (module.running_mean,):"),
    Mutant(MODULES, "    module.num_channels = module.weight.shape[0]", "    pass"),
    Mutant(MODULES, "    module.num_groups = module.num_channels // channels", "    pass"),
    Mutant(MODULES, "module.num_embeddings, module.embedding_dim = module.weight.shape", "pass"),
    Mutant(MODULES, "    module.num_parameters = module.weight.shape[0]", "    pass"),
    Mutant(MODULES, "return layer.weight.shape[0] // stacked", "return layer.weight.shape[0] // 3"),
    Mutant(MODULES, "            setattr(module, name, rows)", "            pass"),
    Mutant(MODULES, "setattr(module, heads if whole else size, rows //", "setattr(module, heads, rows //"),
    Mutant(MODULES, "if getattr(module, name, None) == dense:", "if hasattr(module, name):"),
    Mutant(MODULES, "if size > 1}", "}"),
    Mutant(MODULES, 'not type(module).__module__.startswith("torch.nn.") and', ""),
    Mutant(MODULES, "key=len, reverse=True", "key=len"),
    Mutant(
        MARKERS,
        '            walk.produce(ids, f"{module}.{name}", own, masked=False)',
        '            walk.produce(ids, f"{module}.{name}", own)',
    ),
    Mutant(MARKERS, '            walk.produce(ids, f"{module}.{name}", own, masked=False)', "            pass"),
    Mutant(MARKERS, "                walk.tie(mine, theirs)", "                pass"),
    Mutant(
        REGISTRY,
        "    for value in tracked:\n        walk.protect_value(",
        "    for value in tracked[1:]:\n        walk.protect_value(",
    ),
    Mutant(UNITS, "            self.protect(np.maximum(a, b)[~both], otherwise)", "            pass"),
    Mutant(UNITS, "            self.tie(known.ids, new.ids,", "            self.tie(known.ids[:0], new.ids[:0],"),
    Mutant(UNITS, "            known.produces |= new.produces", "            pass"),
    Mutant(UNITS, "            known.masked &= new.masked", "            pass"),
    Mutant(
        UNITS, "        for ids, reason in reversed(self._protected):", "        for ids, reason in self._protected:"
    ),
    Mutant(UNITS, "        for side in (label[a], label[b]):", "        for side in (a, b):"),
    Mutant(UNITS, "np.stack([label[members], counts])", "np.stack([label[members]])"),
    Mutant(UNITS, '            protected[int(merged[labels[0]])] = "its units', '            _ = "its units'),
    Mutant(UNITS, "        if (counts != counts[0]).any():", "        if False:"),
    Mutant(UNITS, 'np.argsort(unit[mine], kind="stable")', "np.argsort(unit[mine])[::-1].copy()"),
    Mutant(UNITS, "parameters.get(record.tensor, 0) // len(record.ids)", "parameters.get(record.tensor, 0)"),
    Mutant(UNITS, '            name += "\'"', "            break"),
    Mutant(SPLITS, "sorted(sizes, key=lambda axis: -sizes[axis])", "sorted(sizes)"),
    # Four of the next six survive so far: second choices of an axis, and guards against endless walks.
    Mutant(SPLITS, "                if np.array_equal(index, np.arange(len(index))):", "                if True:"),
    Mutant(SPLITS, "        if self._wishes:", "        if False:"),
    Mutant(SPLITS, "or (len(ids) > 1 and len(np.unique(roots[known])) <= 1)", ""),
    Mutant(SPLITS, "left[0] if left else order[0]", "left[0] if left else order[-1]"),
    Mutant(SPLITS, "len(rejected) < len(order) and failed", "failed"),
    Mutant(SPLITS, "        if self.last:\n            return False\n", ""),
)

if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:3], mutants=MUTANTS, tests=TESTS))
