"""What others call a model and load it with: the Hub's words, the libraries' calls."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hubmerge.cards.markdown import plain
from hubmerge.manifest import Manifest, Source


@dataclass(frozen=True)
class Kind:
    """A kind of task: the Hub's pipeline and task type for it, and the class that loads a model.

    `unless` says when it is another class.
    """

    pipeline: str | None
    task: str | None
    loader: str
    unless: str = ""


# The Hub has no text2text-generation any more.
_GENERATION = Kind(
    "text-generation", "text-generation",
    "AutoModelForSeq2SeqLM", " (`AutoModelForCausalLM` where its config.json names a decoder)",
)  # fmt: skip
_KINDS = {
    "image": Kind(
        "zero-shot-image-classification", "image-classification",
        "CLIPModel", " (or the class that its config.json names)",
    ),
    "text": Kind("text-classification", "text-classification", "AutoModel"),
    "rank": _GENERATION,
    "target": _GENERATION,
}  # fmt: skip
# With trained heads it is no CLIP, whose classes are words: nothing is zero-shot.
_HEADED_IMAGE = Kind("image-classification", "image-classification", "AutoModel")
_UNKNOWN = Kind(None, None, "AutoModel", " (or the class that its config.json names)")


def kind_of(manifest: Manifest) -> Kind:
    """The kind of the tasks that a model is for; nothing is claimed of one not known here."""
    if manifest.task_kind == "image" and _heads(manifest):
        return _HEADED_IMAGE
    return _KINDS.get(manifest.task_kind, _UNKNOWN)


def relation(manifest: Manifest) -> str:
    """What a model is to its base, as the Hub says it."""
    if manifest.is_merge:
        return "merge"
    return "adapter" if manifest.is_moe or manifest.layout == "peft" else "finetune"


def library(manifest: Manifest) -> str:
    """What loads it."""
    return "hubmerge" if manifest.is_moe else manifest.layout


def pinned(source: Source) -> str:
    """A source by its name and by what never moves."""
    kind = "weights" if source.is_local else "commit"
    return f"{source.label}, {kind} {source.sha}"


def loading(manifest: Manifest) -> str:
    """How to load it, as Markdown: without hubmerge, where anything else can."""
    heads = [plain(name) for name in _heads(manifest)]
    if not heads:
        return _loading(manifest)
    return (
        f"{_loading(manifest)} Trained heads lie beside it, each a linear layer as `weight` and "
        f"`bias`: {', '.join(heads)}."
    )


def _heads(manifest: Manifest) -> list[str]:
    return [name for name in manifest.files if name.startswith("head-")]


def _loading(manifest: Manifest) -> str:
    if manifest.is_moe:
        return _loading_mixture(manifest)
    kind = kind_of(manifest)
    if manifest.layout == "open_clip":
        return (
            "Load it with open_clip alone: download the folder and call "
            '`open_clip.create_model("local-dir:FOLDER")`.'
        )
    if manifest.layout == "peft":
        return (
            f"Load it with peft alone: {_opening(manifest)}, then call "
            "`PeftModel.from_pretrained(base, REPO, revision=TAG)`."
        )
    call = f"`{kind.loader}.from_pretrained(REPO, revision=TAG)`{kind.unless}"
    return f"Load it with transformers alone: {call}."


def _loading_mixture(manifest: Manifest) -> str:
    """The whole needs hubmerge; one expert alone does not, nor what PEFT's Arrow can compute."""
    lines = [
        'Load all of it with `hubmerge.load_moe("REPO@TAG")`.',
        f"One expert alone is loaded with peft: {_opening(manifest)}, then call "
        f'`PeftModel.from_pretrained(base, REPO, subfolder="experts/{_an_expert(manifest)}", '
        "revision=TAG)`.",
    ]
    fused = manifest.training.get("base_layout") == "open_clip"
    if not fused and manifest.params.get("signed") is False:
        lines.append("For peft's Arrow: `hubmerge export REPO@TAG --as peft-arrow --out FOLDER`.")
    return "\n\n".join(lines)


def _opening(manifest: Manifest) -> str:
    """How to open the base of an adapter."""
    kind = kind_of(manifest)
    call = f"`{kind.loader}.from_pretrained`{kind.unless}"
    if manifest.training.get("base_layout") == "open_clip":
        call = '`open_clip.create_model("local-dir:FOLDER")`'
    return f"open the base, {plain(pinned(manifest.base))}, with {call}"


def _an_expert(manifest: Manifest) -> str:
    """The name of an expert's folder, as an example."""
    found = (re.match(r"experts/([a-z0-9][a-z0-9._-]*)/", name) for name in manifest.files)
    return next((match[1] for match in found if match), "NAME")
