"""Which axis of an adapted matrix holds its inputs, by shapes, biases and the configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from hubmerge.weights.adapter_config import AdapterConfig
from hubmerge.weights.adapter_misfits import (
    AMBIGUOUS_ORIENTATION,
    NOT_A_MATRIX,
    WRONG_RANK,
    WRONG_SHAPE,
    MisfitError,
)
from hubmerge.weights.adapter_names import IA3_VECTOR, AdaptedModule, Rename
from hubmerge.weights.header import TensorInfo


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


def _possible_orientations(context: MatchContext, module: AdaptedModule) -> set[bool]:
    """The orientations that the shapes allow; True means that inputs come first."""
    shape = context.base[context.rename(module.target)].shape
    if IA3_VECTOR in module.parts:
        scales_inputs = scales_ia3_inputs(context, module)
        size = max(context.shape(module.parts[IA3_VECTOR]))
        possible = {
            bool(axis) != scales_inputs for axis, length in enumerate(shape) if length == size
        }
    else:
        outputs, inputs = lora_sizes(context, module)
        sizes = {False: (outputs, inputs), True: (inputs, outputs)}
        possible = {orientation for orientation, size in sizes.items() if size == shape}
    if module.is_embedding:  # a table indexed by its inputs
        possible &= {True}
    if module.is_fused_attention:
        possible &= {False}
    if not possible:
        raise MisfitError(WRONG_SHAPE)
    return possible


def inputs_come_first(context: MatchContext, module: AdaptedModule) -> bool:
    """Whether the first axis of a module's matrix holds its inputs; square ones show neither.

    Modules of the same name (both c_proj of a GPT-2 layer) have the same orientation, and a bias
    shows which axis holds the outputs. Otherwise fan_in_fan_out decides. peft keeps one such flag
    for the whole adapter, from the last module that it wrapped, so it decides nothing where other
    modules of the adapter have the opposite orientation. Raises MisfitError.
    """
    target, possible = context.rename(module.target), _possible_orientations(context, module)
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


def scales_ia3_inputs(context: MatchContext, module: AdaptedModule) -> bool:
    """Whether IA3 scales the inputs: a row [1, I] does; a column [O, 1] scales outputs and bias."""
    shape = context.shape(module.parts[IA3_VECTOR])
    if len(shape) != 2 or 1 not in shape:
        raise MisfitError(NOT_A_MATRIX)
    return context.config.is_feedforward(module.pattern_key) if shape == (1, 1) else shape[0] == 1


def lora_sizes(context: MatchContext, module: AdaptedModule) -> tuple[int, int]:
    """The numbers of outputs and inputs of a module, from its factors B [O, R] and A [R, I]."""
    a, b = map(context.shape, module.factors)
    if (len(a), len(b)) != (2, 2):
        raise MisfitError(NOT_A_MATRIX)
    if not a[0] == b[1] == context.config.rank_of(module.pattern_key):
        raise MisfitError(WRONG_RANK)
    return b[0], a[1]
