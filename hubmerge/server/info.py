"""What the Hub tells about a repository as a whole, in the words that clients read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hubmerge.front_matter import card_data, card_tags
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.messages import Json
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import File, Snapshot

# What clients may ask for by `expand`; names that we know nothing about are answered with null.
_COMMON = """author cardData createdAt disabled gated lastModified likes private resourceGroup sha
    siblings tags trendingScore usedStorage"""
_EXPANDABLE = {
    "models": f"""{_COMMON} baseModels childrenModelCount config downloads downloadsAllTime
        evalResults gguf inference inferenceProviderMapping library_name mask_token model-index
        pipeline_tag safetensors spaces transformersInfo widgetData""".split(),
    "datasets": f"""{_COMMON} citation description downloads downloadsAllTime mainSize
        paperswithcode_id""".split(),
    "spaces": f"{_COMMON} datasets models region runtime sdk subdomain".split(),
}

# A file at the root that tells which library wrote the model, when the card does not.
_LIBRARY_OF_FILE = {
    "adapter_config.json": "peft",
    "open_clip_config.json": "open_clip",
    "modules.json": "sentence-transformers",
    "config.json": "transformers",
}


def describe(repository: Repository, snapshot: Snapshot, blobs: bool = False) -> Json:
    """Everything we know about a repository at a commit."""
    settings, files = repository.settings, snapshot.files()
    card = card_data(snapshot.read("README.md").decode(errors="replace"))
    library = card.get("library_name") or _library(files)
    return {
        "_id": f"{repository.id.kind}:{repository.id}",
        "id": str(repository.id),
        "author": repository.id.owner,
        "sha": snapshot.sha,
        "lastModified": stamp(snapshot.version.date),
        "createdAt": stamp(settings.created),
        "private": settings.private,
        "gated": settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card_tags(
            {**card, "library_name": library, "base_model_relation": _relation(card, files)}
        ),
        "cardData": card,
        "siblings": [sibling(file, blobs) for file in files],
        "usedStorage": sum({f.etag: f.size for f in files}.values()),
        **(_about_model(snapshot, card, library) if repository.id.kind == "models" else {}),
    }


def pick(kind: str, told: Json, names: Iterable[str]) -> Json:
    """Only the named properties, beside the id."""
    unknown = sorted(set(names) - set(_EXPANDABLE[kind]))
    if unknown:
        known = ", ".join(sorted(_EXPANDABLE[kind]))
        raise BadRequest(f'"expand" does not know {", ".join(unknown)[:200]}: use {known}.')
    return {"_id": told["_id"], "id": told["id"], **{name: told.get(name) for name in names}}


def sibling(file: File, blobs: bool) -> Json:
    """A file in the list of a repository's files."""
    if not blobs:
        return {"rfilename": file.path}
    told = {"rfilename": file.path, "blobId": file.oid, "size": file.size}
    return {**told, "lfs": large(file)} if file.lfs else told


def large(file: File) -> Json:
    """The large content behind a file, under both names that clients use for its sha256."""
    assert file.lfs
    return {
        "oid": file.lfs.oid,
        "sha256": file.lfs.oid,
        "size": file.lfs.size,
        "pointerSize": len(file.lfs.text),
    }


def stamp(moment: Any) -> str:
    """A moment as the Hub writes it."""
    return str(moment.strftime("%Y-%m-%dT%H:%M:%S.000Z"))


def _about_model(snapshot: Snapshot, card: Json, library: str | None) -> Json:
    told = {
        "library_name": library,
        "pipeline_tag": card.get("pipeline_tag"),
        "model-index": card.get("model-index"),
        "config": _config(snapshot),
    }
    return {name: value for name, value in told.items() if value is not None}


def _library(files: Iterable[File]) -> str | None:
    names = {file.path for file in files}
    return next((library for file, library in _LIBRARY_OF_FILE.items() if file in names), None)


def _relation(card: Json, files: Iterable[File]) -> Any:
    """What a model is to the base that its card names: as it says, else as its files do."""
    if said := card.get("base_model_relation"):
        return said
    if any(file.path == "adapter_config.json" for file in files):
        return "adapter"
    bases = card.get("base_model")
    return "merge" if isinstance(bases, list) and len(bases) > 1 else "finetune"


def _config(snapshot: Snapshot) -> Json | None:
    try:
        config = json.loads(snapshot.read("config.json") or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    return {key: config[key] for key in ("architectures", "model_type") if key in config}
