"""Accuracy at 90 % sparsity on the digits, over seeds: each arm beside the unpruned control of the same seed.

    python benchmarks/digits.py --seeds 20 --out runs/digits --json benchmarks/results/digits.json
    python benchmarks/digits.py --arms control dpap magnitude --recipe digits-ann

Every arm of a seed starts from the same weights and sees the same batches. The settings of the recipes were chosen on
the validation split; here all training and validation images are trained on, the last epoch counts, and the test split
is looked at once per run. Resumable: a run that is finished in --out is not run again. The arms other than `dpap` swap
the score of units and synapses and share everything else, the target of the whole network included; how much each layer
loses may differ between them.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import dpap
from dpap.config import Config
from dpap.metrics import difference, mcnemar, summary
from dpap.recipes import RECIPES, recipe
from dpap.report.history import ResultLine
from dpap.training.checkpoint import RunFolder
from dpap.training.loop import resume, train

ARMS: dict[str, str | None] = {
    "control": None,  # nothing is pruned
    "dpap": "bcm",
    "bcm-alone": "bcm-alone",
    "weighted-input": "weighted-input",
    "magnitude": "magnitude",
    "activity": "activity",
    "random": "random",
}


def config_of(name: str, arm: str, seed: int) -> Config:
    config = replace(recipe(name), seed=seed, control=False)
    if arm == "control":
        return config.as_control()
    score = None if arm == "dpap" else ARMS[arm]
    return replace(config, development=replace(config.development, unit_score=score, synapse_score=score))


def result_of(config: Config, path: Path) -> tuple[ResultLine, torch.Tensor]:
    """Train unless that was done, and which test samples the saved network answers rightly."""
    folder = RunFolder(path)
    if not folder.history_path.exists() or folder.history().result is None:
        resume(path) if folder.config_path.exists() else train(config, path)
    result = folder.history().result
    assert result is not None, "the run is over"
    return result, torch.from_numpy(np.load(path / "answers.npz")["correct"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=[n for n in RECIPES if n.startswith("digits")], default="digits-snn")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    arms = ["control", *[a for a in chosen.arms if a != "control"]]
    found: dict[str, list[tuple[ResultLine, torch.Tensor]]] = {arm: [] for arm in arms}
    for seed in range(chosen.seeds):
        for arm in arms:
            config = config_of(chosen.recipe, arm, seed)
            found[arm].append(result_of(config, chosen.out / chosen.recipe / arm / str(seed)))
            print(f"seed {seed}  {arm:15}  {found[arm][-1][0].test_accuracy:.4f}", flush=True)
    rows = {arm: row(found[arm], found["control"]) for arm in arms}
    show(chosen.recipe, chosen.seeds, rows)
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "recipe": chosen.recipe,
            "seeds": chosen.seeds,
            "command": f"python benchmarks/digits.py --recipe {chosen.recipe} --seeds {chosen.seeds}",
            "dpap": dpap.__version__,
            "torch": torch.__version__,
            "device": f"{platform.machine()} CPU, 1 thread",
        }
        chosen.json.write_text(json.dumps({**about, "arms": rows}, indent=1) + "\n")


def row(
    runs: list[tuple[ResultLine, torch.Tensor]], controls: list[tuple[ResultLine, torch.Tensor]]
) -> dict[str, object]:
    """What the table says of one arm; points are percent of the test split."""
    values, control = ([100 * r.test_accuracy for r, _ in some] for some in (runs, controls))
    paired = mcnemar(torch.cat([right for _, right in runs]), torch.cat([right for _, right in controls]))
    results = [r for r, _ in runs]
    return {
        "accuracy": asdict(summary(values)),
        "difference": asdict(difference(values, control)),
        "mcnemar_p": paired.p_value,
        "only_this": paired.only_first,
        "only_control": paired.only_second,
        "connectivity": summary([100 * r.connectivity for r in results]).mean,
        "connectivity_conv": summary([100 * (r.connectivity_conv or 0) for r in results]).mean,
        "macs": summary([100 * r.macs / r.dense_macs for r in results]).mean,
        "synops": summary(
            [100 * r.synops / c.synops if c.synops else 0 for r, (c, _) in zip(results, controls, strict=True)]
        ).mean,
        "unit_density": {
            g: summary([100 * r.alive_units[g] / r.units[g] for r in results]).mean for g in results[0].units
        },
        "accuracies": values,
    }


def show(name: str, seeds: int, rows: dict[str, dict[str, object]]) -> None:
    table = Table(
        title=f"{name}, test accuracy over {seeds} seeds, in percent; difference to the unpruned control in points"
    )
    for title in (
        "arm",
        "mean ± sd",
        "difference [95 % interval]",
        "McNemar p",
        "connectivity",
        "of conv",
        "MACs",
        "SOPs",
    ):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for arm, r in rows.items():
        a, d = r["accuracy"], r["difference"]
        assert isinstance(a, dict)
        assert isinstance(d, dict)
        spread = f" ± {a['sd']:.2f}" if a["sd"] is not None else ""
        interval = f" [{d['low']:+.2f}, {d['high']:+.2f}]" if d["low"] is not None else " (one seed, no interval)"
        shares = [f"{r[k]:.1f}" for k in ("connectivity", "connectivity_conv", "macs", "synops")]
        table.add_row(arm, f"{a['mean']:.2f}{spread}", f"{d['mean']:+.2f}{interval}", f"{r['mcnemar_p']:.2g}", *shares)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
