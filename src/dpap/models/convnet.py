"""Plain convolutional networks, spiking or not: convolutions, pooling, fully connected layers, a classifier."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.models.parts import POOLS, readout_named, scaled, spiking_neuron
from dpap.neurons.encoding import Repeat, over_time
from dpap.neurons.modules import LeakyIntegrator


class ConvNet(nn.Sequential):
    """A chain of layers with the names `conv1, norm1, neuron1, ..., pool1, ..., flatten, fc1, ..., classifier`.

    Input (B, C, H, W): an image that is constant in time; it passes the first convolution once and is repeated T times
    in front of the first neuron. Or (T, B, C, H, W): frames of events. Output (B, classes): what the readout at the T
    steps comes to; or, with `every_step`, the readout at each step, (T, B, classes), of which `answer` makes the
    output. With `neuron="relu"` there is no time: (B, C, H, W) to (B, classes).

    Args:
        shape: One image: (channels, height, width).
        classes: Width of the classifier.
        blocks: Channels of the convolutions (stride 1, the size of the map is kept), one tuple a block.
        hidden: Neurons of the fully connected layers before the classifier.
        width: Factor on `blocks` and `hidden`.
        kernel: Side of the convolutions' kernels, odd.
        pooled: So many blocks, from the first, end with a 2 x 2 pooling; None: all of them.
        pool: "avg" or "max".
        neuron: "if", "lif", "plif" (one learnable time constant a layer) or "relu".
        tau: Time constant of LIF neurons in steps, initial one of PLIF neurons.
        v_threshold: Of spiking neurons.
        surrogate: "arctan", "quadratic_gate", "sigmoid" or "rectangular".
        learn_slope: Learn the surrogate's slope, one number a layer.
        detach_reset: Whether the spike is a constant in the reset as far as the gradient is concerned.
        norm: Batch normalisation after every convolution and hidden fully connected layer; those then have no bias.
        fc_neuron, fc_v_threshold, fc_surrogate, fc_norm: The same for the fully connected layers where these differ;
            None: as in the convolutional part. There the slope is never learned.
        dropout: Share of the inputs of each hidden fully connected layer that is dropped in training.
        votes: Outputs of the classifier for each class; their mean counts.
        num_steps: T, for constant images.
        readout: "current": the mean over T of the classifier's output. "spikes": of a neuron behind it. "membrane": of
            the potential of a leaky integrator behind it that never fires. "last": that potential at the last step.
            "max": its maximum over T.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        classes: int,
        blocks: tuple[tuple[int, ...], ...],
        hidden: tuple[int, ...],
        width: float = 1.0,
        kernel: int = 3,
        pooled: int | None = None,
        pool: str = "avg",
        neuron: str = "lif",
        tau: float = 2.0,
        v_threshold: float = 1.0,
        surrogate: str = "arctan",
        learn_slope: bool = False,
        detach_reset: bool = False,
        norm: bool = True,
        fc_neuron: str | None = None,
        fc_v_threshold: float | None = None,
        fc_surrogate: str | None = None,
        fc_norm: bool | None = None,
        dropout: float = 0.0,
        votes: int = 1,
        num_steps: int = 4,
        readout: str = "current",
    ) -> None:
        blocks = tuple(tuple(scaled(out, width) for out in block) for block in blocks)
        hidden = tuple(scaled(out, width) for out in hidden)
        spiking = neuron != "relu"
        read = readout_named(readout)
        fc_norm = norm if fc_norm is None else fc_norm
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        temporal: list[str] = []

        def add_temporal(name: str, module: nn.Module) -> None:
            if spiking and not temporal:
                layers["repeat"] = Repeat(num_steps)
            layers[name] = module
            temporal.append(name)

        def make_neuron(kind: str, v_threshold: float, surrogate: str, learn_slope: bool) -> nn.Module:
            if kind == "relu":
                return nn.ReLU()
            return spiking_neuron(
                kind,
                tau=tau,
                v_threshold=v_threshold,
                surrogate=surrogate,
                learn_slope=learn_slope,
                detach_reset=detach_reset,
            )

        def conv_neuron() -> nn.Module:
            return make_neuron(neuron, v_threshold, surrogate, learn_slope)

        def hidden_neuron() -> nn.Module:
            threshold = v_threshold if fc_v_threshold is None else fc_v_threshold
            return make_neuron(fc_neuron or neuron, threshold, fc_surrogate or surrogate, False)

        channels, rows, columns = shape
        number = 0
        for block_number, block in enumerate(blocks, 1):
            for out in block:
                number += 1
                layers[f"conv{number}"] = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=not norm)
                if norm:
                    layers[f"norm{number}"] = nn.BatchNorm2d(out)
                add_temporal(f"neuron{number}", conv_neuron())
                channels = out
            if pooled is None or block_number <= pooled:
                layers[f"pool{block_number}"] = POOLS[pool]()
                rows, columns = rows // 2, columns // 2
        if min(rows, columns) < 1:
            raise DPAPError(
                f"{len(blocks)} blocks halve an image of {shape[1]} x {shape[2]} pixels to nothing.",
                where="model.blocks",
                fix="use fewer blocks, or end fewer of them with a pooling: model.pooled",
            )
        layers["flatten"] = nn.Flatten()
        features = channels * rows * columns
        for fc_number, out in enumerate(hidden, 1):
            number += 1
            if dropout:
                layers[f"dropout{fc_number}"] = nn.Dropout(dropout)
            layers[f"fc{fc_number}"] = nn.Linear(features, out, bias=not fc_norm)
            if fc_norm:
                layers[f"norm{number}"] = nn.BatchNorm1d(out)
            add_temporal(f"neuron{number}", hidden_neuron())
            features = out
        layers["classifier"] = nn.Linear(features, classes * votes)
        if spiking and read.behind == "neuron":
            add_temporal(f"neuron{number + 1}", hidden_neuron())
        elif spiking and read.behind == "integrator":
            add_temporal("membrane", LeakyIntegrator(tau))
        if votes > 1:
            layers["votes"] = nn.AvgPool1d(votes)
        super().__init__(layers)
        self._temporal = frozenset(temporal) if spiking else frozenset()
        self._readout = read

    def forward(self, x: Tensor, *, every_step: bool = False) -> Tensor:
        timed = x.dim() == 5
        for name, layer in self.named_children():
            if name == "repeat":
                x, timed = (x if timed else layer(x)), True
            elif timed and name not in self._temporal:
                x = over_time(layer, x)
            else:
                x = layer(x)
        return self.answer(x) if timed and not every_step else x

    def answer(self, steps: Float[Tensor, "t B classes"]) -> Float[Tensor, "B classes"]:
        """The answer after the first t steps, of the readout at each of them: `model(x, every_step=True)[:t]`."""
        return self._readout.answer(steps)
