"""The description of a repository as JSON, with the keys that clients read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hubmerge.front_matter import card_data, card_tags, texts
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.messages import Json
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import File, Snapshot
from hubmerge.server.weight_counts import count_parameters

# The properties that clients may request with `expand`; those without a value here are null.
_COMMON_PROPERTIES = """author cardData createdAt disabled gated lastModified likes private
    resourceGroup sha siblings tags trendingScore usedStorage"""
_PROPERTIES_OF_KIND = {
    "models": f"""{_COMMON_PROPERTIES} baseModels childrenModelCount config downloads
        downloadsAllTime evalResults gguf inference inferenceProviderMapping library_name
        mask_token model-index pipeline_tag safetensors spaces transformersInfo
        widgetData""".split(),
    "datasets": f"""{_COMMON_PROPERTIES} citation description downloads downloadsAllTime mainSize
        paperswithcode_id""".split(),
    "spaces": f"{_COMMON_PROPERTIES} datasets models region runtime sdk subdomain".split(),
}

# Clients filter data sets by key and value.
_DATASET_TAG_KEYS = (
    "language",
    "language_creators",
    "multilinguality",
    "size_categories",
    "task_categories",
    "task_ids",
)

# A file at the root -> the library that wrote the model, for cards that do not name it.
_LIBRARY_OF_FILE = {
    "adapter_config.json": "peft",
    "open_clip_config.json": "open_clip",
    "modules.json": "sentence-transformers",
    "config.json": "transformers",
}


def describe_repo(repository: Repository, snapshot: Snapshot, blobs: bool = False) -> Json:
    """All properties of a repository at a commit."""
    settings, files = repository.settings, snapshot.files()
    card = card_data(snapshot.read("README.md").decode(errors="replace"))
    library = card.get("library_name") or _library_from_files(files)
    return {
        "_id": f"{repository.id.kind}:{repository.id}",
        "id": str(repository.id),
        "author": repository.id.owner,
        "sha": snapshot.sha,
        "lastModified": format_time(snapshot.commit.date),
        "createdAt": format_time(settings.created),
        "private": settings.private,
        "gated": settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(repository.id.kind, card, library, files),
        "cardData": card,
        "siblings": [sibling_to_json(file, blobs) for file in files],
        "usedStorage": sum({f.etag: f.size for f in files}.values()),
        **(
            _model_properties(snapshot, card, library, files)
            if repository.id.kind == "models"
            else {}
        ),
    }


def select_properties(kind: str, description: Json, names: Iterable[str]) -> Json:
    """The id and the named properties; raises BadRequest for an unknown name."""
    unknown = sorted(set(names) - set(_PROPERTIES_OF_KIND[kind]))
    if unknown:
        known = ", ".join(sorted(_PROPERTIES_OF_KIND[kind]))
        raise BadRequest(f'"expand" does not know {", ".join(unknown)[:200]}: use {known}.')
    return {
        "_id": description["_id"],
        "id": description["id"],
        **{name: description.get(name) for name in names},
    }


def sibling_to_json(file: File, blobs: bool) -> Json:
    """A file in the list of all files of a repository."""
    if not blobs:
        return {"rfilename": file.path}
    fields = {"rfilename": file.path, "blobId": file.oid, "size": file.size}
    return {**fields, "lfs": lfs_to_json(file)} if file.lfs else fields


def lfs_to_json(file: File) -> Json:
    """The LFS content of a file, with both keys that clients use for its sha256."""
    assert file.lfs
    return {
        "oid": file.lfs.oid,
        "sha256": file.lfs.oid,
        "size": file.lfs.size,
        "pointerSize": len(file.lfs.text),
    }


def format_time(time: Any) -> str:
    """A time in the format of the Hub."""
    return str(time.strftime("%Y-%m-%dT%H:%M:%S.000Z"))


def _model_properties(
    snapshot: Snapshot, card: Json, library: str | None, files: list[File]
) -> Json:
    properties = {
        "safetensors": count_parameters(snapshot, files),
        "library_name": library,
        "pipeline_tag": card.get("pipeline_tag"),
        "model-index": card.get("model-index"),
        "config": _model_config(snapshot),
    }
    return {name: value for name, value in properties.items() if value is not None}


def _tags(kind: str, card: Json, library: str | None, files: list[File]) -> list[str]:
    relation = _base_relation(card, files)
    tags = card_tags({**card, "library_name": library, "base_model_relation": relation})
    if kind == "datasets":
        tags += [f"{key}:{text}" for key in _DATASET_TAG_KEYS for text in texts(card.get(key))]
    return tags


def _library_from_files(files: Iterable[File]) -> str | None:
    names = {file.path for file in files}
    return next((library for file, library in _LIBRARY_OF_FILE.items() if file in names), None)


def _base_relation(card: Json, files: Iterable[File]) -> Any:
    """The relation of a model to its base: from the card, else guessed from its files."""
    if relation := card.get("base_model_relation"):
        return relation
    if any(file.path == "adapter_config.json" for file in files):
        return "adapter"
    bases = card.get("base_model")
    return "merge" if isinstance(bases, list) and len(bases) > 1 else "finetune"


def _model_config(snapshot: Snapshot) -> Json | None:
    try:
        config = json.loads(snapshot.read("config.json") or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    return {key: config[key] for key in ("architectures", "model_type") if key in config}
