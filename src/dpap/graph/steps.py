"""Time in a loop that the user wrote: which calls of a module are the steps of one, and which are calls of their own.

An exported graph unrolls such a loop. A neuron that runs one step per call counts them: its call t is step t. What
a call of any other module belongs to is read off the graph: what it needs and what needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpap.errors import DPAPError

Node = Any


def count_steps(sequences: Mapping[str, int], loops: Mapping[str, int]) -> int:
    """T of a network; 1 for one without time.

    Args:
        sequences: Marks of a time axis -> its length.
        loops: Neuron that runs one step per call -> its calls in a pass.

    Raises:
        DPAPError: Neurons differ in it.
    """
    found = dict.fromkeys(loops.values())
    if sequences:
        found[max(sequences.values())] = None
    if len(found) > 1:
        calls = ", ".join(f"{name} {count} times" for name, count in loops.items())
        whole = f"; others receive {max(sequences.values())} steps at once" if sequences else ""
        raise DPAPError(
            f"The number of time steps is unclear: in one pass neurons are called {calls}{whole}.",
            fix="give each place in the network a neuron of its own, called once per step.",
        )
    return next(iter(found), 1)


@dataclass(frozen=True, slots=True)
class Steps:
    """Where the calls of modules lie in time.

    Args:
        num_steps: T.
        needs: Node -> the latest step that it is made of.
        needed: Node -> the earliest step that it goes into.
        calls: Module -> node of each call.
    """

    num_steps: int
    needs: Mapping[Node, int]
    needed: Mapping[Node, int]
    calls: Mapping[str, Sequence[Node]]

    @classmethod
    def of(
        cls,
        nodes: Iterable[Node],
        num_steps: int,
        known: Mapping[Node, int],
        picks: Collection[Node],
        calls: Mapping[str, Sequence[Node]],
    ) -> Steps:
        """Follow the steps through a graph.

        Args:
            nodes: In order of execution.
            num_steps: T.
            known: Node -> step: calls of neurons, and what was picked out of a time axis.
            picks: Nodes of `known` whose own input holds all steps.
            calls: Module -> node of each call.
        """
        nodes = list(nodes)
        needs, needed = dict(known), dict(known)
        for node in nodes:
            if node not in known:
                before = [needs[n] for n in node.all_input_nodes if n in needs]
                if before:
                    needs[node] = max(before)
        for node in reversed(nodes):
            if node not in known:
                after = [needed[n] for n in node.users if n in needed and n not in picks]
                if after:
                    needed[node] = min(after)
        return cls(num_steps, needs, needed, calls)

    def per_step(self, module: str) -> int:
        """How often a module is called in each step; 0 if its calls are no steps.

        Raises:
            DPAPError: Some calls are, some are not.
        """
        nodes = self.calls.get(module, ())
        if self.num_steps == 1 or not nodes:
            return 0
        readings = (
            [self.needed.get(n, self.needs.get(n)) for n in nodes],
            [self.needs.get(n, self.needed.get(n)) for n in nodes],
        )
        times, rest = divmod(len(nodes), self.num_steps)
        if not rest and [index // times for index in range(len(nodes))] in readings:
            return times
        if any(len(set(steps)) == 1 for steps in readings):
            return 0
        raise DPAPError(
            f"{module} is called {len(nodes)} times in a pass of {self.num_steps} steps, not equally often in each, so "
            "what is a step and what a call of its own is unclear.",
            where=module,
            fix="call a module equally often in each step, or give each place in the network a module of its own.",
        )

    def reads_the_past(self, module: str, call: int) -> bool:
        """Whether a call of each step reads what was made in the step before, and zeros in the first."""
        node = self.calls[module][self.per_step(module) + call]
        return self.needs.get(node, 1) < 1
