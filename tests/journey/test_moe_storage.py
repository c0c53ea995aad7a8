"""A mixture on a real Hub: sealed, published, fetched bit-equal, verified, used by its parts."""

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
from hubmerge.manifest import NAME, Manifest, Point, files_digest
from hubmerge.opening.bases import base_of
from hubmerge.opening.publication import check_room, folder_publication, seal, step_publication
from hubmerge.opening.references import open_ref, pin, read_local_manifest, source_of
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.routing import NAME as ROUTING
from hubmerge.routing import Cost, Flops, Parameters, Routing
from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER
from tests.journey.conftest import REPOS, WEIGHTS, Command
from tests.weights.adapters import put_adapter
from tests.weights.mixtures import EXPERTS_OF, put_mixture

LAYER = "visual.transformer.resblocks.0.mlp.c_fc"  # [256, 64] in the tiny CLIP
_numbers = itertools.count(1)


@pytest.fixture
def to() -> str:
    """The id of a repository that is still to be made."""
    return f"demo/mixture{next(_numbers)}"


@pytest.fixture
def manifest(hub: Hub) -> Manifest:
    """What is said of a mixture of the world's two experts, before it is sealed."""
    experts = [open_ref(hub, ModelRef(repo, revision="step2")) for repo in REPOS]
    points = (Point(0, None, 0.25, 8, 0.0), Point(3, 1.5, 0.5, 8, 1e-5))
    return Manifest(
        kind="moe",
        base=source_of(open_ref(hub, ModelRef("hubmerge/tiny-clip"))),
        experts=tuple(source_of(one) for one in experts),
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
    """A sealed mixture, of adapters of the world's base."""
    base = "hubmerge/tiny-clip"
    made = put_mixture(tmp_path / "mixture", base=base, digest=manifest.base.digest)
    for place, name in enumerate(EXPERTS_OF):
        shutil.rmtree(made / EXPERTS / name)
        rng = np.random.default_rng(place)
        put_adapter(
            made / EXPERTS / name,
            {
                f"{LAYER}.lora_A.weight": rng.normal(size=(1, 64)).astype(np.float32),
                f"{LAYER}.lora_B.weight": rng.normal(size=(256, 1)).astype(np.float32),
            },
            base_model_name_or_path="hubmerge/tiny-clip",
        )
    (made / EXPERTS / "mnist" / "README.md").write_text("An expert.")
    seal(made, manifest)
    return made


@pytest.fixture
def published(folder: Path, hub: Hub, to: str) -> str:
    """The repository that holds it as step 3."""
    sealed = read_local_manifest(folder)
    assert sealed is not None
    ensure_repo(hub, to)
    publish(hub, step_publication(folder, sealed, to))
    return to


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_manifest_vouches_for_every_file_by_its_path(folder: Path) -> None:
    sealed = read_local_manifest(folder)
    assert sealed is not None
    assert list(sealed.files) == [
        "experts/hebrew/adapter_config.json", "experts/hebrew/adapter_model.safetensors",
        "experts/mnist/README.md", "experts/mnist/adapter_config.json",
        "experts/mnist/adapter_model.safetensors", CONFIG, ROUTER,
    ]  # fmt: skip
    assert sealed.digest == files_digest(sealed.files)


def test_published_and_fetched_it_is_the_same_bytes(
    folder: Path, published: str, hub: Hub, tmp_path: Path
) -> None:
    elsewhere = dataclasses.replace(hub, cache=tmp_path / "empty")
    opened = open_ref(elsewhere, parse_ref(f"{published}@step3"))
    assert (opened.checkpoint.kind, opened.revision.step) == ("moe", 3)
    ours, theirs = contents(folder), contents(opened.folder)
    assert ours.keys() - theirs.keys() == {"curve.csv", "curve.png"}
    assert theirs == {name: ours[name] for name in theirs}
    sealed = read_local_manifest(folder)
    assert sealed is not None
    assert theirs.keys() == {*sealed.files, NAME, "README.md"}
    assert opened.digest == sealed.digest
    assert opened.checkpoint.digest() == open_ref(hub, ModelRef(path=folder)).checkpoint.digest()


def test_without_a_manifest_it_still_names_base_and_files(folder: Path, hub: Hub) -> None:
    sealed = read_local_manifest(folder)
    assert sealed is not None
    for name in (NAME, "README.md", "experts/mnist/README.md"):
        (folder / name).unlink()
    opened = open_ref(hub, ModelRef(path=folder))
    assert opened.files.keys() == sealed.files.keys() - {"experts/mnist/README.md"}
    base = base_of(hub, opened)
    assert base is not None
    assert base.digest == sealed.base.digest


def test_a_base_that_is_named_otherwise_is_told(
    folder: Path, manifest: Manifest, hub: Hub, hubmerge: Command
) -> None:
    config = folder / CONFIG
    config.write_text(config.read_text().replace(manifest.base.digest, "1" * 64))
    for name in (NAME, "README.md"):  # whoever swaps the base would seal it again
        (folder / name).unlink()
    seal(folder, manifest)
    with pytest.raises(IntegrityError, match="is for another base"):
        base_of(hub, open_ref(hub, ModelRef(path=folder)))
    said = hubmerge("verify", str(folder))
    assert (said.code, "name different bases" in said.out + said.err) == (3, True)


def test_its_revision_is_tagged_and_titled(published: str, api: HfApi, manifest: Manifest) -> None:
    (tag,) = api.list_repo_refs(published).tags
    (newest, *_) = api.list_repo_commits(published)
    assert (tag.name, tag.target_commit) == ("step3", newest.commit_id)
    assert newest.title == "Mixture of 2 experts at step 3"
    assert f"hubmerge-run: {manifest.run}" in newest.message.splitlines()


def test_published_again_it_is_the_same_commit(
    folder: Path, published: str, hub: Hub, api: HfApi
) -> None:
    sealed = read_local_manifest(folder)
    assert sealed is not None
    before = api.list_repo_refs(published).tags[0].target_commit
    assert publish(hub, step_publication(folder, sealed, published)) == before
    main = folder_publication(folder, sealed, ModelRef(published))
    assert main.title == "Mixture of 2 experts at step 3"
    assert "hubmerge-recipe" not in main.description


def test_what_was_measured_of_it_is_no_part_of_it(folder: Path, manifest: Manifest) -> None:
    sealed = read_local_manifest(folder)
    tasks = tuple(str(expert.task) for expert in manifest.experts)
    rows = ((0.75, 0.25),), ((0.5, 0.5),)
    cost = Cost(Parameters(9, 9, 12, 3), Flops(9, 9, 11))
    seen = Routing("validation", tasks, EXPERTS_OF, (LAYER,), rows, cost)
    (folder / ROUTING).write_bytes(seen.to_bytes())
    for name in (NAME, "README.md"):
        (folder / name).unlink()
    seal(folder, manifest)
    assert read_local_manifest(folder) == sealed
    assert sealed is not None
    step_publication(folder, sealed, "demo/none")
    assert (folder / "routing.csv").is_file()
    assert (folder / "routing.png").read_bytes().startswith(b"\x89PNG")
    assert read_local_manifest(folder) == sealed


@pytest.mark.parametrize("place", ["experts/mnist", "experts/new", "."])
def test_weights_that_nobody_vouches_for(
    place: str, folder: Path, hub: Hub, hubmerge: Command
) -> None:
    (folder / place).mkdir(exist_ok=True)
    shutil.copyfile(folder / ROUTER, folder / place / "more.safetensors")
    with pytest.raises(IntegrityError, match=r"not those that its hubmerge\.json vouches for"):
        open_ref(hub, ModelRef(path=folder))
    said = hubmerge("verify", str(folder))
    assert said.code == 3
    assert "more.safetensors" in said.err


@pytest.mark.parametrize("name", [ROUTER, "experts/mnist/adapter_config.json"])
def test_an_altered_file_anywhere_is_found(name: str, folder: Path, hubmerge: Command) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    said = hubmerge("verify", str(folder))
    assert said.code == 3
    assert f"{name} has SHA-256" in said.err


def test_it_is_verified_but_not_made_again(
    folder: Path, published: str, manifest: Manifest, hubmerge: Command
) -> None:
    labels = {one.label for one in (manifest.base, *manifest.experts)}
    for name in (str(folder), f"{published}@step3"):
        said = hubmerge("verify", name, "--json")
        assert said.code == 0, said.err
        checks = {one["what"]: one["found"] for one in said.data}
        assert checks[CONFIG] == "2 experts, 5 tensors"
        assert checks.keys() >= {ROUTER, *labels}
    said = hubmerge("verify", str(folder), "--rebuild")
    assert said.code == 2
    assert "is a mixture: it has no lock and is not merged" in said.err
    assert "Train it again with `hubmerge moerge`" in said.err


def test_a_repository_holds_one_kind(published: str, hub: Hub) -> None:
    check_room(hub, published, "moe")
    with pytest.raises(IntegrityError, match="holds mixture files on main"):
        check_room(hub, published, "expert")
    with pytest.raises(IntegrityError, match="holds expert files on main"):
        check_room(hub, REPOS[0], "moe")


def test_it_is_no_expert_and_its_experts_are_named(
    folder: Path, published: str, hubmerge: Command, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    for name, inside in (
        (f"{published}@step3", f"hf://{published}@step3/experts"),
        (str(folder), f"{folder}/experts"),
    ):
        said = hubmerge("merge", name, "demo/mnist@step2", "--out", out)
        assert said.code == 2, said.err
        words = " ".join(said.err.split())
        assert "is a mixture and no expert" in words
        assert f"{inside}/hebrew or {inside}/mnist" in said.err.replace("\n", " ")
    said = hubmerge("select", published, "demo/mnist", "--target", "average")
    assert said.code == 2
    assert "is a mixture and no expert" in said.err


def test_an_expert_in_it_merges_alone(
    folder: Path, published: str, hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    inside = f"hf://{published}@step3/experts/mnist"
    opened = open_ref(hub, parse_ref(inside))
    assert opened.checkpoint.kind == "lora"
    said = hubmerge(
        "merge", inside, f"hf://{published}@step3/experts/hebrew", "--method", "average",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert said.code == 0, said.err
    base = load_file(open_ref(hub, ModelRef("hubmerge/tiny-clip")).folder / WEIGHTS)
    merged = load_file(tmp_path / "out" / WEIGHTS)
    change = np.zeros((256, 64), np.float32)
    for name in EXPERTS_OF:
        tensors = load_file(folder / EXPERTS / name / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{LAYER}.lora_{part}.weight"] for part in "AB")
        change += b @ a / 2
    whole = base[f"{LAYER}.weight"] + change
    np.testing.assert_allclose(merged[f"{LAYER}.weight"], whole, atol=1e-5)
    sources = pin(hub, ModelRef(path=tmp_path / "out")).manifest
    assert sources is not None
    assert [one.folder for one in sources.experts] == ["experts/mnist", "experts/hebrew"]


def test_its_steps_are_listed(published: str, hubmerge: Command) -> None:
    (row,) = hubmerge("steps", published, "--json").data
    assert (row["step"], row["found"], row["validation"]) == (3, "tag", 0.5)


def test_folders_of_mixtures_are_published(
    folder: Path, hubmerge: Command, hub: Hub, api: HfApi, to: str, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "run" / "step3")
    for _ in range(2):
        said = hubmerge("publish", str(tmp_path / "run"), "--to", to, "--json")
        assert said.code == 0, said.err
    assert "experts/mnist/adapter_model.safetensors" in api.list_repo_files(to, revision="step3")
    assert open_ref(hub, parse_ref(f"{to}@step3")).checkpoint.kind == "moe"
    shutil.copytree(folder / EXPERTS / "mnist", tmp_path / "run" / "step4")
    said = hubmerge("publish", str(tmp_path / "run"), "--to", to)
    assert said.code == 1
    assert "holds experts and mixtures" in said.err


def test_it_is_not_stored_as_a_delta(published: str, hubmerge: Command, to: str) -> None:
    said = hubmerge("retain", published, "--as-delta", "--to", to)
    assert said.code == 2, said.err
    assert "is a mixture, whose experts are small adapters already" in said.err


def test_what_to_retain_of_it_is_planned(published: str, folder: Path, hubmerge: Command) -> None:
    said = hubmerge("retain", published, "--json")
    assert said.code == 0, said.err
    (ours,) = [one for one in said.data["verdicts"] if one["name"] == "step3"]
    adapters = (folder / EXPERTS).rglob("*.safetensors")
    assert ours["contents"].keys() >= {hash_file(path) for path in adapters}
