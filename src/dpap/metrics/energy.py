"""An energy estimate: counts times costs with a source. Compute only, memory traffic apart; nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass

from dpap.errors import DPAPError


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyCost:
    """What one operation costs, in picojoule."""

    name: str
    mac_pj: float
    """A multiply-accumulate."""
    ac_pj: float
    """An accumulate: what one spike at one synapse asks for."""
    update_pj: float
    """A membrane update: leak, one multiply-accumulate."""
    word_pj: float
    """One word read from or written to memory."""

    def __post_init__(self) -> None:
        for field in ("mac_pj", "ac_pj", "update_pj", "word_pj"):
            if not getattr(self, field) >= 0:
                raise DPAPError(
                    f"{field} is {getattr(self, field)}.", where=f"EnergyCost {self.name!r}", fix="use a cost >= 0 pJ."
                )

    @classmethod
    def horowitz_45nm_fp32(cls) -> EnergyCost:
        """45 nm, 32-bit floating point: multiply 3.7 pJ, add 0.9 pJ, 8 KB SRAM 10 pJ per 64 bits.

        M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, Fig. 1.1.9.

        >>> EnergyCost.horowitz_45nm_fp32().mac_pj
        4.6
        """
        return cls(name="45 nm, fp32 (Horowitz, ISSCC 2014)", mac_pj=4.6, ac_pj=0.9, update_pj=4.6, word_pj=5.0)

    def compute_pj(self, *, macs_real: float, sops: float, neuron_updates: float) -> float:
        """`mac_pj` x MACs of real-valued inputs + `ac_pj` x SOPs + `update_pj` x neuron updates.

        >>> EnergyCost.horowitz_45nm_fp32().compute_pj(macs_real=10, sops=100, neuron_updates=10)
        182.0
        """
        return self.mac_pj * macs_real + self.ac_pj * sops + self.update_pj * neuron_updates

    def memory_pj(self, *, macs_real: float, sops: float, neuron_updates: float) -> float:
        """Memory traffic if no word is ever reused, an upper bound on the same SRAM: a MAC reads weight and input, a
        SOP reads its weight and reads and writes its target, an update reads and writes the potential."""
        return self.word_pj * (2 * macs_real + 3 * sops + 2 * neuron_updates)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyEstimate:
    """Energy per sample in picojoule, and what it is to be compared with."""

    cost: str
    compute_pj: float
    """The estimate: this network, on the spikes it was seen to fire."""
    memory_pj: float
    """Its memory traffic without any reuse; not part of `compute_pj`."""
    dense_snn_pj: float
    """The same network, everything alive and nothing saved by silence: each spike-driven synapse adds at each step."""
    dense_ann_pj: float
    """A network without spikes of the same layers, everything alive: all MACs of one step."""
    paper_proxy_pj: float
    """The paper's Eq. (15): (1 - rho_w) FLOPS E_AC (1 - rho_t) T, with FLOPS the dense MACs of one step."""
    paper_proxy_share: float
    """The paper's "energy" column: (1 - rho_w)(1 - rho_t), a share of the dense network's Eq. (14)."""


def paper_proxy_pj(
    cost: EnergyCost, *, macs_one_step: float, num_steps: int, sparsity: float, step_sparsity: float = 0.0
) -> float:
    """The paper's Eq. (15); with both sparsities 0 its Eq. (14). No firing rate enters it.

    >>> paper_proxy_pj(EnergyCost.horowitz_45nm_fp32(), macs_one_step=100, num_steps=4, sparsity=0.75)
    90.0
    """
    return (1 - sparsity) * macs_one_step * cost.ac_pj * (1 - step_sparsity) * num_steps
