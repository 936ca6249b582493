"""What must not happen unseen between two development steps: other processes, another optimizer, unlike decisions."""

from __future__ import annotations

import torch

from dpap.development.decide import Decision
from dpap.errors import DPAPError
from dpap.processes import agree, world
from dpap.pruning.mask import MaskKeeper


class Guard:
    """Watches what changes the weights, and that the processes stay the same.

    Attributes:
        place: Number of this process, and how many there are.
    """

    def __init__(self, masks: MaskKeeper) -> None:
        self.place, self.masks = world(), masks
        self.note(strangers=False)

    def note(self, *, strangers: bool) -> None:
        """A window ends. `strangers`: weights moved in it without a step of our optimizers."""
        self._moved = self.masks.steps, self._writes(), strangers

    def check_world(self) -> None:
        """Refuse processes that came or went since DPAP was made."""
        if world() != self.place:
            raise DPAPError(
                f"There are {world()[1]} processes; DPAP was made when there were {self.place[1]}.",
                fix="call torch.distributed.init_process_group before DPAP is made.",
            )

    def moved_by_others(self, position: str) -> bool:
        """Whether weights changed in this window without a step of our optimizers. Another optimizer would move what is
        pruned, and keep state of old widths; one window may be a load.

        Raises:
            DPAPError: So it was in the window before.
        """
        steps, writes, strangers = self._moved
        moved = self.masks.steps == steps and self._writes() != writes
        if moved and strangers:
            raise DPAPError(
                "The weights change, and none of the optimizers given to DPAP makes a step.",
                where=position,
                fix="keep the optimizer that DPAP was made with (change its param_groups for another learning rate); "
                "to train on with another one, close() this DPAP and make a new one.",
            )
        return moved

    def _writes(self) -> int:
        """How often parameters were written, as PyTorch counts; zeros that are written again do not count."""
        return sum(p._version for p in self.masks.parameters.values())


def agree_on(decision: Decision, device: torch.device, position: str) -> None:
    """Refuse a decision that the processes did not come to alike."""
    time = {} if decision.time is None else decision.time.pairs
    agree(
        [*decision.alive.values(), *decision.synapses.values(), *time.values()],
        device,
        DPAPError(
            "The processes would prune differently, so their networks are not the same; nothing was pruned.",
            where=position,
            fix="wrap the model in DistributedDataParallel, which starts all processes from the same weights and "
            "keeps them so, and do not change weights in one process alone.",
        ),
    )
