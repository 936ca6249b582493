"""The sums of several processes, without processes: two windows are added as `summed` would."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from dpap import DPAP, DPAPError
from dpap.development import window as window_module
from dpap.development.window import Window
from dpap.neurons import LIF


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(6, 10), LIF(v_threshold=0.2), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.lif(self.fc1(x))).mean(0)


def seen(batches: Sequence[Tensor]) -> Window:
    torch.manual_seed(0)
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    settings = {"target": {"sops": 0.5}, "start": 0.0, "observe_every": 1}
    dev = DPAP(model, torch.rand(3, 2, 6).double(), optimizer=optimizer, total_steps=1000, **settings)
    for x in batches:
        with dev.observing():
            model(x)
    return dev._engine.window


@pytest.mark.parametrize("shares", [(2, 2), (4, 0)])
def test_pooled_is_what_one_process_would_have_seen(shares: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [2 * torch.rand(3, 4, 6).double() for _ in range(4)]
    whole, mine, theirs = seen(batches), seen(batches[: shares[0]]), seen(batches[shares[0] :])
    theirs.skip("evaluation")
    sent: list[list[Tensor]] = []

    def record(tensors: Sequence[Tensor]) -> list[Tensor]:
        sent.append(list(tensors))
        return sent[-1]

    monkeypatch.setattr(window_module, "world", lambda: (0, 2))
    monkeypatch.setattr(window_module, "summed", record)
    theirs.pooled()
    monkeypatch.setattr(window_module, "summed", lambda tensors: [a + b for a, b in zip(tensors, sent[0], strict=True)])
    pooled = mine.pooled()
    assert (pooled.passes, pooled.skipped["evaluation"]) == (4, 1)
    for key, sums in whole.sums.items():
        assert pooled.sums[key].samples == sums.samples == 16
        for name, total in sums.sums.items():
            torch.testing.assert_close(pooled.sums[key].sums[name], total, rtol=1e-12, atol=1e-12)
    for weight, arrivals in whole.arrivals.items():
        torch.testing.assert_close(pooled.arrivals[weight], arrivals, rtol=1e-12, atol=1e-12)
    assert mine.sums[next(iter(whole.sums))].samples == 4 * shares[0], "what this process saw stays as it is"


def test_nobody_saw_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    window = seen([])
    monkeypatch.setattr(window_module, "world", lambda: (0, 2))
    monkeypatch.setattr(window_module, "summed", lambda tensors: list(tensors))
    with pytest.raises(DPAPError, match="No batch was observed"):
        window.pooled().of(window.layers[0])
