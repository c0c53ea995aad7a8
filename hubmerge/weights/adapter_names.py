"""The names of an adapter's tensors, and the names that its base has for what they change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hubmerge.weights.conversions import Conversion, convert

PEFT_PREFIX = "base_model.model."
LORA_A, LORA_B, LORA_BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE, IA3_VECTOR = "lora_magnitude_vector", "ia3_l"
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
_PARTS = {
    part: part
    for part in (
        LORA_A, LORA_B, LORA_BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, IA3_VECTOR, TOKEN_ROWS
    )
} | {f"{MAGNITUDE}.weight": MAGNITUDE}  # fmt: skip


@dataclass(frozen=True)
class AdaptedModule:
    """One adapted module: its `path` in peft, and `parts` from the role of a tensor to its name.

    `target` is the tensor of the base that it changes, by its name in the adapter.
    """

    path: str
    parts: Mapping[str, str]
    is_fused_attention: bool = False

    @property
    def is_attention_out_proj(self) -> bool:
        """Whether it is the out_proj of an adapted nn.MultiheadAttention."""
        return self.path.endswith(".base_layer.out_proj")

    @property
    def pattern_key(self) -> str:
        """The name that rank and alpha patterns match; for an out_proj that of its attention."""
        return self.path.partition(".base_layer")[0]

    @property
    def is_embedding(self) -> bool:
        """Whether it is an embedding, whose factors have different names."""
        return bool(self.parts.keys() & {EMBEDDING_A, EMBEDDING_B})

    @property
    def factors(self) -> tuple[str, str]:
        """The names of the tensors A [R, I] and B [O, R]."""
        a, b = (EMBEDDING_A, EMBEDDING_B) if self.is_embedding else (LORA_A, LORA_B)
        return self.parts[a], self.parts[b]

    @property
    def target(self) -> str:
        kind = "in_proj_weight" if self.is_fused_attention else "weight"
        return f"{strip_wrappers(self.path)}.{kind}"

    @property
    def bias(self) -> str:
        return f"{strip_wrappers(self.path)}.bias"

    def base_tensors(self) -> set[str]:
        """The tensors that the base must have."""
        return {self.target, *([self.bias] if LORA_BIAS in self.parts else [])}


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter's tensors: of adapted modules, saved in full, or not named by peft.

    `replacements` maps a tensor of the base, by its name in the adapter, to the tensor that
    replaces it.
    """

    modules: tuple[AdaptedModule, ...]
    replacements: Mapping[str, str]
    unrecognized: tuple[str, ...]

    def base_tensors(self) -> set[str]:
        """The tensors that the base must have, by their names in the adapter."""
        return set(self.replacements).union(*(module.base_tensors() for module in self.modules))


@dataclass(frozen=True)
class Rename:
    """Turns names in the adapter into names in the base by dropping or adding a prefix.

    With `file_names` the adapter names tensors as transformers 5 does in memory, after
    `conversions`, and `file_names` maps such a name to the one in the base's files.
    """

    drop: str = ""
    add: str = ""
    file_names: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    conversions: Sequence[Conversion] = field(default=(), repr=False, hash=False)

    def __call__(self, name: str) -> str:
        new = f"{self.add}{self.respell(name).removeprefix(self.drop)}"
        return self.file_names.get(new, new)

    def respell(self, name: str) -> str:
        """The name before its prefix is changed."""
        return convert(name, self.conversions)

    def __str__(self) -> str:
        return self.drop or self.add


def classify_tensors(tensors: Iterable[str]) -> AdapterTensors:
    """Sort the tensors of an adapter by what their names say they are."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    replacements: dict[str, str] = {}
    unrecognized = []
    # Shortest first: of a module saved in full, peft also stores copies under longer names.
    for tensor in sorted(tensors, key=len):
        name = tensor.removeprefix(PEFT_PREFIX)
        if name == tensor:
            unrecognized.append(tensor)
        elif split := _split_part(name):
            path, part = split
            parts[path][part] = tensor
        elif ".original_module." not in name:  # the module before training
            replacements.setdefault(strip_wrappers(name), tensor)
    modules = (
        AdaptedModule(path, module_parts, is_fused_attention=f"{path}.base_layer.out_proj" in parts)
        for path, module_parts in parts.items()
    )
    return AdapterTensors(tuple(modules), replacements, tuple(unrecognized))


def strip_wrappers(path: str) -> str:
    """The name without the `base_layer` and `modules_to_save` that peft inserts."""
    return ".".join(p for p in path.split(".") if p not in ("base_layer", "modules_to_save"))


def find_renames(
    adapter_names: set[str], base: Iterable[str], conversions: Sequence[Conversion] = ()
) -> list[Rename]:
    """The renames that turn most of the adapter's names into names of the base.

    Several are returned if each fits all names, and one if none does. A base saved from an inner
    class (BertModel of BertForMaskedLM) lacks the first part of every name; one saved from an outer
    class has one part more. `conversions` give the names of the base's tensors in memory.
    """
    base_names = set(base)
    if adapter_names <= base_names:
        return [Rename()]
    found = _count_prefixes(adapter_names, base_names, Rename())
    if conversions and max(found.values()) < len(adapter_names):
        file_names = {convert(name, conversions): name for name in base_names}
        if len(file_names) == len(base_names):
            respelled = {convert(name, conversions) for name in adapter_names}
            in_memory = Rename(file_names=file_names, conversions=conversions)
            found |= _count_prefixes(respelled, set(file_names), in_memory)
    best = max(found.values())
    renames = sorted((rename for rename, count in found.items() if count == best), key=str)
    return renames if best == len(adapter_names) else renames[:1]


def _count_prefixes(names: set[str], base: set[str], rename: Rename) -> Counter[Rename]:
    """How many names are in the base, by the prefix that is dropped or added."""
    counts: Counter[Rename] = Counter()
    counts[rename] = len(names & base)
    if counts[rename] == len(names):
        return counts
    counts.update(replace(rename, add=first) for first, rest in _split_first(base) if rest in names)
    counts.update(
        replace(rename, drop=first) for first, rest in _split_first(names) if rest in base
    )
    return counts


def _split_first(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        first, dot, rest = name.partition(".")
        yield first + dot, rest


def _split_part(name: str) -> tuple[str, str] | None:
    for suffix, part in _PARTS.items():
        if name.endswith(f".{suffix}"):
            return name.removesuffix(f".{suffix}"), part
    return None


def find_missing(names: Iterable[str], rename: Rename, base: Container[str]) -> list[str]:
    """The tensors that the base does not have, by their names in the adapter."""
    return [
        name
        for name in names
        if not (rename.respell(name).startswith(rename.drop) and rename(name) in base)
    ]
