"""Break one line of the method at a time and see a test fail: `python tests/mutation/mutants.py [PATTERN [RECORD]]`.

Each mutant is a copy of the package with one change; the tests of the method run against it and stop at the first
failure. A mutant that survives is a test that is missing. Not part of the default suite: it takes about half an hour.
With a file RECORD the verdicts are added to it, and mutants that are in it are left out: so a run can be resumed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = (  # quick ones first
    "tests/unit/test_plasticity.py",
    "tests/unit/test_developer.py",
    "tests/equivalence/test_rules.py",
    "tests/unit/test_mask.py",
    "tests/equivalence/test_observe.py",
    "tests/equivalence/test_development.py",
    "tests/unit/test_budget.py",
    "tests/unit/test_recurrent.py",
    "tests/equivalence/test_regrow.py",
    "tests/equivalence/test_conv_synapses.py",
    "tests/equivalence/test_shrink.py",
)


class Mutant(NamedTuple):
    file: str
    old: str
    new: str


P, S, R, C = (f"method/{name}.py" for name in ("plasticity", "survival", "rules", "schedule"))
D, E = "developer.py", "development/engine.py"
G, V, W = (f"development/{name}.py" for name in ("decide", "survivors", "window"))
X, K, A, M, H = "development/scoring.py", *(f"pruning/{name}.py" for name in ("choose", "account", "mask", "shrink"))
MUTANTS = (
    Mutant(P, "trace = decay * trace + spikes_t", "trace = trace + spikes_t"),
    Mutant(P, "torch.arange(num_steps - 1, -1, -1, dtype", "torch.arange(num_steps, 0, -1, dtype"),
    Mutant(P, "left = torch.arange(num_steps, 0, -1", "left = torch.arange(1, num_steps + 1"),
    Mutant(P, "return spikes[0] * weights.sum()", "return spikes[0] * weights[-1]"),
    Mutant(P, "return (post * (post - theta)).T @ pre", "return (post * (post + theta)).T @ pre"),
    Mutant(P, "return (theta * (num - 1) + post) / num", "return (theta * num + post) / (num + 1)"),
    Mutant(P, "change = (post_squared - depression).abs()", "change = (post_squared - depression).clamp(min=0)"),
    Mutant(P, "return (change * mean_activity).sqrt()", "return change * mean_activity"),
    Mutant(P, "return weight.abs() * use", "return use"),
    Mutant(P, "return post_squared + theta * post", "return post_squared - theta * post"),
    Mutant(
        P,
        "change += post_t.T @ trace_pre - trace_post.T @ pre_t",
        "change += post_t.T @ trace_pre + trace_post.T @ pre_t",
    ),
    Mutant(P, "total = x @ living.to(x)\n        squared", "total = x.sum(1)\n        squared"),
    Mutant(P, 's["xyy"].addmm_(squared.T, x)', 's["xyy"].addmm_(y.T, x)'),
    Mutant(P, "self.theta, self.theta_squared = self.thresholds()\n        self.samples = 0", "self.samples = 0"),
    Mutant(
        P,
        "        for tensor in self.sums.values():\n            tensor.zero_()\n\n    def with_sums",
        "\n    def with_sums",
    ),
    Mutant(P, 's["bcm_rows"] += total @ change', 's["bcm_rows"] += x.sum(1) @ change'),
    Mutant(P, 's["spine"] += total @ (y * change)', 's["spine"] += total @ change'),
    Mutant(P, "y if self.per_slot else y.mean(0), self.num", "y if self.per_slot else y.sum(0), self.num"),
    Mutant(P, "        if self.reset:\n", "        if not self.reset:\n"),
    Mutant(P, "return 1e-12 if self.y.dtype == torch.float64 else 1e-5", "return 1e-2"),
    Mutant(
        S,
        "score * (score.shape[-1] / torch.where(total > 0, total, 1))",
        "score * (alive.sum(-1, keepdim=True) / torch.where(total > 0, total, 1))",
    ),
    Mutant(S, "alive.to(score) * score.shape[-1] / alive.sum", "alive.to(score) / alive.sum"),
    Mutant(S, "else torch.full_like(score, 0.5)", "else torch.zeros_like(score)"),
    Mutant(S, "percentile(score[alive], percent)).clamp(0, 1)", "percentile(score[alive], percent))"),
    Mutant(S, "top > low else torch.full_like(score, 0.5)", "top > low else (score > low).to(score)"),
    Mutant(S, "return lambda score, alive: 2 * score - eps", "return lambda score, alive: score - eps"),
    Mutant(S, "(delta >= 0) if at_zero else (delta > 0)", "(delta > 0) if at_zero else (delta >= 0)"),
    Mutant(S, "return gamma * survival + growth", "return survival + growth"),
    Mutant(S, "return math.exp(-elapsed / memory)", "return math.exp(-elapsed)"),
    Mutant(S, "return kappa * (1 - (1 - q) ** 3)", "return kappa * q"),
    Mutant(S, "survival < level * (1 - tolerance)", "survival <= level * (1 + tolerance)"),
    Mutant(S, "min(units, max(2, math.ceil(", "min(units, max(1, math.ceil("),
    Mutant(S, "1 - 0.9 **", "1 - 0.8 **"),
    Mutant(S, "1 - 0.8 **", "1 - 0.9 **"),
    Mutant(S, "return target + (1 - target) * (1 - q) ** 3", "return target + (1 - target) * (1 - q)"),
    Mutant(S, "(self.progress - self.start) / (self.stop - self.start)", "self.progress / self.stop"),
    Mutant(R, "times(1 - gamma(clock))", "times(1.0)"),
    Mutant(R, "math.exp(-clock.epoch / c.eta)", "math.exp(-(clock.epoch // c.eta))"),
    Mutant(R, "math.exp(-((clock.epoch - first) // c.eta))", "math.exp(-(clock.epoch - first) / c.eta)"),
    Mutant(R, "return _kept(stats.spine) / stats.samples", "return _kept(stats.bcm_rows) / stats.samples"),
    Mutant(
        R,
        "min_max(_kept(stats.bcm_rows), stats.alive) * min_max(stats.y, stats.alive)",
        "min_max(_kept(stats.bcm_rows) * stats.y, stats.alive)",
    ),
    Mutant(C, "block % self.observe_every == 0", "block % self.observe_every == 1"),
    Mutant(C, "self.total_steps > (step - 1) *", "self.total_steps >= (step - 1) *"),
    Mutant(C, "self.start - 3 * self.memory", "self.start"),
    Mutant(C, "elapsed=(step - last) / self.total_steps", "elapsed=1 / self.total_steps"),
    Mutant(G, "        if clock.epoch >= self.plan.rule.first_epoch:\n", "        if True:\n"),
    Mutant(G, "return torch.where(alive, new, survival) if self.plan.rule.permanent else new", "return new"),
    Mutant(G, "        if clock.q > 0 or not", "        if clock.q >= 0.5 or not"),
    Mutant(V, "return mask if self.plan.rule.permanent else torch.ones_like(mask)", "return mask"),
    Mutant(W, "living[mine] = alive[name][torch.from_numpy(layer.in_unit)[mine]]", "pass"),
    Mutant(C, "<= progress < self.stop - ROUNDING", "<= progress"),
    Mutant(E, "weight[~rows] = 0", "pass"),
    Mutant(C, "rate > self.previous", "rate < self.previous"),
    Mutant(C, "rate < self.peak / 4", "rate < self.peak / 1.5"),
    Mutant(
        D,
        '        self._engine.masks.apply()\n        self._engine.warn_of_shortfalls("compact()")',
        '        self._engine.warn_of_shortfalls("compact()")',
    ),
    Mutant(W, "torch.autocast(post.device.type, enabled=False)", "torch.autocast(post.device.type, enabled=True)"),
    Mutant(X, "growths.append(grow(use, alive, links[1:]))", "growths.append(grow(use, alive, links))"),
    Mutant(X, "return torch.stack(uses).mean(0), torch.stack(growths).mean(0)", "return uses[0], growths[0]"),
    Mutant(X, "stats = replace(stats, outgoing=total[rows])", "pass"),
    Mutant(K, "if self.capped and taken[owner]", "if False and taken[owner]"),
    Mutant(K, "self.use[now], self.survival[now]))", "self.survival[now], self.use[now]))"),
    Mutant("method/regrowth.py", "weak = living & ~safe & ~strongest", "weak = living & ~safe"),
    Mutant("method/regrowth.py", "weak = living & ~safe & ~strongest", "weak = living & ~strongest"),
    Mutant("method/regrowth.py", "dead = ends & ~living", "dead = ~living"),
    Mutant("development/regrow.py", "days.masked_fill_(~masks[name], UNBORN)", "pass"),
    Mutant("development/regrow.py", "number = math.floor(share * int(mask.sum()) + ROUNDING)", "number = 1"),
    Mutant(K, "survival / survival.shape[-1] ** crowding if crowding else survival", "survival"),
    Mutant(K, 'edge.macs if self.metric == "effective_macs" else edge.kernel', "edge.kernel"),
    Mutant(K, 'LEAST_SHARE * shares[metric] * reference["synaptic"]', "-1.0"),
    Mutant(K, "            if left <= most:\n                break", "            if left < 0:\n                break"),
    Mutant(
        K,
        "        if not structural:\n            taker.fallen_units",
        "        if True:\n            taker.fallen_units",
    ),
    Mutant(A, "            del self.isolated[before:]", "            pass"),
    Mutant(A, "int(self.alive[group].sum()) <= self.floors[group]", "False"),
    Mutant(A, "self._set(edge.row, rows, edge.row[rows] - gone.sum(1))", "self._set(edge.row, rows, edge.row[rows])"),
    Mutant(A, "if between and self.inputs[edge.out_group][unit] == 1:", "if False:"),
    Mutant(A, "gone &= ~edge.returns(rows[:, None], columns)", "pass"),
    Mutant(H, "return (macs_now - macs_then) * passes_left >", "return macs_now * passes_left >"),
    Mutant(M, "value.masked_fill_(mask.to(value.device), 0)", "pass"),
    Mutant(M, "        self.steps += 1\n        self.apply()", "        self.steps += 1"),
    Mutant(M, "if keep is not None and parameter.grad is not None:", "if False:"),
    Mutant(M, "masks[name] = masks[name] | dead if name in masks else", "masks[name] ="),
)


def survives(mutant: Mutant, tests: Sequence[str]) -> bool:
    """Whether all tests pass on the mutant.

    Raises:
        ValueError: The line to break is not there exactly once.
        RuntimeError: The tests did not run to a verdict.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("src", "tests", "pyproject.toml"):
            source = ROOT / part
            shutil.copytree(source, copy / part) if source.is_dir() else shutil.copy(source, copy / part)
        path = copy / "src" / "dpap" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.file}: {mutant.old!r} is there {text.count(mutant.old)} times")
        path.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-xq", "--tb=no", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
        code = subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode
        if code not in (0, 1):  # 1: some test failed; all else says nothing about the tests
            raise RuntimeError(f"pytest ended with {code}")
        return code == 0


def main(
    pattern: str = "", record: str = os.devnull, *, mutants: Sequence[Mutant] = MUTANTS, tests: Sequence[str] = TESTS
) -> int:
    """Print the verdict on each mutant; 1 if one survived, in this run or in a run before that left the record."""
    path = Path(record)
    verdicts = path.read_text().splitlines() if path.exists() else []
    for mutant in mutants:
        text = f"{mutant.file} | {mutant.old!r} -> {mutant.new!r}"
        if pattern in f"{mutant.file} {mutant.old}" and not any(verdict.endswith(text) for verdict in verdicts):
            verdicts.append(f"{'SURVIVED' if survives(mutant, tests) else 'killed  '} {text}")
            print(verdicts[-1], flush=True)
            with path.open("a") as file:
                file.write(verdicts[-1] + "\n")
    alive = sum(verdict.startswith("SURVIVED") for verdict in verdicts)
    print(f"{len(verdicts) - alive} of {len(verdicts)} mutants killed")
    return int(alive > 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:3]))
