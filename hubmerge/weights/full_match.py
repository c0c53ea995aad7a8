"""Match a full expert with its base by headers and configuration: which tensor is which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hubmerge.weights.adapter_config_fields import Problem
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.full_names import PARTS, Prefix, find_prefixes, is_buffer, plain_names
from hubmerge.weights.header import TensorInfo, safe_name, summarize_names
from hubmerge.weights.ties import Tie, find_tie

FULL_EXPERT_HINT = "Experts must be full fine-tunes of this base, or of one part of it."
HEAD_HINT = "Remove the head from one of them, or merge models with the same classes."
VOCABULARY_HINT = (
    "The vocabularies differ: resize the embeddings of the expert to the base's tokens first."
)
_HEAD_PARTS = ("classifier", "score", "qa_outputs", "cls", "head")
_EMBEDDINGS = (
    "embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "lm_head", "embed_out",
)  # fmt: skip


@dataclass(frozen=True)
class FullMatch:
    """How the tensors of a full expert and its base belong together, and what does not.

    `names` maps a tensor of the base to the expert's. `kept` are tensors of the base that the
    expert does not have, and that stay as they are. `left_out` are tensors of the expert that are
    not merged: buffers, and copies of others, in `copies` as copy -> original, whose bytes must be
    equal.
    """

    names: Mapping[str, str] = field(repr=False)
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
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
        if self.left_out:
            yield f"{label} has {summarize_names(self.left_out)} that are left out."


def match_full(base: Checkpoint, expert: Checkpoint, label: str) -> FullMatch:
    """Match a full expert with a base, without reading a value; `label` begins its problems."""
    if expert.index.keys() == base.index.keys():
        names = {name: name for name in base.index}
        return FullMatch(names, problems=tuple(_misfits(base, expert, names, label)))
    ours, theirs = plain_names(base.index), plain_names(expert.index)
    twice = [*_repeated(ours), *_repeated(theirs)]
    if twice:
        problem = f"{label} or the base has {summarize_names(twice)} under two names."
        return FullMatch({}, problems=((problem, FULL_EXPERT_HINT),))
    by_plain = {plain: name for name, plain in ours.items()}
    base_index = {plain: base.index[name] for name, plain in ours.items()}
    own_index = {plain: expert.index[name] for name, plain in theirs.items()}
    prefixes = find_prefixes(_weights(own_index), _weights(base_index))
    if len(prefixes) > 1:
        parts = " or ".join(repr(prefix.add or prefix.drop) for prefix in prefixes[:3])
        problem = f"{label} fits several parts of the base: {parts}."
        return FullMatch({}, problems=((problem, FULL_EXPERT_HINT),))
    own_by_base = {
        by_plain[new]: own
        for own, plain in theirs.items()
        if (new := prefixes[0](plain)) is not None and new in by_plain
    }
    return _complete(base, expert, own_by_base, prefixes[0], ours, label)


def _complete(
    base: Checkpoint,
    expert: Checkpoint,
    names: dict[str, str],
    prefix: Prefix,
    plain: Mapping[str, str],
    label: str,
) -> FullMatch:
    """Decide on the tensors that only one of the two has."""
    used = set(names.values())
    extra = [name for name in expert.index if name not in used]
    missing = [name for name in base.index if name not in names]
    copies = _copies(expert, extra)
    tie = find_tie(base)
    if tie and tie.head in missing and tie.embedding in names:
        names[tie.head] = names[tie.embedding]
        missing.remove(tie.head)
    kept = [
        name
        for name in missing
        if is_buffer(name, base.index[name]) or _is_other_part(plain[name], prefix, plain, names)
    ]
    buffers = [name for name in extra if is_buffer(name, expert.index[name])]
    lost = [name for name in missing if name not in set(kept)]
    unknown = [name for name in extra if name not in {*buffers, *copies}]
    problems: list[Problem] = []
    if lost:
        problems.append((f"{label} lacks {summarize_names(lost)} of the base.", FULL_EXPERT_HINT))
    if unknown:
        problems.append((
            f"{label} has {summarize_names(unknown)} that the base does not have.",
            FULL_EXPERT_HINT,
        ))  # fmt: skip
    problems += _misfits(base, expert, names, label)
    return FullMatch(names, tuple(kept), (*buffers, *copies), copies, tuple(problems))


def _weights(index: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name: tensor for name, tensor in index.items() if not is_buffer(name, tensor)}


def _is_other_part(
    name: str, prefix: Prefix, plain: Mapping[str, str], names: Mapping[str, str]
) -> bool:
    """Whether a tensor is in a part of the base of which the expert has nothing."""
    if prefix.add and not name.startswith(prefix.add):
        return True
    part = name.partition(".")[0]
    return part in PARTS and not any(plain[matched].partition(".")[0] == part for matched in names)


def _copies(expert: Checkpoint, extra: list[str]) -> dict[str, str]:
    """The tensors of an expert that its configuration ties to another one: copy -> original."""
    plain = {name: own for own, name in plain_names(expert.index).items()}
    view = Checkpoint(expert.folder, expert.kind, {n: expert.index[o] for n, o in plain.items()})
    tie = find_tie(view)
    ties = [tie] if tie else []
    ties += [
        Tie("shared.weight", f"{side}.embed_tokens.weight")
        for side in ("encoder", "decoder")
        if "shared.weight" in plain
    ]
    return {plain[tie.head]: plain[tie.embedding] for tie in ties if plain.get(tie.head) in extra}


def _misfits(
    base: Checkpoint, expert: Checkpoint, names: Mapping[str, str], label: str
) -> Iterator[Problem]:
    """The tensors of another shape or kind, with a hint on heads and on vocabularies."""
    by_hint: dict[str, list[str]] = {}
    for name, own in names.items():
        ours, theirs = base.index[name], expert.index[own]
        if not theirs.fits(ours):
            text = f"{safe_name(name)} ({_describe(theirs)}, in the base {_describe(ours)})"
            by_hint.setdefault(_misfit_hint(name, ours, theirs), []).append(text)
    for hint, misfits in by_hint.items():
        yield f"{label} does not fit the base in {summarize_names(misfits, 'tensor')}.", hint


def _misfit_hint(name: str, ours: TensorInfo, theirs: TensorInfo) -> str:
    parts = set(name.split("."))
    if parts & set(_HEAD_PARTS):
        return HEAD_HINT
    if parts & set(_EMBEDDINGS) and ours.shape[1:] == theirs.shape[1:]:
        return VOCABULARY_HINT
    return FULL_EXPERT_HINT


def _describe(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _repeated(plain: Mapping[str, str]) -> list[str]:
    return [name for name, count in Counter(plain.values()).items() if count > 1]
