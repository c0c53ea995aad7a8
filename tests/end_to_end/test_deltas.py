"""Steps stored as deltas to their base, and opened like complete checkpoints."""

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
from hubmerge.manifest import MANIFEST_JSON, files_digest
from hubmerge.opening.delta import DELTA_JSON
from hubmerge.opening.references import open_ref, read_local_manifest
from hubmerge.refs import ModelRef
from hubmerge.weights import delta_file
from tests.end_to_end.conftest import Command, LocalHub, run_hubmerge
from tests.hub.conftest import tags
from tests.hub.proxy import run_proxy, status

_numbers = itertools.count(1)


@pytest.fixture
def hub(local_hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(
        local_hub.server.url, lambda: local_hub.server.token, tmp_path / "cache", "the test Hub"
    )


def no_progress(label: str, done: int, total: int) -> None:
    pass


def weights_file(model: Any) -> Path:
    """Return the first weight file of an opened model."""
    checkpoint = model.checkpoint
    return Path(checkpoint.folder, checkpoint.weight_file_names()[0])


@pytest.fixture(scope="module")
def deltas(local_hub: LocalHub) -> str:
    """The id of a repository that has demo/mnist at step 4 as a delta; no test changes it."""
    repo = f"keep/deltas{next(_numbers)}"
    words = ("retain", "demo/mnist", "--as-delta", "--to", repo, "--steps", "4")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HUBMERGE_HOME", str(local_hub.home))
        result = run_hubmerge(*words)
    assert result.code == 0, result.err
    return repo


def test_a_delta_takes_half_the_bytes_and_opens_as_the_step(
    deltas: str, hubmerge: Command, hub: Hub
) -> None:
    original = open_ref(hub, ModelRef("demo/mnist", revision="step4"))
    opened = open_ref(hub, ModelRef(deltas, revision="step4"))
    fields = json.loads((fetch(hub, opened.revision) / DELTA_JSON).read_text())
    expected, restored = (load_file(weights_file(model)) for model in (original, opened))
    assert expected.keys() == restored.keys()
    errors = [
        np.abs(values.astype(np.float64) - restored[name]).max()
        for name, values in expected.items()
    ]
    assert max(errors) == fields["rounding"]["absolute"] > 0
    assert fields["rounding"]["relative"] < 2**-8
    assert fields["rounding"]["exact"] is False
    assert fields["original"]["sha"] == original.revision.sha
    assert opened.manifest is not None
    assert original.manifest is not None
    assert opened.manifest.step == original.manifest.step == 4
    assert opened.digest == files_digest(fields["files"]) != original.digest
    full_size = weights_file(original).stat().st_size
    delta_size = (fetch(hub, opened.revision) / delta_file.DELTA_WEIGHTS).stat().st_size
    assert delta_size < 0.51 * full_size


def test_the_card_explains_the_delta(deltas: str, hub: Hub) -> None:
    opened = open_ref(hub, ModelRef("demo/mnist", revision="step4"))
    text = (fetch(hub, resolve(hub, ModelRef(deltas, revision="step4"))) / "README.md").read_text()
    data = yaml.safe_load(text.split("---")[1])
    assert data["base_model"] == "hubmerge/tiny-clip"
    assert data["license"] == opened.licence
    assert "not weights to be loaded" in text
    assert f"hubmerge eval {deltas}@step4" in text
    assert open_ref(hub, ModelRef(deltas, revision="step4")).licence == opened.licence


def test_eval_and_merge_accept_a_delta(deltas: str, hubmerge: Command, tmp_path: Path) -> None:
    words = ("--tasks", "mini-mnist", "--split", "validation", "--json")
    step = hubmerge("eval", "demo/mnist@step4", *words)
    delta = hubmerge("eval", f"{deltas}@step4", *words)
    assert delta.code == 0, delta.err
    gap = delta.data[0]["value"] - step.data[0]["value"]
    assert abs(gap) < 0.01
    out = tmp_path / "merged"
    result = hubmerge("merge", f"{deltas}@step4", "demo/hebrew@step4", "--method", "average",
                    "--out", out)  # fmt: skip
    assert result.code == 0, result.err
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
    first, second = (
        fetch(hub, resolve(hub, ModelRef(repo, revision="step4"))) for repo in (deltas, other)
    )
    for name in (delta_file.DELTA_WEIGHTS, DELTA_JSON, MANIFEST_JSON):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_untagged_delta_is_tagged_by_the_next_run(
    hubmerge: Command, hub: Hub, local_hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    repo = f"keep/deltas{next(_numbers)}"
    with run_proxy(hub.endpoint) as proxy:
        proxied = dataclasses.replace(hub, endpoint=proxy.url, deadline_s=20.0)
        proxy.fail("POST .*/tag/", status(403))
        with pytest.raises(NoAccess):
            store_as_deltas(proxied, "demo/mnist", repo, [4], local_hub.home, no_progress)
    assert tags(api, repo) == {}
    assert not list(local_hub.home.glob(".delta-*"))
    stored = store_as_deltas(hub, "demo/mnist", repo, [4], local_hub.home, no_progress)
    assert tags(api, repo) == {"step4": stored[0].commit}
    titles = [commit.title for commit in api.list_repo_commits(repo)]
    assert len([title for title in titles if "Step 4" in title]) == 1


def test_an_uploaded_delta_is_restored_before_it_is_tagged(
    hub: Hub, local_hub: LocalHub, tmp_path: Path
) -> None:
    repo = f"keep/deltas{next(_numbers)}"
    with run_proxy(hub.endpoint) as proxy:
        proxied = dataclasses.replace(hub, endpoint=proxy.url, cache=tmp_path / "another")
        store_as_deltas(proxied, "demo/mnist", repo, [4], local_hub.home, no_progress)
    requests = [request for request in proxy.requests if repo in request]
    [tagged] = [index for index, request in enumerate(requests) if "/tag/" in request]
    downloads = [
        index
        for index, request in enumerate(requests)
        if f"GET /{repo}/resolve/" in request and delta_file.DELTA_WEIGHTS in request
    ]
    assert downloads
    assert max(downloads) < tagged


def test_a_commit_that_fails_the_check_is_not_tagged(
    deltas: str, hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    repo = f"keep/refused{next(_numbers)}"
    ensure_repo(hub, repo)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")

    def refuse(commit: str) -> None:
        raise IntegrityError(f"{commit} is incomplete.")

    with pytest.raises(IntegrityError, match="incomplete"):
        publish(hub, Publication(repo, tmp_path / "folder", "One", {"n": "1"}, "step1"), refuse)
    assert tags(api, repo) == {}


def copy_delta(hub: Hub, deltas: str, tmp_path: Path) -> Path:
    """Copy the published delta into a local folder that a test may change."""
    folder = tmp_path / "delta"
    shutil.copytree(fetch(hub, resolve(hub, ModelRef(deltas, revision="step4"))), folder)
    return folder


def change_delta(folder: Path, **changes: Any) -> None:
    """Change fields of delta.json, and update the digests in the manifest."""
    fields = json.loads((folder / DELTA_JSON).read_text()) | changes
    (folder / DELTA_JSON).write_text(json.dumps(fields))
    update_manifest(folder)


def update_manifest(folder: Path) -> None:
    """Replace the digests in the manifest by those of the files as they are now."""
    manifest = read_local_manifest(folder)
    assert manifest is not None
    digests = {name: hash_file(folder / name) for name in manifest.files}
    (folder / MANIFEST_JSON).write_bytes(manifest.with_files(digests).to_bytes())


def delete_restored(local_hub: LocalHub) -> None:
    shutil.rmtree(local_hub.home / "restored", ignore_errors=True)


def test_a_damaged_delta_is_refused(
    deltas: str, hubmerge: Command, hub: Hub, local_hub: LocalHub, tmp_path: Path
) -> None:
    folder = copy_delta(hub, deltas, tmp_path)
    raw = bytearray((folder / delta_file.DELTA_WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (folder / delta_file.DELTA_WEIGHTS).write_bytes(raw)
    with pytest.raises(IntegrityError, match="do not match the SHA-256"):
        open_ref(hub, ModelRef(path=folder))
    change_delta(folder)
    delete_restored(local_hub)
    with pytest.raises(IntegrityError, match="does not restore"):
        open_ref(hub, ModelRef(path=folder))
    assert not list((local_hub.home / "restored").glob("*"))
    (folder / MANIFEST_JSON).unlink()
    with pytest.raises(IntegrityError, match="is not listed in its manifest"):
        open_ref(hub, ModelRef(path=folder))


def test_a_delta_to_another_base_is_refused(
    deltas: str, hubmerge: Command, hub: Hub, local_hub: LocalHub, tmp_path: Path
) -> None:
    folder = copy_delta(hub, deltas, tmp_path)
    fields = json.loads((folder / DELTA_JSON).read_text())
    delete_restored(local_hub)
    change_delta(folder, base={**fields["base"], "digest": "0" * 64})
    with pytest.raises(IntegrityError, match="another base than its manifest"):
        open_ref(hub, ModelRef(path=folder))
    other = resolve(hub, ModelRef("demo/hebrew", revision="step4"))
    change_delta(folder, base={**fields["base"], "label": "demo/hebrew@step4", "sha": other.sha})
    with pytest.raises(IntegrityError, match=fields["base"]["digest"]):
        open_ref(hub, ModelRef(path=folder))


def test_a_delta_whose_base_is_a_delta_is_refused(
    deltas: str, hubmerge: Command, hub: Hub, local_hub: LocalHub, tmp_path: Path
) -> None:
    folder = copy_delta(hub, deltas, tmp_path)
    fields = json.loads((folder / DELTA_JSON).read_text())
    sha = resolve(hub, ModelRef(deltas, revision="step4")).sha
    delete_restored(local_hub)
    change_delta(folder, base={**fields["base"], "label": f"{deltas}@step4", "sha": sha})
    with pytest.raises(IntegrityError, match="a delta itself"):
        open_ref(hub, ModelRef(path=folder))


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b", "..", ".ssh", "-rf", "a\\b"])
def test_a_delta_may_not_name_a_file_outside_the_folder(
    deltas: str, hubmerge: Command, hub: Hub, local_hub: LocalHub, tmp_path: Path, name: str
) -> None:
    folder = copy_delta(hub, deltas, tmp_path)
    fields = json.loads((folder / DELTA_JSON).read_text())
    pieces = [{**piece, "file": name} for piece in fields["pieces"]]
    change_delta(folder, files={name: "0" * 64}, pieces=pieces)
    delete_restored(local_hub)
    with pytest.raises(IntegrityError, match="is not the name of a file"):
        open_ref(hub, ModelRef(path=folder))
    assert not (local_hub.home / "restored").exists()


def test_a_damaged_restored_copy_is_replaced(
    deltas: str, hubmerge: Command, hub: Hub, local_hub: LocalHub
) -> None:
    opened = open_ref(hub, ModelRef(deltas, revision="step4"))
    file = weights_file(opened)
    digest = hash_file(file)
    assert file.is_relative_to(local_hub.home / "restored")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert open_ref(hub, ModelRef(deltas, revision="step4")).folder == opened.folder
    assert hash_file(file) == digest


def test_a_half_precision_step_is_refused(
    hubmerge: Command, hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    source = fetch(hub, resolve(hub, ModelRef("demo/mnist", revision="step4")))
    shutil.copytree(source, folder)
    [name] = [path.name for path in folder.glob("*.safetensors")]
    tensors = load_file(folder / name)
    save_file({n: t.astype(ml_dtypes.bfloat16) for n, t in tensors.items()}, folder / name)
    update_manifest(folder)
    repo = f"keep/half{next(_numbers)}"
    ensure_repo(hub, repo)
    publish(hub, Publication(repo, folder, "Step 4", {"step": "4"}, "step4"))
    result = hubmerge("retain", repo, "--as-delta", "--to", f"{repo}-deltas")
    assert result.code == 2
    assert "is BF16: as a delta it would take as many bytes" in result.err
    assert not api.repo_exists(f"{repo}-deltas")
