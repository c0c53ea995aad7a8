"""How the Hub classifies a model, and how each library loads it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from hubmerge.cards.markdown import escape_markdown
from hubmerge.manifest import Manifest
from hubmerge.source import Source


@dataclass(frozen=True)
class TaskKind:
    """A kind of task: its pipeline and task type on the Hub, and the class that loads a model.

    `loader_note` names the class to use instead, and when.
    """

    pipeline: str | None
    task: str | None
    loader: str
    loader_note: str = ""


SENTENCE_TRANSFORMERS = "sentence-transformers"
MODULES_JSON = "modules.json"  # of embedding models
# The Hub has removed text2text-generation.
_GENERATION = TaskKind(
    "text-generation", "text-generation",
    "AutoModelForSeq2SeqLM", " (`AutoModelForCausalLM` where its config.json names a decoder)",
)  # fmt: skip
_KINDS = {
    "image": TaskKind(
        "zero-shot-image-classification", "image-classification",
        "CLIPModel", " (or the class that its config.json names)",
    ),
    "text": TaskKind("text-classification", "text-classification", "AutoModel"),
    "rank": _GENERATION,
    "target": _GENERATION,
    "pairs": TaskKind(
        "sentence-similarity", "information-retrieval",
        "AutoModel", " (or the class that its config.json names)",
    ),
}  # fmt: skip
# A model with trained heads is not a CLIP whose classes are words, so it is not zero-shot.
_HEADED_IMAGE = TaskKind("image-classification", "image-classification", "AutoModel")
_UNKNOWN = TaskKind(None, None, "AutoModel", " (or the class that its config.json names)")


def task_kind_of(manifest: Manifest) -> TaskKind:
    """The kind of a model's tasks; an unknown kind has no pipeline and no task type."""
    if manifest.task_kind == "image" and _head_files(manifest):
        return _HEADED_IMAGE
    return _KINDS.get(manifest.task_kind, _UNKNOWN)


def is_language_model(manifest: Manifest) -> bool:
    """Whether a model generates text, so that its class depends on its architecture."""
    return task_kind_of(manifest) is _GENERATION


def base_model_relation(manifest: Manifest) -> str:
    """The Hub's `base_model_relation` of a model to its base."""
    if manifest.is_merge:
        return "merge"
    return "adapter" if manifest.is_moe or manifest.layout == "peft" else "finetune"


def library_name(manifest: Manifest) -> str:
    """The library that loads the model."""
    if is_embedding_model(manifest):
        return SENTENCE_TRANSFORMERS
    return "hubmerge" if manifest.is_moe else manifest.layout


def is_embedding_model(manifest: Manifest) -> bool:
    """Whether sentence-transformers loads the model as it was trained and measured."""
    has_modules = MODULES_JSON in manifest.files
    return manifest.task_kind == "pairs" and has_modules and not manifest.is_moe


def pinned_label(source: Source) -> str:
    """A source with its commit, or with the digest of its weights if it is local."""
    kind = "weights" if source.is_local else "commit"
    return f"{source.label}, {kind} {source.sha}"


def loading_instructions(manifest: Manifest, language_loader: str | None = None) -> str:
    """How to load a model, as Markdown; without hubmerge if another library can.

    `language_loader` is the class that loads a language model, None if it is not known.
    """
    kind = task_kind_of(manifest)
    if language_loader and is_language_model(manifest):
        kind = dataclasses.replace(kind, loader=language_loader, loader_note="")
    heads = [escape_markdown(name) for name in _head_files(manifest)]
    if not heads:
        return _model_loading(manifest, kind)
    return (
        f"{_model_loading(manifest, kind)} Trained heads are separate files, each with the "
        f"`weight` and `bias` of a linear layer: {', '.join(heads)}."
    )


def _head_files(manifest: Manifest) -> list[str]:
    return [name for name in manifest.files if name.startswith("head-")]


def _model_loading(manifest: Manifest, kind: TaskKind) -> str:
    if manifest.is_moe:
        return _moe_loading(manifest, kind)
    if is_embedding_model(manifest):
        note = ", which loads the base too, by the name in adapter_config.json"
        return (
            'Load it with sentence-transformers alone: `SentenceTransformer("REPO", '
            f'revision="TAG")`{note if manifest.layout == "peft" else ""}.'
        )
    if manifest.layout == "open_clip":
        return (
            "Load it with open_clip alone: download the folder and call "
            '`open_clip.create_model("local-dir:FOLDER")`.'
        )
    if manifest.layout == "peft":
        return (
            f"Load it with peft alone: {_base_loading(manifest, kind)}, then call "
            "`PeftModel.from_pretrained(base, REPO, revision=TAG)`."
        )
    call = f"`{kind.loader}.from_pretrained(REPO, revision=TAG)`{kind.loader_note}"
    return f"Load it with transformers alone: {call}."


def _moe_loading(manifest: Manifest, kind: TaskKind) -> str:
    """The mixture needs hubmerge; one expert alone, or an export for PEFT's Arrow, does not."""
    lines = [
        'Load all of it with `hubmerge.load_moe("REPO@TAG")`.',
        f"One expert alone is loaded with peft: {_base_loading(manifest, kind)}, then call "
        f'`PeftModel.from_pretrained(base, REPO, subfolder="experts/{_example_expert(manifest)}", '
        "revision=TAG)`.",
    ]
    fused = manifest.training.get("base_layout") == "open_clip"
    if not fused and manifest.params.get("signed") is False:
        lines.append("For peft's Arrow: `hubmerge export REPO@TAG --as peft-arrow --out FOLDER`.")
    return "\n\n".join(lines)


def _base_loading(manifest: Manifest, kind: TaskKind) -> str:
    """How to load the base of an adapter."""
    call = f"`{kind.loader}.from_pretrained`{kind.loader_note}"
    if manifest.training.get("base_layout") == "open_clip":
        call = '`open_clip.create_model("local-dir:FOLDER")`'
    return f"open the base, {escape_markdown(pinned_label(manifest.base))}, with {call}"


def _example_expert(manifest: Manifest) -> str:
    """The name of one expert's folder, as an example."""
    matches = (re.match(r"experts/([a-z0-9][a-z0-9._-]*)/", name) for name in manifest.files)
    return next((match[1] for match in matches if match), "NAME")
