"""Downloads: only allowed files, only the given folder, only the bytes that the Hub lists."""

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
from tests.hub.conftest import Folder, step_publication
from tests.hub.proxy import Proxy, cut_short, flip_bit, replace_body, status


@pytest.fixture
def revision(hub: Hub, repo: str, folder: Folder) -> Revision:
    """A published step, and files next to it that must not be downloaded."""
    extra = {
        "modeling_evil.py": "canary", "pytorch_model.bin": "pickle", "run.sh": "canary",
        "optimizer.pt": "pickle", "vocab.txt": "words", "checkpoint-2/config.json": "{}",
        "1_Pooling/config.json": "{}", "onnx/config.json": "{}", "LICENSE": "licence",
        "weird[1].json": "{}",
    }  # fmt: skip
    publish(hub, step_publication(repo, folder(4, **extra), 4))
    return resolve(hub, parse_ref(f"{repo}@step4"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_only_weights_configurations_and_text(hub: Hub, revision: Revision) -> None:
    assert names(fetch(hub, revision)) == {
        "README.md", "config.json", "hubmerge.json", "model.safetensors", "vocab.txt",
        "weird[1].json", "1_Pooling", "LICENSE",
    }  # fmt: skip


def test_only_the_given_folder(hub: Hub, repo: str, revision: Revision) -> None:
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


def publish_and_fetch(hub: Hub, folder: Path, repo: str, inner: str = "") -> set[str]:
    """Publish a folder as step 4; the files of it, or of a folder in it, that are downloaded."""
    publish(hub, step_publication(repo, folder, 4))
    local = fetch(hub, resolve(hub, parse_ref(f"hf://{repo}@step4{inner}")))
    return {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}


def test_a_moe_with_its_experts(hub: Hub, repo: str, folder: Folder) -> None:
    moe = folder(4, **EXPERT, **{"moe_config.json": "{}"})
    assert publish_and_fetch(hub, moe, repo) == {
        "README.md", "config.json", "hubmerge.json", "model.safetensors", "moe_config.json",
        "experts/a/adapter_config.json", "experts/a/adapter_model.safetensors",
    }  # fmt: skip


def test_one_expert_of_a_moe(hub: Hub, repo: str, folder: Folder) -> None:
    moe = folder(4, **EXPERT, **{"moe_config.json": "{}"})
    assert publish_and_fetch(hub, moe, repo, "/experts/a") == {
        "adapter_config.json", "adapter_model.safetensors", "deeper/config.json",
    }  # fmt: skip


def test_a_moe_in_a_folder(hub: Hub, repo: str, folder: Folder) -> None:
    inside = {f"inside/{name}": text for name, text in {**EXPERT, "moe_config.json": "{}"}.items()}
    assert publish_and_fetch(hub, folder(4, **inside, **EXPERT), repo, "/inside") == {
        "moe_config.json", "experts/a/adapter_config.json", "experts/a/adapter_model.safetensors",
    }  # fmt: skip


def test_the_experts_folder_counts_only_in_a_moe(hub: Hub, repo: str, folder: Folder) -> None:
    assert publish_and_fetch(hub, folder(4, **EXPERT), repo) == {
        "README.md", "config.json", "hubmerge.json", "model.safetensors",
    }  # fmt: skip


def test_a_damaged_expert_is_downloaded_again(hub: Hub, repo: str, folder: Folder) -> None:
    name = "experts/a/adapter_model.safetensors"
    publish(hub, step_publication(repo, folder(4, **EXPERT, **{"moe_config.json": "{}"}), 4))
    moe = resolve(hub, parse_ref(f"{repo}@step4"))
    file = fetch(hub, moe) / name
    file.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=f"{name} of .*@step4 is not what"):
        fetch(hub, moe)
    assert (fetch(hub, moe) / name).read_bytes() == b"weights"


def test_cached_files_are_not_requested_again(hub: Hub, revision: Revision, proxy: Proxy) -> None:
    first = fetch(hub, revision)
    proxy.fail("/resolve/", status(500), times=99)
    assert fetch(hub, revision) == first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])  # sha256, git's sha1
@pytest.mark.parametrize("damage", ["other bytes", "shorter"])
def test_a_damaged_file_in_the_cache_is_downloaded_again(
    hub: Hub, revision: Revision, name: str, damage: str
) -> None:
    folder = fetch(hub, revision)
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(original[:-1] + b"?" * (damage == "other bytes"))
    with pytest.raises(IntegrityError, match=f"{name} of .*@step4 is not what") as caught:
        fetch(hub, revision)
    assert caught.value.exit_code == 3
    assert not (folder / name).exists()
    assert (fetch(hub, revision) / name).read_bytes() == original


def test_all_damaged_files_are_named_in_one_error(hub: Hub, revision: Revision) -> None:
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
    outside = tmp_path / "outside.json"
    outside.write_text("text")
    link = fetch(hub, revision) / "config.json"
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(IntegrityError):
        fetch(hub, revision)
    assert outside.read_text() == "text"
    assert not link.is_symlink()


@pytest.mark.parametrize("name", ["model.safetensors", "hubmerge.json"])
def test_a_flipped_bit_is_an_error(hub: Hub, revision: Revision, proxy: Proxy, name: str) -> None:
    proxy.fail(f"GET .*/resolve/.*/{name}", flip_bit, times=2)
    with pytest.raises(IntegrityError, match=name):
        fetch(hub, revision)
    with pytest.raises(IntegrityError, match=name):
        read_file(hub, revision, name)
    assert names(fetch(hub, revision)) >= {name}


def test_a_body_that_was_cut_short_is_continued(hub: Hub, revision: Revision, proxy: Proxy) -> None:
    proxy.fail("GET .*/resolve/.*/model.safetensors", cut_short)
    assert names(fetch(hub, revision)) >= {"model.safetensors"}


def test_a_body_that_is_always_short_is_an_error(
    hub: Hub, revision: Revision, proxy: Proxy
) -> None:
    proxy.fail("GET .*/resolve/.*/model.safetensors", replace_body(b"short"), times=99)
    with pytest.raises(HubUnreachable, match="downloading"):
        fetch(hub, revision)
    assert not list(hub.cache.rglob("model.safetensors"))


def test_each_file_may_fail_once(hub: Hub, revision: Revision, proxy: Proxy) -> None:
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
    files = [{"type": "file", "path": path, "size": 2, "oid": "a" * 40}]
    proxy.fail("GET .*/tree/", replace_body(json.dumps(files).encode()))
    with pytest.raises(IntegrityError, match="unsafe file path"):
        fetch(hub, revision)
    assert not hub.cache.exists()


def test_a_huge_manifest_is_not_read(hub: Hub, revision: Revision, proxy: Proxy) -> None:
    files = [{"type": "file", "path": "hubmerge.json", "size": 1 << 40, "oid": "a" * 40}]
    proxy.fail("POST .*/paths-info/", replace_body(json.dumps(files).encode()))
    with pytest.raises(IntegrityError, match="is too large"):
        read_file(hub, revision, "hubmerge.json")
    assert proxy.count("/resolve/") == 0


def test_a_missing_file_is_none(hub: Hub, revision: Revision) -> None:
    assert read_file(hub, revision, "missing.json") is None
    assert read_file(hub, revision, "checkpoint-2") is None


def test_a_revision_without_a_model_is_an_error(hub: Hub, repo: str, api: HfApi) -> None:
    with pytest.raises(NotOnHub, match="has no model"):
        fetch(hub, resolve(hub, parse_ref(repo)))


def test_a_revision_with_pickles_only_is_an_error(hub: Hub, repo: str, folder: Folder) -> None:
    pickled = folder(4, **{"pytorch_model.bin": "pickle"})
    (pickled / "model.safetensors").unlink()
    publish(hub, step_publication(repo, pickled, 4))
    with pytest.raises(NotOnHub, match=r"only as pickles \(pytorch_model.bin\)"):
        fetch(hub, resolve(hub, parse_ref(f"{repo}@step4")))


def test_a_missing_folder_is_an_error(hub: Hub, repo: str, revision: Revision) -> None:
    with pytest.raises(HubmergeError, match="no such revision or file"):
        fetch(hub, resolve(hub, parse_ref(f"hf://{repo}@step4/nowhere")))
