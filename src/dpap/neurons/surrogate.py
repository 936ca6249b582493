"""Surrogates for the gradient of the spike, which is a step and has none of its own.

A spike is s = 1 where x = h - v_threshold >= 0. Backward, the step is replaced by a primitive g(x, alpha) that rises
from 0 to 1 around x = 0: ds/dx := dg/dx and, where the slope alpha is learned, ds/dalpha := dg/dalpha.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dpap.errors import DPAPError


@dataclass(frozen=True, slots=True)
class Surrogate(ABC):
    """A primitive g(x, alpha) and its two derivatives; a new surrogate is a subclass with these three methods.

    Attributes:
        alpha: Slope, > 0: the larger, the narrower the region around the threshold that receives gradient.

    Raises:
        DPAPError: `alpha` is not a positive finite number.
    """

    alpha: float

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise DPAPError(
                f"The slope alpha of a surrogate must be a positive number, not {self.alpha}.",
                where=type(self).__name__,
                fix="pass alpha > 0",
            )

    @abstractmethod
    def primitive(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        """g(x, alpha), of the shape of `x`; differentiable by autograd in both."""

    @abstractmethod
    def derivative_(self, x: Tensor, alpha: float) -> Tensor:
        """dg/dx, written over `x` (no gradient flows through it)."""

    @abstractmethod
    def derivative_alpha(self, x: Tensor, alpha: float) -> Tensor:
        """dg/dalpha, a new tensor of the shape of `x`."""

    def spike(self, x: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """1 where `x` >= 0, else 0, in the dtype of `x`, with the gradient of the primitive.

        Args:
            x: Membrane potential minus threshold, any shape.
            alpha: Slope, a number or a 0-d tensor (learned); None for the surrogate's own.

        >>> x = torch.tensor([-0.5, 0.0], requires_grad=True)
        >>> spike = ArcTan(alpha=2.0).spike(x)
        >>> spike.tolist()
        [0.0, 1.0]
        >>> torch.autograd.grad(spike[1], x)[0].tolist()
        [0.0, 1.0]
        """
        step = (x >= 0).to(x.dtype)
        if not torch.is_grad_enabled():
            return step
        g = self.primitive(x, self.alpha if alpha is None else alpha)
        return step + (g - g.detach())  # the bracket is zero: it only carries the gradient


@dataclass(frozen=True, slots=True)
class ArcTan(Surrogate):
    """g = arctan(pi alpha x / 2) / pi + 1/2, so g' = alpha / (2 (1 + (pi alpha x / 2)^2)).

    Source: Fang et al., "Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking Neural
    Networks", ICCV 2021 (arXiv 2007.05785), with alpha = 2; with a free alpha as in BrainCog's `AtanGrad`.
    """

    alpha: float = 2.0

    def primitive(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        return torch.arctan(x * (alpha * (math.pi / 2))) / math.pi + 0.5

    def derivative_(self, x: Tensor, alpha: float) -> Tensor:
        # 1 / (2/alpha + (pi^2 alpha / 2) x^2): the same function in two passes over the memory instead of five.
        offset = torch.full((), 2 / alpha, dtype=x.dtype, device=x.device)
        return torch.addcmul(offset, x, x, value=math.pi**2 * alpha / 2, out=x).reciprocal_()

    def derivative_alpha(self, x: Tensor, alpha: float) -> Tensor:
        return x / (2 * (1 + (x * (math.pi / 2 * alpha)).square_()))


@dataclass(frozen=True, slots=True)
class QuadraticGate(Surrogate):
    """g' = alpha - alpha^2 |x| for |x| <= 1/alpha, else 0: a triangle of area 1.

    g = 1/2 + alpha x - alpha^2 x |x| / 2 inside the gate, 0 below and 1 above it.

    Source: Esser et al., "Convolutional networks for fast, energy-efficient neuromorphic computing", PNAS 2016 (arXiv
    1603.08270), the triangle; in this scaling BrainCog's `QGateGrad`, alpha = 2.
    """

    alpha: float = 2.0

    def primitive(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        inside = 0.5 + alpha * x - (0.5 * alpha**2) * x * x.abs()
        return torch.where((alpha * x).abs() <= 1, inside, (x > 0).to(x.dtype))

    def derivative_(self, x: Tensor, alpha: float) -> Tensor:
        return x.abs_().mul_(-(alpha**2)).add_(alpha).clamp_(min=0)

    def derivative_alpha(self, x: Tensor, alpha: float) -> Tensor:
        return (x - alpha * x * x.abs()).where((alpha * x).abs() <= 1, torch.zeros((), dtype=x.dtype, device=x.device))


@dataclass(frozen=True, slots=True)
class Sigmoid(Surrogate):
    """g = 1 / (1 + exp(-alpha x)), so g' = alpha g (1 - g).

    Source: Neftci, Mostafa and Zenke, "Surrogate Gradient Learning in Spiking Neural Networks", IEEE Signal Processing
    Magazine 2019 (arXiv 1901.09948), which reviews it among others; alpha = 4 gives a slope of 1 at the threshold.
    """

    alpha: float = 4.0

    def primitive(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        return torch.sigmoid(alpha * x)

    def derivative_(self, x: Tensor, alpha: float) -> Tensor:
        g = x.mul_(alpha).sigmoid_()
        return g.addcmul_(g, g, value=-1).mul_(alpha)

    def derivative_alpha(self, x: Tensor, alpha: float) -> Tensor:
        g = torch.sigmoid(alpha * x)
        return x * g * (1 - g)


@dataclass(frozen=True, slots=True)
class Rectangular(Surrogate):
    """g' = alpha for |x| < 1 / (2 alpha), else 0; g is a ramp of that slope.

    Source: Wu et al., "Spatio-Temporal Backpropagation for Training High-Performance Spiking Neural Networks",
    Frontiers in Neuroscience 2018 (arXiv 1706.02609), curve h1 of width a1 = 1 / alpha.
    """

    alpha: float = 1.0

    def primitive(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        return torch.where((alpha * x).abs() < 0.5, alpha * x + 0.5, (x > 0).to(x.dtype))

    def derivative_(self, x: Tensor, alpha: float) -> Tensor:
        return x.mul_(alpha).abs_().lt_(0.5).mul_(alpha)

    def derivative_alpha(self, x: Tensor, alpha: float) -> Tensor:
        return torch.where((alpha * x).abs() < 0.5, x, torch.zeros((), dtype=x.dtype, device=x.device))


DEFAULT = ArcTan()
