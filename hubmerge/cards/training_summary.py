"""How a checkpoint was trained, in words: the settings of its run, and how it was annealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hubmerge.cards.usage import pinned_label
from hubmerge.manifest import Manifest

_ADAPTERS = {"lora": "LoRA", "dora": "DoRA", "ia3": "IA3", "prefix": "prefix"}
_ANNEALING = {
    "trajectory": "a snapshot of one run",
    "independent": "a run of its own, annealed to this step",
    "branch": "a constant trunk, annealed by a short cool-down before this step",
}
# Line -> setting -> its name in that line; an empty name means that the value alone is shown.
_SETTING_NAMES: Mapping[str, Mapping[str, str]] = {
    "router": {
        "top_k": "top", "router": "started from", "init": "started from", "signed": "signed",
        "temperature": "temperature", "balance": "load-balance loss",
    },
    "tuned": {
        "tune": "", "rank": "rank", "alpha": "alpha", "rslora": "rank-stabilised",
        "dropout": "dropout", "target_modules": "layers", "modules_to_save": "trained whole",
        "load_in": "base in",
    },
    "continued": {
        "start_from": "from", "start_step": "step", "optimizer": "optimizer:",
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
        "clip": "gradient norm at most", "sam": "sharpness-aware in radius",
        "average": "means of weights", "precision": "precision", "recompute": "recomputing",
    },
    "data": {
        "data_revision": "revision", "data_revisions": "revisions", "augment": "augmented",
        "bucket": "bucketed", "pack": "packed", "max_examples": "examples at most",
        "stream": "streamed",
        "sampling": "tasks sampled", "sampling_temperature": "at temperature",
        "drop_hardest": "without the hardest share", "dropped": "rows dropped", "of_rows": "of",
        "difficulty": "by scores",
    },
    "tasks": {"tasks": ""},
    "seed": {"seed": ""},
}  # fmt: skip
_ADAPTER_SETTINGS = {*_SETTING_NAMES["tuned"]} - {"tune"}
_NOT_SETTINGS = {"notes", "base_layout", "lora"}


def adapter_name(manifest: Manifest) -> str:
    """The kind of adapter as its authors spell it, "" if the manifest does not record it."""
    tune = str(manifest.training.get("tune") or "")
    return "" if tune == "full" else _ADAPTERS.get(tune, tune)


def describe_annealing(manifest: Manifest) -> str:
    """How the step was annealed, in plain words; "" if the manifest does not record it."""
    return _ANNEALING.get(str(manifest.training.get("anneal")), "")


def stopped_early(manifest: Manifest) -> bool:
    """Whether early stopping ended the run at this step."""
    return manifest.training.get("stopped") == "early"


def notes(manifest: Manifest) -> list[str]:
    """Remarks on the experts taken together, a sentence each."""
    recorded = manifest.training.get("notes", ())
    return [str(note) for note in recorded] if isinstance(recorded, (list, tuple)) else []


def provenance(manifest: Manifest) -> Iterator[str]:
    """A line for each source, the method, each group of settings and the versions; not escaped."""
    yield f"base: {pinned_label(manifest.base)}"
    for expert in manifest.experts:
        weight = f", weight {expert.weight:g}" if manifest.is_merge else ""
        averaged = f", the mean of steps {expert.steps_text}" if expert.averaged else ""
        yield f"expert: {pinned_label(expert)}{averaged}{weight}"
    if manifest.method and not manifest.is_moe:
        params = ", ".join(f"{key} = {value}" for key, value in sorted(manifest.params.items()))
        yield f"method: {manifest.method}" + (f", {params}" if params else "")
    yield from _setting_lines(manifest)
    if manifest.run:
        yield f"run: {manifest.run}"
    versions = ", ".join(f"{name} {number}" for name, number in sorted(manifest.versions.items()))
    yield f"versions: {versions}"
    yield "weights and files: SHA-256 of each in hubmerge.json"


def _setting_lines(manifest: Manifest) -> Iterator[str]:
    """A line for each group of settings, then a line for each setting unknown to this version."""
    # A mixture has the parameters of a recipe, like a merge, and those of a run, like an expert.
    settings = {**(manifest.params if manifest.is_moe else {}), **manifest.training}
    unused = {
        key: _format_setting(key, value)
        for key, value in settings.items()
        if value is not None and key not in _NOT_SETTINGS
    }
    if manifest.training.get("tune") == "full":
        unused = {key: value for key, value in unused.items() if key not in _ADAPTER_SETTINGS}
    for line, names in _SETTING_NAMES.items():
        parts = [
            f"{name} {unused.pop(key)}".strip() for key, name in names.items() if key in unused
        ]
        if parts:
            yield f"{line}: {', '.join(parts)}"
    for key, value in sorted(unused.items()):
        yield f"{key}: {value}"


def _format_setting(key: str, value: Any) -> str:
    match key, value:
        case "tune", "full":
            return "all weights"
        case "tune", str():
            return _ADAPTERS.get(value, value)
        case "anneal", str() if value in _ANNEALING:
            return f"{value}, {_ANNEALING[value]}"
        case "tasks", list() | tuple():
            return ", ".join(map(str, value))
        case "data_revisions", dict():
            return ", ".join(f"{name} {revision or 'none'}" for name, revision in value.items())
        case "evaluations", dict():
            return _format_evaluations(value)
        case "stopped", "early":
            return "at this step"
        case _, bool():
            return "yes" if value else "no"
        case _, float():
            return f"{value:.12g}"
    return str(value)


def _format_evaluations(evaluations: Mapping[str, Any]) -> str:
    """The number of evaluations, and the metrics of the last."""
    last = max(evaluations, key=lambda step: int(step) if step.isdecimal() else -1, default="")
    metrics = evaluations.get(last)
    if not isinstance(metrics, dict):
        return str(len(evaluations))
    numbers = ", ".join(f"{name} {_format_setting(name, metrics[name])}" for name in metrics)
    return f"{len(evaluations)}, the last at step {last}: {numbers}"
