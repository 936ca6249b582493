"""Which attributes of a module follow when its tensors are cut.

A rule reads the new shapes from the tensors of the module and of those inside it. To teach the library a module of
your own:

    @module_rule(MyLayer)
    def _(module):
        module.width = module.weight.shape[0]

Modules that cannot be named (they come from a package that may not be there) are known by what they have:

    @structure_rule(lambda module: hasattr(module, "query"))
    def _(module):
        module.num_heads = module.query.weight.shape[0] // module.head_dim
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from dpap.errors import DPAPError
from dpap.neurons import PLIF

ModuleRule = Callable[[Any], None]
MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}
STRUCTURE_RULES: list[tuple[Callable[[nn.Module], bool], ModuleRule]] = []


def module_rule(*classes: type[nn.Module]) -> Callable[[ModuleRule], ModuleRule]:
    """Register the rule of one or more module classes (and of what derives from them); duplicates are refused."""

    def register(rule: ModuleRule) -> ModuleRule:
        for cls in classes:
            if cls in MODULE_RULES:
                raise ValueError(f"{cls.__name__} has a rule already")
            MODULE_RULES[cls] = rule
        return rule

    return register


def structure_rule(fits: Callable[[nn.Module], bool]) -> Callable[[ModuleRule], ModuleRule]:
    """Register the rule of all modules without a rule of their class that `fits` says yes to; the first one counts."""

    def register(rule: ModuleRule) -> ModuleRule:
        STRUCTURE_RULES.append((fits, rule))
        return rule

    return register


def find_rule(module: nn.Module) -> ModuleRule | None:
    """The rule of a module's class or of the nearest class it derives from, else of what it has; None without any."""
    for cls in type(module).__mro__:
        if cls in MODULE_RULES:
            return MODULE_RULES[cls]
    return next((rule for fits, rule in STRUCTURE_RULES if fits(module)), None)


def require_rule(module: nn.Module, name: str) -> ModuleRule:
    """The rule of a module whose own tensors are cut; one that keeps no record of their sizes needs none.

    Raises:
        DPAPError: There is none, and one is needed.
    """
    rule = find_rule(module)
    if rule is not None:
        return rule
    if not type(module).__module__.startswith("torch.nn.") and not _records_sizes(module):
        return lambda module: None
    raise DPAPError(
        f"{type(module).__name__} has no rule that says which attributes follow when its tensors are cut.",
        where=name,
        fix=f"write one with @dpap.graph.module_rules.module_rule({type(module).__name__}), or pass ignore={name!r}.",
    )


def _records_sizes(module: nn.Module) -> bool:
    """Whether an attribute is a number that is also a size of one of the module's own tensors."""
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    sizes = {size for tensor in tensors for size in tensor.shape if size > 1}
    return any(type(value) is int and value in sizes for value in vars(module).values())


def follow(module: nn.Module, name: str) -> None:
    """Make the attributes of a module agree with its tensors."""
    require_rule(module, name)(module)


def follow_all(model: nn.Module, names: Iterable[str]) -> None:
    """Make the attributes of these modules agree with their tensors, then those of the modules around them.

    Args:
        names: Of the modules of the model whose own tensors were cut.
    """
    names = set(names)
    for name in sorted(names):
        follow(model.get_submodule(name), name)
    around = {name.rsplit(".", level)[0] for name in names for level in range(1, name.count(".") + 1)} | {""}
    for name in sorted(around - names, key=len, reverse=True):  # from the inside out: what is around has a shorter name
        module = model.get_submodule(name)
        rule = find_rule(module)
        if rule is not None:
            rule(module)


@module_rule(nn.Linear)
def _linear(module: nn.Linear) -> None:
    module.out_features, module.in_features = module.weight.shape


@module_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(module: nn.Conv2d) -> None:
    rows = module.out_channels // module.groups
    module.out_channels = module.weight.shape[0]
    if module.groups > 1:  # whole groups are cut
        module.groups = module.out_channels // rows
    module.in_channels = module.weight.shape[1] * module.groups


@module_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose(module: nn.ConvTranspose2d) -> None:
    columns = module.in_channels // module.groups
    module.in_channels = module.weight.shape[0]
    if module.groups > 1:
        module.groups = module.in_channels // columns
    module.out_channels = module.weight.shape[1] * module.groups


@module_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _norm(module: nn.BatchNorm2d) -> None:
    for tensor in (module.weight, module.running_mean):
        if tensor is not None:
            module.num_features = tensor.shape[0]


@module_rule(nn.GroupNorm)
def _group_norm(module: nn.GroupNorm) -> None:
    channels = module.num_channels // module.num_groups
    module.num_channels = module.weight.shape[0]
    module.num_groups = module.num_channels // channels


@module_rule(nn.Embedding)
def _embedding(module: nn.Embedding) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


@module_rule(nn.PReLU)
def _prelu(module: nn.PReLU) -> None:
    module.num_parameters = module.weight.shape[0]


@module_rule(PLIF)
def _plif(module: PLIF) -> None:
    """Its time constants are its only record of the number of channels."""


HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads")
HEAD_DIM = ("head_dim", "dim_head", "attention_head_size")
ALL_HEADS = ("attn_dim", "inner_dim", "all_head_dim", "all_head_size")
QUERIES = {
    **dict.fromkeys(("qkv", "to_qkv", "qkv_conv_bn"), 3),
    "qk_conv_bn": 2,
    **dict.fromkeys(("q_proj", "to_q", "q", "query", "q_conv"), 1),
}
"""Name of the layer that makes the queries -> how many of queries, keys and values it makes."""


def _named(module: nn.Module, names: Iterable[str], kind: type[Any]) -> str | None:
    return next((name for name in names if isinstance(getattr(module, name, None), kind)), None)


def _query_rows(module: nn.Module) -> int | None:
    """Rows of queries; None: no layer makes them. The layer may stand first in a container, before its norm."""
    for name, stacked in QUERIES.items():
        layer = getattr(module, name, None)
        layer = next(layer.children(), None) if isinstance(layer, nn.Sequential) else layer
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            return layer.weight.shape[0] // stacked
    return None


def _is_attention(module: nn.Module) -> bool:
    named = _named(module, HEADS, int) and _named(module, HEAD_DIM, int)
    return bool(named) and _query_rows(module) is not None and not isinstance(module, nn.MultiheadAttention)


@structure_rule(_is_attention)
def _attention(module: Any) -> None:
    """Attention written with layers of its own, as in timm and SpikingJelly: the number of heads follows, their size
    stays; where the rows are no whole heads, each head lost the same places (attention without a product of heads)."""
    heads, size, rows = _named(module, HEADS, int), _named(module, HEAD_DIM, int), _query_rows(module)
    assert heads is not None
    assert size is not None
    assert rows is not None
    dense = getattr(module, heads) * getattr(module, size)
    whole = rows % getattr(module, size) == 0
    setattr(module, heads if whole else size, rows // getattr(module, size if whole else heads))
    for name in ALL_HEADS:
        if getattr(module, name, None) == dense:
            setattr(module, name, rows)
