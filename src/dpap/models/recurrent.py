"""Networks of fully connected layers whose spiking neurons hear of each other, for sequences such as spoken digits."""

from __future__ import annotations

from dpap.errors import DPAPError
from dpap.models.convnet import ConvNet
from dpap.models.parts import SPIKING
from dpap.neurons.recurrent import Recurrent


class RecurrentNet(ConvNet):
    """A chain of layers with the names `flatten, fc1, norm1, neuron1, ..., classifier`: a `ConvNet` that has no
    convolutions and whose hidden neurons are `Recurrent`. Input, output and readout are as there.

    Args:
        shape: One image or frame: (channels, height, width).
        classes: Width of the classifier.
        hidden: Neurons of each hidden layer, at least one layer.
        width: Factor on `hidden`.
        neuron: "if", "lif" or "plif" (one learnable time constant a layer).
        tau: Time constant of LIF neurons in steps, initial one of PLIF neurons.
        v_threshold: Of the neurons.
        surrogate: "arctan", "quadratic_gate", "sigmoid" or "rectangular".
        detach_reset: Whether the spike is a constant in the reset as far as the gradient is concerned; through the
            lateral weights it always has one.
        norm: Batch normalisation of what comes from below; those layers then have no bias. What comes from the layer
            itself is not normalised.
        dropout: Share of the inputs of each hidden layer that is dropped in training; lateral inputs never are.
        num_steps: T, for constant images.
        readout: As of `ConvNet`.

    Raises:
        DPAPError: No hidden layer, or neurons that do not spike.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        classes: int,
        hidden: tuple[int, ...],
        width: float = 1.0,
        neuron: str = "lif",
        tau: float = 2.0,
        v_threshold: float = 1.0,
        surrogate: str = "arctan",
        detach_reset: bool = False,
        norm: bool = True,
        dropout: float = 0.0,
        num_steps: int = 4,
        readout: str = "current",
    ) -> None:
        if not hidden:
            raise DPAPError(
                "A recurrent network was given no hidden layer, and nothing else in it is recurrent.",
                where="model.hidden",
                fix="give the width of one layer at least, such as [256]",
            )
        if neuron not in SPIKING:
            raise DPAPError(
                f'A recurrent network was given neuron = "{neuron}", which has no time.',
                where="model.neuron",
                fix=f"choose one of {', '.join(SPIKING)}",
            )
        super().__init__(
            shape=shape,
            classes=classes,
            blocks=(),
            hidden=hidden,
            width=width,
            neuron=neuron,
            tau=tau,
            v_threshold=v_threshold,
            surrogate=surrogate,
            detach_reset=detach_reset,
            norm=norm,
            dropout=dropout,
            num_steps=num_steps,
            readout=readout,
        )
        for number in range(1, len(hidden) + 1):
            units = getattr(self, f"fc{number}").out_features
            setattr(self, f"neuron{number}", Recurrent(units, getattr(self, f"neuron{number}")))
