"""The base that a card names is a hint, which the weights must confirm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.flows.merge import prepare_merge
from hubmerge.flows.prepared_merge import MergeRequest, PreparedMerge
from hubmerge.hub.client import Hub
from hubmerge.refs import parse_ref
from hubmerge.server import ServerState, lease

CARDS = {
    "text": "base_model: o/base",
    "list": "base_model:\n- o/base",
    "adapter": "base_model: o/base\nbase_model_relation: finetune",
    "two": "base_model:\n- o/base\n- o/other",
    "merged": "base_model: o/base\nbase_model_relation: merge",
    "number": "base_model: 3",
    "folder": "base_model: /etc",
    "none": "license: mit",
    "stranger": "base_model: o/base",
}
Prepare = Callable[..., PreparedMerge]


def weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        f"layers.{number}.weight": random.normal(size=(40, 40)).astype(np.float32)
        for number in range(12)
    } | {"norm.weight": np.ones(40, np.float32)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    root = tmp_path_factory.mktemp("hub")
    base = weights(0)
    noise = weights(1)
    near = {name: tensor + np.float32(0.1) * noise[name] for name, tensor in base.items()}
    with lease(root / "hub") as state:
        api = HfApi(endpoint=state.url, token=state.token)
        models = {"base": base, **{name: noise if name == "stranger" else near for name in CARDS}}
        for name, tensors in models.items():
            folder = root / name
            folder.mkdir()
            save_file(tensors, folder / "model.safetensors")
            (folder / "README.md").write_text(f"---\n{CARDS.get(name, '')}\n---\n")
            if name == "number":  # which a Hub refuses
                continue
            api.create_repo(f"o/{name}")
            api.upload_folder(repo_id=f"o/{name}", folder_path=folder)
        yield state


@pytest.fixture
def prepare(server: ServerState, tmp_path: Path) -> Prepare:
    hub = Hub(server.url, lambda: server.token, tmp_path / "cache", "the test Hub", deadline_s=20.0)

    def prepare(*experts: str, base: str | None = None) -> PreparedMerge:
        refs = tuple(map(parse_ref, experts))
        request = MergeRequest(refs, "average", {}, parse_ref(base) if base else None)
        return prepare_merge(hub, request, tmp_path / "merges")

    return prepare


@pytest.mark.parametrize("name", ["text", "list", "adapter"])
def test_the_base_of_a_card_is_used(prepare: Prepare, name: str) -> None:
    prepared = prepare(f"o/{name}")
    assert prepared.manifest.base.name == "o/base"
    assert prepared.notes == ()


@pytest.mark.parametrize("name", ["two", "merged", "number", "none"])
def test_other_cards_name_no_base(prepare: Prepare, server: ServerState, name: str) -> None:
    expert = str(server.data.parent / name) if name == "number" else f"o/{name}"
    with pytest.raises(UsageError, match="does not name the base") as refused:
        prepare(expert)
    assert "--base" in refused.value.hint
    assert prepare(expert, base="o/base").notes == ()


def test_a_card_cannot_choose_a_folder(prepare: Prepare) -> None:
    with pytest.raises(UsageError, match="which is not a repository"):
        prepare("o/folder")


def test_a_stranger_of_the_same_shape(prepare: Prepare) -> None:
    with pytest.raises(IntegrityError, match="little in common with o/base") as refused:
        prepare("o/stranger", "o/text")
    assert "--base" in refused.value.hint
    (note,) = prepare("o/stranger", "o/text", base="o/base").notes
    assert "o/stranger" in note
    assert "cosine" in note
