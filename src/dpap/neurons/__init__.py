"""Spiking neurons on (T, B, ...): modules, the functions behind them, surrogates, and encoding in time."""

from dpap.neurons.encoding import Repeat, over_time
from dpap.neurons.modules import IF, LIF, PLIF, LeakyIntegrator, SpikingNeuron
from dpap.neurons.recurrent import Recurrent, StepByStep
from dpap.neurons.surrogate import ArcTan, QuadraticGate, Rectangular, Sigmoid, Surrogate

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "ArcTan",
    "LeakyIntegrator",
    "QuadraticGate",
    "Rectangular",
    "Recurrent",
    "Repeat",
    "Sigmoid",
    "SpikingNeuron",
    "StepByStep",
    "Surrogate",
    "over_time",
]
