"""hubmerge select --target moe on a real Hub: starts raced on validation, the mixture built."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from hubmerge.lock import NAME as LOCK
from hubmerge.lock import Lock, parse_lock
from hubmerge.manifest import NAME, parse_manifest
from hubmerge.trials import TrialLog
from tests import locks
from tests.journey.conftest import Command, Said, World, command

REPOS = ("lora/mnist", "lora/hebrew")
TRAIN = (
    "--base", "hubmerge/tiny-clip", "--tune", "lora", "--rank", "2", "--steps", "8",
    "--push-every", "1,2,4,8", "--lr", "5e-3", "--schedule", "constant", "--warmup-steps", "2",
    "--batch", "16",
)  # fmt: skip
HOW = ("--set", "train_steps=4", "--set", "batch=8", "--set", "max_examples=64")
Select = Callable[..., Said]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the locks of this file lie."""
    return tmp_path_factory.mktemp("locks")


@pytest.fixture(scope="module")
def adapters(world: World) -> None:
    """lora/mnist and lora/hebrew at steps 1, 2, 4 and 8 on the world's Hub."""
    for name in ("mnist", "hebrew"):
        said = command("train", *TRAIN, "--task", f"mini-{name}", "--to", f"lora/{name}")
        assert said.code == 0, said.err


@pytest.fixture
def select(hubmerge: Command, adapters: None, place: Path) -> Select:
    """The command, for a mixture that is trained for four steps."""

    def run(*words: str, lock: str = "a.lock", repos: tuple[str, ...] = REPOS) -> Said:
        where = ("--lock", place / lock, "--device", "cpu")
        return hubmerge("select", *repos, "--target", "moe", *HOW, *words, *where)

    return run


@pytest.fixture
def chosen(select: Select, place: Path) -> Path:
    """The lock of a whole selection, made once."""
    path = place / "a.lock"
    if not path.exists():
        said = select()
        assert said.code in (0, 4), said.err
    return path


def read(path: Path) -> Lock:
    return parse_lock(path.read_bytes(), str(path))


def mixtures(world: World) -> set[str]:
    return {path.name for path in world.home.glob("moes/*")}


def test_starts_are_raced_against_the_null(select: Select, place: Path) -> None:
    said = select("--json")
    assert said.code in (0, 4), said.err
    made = read(place / "a.lock")
    # No run was stopped early: the null is an eighth of step 8.
    assert (made.method, made.rival) == ("moe", "step1")
    picks = {pick.policy: pick for pick in made.picks}
    assert {"step1", "last"} <= picks.keys()
    assert picks["step1"].gain == (0.0, 0.0, 0.0)
    assert [expert.step for expert in picks["last"].experts] == [8, 8]
    assert picks["last"].gain is not None
    gain = picks["last"].accuracy - picks["step1"].accuracy
    assert picks["last"].gain[0] == pytest.approx(gain)
    assert {pick.params["train_steps"] for pick in made.picks} == {4}
    assert made.conclusive == (made.chosen != "step1") == (said.code == 0)
    raced = said.data["rungs"]
    assert [(one["horizon"], len(one["accuracies"])) for one in raced] == [(4, 2), (2, 2), (4, 1)]
    assert said.data["train_steps"] >= 4 + 4 + 2 + 2 + 4


def test_again_trains_nothing_and_gives_the_same_bytes(
    select: Select, chosen: Path, world: World
) -> None:
    log = TrialLog(world.home / "trials.jsonl").path
    before, lines, made = chosen.read_bytes(), log.read_bytes(), mixtures(world)
    said = select()
    assert (chosen.read_bytes(), log.read_bytes()) == (before, lines)
    assert mixtures(world) == made  # nothing that is tried is kept
    told = " ".join(said.out.split())
    assert "The null is step1" in told
    assert "Short runs exaggerate gaps" in told
    assert "out after 2" in told


def test_the_lock_builds_what_was_measured(hubmerge: Command, chosen: Path, tmp_path: Path) -> None:
    made, out = read(chosen), tmp_path / "mixture"
    words = ("moerge", "--lock", chosen, "--device", "cpu")
    said = hubmerge(*words, "--locked", "--out", out, "--json")
    assert said.code == 0, said.err
    manifest = parse_manifest((out / NAME).read_bytes(), str(out))
    assert manifest.experts == made.pick().experts
    assert {**manifest.params} == {**made.pick().params}
    assert manifest.validation[-1].accuracy == pytest.approx(made.pick().accuracy)
    assert manifest.lock == hashlib.sha256(chosen.read_bytes()).hexdigest()
    assert (out / LOCK).read_bytes() == chosen.read_bytes()
    assert "hubmerge moerge --lock hubmerge.lock" in manifest.command
    checked = hubmerge("verify", out, "--json")
    assert checked.code == 0, checked.err
    found = {one["what"]: one["found"] for one in checked.data}
    assert found["recipe"] == f"pick {made.chosen!r}"
    planned = hubmerge(*words, "--policy", "last", "--push-every", "2", "--dry-run", "--json")
    assert planned.data["steps"] == [2, 4]


def test_another_lock_of_the_same_pick_is_another_mixture(
    hubmerge: Command, chosen: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "mixture", tmp_path / "other.lock"
    assert hubmerge("moerge", "--lock", chosen, "--out", out).code == 0
    other.write_bytes(dataclasses.replace(read(chosen), command="said otherwise").to_bytes())
    said = hubmerge("moerge", "--lock", other, "--out", out)
    assert (said.code, "exists and is not empty" in said.err) == (1, True)
    assert hubmerge("moerge", "--lock", other, "--out", out, "--replace").code == 0
    assert (out / LOCK).read_bytes() == other.read_bytes()


def test_a_start_that_was_asked_for(select: Select, place: Path) -> None:
    said = select("--policy", "step2", lock="asked.lock")
    assert said.code in (0, 4), said.err
    made = read(place / "asked.lock")
    assert [expert.step for expert in made.pick().experts] == [2, 2]
    assert made.command.endswith(
        "--policy step2 --set train_steps=4 --set batch=8 --set max_examples=64"
    )


def test_a_budget_of_training_steps(select: Select, place: Path) -> None:
    said = select("--budget", "11", lock="short.lock")
    assert said.code in (0, 4), said.err
    made = read(place / "short.lock")
    assert made.cut == ("step2", "step4")
    assert made.spent.evaluations == 3
    assert "The budget ended step4 early." in said.err
    said = select("--budget", "7", lock="shorter.lock")
    assert said.code == 2
    assert "does not reach step1 and last, which take 8." in said.err


def test_a_dry_run_says_what_it_takes(select: Select, place: Path) -> None:
    said = select("--dry-run", "--json", lock="never.lock")
    assert said.data["race_steps"] == 4 + 4 + 2 + 2 + 4
    assert said.data["sweep_steps"] == 4 * 4
    assert said.data["starts"]["last"] == [8, 8]
    assert "race takes 16 training steps" in select("--dry-run", lock="never.lock").out
    assert select("--dry-run", "--exhaustive", "--json").data["horizons"] == [4]
    assert not (place / "never.lock").exists()


@pytest.mark.parametrize(("words", "says"), [
    (("--set", "train_step=4"), "did you mean 'train_steps'"),
    (("--set", "lr=no", "--set", "top_k=0"), "--set: top_k"),
    (("--set", "push_every=2"), "--push-every"),
    (("--set", "top_k=3"), "there are 2 experts"),
    (("--policy", "step3"), "Did you mean step"),
    (("--band", "2"), "--band is for merges"),
    (("--against", "none.lock"), "--against is for merges"),
])  # fmt: skip
def test_what_cannot_be(select: Select, place: Path, words: tuple[str, ...], says: str) -> None:
    said = select(*words, lock="none.lock")
    assert said.code == 2
    assert says in said.err
    assert not (place / "none.lock").exists()


def test_what_cannot_be_mixed(select: Select) -> None:
    said = select(repos=("demo/mnist", "demo/hebrew"))
    assert (said.code, "is no adapter" in said.err) == (2, True)
    said = select(repos=("lora/mnist", "lora/mnist@step2"))
    assert (said.code, "only one task" in said.err) == (2, True)
    said = select(repos=("lora/mnist@step2", "lora/hebrew@step4"))
    assert (said.code, "only one step of each expert" in said.err) == (2, True)


def test_a_lock_is_for_mixing_or_for_merging(
    hubmerge: Command, chosen: Path, pinned: Lock, tmp_path: Path
) -> None:
    said = hubmerge("merge", "--lock", chosen)
    assert (said.code, f"Write `hubmerge moerge --lock {chosen}`" in said.err) == (2, True)
    ties = locks.write(pinned, tmp_path / "ties.lock")
    said = hubmerge("moerge", "--lock", ties)
    assert (said.code, f"Write `hubmerge merge --lock {ties}`" in said.err) == (2, True)


@pytest.mark.parametrize(("words", "says"), [
    (("--top-k", "1", "--lr", "1e-3"), "--top-k, --lr cannot be given as well"),
    (("lora/mnist", "--merge", "ties"), "experts, --merge cannot be given as well"),
    (("--policy", "lst"), "Did you mean last"),
    (("--tasks", "mini-mnist"), "The lock is for other tasks"),
])  # fmt: skip
def test_the_lock_decides(
    hubmerge: Command, chosen: Path, words: tuple[str, ...], says: str
) -> None:
    said = hubmerge("moerge", "--lock", chosen, *words)
    assert said.code == 2
    assert says in said.err


def test_without_a_lock_experts_are_named(hubmerge: Command) -> None:
    assert "There is nothing to mix" in hubmerge("moerge").err
    assert "--policy belongs to --lock" in hubmerge("moerge", "a/b", "--policy", "last").err


def test_a_lock_with_other_options_is_told_of_all(
    hubmerge: Command, chosen: Path, tmp_path: Path
) -> None:
    said = chosen.read_text().replace('"top_k": 2', '"top_k": 0').replace('"lr"', '"lrr"')
    (tmp_path / "edited.lock").write_text(said)
    refused = hubmerge("moerge", "--lock", tmp_path / "edited.lock")
    assert refused.code == 2
    assert "top_k" in refused.err
    assert "did you mean 'lr'" in refused.err
