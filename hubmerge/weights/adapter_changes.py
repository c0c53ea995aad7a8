"""Match one adapted module with the base's tensors by shape: its changes, or why it has none.

The result agrees with what peft 0.21.2's merge_and_unload makes of the same files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from hubmerge.weights.adapter_config import AdapterConfig
from hubmerge.weights.adapter_config_fields import MERGE_WITH_PEFT_HINT
from hubmerge.weights.adapter_names import (
    EMBEDDING_A,
    EMBEDDING_B,
    IA3_VECTOR,
    LORA_A,
    LORA_B,
    LORA_BIAS,
    MAGNITUDE,
    TOKEN_ROWS,
    AdaptedModule,
    Rename,
)
from hubmerge.weights.dtypes import is_float
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.lora import BiasChange, Change, Convolution, Dora, Ia3, LowRank, TokenRows

# peft adds the change of an nn.MultiheadAttention's out_proj twice, in training and in merging, so
# we do it too. A later version may fix this: https://github.com/huggingface/peft/pull/3774
_LAST_PEFT_COUNTING_TWICE = (0, 21, 2)
MATCHING_BASE_HINT = (
    "Give the base that it was trained on, under the tensor names it had then, with --base."
)
FETCH_AGAIN_HINT = "Fetch or save the adapter again."

# The end of a sentence, with {} for the tensors that it is true of, and a hint.
MisfitKind = tuple[str, str]
INCOMPLETE: MisfitKind = "lacks a part of its change to {}", FETCH_AGAIN_HINT
UNEXPECTED_PARTS: MisfitKind = (
    "has parts for {} that its configuration does not mention",
    FETCH_AGAIN_HINT,
)
WRONG_RANK: MisfitKind = "has a rank in {} that differs from its configuration", FETCH_AGAIN_HINT
NOT_A_MATRIX: MisfitKind = (
    "changes {}, which is neither a matrix nor a convolution with a plain LoRA",
    MERGE_WITH_PEFT_HINT,
)
GROUPED: MisfitKind = (
    "changes the grouped convolution {}, which no change of its weights can do",
    "Train it again without this layer in its target_modules.",
)
NOT_FLOAT: MisfitKind = "changes {}, where a tensor is not floating-point", MERGE_WITH_PEFT_HINT
AMBIGUOUS_ORIENTATION: MisfitKind = (
    "does not show whether inputs or outputs come first in {}",
    MERGE_WITH_PEFT_HINT,
)
CHANGED_TWICE: MisfitKind = "changes {} twice", MERGE_WITH_PEFT_HINT
NEWER_PEFT: MisfitKind = (
    "changes {} with a peft newer than 0.21.2, which may count the out_proj of attention once",
    MERGE_WITH_PEFT_HINT,
)
WRONG_SHAPE: MisfitKind = "does not fit the base in {}", MATCHING_BASE_HINT


class MisfitError(Exception):
    """Why one module cannot be merged; `kind` groups the modules with the same problem."""

    def __init__(self, kind: MisfitKind) -> None:
        super().__init__(kind[0])
        self.kind = kind


@dataclass(frozen=True)
class MatchContext:
    """What is known about base and adapter when one module is matched.

    An orientation is True where inputs come first (as in Conv1D). `orientations` holds those of the
    adapter's matrices that follow from their shapes; `orientations_by_bias` those of the base's
    matrices that follow from a bias, by the last part of their modules' names.
    """

    base: Mapping[str, TensorInfo]
    adapter: Mapping[str, TensorInfo]
    config: AdapterConfig
    rename: Rename
    orientations: frozenset[bool] = frozenset()
    orientations_by_bias: Mapping[str, frozenset[bool]] | None = None

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.adapter[tensor].shape


def build_context(
    base: Mapping[str, TensorInfo],
    adapter: Mapping[str, TensorInfo],
    config: AdapterConfig,
    rename: Rename,
    modules: Iterable[AdaptedModule],
) -> MatchContext:
    """Examine all modules once to find out which axis of their matrices holds the inputs."""
    context = MatchContext(base, adapter, config, rename)
    return replace(
        context,
        orientations=frozenset(_known_orientations(context, modules)),
        orientations_by_bias=_orientations_by_bias(base),
    )


def module_changes(context: MatchContext, module: AdaptedModule) -> dict[str, Change]:
    """The changes of a module to its weight, and to its bias if any, by the base's tensor names.

    The base must have every tensor in `module.base_tensors()`. Raises MisfitError.
    """
    target = context.base[context.rename(module.target)]
    tensors = [target, *(context.adapter[part] for part in module.parts.values())]
    if not all(is_float(tensor.dtype) for tensor in tensors):
        raise MisfitError(NOT_FLOAT)
    if len(target.shape) in (3, 4, 5):
        return _convolution_changes(context, module)
    if len(target.shape) != 2:
        raise MisfitError(NOT_A_MATRIX)
    if module.parts.keys() == {TOKEN_ROWS}:
        return {context.rename(module.target): _token_rows(context, module)}
    expected = _expected_parts(module, context.config)
    if module.parts.keys() - expected:
        raise MisfitError(UNEXPECTED_PARTS)
    if expected - module.parts.keys():
        raise MisfitError(INCOMPLETE)
    return (
        _ia3_changes(context, module)
        if IA3_VECTOR in module.parts
        else _lora_changes(context, module)
    )


def _convolution_changes(context: MatchContext, module: AdaptedModule) -> dict[str, Change]:
    """The change of a convolution, and of its bias, from A [R, I, ...] and B [O, R, 1, ...]."""
    if not {LORA_A, LORA_B} <= module.parts.keys() or context.config.dora:
        raise MisfitError(NOT_A_MATRIX)
    if module.parts.keys() - {LORA_A, LORA_B, LORA_BIAS}:
        raise MisfitError(UNEXPECTED_PARTS)
    target = context.rename(module.target)
    shape, (a, b) = context.base[target].shape, map(context.shape, module.factors)
    if len(a) != len(shape) or len(b) != len(shape):
        raise MisfitError(WRONG_SHAPE)
    if a[1] != shape[1] and a[2:] == shape[2:]:
        raise MisfitError(GROUPED)
    if not a[0] == b[1] == context.config.rank_of(module.pattern_key):
        raise MisfitError(WRONG_RANK)
    if (b[0], *a[1:]) != shape or set(b[2:]) != {1}:
        raise MisfitError(WRONG_SHAPE)
    scale = context.config.scale_of(module.pattern_key)
    changes: dict[str, Change] = {target: Convolution(*module.factors, scale)}
    if LORA_BIAS in module.parts:
        bias = context.rename(module.bias)
        _check_vector(context.adapter[module.parts[LORA_BIAS]], b[0])
        _check_vector(context.base[bias], b[0])
        changes[bias] = BiasChange(module.parts[LORA_BIAS], scale)
    return changes


def _token_rows(context: MatchContext, module: AdaptedModule) -> TokenRows:
    name = module.parts[TOKEN_ROWS]
    numbers = context.config.token_rows_of(module.path)
    rows, width = context.base[context.rename(module.target)].shape
    if context.shape(name) != (len(numbers), width) or max(numbers, default=0) >= rows:
        raise MisfitError(WRONG_SHAPE)
    return TokenRows(name, numbers)


def _expected_parts(module: AdaptedModule, config: AdapterConfig) -> set[str]:
    if config.method == "IA3":
        return {IA3_VECTOR}
    if module.is_embedding:
        factors = {EMBEDDING_A, EMBEDDING_B}
    else:
        factors = {LORA_A, LORA_B, *([LORA_BIAS] if config.lora_bias else [])}
    return factors | ({MAGNITUDE} if config.dora else set())


def _lora_changes(context: MatchContext, module: AdaptedModule) -> dict[str, Change]:
    target, parts = context.rename(module.target), module.parts
    outputs, _ = _sizes(context, module)
    scale = context.config.scale_of(module.pattern_key)
    product = LowRank(
        *module.factors,
        scale=scale * _multiplicity(context, module),
        inputs_first=_choose_orientation(context, target, _possible_orientations(context, module)),
    )
    changes: dict[str, Change] = {target: product}
    if MAGNITUDE in parts:
        _check_vector(context.adapter[parts[MAGNITUDE]], outputs)
        changes[target] = Dora(product, parts[MAGNITUDE])
    if LORA_BIAS in parts:
        bias = context.rename(module.bias)
        _check_vector(context.adapter[parts[LORA_BIAS]], outputs)
        _check_vector(context.base[bias], outputs)
        changes[bias] = BiasChange(parts[LORA_BIAS], scale)
    return changes


def _ia3_changes(context: MatchContext, module: AdaptedModule) -> dict[str, Change]:
    vector, target, bias = (
        module.parts[IA3_VECTOR],
        *map(context.rename, (module.target, module.bias)),
    )
    scales_inputs = _scales_inputs(context, module)
    inputs_first = _choose_orientation(context, target, _possible_orientations(context, module))
    changes: dict[str, Change] = {target: Ia3(vector, axis=int(inputs_first != scales_inputs))}
    if not scales_inputs and bias in context.base:
        _check_vector(context.base[bias], max(context.shape(vector)))
        changes[bias] = Ia3(vector, axis=0)
    return changes


def _scales_inputs(context: MatchContext, module: AdaptedModule) -> bool:
    """Whether IA3 scales the inputs: a row [1, I] does; a column [O, 1] scales outputs and bias."""
    shape = context.shape(module.parts[IA3_VECTOR])
    if len(shape) != 2 or 1 not in shape:
        raise MisfitError(NOT_A_MATRIX)
    return context.config.is_feedforward(module.pattern_key) if shape == (1, 1) else shape[0] == 1


def _sizes(context: MatchContext, module: AdaptedModule) -> tuple[int, int]:
    """The numbers of outputs and inputs of a module, from its factors B [O, R] and A [R, I]."""
    a, b = map(context.shape, module.factors)
    if (len(a), len(b)) != (2, 2):
        raise MisfitError(NOT_A_MATRIX)
    if not a[0] == b[1] == context.config.rank_of(module.pattern_key):
        raise MisfitError(WRONG_RANK)
    return b[0], a[1]


def _check_vector(tensor: TensorInfo, length: int) -> None:
    if tensor.shape != (length,) or not is_float(tensor.dtype):
        raise MisfitError(WRONG_SHAPE)


def _multiplicity(context: MatchContext, module: AdaptedModule) -> int:
    """How many times peft adds the change."""
    if not module.is_attention_out_proj:
        return 1
    if context.config.version > _LAST_PEFT_COUNTING_TWICE:
        raise MisfitError(NEWER_PEFT)
    return 2


def _possible_orientations(context: MatchContext, module: AdaptedModule) -> set[bool]:
    """The orientations that the shapes allow; True means that inputs come first."""
    shape = context.base[context.rename(module.target)].shape
    if IA3_VECTOR in module.parts:
        scales_inputs = _scales_inputs(context, module)
        size = max(context.shape(module.parts[IA3_VECTOR]))
        possible = {
            bool(axis) != scales_inputs for axis, length in enumerate(shape) if length == size
        }
    else:
        outputs, inputs = _sizes(context, module)
        sizes = {False: (outputs, inputs), True: (inputs, outputs)}
        possible = {orientation for orientation, size in sizes.items() if size == shape}
    if module.is_embedding:  # a table indexed by its inputs
        possible &= {True}
    if module.is_fused_attention:
        possible &= {False}
    if not possible:
        raise MisfitError(WRONG_SHAPE)
    return possible


def _choose_orientation(context: MatchContext, target: str, possible: set[bool]) -> bool:
    """Choose one of the orientations that the shapes allow; for square matrices both are possible.

    Modules of the same name (both c_proj of a GPT-2 layer) have the same orientation, and a bias
    shows which axis holds the outputs. Otherwise fan_in_fan_out decides. peft keeps one such flag
    for the whole adapter, from the last module that it wrapped, so it decides nothing where other
    modules of the adapter have the opposite orientation.
    """
    if len(possible) == 1:
        return next(iter(possible))
    same_name = (context.orientations_by_bias or {}).get(_last_module_part(target), frozenset())
    if len(same_name) == 1:
        return next(iter(same_name))
    if context.orientations - {context.config.fan_in_fan_out}:
        raise MisfitError(AMBIGUOUS_ORIENTATION)
    return context.config.fan_in_fan_out


def _known_orientations(context: MatchContext, modules: Iterable[AdaptedModule]) -> Iterator[bool]:
    for module in modules:
        if module.is_embedding or context.rename(module.target) not in context.base:
            continue
        try:
            possible = _possible_orientations(context, module)
        except (MisfitError, KeyError):
            continue  # reported by module_changes
        if len(possible) == 1:
            yield from possible


def _orientations_by_bias(base: Mapping[str, TensorInfo]) -> dict[str, frozenset[bool]]:
    orientations: dict[str, set[bool]] = defaultdict(set)
    for name, tensor in base.items():
        bias = base.get(f"{name.removesuffix('weight')}bias")
        if name.endswith(".weight") and bias and len(bias.shape) == 1 and len(tensor.shape) == 2:
            first, last = (side == bias.shape[0] for side in tensor.shape)
            if first != last:
                orientations[_last_module_part(name)].add(last)
    return {last: frozenset(seen) for last, seen in orientations.items()}


def _last_module_part(name: str) -> str:
    """The last part of the name of a tensor's module: c_proj for h.0.attn.c_proj.weight."""
    return name.rpartition(".")[0].rpartition(".")[2]
