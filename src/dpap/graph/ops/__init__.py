"""The rules of ATen operators, one file per subject. `dpap.graph.op_rules` says how to write one."""
