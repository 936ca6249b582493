"""Prune a PyTorch network, spiking or not, while it trains (DPAP, Han et al., TPAMI 2025)::

    dev = dpap.DPAP(model, example, optimizer=optimizer, total_steps=steps, target={"connectivity": 0.1})
    for x, y in batches:
        with dev.observing():
            loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
    small = dev.compact()

What is here::

    DPAP                prunes a network while it trains; DevelopmentReport is what dev.step() returns
    DPAPError           the error of this library: what is wrong, where, and what to do
    inspect             what can be pruned of a network and what each layer costs, before training
    find_groups         which units must be pruned together
    measure             accuracy, operations and energy of a network from one pass over data
    save, load          a network as a folder of safetensors and JSON
    Stats               what a score function of your own is given
    dpap.scores         scores by name: how important a unit or connection is
    dpap.rules          the rules "dpap", "paper" and "released"
    dpap.neurons        IF, LIF, PLIF and what networks over time are built of
    dpap.models, dpap.data, dpap.metrics, dpap.recipes

On the command line: dpap --help.
"""

from importlib.metadata import PackageNotFoundError, version

from dpap import neurons
from dpap.developer import DPAP
from dpap.development.report import DevelopmentReport
from dpap.errors import DPAPError
from dpap.graph.find import find_groups
from dpap.inspection import inspect
from dpap.io import load, save
from dpap.method import rules, scores
from dpap.method.plasticity import Stats
from dpap.metrics import measure

try:
    __version__ = version("dpap")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"
__all__ = [
    "DPAP",
    "DPAPError",
    "DevelopmentReport",
    "Stats",
    "find_groups",
    "inspect",
    "load",
    "measure",
    "neurons",
    "rules",
    "save",
    "scores",
]
