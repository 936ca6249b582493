"""Three cases of rule `dpap` worked on paper: data to test any implementation against, the arithmetic in the comments.

Each case is one window of two samples at one layer ("layer"). All sums are sums over the samples, not means. NaN stands
where a thing is dead and its value means nothing.

Two identities helped to choose small numbers. For two samples with activities (a, b), inputs (X1, X2) and the window's
own theta = (a + b) / 2:  E[X y^2] - theta E[X y] = (a - b)(X1 a - X2 b) / 4. And at T = 2 the mean over steps of the
running trace of spikes (o1, o2) with decay 1/2 is (o1 + (o1/2 + o2)) / 2 = 3/4 o1 + 1/2 o2, so the patterns 00, 01, 10,
11 read 0, 1/2, 3/4, 5/4.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .chain import IMAGE, BoolArray, FloatArray, LayerSpec, everything_lives
from .records import Batch, LayerActivity


@dataclass(frozen=True, kw_only=True)
class HandWorked:
    """One layer, one window, and everything that follows from it in the development step that ends the window."""

    name: str
    chain: tuple[LayerSpec, ...]
    """The layer under test is the last one."""
    batch: Batch
    alive: dict[str, BoolArray]
    synapses: dict[str, BoolArray]
    weight: FloatArray | None
    previous_theta: FloatArray | None
    """Mean activity of the previous window; None: this is the first, theta is its own mean."""

    x: FloatArray
    """(B, I): activity of the inputs, before the dead ones are excluded."""
    y: FloatArray
    """(B, O)"""
    sum_x: FloatArray
    """(I,)"""
    sum_y: FloatArray
    sum_Xy: FloatArray
    sum_Xyy: FloatArray
    sum_xy: FloatArray | None
    """(O, I); None where synapses are not prunable and these sums are not kept."""
    sum_xyy: FloatArray | None
    theta: FloatArray
    R: FloatArray
    A: FloatArray
    D: FloatArray
    unit_u: FloatArray
    at_threshold: int
    """Living units that are active and score 0."""
    bcm: FloatArray | None = None
    s: FloatArray | None = None
    synapse_u: FloatArray | None = None
    silent_rows: tuple[int, ...] = ()

    @property
    def layer(self) -> LayerSpec:
        return self.chain[-1]


def numbers(*rows: str) -> FloatArray:
    """`numbers("1/2 -3")` is (2,), several rows make a matrix, `-` is NaN."""
    parsed = [[np.nan if n == "-" else float(Fraction(n)) for n in row.split()] for row in rows]
    return np.array(parsed[0] if len(rows) == 1 else parsed)


def spike_trains(*samples: str) -> FloatArray:
    """Patterns of each sample, one per neuron, to (T, B, N): `spike_trains("11 10", "01 00")` has T = B = N = 2."""
    return np.array([[[float(o) for o in train] for train in sample.split()] for sample in samples]).transpose(2, 0, 1)


def _without_time() -> HandWorked:
    """T = 1, a linear layer on a signed input, units with signed outputs, first window.

    Sizes of the input: sample 1 (1, 1), X = 2; sample 2 (0, 4), X = 4. Sizes of the outputs over the samples: unit 0
    (0, 2), unit 1 (1, 0), unit 2 (5, 3); theta = A = their means (1, 1/2, 4).

        unit 0: E[X y^2] = 16/2 = 8,         E[X y] = 8/2 = 4,          8 - 1 * 4 = 4,       R = 4
        unit 1: E[X y^2] = 2/2 = 1,          E[X y] = 2/2 = 1,          1 - 1/2 * 1 = 1/2,   R = 1/2
        unit 2: E[X y^2] = (50 + 36)/2 = 43, E[X y] = (10 + 12)/2 = 11, 43 - 4 * 11 = -1,    R = 1
        D = sqrt(4 * 1), sqrt(1/2 * 1/2), sqrt(1 * 4) = 2, 1/2, 2;  sum 9/2;  u = 3 D / (9/2) = 4/3, 1/3, 4/3

        BCM_0: input 0: 0 - 0 = 0;             input 1: 16/2 - 1 * 8/2 = 4
        BCM_1: input 0: 1/2 - 1/2 * 1/2 = 1/4; input 1: the same
        BCM_2: input 0: 25/2 - 4 * 5/2 = 5/2;  input 1: (25 + 36)/2 - 4 * (5 + 12)/2 = -7/2   (5/2 - 7/2 = -1, as above)
        E[x] = (1 + 0)/2, (1 + 4)/2 = 1/2, 5/2
        s_0 = 1/2 * 1/2, 1/4 * 5/2 = 1/4, 5/8;  u = 2 s / (7/8) = 4/7, 10/7
        s_1 = 1/2 * 1/2, |-1| * 5/2 = 1/4, 5/2; u = 2 s / (11/4) = 2/11, 20/11
        s_2 = 1/2, 5/2;                         u = 2 s / 3 = 1/3, 5/3
    """
    layer = LayerSpec(name="layer", kind="linear", outputs=3, in_unit=(IMAGE, IMAGE))
    alive, synapses = everything_lives((layer,))
    return HandWorked(
        name="T = 1, own theta",
        chain=(layer,),
        batch={
            "layer": LayerActivity(
                pre=numbers("1 -1", "0 4")[None],
                post=numbers("0 -1 5", "2 0 3")[None],
            )
        },
        alive=alive,
        synapses=synapses,
        weight=numbers("1/2 1/4", "1/2 -1", "1 1"),
        previous_theta=None,
        x=numbers("1 1", "0 4"),
        y=numbers("0 1 5", "2 0 3"),
        sum_x=numbers("1 5"),
        sum_y=numbers("2 1 8"),
        sum_Xy=numbers("8 2 22"),
        sum_Xyy=numbers("16 2 86"),
        sum_xy=numbers("0 8", "1 1", "5 17"),
        sum_xyy=numbers("0 16", "1 1", "25 61"),
        theta=numbers("1 1/2 4"),
        R=numbers("4 1/2 1"),
        A=numbers("1 1/2 4"),
        D=numbers("2 1/2 2"),
        unit_u=numbers("4/3 1/3 4/3"),
        at_threshold=0,
        bcm=numbers("0 4", "1/4 1/4", "5/2 -7/2"),
        s=numbers("1/4 5/8", "1/4 5/2", "1/2 5/2"),
        synapse_u=numbers("4/7 10/7", "2/11 20/11", "1/3 5/3"),
    )


def _with_the_dead() -> HandWorked:
    """T = 2, spikes, theta of the previous window, a dead feeding unit that still fires, a dead synapse, a silent row.

    Inputs: unit 0 fires 11, 01 = 5/4, 1/2; unit 1 fires 10, 01 = 3/4, 1/2; unit 2 is dead, what it fires is excluded:
    X = 2 in sample 1, 1 in sample 2. The dead synapse (1, 1) stays in X. Outputs: unit 0 11, 00 = 5/4, 0; unit 1
    01, 01 = 1/2, 1/2; unit 2 10, 10 = 3/4, 3/4, always at its threshold. theta = 3/4, 7/8, 3/4.

        unit 0: E[X y^2] = (2 * 25/16)/2 = 25/16,       E[X y] = (5/2)/2 = 5/4, 25/16 - 3/4 * 5/4 = 5/8,    R = 5/8
        unit 1: E[X y^2] = (1/2 + 1/4)/2 = 3/8,         E[X y] = (3/2)/2 = 3/4, 3/8 - 7/8 * 3/4 = -9/32,    R = 9/32
        unit 2: E[X y^2] = (9/8 + 9/16)/2 = 27/32,      E[X y] = (9/4)/2 = 9/8, 27/32 - 3/4 * 9/8 = 0,      R = 0
        A = 5/8, 1/2, 3/4;  D = 5/8, sqrt(9/64) = 3/8, 0;  sum 1;  u = 15/8, 9/8, 0

        BCM_0: input 0: 125/128 - 3/4 * 25/32 = 25/64; input 1: 75/128 - 3/4 * 15/32 = 15/64; input 2: dead
        BCM_1: input 0: 7/32 - 7/8 * 7/16 = -21/128;   input 1: 5/32 - 7/8 * 5/16 = -15/128;  input 2: dead
        BCM_2: input 0: 63/128 - 3/4 * 21/32 = 0;      input 1: 45/128 - 3/4 * 15/32 = 0;     input 2: dead
        E[x] = (5/4 + 1/2)/2, (3/4 + 1/2)/2 = 7/8, 5/8; input 2: dead
        s_0 = 1 * 7/8, |-1| * 5/8;  u = 3 s / (3/2) = 7/4, 5/4, 0
        s_1 = 2 * 7/8, the other two dead;  u = 3, 0, 0
        s_2 = 0, 0, its weights are 0: a silent row of 3 with 2 living;  u = 3/2, 3/2, 0
    """
    feeder = LayerSpec(name="feeder", kind="linear", outputs=3, in_unit=(IMAGE,))
    layer = LayerSpec(name="layer", kind="linear", outputs=3, in_unit=(0, 1, 2))
    chain = (feeder, layer)
    alive, synapses = everything_lives(chain)
    alive["feeder"][2] = False
    synapses["layer"][1, 1] = False
    fed = spike_trains("11 10 11", "01 01 11")
    return HandWorked(
        name="T = 2, theta of the window before, some dead",
        chain=chain,
        batch={
            "feeder": LayerActivity(pre=np.ones((2, 2, 1)), post=fed),
            "layer": LayerActivity(pre=fed, post=spike_trains("11 01 10", "00 01 10")),
        },
        alive=alive,
        synapses=synapses,
        weight=numbers("1 -1 1", "2 1 1", "0 0 1"),
        previous_theta=numbers("3/4 7/8 3/4"),
        x=numbers("5/4 3/4 5/4", "1/2 1/2 5/4"),
        y=numbers("5/4 1/2 3/4", "0 1/2 3/4"),
        sum_x=numbers("7/4 5/4 -"),
        sum_y=numbers("5/4 1 3/2"),
        sum_Xy=numbers("5/2 3/2 9/4"),
        sum_Xyy=numbers("25/8 3/4 27/16"),
        sum_xy=numbers("25/16 15/16 -", "7/8 5/8 -", "21/16 15/16 -"),
        sum_xyy=numbers("125/64 75/64 -", "7/16 5/16 -", "63/64 45/64 -"),
        theta=numbers("3/4 7/8 3/4"),
        R=numbers("5/8 9/32 0"),
        A=numbers("5/8 1/2 3/4"),
        D=numbers("5/8 3/8 0"),
        unit_u=numbers("15/8 9/8 0"),
        at_threshold=1,
        bcm=numbers("25/64 15/64 -", "-21/128 - -", "0 0 -"),
        s=numbers("7/8 5/8 -", "7/4 - -", "0 0 -"),
        synapse_u=numbers("7/4 5/4 0", "3 0 0", "3/2 3/2 0"),
        silent_rows=(2,),
    )


def _convolution() -> HandWorked:
    """T = 2, a convolution on a constant signed image with two positions, a dead unit that still fires, first window.

    Image: channel 0 (1, -1), then (-1/4, 1/4): mean sizes 1, 1/4; channel 1 (0, -2), then (1/2, 0): mean sizes 1, 1/4.
    X = 2 in sample 1, 1/2 in sample 2. Units 0 and 1 fire 11 at one position and 10 at the other, (5/4 + 3/4)/2 = 1,
    unit 0 in sample 1 only, unit 1 in sample 2 only: theta = A = 1/2 for both. Unit 2 is dead.

        unit 0: E[X y^2] = 2/2 = 1,       E[X y] = 1,   1 - 1/2 * 1 = 1/2,     R = 1/2, D = sqrt(1/2 * 1/2) = 1/2
        unit 1: E[X y^2] = (1/2)/2 = 1/4, E[X y] = 1/4, 1/4 - 1/2 * 1/4 = 1/8, R = 1/8, D = sqrt(1/8 * 1/2) = 1/4
        sum of D over the living 3/4, of 3 original units;  u = 2, 1, and 0 for the dead
    """
    layer = LayerSpec(name="layer", kind="conv", outputs=3, in_unit=(IMAGE, IMAGE), kernel=9)
    alive, synapses = everything_lives((layer,))
    alive["layer"][2] = False
    image = np.array([[[1.0, -1.0], [0.0, -2.0]], [[-0.25, 0.25], [0.5, 0.0]]])
    positions = [spike_trains("11 00 11", "00 10 11"), spike_trains("10 00 11", "00 11 11")]
    return HandWorked(
        name="T = 2, convolution",
        chain=(layer,),
        batch={"layer": LayerActivity(pre=np.stack([image, image]), post=np.stack(positions, axis=-1))},
        alive=alive,
        synapses=synapses,
        weight=None,
        previous_theta=None,
        x=numbers("1 1", "1/4 1/4"),
        y=numbers("1 0 5/4", "0 1 5/4"),
        sum_x=numbers("5/4 5/4"),
        sum_y=numbers("1 1 -"),
        sum_Xy=numbers("2 1/2 -"),
        sum_Xyy=numbers("2 1/2 -"),
        sum_xy=None,
        sum_xyy=None,
        theta=numbers("1/2 1/2 -"),
        R=numbers("1/2 1/8 -"),
        A=numbers("1/2 1/2 -"),
        D=numbers("1/2 1/4 -"),
        unit_u=numbers("2 1 0"),
        at_threshold=0,
    )


HAND_WORKED: tuple[HandWorked, ...] = (_without_time(), _with_the_dead(), _convolution())
