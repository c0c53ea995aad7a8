"""Telling, on a real Hub: the card of a merge made from a lock, of an expert, and licences."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, snapshot_download

from hubmerge.cards.author_text import BEGIN, END
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.lock import Common, Lock, LockedTask, Pick, Pin, Spent, Swap
from hubmerge.manifest import Source
from hubmerge.opening.references import open_ref, read_local_manifest, source_of
from hubmerge.refs import parse_ref
from hubmerge.scores import Score, ScoreLog
from tests.journey.conftest import Command, World

FIGURES = {"heatmap.png", "curves.png", "selection.csv"}
STEPS = (2, 4, 8)
TIES = {"density": 0.2, "scale": 1.0}


@pytest.fixture
def api(world: World) -> HfApi:
    return HfApi(endpoint=world.server.url, token=world.server.token)


@pytest.fixture(scope="module")
def locked(world: World, tmp_path_factory: pytest.TempPathFactory) -> Lock:
    """A selection among the steps of both experts, as `hubmerge select` would write it."""
    cache = tmp_path_factory.mktemp("cache")
    hub = Hub(world.server.url, world.server.token, cache, "the test Hub")
    pins = {(t, s): pin(hub, f"demo/{t}@step{s}") for t in ("mnist", "hebrew") for s in STEPS}
    base = pin(hub, "hubmerge/tiny-clip")

    def pick(policy: str, mnist: int, hebrew: int, accuracy: float) -> Pick:
        experts = tuple(pins[one].source for one in (("mnist", mnist), ("hebrew", hebrew)))
        return Pick(policy, experts, TIES, accuracy, 0.02, {str(e.task): accuracy for e in experts})

    picks = (pick("last", 8, 8, 0.5), pick("uniform", 4, 4, 0.55), pick("coordinate", 4, 2, 0.6))
    chosen = dataclasses.replace(picks[2], gain=(0.1, 0.05, 0.15))
    sources = [one.source for one in pins.values()]
    swaps: dict[str, tuple[Swap, ...]] = {}
    for one in sources:
        swap = Swap(one.sha, one.label, one.step or 0, 0.7, 0.5 + (one.step or 0) / 100)
        swaps[str(one.task)] = (*swaps.get(str(one.task), ()), swap)
    tasks = dict.fromkeys(str(one.task) for one in sources)
    return Lock(
        base=base,
        experts=tuple(pins.values()),
        tasks=tuple(LockedTask(task, None, 400) for task in tasks),
        method="ties",
        chosen="coordinate",
        picks=(*picks[:2], chosen),
        swaps=swaps,
        uniform=tuple(Common(step, 0.5, 0.02) for step in STEPS),
        seed=0,
        spent=Spent(12, 4800),
        conclusive=True,
    )


def pin(hub: Hub, name: str) -> Pin:
    opened = open_ref(hub, parse_ref(name))
    steps = list_steps(hub, str(opened.revision.ref.repo_id))
    return Pin(name, source_of(opened, last=steps[-1] if steps else None), opened.files)


@pytest.fixture(scope="module")
def merged(
    world: World, locked: Lock, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Lock]:
    """The folder of the merge that the lock chose."""
    from tests.journey.conftest import command

    room = tmp_path_factory.mktemp("merged")
    (room / "hubmerge.lock").write_bytes(locked.to_bytes())
    words = ("merge", "--lock", room / "hubmerge.lock", "--out", room / "m", "--locked")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HUBMERGE_HOME", str(world.home))
        said = command(*map(str, words))
    assert said.code == 0, said.err
    return room / "m", locked


def front(card: str) -> dict[str, object]:
    said: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return said


def test_a_merge_has_its_lock_its_figures_and_its_licence_beside_it(
    merged: tuple[Path, Lock],
) -> None:
    folder, lock = merged
    card, manifest = (folder / "README.md").read_text(), read_local_manifest(folder)
    assert manifest is not None
    assert (folder / "hubmerge.lock").read_bytes() == lock.to_bytes()
    assert {path.name for path in folder.iterdir()} >= FIGURES
    assert not FIGURES & manifest.files.keys()
    assert "Its steps are those that the policy coordinate chose on validation: +10.00" in card
    assert "](heatmap.png)" in card
    assert "](curves.png)" in card
    assert front(card)["license"] == "apache-2.0"
    assert {source.licence for source in (manifest.base, *manifest.experts)} == {"apache-2.0"}


def test_an_experts_licence_is_its_bases(world: World, api: HfApi, tmp_path: Path) -> None:
    card = api.hf_hub_download("demo/mnist", "README.md", revision="step4", local_dir=tmp_path)
    assert front(Path(card).read_text())["license"] == "apache-2.0"


def test_a_published_card_told_again_keeps_lock_and_figures_and_the_authors_words(
    merged: tuple[Path, Lock], hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(merged[0], folder)
    card = (folder / "README.md").read_text().replace(BEGIN, f"Read this first.\n{BEGIN}")
    (folder / "README.md").write_text(card + "Thanks to all.\n")
    first = hubmerge("card", folder, "--push", "demo/told", "--json")
    assert first.code == 0, first.err
    again = hubmerge("card", "demo/told", "--push", "demo/told", "--json")
    assert again.code == 0, again.err
    assert again.data["commit"] == first.data["commit"]
    there = Path(snapshot_download("demo/told", endpoint=api.endpoint, cache_dir=tmp_path / "c"))
    assert {path.name for path in there.iterdir()} >= {*FIGURES, "hubmerge.lock"}
    told = (there / "README.md").read_text()
    assert f"Read this first.\n{BEGIN}" in told
    assert told.endswith(f"{END}\nThanks to all.\n")


def test_another_lock_beside_a_merge_is_refused(
    merged: tuple[Path, Lock], hubmerge: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(merged[0], folder)
    other = dataclasses.replace(merged[1], seed=1)
    (folder / "hubmerge.lock").write_bytes(other.to_bytes())
    before = (folder / "README.md").read_bytes()
    said = hubmerge("card", folder)
    assert said.code == 3
    assert "is not the lock that hubmerge.json says" in said.err
    assert (folder / "README.md").read_bytes() == before


def test_an_experts_card_lists_its_steps_and_what_was_made_of_it(
    merged: tuple[Path, Lock], hubmerge: Command, tmp_path: Path
) -> None:
    assert hubmerge("card", merged[0], "--push", "demo/made-of-mnist").code == 0
    card = hubmerge("card", "demo/mnist").out
    rows = [line for line in card.splitlines() if "| step" in line and "`" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["step2", "step4", "step8"]
    users = card.split("## Merges made of it\n\n")[1].split("\n\n")[0]
    assert "- demo/made-of-mnist" in users.splitlines()
    assert "demo/mnist" not in users.replace("made-of-mnist", "")


def test_results_for_the_hub_are_written_only_when_asked_for(
    merged: tuple[Path, Lock], world: World, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(merged[0], folder)
    refused = hubmerge("card", folder, "--eval-results", "--split", "train")
    assert refused.code == 2
    assert "leave out --eval-results" in refused.err
    manifest = read_local_manifest(folder)
    assert manifest is not None
    data = "demo/digits@" + "a" * 40
    found = Score("m", manifest.digest, "digits@1", "train", "accuracy", 0.5, 10, 0.1, None, data)
    ScoreLog(world.home / "scores.jsonl").append([found])
    said = hubmerge(
        "card", folder, "--eval-results", "--split", "train", "--push", "demo/with-results"
    )
    assert said.code == 0, said.err
    repo, name = "demo/with-results", ".eval_results/hubmerge.yaml"
    path = api.hf_hub_download(repo, name, local_dir=tmp_path / "there")
    entry = yaml.safe_load(Path(path).read_text())[0]
    assert entry["dataset"] == {"id": "demo/digits", "task_id": "digits", "revision": "a" * 40}
    # Told again without being asked, it is not left behind.
    again = hubmerge("card", repo, "--split", "train", "--push", repo)
    assert again.code == 0, again.err
    assert api.file_exists(repo, name)


@pytest.fixture
def licensed(world: World, tmp_path: Path) -> tuple[str, str]:
    """Two experts in folders, whose authors wrote licences that clash."""
    folders = []
    for task, licence in (("mnist", "gpl-3.0"), ("hebrew", "cc-by-nc-4.0")):
        there = snapshot_download(
            f"demo/{task}", revision="step4", endpoint=world.server.url, cache_dir=tmp_path / "c"
        )
        folder = Path(shutil.copytree(there, tmp_path / task))
        card = (folder / "README.md").read_text()
        (folder / "README.md").write_text(
            card.replace("license: apache-2.0", f"license: {licence}")
        )
        folders.append(str(folder))
    return folders[0], folders[1]


def test_licences_that_clash_are_refused_before_anything_is_written(
    licensed: tuple[str, str], hubmerge: Command, tmp_path: Path
) -> None:
    said = hubmerge("merge", *licensed, "--out", tmp_path / "m")
    assert said.code == 2
    assert f"{licensed[0]} is under gpl-3.0 and {licensed[1]} under cc-by-nc-4.0" in said.err
    assert "--license" in said.err
    assert not (tmp_path / "m").exists()


def test_who_may_states_the_licence(
    licensed: tuple[str, str], hubmerge: Command, tmp_path: Path
) -> None:
    words = ("merge", *licensed, "--out", tmp_path / "m", "--license", "CC-BY-NC-4.0")
    assert hubmerge(*words).code == 0
    card = (tmp_path / "m" / "README.md").read_text()
    assert front(card)["license"] == "cc-by-nc-4.0"
    assert "--license cc-by-nc-4.0" in card
    other = hubmerge(*words[:-1], "gpl-3.0")
    assert other.code != 0  # another merge than the one that lies there
    assert hubmerge("merge", *licensed, "--license", "unknown").code == 2


def test_a_licence_is_no_part_of_the_recipe(merged: tuple[Path, Lock]) -> None:
    manifest = read_local_manifest(merged[0])
    assert manifest is not None
    bare: tuple[Source, ...] = tuple(
        dataclasses.replace(one, licence=None) for one in manifest.experts
    )
    assert dataclasses.replace(manifest, experts=bare, licence="mit").recipe == manifest.recipe
