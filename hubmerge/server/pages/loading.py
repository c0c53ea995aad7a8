"""How to load a revision: lines to copy for the libraries that can."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hubmerge.manifest import Manifest
from hubmerge.model_class import language_loader
from hubmerge.server.names import RepoId, is_sha
from hubmerge.server.snapshot import Snapshot

_CLASS_NAME = re.compile(r"[A-Z][A-Za-z0-9_]{0,80}")
_BASE_NAME = re.compile(r"[A-Za-z0-9_./-]{1,200}")
_PREPROCESSORS = {
    "preprocessor_config.json": "AutoProcessor",
    "processor_config.json": "AutoProcessor",
    "tokenizer.json": "AutoTokenizer",
    "tokenizer_config.json": "AutoTokenizer",
}


@dataclass(frozen=True)
class Snippet:
    """Lines of code, and the library or tool that they are for."""

    library: str
    code: str


def loading_snippets(
    id: RepoId, revision: str, snapshot: Snapshot, manifest: Manifest | None
) -> list[Snippet]:
    """How to load a revision, the best way first."""
    names = {file.path for file in snapshot.list_folder()}
    snippets = [*_of_libraries(id, revision, snapshot, names, manifest)]
    if id.kind == "models" and manifest:
        snippets.append(Snippet("hubmerge", _commands(id, revision, manifest)))
    return [*snippets, Snippet("hf", _download(id, revision))]


def _of_libraries(
    id: RepoId, revision: str, snapshot: Snapshot, names: set[str], manifest: Manifest | None
) -> Iterator[Snippet]:
    if id.kind == "datasets":
        yield Snippet(
            "datasets",
            "from datasets import load_dataset\n\n"
            f'rows = load_dataset("{id}", revision="{revision}")',
        )
    elif manifest and manifest.is_moe:
        yield Snippet(
            "hubmerge", f'import hubmerge\n\nmodel = hubmerge.load_moe("{id}@{revision}")'
        )
    elif "adapter_config.json" in names:
        yield Snippet("peft", _peft(id, revision, snapshot, manifest))
    elif "open_clip_config.json" in names:
        yield Snippet("open_clip", _open_clip(id, revision))
    elif "modules.json" in names:
        yield Snippet(
            "sentence-transformers",
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{id}", revision="{revision}")',
        )
    elif "config.json" in names:
        yield Snippet("transformers", _transformers(id, revision, snapshot, names))


def _transformers(id: RepoId, revision: str, snapshot: Snapshot, names: set[str]) -> str:
    config = _read_json(snapshot, "config.json")
    loader = language_loader(lambda name: _read_text(snapshot, name)) or _class_in(
        config.get("architectures")
    )
    classes = [loader, *dict.fromkeys(c for name, c in _PREPROCESSORS.items() if name in names)]
    variables = {"AutoProcessor": "processor", "AutoTokenizer": "tokenizer"}
    lines = [f"from transformers import {', '.join(classes)}", ""]
    for name in classes:
        call = f'{name}.from_pretrained("{id}", revision="{revision}")'
        lines.append(f"{variables.get(name, 'model')} = {call}")
    return "\n".join(lines)


def _peft(id: RepoId, revision: str, snapshot: Snapshot, manifest: Manifest | None) -> str:
    config = _read_json(snapshot, "adapter_config.json")
    mapping = config.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    loader = language_loader(lambda path: _read_text(snapshot, path)) or _class_in([name])
    base, base_revision = _base_of(config, manifest)
    pinned = f', revision="{base_revision}"' if base_revision else ""
    opening = [
        f"from transformers import {loader}",
        "",
        f'base = {loader}.from_pretrained("{base}"{pinned})',
    ]
    if manifest and manifest.training.get("base_layout") == "open_clip":
        opening = [
            "import open_clip",
            "",
            "# FOLDER holds the base, downloaded with `hf download`.",
            'base = open_clip.create_model("local-dir:FOLDER")',
        ]
    return "\n".join(
        [
            "from peft import PeftModel",
            *opening,
            f'model = PeftModel.from_pretrained(base, "{id}", revision="{revision}")',
        ]
    )


def _base_of(config: dict[str, Any], manifest: Manifest | None) -> tuple[str, str]:
    """The base of an adapter and its commit; the manifest's, else that of the configuration.

    These lines are copied and run, so only what can be the name of a model is put into them.
    """
    if manifest and _BASE_NAME.fullmatch(manifest.base.name) and is_sha(manifest.base.sha):
        return manifest.base.name, manifest.base.sha
    name = str(config.get("base_model_name_or_path") or "")
    return (name if _BASE_NAME.fullmatch(name) else "BASE"), ""


def _open_clip(id: RepoId, revision: str) -> str:
    return "\n".join(
        [
            "import open_clip",
            "from huggingface_hub import snapshot_download",
            "",
            f'folder = snapshot_download("{id}", revision="{revision}")',
            'model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")',
        ]
    )


def _commands(id: RepoId, revision: str, manifest: Manifest) -> str:
    lines = [f"hubmerge verify {id}@{revision} --hub local"]
    if manifest.is_expert:
        lines += [
            f"hubmerge steps {id} --hub local",
            f"hubmerge merge {id}@{revision} OWNER/OTHER@STEP --method ties --out merged "
            "--hub local",
        ]
    return "\n".join(lines)


def _download(id: RepoId, revision: str) -> str:
    kind = "" if id.kind == "models" else f" --repo-type {id.kind.removesuffix('s')}"
    return f"hf download {id}{kind} --revision {revision}"


def _class_in(names: Any) -> str:
    """The first name that can be a class, else the class that works for most models."""
    named = names if isinstance(names, list) else []
    valid = (n for n in named if isinstance(n, str) and _CLASS_NAME.fullmatch(n))
    return next(valid, "AutoModel")


def _read_json(snapshot: Snapshot, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(snapshot, name) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_text(snapshot: Snapshot, name: str) -> str:
    return snapshot.read(name).decode(errors="replace")
