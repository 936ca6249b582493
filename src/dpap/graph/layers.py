"""From the calls that a walk met to layers and neurons as plain data."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from dpap.errors import DPAPError
from dpap.graph.group import Features, FloatArray, IntArray, Layer, NeuronSite
from dpap.graph.layouts import Layouts
from dpap.graph.steps import Steps
from dpap.graph.units import Found
from dpap.graph.values import LayerCall, NeuronCall, Seen, Value
from dpap.graph.walk import Walk


def make_layers(calls: Sequence[LayerCall], found: Found, layout: Layouts) -> tuple[Layer, ...]:
    """The layers of a network from the calls of their modules.

    Raises:
        DPAPError: A loop over time calls a module in a way that cannot be observed.
    """
    layers = tuple(_layer(executions, found, layout) for executions in _executions(calls, layout))
    _check_loops(layers, layout.steps)
    _check_in_time(layers, layout.steps)
    return layers


def neuron_sites(walk: Walk, found: Found, layout: Layouts) -> tuple[NeuronSite, ...]:
    """The calls of spiking neurons; the steps of a loop over time are one."""
    calls = [call for call in walk.neurons if call.call == 0 or call.name not in walk.loops]
    return tuple(_neuron_site(walk, call, found, layout) for call in calls)


def _executions(layers: Iterable[LayerCall], layout: Layouts) -> list[list[LayerCall]]:
    """What is one layer: T calls of a module that a loop over time makes, else each call."""
    found: dict[Any, list[LayerCall]] = {}
    for number, layer in enumerate(layers):
        times = layout.per_step(layer.name, layer.output) if layer.observed or layer.groups > 1 else 0
        key = (layer.weight, layer.call % times) if times else number
        found.setdefault(key, []).append(layer)
    return list(found.values())


def _check_loops(layers: Iterable[Layer], steps: Steps) -> None:
    """Each call that a loop makes of a module in one step must be a site: else an observer cannot tell the steps."""
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for site in (s for layer in layers for s in (layer.pre, layer.post) if s is not None):
        if site.layout == "call per step":
            seen[(site.module, site.side)].add(site.call)
    for (module, _), calls in seen.items():
        times = steps.per_step(module)
        if len(calls) < times:
            raise DPAPError(
                f"Each step calls {module} {times} times, and units are seen at {len(calls)} of these calls only.",
                where=module,
                fix="give each place in the network a module of its own.",
            )


def _check_in_time(layers: Iterable[Layer], steps: Steps) -> None:
    """What a layer drives must be seen in its own step."""
    for layer in layers:
        seen = layer.post
        if seen is None or seen.layout != "call per step" or seen.side != "input":
            continue
        if steps.reads_the_past(seen.module, seen.call):
            raise DPAPError(
                f"What {layer.name} drives is seen one step late, where {seen.module} reads it: no method is observed, "
                "such as neuron.step, or a function.",
                where=layer.name,
                fix="call the neuron as a module in each step, dpap.neurons.StepByStep(neuron), or use "
                "dpap.neurons.Recurrent.",
            )


def _layer(calls: Sequence[LayerCall], found: Found, layout: Layouts) -> Layer:
    """One layer from its calls: one, or one for each step."""
    call = next((c for c in calls if c.input.tracked), calls[0])  # a first step may read zeros that no unit made
    active = next((c for c in calls if c.post is not None), call)
    call = dataclasses.replace(call, call=calls[0].call, post=active.post, post_ids=active.post_ids)
    inputs = _features(call.in_ids, found)
    post, post_row, post_features = call.post, None, None
    if post is not None and call.post_ids is not None:
        post_row = _rows_behind(call.post_ids, call.out_ids, found)
        if (post_row < 0).all():  # another layer's units alone are seen there
            post = post_row = None
        elif np.array_equal(post_row, np.arange(len(call.out_ids))):
            post_row = None
        else:
            post_features = _features(call.post_ids, found)
    if call.observed and post is not None and layout.rows(post.value) != layout.rows(call.input):
        post = post_row = post_features = None  # seen outside the windows that the layer works in
    if call.observed and post is None:
        post = Seen(call.name, call.call, "output", call.output, call.output_axis)
    reading, features = (call.input, len(call.in_ids)) if call.transposed else (call.output, len(call.out_ids))
    executions = len(calls) * int(np.prod(reading.shape)) // (features * layout.batch(reading))
    steps = 1 if len(calls) == 1 and layout.of(call.output)[0] == "B" else layout.num_steps
    site = None if post is None else layout.site(post)
    return Layer(
        name=call.name,
        call=call.call,
        kind=call.kind,
        weight=call.weight,
        bias=call.bias,
        out_group=found.names(call.out_ids)[0],
        out_units=found.at(call.out_ids)[1],
        in_group=inputs.groups,
        in_owner=inputs.owner,
        in_unit=inputs.unit,
        kernel=call.kernel,
        positions=executions // steps,
        steps=steps,
        macs_per_synapse=executions * call.kernel,
        pre=layout.site(Seen(call.name, call.call, "input", call.input, call.input_axis)) if call.observed else None,
        post=None if call.groups > 1 else site,
        post_row=post_row,
        post_features=post_features,
        spike_divisor=_sample([c.input for c in calls], layout),
        fanout=call.fanout,
        groups=call.groups,
        inner=site if call.groups > 1 else None,
        transposed=call.transposed,
    )


def _rows_behind(post: IntArray, rows: IntArray, found: Found) -> IntArray:
    """Row of the weight behind each feature that is seen, -1: none.

    By id where the features carry those of all rows of their units. Else by unit, in order: a unit with as many
    features as rows has one for each; with fewer, its last rows (the values of a head lie behind its queries and keys).
    """
    if len(np.unique(rows)) == len(rows):
        order = np.argsort(rows)
        place = np.minimum(np.searchsorted(rows[order], post), len(rows) - 1)
        same = rows[order][place] == post
        seen = np.unique(order[place][same])
        if len(seen) and len(seen) == np.isin(found.at(rows)[1], found.at(rows[seen])[1]).sum():
            return np.where(same, order[place], -1)
    group, unit = found.at(post)
    unit = np.where(group == found.at(rows)[0][0], unit, -1)
    row_unit = found.at(rows)[1]
    behind = np.full(len(post), -1)
    for u in np.intersect1d(unit[unit >= 0], row_unit):
        mine, own = np.flatnonzero(unit == u), np.flatnonzero(row_unit == u)
        last = own[-min(len(own), len(mine)) :]
        behind[mine] = last[np.arange(len(mine)) * len(last) // len(mine)]
    return behind


def _features(ids: IntArray, found: Found) -> Features:
    group, unit = found.at(ids)
    order = [g for g in dict.fromkeys(group.tolist()) if g >= 0]
    owner = np.full(len(ids), -1)
    for place, g in enumerate(order):
        owner[group == g] = place
    return Features(groups=tuple(found.groups[g].name for g in order), owner=owner, unit=unit)


def _sample(values: Sequence[Value], layout: Layouts) -> FloatArray | None:
    """The divisor of one sample at one step: (I, *space)."""
    divisors = [value.divisor for value in values]
    if any(d is None or not np.array_equal(d, cast(FloatArray, divisors[0])) for d in divisors):
        return None
    first = cast(FloatArray, divisors[0])
    return np.array(first[0, 0] if layout.of(values[0])[0] == "T,B" else first[0])


def _neuron_site(walk: Walk, call: NeuronCall, found: Found, layout: Layouts) -> NeuronSite:
    ids, shape = call.value.units[call.axis], call.value.shape
    seen = layout.site(Seen(call.name, call.call, "output", call.value, call.axis))
    sample = shape[2:] if layout.of(call.value)[0] == "T,B" else shape[1:]
    driven = {
        number
        for number, layer in enumerate(walk.layers)
        if layer.post is not None and (layer.post.module, layer.post.call) == (call.name, call.call)
    }
    layers = {walk.layers[number].name for number in driven}
    return NeuronSite(
        name=call.name,
        call=call.call,
        group=next(iter(found.names(ids)), None) if ids is not None else None,
        positions=int(np.prod(sample)) // shape[call.axis],
        features=shape[call.axis],
        steps=layout.num_steps,
        layout=seen.layout,
        between=tuple(
            layout.site(passed)
            for passed, awaiting in walk.passed
            if awaiting <= driven and passed.module not in layers
        ),
    )
