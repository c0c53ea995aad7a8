"""Model cards on a real Hub: of a merge made from a lock, of an expert, and licences."""

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
from hubmerge.lock import Lock, LockedTask, Pick, Pin, SelectionCost, Swap, UniformPoint
from hubmerge.opening.references import open_ref, read_local_manifest, source_of
from hubmerge.refs import parse_ref
from hubmerge.scores import Score, ScoreLog
from hubmerge.source import Source
from tests.end_to_end.conftest import Command, LocalHub, run_hubmerge
from tests.locks import stderr_of

FIGURES = {"heatmap.png", "curves.png", "selection.csv"}
STEPS = (2, 4, 8)
TIES = {"density": 0.2, "scale": 1.0}


@pytest.fixture
def api(local_hub: LocalHub) -> HfApi:
    return HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)


@pytest.fixture(scope="module")
def locked(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Lock:
    """A lock of both experts, as `hubmerge select` would write it."""
    cache = tmp_path_factory.mktemp("cache")
    hub = Hub(local_hub.server.url, lambda: local_hub.server.token, cache, "the test Hub")
    pins = {
        (t, s): pin_revision(hub, f"demo/{t}@step{s}") for t in ("mnist", "hebrew") for s in STEPS
    }
    base = pin_revision(hub, "hubmerge/tiny-clip")

    def pick(policy: str, mnist: int, hebrew: int, accuracy: float) -> Pick:
        experts = (pins["mnist", mnist].source, pins["hebrew", hebrew].source)
        shares = {str(e.task): accuracy for e in experts}
        return Pick(policy, experts, TIES, accuracy, stderr_of(shares, 400), shares)

    picks = (pick("last", 8, 8, 0.5), pick("uniform", 4, 4, 0.55), pick("coordinate", 4, 2, 0.6))
    chosen = dataclasses.replace(picks[2], gain=(0.1, 0.05, 0.15))
    swaps: dict[str, tuple[Swap, ...]] = {}
    for source in (pin.source for pin in pins.values()):
        step = source.step or 0
        is_chosen = source in picks[2].experts
        merged = 0.6 if is_chosen else 0.5 + step / 100
        swap = Swap(source.sha, source.label, step, 0.7, merged)
        swaps[str(source.task)] = (*swaps.get(str(source.task), ()), swap)
    return Lock(
        base=base,
        experts=tuple(pins.values()),
        tasks=tuple(LockedTask(task, None, 400) for task in swaps),
        method="ties",
        chosen="coordinate",
        picks=(*picks[:2], chosen),
        swaps=swaps,
        uniform=tuple(UniformPoint(step, 0.55, picks[1].stderr) for step in STEPS),
        seed=0,
        spent=SelectionCost(12, 4800),
        conclusive=True,
    )


def pin_revision(hub: Hub, name: str) -> Pin:
    opened = open_ref(hub, parse_ref(name))
    steps = list_steps(hub, str(opened.revision.ref.repo_id))
    return Pin(name, source_of(opened, last=steps[-1] if steps else None), opened.files)


@pytest.fixture(scope="module")
def merged(
    local_hub: LocalHub, locked: Lock, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Lock]:
    """The folder of the merge that the lock chose, and the lock."""
    folder = tmp_path_factory.mktemp("merged")
    (folder / "hubmerge.lock").write_bytes(locked.to_bytes())
    words = ("merge", "--lock", folder / "hubmerge.lock", "--out", folder / "m", "--locked")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HUBMERGE_HOME", str(local_hub.home))
        result = run_hubmerge(*words)
    assert result.code == 0, result.err
    return folder / "m", locked


def front_matter_of(card: str) -> dict[str, object]:
    fields: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return fields


def test_the_folder_of_a_merge_has_lock_figures_and_licence(
    merged: tuple[Path, Lock],
) -> None:
    folder, lock = merged
    card, manifest = (folder / "README.md").read_text(), read_local_manifest(folder)
    assert manifest is not None
    assert (folder / "hubmerge.lock").read_bytes() == lock.to_bytes()
    assert {path.name for path in folder.iterdir()} >= FIGURES
    assert not FIGURES & manifest.files.keys()
    assert "Its steps were chosen by the policy coordinate on validation: +10.00" in card
    assert "](heatmap.png)" in card
    assert "](curves.png)" in card
    assert front_matter_of(card)["license"] == "apache-2.0"
    assert {source.licence for source in (manifest.base, *manifest.experts)} == {"apache-2.0"}


def test_an_expert_has_the_licence_of_its_base(
    local_hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    card = api.hf_hub_download("demo/mnist", "README.md", revision="step4", local_dir=tmp_path)
    assert front_matter_of(Path(card).read_text())["license"] == "apache-2.0"


def test_rendering_a_published_card_again_keeps_lock_figures_and_author_text(
    merged: tuple[Path, Lock], hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(merged[0], folder)
    card = (folder / "README.md").read_text().replace(BEGIN, f"Read this first.\n{BEGIN}")
    (folder / "README.md").write_text(card + "Thanks to all.\n")
    first = hubmerge("card", folder, "--push", "demo/rendered", "--json")
    assert first.code == 0, first.err
    again = hubmerge("card", "demo/rendered", "--push", "demo/rendered", "--json")
    assert again.code == 0, again.err
    assert again.data["commit"] == first.data["commit"]
    snapshot = Path(
        snapshot_download("demo/rendered", endpoint=api.endpoint, cache_dir=tmp_path / "c")
    )
    assert {path.name for path in snapshot.iterdir()} >= {*FIGURES, "hubmerge.lock"}
    text = (snapshot / "README.md").read_text()
    assert f"Read this first.\n{BEGIN}" in text
    assert text.endswith(f"{END}\nThanks to all.\n")


def test_a_wrong_lock_in_the_folder_of_a_merge_is_refused(
    merged: tuple[Path, Lock], hubmerge: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(merged[0], folder)
    other = dataclasses.replace(merged[1], seed=1)
    (folder / "hubmerge.lock").write_bytes(other.to_bytes())
    before = (folder / "README.md").read_bytes()
    result = hubmerge("card", folder)
    assert result.code == 3
    assert "is not the lock in hubmerge.json" in result.err
    assert (folder / "README.md").read_bytes() == before


def test_the_card_of_an_expert_lists_its_steps_and_merges(
    merged: tuple[Path, Lock], hubmerge: Command, tmp_path: Path
) -> None:
    assert hubmerge("card", merged[0], "--push", "demo/made-of-mnist").code == 0
    card = hubmerge("card", "demo/mnist").out
    rows = [line for line in card.splitlines() if "| step" in line and "`" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["step2", "step4", "step8"]
    users = card.split("## Merges made of it\n\n")[1].split("\n\n")[0]
    assert "- demo/made-of-mnist" in users.splitlines()
    assert "demo/mnist" not in users.replace("made-of-mnist", "")


def test_eval_results_are_written_on_request(
    merged: tuple[Path, Lock], local_hub: LocalHub, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(merged[0], folder)
    refused = hubmerge("card", folder, "--eval-results", "--split", "train")
    assert refused.code == 2
    assert "leave out --eval-results" in refused.err
    manifest = read_local_manifest(folder)
    assert manifest is not None
    data = "demo/digits@" + "a" * 40
    score = Score("m", manifest.digest, "digits@1", "train", "accuracy", 0.5, 10, 0.1, None, data)
    ScoreLog(local_hub.home / "scores.jsonl").append([score])
    result = hubmerge(
        "card", folder, "--eval-results", "--split", "train", "--push", "demo/with-results"
    )
    assert result.code == 0, result.err
    repo, name = "demo/with-results", ".eval_results/hubmerge.yaml"
    path = api.hf_hub_download(repo, name, local_dir=tmp_path / "there")
    entry = yaml.safe_load(Path(path).read_text())[0]
    assert entry["dataset"] == {"id": "demo/digits", "task_id": "digits", "revision": "a" * 40}
    # A card rendered again without the option keeps the file.
    again = hubmerge("card", repo, "--split", "train", "--push", repo)
    assert again.code == 0, again.err
    assert api.file_exists(repo, name)


@pytest.fixture
def licensed(local_hub: LocalHub, tmp_path: Path) -> tuple[str, str]:
    """Two experts in folders, with licences that exclude each other."""
    folders = []
    for task, licence in (("mnist", "gpl-3.0"), ("hebrew", "cc-by-nc-4.0")):
        snapshot = snapshot_download(
            f"demo/{task}",
            revision="step4",
            endpoint=local_hub.server.url,
            cache_dir=tmp_path / "c",
        )
        folder = Path(shutil.copytree(snapshot, tmp_path / task))
        card = (folder / "README.md").read_text()
        (folder / "README.md").write_text(
            card.replace("license: apache-2.0", f"license: {licence}")
        )
        folders.append(str(folder))
    return folders[0], folders[1]


def test_conflicting_licences_are_refused_before_anything_is_written(
    licensed: tuple[str, str], hubmerge: Command, tmp_path: Path
) -> None:
    result = hubmerge("merge", *licensed, "--out", tmp_path / "m")
    assert result.code == 2
    assert f"{licensed[0]} is under gpl-3.0 and {licensed[1]} under cc-by-nc-4.0" in result.err
    assert "--license" in result.err
    assert not (tmp_path / "m").exists()


def test_a_licence_can_be_given(
    licensed: tuple[str, str], hubmerge: Command, tmp_path: Path
) -> None:
    words = ("merge", *licensed, "--out", tmp_path / "m", "--license", "CC-BY-NC-4.0")
    assert hubmerge(*words).code == 0
    card = (tmp_path / "m" / "README.md").read_text()
    assert front_matter_of(card)["license"] == "cc-by-nc-4.0"
    assert "--license cc-by-nc-4.0" in card
    other = hubmerge(*words[:-1], "gpl-3.0")
    assert other.code != 0  # the folder has another merge
    assert hubmerge("merge", *licensed, "--license", "unknown").code == 2


def test_the_recipe_does_not_depend_on_the_licence(merged: tuple[Path, Lock]) -> None:
    manifest = read_local_manifest(merged[0])
    assert manifest is not None
    bare: tuple[Source, ...] = tuple(
        dataclasses.replace(expert, licence=None) for expert in manifest.experts
    )
    assert dataclasses.replace(manifest, experts=bare, licence="mit").recipe == manifest.recipe
