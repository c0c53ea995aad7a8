"""How a checkpoint was made, in words: the settings of its run, and how it was annealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hubmerge.cards.usage import pinned
from hubmerge.manifest import Manifest

_ADAPTERS = {"lora": "LoRA", "dora": "DoRA", "ia3": "IA3", "prefix": "prefix"}
_ANNEALED = {
    "trajectory": "a snapshot of one run",
    "independent": "a run of its own, annealed to this step",
    "branch": "a constant trunk, annealed by a short cool-down before this step",
}
# What each line of settings is about, and what a setting is called in it; an empty name needs none.
_LINES: Mapping[str, Mapping[str, str]] = {
    "router": {
        "top_k": "top", "router": "started from", "init": "started from", "signed": "signed",
        "temperature": "temperature", "balance": "load-balance loss",
    },
    "tuned": {
        "tune": "", "rank": "rank", "alpha": "alpha", "rslora": "rank-stabilised",
        "dropout": "dropout",
    },
    "annealing": {"anneal": "", "cooldown": "cool-down share"},
    "steps": {
        "steps": "", "train_steps": "", "push_every": "pushed at",
        "evaluate_every": "evaluated every",
    },
    "learning rate": {
        "lr": "peak", "schedule": "schedule", "warmup": "warm-up share",
        "warmup_steps": "warm-up steps",
    },
    "early stopping": {
        "early_stop": "", "patience": "patience", "band": "noise band", "factor": "factor",
        "min_lr": "least share of the peak", "stopped": "stopped",
    },
    "updates": {
        "batch": "batch", "accumulate": "accumulated from", "weight_decay": "weight decay",
        "clip": "gradient norm at most", "precision": "precision", "recompute": "recomputing",
    },
    "data": {
        "data_revision": "revision", "data_revisions": "revisions", "augment": "augmented",
        "bucket": "bucketed", "max_examples": "examples at most", "stream": "streamed",
        "sampling": "tasks sampled", "sampling_temperature": "at temperature",
        "drop_hardest": "without the hardest share", "dropped": "rows dropped", "of_rows": "of",
        "difficulty": "by scores",
    },
    "tasks": {"tasks": ""},
    "seed": {"seed": ""},
}  # fmt: skip
_OF_AN_ADAPTER = {*_LINES["tuned"]} - {"tune"}
_NOT_SETTINGS = {"notes", "base_layout"}


def adapter_name(manifest: Manifest) -> str:
    """The kind of adapter as its authors write it, "" where the manifest does not say."""
    tune = str(manifest.training.get("tune") or "")
    return "" if tune == "full" else _ADAPTERS.get(tune, tune)


def annealed(manifest: Manifest) -> str:
    """How the step was annealed, in plain words; "" where the manifest does not say."""
    return _ANNEALED.get(str(manifest.training.get("anneal")), "")


def stopped_early(manifest: Manifest) -> bool:
    """Whether early stopping ended the run at this very step."""
    return manifest.training.get("stopped") == "early"


def notes(manifest: Manifest) -> list[str]:
    """What there is to say of all the experts taken together, a sentence each."""
    said = manifest.training.get("notes", ())
    return [str(note) for note in said] if isinstance(said, (list, tuple)) else []


def provenance(manifest: Manifest) -> Iterator[str]:
    """A line for each thing that went into it, as plain text that is not escaped yet."""
    yield f"base: {pinned(manifest.base)}"
    for expert in manifest.experts:
        weight = f", weight {expert.weight:g}" if not manifest.is_moe else ""
        yield f"expert: {pinned(expert)}{weight}"
    if manifest.method and not manifest.is_moe:
        params = ", ".join(f"{key} = {value}" for key, value in sorted(manifest.params.items()))
        yield f"method: {manifest.method}" + (f", {params}" if params else "")
    yield from _settings(manifest)
    if manifest.run:
        yield f"run: {manifest.run}"
    versions = ", ".join(f"{name} {number}" for name, number in sorted(manifest.versions.items()))
    yield f"versions: {versions}"
    yield "weights and files: SHA-256 of each in hubmerge.json"


def _settings(manifest: Manifest) -> Iterator[str]:
    """Settings that belong together in one line, then those that this version does not know."""
    # What a mixture was told is its recipe, as it is of a merge, and a run as it is of an expert.
    its = {**(manifest.params if manifest.is_moe else {}), **manifest.training}
    left = {
        key: _worded(key, value)
        for key, value in its.items()
        if value is not None and key not in _NOT_SETTINGS
    }
    if manifest.training.get("tune") == "full":
        left = {key: value for key, value in left.items() if key not in _OF_AN_ADAPTER}
    for line, names in _LINES.items():
        said = [f"{name} {left.pop(key)}".strip() for key, name in names.items() if key in left]
        if said:
            yield f"{line}: {', '.join(said)}"
    for key, value in sorted(left.items()):
        yield f"{key}: {value}"


def _worded(key: str, value: Any) -> str:
    match key, value:
        case "tune", "full":
            return "all weights"
        case "tune", str():
            return _ADAPTERS.get(value, value)
        case "anneal", str() if value in _ANNEALED:
            return f"{value}, {_ANNEALED[value]}"
        case "tasks", list() | tuple():
            return ", ".join(map(str, value))
        case "data_revisions", dict():
            return ", ".join(f"{name} {said or 'none'}" for name, said in value.items())
        case "stopped", "early":
            return "at this step"
        case _, bool():
            return "yes" if value else "no"
        case _, float():
            return f"{value:.12g}"
    return str(value)
