"""A mixture of experts on a Hub: published, fetched unchanged, verified, its experts merged."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file

from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.manifest import MANIFEST_JSON, Manifest, files_digest
from hubmerge.opening.bases import open_base
from hubmerge.opening.publication import (
    check_repository_kind,
    finalize_folder,
    folder_publication,
    step_publication,
)
from hubmerge.opening.references import open_ref, pin, read_local_manifest, source_of
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.routing import ROUTING_JSON as ROUTING
from hubmerge.routing import Flops, MoeCost, Parameters, Routing
from hubmerge.training_curve import ValidationPoint
from hubmerge.weights.moe_config import EXPERTS_FOLDER, MOE_CONFIG, ROUTER_WEIGHTS
from tests.end_to_end.conftest import REPOS, WEIGHTS, Command
from tests.weights.adapters import save_adapter
from tests.weights.moes import EXPERT_NAMES, write_moe

LAYER = "visual.transformer.resblocks.0.mlp.c_fc"  # [256, 64] in the tiny CLIP
_numbers = itertools.count(1)


@pytest.fixture
def to() -> str:
    """The id of a repository that does not exist yet."""
    return f"demo/mixture{next(_numbers)}"


@pytest.fixture
def manifest(hub: Hub) -> Manifest:
    """The manifest of a mixture of the two published experts, without files."""
    experts = [open_ref(hub, ModelRef(repo, revision="step2")) for repo in REPOS]
    points = (ValidationPoint(0, None, 0.25, 8, 0.0), ValidationPoint(3, 1.5, 0.5, 8, 1e-5))
    return Manifest(
        kind="moe",
        base=source_of(open_ref(hub, ModelRef("hubmerge/tiny-clip"))),
        experts=tuple(source_of(expert) for expert in experts),
        method="moe",
        params={"top_k": 1},
        step=3,
        last_step=3,
        validation=points,
        run="d" * 64,
        command="hubmerge moerge",
        layout="hubmerge-moe",
    )


@pytest.fixture
def folder(manifest: Manifest, tmp_path: Path) -> Path:
    """A mixture with manifest and card, of adapters of the published base."""
    base = "hubmerge/tiny-clip"
    folder = write_moe(tmp_path / "mixture", base=base, digest=manifest.base.digest)
    for index, name in enumerate(EXPERT_NAMES):
        shutil.rmtree(folder / EXPERTS_FOLDER / name)
        rng = np.random.default_rng(index)
        save_adapter(
            folder / EXPERTS_FOLDER / name,
            {
                f"{LAYER}.lora_A.weight": rng.normal(size=(1, 64)).astype(np.float32),
                f"{LAYER}.lora_B.weight": rng.normal(size=(256, 1)).astype(np.float32),
            },
            base_model_name_or_path="hubmerge/tiny-clip",
        )
    (folder / EXPERTS_FOLDER / "mnist" / "README.md").write_text("An expert.")
    finalize_folder(folder, manifest)
    return folder


@pytest.fixture
def published(folder: Path, hub: Hub, to: str) -> str:
    """The repository with the mixture as step 3."""
    written = read_local_manifest(folder)
    assert written is not None
    ensure_repo(hub, to)
    publish(hub, step_publication(folder, written, to))
    return to


def read_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_manifest_lists_every_file_by_its_path(folder: Path) -> None:
    written = read_local_manifest(folder)
    assert written is not None
    assert list(written.files) == [
        "experts/hebrew/adapter_config.json", "experts/hebrew/adapter_model.safetensors",
        "experts/mnist/README.md", "experts/mnist/adapter_config.json",
        "experts/mnist/adapter_model.safetensors", MOE_CONFIG, ROUTER_WEIGHTS,
    ]  # fmt: skip
    assert written.digest == files_digest(written.files)


def test_the_fetched_mixture_has_the_published_bytes(
    folder: Path, published: str, hub: Hub, tmp_path: Path
) -> None:
    uncached = dataclasses.replace(hub, cache=tmp_path / "empty")
    model = open_ref(uncached, parse_ref(f"{published}@step3"))
    assert (model.checkpoint.kind, model.revision.step) == ("moe", 3)
    local, fetched = read_files(folder), read_files(model.folder)
    assert local.keys() - fetched.keys() == {"curve.csv", "curve.png"}
    assert fetched == {name: local[name] for name in fetched}
    written = read_local_manifest(folder)
    assert written is not None
    assert fetched.keys() == {*written.files, MANIFEST_JSON, "README.md"}
    assert model.digest == written.digest
    assert model.checkpoint.digest() == open_ref(hub, ModelRef(path=folder)).checkpoint.digest()


def test_base_and_files_without_a_manifest(folder: Path, hub: Hub) -> None:
    written = read_local_manifest(folder)
    assert written is not None
    for name in (MANIFEST_JSON, "README.md", "experts/mnist/README.md"):
        (folder / name).unlink()
    model = open_ref(hub, ModelRef(path=folder))
    assert model.files.keys() == written.files.keys() - {"experts/mnist/README.md"}
    base = open_base(hub, model)
    assert base is not None
    assert base.digest == written.base.digest


def test_a_configuration_with_another_base_is_refused(
    folder: Path, manifest: Manifest, hub: Hub, hubmerge: Command
) -> None:
    config = folder / MOE_CONFIG
    config.write_text(config.read_text().replace(manifest.base.digest, "1" * 64))
    # As if somebody changed the base and wrote a new manifest.
    for name in (MANIFEST_JSON, "README.md"):
        (folder / name).unlink()
    finalize_folder(folder, manifest)
    with pytest.raises(IntegrityError, match="is for another base"):
        open_base(hub, open_ref(hub, ModelRef(path=folder)))
    result = hubmerge("verify", str(folder))
    assert (result.code, "name different bases" in result.out + result.err) == (3, True)


def test_the_revision_has_a_tag_and_a_title(published: str, api: HfApi, manifest: Manifest) -> None:
    (tag,) = api.list_repo_refs(published).tags
    (newest, *_) = api.list_repo_commits(published)
    assert (tag.name, tag.target_commit) == ("step3", newest.commit_id)
    assert newest.title == "Mixture of 2 experts at step 3"
    assert f"hubmerge-run: {manifest.run}" in newest.message.splitlines()


def test_publishing_again_gives_the_same_commit(
    folder: Path, published: str, hub: Hub, api: HfApi
) -> None:
    written = read_local_manifest(folder)
    assert written is not None
    before = api.list_repo_refs(published).tags[0].target_commit
    assert publish(hub, step_publication(folder, written, published)) == before
    main = folder_publication(folder, written, ModelRef(published))
    assert main.title == "Mixture of 2 experts at step 3"
    assert "hubmerge-recipe" not in main.description


def test_measurements_are_not_in_the_manifest(folder: Path, manifest: Manifest) -> None:
    written = read_local_manifest(folder)
    tasks = tuple(str(expert.task) for expert in manifest.experts)
    rows = ((0.75, 0.25),), ((0.5, 0.5),)
    cost = MoeCost(Parameters(9, 9, 12, 3), Flops(9, 9, 11))
    routing = Routing("validation", tasks, EXPERT_NAMES, (LAYER,), rows, cost)
    (folder / ROUTING).write_bytes(routing.to_bytes())
    for name in (MANIFEST_JSON, "README.md"):
        (folder / name).unlink()
    finalize_folder(folder, manifest)
    assert read_local_manifest(folder) == written
    assert written is not None
    step_publication(folder, written, "demo/none")
    assert (folder / "routing.csv").is_file()
    assert (folder / "routing.png").read_bytes().startswith(b"\x89PNG")
    assert read_local_manifest(folder) == written


@pytest.mark.parametrize("subfolder", ["experts/mnist", "experts/new", "."])
def test_weights_that_the_manifest_does_not_list_are_refused(
    subfolder: str, folder: Path, hub: Hub, hubmerge: Command
) -> None:
    (folder / subfolder).mkdir(exist_ok=True)
    shutil.copyfile(folder / ROUTER_WEIGHTS, folder / subfolder / "more.safetensors")
    with pytest.raises(IntegrityError, match=r"do not match the SHA-256 in its hubmerge\.json"):
        open_ref(hub, ModelRef(path=folder))
    result = hubmerge("verify", str(folder))
    assert result.code == 3
    assert "more.safetensors" in result.err


@pytest.mark.parametrize("name", [ROUTER_WEIGHTS, "experts/mnist/adapter_config.json"])
def test_a_changed_file_is_found(name: str, folder: Path, hubmerge: Command) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    result = hubmerge("verify", str(folder))
    assert result.code == 3
    assert f"{name} has SHA-256" in result.err


def test_a_mixture_is_verified_but_not_rebuilt(
    folder: Path, published: str, manifest: Manifest, hubmerge: Command
) -> None:
    labels = {source.label for source in (manifest.base, *manifest.experts)}
    for name in (str(folder), f"{published}@step3"):
        result = hubmerge("verify", name, "--json")
        assert result.code == 0, result.err
        checks = {check["what"]: check["found"] for check in result.data}
        assert checks[MOE_CONFIG] == "2 experts, 5 tensors"
        assert checks.keys() >= {ROUTER_WEIGHTS, *labels}
    result = hubmerge("verify", str(folder), "--rebuild")
    assert result.code == 2
    assert "is a mixture: it has no lock and is not merged" in result.err
    assert "Train it again with `hubmerge moerge`" in result.err


def test_a_repository_holds_one_kind_of_model(published: str, hub: Hub) -> None:
    check_repository_kind(hub, published, "moe")
    with pytest.raises(IntegrityError, match="holds mixture files on main"):
        check_repository_kind(hub, published, "expert")
    with pytest.raises(IntegrityError, match="holds expert files on main"):
        check_repository_kind(hub, REPOS[0], "moe")


def test_a_mixture_as_an_expert_is_refused_with_the_names_of_its_experts(
    folder: Path, published: str, hubmerge: Command, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    for name, experts in (
        (f"{published}@step3", f"hf://{published}@step3/experts"),
        (str(folder), f"{folder}/experts"),
    ):
        result = hubmerge("merge", name, "demo/mnist@step2", "--out", out)
        assert result.code == 2, result.err
        words = " ".join(result.err.split())
        assert "is a mixture of experts, not an expert" in words
        assert f"{experts}/hebrew or {experts}/mnist" in result.err.replace("\n", " ")
    result = hubmerge("select", published, "demo/mnist", "--target", "average")
    assert result.code == 2
    assert "is a mixture of experts, not an expert" in result.err


def test_experts_of_a_mixture_can_be_merged(
    folder: Path, published: str, hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    expert = f"hf://{published}@step3/experts/mnist"
    model = open_ref(hub, parse_ref(expert))
    assert model.checkpoint.kind == "lora"
    result = hubmerge(
        "merge", expert, f"hf://{published}@step3/experts/hebrew", "--method", "average",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.code == 0, result.err
    base = load_file(open_ref(hub, ModelRef("hubmerge/tiny-clip")).folder / WEIGHTS)
    merged = load_file(tmp_path / "out" / WEIGHTS)
    change = np.zeros((256, 64), np.float32)
    for name in EXPERT_NAMES:
        tensors = load_file(folder / EXPERTS_FOLDER / name / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{LAYER}.lora_{part}.weight"] for part in "AB")
        change += b @ a / 2
    expected = base[f"{LAYER}.weight"] + change
    np.testing.assert_allclose(merged[f"{LAYER}.weight"], expected, atol=1e-5)
    merge = pin(hub, ModelRef(path=tmp_path / "out")).manifest
    assert merge is not None
    assert [source.folder for source in merge.experts] == ["experts/mnist", "experts/hebrew"]


def test_the_steps_of_a_mixture_are_listed(published: str, hubmerge: Command) -> None:
    (row,) = hubmerge("steps", published, "--json").data
    assert (row["step"], row["found"], row["validation"]) == (3, "tag", 0.5)


def test_folders_of_mixtures_are_published(
    folder: Path, hubmerge: Command, hub: Hub, api: HfApi, to: str, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "run" / "step3")
    for _ in range(2):
        result = hubmerge("publish", str(tmp_path / "run"), "--to", to, "--json")
        assert result.code == 0, result.err
    assert "experts/mnist/adapter_model.safetensors" in api.list_repo_files(to, revision="step3")
    assert open_ref(hub, parse_ref(f"{to}@step3")).checkpoint.kind == "moe"
    shutil.copytree(folder / EXPERTS_FOLDER / "mnist", tmp_path / "run" / "step4")
    result = hubmerge("publish", str(tmp_path / "run"), "--to", to)
    assert result.code == 1
    assert "holds experts and mixtures" in result.err


def test_a_mixture_is_not_stored_as_a_delta(published: str, hubmerge: Command, to: str) -> None:
    result = hubmerge("retain", published, "--as-delta", "--to", to)
    assert result.code == 2, result.err
    assert "is a mixture of experts, whose experts are small adapters already" in result.err


def test_retention_of_a_mixture_is_planned(published: str, folder: Path, hubmerge: Command) -> None:
    result = hubmerge("retain", published, "--json")
    assert result.code == 0, result.err
    (verdict,) = [item for item in result.data["verdicts"] if item["name"] == "step3"]
    adapters = (folder / EXPERTS_FOLDER).rglob("*.safetensors")
    assert verdict["contents"].keys() >= {hash_file(path) for path in adapters}
