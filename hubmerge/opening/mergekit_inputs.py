"""Open the models of a mergekit merge, and finish what depends on their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from hubmerge.errors import UsageError, map_all, raise_together
from hubmerge.hub.client import Hub
from hubmerge.mergekit.layout import LayerSpan, find_spans
from hubmerge.mergekit.merge import MergekitMerge
from hubmerge.mergekit.settings import MergekitSettings, find_settings
from hubmerge.merging.settings import record_own
from hubmerge.opening.bases import check_origin
from hubmerge.opening.merge_experts import last_step, revision_notes
from hubmerge.opening.merge_inputs import MergeInputs, check_no_moe
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_pinned, pin, source_of
from hubmerge.opening.stacked_inputs import base_layers, record_layers
from hubmerge.weights.layer_stack import LayerPieces, Piece, layer_count, stack_layers


def open_mergekit_merge(hub: Hub, merge: MergekitMerge, hashed: bool = True) -> MergeInputs:
    """Open the inputs of a merge that a configuration of mergekit describes.

    Without `hashed`, the sources of models without a manifest have no digest. Raises UsageError for
    layers that a model does not have and parameters that cannot be kept, NotOnHub, IntegrityError
    and CheckpointError.
    """
    refs = [merge.base, *(ref.expert for ref in merge.experts)]
    pinned = map_all(partial(pin, hub), refs)
    check_no_moe(pinned)
    base, *experts = map_all(partial(open_pinned, hub), pinned)
    layers = _find_pieces(merge, base, experts)
    inputs = MergeInputs(
        method=merge.method,
        params=merge.method.params(),
        base=base,
        base_source=source_of(base, hashed=hashed),
        experts=tuple(experts),
        sources=tuple(
            source_of(model, last=last_step(hub, model.revision), hashed=hashed)
            for model in experts
        ),
        layers=layers,
    )
    found = find_settings(merge, _tensor_names(inputs))
    notes = (*merge.notes, *found.notes, *_notes(merge, base, experts))
    return dataclasses.replace(
        inputs,
        params=found.params,
        settings=found.settings,
        sources=_with_settings(inputs, found),
        notes=tuple(dict.fromkeys((*notes, *revision_notes(hub, experts)))),
    )


def _with_settings(inputs: MergeInputs, found: MergekitSettings) -> tuple[Any, ...]:
    sources = inputs.sources
    if len(found.weights) == len(sources):
        own = found.settings.own or ((),) * len(sources)
        sources = tuple(
            dataclasses.replace(source, weight=weight, settings=record_own(settings))
            for source, weight, settings in zip(sources, found.weights, own, strict=True)
        )
    return record_layers(inputs.layers, sources)[1]


def _tensor_names(inputs: MergeInputs) -> Sequence[str]:
    base, layers = inputs.base.checkpoint, inputs.layers
    if layers is None:
        return base.names()
    experts = [model.checkpoint for model in inputs.experts]
    return stack_layers(base_layers(layers, base, experts, inputs)).names()


def _find_pieces(
    merge: MergekitMerge, base: OpenedModel, experts: Sequence[OpenedModel]
) -> LayerPieces | None:
    """The layers of each model; None if each gives all of its layers, in order."""
    spans = find_spans(merge)
    if not spans:
        return None
    counts: dict[int | None, int] = {None: layer_count(base.checkpoint)}
    problems = []
    for number, model in enumerate(experts):
        is_whole = model.checkpoint.kind == "full"
        counts[number] = layer_count(model.checkpoint) if is_whole else counts[None]
    for number, part in enumerate(merge.slices):
        for source in part.sources:
            model = base if source.expert is None else experts[source.expert]
            if source.layers and source.layers[1] > counts[source.expert]:
                problems.append(
                    f"slices.{number}: {model.revision.label} has {counts[source.expert]} layers, "
                    f"and layer_range is {list(source.layers)}."
                )
    raise_together(UsageError, problems)
    if _is_in_place(merge, spans, counts):
        return None
    adapters = [ref for ref in merge.experts if ref.adapter is not None]
    raise_together(
        UsageError,
        [f"{ref}: layers can only be taken from whole models." for ref in adapters],
        "Merge the adapter into its model first, with `hubmerge merge ADAPTER --method average`.",
    )
    pieces = tuple(tuple(_pieces(merge, spans, n)) for n in range(len(experts)))
    own = tuple(_pieces(merge, spans, None)) if merge.base_is_input else None
    return LayerPieces(pieces, own)


def _is_in_place(
    merge: MergekitMerge, spans: Sequence[LayerSpan], counts: dict[int | None, int]
) -> bool:
    """Whether every model keeps all its layers, where they are."""
    if set(counts.values()) != {spans[-1].stop}:
        return False
    if merge.is_joint and not merge.base_is_input and merge.experts[0].model != merge.base:
        return False  # not through the difference to another model, so that no bit is lost
    if merge.is_joint and len(merge.experts) > 1:
        return False
    return all(
        source.layers == (span.start, span.stop)
        for part, span in zip(merge.slices, spans, strict=True)
        for source in part.sources
    )


def _pieces(
    merge: MergekitMerge, spans: Sequence[LayerSpan], expert: int | None
) -> Iterator[Piece]:
    for part, span in zip(merge.slices, spans, strict=True):
        source = part.source(expert)
        if source is not None and source.layers is not None:
            yield span.start, *source.layers


def _notes(
    merge: MergekitMerge, base: OpenedModel, experts: Sequence[OpenedModel]
) -> Iterator[str]:
    yield from (f"{m.revision.label}: {m.revision.note}." for m in experts if m.revision.note)
    if not merge.base_is_input:
        return
    for model in experts:
        named = model.manifest.base if model.manifest else None
        if named is not None and named.digest != base.digest:
            yield (
                f"{model.revision.label} was fine-tuned from {named.label}, not from "
                f"{base.revision.label}, which the configuration names as its base."
            )
    yield from check_origin(base, experts, is_named=True)
