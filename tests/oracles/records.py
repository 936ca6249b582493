"""Records of activity: what the sites of a chain network show, epoch by epoch, made up from rates and a seed.

The network is image -> conv -> conv -> average pool -> flatten -> fc -> classifier. Activity is *given* (nothing is
computed from weights), so a fast and a slow implementation can be shown the same record, and both must decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .chain import IMAGE, FloatArray, LayerSpec

IMAGE_CHANNELS = 2
SIDE = 4  # of the image and of both convolutions' maps; the pool halves it
POOLED = (SIDE // 2) ** 2
CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class LayerActivity:
    """What one layer receives and what its units give, for one batch, time first."""

    pre: FloatArray
    """(T, B, I, P) for a convolution, (T, B, I) for a linear layer."""
    post: FloatArray
    """(T, B, O, P) for a convolution, (T, B, O) for a linear layer."""


Batch = dict[str, LayerActivity]  # layer name -> activity


@dataclass(frozen=True, kw_only=True)
class Record:
    """A chain and its activity. `pre` of a layer is `post` of the one before, pooled and flattened before `fc`."""

    chain: tuple[LayerSpec, ...]
    epochs: tuple[tuple[Batch, ...], ...]

    def batches(self) -> Iterator[Batch]:
        """All batches, epoch after epoch."""
        for epoch in self.epochs:
            yield from epoch


def pool_and_flatten(spikes: FloatArray) -> FloatArray:
    """2 x 2 averages of (T, B, C, SIDE * SIDE), flattened to (T, B, C * POOLED): entry j is of channel j // POOLED."""
    num_steps, batch, channels, _ = spikes.shape
    half = SIDE // 2
    windows = spikes.reshape(num_steps, batch, channels, half, 2, half, 2)
    return np.asarray(windows.mean(axis=(4, 6)).reshape(num_steps, batch, -1))


def chain_of(conv1: int, conv2: int, fc: int) -> tuple[LayerSpec, ...]:
    """The chain with this many units in its three hidden layers."""
    return (
        LayerSpec(name="conv1", kind="conv", outputs=conv1, in_unit=(IMAGE,) * IMAGE_CHANNELS, kernel=9),
        LayerSpec(name="conv2", kind="conv", outputs=conv2, in_unit=tuple(range(conv1)), kernel=9),
        LayerSpec(name="fc", kind="linear", outputs=fc, in_unit=tuple(j // POOLED for j in range(conv2 * POOLED))),
        LayerSpec(name="classifier", kind="linear", outputs=CLASSES, in_unit=tuple(range(fc)), protected=True),
    )


def drifting_rates(epochs: int = 60) -> dict[str, FloatArray]:
    """Firing rates (epochs, units) of conv1, conv2, fc, classifier; each unit's rises and falls in its own time.

    The quiet channels are graded finely: under the released constants a channel dies only if its importance stays below
    6.5 % of the busy ones', and the lower it is the earlier it dies.
    """
    loud = [0.50, 0.42, 0.46, 0.38, 0.44, 0.48]
    base = {
        "conv1": np.array([0.0, 0.05, 0.075, 0.09, 0.10, 0.14, *loud]),
        "conv2": np.array([*loud, 0.0, 0.06, 0.08, 0.10, 0.11, 0.13]),
        "fc": np.concatenate([[0.0, 0.0], np.linspace(0.03, 0.60, 18)]),
        "classifier": np.linspace(0.1, 0.3, CLASSES),
    }
    time = np.arange(epochs)[:, None]
    rates = {}
    for name, rate in base.items():
        unit = np.arange(len(rate))[None, :]
        wave = 1.0 + 0.25 * np.sin(2.0 * np.pi * (time / (11.0 + unit) + 0.37 * unit))
        rates[name] = rate[None, :] * wave
    return rates


def _spikes(rng: np.random.Generator, rate: FloatArray, labels: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """0/1 spikes of `shape` (T, B, O, ...): units prefer some classes, samples differ in loudness."""
    units = np.arange(len(rate))
    preference = 1.0 + 0.6 * np.cos(2.0 * np.pi * (labels[:, None] / CLASSES - units[None, :] / 7.0))  # (B, O)
    loudness = rng.uniform(0.6, 1.4, size=(shape[1], 1))
    probability = np.clip(rate[None, :] * preference * loudness, 0.0, 0.95)
    probability = probability.reshape(1, shape[1], len(rate), *(1,) * (len(shape) - 3))
    return (rng.random(shape) < probability).astype(np.float64)


def _batch(rng: np.random.Generator, rates: Mapping[str, FloatArray], num_steps: int, batch_size: int) -> Batch:
    labels = rng.integers(0, CLASSES, size=batch_size).astype(np.float64)
    positions = SIDE * SIDE
    image = rng.normal(0.4, 1.0, size=(1, batch_size, IMAGE_CHANNELS, positions)).repeat(num_steps, axis=0)
    conv1 = _spikes(rng, rates["conv1"], labels, (num_steps, batch_size, len(rates["conv1"]), positions))
    conv2 = _spikes(rng, rates["conv2"], labels, (num_steps, batch_size, len(rates["conv2"]), positions))
    fc = _spikes(rng, rates["fc"], labels, (num_steps, batch_size, len(rates["fc"])))
    classifier = _spikes(rng, rates["classifier"], labels, (num_steps, batch_size, CLASSES))
    return {
        "conv1": LayerActivity(pre=image, post=conv1),
        "conv2": LayerActivity(pre=conv1, post=conv2),
        "fc": LayerActivity(pre=pool_and_flatten(conv2), post=fc),
        "classifier": LayerActivity(pre=fc, post=classifier),
    }


def make_record(
    *,
    seed: int = 0,
    epochs: int = 60,
    batches: int = 3,
    num_steps: int = 4,
    batch_size: int = 8,
    rates: Mapping[str, FloatArray] | None = None,
) -> Record:
    """A record, the same for the same arguments.

    Args:
        seed: of every draw.
        epochs: number of epochs.
        batches: batches in an epoch, all full.
        num_steps: T.
        batch_size: B.
        rates: firing probability per step, (epochs, units) for each of conv1, conv2, fc, classifier; their widths are
            the widths of the layers. None: `drifting_rates`.
    """
    rates = drifting_rates(epochs) if rates is None else rates
    rng = np.random.default_rng(seed)
    recorded = tuple(
        tuple(_batch(rng, {n: r[epoch] for n, r in rates.items()}, num_steps, batch_size) for _ in range(batches))
        for epoch in range(epochs)
    )
    chain = chain_of(*(rates[name].shape[1] for name in ("conv1", "conv2", "fc")))
    return Record(chain=chain, epochs=recorded)


def random_weights(chain: Iterable[LayerSpec], seed: int = 0) -> dict[str, FloatArray]:
    """Weights for a chain: (O, I) for a linear layer, (O, I, k, k) for a convolution with k * k = kernel."""
    rng = np.random.default_rng(seed)
    weights = {}
    for layer in chain:
        side = round(layer.kernel**0.5)
        shape = (layer.outputs, layer.inputs) if layer.kind == "linear" else (layer.outputs, layer.inputs, side, side)
        weights[layer.name] = rng.normal(0.0, 1.0, size=shape)
    return weights


def merge(batches: Iterable[Batch]) -> Batch:
    """One batch that holds the samples of all."""
    parts = list(batches)
    return {
        name: LayerActivity(
            pre=np.concatenate([part[name].pre for part in parts], axis=1),
            post=np.concatenate([part[name].post for part in parts], axis=1),
        )
        for name in parts[0]
    }


def rebatch(batches: Iterable[Batch], batch_size: int) -> list[Batch]:
    """The same samples in the same order in batches of another size; the last may be smaller."""
    whole = merge(batches)
    samples = next(iter(whole.values())).pre.shape[1]
    return [
        {
            name: LayerActivity(pre=a.pre[:, first : first + batch_size], post=a.post[:, first : first + batch_size])
            for name, a in whole.items()
        }
        for first in range(0, samples, batch_size)
    ]
