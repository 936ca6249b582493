"""What a saved state must have in common with the run that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpap.development.checks import settings_differ
from dpap.development.survivors import STATE, Survivors
from dpap.development.temporal import Temporal
from dpap.errors import DPAPError
from dpap.method.rules import Rule
from dpap.method.schedule import Schedule
from dpap.method.survival import Clock
from dpap.pruning.slice import Present


def settings_of(rule: Rule, schedule: Schedule, seed: int, target: Mapping[str, float]) -> dict[str, Any]:
    """What a run is, beside its network: a saved state of another one is refused, and so are unlike processes."""
    s, end = schedule, Clock(progress=1, elapsed=0, start=0, stop=1, memory=schedule.memory, epoch=0)
    return {
        "rule": rule.name,
        "total_steps": s.total_steps,
        "start": s.start,
        "stop": s.stop,
        "memory": s.memory,
        "development_steps": s.development_steps,
        "observe_every": s.observe_every,
        "seed": seed,
        "prune": " and ".join(sorted(rule.kinds)),
        "synapses": rule.synapses,
        "regrow": rule.regrow,
        "crowding": rule.crowding,
        "score": getattr(rule.score, "__qualname__", type(rule.score).__name__),
        "levels": ", ".join(f"{kind} {rule.level(kind, end):g}" for kind in sorted(rule.kinds)),
        "target": ", ".join(f"{metric} {share:g}" for metric, share in sorted(target.items())) or "none",
    }


def check_state(
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    here: tuple[int, int],
    survivors: Survivors,
    present: Present,
    temporal: Temporal | None,
) -> None:
    """Refuse a saved state of another run or network.

    Args:
        state: What was saved.
        settings: Of this run (`settings_of`).
        here: Number of this process, and how many there are.
        survivors: Of this run, for the shapes.
        present: Units that are still in the tensors of the model.
        temporal: The pruning of time steps, if there is any.

    Raises:
        DPAPError: It does not fit.
    """
    different = settings_differ(state, settings)
    if different is not None:
        raise DPAPError(
            f"The saved state is of a run with {different}.",
            fix="make DPAP with the arguments of the saved run, then load.",
        )
    place = state.get("process", 0), state.get("processes", 1)
    if place != here and any(s["samples"] for s in state["sums"].values()):
        raise DPAPError(
            f"The saved state is of process {place[0]} of {place[1]} in the middle of a window; this is process "
            f"{here[0]} of {here[1]}.",
            fix="save and load the state of each process apart, or save right after a development step.",
        )
    for key in STATE:
        own = {k: tuple(v.shape) for k, v in getattr(survivors, key).items()}
        saved = {k: tuple(v.shape) for k, v in state[key].items()}
        if own != saved:
            different = sorted(set(own.items()) ^ set(saved.items()))[0][0]
            raise DPAPError(
                f"The saved state is of another network: {key} of {different} is {saved.get(different)}, "
                f"here {own.get(different)}.",
                fix="build the model and DPAP as in the saved run, then load.",
            )
    if temporal is not None:
        temporal.check_state(state.get("time"))
    elif state.get("time") is not None:
        raise DPAPError(
            "The saved state is of a run that pruned time steps.",
            fix=f"make DPAP with time={state['time']['mode']!r}.",
        )
    for name, there in present.units.items():
        if bool((state["present"].get(name, there) & ~there).any()):
            raise DPAPError(
                f"The saved state is of a wider network: {name} has units there that were cut here.",
                fix="load it into a DPAP of the dense model, as it was made at the start of the run.",
            )
