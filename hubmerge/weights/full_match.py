"""Match a full expert with its base by headers and configuration: which tensor is which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hubmerge.weights.adapter_config_fields import Problem
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.class_heads import is_class_head, own_head
from hubmerge.weights.conversions import memory_names
from hubmerge.weights.embedding_match import find_stack_problems
from hubmerge.weights.full_misfits import find_misfits
from hubmerge.weights.full_names import (
    PARTS,
    Prefix,
    find_prefixes,
    is_buffer,
    part_of,
    part_of_class,
    plain_names,
)
from hubmerge.weights.header import TensorInfo, safe_name, summarize_names
from hubmerge.weights.match_options import (
    DEFAULT_OPTIONS,
    FULL_EXPERT_HINT,
    HEADS_HINT,
    PART_HINT,
    TWICE_HINT,
    MatchOptions,
)
from hubmerge.weights.model_config import read_model_config
from hubmerge.weights.ties import find_copies, find_tie


@dataclass(frozen=True)
class FullMatch:
    """How the tensors of a full expert and its base belong together, and what does not.

    `names` maps a tensor of the base to the expert's. `kept` are tensors of the base that the
    expert does not have, and that stay as they are. `left_out` are tensors of the expert that are
    not merged: buffers, copies of other tensors, and the head of a task, which is also in `head`.
    The bytes of a copy must be those of its original: `copies` are copy -> original in the expert,
    and `base_copies` in the base.
    """

    names: Mapping[str, str] = field(repr=False)
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    base_copies: Mapping[str, str] = field(default_factory=dict)
    head: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def renamed(self) -> int:
        """How many tensors have another name in the expert."""
        return sum(base != own for base, own in self.names.items())

    def notes(self, label: str) -> Iterator[str]:
        """What is not obvious about the match, in sentences."""
        if self.renamed:
            base, own = next((b, o) for b, o in self.names.items() if b != o)
            yield (
                f"{label} names {self.renamed} tensors differently ({safe_name(own)} for "
                f"{safe_name(base)})."
            )
        if self.kept:
            yield f"{label} does not have {summarize_names(self.kept)}: the base's are kept."
        left_out = [name for name in self.left_out if name not in self.head]
        if left_out:
            yield f"{label} has {summarize_names(left_out)} that are left out."
        if self.head:
            yield f"{label} has a head of its own, {summarize_names(self.head)}: it is not merged."


def match_full(
    base: Checkpoint, expert: Checkpoint, label: str, options: MatchOptions = DEFAULT_OPTIONS
) -> FullMatch:
    """Match a full expert with a base, without reading a value; `label` begins its problems."""
    if problems := tuple(find_stack_problems(base.folder, expert.folder, label)):
        return FullMatch({}, problems=problems)
    if expert.index.keys() == base.index.keys() and options.heads not in ("keep", "drop"):
        return _match_by_name(base, expert, label, options)
    config, own_config = map(read_model_config, (base.folder, expert.folder))
    ours = _memory_names(base.index, config)
    theirs = _memory_names(expert.index, own_config if "architectures" in own_config else config)
    twice = [*_repeated(ours), *_repeated(theirs)]
    if twice:
        problem = f"{label} or the base has {summarize_names(twice)} under two names."
        return FullMatch({}, problems=((problem, TWICE_HINT),))
    base_index = {plain: base.index[name] for name, plain in ours.items()}
    own_index = {plain: expert.index[name] for name, plain in theirs.items()}
    part = part_of_class(" ".join(map(str, own_config.get("architectures") or ())))
    prefixes = find_prefixes(_weights(own_index), _weights(base_index), part)
    if len(prefixes) > 1:
        parts = " or ".join(repr(prefix.add or prefix.drop) for prefix in prefixes[:3])
        problem = f"{label} fits several parts of the base: {parts}."
        return FullMatch({}, problems=((problem, PART_HINT),))
    return _Matcher(base, expert, prefixes[0], ours, theirs, options, label).match()


def _match_by_name(
    base: Checkpoint, expert: Checkpoint, label: str, options: MatchOptions
) -> FullMatch:
    names = {name: name for name in base.index}
    copies = {copy: name for copy, name in find_copies(base).items() if copy in names}
    left_out: tuple[str, ...] = ()
    if options.tied == "base":
        names |= copies
        left_out = tuple(copies)
    return FullMatch(
        names,
        left_out=left_out,
        copies={} if options.tied else copies,
        base_copies=copies if options.tied != "untie" else {},
        problems=tuple(find_misfits(base, expert, names, label)),
    )


@dataclass(frozen=True)
class _Matcher:
    """A base and an expert with plain names, name -> plain name, and the prefix between them."""

    base: Checkpoint
    expert: Checkpoint
    prefix: Prefix
    ours: Mapping[str, str]
    theirs: Mapping[str, str]
    options: MatchOptions
    label: str

    def match(self) -> FullMatch:
        by_plain = {plain: name for name, plain in self.ours.items()}
        names = {
            by_plain[new]: own
            for own, plain in self.theirs.items()
            if (new := self._base_name(plain)) in by_plain and not self._is_left_head(plain)
        }
        base_copies = self._copies_in_base(names)
        used = {*names.values()}
        extra = [own for own in self.expert.index if own not in used]
        missing = [name for name in self.base.index if name not in names]
        copies = self._copies_in_expert(extra)
        head = self._head(extra)
        kept = [name for name in missing if self._is_kept(name, names)]
        buffers = [name for name in extra if is_buffer(name, self.expert.index[name])]
        left_out = dict.fromkeys((*buffers, *copies, *head))
        checked = {} if self.options.tied else copies
        return FullMatch(
            names,
            tuple(kept),
            tuple(left_out),
            checked,
            base_copies,
            tuple(head),
            tuple(
                self._problems(
                    names,
                    lost=[name for name in missing if name not in set(kept)],
                    unknown=[name for name in extra if name not in left_out],
                )
            ),
        )

    def _base_name(self, plain: str) -> str | None:
        """The plain name that the base has for a tensor of the expert, by its prefix."""
        renamed = self.prefix(plain)
        # Heads are outside of the body, whose names have the prefix.
        return plain if renamed is None or renamed not in self._our_names else renamed

    @cached_property
    def _our_names(self) -> frozenset[str]:
        return frozenset(self.ours.values())

    def _is_left_head(self, plain: str) -> bool:
        return is_class_head(plain) and self.options.heads in ("keep", "drop")

    def _copies_in_base(self, names: dict[str, str]) -> dict[str, str]:
        """Add the copies that only the base stores to `names`; they are returned."""
        plain = {new: name for name, new in self.ours.items()}
        added = {}
        for copy, original in find_copies(_by_plain_names(self.base, self.ours)).items():
            name, source = plain.get(copy), plain[original]
            if name is not None and name not in names and source in names:
                names[name] = names[source]
                added[name] = source
        return added

    def _copies_in_expert(self, extra: Sequence[str]) -> dict[str, str]:
        """The tensors of the expert that are stored twice: copy -> original."""
        plain = {name: own for own, name in self.theirs.items()}
        copies = find_copies(_by_plain_names(self.expert, self.theirs))
        if tie := find_tie(_by_plain_names(self.base, self.ours)):
            # A tied base has no place for a head, whatever the expert's configuration says.
            by_base = {self._base_name(name): name for name in plain}
            if tie.head in by_base and tie.embedding in by_base:
                copies[by_base[tie.head]] = by_base[tie.embedding]
        return {
            plain[copy]: plain[original]
            for copy, original in copies.items()
            if plain.get(copy) in extra
        }

    def _head(self, extra: Sequence[str]) -> list[str]:
        """The tensors of the expert's head if it is left out."""
        if self.options.heads not in ("keep", "drop"):
            return []
        owned = set(own_head(self.theirs[own] for own in extra))
        return [own for own in extra if self.theirs[own] in owned]

    def _is_kept(self, name: str, names: Mapping[str, str]) -> bool:
        """Whether a tensor that the expert does not have stays as it is in the base."""
        plain = self.ours[name]
        if is_buffer(name, self.base.index[name]) or self._is_left_head(plain):
            return True
        if "/" in name:  # a module of an embedding model, of which the expert is the transformer
            return not any("/" in own for own in self.expert.index)
        if self.prefix.add and not plain.startswith(self.prefix.add):
            return True
        part = part_of(plain)
        is_part = part in PARTS or is_class_head(plain)
        return is_part and not any(part_of(self.ours[matched]) == part for matched in names)

    def _problems(
        self, names: Mapping[str, str], lost: Sequence[str], unknown: Sequence[str]
    ) -> Iterator[Problem]:
        if lost:
            yield f"{self.label} lacks {summarize_names(lost)} of the base.", FULL_EXPERT_HINT
        heads = set(own_head(self.theirs[own] for own in unknown))
        for hint, is_head in ((HEADS_HINT, True), (FULL_EXPERT_HINT, False)):
            listed = [own for own in unknown if (self.theirs[own] in heads) is is_head]
            if listed:
                described = summarize_names(listed)
                yield f"{self.label} has {described} that the base does not have.", hint
        yield from find_misfits(self.base, self.expert, names, self.label)


def _memory_names(index: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Plain names as in memory, name -> plain name, or as in the file if two would be the same."""
    plain = plain_names(index)
    in_memory = memory_names(plain.values(), config)
    if len(set(in_memory.values())) < len(set(plain.values())):
        return plain
    return {name: in_memory[new] for name, new in plain.items()}


def _by_plain_names(checkpoint: Checkpoint, plain: Mapping[str, str]) -> Checkpoint:
    index = {new: checkpoint.index[name] for name, new in plain.items()}
    return Checkpoint(checkpoint.folder, checkpoint.kind, index)


def _weights(index: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name: tensor for name, tensor in index.items() if not is_buffer(name, tensor)}


def _repeated(plain: Mapping[str, str]) -> list[str]:
    return [name for name, count in Counter(plain.values()).items() if count > 1]
