"""Between a tensor without time, (B, ...), and activity, (T, B, ...)."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Shaped
from torch import Tensor, nn

from dpap.errors import DPAPError


class Repeat(nn.Module):
    """The same tensor at every one of `num_steps` steps: (B, ...) -> (T, B, ...), a view without a copy.

    Placed after the first convolution and its norm, it lets a constant (direct-encoded) input pass them once, not T times.

    Raises:
        DPAPError: `num_steps` < 1.

    >>> import torch
    >>> Repeat(4)(torch.zeros(2, 3)).shape
    torch.Size([4, 2, 3])
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        if num_steps < 1:
            raise DPAPError(f"Repeat was given num_steps={num_steps}.", fix="pass num_steps >= 1")
        self.num_steps = int(num_steps)

    def forward(self, x: Shaped[Tensor, " B *N"]) -> Shaped[Tensor, "T B *N"]:
        return x.unsqueeze(0).expand(self.num_steps, *x.shape)

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}"


def over_time(
    module: Callable[[Tensor], Tensor], x: Shaped[Tensor, "T B *N"]
) -> Shaped[Tensor, "T B *M"]:
    """Applies to (T, B, ...) a module that knows (B, ...) only, all steps in one call: statistics of a norm see T * B samples.

    >>> import torch
    >>> over_time(nn.Linear(3, 5), torch.zeros(4, 2, 3)).shape
    torch.Size([4, 2, 5])
    """
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
