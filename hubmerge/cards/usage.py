"""What others call a model and load it with: the Hub's words, the libraries' calls."""

from __future__ import annotations

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
    if manifest.kind == "merge":
        return "merge"
    return "adapter" if manifest.layout == "peft" else "finetune"


def pinned(source: Source) -> str:
    """A source by its name and by what never moves."""
    kind = "weights" if source.is_local else "commit"
    return f"{source.label}, {kind} {source.sha}"


def loading(manifest: Manifest) -> str:
    """How to load it without hubmerge."""
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
    kind = kind_of(manifest)
    if manifest.layout == "open_clip":
        return (
            "Load it with open_clip alone: download the folder and call "
            '`open_clip.create_model("local-dir:FOLDER")`.'
        )
    if manifest.layout == "peft":
        opening = f"`{kind.loader}.from_pretrained`{kind.unless}"
        if manifest.training.get("base_layout") == "open_clip":
            opening = '`open_clip.create_model("local-dir:FOLDER")`'
        return (
            f"Load it with peft alone: open the base, {plain(pinned(manifest.base))}, with "
            f"{opening}, then call `PeftModel.from_pretrained(base, REPO, revision=TAG)`."
        )
    call = f"`{kind.loader}.from_pretrained(REPO, revision=TAG)`{kind.unless}"
    return f"Load it with transformers alone: {call}."
