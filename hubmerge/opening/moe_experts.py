"""Open the experts of a mixture by name; all problems are reported before weights are fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hubmerge.errors import CheckpointError, Failures, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import read_file
from hubmerge.hub.headers import read_shapes
from hubmerge.kinds import CheckpointKind
from hubmerge.moerging.experts import find_missing_layers, find_unsupported
from hubmerge.opening.bases import common_base
from hubmerge.opening.extracted_adapters import extract_adapters
from hubmerge.opening.merge_experts import last_step, revision_notes
from hubmerge.opening.merge_inputs import check_bases, check_no_moe
from hubmerge.opening.named_models import open_all, pin_all
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import fetch_adapter_config, open_pinned, pin, source_of
from hubmerge.refs import ModelRef
from hubmerge.source import Source
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.adapter_match import match_adapter
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.model_config import CONFIG_JSON

_HINT = "Name LoRA adapters of one base, on the same layers."


@dataclass(frozen=True)
class MoeExperts:
    """The opened experts of a mixture, each checked against the base.

    `base_source` and `sources` describe base and experts for a manifest; `notes` are sentences for
    the user.
    """

    base: OpenedModel
    models: tuple[OpenedModel, ...]
    adapters: tuple[Adapter, ...]
    base_source: Source
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()


def open_experts(
    hub: Hub, refs: Sequence[ModelRef], base: ModelRef | None, rank: int | None, extracted: Path
) -> MoeExperts:
    """Pin experts and base, check their configurations and headers, then fetch and open them.

    With `rank`, full experts become adapters in folders of `extracted`. Raises UsageError for a
    model that is not an adapter, IntegrityError for different bases, CheckpointError for adapters
    that do not fit the base or each other; all problems at once.
    """
    failures = Failures()
    pinned = [model for model in pin_all(hub, refs, failures) if model]
    adapters = [model for model in pinned if fetch_adapter_config(hub, model) is not None]
    moes = [model for model in pinned if model.is_moe]
    full = [] if rank else [model for model in pinned if model not in (*adapters, *moes)]
    failures.run(lambda: _check_distinct(pinned))
    failures.run(lambda: check_no_moe(moes))
    failures.run(lambda: _reject_full_models(full))
    failures.run(lambda: _check_headers(hub, adapters, base))
    failures.raise_all()
    opened_base = open_pinned(hub, pin(hub, base or common_base(hub, pinned)))
    check_bases(pinned, opened_base)
    opened, notes = open_all(hub, pinned, failures), tuple[str, ...]()
    failures.raise_all()
    models = tuple(model for model in opened if model)
    if rank is not None:
        models, notes = extract_adapters(models, opened_base, rank, extracted)
    matched = _match_adapters(
        {model.revision.label: model.checkpoint for model in models}, opened_base.checkpoint
    )
    return MoeExperts(
        base=opened_base,
        models=models,
        adapters=matched,
        base_source=source_of(opened_base),
        sources=tuple(source_of(m, last=last_step(hub, m.revision)) for m in models),
        notes=(*revision_notes(hub, models), *notes),
    )


def _check_distinct(pinned: Sequence[PinnedModel]) -> None:
    """Raise UsageError for a model named twice: equal experts stay equal in training."""
    labels: dict[object, list[str]] = {}
    for model in pinned:
        ref = model.revision.ref
        location = ref.path.resolve() if ref.path else (model.revision.sha, ref.subfolder)
        labels.setdefault(location, []).append(model.revision.label)
    problems = [f"{' and '.join(same)} are one expert." for same in labels.values() if same[1:]]
    raise_together(UsageError, problems, "Name every expert once.")


def _reject_full_models(models: Sequence[PinnedModel]) -> None:
    """Raise UsageError for models that are not adapters."""
    problems = [
        f"{model.revision.label} is not an adapter: it holds all the weights of a model."
        for model in models
    ]
    hint = "Name LoRA adapters, or extract one from each full expert with --extract-rank 8 (for "
    hint += "select: --set extract_rank=8)."
    raise_together(UsageError, problems, hint)


def _check_headers(hub: Hub, pinned: Sequence[PinnedModel], base: ModelRef | None) -> None:
    """Check all adapters against the base by the headers of their files, a few kilobytes each."""
    if not pinned:
        return
    pinned_base = pin(hub, base or common_base(hub, pinned))
    with TemporaryDirectory() as scratch:
        config = None
        if pinned_base.revision.ref.path is None:
            config = read_file(hub, pinned_base.revision, CONFIG_JSON)
        if config is not None:
            (Path(scratch) / CONFIG_JSON).write_bytes(config)
        base_header = _open_header(hub, pinned_base, "full", Path(scratch))
        headers = {}
        for number, model in enumerate(pinned):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            (folder / ADAPTER_CONFIG).write_bytes(fetch_adapter_config(hub, model) or b"")
            headers[model.revision.label] = _open_header(hub, model, "lora", folder)
        known = {label: header for label, header in headers.items() if header is not None}
        if base_header is not None:
            _match_adapters(known, base_header)


def _open_header(
    hub: Hub, pinned: PinnedModel, kind: CheckpointKind, folder: Path
) -> Checkpoint | None:
    """A checkpoint with names and shapes only; None if these are spread over several files."""
    if pinned.revision.ref.path is not None:
        return open_checkpoint(pinned.revision.ref.path)
    shapes = read_shapes(hub, pinned.revision)
    if shapes is None:
        return None
    file = Path(pinned.revision.label)
    index = {name: TensorInfo(file, "F32", shape, 0, 0) for name, shape in shapes.items()}
    return Checkpoint(folder, kind, index)


def _match_adapters(experts: Mapping[str, Checkpoint], base: Checkpoint) -> tuple[Adapter, ...]:
    """Check every adapter against the base and against the others."""
    adapters, problems, hints = dict[str, Adapter](), list[str](), [_HINT]
    for label, checkpoint in experts.items():
        adapter, mismatches = match_adapter(base, checkpoint, label)
        problems += [problem for problem, _ in mismatches]
        hints += [hint for _, hint in mismatches]
        if not mismatches:
            adapters[label] = adapter
            problems += find_unsupported(adapter, label)
    problems += find_missing_layers(adapters)
    raise_together(CheckpointError, problems, " ".join(dict.fromkeys(hints[1:] or hints)))
    return tuple(adapters.values())
