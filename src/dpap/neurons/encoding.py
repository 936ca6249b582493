"""Between a tensor without time, (B, ...), and activity, (T, B, ...)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from dpap.errors import DPAPError

_SOURCE = "_dpap_repeated_from"


def repeated_from(x: Tensor) -> Tensor | None:
    """The tensor that `Repeat` made `x` of, where its gradient may be computed in place of that of `x`; else None.

    Neurons ask this to skip T copies of a gradient that would be summed at once. None where the caller asked for the
    gradient of `x` itself (a hook, `retain_grad`), and where `x` is the result of an operation after `Repeat`.
    """
    source = getattr(x, _SOURCE, None)
    if not isinstance(source, Tensor) or x.grad_fn is None or x.retains_grad or x._backward_hooks:
        return None
    return source


def repeats(x: Tensor, source: Tensor) -> None:
    """Note that every step of `x` is `source`, as in what `Repeat` answers."""
    if not torch.compiler.is_compiling():
        setattr(x, _SOURCE, source)


class Repeat(nn.Module):
    """The same tensor at every one of `num_steps` steps: (B, ...) -> (T, B, ...), a view without a copy.

    Placed after the first convolution and its norm, it lets a constant (direct-encoded) input pass them once, not T
    times. A neuron right behind it computes the gradient of the unrepeated tensor at once.

    Raises:
        DPAPError: `num_steps` < 1.

    >>> Repeat(4)(torch.zeros(2, 3)).shape
    torch.Size([4, 2, 3])
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        if num_steps < 1:
            raise DPAPError(f"Repeat was given num_steps={num_steps}.", fix="pass num_steps >= 1")
        self.num_steps = int(num_steps)

    def forward(self, x: Shaped[Tensor, " B *N"]) -> Shaped[Tensor, "T B *N"]:
        repeated = x.unsqueeze(0).expand(self.num_steps, *x.shape)
        repeats(repeated, x)
        return repeated

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}"


def over_time(module: Callable[[Tensor], Tensor], x: Shaped[Tensor, "given B *N"]) -> Shaped[Tensor, "T B *M"]:
    """Applies to (T, B, ...) a module that knows (B, ...) only, all steps in one call: a norm sees T * B samples.

    >>> over_time(nn.Linear(3, 5), torch.zeros(4, 2, 3)).shape
    torch.Size([4, 2, 5])
    """
    flat = x.flatten(0, 1)
    if torch.compiler.is_exporting():  # a view's strides would tie the exported graph to this size of batch
        flat = flat.clone(memory_format=torch.contiguous_format)
    flat = module(flat)
    return flat.view(-1, x.shape[1], *flat.shape[1:])  # -1: a network with dead steps may take fewer than it answers
