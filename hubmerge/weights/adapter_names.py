"""The names of an adapter's tensors, and the names that its base has for what they change."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

PEFT = "base_model.model."
A, B, BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE, VECTOR = "lora_magnitude_vector", "ia3_l"
_PARTS = {part: part for part in (A, B, BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, VECTOR)} | {
    f"{MAGNITUDE}.weight": MAGNITUDE
}
_VIT_PARTS = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_VIT = re.compile(rf"((?:\w+\.)?)layers\.(\d+)\.({'|'.join(map(re.escape, _VIT_PARTS))})(\.\w+)")


@dataclass(frozen=True)
class Module:
    """One adapted module: `path` as peft knows it, `parts` from what a tensor is to its name.

    `target` is the base's tensor that it changes, under the adapter's own names.
    """

    path: str
    parts: Mapping[str, str]
    attention: bool = False

    @property
    def in_attention(self) -> bool:
        """Whether it is the out_proj of an adapted nn.MultiheadAttention."""
        return self.path.endswith(".base_layer.out_proj")

    @property
    def key(self) -> str:
        """What patterns of ranks and alphas are held against: an out_proj goes by its attention."""
        return self.path.partition(".base_layer")[0]

    @property
    def embeds(self) -> bool:
        """Whether it is an embedding, whose factors have names of their own."""
        return bool(self.parts.keys() & {EMBEDDING_A, EMBEDDING_B})

    @property
    def factors(self) -> tuple[str, str]:
        """The tensors A [R, I] and B [O, R]."""
        a, b = (EMBEDDING_A, EMBEDDING_B) if self.embeds else (A, B)
        return self.parts[a], self.parts[b]

    @property
    def target(self) -> str:
        kind = "in_proj_weight" if self.attention else "weight"
        return f"{without_wrappers(self.path)}.{kind}"

    @property
    def bias(self) -> str:
        return f"{without_wrappers(self.path)}.bias"

    def wanted(self) -> set[str]:
        """The tensors that the base must have."""
        return {self.target, *([self.bias] if BIAS in self.parts else [])}


@dataclass(frozen=True)
class Names:
    """An adapter's tensors: those of modules, those saved whole, and those not named by peft.

    `saved` maps a tensor of the base, under the adapter's own names, to what takes its place.
    """

    modules: tuple[Module, ...]
    saved: Mapping[str, str]
    strange: tuple[str, ...]

    def wanted(self) -> set[str]:
        """The tensors that the base must have, under the adapter's own names."""
        return set(self.saved).union(*(module.wanted() for module in self.modules))


@dataclass(frozen=True)
class Rename:
    """From the adapter's names to the base's: a prefix dropped or added.

    `vit`: the adapter names the layers of a ViT as transformers does since version 5 in memory, and
    the base as it does in files.
    """

    drop: str = ""
    add: str = ""
    vit: bool = False

    def __call__(self, name: str) -> str:
        return f"{self.add}{self.spelled(name).removeprefix(self.drop)}"

    def spelled(self, name: str) -> str:
        """The name before its prefix changes."""
        return vit_in_files(name) if self.vit else name

    def __str__(self) -> str:
        return self.drop or self.add


def vit_in_files(name: str) -> str:
    """What files call a layer of a ViT: `layers.0.mlp.fc1` is `encoder.layer.0.intermediate.dense`.

    As transformers.conversion_mapping has it, which cannot be asked without torch.
    """
    found = _VIT.fullmatch(name)
    if not found:
        return name
    before, number, inside, rest = found.groups()
    return f"{before}encoder.layer.{number}.{_VIT_PARTS[inside]}{rest}"


def sort_names(tensors: Iterable[str]) -> Names:
    """Tell what each tensor of an adapter is by its name."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    saved: dict[str, str] = {}
    strange = []
    # The shortest first: of a module that is saved whole, peft keeps copies under longer names.
    for tensor in sorted(tensors, key=len):
        name = tensor.removeprefix(PEFT)
        if name == tensor:
            strange.append(tensor)
        elif found := _part(name):
            path, part = found
            parts[path][part] = tensor
        elif ".original_module." not in name:  # what the module was before, for switching back
            saved.setdefault(without_wrappers(name), tensor)
    modules = (
        Module(path, held, attention=f"{path}.base_layer.out_proj" in parts)
        for path, held in parts.items()
    )
    return Names(tuple(modules), saved, tuple(strange))


def without_wrappers(path: str) -> str:
    """A name in the base: peft puts what it wraps into `base_layer` or `modules_to_save`."""
    return ".".join(p for p in path.split(".") if p not in ("base_layer", "modules_to_save"))


def find_renames(wanted: set[str], base: Iterable[str]) -> list[Rename]:
    """How the adapter's names become the base's: the one way, several equal ones, or the nearest.

    A base saved from within its class lacks the first part of every name (BertModel beside
    BertForMaskedLM), one saved from a class around it has one more.
    """
    names = set(base)
    if wanted <= names:
        return [Rename()]
    counts: Counter[Rename] = Counter()
    for vit in (False, True):
        spelled = {Rename(vit=vit).spelled(name) for name in wanted}
        counts[Rename(vit=vit)] = len(spelled & names)
        counts.update(
            Rename(add=head, vit=vit) for head, rest in map(_split, names) if rest in spelled
        )
        counts.update(
            Rename(drop=head, vit=vit) for head, rest in map(_split, spelled) if rest in names
        )
    best = max(counts.values())
    ways = sorted((way for way, count in counts.items() if count == best), key=_plainest)
    return [way for way in ways if way.vit == ways[0].vit] if best == len(wanted) else ways[:1]


def _plainest(way: Rename) -> tuple[bool, str]:
    return way.vit, str(way)


def _part(name: str) -> tuple[str, str] | None:
    for suffix, part in _PARTS.items():
        if name.endswith(f".{suffix}"):
            return name.removesuffix(f".{suffix}"), part
    return None


def missing(wanted: Iterable[str], rename: Rename, base: Container[str]) -> list[str]:
    """What the base does not have, as the adapter names it."""
    return [
        name
        for name in wanted
        if not (rename.spelled(name).startswith(rename.drop) and rename(name) in base)
    ]


def _split(name: str) -> tuple[str, str]:
    head, dot, rest = name.partition(".")
    return head + dot, rest
