"""Slow, plain NumPy accounts of the three rules, in float64: what the fast library is tested against.

Nothing here imports torch or dpap. Loops are preferred to cleverness: each line should be checkable by reading it
beside the equation it computes.

- `chain`: the layers of a chain network, who lives in it, who is isolated, its connectivity;
- `records`: records of activity (given spikes; no weights are involved);
- `released`: the arithmetic of the authors' script, oddities included;
- `paper`: the printed equations;
- `dpap`: the rule of this library;
- `hand_worked`: three small cases of rule `dpap`, worked on paper.
"""
