"""One adapted module held against the base's tensors, by their shapes: its changes, or why not.

Held to what peft 0.21.2's merge_and_unload does with the same files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from hubmerge.weights.adapter_config import AdapterConfig
from hubmerge.weights.adapter_config_fields import BY_PEFT
from hubmerge.weights.adapter_names import (
    BIAS,
    EMBEDDING_A,
    EMBEDDING_B,
    MAGNITUDE,
    VECTOR,
    A,
    B,
    Module,
    Rename,
)
from hubmerge.weights.dtypes import is_float
from hubmerge.weights.header import Tensor
from hubmerge.weights.lora import Change, Dora, LowRank, Shift, Stretch

# peft adds the change of an nn.MultiheadAttention's out_proj twice, in training as in merging, and
# so must we. It may be mended after this version: https://github.com/huggingface/peft/pull/3774
_TWICE_UNTIL = (0, 21, 2)
FITTING = "Give the base that it was trained on, under the tensor names it had then, with --base."
ANEW = "Fetch or save the adapter anew."

Kind = tuple[str, str]  # a sentence with {} for the names of all that it is true of; the way out
HALF: Kind = "lacks a part of its change to {}", ANEW
METHOD: Kind = "has parts for {} that its configuration does not speak of", ANEW
RANK: Kind = "has another rank than its configuration says in {}", ANEW
KERNEL: Kind = "changes {}, which is no matrix (a convolution, perhaps)", BY_PEFT
NUMBERS: Kind = "changes {}, which is not all floating-point numbers", BY_PEFT
UNSURE: Kind = "does not tell whether inputs or outputs come first in {}", BY_PEFT
AGAIN: Kind = "changes {} in two ways", BY_PEFT
NEWER: Kind = (
    "changes {} with a peft newer than 0.21.2, which may count the out_proj of attention once",
    BY_PEFT,
)
SHAPE: Kind = "does not fit the base in {}", FITTING


class MisfitError(Exception):
    """Why one module cannot be merged, as a kind that others may share."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind[0])
        self.kind = kind


@dataclass(frozen=True)
class Facts:
    """What is known of base and adapter when one module is looked at.

    `turned` holds whether inputs come first (as in Conv1D) in those of the adapter's matrices whose
    shapes tell; `by_bias` the same of the base's, by the last part of their modules' names.
    """

    base: Mapping[str, Tensor]
    adapter: Mapping[str, Tensor]
    config: AdapterConfig
    rename: Rename
    turned: frozenset[bool] = frozenset()
    by_bias: Mapping[str, frozenset[bool]] | None = None

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.adapter[tensor].shape


def gather(
    base: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    config: AdapterConfig,
    rename: Rename,
    modules: Iterable[Module],
) -> Facts:
    """Look at everything once for what tells rows from columns."""
    facts = Facts(base, adapter, config, rename)
    return replace(facts, turned=frozenset(_turned(facts, modules)), by_bias=_by_bias(base))


def changes_of(facts: Facts, module: Module) -> dict[str, Change]:
    """What a module does to its weight, and to its bias if it does, by the base's names.

    The base has all that the module wants. Raises MisfitError.
    """
    target = facts.base[facts.rename(module.target)]
    tensors = [target, *(facts.adapter[part] for part in module.parts.values())]
    if not all(is_float(tensor.dtype) for tensor in tensors):
        raise MisfitError(NUMBERS)
    if len(target.shape) != 2:
        raise MisfitError(KERNEL)
    expected = _expected(module, facts.config)
    if module.parts.keys() - expected:
        raise MisfitError(METHOD)
    if expected - module.parts.keys():
        raise MisfitError(HALF)
    return _stretches(facts, module) if VECTOR in module.parts else _low_rank(facts, module)


def _expected(module: Module, config: AdapterConfig) -> set[str]:
    if config.method == "IA3":
        return {VECTOR}
    if module.embeds:
        factors = {EMBEDDING_A, EMBEDDING_B}
    else:
        factors = {A, B, *([BIAS] if config.lora_bias else [])}
    return factors | ({MAGNITUDE} if config.dora else set())


def _low_rank(facts: Facts, module: Module) -> dict[str, Change]:
    target, parts = facts.rename(module.target), module.parts
    outputs, _ = _sizes(facts, module)
    scale = facts.config.scale_of(module.key)
    product = LowRank(
        *module.factors,
        scale=scale * _times(facts, module),
        inputs_first=_settled(facts, target, _ways(facts, module)),
    )
    changes: dict[str, Change] = {target: product}
    if MAGNITUDE in parts:
        _check_vector(facts.adapter[parts[MAGNITUDE]], outputs)
        changes[target] = Dora(product, parts[MAGNITUDE])
    if BIAS in parts:
        bias = facts.rename(module.bias)
        _check_vector(facts.adapter[parts[BIAS]], outputs)
        _check_vector(facts.base[bias], outputs)
        changes[bias] = Shift(parts[BIAS], scale)
    return changes


def _stretches(facts: Facts, module: Module) -> dict[str, Change]:
    vector, target, bias = module.parts[VECTOR], *map(facts.rename, (module.target, module.bias))
    inputs = _stretches_inputs(facts, module)
    turned = _settled(facts, target, _ways(facts, module))
    changes: dict[str, Change] = {target: Stretch(vector, axis=int(turned != inputs))}
    if not inputs and bias in facts.base:
        _check_vector(facts.base[bias], max(facts.shape(vector)))
        changes[bias] = Stretch(vector, axis=0)
    return changes


def _stretches_inputs(facts: Facts, module: Module) -> bool:
    """A column [O, 1] stretches outputs and their bias, a row [1, I] inputs."""
    shape = facts.shape(module.parts[VECTOR])
    if len(shape) != 2 or 1 not in shape:
        raise MisfitError(KERNEL)
    return facts.config.is_feedforward(module.key) if shape == (1, 1) else shape[0] == 1


def _sizes(facts: Facts, module: Module) -> tuple[int, int]:
    """The outputs and inputs of a module, by its factors B [O, R] and A [R, I]."""
    a, b = map(facts.shape, module.factors)
    if (len(a), len(b)) != (2, 2):
        raise MisfitError(KERNEL)
    if not a[0] == b[1] == facts.config.rank_of(module.key):
        raise MisfitError(RANK)
    return b[0], a[1]


def _check_vector(tensor: Tensor, length: int) -> None:
    if tensor.shape != (length,) or not is_float(tensor.dtype):
        raise MisfitError(SHAPE)


def _times(facts: Facts, module: Module) -> int:
    """How often peft adds the change."""
    if not module.in_attention:
        return 1
    if facts.config.version > _TWICE_UNTIL:
        raise MisfitError(NEWER)
    return 2


def _ways(facts: Facts, module: Module) -> set[bool]:
    """Whether inputs come first in a matrix, as far as shapes tell."""
    shape = facts.base[facts.rename(module.target)].shape
    if VECTOR in module.parts:
        inputs, size = _stretches_inputs(facts, module), max(facts.shape(module.parts[VECTOR]))
        ways = {bool(axis) != inputs for axis, length in enumerate(shape) if length == size}
    else:
        outputs, inputs_ = _sizes(facts, module)
        sizes = {False: (outputs, inputs_), True: (inputs_, outputs)}
        ways = {turned for turned, size in sizes.items() if size == shape}
    if module.embeds:  # a table that is looked up by its inputs
        ways &= {True}
    if module.attention:
        ways &= {False}
    if not ways:
        raise MisfitError(SHAPE)
    return ways


def _settled(facts: Facts, target: str, ways: set[bool]) -> bool:
    """One way of those that shapes allow: a square matrix goes by its kin, then by the flag.

    peft keeps one flag for the whole adapter, that of the last module it wrapped, so beside modules
    of the other kind it says nothing. Kin of the same name (both c_proj of a GPT-2 layer) have
    biases, and those tell which side their outputs are on.
    """
    if len(ways) == 1:
        return next(iter(ways))
    kin = (facts.by_bias or {}).get(_last(target), frozenset())
    if len(kin) == 1:
        return next(iter(kin))
    if facts.turned - {facts.config.fan_in_fan_out}:
        raise MisfitError(UNSURE)
    return facts.config.fan_in_fan_out


def _turned(facts: Facts, modules: Iterable[Module]) -> Iterator[bool]:
    for module in modules:
        if module.embeds or facts.rename(module.target) not in facts.base:
            continue
        try:
            ways = _ways(facts, module)
        except (MisfitError, KeyError):
            continue  # told when its turn comes
        if len(ways) == 1:
            yield from ways


def _by_bias(base: Mapping[str, Tensor]) -> dict[str, frozenset[bool]]:
    found: dict[str, set[bool]] = defaultdict(set)
    for name, tensor in base.items():
        bias = base.get(f"{name.removesuffix('weight')}bias")
        if name.endswith(".weight") and bias and len(bias.shape) == 1 and len(tensor.shape) == 2:
            first, last = (side == bias.shape[0] for side in tensor.shape)
            if first != last:
                found[_last(name)].add(last)
    return {last: frozenset(ways) for last, ways in found.items()}


def _last(name: str) -> str:
    """The last part of a tensor's module: c_proj of h.0.attn.c_proj.weight."""
    return name.rpartition(".")[0].rpartition(".")[2]
