"""hubmerge moerge on a real Hub: trained, published, gone on with, measured and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file

from hubmerge.manifest import NAME, parse_manifest
from hubmerge.routing import parse_routing
from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER, read_moe_config
from tests.journey.conftest import Command, Said, World
from tests.journey.moes import HEBREW, MIXED, MNIST, SHORT, ask, contents, train_loras

TO = "moes/mixture"
TASKS = {"mini-mnist", "mini-hebrew"}


@pytest.fixture(scope="module")
def mixed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Said, Path]:
    """A mixture of two experts, published and in a folder, and what the command said."""
    train_loras()
    out = tmp_path_factory.mktemp("moe") / "out"
    said = ask("moerge", *MIXED, "--push", TO, "--out", out, "--json")
    assert said.code == 0, said.err
    return said, out


@pytest.fixture
def out(mixed: tuple[Said, Path]) -> Path:
    return mixed[1]


def snapshot(world: World, revision: str, into: Path) -> Path:
    found = snapshot_download(
        TO, revision=revision, endpoint=world.server.url, token=False, local_dir=into
    )
    return Path(found)


def test_its_steps_are_published(mixed: tuple[Said, Path], api: HfApi) -> None:
    said, out = mixed
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(TO).tags}
    assert said.data["commits"] == tags
    assert tags.keys() == {"step2", "step4"}
    assert (said.data["repo"], said.data["folder"]) == (TO, str(out))
    points = said.data["validation"]
    assert [point["step"] for point in points] == [0, 2, 4]
    assert all(point["tasks"].keys() == TASKS for point in points)
    for point in points:
        assert point["accuracy"] == pytest.approx(sum(point["tasks"].values()) / 2)


def test_a_revision_is_the_folder(mixed: tuple[Said, Path], world: World, tmp_path: Path) -> None:
    _, out = mixed
    theirs = contents(snapshot(world, "step4", tmp_path / "step4"))
    ours = contents(out)
    weights = [f"{EXPERTS}/{task}/{file}" for task in TASKS
               for file in ("adapter_config.json", "adapter_model.safetensors")]  # fmt: skip
    for name in (CONFIG, ROUTER, NAME, *weights):
        assert theirs[name] == ours[name], name
    assert "routing.json" in theirs
    config = read_moe_config(out)
    assert [(e.name, e.task and e.task[:5], e.step, e.source_repo) for e in config.experts] == [
        ("mini-mnist", "mini-", 4, "loras/mnist"), ("mini-hebrew", "mini-", 2, "loras/hebrew"),
    ]  # fmt: skip
    assert (config.base_model, config.layout, config.top_k) == (
        "hubmerge/tiny-clip",
        "open_clip",
        2,
    )
    assert (config.router.init, config.router.signed) == ("arrow", False)


def test_what_its_manifest_says(mixed: tuple[Said, Path], api: HfApi) -> None:
    said, out = mixed
    manifest = parse_manifest((out / NAME).read_bytes(), "out")
    assert (manifest.kind, manifest.method, manifest.step, manifest.last_step) == (
        "moe",
        "moe",
        4,
        4,
    )
    assert manifest.run == said.data["run"]
    shas = [api.list_repo_refs(repo).tags for repo in ("loras/mnist", "loras/hebrew")]
    assert {source.sha for source in manifest.experts} <= {
        tag.target_commit for tags in shas for tag in tags
    }
    assert str(manifest.command).split()[:4] == ["hubmerge", "moerge", MNIST, HEBREW]


def test_the_command_that_it_tells_makes_the_same(
    mixed: tuple[Said, Path], hubmerge: Command, tmp_path: Path
) -> None:
    manifest = parse_manifest((mixed[1] / NAME).read_bytes(), "out")
    again = hubmerge(*str(manifest.command).split()[1:], "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert again.data["run"] == mixed[0].data["run"]
    ours, theirs = contents(mixed[1]), contents(tmp_path / "again")
    assert all(theirs[name] == ours[name] for name in (CONFIG, ROUTER, NAME, *manifest.files))


def test_again_it_changes_nothing(
    mixed: tuple[Said, Path], hubmerge: Command, api: HfApi, world: World
) -> None:
    said, out = mixed
    before = contents(out), [one.commit_id for one in api.list_repo_commits(TO)]
    again = hubmerge("moerge", *MIXED, "--push", TO, "--out", out, "--json")
    assert again.code == 0, again.err
    assert again.data == said.data
    assert (contents(out), [one.commit_id for one in api.list_repo_commits(TO)]) == before


def test_a_step_that_was_lost_is_made_again(
    mixed: tuple[Said, Path], hubmerge: Command, world: World, tmp_path: Path
) -> None:
    steps = world.home / "moes" / mixed[0].data["run"][:12] / "steps"
    before = contents(steps)
    for lost in (("step4",), ("step2",), ("step2", "step4")):
        for step in lost:
            shutil.rmtree(steps / step)
        again = hubmerge("moerge", *MIXED, "--json")
        assert again.code == 0, again.err
        after = contents(steps)
        vouched = [n for n in before if n.endswith((".safetensors", NAME, CONFIG, "routing.json"))]
        assert len(vouched) == 2 * 6
        assert all(after[name] == before[name] for name in vouched)


def test_a_step_that_was_changed_is_not_passed_on(
    mixed: tuple[Said, Path], hubmerge: Command, world: World, tmp_path: Path
) -> None:
    router = world.home / "moes" / mixed[0].data["run"][:12] / "steps/step4/router.safetensors"
    before = router.read_bytes()
    router.write_bytes(before[:-4] + bytes(4))
    said = hubmerge("moerge", *MIXED, "--out", tmp_path / "copy")
    router.write_bytes(before)
    assert (said.code, "is not as it was saved" in said.err) == (3, True)
    assert not (tmp_path / "copy").exists()


def test_a_mixture_is_measured_by_name_and_by_folder(out: Path, hubmerge: Command) -> None:
    said = hubmerge("eval", f"{TO}@step4", out, "--split", "validation", "--json")
    assert said.code == 0, said.err
    point = parse_manifest((out / NAME).read_bytes(), "out").validation[-1]
    told = {(score["label"], score["task"].split("@")[0]): score["value"] for score in said.data}
    assert told == {
        (label, task): pytest.approx(value)
        for label in (f"{TO}@step4", str(out)) for task, value in point.tasks.items()
    }  # fmt: skip


def test_other_tasks_may_be_asked_of_it(out: Path, hubmerge: Command) -> None:
    said = hubmerge("eval", out, "--tasks", "mini-fashion", "--json")
    assert said.code == 0, said.err
    assert 0 < said.data[0]["value"] < 1


def test_its_card(out: Path, hubmerge: Command, world: World, tmp_path: Path) -> None:
    said = hubmerge("card", f"{TO}@step4")
    assert said.code == 0, said.err
    for part in (MNIST, HEBREW, "mini-mnist", "mini-hebrew", "hubmerge.load_moe"):
        assert part in said.out
    published = (snapshot(world, "step4", tmp_path / "step4") / "README.md").read_text()
    for part in (MNIST, HEBREW, "hubmerge.load_moe"):
        assert part in published


def test_its_routing(out: Path) -> None:
    routing = parse_routing((out / "routing.json").read_bytes(), "out")
    config = read_moe_config(out)
    assert routing.split == "validation"
    assert {task.partition("@")[0] for task in routing.tasks} == TASKS
    assert routing.experts == tuple(expert.name for expert in config.experts)
    assert routing.layers == config.modules
    base, mixture = routing.cost.parameters.base, routing.cost.parameters.mixture
    tensors = [load_file(path) for path in out.rglob("*.safetensors")]
    assert mixture - base == sum(t.numel() for one in tensors for t in one.values())


def test_a_dry_run_writes_nothing(hubmerge: Command, world: World, mixed: Any, api: HfApi) -> None:
    before = {str(path) for path in (world.home / "moes").rglob("*")}
    words = ("moerge", *MIXED, "--seed", "9", "--push", "moes/never", "--dry-run")
    said = hubmerge(*words, "--json")
    assert said.code == 0, said.err
    assert said.data["steps"] == [2, 4]
    assert {str(path) for path in (world.home / "moes").rglob("*")} == before
    assert not api.repo_exists("moes/never")


def start(hubmerge: Command, folder: Path, *words: object) -> dict[str, torch.Tensor]:
    """The router of a mixture that is not trained."""
    said = hubmerge(
        "moerge", MNIST, HEBREW, "--train-steps", "0", *words, "--out", folder, "--json"
    )
    assert said.code == 0, said.err
    (point,) = said.data["validation"]
    assert (point["step"], point["loss"], said.data["commits"]) == (0, None, {})
    return load_file(folder / ROUTER)


@pytest.mark.parametrize("router", ["zero", "random", "centroid", "arrow"])
def test_starts(mixed: Any, hubmerge: Command, tmp_path: Path, router: str) -> None:
    found = start(hubmerge, tmp_path / "made", "--router", router)
    norms = torch.stack([rows.norm(dim=1) for rows in found.values()])
    wanted = torch.zeros_like(norms) if router == "zero" else torch.ones_like(norms)
    torch.testing.assert_close(norms, wanted)
    config = read_moe_config(tmp_path / "made").router
    assert (config.init, config.signed) == (router, router != "arrow")
    if router == "centroid":  # of two, each is as far from the middle as the other
        assert all(torch.allclose(rows[0], -rows[1], atol=1e-5) for rows in found.values())


def test_rows_decide_a_start_from_them(mixed: Any, hubmerge: Command, tmp_path: Path) -> None:
    words = ("--router", "centroid", "--max-examples")
    few = start(hubmerge, tmp_path / "few", *words, "2")
    many = start(hubmerge, tmp_path / "many", *words, "32")
    assert all(not torch.equal(few[name], many[name]) for name in few)


def test_untrained_experts_are_their_sources(
    mixed: Any, hubmerge: Command, world: World, tmp_path: Path
) -> None:
    start(hubmerge, tmp_path / "made")
    for repo, step in (("mnist", "step4"), ("hebrew", "step2")):
        source = snapshot_download(f"loras/{repo}", revision=step, endpoint=world.server.url,
                                   token=False, local_dir=tmp_path / repo)  # fmt: skip
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            inside = tmp_path / "made" / EXPERTS / f"mini-{repo}" / name
            assert inside.read_bytes() == (Path(source) / name).read_bytes()


def trained(hubmerge: Command, folder: Path, *words: object) -> bytes:
    """The router after two steps."""
    said = hubmerge("moerge", MNIST, HEBREW, "--train-steps", "2", *SHORT, "--no-augment", *words,
                    "--out", folder, "--json")  # fmt: skip
    assert said.code == 0, said.err
    return (folder / ROUTER).read_bytes()


def test_what_has_a_say_and_what_has_not(mixed: Any, hubmerge: Command, tmp_path: Path) -> None:
    """Computing again in the way back, or in parts, changes no more than rounding."""
    plain = trained(hubmerge, tmp_path / "plain")
    assert trained(hubmerge, tmp_path / "sampled", "--sampling", "proportional") == plain
    others = {
        "balanced": ("--balance", "5"),
        "one": ("--top-k", "1"),
        "seed": ("--seed", "1"),
        "hot": ("--temperature", "3"),
        "alone": ("--tasks", "mini-mnist"),
    }
    found = [trained(hubmerge, tmp_path / name, *words) for name, words in others.items()]
    assert len({plain, *found}) == 1 + len(others)
    for name, words in {"again": ("--recompute",), "parts": ("--accumulate", "2")}.items():
        trained(hubmerge, tmp_path / name, *words)
        one, other = (load_file(tmp_path / which / ROUTER) for which in ("plain", name))
        for layer in one:
            torch.testing.assert_close(one[layer], other[layer], atol=1e-4, rtol=1e-3)


def test_balance_evens_the_load(mixed: Any, hubmerge: Command, tmp_path: Path) -> None:
    spread = []
    for balance in ("0", "100"):
        folder = tmp_path / balance
        words = ("--balance", balance, "--lr", "3e-2", "--train-steps", "8", "--top-k", "1")
        trained(hubmerge, folder, *words)
        routing = parse_routing((folder / "routing.json").read_bytes(), balance)
        spread.append(sum(abs(one - 0.5) for layers in routing.share for one, _ in layers))
    assert spread[1] < spread[0]


def test_told_in_a_table(mixed: Any, hubmerge: Command) -> None:
    said = hubmerge("moerge", *MIXED, "--push", TO)
    assert said.code == 0, said.err
    for part in ("step2", "step4", "mini-mnist", "mini-hebrew", "validation %"):
        assert part in " ".join(said.out.split())


def test_its_curve_beside_it(out: Path) -> None:
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((out / NAME).read_text())
    assert "curve.png" not in manifest["files"]


def test_what_is_done_to_a_folder_is_not_done_to_the_run(
    mixed: Any, hubmerge: Command, tmp_path: Path
) -> None:
    start(hubmerge, tmp_path / "mine", "--seed", "5")
    with (tmp_path / "mine" / ROUTER).open("r+b") as file:
        file.truncate(9)
    start(hubmerge, tmp_path / "again", "--seed", "5")
    assert hubmerge("verify", tmp_path / "again").code == 0
