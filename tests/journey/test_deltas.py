"""Steps stored as deltas to their base, and opened as if they were whole."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi
from safetensors.numpy import load_file, save_file

from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError, NoAccess
from hubmerge.flows.deltas import store_as_deltas
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch
from hubmerge.hub.publish import Publication, ensure_repo, publish
from hubmerge.hub.resolve import resolve
from hubmerge.manifest import NAME, files_digest
from hubmerge.opening.delta import TOLD
from hubmerge.opening.references import open_ref, read_local_manifest
from hubmerge.refs import ModelRef
from hubmerge.weights import delta_file
from tests.hub.conftest import tags
from tests.hub.proxy import proxied, status
from tests.journey.conftest import Command, World

_numbers = itertools.count(1)


@pytest.fixture
def api(world: World) -> HfApi:
    return HfApi(endpoint=world.server.url, token=world.server.token)


@pytest.fixture
def hub(world: World, tmp_path: Path) -> Hub:
    return Hub(world.server.url, world.server.token, tmp_path / "cache", "the test Hub")


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def deltas(hubmerge: Command) -> str:
    """The id of a new repository with demo/mnist at step 4 as a delta."""
    repo = f"keep/deltas{next(_numbers)}"
    said = hubmerge("retain", "demo/mnist", "--as-delta", "--to", repo, "--steps", "4")
    assert said.code == 0, said.err
    return repo


def test_a_step_as_a_delta_takes_half_and_opens_as_before(
    deltas: str, hubmerge: Command, hub: Hub
) -> None:
    original = open_ref(hub, ModelRef("demo/mnist", revision="step4"))
    opened = open_ref(hub, ModelRef(deltas, revision="step4"))
    told = json.loads((fetch(hub, opened.revision) / TOLD).read_text())
    ours, theirs = (load_file(one.checkpoint.weight_files()[0]) for one in (original, opened))
    assert ours.keys() == theirs.keys()
    errors = [np.abs(ours[name].astype(np.float64) - theirs[name]).max() for name in ours]
    assert max(errors) == told["rounding"]["absolute"] > 0
    assert told["rounding"]["relative"] < 2**-8
    assert told["rounding"]["exact"] is False
    assert told["original"]["sha"] == original.revision.sha
    assert opened.manifest is not None
    assert original.manifest is not None
    assert opened.manifest.step == original.manifest.step == 4
    assert opened.digest == files_digest(told["files"]) != original.digest
    whole = original.checkpoint.weight_files()[0].stat().st_size
    stored = (fetch(hub, opened.revision) / delta_file.NAME).stat().st_size
    assert stored < 0.51 * whole


def test_its_card_says_what_it_is(deltas: str, hub: Hub) -> None:
    opened = open_ref(hub, ModelRef("demo/mnist", revision="step4"))
    text = (fetch(hub, resolve(hub, ModelRef(deltas, revision="step4"))) / "README.md").read_text()
    data = yaml.safe_load(text.split("---")[1])
    assert data["base_model"] == "hubmerge/tiny-clip"
    assert data["license"] == opened.licence
    assert "not weights to be loaded" in text
    assert f"hubmerge eval {deltas}@step4" in text
    assert open_ref(hub, ModelRef(deltas, revision="step4")).licence == opened.licence


def test_whatever_opens_a_revision_takes_a_delta(
    deltas: str, hubmerge: Command, tmp_path: Path
) -> None:
    words = ("--tasks", "mini-mnist", "--split", "validation", "--json")
    before = hubmerge("eval", "demo/mnist@step4", *words)
    after = hubmerge("eval", f"{deltas}@step4", *words)
    assert after.code == 0, after.err
    gap = after.data[0]["value"] - before.data[0]["value"]
    assert abs(gap) < 0.01
    out = tmp_path / "merged"
    said = hubmerge("merge", f"{deltas}@step4", "demo/hebrew@step4", "--method", "average",
                    "--out", out)  # fmt: skip
    assert said.code == 0, said.err
    manifest = read_local_manifest(out)
    assert manifest is not None
    assert manifest.experts[0].label == f"{deltas}@step4"


def test_the_same_delta_is_the_same_commit(
    deltas: str, hubmerge: Command, api: HfApi, hub: Hub
) -> None:
    before = tags(api, deltas)
    again = hubmerge("retain", "demo/mnist", "--as-delta", "--to", deltas, "--steps", "4", "--json")
    assert again.code == 0, again.err
    assert again.data[0]["commit"] == before["step4"] == tags(api, deltas)["step4"]
    other = f"{deltas}-b"
    hubmerge("retain", "demo/mnist", "--as-delta", "--to", other, "--steps", "4")
    ours, theirs = (
        fetch(hub, resolve(hub, ModelRef(r, revision="step4"))) for r in (deltas, other)
    )
    for name in (delta_file.NAME, TOLD, NAME):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_an_untagged_delta_is_tagged_by_the_next_run(
    hubmerge: Command, hub: Hub, world: World, api: HfApi, tmp_path: Path
) -> None:
    repo = f"keep/deltas{next(_numbers)}"
    with proxied(hub.endpoint) as proxy:
        behind = dataclasses.replace(hub, endpoint=proxy.url, deadline_s=20.0)
        proxy.fail("POST .*/tag/", status(403))
        with pytest.raises(NoAccess):
            store_as_deltas(behind, "demo/mnist", repo, [4], world.home, silent)
    assert tags(api, repo) == {}
    assert not list(world.home.glob(".delta-*"))
    stored = store_as_deltas(hub, "demo/mnist", repo, [4], world.home, silent)
    assert tags(api, repo) == {"step4": stored[0].commit}
    deltas = [one for one in api.list_repo_commits(repo) if "Step 4" in one.title]
    assert len(deltas) == 1


def test_a_delta_is_restored_from_what_was_published_before_its_tag_stands(
    hub: Hub, world: World, tmp_path: Path
) -> None:
    repo = f"keep/deltas{next(_numbers)}"
    with proxied(hub.endpoint) as proxy:
        behind = dataclasses.replace(hub, endpoint=proxy.url, cache=tmp_path / "another")
        store_as_deltas(behind, "demo/mnist", repo, [4], world.home, silent)
    seen = [request for request in proxy.seen if repo in request]
    [tagged] = [place for place, request in enumerate(seen) if "/tag/" in request]
    read = [place for place, request in enumerate(seen) if f"GET /{repo}/resolve/" in request
            and delta_file.NAME in request]  # fmt: skip
    assert read
    assert max(read) < tagged


def test_what_is_found_wanting_is_not_tagged(
    deltas: str, hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    repo = f"keep/wanting{next(_numbers)}"
    ensure_repo(hub, repo)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")

    def refuse(commit: str) -> None:
        raise IntegrityError(f"{commit} is wanting.")

    with pytest.raises(IntegrityError, match="wanting"):
        publish(hub, Publication(repo, tmp_path / "folder", "One", {"n": "1"}, "step1"), refuse)
    assert tags(api, repo) == {}


def copied(hub: Hub, deltas: str, tmp_path: Path) -> Path:
    """The published delta as a local folder that may be damaged."""
    folder = tmp_path / "delta"
    shutil.copytree(fetch(hub, resolve(hub, ModelRef(deltas, revision="step4"))), folder)
    return folder


def resealed(folder: Path, **change: Any) -> None:
    """Change delta.json, and let the manifest vouch for the folder as it is now."""
    told = json.loads((folder / TOLD).read_text()) | change
    (folder / TOLD).write_text(json.dumps(told))
    manifest = read_local_manifest(folder)
    assert manifest is not None
    vouched = {name: hash_file(folder / name) for name in manifest.files}
    (folder / NAME).write_bytes(manifest.with_files(vouched).to_bytes())


def restored_anew(world: World) -> None:
    shutil.rmtree(world.home / "restored", ignore_errors=True)


def test_a_damaged_delta_is_refused(
    deltas: str, hubmerge: Command, hub: Hub, world: World, tmp_path: Path
) -> None:
    folder = copied(hub, deltas, tmp_path)
    raw = bytearray((folder / delta_file.NAME).read_bytes())
    raw[-1] ^= 1
    (folder / delta_file.NAME).write_bytes(raw)
    with pytest.raises(IntegrityError, match="vouches"):
        open_ref(hub, ModelRef(path=folder))
    resealed(folder)
    restored_anew(world)
    with pytest.raises(IntegrityError, match="does not restore"):
        open_ref(hub, ModelRef(path=folder))
    assert not list((world.home / "restored").glob("*"))
    (folder / NAME).unlink()
    with pytest.raises(IntegrityError, match="no manifest vouches"):
        open_ref(hub, ModelRef(path=folder))


def test_another_base_is_refused(
    deltas: str, hubmerge: Command, hub: Hub, world: World, tmp_path: Path
) -> None:
    folder = copied(hub, deltas, tmp_path)
    told = json.loads((folder / TOLD).read_text())
    restored_anew(world)
    resealed(folder, base={**told["base"], "digest": "0" * 64})
    with pytest.raises(IntegrityError, match="another base than its manifest"):
        open_ref(hub, ModelRef(path=folder))
    other = resolve(hub, ModelRef("demo/hebrew", revision="step4"))
    resealed(folder, base={**told["base"], "label": "demo/hebrew@step4", "sha": other.sha})
    with pytest.raises(IntegrityError, match=told["base"]["digest"]):
        open_ref(hub, ModelRef(path=folder))


def test_a_delta_to_itself_is_refused(
    deltas: str, hubmerge: Command, hub: Hub, world: World, tmp_path: Path
) -> None:
    folder = copied(hub, deltas, tmp_path)
    told = json.loads((folder / TOLD).read_text())
    sha = resolve(hub, ModelRef(deltas, revision="step4")).sha
    restored_anew(world)
    resealed(folder, base={**told["base"], "label": f"{deltas}@step4", "sha": sha})
    with pytest.raises(IntegrityError, match="a delta itself"):
        open_ref(hub, ModelRef(path=folder))


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b", "..", ".ssh", "-rf", "a\\b"])
def test_a_delta_names_no_file_elsewhere(
    deltas: str, hubmerge: Command, hub: Hub, world: World, tmp_path: Path, name: str
) -> None:
    folder = copied(hub, deltas, tmp_path)
    told = json.loads((folder / TOLD).read_text())
    pieces = [{**piece, "file": name} for piece in told["pieces"]]
    resealed(folder, files={name: "0" * 64}, pieces=pieces)
    restored_anew(world)
    with pytest.raises(IntegrityError, match="is not the name of a file"):
        open_ref(hub, ModelRef(path=folder))
    assert not (world.home / "restored").exists()


def test_a_spoilt_restored_copy_is_made_anew(
    deltas: str, hubmerge: Command, hub: Hub, world: World
) -> None:
    opened = open_ref(hub, ModelRef(deltas, revision="step4"))
    file = opened.checkpoint.weight_files()[0]
    digest = hash_file(file)
    assert file.is_relative_to(world.home / "restored")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert open_ref(hub, ModelRef(deltas, revision="step4")).folder == opened.folder
    assert hash_file(file) == digest


def test_half_precision_saves_nothing_and_says_so(
    hubmerge: Command, hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    source = fetch(hub, resolve(hub, ModelRef("demo/mnist", revision="step4")))
    shutil.copytree(source, folder)
    [name] = [path.name for path in folder.glob("*.safetensors")]
    tensors = load_file(folder / name)
    save_file({n: t.astype(ml_dtypes.bfloat16) for n, t in tensors.items()}, folder / name)
    manifest = read_local_manifest(folder)
    assert manifest is not None
    vouched = {n: hash_file(folder / n) for n in manifest.files}
    (folder / NAME).write_bytes(manifest.with_files(vouched).to_bytes())
    repo = f"keep/half{next(_numbers)}"
    ensure_repo(hub, repo)
    publish(hub, Publication(repo, folder, "Step 4", {"step": "4"}, "step4"))
    said = hubmerge("retain", repo, "--as-delta", "--to", f"{repo}-deltas")
    assert said.code == 2
    assert "is BF16: as a delta it would take as many bytes" in said.err
    assert not api.repo_exists(f"{repo}-deltas")
