"""The modules that a LoRA changes: their paths in peft, and the tensors of the base they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_names import (
    EMBEDDING_A,
    IA3_VECTOR,
    LORA_A,
    PEFT_PREFIX,
    strip_wrappers,
)
from hubmerge.weights.dtypes import Array
from hubmerge.weights.lora import Convolution, Dora, Ia3, LowRank

IN_PROJ, OUT_PROJ = ".in_proj_weight", ".out_proj.weight"

ModuleKind = Literal["linear", "embedding", "convolution"]


@dataclass(frozen=True)
class LoraModule:
    """A module that peft can adapt, and the tensor of the base that is its weight.

    In nn.MultiheadAttention the path of in_proj_weight is the attention's own. `shape` is the
    tensor's; with `inputs_first` it is stored as [I, O], as in Conv1D and in every embedding. A
    convolution is a matrix [O, I x kernel].
    """

    path: str
    tensor: str
    shape: tuple[int, ...]
    kind: ModuleKind = "linear"
    inputs_first: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """The numbers of outputs and inputs, O and I."""
        first, *others = self.shape
        rest = 1
        for length in others:
            rest *= length
        return (rest, first) if self.inputs_first else (first, rest)

    def as_matrix(self, change: Array) -> Array:
        """A change of the tensor as a matrix [O, I]."""
        matrix = change.reshape(len(change), -1)
        return matrix.T if self.inputs_first else matrix


def module_path(name: str) -> str:
    """The module of a tensor; for in_proj_weight the attention itself."""
    return name.removesuffix(IN_PROJ) if name.endswith(IN_PROJ) else name.removesuffix(".weight")


def adapted_modules(adapter: Adapter) -> Iterator[LoraModule]:
    """The modules that an adapter changes by LoRA, DoRA or IA3, by the names it has for them.

    Its other changes have no module of their own: biases, rows of an embedding, stacked matrices
    of experts, tensors saved in full.
    """
    for name, change in adapter.changes.items():
        shape = adapter.base.tensor(name).shape
        if isinstance(change, Dora):
            change = change.product
        match change:
            case LowRank(a=a, inputs_first=inputs_first):
                kind: ModuleKind = "embedding" if a.endswith(EMBEDDING_A) else "linear"
                yield LoraModule(_path(a), name, shape, kind, inputs_first)
            case Convolution(a=a):
                yield LoraModule(_path(a), name, shape, "convolution")
            case Ia3(vector=vector, axis=axis) if len(shape) == 2:
                scales_inputs = adapter.checkpoint.tensor(vector).shape[0] == 1
                inputs_first = bool(axis) != scales_inputs
                yield LoraModule(_path(vector), name, shape, inputs_first=inputs_first)


def common_modules(adapters: Sequence[Adapter]) -> tuple[LoraModule, ...] | None:
    """The modules that any of these adapters changes, in the order of the base's tensors.

    None if they name the modules differently, as adapters of an inner and of an outer class do.
    """
    modules: dict[str, LoraModule] = {}
    prefixes = set()
    for adapter in adapters:
        for module in adapted_modules(adapter):
            if modules.setdefault(module.tensor, module).path != module.path:
                return None
            prefixes.add(_prefix_change(module))
    if len(prefixes - {None}) > 1:
        return None
    order = {name: number for number, name in enumerate(adapters[0].base.index)}
    return tuple(sorted(modules.values(), key=lambda module: order[module.tensor]))


def _path(tensor: str) -> str:
    """The path of a module from the name of one of its parts."""
    path = tensor.removeprefix(PEFT_PREFIX)
    for part in (LORA_A, EMBEDDING_A, IA3_VECTOR):
        path = path.removesuffix(f".{part}")
    return strip_wrappers(path)


def _prefix_change(module: LoraModule) -> tuple[str, str] | None:
    """What a path drops from and adds to the base's name; None if the name differs otherwise."""
    name = module_path(module.tensor)
    if name.endswith(f".{module.path}"):
        return name.removesuffix(module.path), ""
    if f".{module.path}".endswith(f".{name}"):
        return "", module.path.removesuffix(name)
    return None


def ends_other_path(paths: Collection[str], others: Collection[str]) -> bool:
    """Whether one of `paths` is the end of a path in `others` that is not among them.

    peft takes a name in target_modules as the end of a path.
    """
    return any(_ends(path) & set(paths) for path in {*others} - {*paths})


def _ends(path: str) -> set[str]:
    """The path without its first parts."""
    parts = path.split(".")
    return {".".join(parts[start:]) for start in range(1, len(parts))}
