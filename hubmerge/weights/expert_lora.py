"""LoRA of bare parameters, such as the stacked matrices of experts (peft's target_parameters).

peft adapts a parameter [E, O, I], or [E, I, O], with A [R E, I] and B [O, R E], where expert e has
the rows e R to e R + R of A, and every E-th column of B from e on. A parameter that is one matrix
is a stack of one. Source: peft's lora.ParamWrapper.

Shapes: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hubmerge.weights.adapter_config import AdapterConfig
from hubmerge.weights.adapter_names import LORA_A, LORA_B, AdaptedModule, strip_wrappers
from hubmerge.weights.dtypes import Array
from hubmerge.weights.expert_stacks import ExpertStack, StackPiece
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.lora import Change, ReadTensor


@dataclass(frozen=True)
class ExpertsLowRank:
    """The change of one piece of a stack: scale * B_e A_e, or some of its rows."""

    a: str
    b: str
    scale: float
    experts: int
    piece: StackPiece
    inputs_first: bool = False

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        a, b = read(self.a), read(self.b)
        by_expert = a.reshape(self.experts, -1, a.shape[-1])  # [E, R, I]
        outputs = b.reshape(len(b), -1, self.experts)  # [O, R, E]
        if self.piece.expert is None:
            axes = "ore,eri->eio" if self.inputs_first else "ore,eri->eoi"
            product = np.einsum(axes, outputs, by_expert, optimize=True)
        else:
            rows = len(weight)
            first = self.piece.part * rows
            part = outputs[first : first + rows, :, self.piece.expert]
            product = part @ by_expert[self.piece.expert]
        product = np.ascontiguousarray(product).reshape(weight.shape)
        product *= self.scale
        return product


def is_parameter_module(module: AdaptedModule, config: AdapterConfig) -> bool:
    """Whether the parts of a module adapt a bare parameter and not a layer's weight."""
    return bool(_parameters_of(module, config))


def stack_changes(
    modules: Iterable[AdaptedModule],
    config: AdapterConfig,
    adapter: Mapping[str, TensorInfo],
    stacks: Mapping[str, ExpertStack],
) -> tuple[dict[str, Change], list[str]]:
    """The changes by tensors of the file, and the parameters whose change is not certain.

    Wrappers of several parameters of one module are nested, and their names do not show which is
    which: their shapes must.
    """
    changes: dict[str, Change] = {}
    unclear = []
    by_path: dict[str, list[AdaptedModule]] = defaultdict(list)
    for module in modules:
        by_path[strip_wrappers(module.path)].append(module)
    for wrappers in by_path.values():
        names = _parameters_of(wrappers[0], config)
        fits = []
        for order in itertools.permutations(names, len(wrappers)):
            pairs = zip(wrappers, order, strict=True)
            chosen = [(w, n, _fit(w, stacks.get(n), config, adapter)) for w, n in pairs]
            if all(orientations for _, _, orientations in chosen):
                fits.append(chosen)
        if len(fits) != 1 or any(len(orientations) > 1 for _, _, orientations in fits[0]):
            unclear += names
            continue
        for wrapper, name, orientations in fits[0]:
            changes |= dict(_changes_of(wrapper, stacks[name], config, orientations[0]))
    return changes, unclear


def _changes_of(
    wrapper: AdaptedModule, stack: ExpertStack, config: AdapterConfig, inputs_first: bool
) -> Iterator[tuple[str, Change]]:
    scale = config.scale_of(wrapper.pattern_key)
    for piece in stack.pieces:
        yield (
            piece.tensor,
            ExpertsLowRank(*wrapper.factors, scale, stack.shape[0], piece, inputs_first),
        )


def _fit(
    wrapper: AdaptedModule,
    stack: ExpertStack | None,
    config: AdapterConfig,
    adapter: Mapping[str, TensorInfo],
) -> list[bool]:
    """The orientations in which the factors of a wrapper fit a stack; none if they do not."""
    if stack is None or wrapper.parts.keys() != {LORA_A, LORA_B}:
        return []
    a, b = (adapter[name].shape for name in wrapper.factors)
    rank = config.rank_of(wrapper.pattern_key) * stack.shape[0]
    if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
        return []
    return stack.orientations(b[0], a[1])


def _parameters_of(module: AdaptedModule, config: AdapterConfig) -> list[str]:
    """The parameters that target_parameters names in a module, by their full names."""
    path = strip_wrappers(module.path)
    names = []
    for target in config.target_parameters:
        parent, _, name = target.rpartition(".")
        if not parent or path == parent or path.endswith(f".{parent}"):
            names.append(f"{path}.{name}")
    return names
