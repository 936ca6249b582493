"""From a model to its marked graph.

Every leaf module of a copy is wrapped in marker operators that carry its name, and every spiking neuron is replaced by
one. So the exported graph says which tensor enters and leaves which call of which module, and the neurons' inner loops
over time never appear in it.
"""

from __future__ import annotations

import re
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpap.errors import DPAPError
from dpap.graph.adapters import NeuronInfo, independent_copy, neuron_info, unlisted
from dpap.hooks import structure_alone

Forward = Callable[[nn.Module, Any], Any]


_LIBRARY: Any = torch.library.Library("dpap", "FRAGMENT")  # type: ignore[no-untyped-call]


_LIBRARY.define("mark(Tensor x, str module, int call, str side) -> Tensor")


def _clone(x: Tensor, module: str, call: int, side: str) -> Tensor:
    return x.clone()


# Not `custom_op`, which takes ten times as long to trace: a network has hundreds of these.
_LIBRARY.impl("mark", _clone, "CompositeExplicitAutograd")


def mark(x: Tensor, module: str, call: int, side: str) -> Tensor:
    """Identity that leaves the name of a module call in the graph."""
    return cast(Tensor, torch.ops.dpap.mark(x, module, call, side))


@torch.library.custom_op("dpap::neuron", mutates_args=())
def neuron(x: Tensor, module: str, call: int, kind: str) -> Tensor:
    """Stands for a call of a spiking neuron: currents in, spikes of the same shape out.

    Args:
        x: (T, B, C, ...), or (B, C, ...) where the neuron runs one step per call.
        module: Its name.
        call: 0 for its first call.
        kind: "sequence": all steps at once; "step": one; "method": one, by a method that no hook sees.
    """
    return x.clone()


@torch.library.custom_op("dpap::neuron_state", mutates_args=())
def neuron_state(x: Tensor, before: list[Tensor], module: str, call: int) -> Tensor:
    """Stands for the state that a call of a neuron answers beside its spikes; `before`: the state it was handed."""
    return x.clone()


@neuron.register_fake
def _(x: Tensor, module: str, call: int, kind: str) -> Tensor:
    return torch.empty_like(x)


@neuron_state.register_fake
def _(x: Tensor, before: list[Tensor], module: str, call: int) -> Tensor:
    return torch.empty_like(x)


def _marked_copy(model: nn.Module) -> nn.Module:
    """A copy in which leaf modules announce their calls and neurons are markers."""
    marked = independent_copy(model).eval()
    calls: dict[str, int] = defaultdict(int)
    inside_neuron: tuple[str, ...] = ()
    for name, module in list(marked.named_modules()):
        if inside_neuron and name.startswith(inside_neuron):
            continue
        info = neuron_info(module)
        if info is not None and name:
            _NeuronMarker(name, info).stand_in(module)
            inside_neuron += (name + ".",)
        elif name and not any(True for _ in module.children()):
            _announce(module, name, calls)
    return marked


class _NeuronMarker:
    """Takes the place of a neuron's methods; of one instance's alone: a user's model may ask for its class."""

    def __init__(self, name: str, info: NeuronInfo) -> None:
        if info.refused is not None:
            raise DPAPError(
                f"This neuron is not supported: {info.refused}.", where=name, fix="use another neuron in its place."
            )
        self.name, self.info = name, info
        self.calls, self.restarted = 0, False

    def stand_in(self, module: Any) -> None:
        module.forward = self._forward
        for method in self.info.restarts:
            setattr(module, method, self._restart)
        if self.info.step_method:
            module.step = self._step

    def _forward(self, x: Tensor, *before: Any, **named: Any) -> Any:
        call = self._next()
        spikes = neuron(x, self.name, call, "sequence" if self.info.multi_step else "step")
        if not self.info.states:
            return spikes
        return (spikes, *[neuron_state(x, _tensors((*before, *named.values())), self.name, call)] * self.info.states)

    def _step(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        call = self._next()
        return neuron(x, self.name, call, "method"), neuron_state(x, _tensors([v]), self.name, call)

    def _next(self) -> int:
        if self.restarted:
            raise several_sequences(self.name)
        self.calls += 1
        return self.calls - 1

    def _restart(self) -> Any:
        self.restarted = self.calls > 0
        empty = [torch.zeros(0)] * self.info.states
        return empty[0] if len(empty) == 1 else tuple(empty)


def several_sequences(neuron: str) -> DPAPError:
    return DPAPError(
        "A neuron is put back to its beginning within one pass, so its calls are not the steps of one sequence.",
        where=neuron,
        fix="let one call of the model (with forward=: of that function) run one sequence.",
    )


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _announce(module: nn.Module, name: str, calls: dict[str, int]) -> None:
    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args and isinstance(args[0], Tensor):
            return (mark(args[0], name, calls[name], "input"), *args[1:])
        return None

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        call = calls[name]
        calls[name] += 1
        return mark(out, name, call, "output") if isinstance(out, Tensor) else None

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


class _Call(nn.Module):
    """`forward(model, batch)` as a module, so that it can be exported."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.function = model, forward

    def forward(self, batch: Any) -> Any:
        return self.function(self.model, batch)


class _KnownSizes(TorchFunctionMode):
    """Lets a model compute sizes as `torch.ones(n, dtype=int).tolist()`, as snnTorch's encoders do: the trace alone
    would take these for data."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ones and not out.is_floating_point() and out.dim() == 1:
            out.tolist = lambda: [1] * len(out)
        return out


def export(model: nn.Module, example_input: Any, forward: Forward | None = None) -> torch.export.ExportedProgram:
    """The marked graph of a model.

    Raises:
        DPAPError: The example input does not fit, or the control flow depends on data.
    """
    marked = _marked_copy(model)
    module: nn.Module = marked if forward is None else _Call(marked, forward)
    try:
        with torch.no_grad(), unlisted(model), structure_alone(), _KnownSizes():
            return torch.export.export(module, (example_input,), strict=False)
    except DPAPError:
        raise
    except Exception as error:  # whatever the user's forward raises
        shape = tuple(example_input.shape) if isinstance(example_input, Tensor) else type(example_input).__name__
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DPAPError(
            f"The model could not be run and traced on the example input ({shape}): {reason}",
            where=model_line("".join(_frames(error))) or type(model).__name__,
            fix="pass an example input of the shape that the model is trained on; a forward whose control flow depends "
            "on data cannot be traced: move that part out of the model, or hand the tensors over with forward=.",
        ) from error


def _frames(error: BaseException) -> list[str]:
    return traceback.format_tb(error.__traceback__)


def model_line(stack: str | None) -> str:
    """The last line of a stack trace that lies neither in PyTorch nor in this package."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*([^\n]*)', stack or "")
    ours = ("/torch/", "/jaxtyping/", "/dpap/graph/", "/dpap/pruning/", "/dpap/development/", "/dpap/developer")
    own = [f for f in frames if not any(part in f[0] for part in ours)]
    if not own:
        return ""
    file, line, function, code = own[-1]
    return f"{file.rsplit('/', 1)[-1]}, line {line}, in {function}: {code.strip()}"


def one_step(node: Any) -> bool:
    """Whether a call of a neuron runs one step."""
    return bool(node.args[3] != "sequence")
