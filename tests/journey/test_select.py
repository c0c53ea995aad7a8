"""hubmerge select on a real Hub: steps chosen on validation, pinned in a lock, built from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.lock import Lock, parse_lock
from hubmerge.trials import TrialLog
from tests.journey.conftest import Command, Said, World

REPOS = ("demo/mnist", "demo/hebrew")
Select = Callable[..., Said]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the locks of this file lie."""
    return tmp_path_factory.mktemp("locks")


@pytest.fixture
def select(hubmerge: Command, place: Path) -> Select:
    """The command, for task arithmetic unless told, with little to search in."""

    def run(*words: str, lock: str = "a.lock", target: str = "task_arithmetic") -> Said:
        chosen = words if any(word.startswith("demo/") for word in words) else (*REPOS, *words)
        return hubmerge("select", *chosen, "--target", target, "--lock", place / lock)

    return run


@pytest.fixture
def chosen(select: Select, place: Path) -> Path:
    """The lock of a whole selection, made once."""
    path = place / "a.lock"
    if not path.exists():
        assert select().code in (0, 4)
    return path


def read(path: Path) -> Lock:
    return parse_lock(path.read_bytes(), str(path))


def trials(world: World) -> TrialLog:
    return TrialLog(world.home / "trials.jsonl")


def test_all_policies_side_by_side(select: Select, place: Path, world: World) -> None:
    said = select()
    assert said.code in (0, 4), said.err
    made = read(place / "a.lock")
    policies = [pick.policy for pick in made.picks]
    # No run was stopped early here.
    assert policies == ["last", "best-expert", "proxy", "uniform", "coordinate", "weights", "joint"]
    assert made.pick("last").experts[0].step == 8
    assert made.pick().accuracy >= max(pick.accuracy for pick in made.picks) - 0.05
    assert {pin.source.sha for pin in made.experts} >= {e.sha for e in made.pick().experts}
    assert [task.rows for task in made.tasks] == [400, 400]
    assert said.code == (0 if made.conclusive else 4)
    assert "joint" in said.out
    assert "[" in said.out
    copies = list((world.home / "locks").glob("*.lock"))
    assert (place / "a.lock").read_bytes() in [copy.read_bytes() for copy in copies]


def test_again_costs_nothing_and_gives_the_same_bytes(
    select: Select, chosen: Path, world: World
) -> None:
    before, lines = (chosen).read_bytes(), trials(world).path.read_bytes()
    select()
    assert (chosen).read_bytes() == before
    assert trials(world).path.read_bytes() == lines


def test_the_lock_builds_what_was_measured(
    select: Select, hubmerge: Command, chosen: Path, tmp_path: Path
) -> None:
    made, out = read(chosen), tmp_path / "merged"
    said = hubmerge("merge", "--lock", chosen, "--out", out)
    assert said.code == 0, said.err
    scored = hubmerge("eval", out, "--split", "validation", "--json")
    values = {score["task"]: score["value"] for score in scored.data}
    assert values == pytest.approx(dict(made.pick().tasks))


def test_test_data_are_never_read(
    select: Select, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubmerge.tasks import data, source

    read_rows = source.read_rows

    def guarded(task: object, split: str) -> object:
        assert split != "test"
        return read_rows(task, split)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "read_rows", guarded)
    assert select("--budget", "6", "--seed", "3", lock="guarded.lock").code in (0, 4)


def test_a_budget_in_merges(select: Select, place: Path) -> None:
    said = select("--budget", "8", lock="short.lock")
    assert said.code in (0, 4), said.err
    assert "The budget ended" in said.err
    made = read(place / "short.lock")
    assert made.spent.evaluations <= 8
    assert made.budget == "8"


def test_a_policy_that_was_asked_for(select: Select, place: Path) -> None:
    assert select("--policy", "uniform", lock="uniform.lock").code in (0, 4)
    made = read(place / "uniform.lock")
    assert made.chosen == "uniform"
    assert len({expert.step for expert in made.pick().experts}) == 1


def test_an_earlier_lock_is_to_be_beaten(select: Select, place: Path, chosen: Path) -> None:
    said = select("--against", str(chosen), lock="new.lock")
    made = read(place / "new.lock")
    assert made.rival == "locked"
    assert made.pick("locked").accuracy == pytest.approx(read(chosen).pick().accuracy)
    # The same candidates cannot beat the choice from among them.
    assert said.code == 4
    assert "Inconclusive" in said.err


def test_pictures(select: Select, place: Path, tmp_path: Path) -> None:
    select("--out", str(tmp_path / "pictures"))
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert pictures.pop("selection.csv").startswith(b"what,nam")
    assert set(pictures) == {"heatmap.png", "curves.png"}
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())


def test_json_is_the_lock(select: Select, chosen: Path) -> None:
    said = select("--json")
    assert json.loads(said.out) == json.loads((chosen).read_bytes())


def test_a_dry_run_measures_nothing(select: Select, place: Path, world: World) -> None:
    lines = trials(world).path.read_bytes()
    said = select("--dry-run", lock="never.lock")
    assert said.code == 0
    assert "2 4 8" in said.out
    assert not (place / "never.lock").exists()
    assert trials(world).path.read_bytes() == lines


def test_one_step_each_leaves_only_what_can_be_made_up_for(select: Select, place: Path) -> None:
    said = select("demo/mnist@step8", "demo/hebrew@step8", "--budget", "30", lock="single.lock")
    assert said.code in (0, 4), said.err
    policies = [pick.policy for pick in read(place / "single.lock").picks]
    assert policies == ["last", "weights", "rescale"]


@pytest.mark.parametrize(("words", "says"), [
    (("--target", "tis"), "Did you mean ties"),
    (("--target", "moe"), "is no adapter"),
    (("--target", "mo"), "Did you mean moe"),
    (("--set", "top_k=1"), "--set says how a mixture is trained"),
    (("--policy", "best"), "Did you mean best-expert"),
    (("--policy", "rescale", "--budget", "1"), "Raise --budget"),
    (("--budget", "ten"), "is no budget"),
    (("--against", "nowhere.lock"), "There is no lock"),
    (("--tasks", "mini-fashion,mini-mnist"), "No repository is for mini-fashion"),
    (("demo/mnist",), "only one task"),
    (("demo/mnist", "demo/nothing"), "no such repository"),
    (("./folder", "demo/mnist"), "is a folder"),
    (("--tasks", "mini-mnist"), "one task for each repository"),
])  # fmt: skip
def test_what_cannot_be(hubmerge: Command, place: Path, words: tuple[str, ...], says: str) -> None:
    repos = () if any("/" in word and word[0] != "." for word in words) else REPOS
    target = () if "--target" in words else ("--target", "ties")
    said = hubmerge("select", *repos, *words, *target, "--lock", place / "none.lock")
    assert said.code in (1, 2)
    assert says in said.err
    assert "Traceback" not in said.err
    assert not (place / "none.lock").exists()


def test_a_file_that_is_no_lock_is_not_replaced(select: Select, place: Path) -> None:
    (place / "notes.txt").write_text("mine")
    said = select(lock="notes.txt")
    assert said.code == 2
    assert (place / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def folders(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository as Trainer leaves it: one commit with several checkpoint-N folders."""
    root = tmp_path_factory.mktemp("trainer")
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    for step in (2, 8):
        folder = root / f"checkpoint-{step}"
        api.snapshot_download("demo/mnist", revision=f"step{step}", local_dir=folder)
        for name in ("hubmerge.json", "README.md", "curve.csv", "curve.png", ".gitattributes"):
            (folder / name).unlink(missing_ok=True)
    api.create_repo("me/trainer", exist_ok=True)
    api.upload_folder(repo_id="me/trainer", folder_path=root, ignore_patterns=["**/.cache/**"])
    return "me/trainer"


def test_folders_of_one_commit_are_not_taken_for_each_other(
    select: Select, hubmerge: Command, place: Path, folders: str, tmp_path: Path
) -> None:
    said = select(
        folders, "demo/hebrew", "--tasks", "mini-mnist,mini-hebrew", "--base", "hubmerge/tiny-clip",
        "--budget", "20", lock="folders.lock",
    )  # fmt: skip
    assert said.code in (0, 4), said.err
    made = read(place / "folders.lock")
    row = next(line for line in said.out.splitlines() if line.startswith(" mini-mnist"))
    assert row.count("[") == 1  # of two folders in one commit one was chosen
    candidates = made.swaps[made.tasks[0].id]
    assert [swap.step for swap in candidates] == [2, 8]
    assert {swap.sha for swap in candidates} == {made.pick().experts[0].sha}  # the same commit
    assert candidates[0].own != candidates[1].own  # nobody recorded them, so they were measured
    base = ("--base", "hubmerge/tiny-clip", "--json")
    built = [
        hubmerge("merge", f"{folders}@checkpoint-{step}", "demo/hebrew@step2", *base)
        for step in (2, 8)
    ]
    assert len({one.data["digest"] for one in built}) == 2, [one.err for one in built]
    said = hubmerge("merge", "--lock", place / "folders.lock", "--locked", "--out", tmp_path / "m")
    assert said.code == 0, said.err


def test_an_earlier_lock_is_for_one_method(select: Select, chosen: Path) -> None:
    said = select("--against", str(chosen), target="ties", lock="other.lock")
    assert said.code == 2
    assert "Select with --target task_arithmetic" in said.err


def test_a_lock_that_was_edited_is_checked_like_any_merge(
    select: Select, place: Path, chosen: Path
) -> None:
    text = (chosen).read_text()
    (place / "edited.lock").write_text(re.sub(r'"keep": 1.0', '"keep": -1.0', text))
    said = select("--against", str(place / "edited.lock"), lock="other.lock")
    assert said.code in (2, 3), said.err
    assert "keep" in said.err


def test_the_command_in_a_lock_repeats_it(select: Select, place: Path) -> None:
    tasks = "mini-mnist,mini-hebrew"
    assert select("--tasks", tasks, "--budget", "9", lock="typed.lock").code in (0, 4)
    assert read(place / "typed.lock").command.endswith(f"--budget 9 --tasks {tasks}")
