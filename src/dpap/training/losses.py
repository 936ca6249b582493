"""What is minimised: functions of answers (B, K), for `tet` readouts at each step (T, B, K), and of labels (B,)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Outputs = Float[Tensor, "B K"]
Labels = Int[Tensor, " B"]


def cross_entropy(outputs: Outputs, labels: Labels, smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Of the answer after T steps."""
    return F.cross_entropy(outputs, labels, label_smoothing=smoothing)


def mse(outputs: Outputs, labels: Labels, smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Squared distance of the answer (meant for firing rates) to the one-hot label, mean over samples and classes.

    >>> mse(tensor([[1.0, 0.5]]), tensor([0])).item()
    0.125
    """
    classes = outputs.shape[1]
    target = F.one_hot(labels, classes).to(outputs.dtype) * (1 - smoothing) + smoothing / classes
    return F.mse_loss(outputs, target)


def tet(outputs: Float[Tensor, "T B K"], labels: Labels, smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Temporal efficient training: the cross-entropy of each step's output, averaged (Deng et al., ICLR 2022, Eq. 9).

    Each step counts alike, whatever the network makes of them: of a membrane that is read at its last step, or at its
    highest, all T potentials are trained. The paper's additional term, which draws outputs to a constant, is left out.
    """
    steps = outputs.shape[0]
    return F.cross_entropy(outputs.flatten(0, 1), labels.repeat(steps), label_smoothing=smoothing)


LOSSES = {"cross_entropy": cross_entropy, "mse": mse, "tet": tet}
PER_STEP = frozenset({"tet"})
"""Losses of the readout at every step."""
