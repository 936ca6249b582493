"""Dead units leave the tensors of a network while it trains: model, mean copies and optimizer state alike.

Parameters stay the objects they are, so optimizers, schedulers, gradient scalers and the user's own references go on.
Everything is worked out and tried before anything changes; a shrink that cannot be made leaves all as it was.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from dpap.errors import DPAPError
from dpap.graph.adapters import reset_state
from dpap.graph.export import Forward
from dpap.graph.group import Graph
from dpap.graph.module_rules import follow_all
from dpap.metrics.synops import count_macs
from dpap.pruning.compact import compacted, differing
from dpap.pruning.mask import inside
from dpap.pruning.slice import Alive, Entries, Present, kept, planned, tensor_of

Shrink = Literal["auto", "never", "always"]

MIXING = ("LBFGS", "Adafactor", "Muon", "LARS", "LAMB", "Shampoo", "SOAP")
"""Optimizers whose update of one entry depends on others: cut state would not be the state of the smaller network."""

WORTH = 5
"""`auto` shrinks when it saves this many times its price."""
PRICE = 2
"""Price of a shrink, in training passes of the network as it is."""
MULTIPLE = 8
"""`auto` keeps the widths of large groups at multiples of this: kernels like them, and widths change less often."""
LARGE = 64
"""Groups of fewer units are cut exactly; rounding would keep too many."""


class _NewState(NamedTuple):
    optimizer: Optimizer
    parameter: Tensor
    values: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that a shrink would write."""

    tensors: list[tuple[nn.Module, dict[str, Tensor]]]
    """Per module (the model, its copies): name -> new tensor."""
    state: list[_NewState]


def check_optimizers(optimizers: Sequence[Optimizer]) -> None:
    """Whether the state of these optimizers can be cut.

    Raises:
        DPAPError: One of them mixes entries.
    """
    for optimizer in optimizers:
        names = [cls.__name__.casefold() for cls in type(optimizer).__mro__]
        if any(mixing.casefold() in name for mixing in MIXING for name in names):
            raise DPAPError(
                f"{type(optimizer).__name__} updates each entry from others, so its state cannot be cut with a unit.",
                fix='pass shrink="never" (dead units stay as zeros until compact()), or use SGD, Adam, AdamW, RMSprop '
                "or Adagrad.",
            )


def check_bare(model: nn.Module) -> None:
    """Whether this is the module itself.

    Raises:
        DPAPError: It is wrapped by torch.compile, or for several processes.
    """
    kind = type(model).__name__
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise DPAPError(
            "The model is compiled: it skips the hooks by which activity is seen.",
            where=kind,
            fix="give DPAP the module itself, before torch.compile; to shrink, compile after the window.",
        )
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise DPAPError(
            "The model is wrapped for several processes.",
            where=kind,
            fix='give DPAP the module inside (model.module), with shrink="never": the wrapper keeps its widths.',
        )


class Shrinker:
    """Knows what the tensors still hold, and makes them smaller.

    Args:
        model: The network in training.
        graph: Of the dense network.
        optimizers: Those that move its parameters.
        copies: EMA or averaged copies, with the same names (a `module.` prefix is understood).
        example: One batch of few samples, on which a shrink is tried.
        forward: As `DPAP(forward=)`.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        optimizers: Sequence[Optimizer],
        copies: Sequence[nn.Module],
        example: Any,
        forward: Forward | None,
    ) -> None:
        self.model, self.optimizers, self.example, self.forward = model, list(optimizers), example, forward
        names = dict(model.named_parameters())
        self.modules = [model, *(inside(copy, names) for copy in copies)]
        self.present = Present.whole(model, graph)
        self.shrinks = 0
        """How often tensors became smaller."""

    def refuse_dense(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """To be called before weights are loaded.

        Raises:
            DPAPError: They have the widths of the dense network, and this one has lost some.
        """
        for name, axes in self.present.left.items():
            saved = state.get(prefix + name)
            if axes and isinstance(saved, Tensor) and tuple(saved.shape) == self.present.shapes[name]:
                raise DPAPError(
                    "These weights are of the dense network, and this one lost units while it trained.",
                    where=f"{name}: {tuple(saved.shape)}, here {tuple(tensor_of(self.model, name).shape)}",
                    fix="load them into a model that was built anew; to go on with a saved run, make DPAP on such a "
                    "model, call its load_state_dict first, then load the weights that were saved with it.",
                )

    def worth_keeping(self, alive: Alive, passes_left: float) -> dict[str, Tensor] | None:
        """The units that "auto" would leave in the tensors now; None: it is not worth a shrink.

        Args:
            alive: Group -> (units,).
            passes_left: Training passes that are still to come.
        """
        here = self.present.units
        units = rounded(alive, here)
        if all(torch.equal(stay, here[name]) for name, stay in units.items()):
            return None
        now, then = (count_macs(self.present.graph, held) for held in (here, units))
        return units if worthwhile(now, then, passes_left) else None

    @torch.no_grad()
    def shrink(self, units: Alive) -> bool:
        """Leave only these units in the tensors; whether there was anything to do. The others must be zeros by now.

        Raises:
            DPAPError: It cannot be done; model, copies and optimizers are as they were.
        """
        stays = self.present.stays(units)
        if not stays:
            return False
        plan = _Plan(
            tensors=[(module, planned(module, stays)) for module in self.modules],
            state=_planned_state(self.model, self.optimizers, stays),
        )
        _check_swappable(plan)
        self._try(units)
        _carry_out(plan)
        self.present = self.present.holding(units)
        self.shrinks += 1
        return True

    def _try(self, units: Alive) -> None:
        small = compacted(self.model, self.present, units)
        problem = differing(self.model, small, self.example, self.forward)
        if problem is not None:
            what, where = problem
            raise DPAPError(
                f"The network cannot be made smaller now: {what}",
                where=where or type(self.model).__name__,
                fix='pass shrink="never"; the dead units then stay as zeros until compact().',
            )


def worthwhile(macs_now: float, macs_then: float, passes_left: float) -> bool:
    """Whether a shrink saves `WORTH` times its price, by counts alone: the same run decides the same on any machine.

    >>> worthwhile(1.0, 0.9, passes_left=1000), worthwhile(1.0, 0.9, passes_left=50)
    (True, False)
    """
    return (macs_now - macs_then) * passes_left > WORTH * PRICE * macs_now


def rounded(alive: Alive, present: Alive) -> dict[str, Tensor]:
    """The living units, and so many dead ones (the first in order that are still there) that widths are multiples.

    Args:
        alive: Group -> (units,).
        present: Group -> (units,): still in the tensors.
    """
    units = {}
    for name, living in alive.items():
        here = present[name]
        count = int(living.sum())
        multiple = MULTIPLE if len(living) >= LARGE else 1
        width = min(int(here.sum()), math.ceil(count / multiple) * multiple)
        padding = (here & ~living).nonzero().reshape(-1)[: width - count]
        units[name] = living.clone()
        units[name][padding] = True
    return units


def _planned_state(model: nn.Module, optimizers: Sequence[Optimizer], stays: Entries) -> list[_NewState]:
    found = []
    for name, axes in stays.items():
        parameter = tensor_of(model, name)
        for optimizer in optimizers:
            values = {
                key: kept(value, axes)
                for key, value in optimizer.state.get(parameter, {}).items()
                if isinstance(value, Tensor) and value.dim() > 0 and _follows(value, parameter, key, name, optimizer)
            }
            if values:
                found.append(_NewState(optimizer, parameter, values))
    return found


def _follows(value: Tensor, parameter: Tensor, key: str, name: str, optimizer: Optimizer) -> bool:
    if value.numel() == 1 and parameter.numel() > 1:
        return False  # a counter
    if value.shape != parameter.shape:
        raise DPAPError(
            f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name} of shape "
            f"{tuple(parameter.shape)}; which of its entries belong to a dead unit is unknown.",
            fix='pass shrink="never".',
        )
    return True


def _check_swappable(plan: _Plan) -> None:
    for module, tensors in plan.tensors:
        for name in tensors:
            tensor = tensor_of(module, name)
            if isinstance(tensor, nn.Parameter) and weakref.getweakrefs(tensor):
                raise DPAPError(
                    f"Something keeps a weak reference to {name}, so it cannot become smaller: a compiled model does.",
                    where=type(module).__name__,
                    fix='pass shrink="never", or call torch.compile after the window of development.',
                )


def _carry_out(plan: _Plan) -> None:
    """Nothing here can fail for a reason of the user's: all that could was checked."""
    for optimizer, parameter, values in plan.state:
        optimizer.state[parameter].update(values)
    for module, tensors in plan.tensors:
        done: set[int] = set()
        for name, new in tensors.items():
            path, _, leaf = name.rpartition(".")
            old = tensor_of(module, name)
            if not isinstance(old, nn.Parameter):
                module.get_submodule(path)._buffers[leaf] = new
            elif id(old) not in done:  # a tied parameter has several names
                _swap(old, new)
                done.add(id(old))
        follow_all(module, {name.rpartition(".")[0] for name in tensors})
        reset_state(module)


def _swap(parameter: nn.Parameter, new: Tensor) -> None:
    """Give a parameter a new tensor, without a gradient; the object and the hooks on it stay.

    `torch.utils.swap_tensors` refuses while the graph of an old loss still refers to the tensor, which a training loop
    may well keep. Its two halves are done here: the swap, and the error for a backward pass through that graph.
    """
    hooks = parameter._backward_hooks
    after = parameter._post_accumulate_grad_hooks
    if parameter.requires_grad:
        with torch.enable_grad():
            torch.autograd.graph.get_gradient_edge(parameter).node.register_prehook(_stale)
    torch._C._swap_tensor_impl(parameter, nn.Parameter(new, requires_grad=parameter.requires_grad))
    if hooks:
        parameter._backward_hooks = hooks  # assigned anew, they are registered with the new tensor
    if after:
        parameter._post_accumulate_grad_hooks = after


def _stale(gradients: Any) -> None:
    raise DPAPError(
        "backward() went through a loss from before the network became smaller.",
        fix="call loss.backward() before dev.step(), which may shrink the network.",
    )
