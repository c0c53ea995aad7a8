"""Fetching: only what is allowed, only the folder asked for, and only the bytes the Hub lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.errors import HubmergeError, HubUnreachable, IntegrityError, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, read_file
from hubmerge.hub.publish import publish
from hubmerge.hub.resolve import resolve
from hubmerge.refs import Revision, parse_ref
from tests.hub.conftest import Folder, step_of_run
from tests.hub.proxy import Proxy, cut_short, flip_bit, say, status


@pytest.fixture
def revision(hub: Hub, repo: str, folder: Folder) -> Revision:
    """A published step, and files beside it that nobody should want."""
    extra = {
        "modeling_evil.py": "canary", "pytorch_model.bin": "pickle", "run.sh": "canary",
        "optimizer.pt": "pickle", "vocab.txt": "words", "checkpoint-2/config.json": "{}",
        "weird[1].json": "{}",
    }  # fmt: skip
    publish(hub, step_of_run(repo, folder(4, **extra), 4))
    return resolve(hub, parse_ref(f"{repo}@step4"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_only_weights_configs_and_words(hub: Hub, revision: Revision) -> None:
    assert names(fetch(hub, revision)) == {
        "README.md", "config.json", "hubmerge.json", "model.safetensors", "vocab.txt",
        "weird[1].json",
    }  # fmt: skip


def test_only_the_folder_asked_for(hub: Hub, repo: str, revision: Revision) -> None:
    inner = resolve(hub, parse_ref(f"hf://{repo}@step4/checkpoint-2"))
    folder = fetch(hub, inner)
    assert (folder.name, names(folder)) == ("checkpoint-2", {"config.json"})
    assert names(folder.parent) == {"checkpoint-2"}
    assert read_file(hub, inner, "config.json") == b"{}"


EXPERT = {
    "experts/a/adapter_config.json": "{}", "experts/a/adapter_model.safetensors": "weights",
    "experts/a/modeling_evil.py": "canary", "experts/a/deeper/config.json": "{}",
    "experts/README.md": "words", "checkpoint-2/config.json": "{}",
}  # fmt: skip


def fetched(hub: Hub, folder: Path, repo: str, inner: str = "") -> set[str]:
    """Publish a folder as step 4 and say which files of it, or of a folder in it, are fetched."""
    publish(hub, step_of_run(repo, folder, 4))
    here = fetch(hub, resolve(hub, parse_ref(f"hf://{repo}@step4{inner}")))
    return {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}


def test_of_a_mixture_its_experts_too(hub: Hub, repo: str, folder: Folder) -> None:
    made = folder(4, **EXPERT, **{"moe_config.json": "{}"})
    assert fetched(hub, made, repo) == {
        "README.md", "config.json", "hubmerge.json", "model.safetensors", "moe_config.json",
        "experts/a/adapter_config.json", "experts/a/adapter_model.safetensors",
    }  # fmt: skip


def test_one_expert_of_a_mixture_alone(hub: Hub, repo: str, folder: Folder) -> None:
    made = folder(4, **EXPERT, **{"moe_config.json": "{}"})
    assert fetched(hub, made, repo, "/experts/a") == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_a_mixture_in_a_folder(hub: Hub, repo: str, folder: Folder) -> None:
    inside = {f"inside/{name}": text for name, text in {**EXPERT, "moe_config.json": "{}"}.items()}
    assert fetched(hub, folder(4, **inside, **EXPERT), repo, "/inside") == {
        "moe_config.json", "experts/a/adapter_config.json", "experts/a/adapter_model.safetensors",
    }  # fmt: skip


def test_folders_of_what_is_no_mixture_stay_there(hub: Hub, repo: str, folder: Folder) -> None:
    assert fetched(hub, folder(4, **EXPERT), repo) == {
        "README.md", "config.json", "hubmerge.json", "model.safetensors",
    }  # fmt: skip


def test_a_damaged_expert_is_found_and_mended(hub: Hub, repo: str, folder: Folder) -> None:
    name = "experts/a/adapter_model.safetensors"
    publish(hub, step_of_run(repo, folder(4, **EXPERT, **{"moe_config.json": "{}"}), 4))
    mixture = resolve(hub, parse_ref(f"{repo}@step4"))
    file = fetch(hub, mixture) / name
    file.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=f"{name} of .*@step4 is not what"):
        fetch(hub, mixture)
    assert (fetch(hub, mixture) / name).read_bytes() == b"weights"


def test_once_fetched_no_file_is_asked_for(hub: Hub, revision: Revision, proxy: Proxy) -> None:
    first = fetch(hub, revision)
    proxy.fail("/resolve/", status(500), times=99)
    assert fetch(hub, revision) == first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])  # sha256, git's sha1
@pytest.mark.parametrize("damage", ["other bytes", "shorter"])
def test_a_damaged_cache_is_found_and_mended(
    hub: Hub, revision: Revision, name: str, damage: str
) -> None:
    folder = fetch(hub, revision)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1] + b"?" * (damage == "other bytes"))
    with pytest.raises(IntegrityError, match=f"{name} of .*@step4 is not what") as caught:
        fetch(hub, revision)
    assert caught.value.exit_code == 3
    assert not (folder / name).exists()
    assert (fetch(hub, revision) / name).read_bytes() == whole


def test_all_damage_is_told_at_once(hub: Hub, revision: Revision) -> None:
    folder = fetch(hub, revision)
    for name in ("model.safetensors", "vocab.txt"):
        (folder / name).write_bytes(b"?")
    with pytest.raises(IntegrityError, match="2 problems") as caught:
        fetch(hub, revision)
    assert "model.safetensors" in caught.value.message
    assert "vocab.txt" in caught.value.message


def test_a_link_out_of_the_cache_is_not_followed(
    hub: Hub, revision: Revision, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("precious")
    link = fetch(hub, revision) / "config.json"
    link.unlink()
    link.symlink_to(mine)
    with pytest.raises(IntegrityError):
        fetch(hub, revision)
    assert mine.read_text() == "precious"
    assert not link.is_symlink()


@pytest.mark.parametrize("name", ["model.safetensors", "hubmerge.json"])
def test_a_bit_flipped_on_the_way(hub: Hub, revision: Revision, proxy: Proxy, name: str) -> None:
    proxy.fail(f"GET .*/resolve/.*/{name}", flip_bit, times=2)
    with pytest.raises(IntegrityError, match=name):
        fetch(hub, revision)
    with pytest.raises(IntegrityError, match=name):
        read_file(hub, revision, name)
    assert names(fetch(hub, revision)) >= {name}


def test_a_body_cut_short_is_fetched_on(hub: Hub, revision: Revision, proxy: Proxy) -> None:
    proxy.fail("GET .*/resolve/.*/model.safetensors", cut_short)
    assert names(fetch(hub, revision)) >= {"model.safetensors"}


def test_a_body_that_is_always_short_is_not_taken(
    hub: Hub, revision: Revision, proxy: Proxy
) -> None:
    proxy.fail("GET .*/resolve/.*/model.safetensors", say(b"short"), times=99)
    with pytest.raises(HubUnreachable, match="downloading"):
        fetch(hub, revision)
    assert not list(hub.cache.rglob("model.safetensors"))


def test_a_hub_that_fails_once_on_each_file(hub: Hub, revision: Revision, proxy: Proxy) -> None:
    for name in names(fetch(hub, revision)):
        proxy.fail(f"GET .*/resolve/.*/{name}".replace("[", r"\["), status(503))
    for blob in hub.cache.rglob("blobs/*"):
        blob.unlink()
    assert "model.safetensors" in names(fetch(hub, revision))


@pytest.mark.parametrize(
    "path", ["../config.json", "/etc/config.json", "a\\..\\b.json", "x\x1b.json", "a//b.json"]
)
def test_hostile_paths_are_refused(
    hub: Hub, revision: Revision, proxy: Proxy, path: str, tmp_path: Path
) -> None:
    told = [{"type": "file", "path": path, "size": 2, "oid": "a" * 40}]
    proxy.fail("GET .*/tree/", say(json.dumps(told).encode()))
    with pytest.raises(IntegrityError, match="no folder may hold"):
        fetch(hub, revision)
    assert not hub.cache.exists()


def test_a_manifest_that_fills_memory_is_not_read(
    hub: Hub, revision: Revision, proxy: Proxy
) -> None:
    told = [{"type": "file", "path": "hubmerge.json", "size": 1 << 40, "oid": "a" * 40}]
    proxy.fail("POST .*/paths-info/", say(json.dumps(told).encode()))
    with pytest.raises(IntegrityError, match="no small file"):
        read_file(hub, revision, "hubmerge.json")
    assert proxy.count("/resolve/") == 0


def test_a_file_that_is_not_there(hub: Hub, revision: Revision) -> None:
    assert read_file(hub, revision, "missing.json") is None
    assert read_file(hub, revision, "checkpoint-2") is None


def test_a_revision_without_a_model(hub: Hub, repo: str, api: HfApi) -> None:
    with pytest.raises(NotOnHub, match="holds no model"):
        fetch(hub, resolve(hub, parse_ref(repo)))


def test_pickles_alone_are_named(hub: Hub, repo: str, folder: Folder) -> None:
    pickled = folder(4, **{"pytorch_model.bin": "pickle"})
    (pickled / "model.safetensors").unlink()
    publish(hub, step_of_run(repo, pickled, 4))
    with pytest.raises(NotOnHub, match=r"only as pickles \(pytorch_model.bin\)"):
        fetch(hub, resolve(hub, parse_ref(f"{repo}@step4")))


def test_a_folder_that_is_not_there(hub: Hub, repo: str, revision: Revision) -> None:
    with pytest.raises(HubmergeError, match="no such revision or file"):
        fetch(hub, resolve(hub, parse_ref(f"hf://{repo}@step4/nowhere")))
