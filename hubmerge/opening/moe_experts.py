"""From names to the experts of a mixture: every problem is told before any weights are fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hubmerge.errors import CheckpointError, UsageError, check_all, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.headers import read_shapes
from hubmerge.manifest import Source
from hubmerge.moerging.experts import check_alike, unfit
from hubmerge.opening.bases import common_base
from hubmerge.opening.extracted_adapters import as_adapters
from hubmerge.opening.merge_experts import last_step
from hubmerge.opening.merge_inputs import check_bases, check_experts
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.opening.references import adapter_config, open_pinned, pin, source_of
from hubmerge.refs import ModelRef
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_config_fields import FILE
from hubmerge.weights.adapter_match import match
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.header import Tensor
from hubmerge.weights.layout import Kind

_MENDED = "Name LoRA adapters of one base, on the same layers."


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture, opened, each held against their one base.

    `base_source` and `sources` are base and experts as a manifest names them, `notes` what one
    should know of them.
    """

    base: Opened
    opened: tuple[Opened, ...]
    adapters: tuple[Adapter, ...]
    base_source: Source
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()


def open_experts(
    hub: Hub, refs: Sequence[ModelRef], base: ModelRef | None, rank: int | None, extracted: Path
) -> Experts:
    """Pin experts and base, check them by configurations and headers, then fetch and open them.

    With `rank`, full experts become adapters in folders of `extracted`. Raises UsageError for what
    is no adapter, IntegrityError for different bases, CheckpointError for adapters that do not fit
    the base or do not stand side by side; all problems at once.
    """
    pinned = [pin(hub, ref) for ref in refs]
    _check_distinct(pinned)
    adapters = [one for one in pinned if adapter_config(hub, one) is not None]
    mixtures = [one for one in pinned if one.manifest and one.manifest.is_moe]
    whole = [] if rank else [one for one in pinned if one not in (*adapters, *mixtures)]
    check_all(
        lambda: check_experts(mixtures),
        lambda: _check_adapters(whole),
        lambda: _check_headers(hub, adapters, base),
    )
    pinned_base = pin(hub, base or common_base(hub, pinned))
    opened_base = open_pinned(hub, pinned_base)
    check_bases(pinned, opened_base)
    opened, notes = tuple(open_pinned(hub, one) for one in pinned), tuple[str, ...]()
    if rank is not None:
        opened, notes = as_adapters(opened, opened_base, rank, extracted)
    matched = _matched(
        {one.revision.label: one.checkpoint for one in opened}, opened_base.checkpoint
    )
    sources = tuple(source_of(one, last=last_step(hub, one.revision)) for one in opened)
    unsure = [f"{one.revision.label}: {one.revision.note}." for one in opened if one.revision.note]
    base_source = source_of(opened_base)
    return Experts(opened_base, opened, matched, base_source, sources, (*unsure, *notes))


def _check_distinct(pinned: Sequence[Pinned]) -> None:
    """Raise UsageError for what is named more than once: two that are one never part."""
    labels: dict[object, list[str]] = {}
    for one in pinned:
        ref = one.revision.ref
        place = ref.path.resolve() if ref.path else (one.revision.sha, ref.subfolder)
        labels.setdefault(place, []).append(one.revision.label)
    problems = [f"{' and '.join(same)} are one expert." for same in labels.values() if same[1:]]
    raise_together(UsageError, problems, "Name every expert once.")


def _check_adapters(whole: Sequence[Pinned]) -> None:
    """Raise UsageError for what has no adapter_config.json."""
    problems = [
        f"{one.revision.label} is no adapter: it holds all the weights of a model." for one in whole
    ]
    hint = "Name LoRA adapters; --extract-rank 8 (for select: --set extract_rank=8) makes one "
    hint += "of what each full expert changed."
    raise_together(UsageError, problems, hint)


def _check_headers(hub: Hub, pinned: Sequence[Pinned], base: ModelRef | None) -> None:
    """Hold all adapters against the base by the headers of their files, some kilobytes of each."""
    if not pinned:
        return
    named = pin(hub, base or common_base(hub, pinned))
    with TemporaryDirectory() as scratch:
        found = _header(hub, named, "full", Path(scratch))
        adapters = {}
        for number, one in enumerate(pinned):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            (folder / FILE).write_bytes(adapter_config(hub, one) or b"")
            adapters[one.revision.label] = _header(hub, one, "lora", folder)
        known = {who: one for who, one in adapters.items() if one is not None}
        if found is not None:
            _matched(known, found)


def _header(hub: Hub, pinned: Pinned, kind: Kind, folder: Path) -> Checkpoint | None:
    """A checkpoint of which only names and shapes are known; None where those are in many files."""
    if pinned.revision.ref.path is not None:
        return open_checkpoint(pinned.revision.ref.path)
    shapes = read_shapes(hub, pinned.revision)
    if shapes is None:
        return None
    file = Path(pinned.revision.label)
    index = {name: Tensor(file, "F32", shape, 0, 0) for name, shape in shapes.items()}
    return Checkpoint(folder, kind, index)


def _matched(experts: Mapping[str, Checkpoint], base: Checkpoint) -> tuple[Adapter, ...]:
    """Every adapter held against the base and against the others."""
    adapters, problems, hints = dict[str, Adapter](), list[str](), [_MENDED]
    for who, checkpoint in experts.items():
        adapter, found = match(base, checkpoint, who)
        problems += [problem for problem, _ in found]
        hints += [hint for _, hint in found]
        if not found:
            adapters[who] = adapter
            problems += unfit(adapter, who)
    problems += check_alike(adapters)
    raise_together(CheckpointError, problems, " ".join(dict.fromkeys(hints[1:] or hints)))
    return tuple(adapters.values())
