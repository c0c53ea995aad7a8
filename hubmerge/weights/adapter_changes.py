"""Match one adapted module with the base's tensors by shape: its changes, or why it has none.

The result agrees with what peft 0.21.2's merge_and_unload makes of the same files.
"""

from __future__ import annotations

from hubmerge.weights.adapter_config import AdapterConfig
from hubmerge.weights.adapter_misfits import (
    GROUPED,
    INCOMPLETE,
    NEWER_PEFT,
    NOT_A_MATRIX,
    NOT_FLOAT,
    UNEXPECTED_PARTS,
    WRONG_RANK,
    WRONG_SHAPE,
    MisfitError,
)
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
)
from hubmerge.weights.adapter_orientation import (
    MatchContext,
    inputs_come_first,
    lora_sizes,
    scales_ia3_inputs,
)
from hubmerge.weights.dtypes import is_float
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.lora import BiasChange, Change, Convolution, Dora, Ia3, LowRank, TokenRows

# peft adds the change of an nn.MultiheadAttention's out_proj twice, in training and in merging, so
# we do it too. A later version may fix this: https://github.com/huggingface/peft/pull/3774
_LAST_PEFT_COUNTING_TWICE = (0, 21, 2)


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
    outputs, _ = lora_sizes(context, module)
    scale = context.config.scale_of(module.pattern_key)
    product = LowRank(
        *module.factors,
        scale=scale * _multiplicity(context, module),
        inputs_first=inputs_come_first(context, module),
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
    scales_inputs = scales_ia3_inputs(context, module)
    inputs_first = inputs_come_first(context, module)
    changes: dict[str, Change] = {target: Ia3(vector, axis=int(inputs_first != scales_inputs))}
    if not scales_inputs and bias in context.base:
        _check_vector(context.base[bias], max(context.shape(vector)))
        changes[bias] = Ia3(vector, axis=0)
    return changes


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
