"""What one development step found and did, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dpap.development.temporal import TimeDecision
from dpap.pruning.choose import Taker


@dataclass(slots=True)
class Notes:
    """What there is to say about a development step while it is worked out."""

    warnings: list[str] = field(default_factory=list)
    at_threshold: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevelopmentReport:
    """What one development step found and did. Tensors have the original length; pruned units keep their places."""

    step: int
    """Calls of `dev.step()` so far."""
    progress: float
    """p: share of the run that is over."""
    connectivity: float
    """Living synapses / synapses of the dense network."""
    died_units: dict[str, list[int]] = field(default_factory=dict)
    """Group -> units that fell below the level."""
    isolated_units: dict[str, list[int]] = field(default_factory=dict)
    """Group -> units that were pruned because nothing living fed or read them any more."""
    died_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> single synapses that fell below the level."""
    living_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> synapses left, of the weights that lose them one by one; those of dead units are gone too."""
    born_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> synapses that grew again in this step, where regrowth is asked for; as many more were pruned."""
    wasted_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> synapses that had grown again in this run and were pruned in this step."""
    died_steps: dict[str, list[int]] = field(default_factory=dict)
    """Neuron -> time steps at which its whole layer was pruned in this step."""
    died_pairs: dict[str, int] = field(default_factory=dict)
    """Neuron -> single (unit, time step) pairs that fell below the level."""
    living_pairs: float = 1.0
    """Living pairs / pairs of the living hidden neurons; 1 where time steps are not pruned."""
    living_steps: float = 1.0
    """Living layer steps / all of them, likewise."""
    capped: list[str] = field(default_factory=list)
    """Groups and weights where a cap put something off to the next step."""
    skipped: list[str] = field(default_factory=list)
    """What a floor or a protected unit kept."""
    warnings: list[str] = field(default_factory=list)
    at_threshold: dict[str, int] = field(default_factory=dict)
    """Group -> living units that were active and score 0 all the same: their activity never leaves the threshold."""
    use: dict[str, Tensor] = field(default_factory=dict)
    """Group -> u of each unit: its score among its siblings, as the rule normalises it."""
    survival: dict[str, Tensor] = field(default_factory=dict)
    """Group -> F of each unit."""
    alive: dict[str, Tensor] = field(default_factory=dict)
    """Group -> whether each unit lives."""
    pairs: dict[str, Tensor] = field(default_factory=dict)
    """Neuron -> whether each pair lives, (units, T)."""

    @property
    def deaths(self) -> int:
        """Units and synapses that were pruned, isolated and exchanged ones included."""
        units = sum(len(u) for d in (self.died_units, self.isolated_units) for u in d.values())
        return units + sum(self.died_synapses.values()) + sum(self.born_synapses.values())


def reported(
    taker: Taker,
    notes: Notes,
    time: TimeDecision | None = None,
    *,
    step: int,
    progress: float,
    dense: float,
    use: Mapping[str, Tensor],
    survival: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    born: Mapping[str, int],
    wasted: Mapping[str, int],
) -> DevelopmentReport:
    """The report of a development step whose victims are taken; `dense`: synapses of the dense network."""
    account = taker.account
    names = [g.name for g in account.graph.groups]
    died: dict[str, list[int]] = {}
    for owner, index in taker.units:
        died.setdefault(names[owner], []).append(index)
    isolated: dict[str, list[int]] = {}
    for owner, index in account.isolated:
        isolated.setdefault(names[owner], []).append(index)
    synapses: dict[str, int] = {}
    for owner, _ in taker.synapses:
        weight = account.edges[owner].weight
        synapses[weight] = synapses.get(weight, 0) + 1
    return DevelopmentReport(
        step=step,
        progress=progress,
        connectivity=account.connectivity() / dense,
        died_units=died,
        isolated_units=isolated,
        died_synapses=synapses,
        living_synapses={e.weight: int(e.row.sum()) for e in account.edges if e.weight in account.prunable},
        born_synapses=dict(born),
        wasted_synapses=dict(wasted),
        died_steps={} if time is None else time.died_steps,
        died_pairs={} if time is None else time.died_pairs,
        living_pairs=1.0 if time is None else time.living_pairs,
        living_steps=1.0 if time is None else time.living_steps,
        capped=sorted(taker.bound) + ([] if time is None else time.capped),
        skipped=sorted(account.skipped) + ([] if time is None else time.skipped),
        warnings=notes.warnings,
        at_threshold=notes.at_threshold,
        use=dict(use),
        survival=dict(survival),
        alive=dict(alive),
        pairs={} if time is None else time.pairs,
    )
