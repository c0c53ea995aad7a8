"""hubmerge verify --rebuild: make a merge again from its manifest, and compare the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubmerge.errors import CheckpointError, HubError, HubUnreachable, IntegrityError, UsageError
from hubmerge.flows.check import Check
from hubmerge.flows.merge import merge_and_publish, prepare_inputs
from hubmerge.flows.prepared_merge import MergeRequest
from hubmerge.hub.client import Hub
from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.merging.registry import method as find_method
from hubmerge.merging.settings import restore_settings
from hubmerge.opening.locked_experts import open_merged_source, open_source, source_ref
from hubmerge.opening.merge_inputs import MergeInputs
from hubmerge.opening.references import versions
from hubmerge.opening.stacked_inputs import restore_layers
from hubmerge.progress import Progress
from hubmerge.weights.match_options import split_options


def check_rebuild(
    hub: Hub, manifest: Manifest, scratch: Path, progress: Progress
) -> Iterator[Check]:
    """Merge again in `scratch`, an empty folder, and compare file by file."""
    try:
        rebuilt = _merge_again(hub, manifest, scratch, progress).files
    except HubUnreachable:
        raise
    except (HubError, IntegrityError, CheckpointError, UsageError) as error:
        yield Check("rebuilt", "", f"It cannot be made again: {error.message}")
        return
    for name in sorted(manifest.files.keys() | rebuilt.keys()):
        expected, actual = manifest.files.get(name, "none"), rebuilt.get(name, "none")
        problem = f"{name} has SHA-256 {actual} when made again, but had {expected}."
        is_same = actual == expected
        yield Check(f"rebuilt {name}", f"SHA-256 {actual[:12]}", None if is_same else problem)
    current = versions()
    for name, version in sorted(manifest.versions.items()):
        if current.get(name) != version:
            yield Check(f"version of {name}", f"{version} then, {current.get(name, 'none')} now")


def _merge_again(hub: Hub, manifest: Manifest, scratch: Path, progress: Progress) -> Manifest:
    options, params = split_options(manifest.params)
    dtype, as_lora = params.pop("dtype", None), params.pop("as_lora", None)
    shard_size = params.pop("shard_size", None)
    if type(as_lora) not in (int, type(None)):
        raise IntegrityError(f"{MANIFEST_JSON} has a rank that is not a number: as_lora.")
    if type(shard_size) not in (int, type(None)) or shard_size == 0:
        raise IntegrityError(f"{MANIFEST_JSON} has a size that is not a number: shard_size.")
    method = find_method(manifest.method or "")
    layers, params, own = restore_layers(params, manifest.experts)
    # Layers of several models are one expert for a method that takes one.
    parsed, settings = restore_settings(method, params, own[: method.most])
    base = open_source(hub, source_ref(manifest.base), manifest.base)
    inputs = MergeInputs(
        method=method,
        params=parsed,
        settings=settings,
        base=base,
        base_source=manifest.base,
        experts=tuple(open_merged_source(hub, base, source) for source in manifest.experts),
        sources=manifest.experts,
        layers=layers,
    )
    # A merge that was made with --allow-nonfinite may be made again.
    request = MergeRequest(
        out=scratch / "again",
        dtype=dtype,
        as_lora=as_lora,
        shard_size=shard_size,
        allow_nonfinite=True,
        options=options,
    )
    return merge_and_publish(hub, prepare_inputs(hub, request, inputs, scratch), progress).manifest
