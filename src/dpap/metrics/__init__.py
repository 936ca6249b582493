"""Numbers with a unit and a formula: what lives, what is computed, what it costs, how well it answers."""

from dpap.metrics.accuracy import McNemar, Summary, accuracy, correct, difference, mcnemar, summary, t_quantile
from dpap.metrics.anytime import anytime
from dpap.metrics.connectivity import (
    connectivity,
    count_parameters,
    count_synapses,
    sparsity_paper,
    stored_synapses,
    unit_density,
)
from dpap.metrics.energy import EnergyCost, EnergyEstimate
from dpap.metrics.latency import latency
from dpap.metrics.measurement import Measurement, estimate_energy, measure
from dpap.metrics.rates import FiringRate, RateCounter
from dpap.metrics.synops import SynopCount, SynopCounter, count_macs, count_neuron_updates, count_synops

__all__ = [
    "EnergyCost",
    "EnergyEstimate",
    "FiringRate",
    "McNemar",
    "Measurement",
    "RateCounter",
    "Summary",
    "SynopCount",
    "SynopCounter",
    "accuracy",
    "anytime",
    "connectivity",
    "correct",
    "count_macs",
    "count_neuron_updates",
    "count_parameters",
    "count_synapses",
    "count_synops",
    "difference",
    "estimate_energy",
    "latency",
    "mcnemar",
    "measure",
    "sparsity_paper",
    "stored_synapses",
    "summary",
    "t_quantile",
    "unit_density",
]
