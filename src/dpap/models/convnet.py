"""Plain convolutional networks, spiking or not: convolutions, pooling, fully connected layers, a classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.neurons.encoding import Repeat, over_time
from dpap.neurons.modules import IF, LIF, PLIF
from dpap.neurons.surrogate import ArcTan, QuadraticGate, Rectangular, Sigmoid, Surrogate

SURROGATES: Mapping[str, Callable[[], Surrogate]] = MappingProxyType(
    {"arctan": ArcTan, "quadratic_gate": QuadraticGate, "sigmoid": Sigmoid, "rectangular": Rectangular}
)
NEURONS = ("if", "lif", "plif", "relu")
POOLS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType({"avg": nn.AvgPool2d, "max": nn.MaxPool2d})
READOUTS = ("current", "spikes")


class ConvNet(nn.Sequential):
    """A chain of layers with the names `conv1, norm1, neuron1, ..., pool1, ..., flatten, fc1, ..., classifier`.

    Input (B, C, H, W): an image that is constant in time; it passes the first convolution once and is repeated T times
    in front of the first neuron. Or (T, B, C, H, W): frames of events. Output (B, classes): the mean over T of the
    classifier's current, or of its spikes. With `neuron="relu"` there is no time: (B, C, H, W) to (B, classes).

    Args:
        shape: One image: (channels, height, width).
        classes: Width of the classifier.
        blocks: Channels of the 3 x 3 convolutions (padding 1), one tuple a block; a 2 x 2 pooling ends each block.
        hidden: Neurons of the fully connected layers before the classifier.
        neuron: "if", "lif", "plif" (one learnable time constant a layer) or "relu".
        tau: Time constant of LIF neurons in steps, initial one of PLIF neurons.
        surrogate: "arctan", "quadratic_gate", "sigmoid" or "rectangular".
        norm: Batch normalisation after every convolution and hidden fully connected layer; those then have no bias.
        pool: "avg" or "max".
        dropout: Share of the inputs of each hidden fully connected layer that is dropped in training.
        num_steps: T, for constant images.
        readout: "current": the mean current of the classifier. "spikes": the mean spikes of a neuron behind it.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        classes: int,
        blocks: tuple[tuple[int, ...], ...],
        hidden: tuple[int, ...],
        neuron: str = "lif",
        tau: float = 2.0,
        surrogate: str = "arctan",
        norm: bool = True,
        pool: str = "avg",
        dropout: float = 0.0,
        num_steps: int = 4,
        readout: str = "current",
    ) -> None:
        spiking = neuron != "relu"

        def make_neuron() -> nn.Module:
            return _make_neuron(neuron, tau, surrogate)

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        temporal: list[str] = []

        def add_neuron(number: int) -> None:
            if spiking and not temporal:
                layers["repeat"] = Repeat(num_steps)
            layers[f"neuron{number}"] = make_neuron()
            temporal.append(f"neuron{number}")

        channels, height, width = shape
        number = 0
        for block_number, block in enumerate(blocks, 1):
            for out in block:
                number += 1
                layers[f"conv{number}"] = nn.Conv2d(channels, out, 3, padding=1, bias=not norm)
                if norm:
                    layers[f"norm{number}"] = nn.BatchNorm2d(out)
                add_neuron(number)
                channels = out
            layers[f"pool{block_number}"] = POOLS[pool](2)
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            raise DPAPError(
                f"{len(blocks)} blocks halve an image of {shape[1]} x {shape[2]} pixels to nothing.",
                where="model.blocks",
                fix="use fewer blocks; each ends with a 2 x 2 pooling",
            )
        layers["flatten"] = nn.Flatten()
        features = channels * height * width
        for fc_number, out in enumerate(hidden, 1):
            number += 1
            if dropout:
                layers[f"dropout{fc_number}"] = nn.Dropout(dropout)
            layers[f"fc{fc_number}"] = nn.Linear(features, out, bias=not norm)
            if norm:
                layers[f"norm{number}"] = nn.BatchNorm1d(out)
            add_neuron(number)
            features = out
        layers["classifier"] = nn.Linear(features, classes)
        if spiking and readout == "spikes":
            add_neuron(number + 1)
        super().__init__(layers)
        self._temporal = frozenset(temporal) if spiking else frozenset()

    def forward(self, x: Tensor) -> Tensor:
        timed = x.dim() == 5
        for name, layer in self.named_children():
            if name == "repeat":
                x, timed = (x if timed else layer(x)), True
            elif timed and name not in self._temporal:
                x = over_time(layer, x)
            else:
                x = layer(x)
        return x.mean(0) if timed else x


def _make_neuron(neuron: str, tau: float, surrogate: str) -> nn.Module:
    if neuron == "relu":
        return nn.ReLU()
    gradient = SURROGATES[surrogate]()
    if neuron == "if":
        return IF(surrogate=gradient)
    return LIF(tau=tau, surrogate=gradient) if neuron == "lif" else PLIF(init_tau=tau, surrogate=gradient)
