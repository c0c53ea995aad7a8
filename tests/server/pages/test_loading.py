"""How to load a revision, by the files that it has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hubmerge.manifest import Manifest
from hubmerge.server.content import AddFile
from hubmerge.server.names import RepoId
from hubmerge.server.pages.loading import loading_snippets
from hubmerge.server.store import RepositoryStore
from hubmerge.source import Source
from tests.server.pages.conftest import step_manifest

ADAPTER = {"base_model_name_or_path": "a/base", "task_type": "CAUSAL_LM"}


@pytest.fixture
def store(tmp_path: Path) -> RepositoryStore:
    store = RepositoryStore(tmp_path)
    store.clean_up()
    return store


def snippets(
    store: RepositoryStore,
    files: dict[str, object],
    manifest: Manifest | None = None,
    kind: str = "models",
) -> dict[str, str]:
    """Library -> code, for a repository with these files as JSON."""
    id = RepoId(kind, "a", "b")
    adds = [AddFile(name, json.dumps(value).encode()) for name, value in files.items()]
    snapshot = store.create(id, adds, author="a").snapshot("main")
    return {s.library: s.code for s in loading_snippets(id, "step4", snapshot, manifest)}


@pytest.mark.parametrize(
    ("files", "library", "line"),
    [
        ({"config.json": {"architectures": ["CLIPModel"]}}, "transformers",
         'model = CLIPModel.from_pretrained("a/b", revision="step4")'),
        ({"config.json": {"architectures": ["LlamaForCausalLM"]}, "tokenizer.json": {}},
         "transformers", 'tokenizer = AutoTokenizer.from_pretrained("a/b", revision="step4")'),
        ({"config.json": {"architectures": ["LlamaForCausalLM"]}}, "transformers",
         'model = AutoModelForCausalLM.from_pretrained("a/b", revision="step4")'),
        ({"config.json": {}}, "transformers",
         'model = AutoModel.from_pretrained("a/b", revision="step4")'),
        ({"config.json": {"architectures": ['X"); import os; ("']}}, "transformers",
         'model = AutoModel.from_pretrained("a/b", revision="step4")'),
        ({"adapter_config.json": ADAPTER, "config.json": {}}, "peft",
         'base = AutoModelForCausalLM.from_pretrained("a/base")'),
        ({"adapter_config.json": {"auto_mapping": {"base_model_class": "CLIPModel"}}}, "peft",
         'base = CLIPModel.from_pretrained("BASE")'),
        ({"adapter_config.json": {"base_model_name_or_path": 'a"); import os; ("'}}, "peft",
         'base = AutoModel.from_pretrained("BASE")'),
        ({"open_clip_config.json": {}}, "open_clip",
         'folder = snapshot_download("a/b", revision="step4")'),
        ({"modules.json": [], "config.json": {}}, "sentence-transformers",
         'model = SentenceTransformer("a/b", revision="step4")'),
        ({}, "hf", "hf download a/b --revision step4"),
    ],
)  # fmt: skip
def test_each_library_loads_what_it_wrote(
    store: RepositoryStore, files: dict[str, object], library: str, line: str
) -> None:
    assert line in snippets(store, files)[library].splitlines()


def test_the_base_of_an_adapter_is_pinned_by_its_manifest(store: RepositoryStore) -> None:
    manifest = replace(step_manifest(4), layout="peft")
    code = snippets(store, {"adapter_config.json": ADAPTER}, manifest)["peft"]
    assert f'from_pretrained("hubmerge/tiny-clip", revision="{"ab" * 20}")' in code


def test_a_manifest_cannot_write_code(store: RepositoryStore) -> None:
    base = Source('a"); import os; ("', '"); import os; ("', "cd" * 32)
    code = snippets(store, {"adapter_config.json": ADAPTER}, replace(step_manifest(4), base=base))
    assert "import os" not in "".join(code.values())


def test_a_mixture_is_loaded_by_hubmerge_and_a_data_set_by_datasets(
    store: RepositoryStore,
) -> None:
    code = snippets(store, {"adapter_config.json": ADAPTER}, replace(step_manifest(4), kind="moe"))
    assert "peft" not in code
    rows = snippets(store, {}, kind="datasets")
    assert 'load_dataset("a/b", revision="step4")' in rows["datasets"]
    assert rows["hf"] == "hf download a/b --repo-type dataset --revision step4"
