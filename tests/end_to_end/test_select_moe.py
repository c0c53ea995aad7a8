"""hubmerge select --target moe on a real Hub: compare starts on validation data, then build."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection
from math import ceil
from pathlib import Path

import pytest

from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock
from hubmerge.manifest import MANIFEST_JSON, parse_manifest
from hubmerge.trials import TrialLog
from tests import locks
from tests.end_to_end.conftest import Command, CommandResult, LocalHub, run_hubmerge

pytestmark = pytest.mark.slow

REPOS = ("lora/mnist", "lora/hebrew")
TRAIN = (
    "--base", "hubmerge/tiny-clip", "--tune", "lora", "--rank", "2", "--steps", "8",
    "--push-every", "1,2,4,8", "--lr", "5e-3", "--schedule", "constant", "--warmup-steps", "2",
    "--batch", "16",
)  # fmt: skip
SETTINGS = ("--set", "train_steps=4", "--set", "batch=8", "--set", "max_examples=64")
Select = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def lock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the locks of this file."""
    return tmp_path_factory.mktemp("locks")


@pytest.fixture(scope="module")
def adapters(local_hub: LocalHub) -> None:
    """Publish lora/mnist and lora/hebrew at steps 1, 2, 4 and 8 on the Hub of `local_hub`."""
    for name in ("mnist", "hebrew"):
        result = run_hubmerge("train", *TRAIN, "--task", f"mini-{name}", "--to", f"lora/{name}")
        assert result.code == 0, result.err


@pytest.fixture
def select(hubmerge: Command, adapters: None, lock_folder: Path) -> Select:
    """Run `hubmerge select` for a mixture of experts that is trained for four steps."""

    def run(*words: str, lock: str = "a.lock", repos: tuple[str, ...] = REPOS) -> CommandResult:
        options = ("--lock", lock_folder / lock, "--device", "cpu")
        return hubmerge("select", *repos, "--target", "moe", *SETTINGS, *words, *options)

    return run


@pytest.fixture
def default_lock(select: Select, lock_folder: Path) -> Path:
    """The lock of a complete selection, written once."""
    path = lock_folder / "a.lock"
    if not path.exists():
        result = select()
        assert result.code in (0, 4), result.err
    return path


def read(path: Path) -> Lock:
    return parse_lock(path.read_bytes(), str(path))


def moe_names(local_hub: LocalHub) -> set[str]:
    return {path.name for path in local_hub.home.glob("moes/*")}


def challengers(names: Collection[str]) -> int:
    """How many starts compete: besides the common steps the best of each expert, if another one.

    Which steps are best on 60 rows differs between processors.
    """
    steps = {name for name in names if name.startswith("step")} - {"step1"}
    assert steps == {"step2", "step4"}
    return 2 + ("best-expert" in names)


def race_steps(rivals: int) -> int:
    """The null and the last steps, all rivals half as long, and the better half of them again."""
    return 4 + 4 + 2 * rivals + 4 * ceil(rivals / 2)


def test_starts_are_compared_with_the_null(select: Select, lock_folder: Path) -> None:
    result = select("--json")
    assert result.code in (0, 4), result.err
    lock = read(lock_folder / "a.lock")
    # No run was stopped early: the null is an eighth of step 8.
    assert (lock.method, lock.rival) == ("moe", "step1")
    picks = {pick.policy: pick for pick in lock.picks}
    assert {"step1", "last"} <= picks.keys()
    assert picks["step1"].gain == (0.0, 0.0, 0.0)
    assert [expert.step for expert in picks["last"].experts] == [8, 8]
    assert picks["last"].gain is not None
    if lock.chosen != "last":  # both halves measure the same two mixtures
        gain = picks["last"].accuracy - picks["step1"].accuracy
        assert picks["last"].gain[0] == pytest.approx(gain)
    assert {pick.params["train_steps"] for pick in lock.picks} == {4}
    assert lock.conclusive == (result.code == 0)
    fit = lock.cross_fit
    assert fit is not None
    assert len(fit.chosen) == len(fit.steps) == 2
    gain = lock.pick().gain
    assert gain is not None
    if lock.chosen != lock.rival:  # else there is nothing to gain, whatever the halves chose
        assert gain[0] == pytest.approx(fit.accuracy - fit.rival)
    rounds = [(row["horizon"], len(row["accuracies"])) for row in result.data["rungs"]]
    rivals = challengers(result.data["rungs"][1]["accuracies"])
    assert rounds == [(4, 2), (2, rivals), (4, ceil(rivals / 2))]
    assert result.data["train_steps"] >= race_steps(rivals)


def test_a_second_run_trains_nothing_and_writes_the_same_bytes(
    select: Select, default_lock: Path, local_hub: LocalHub
) -> None:
    log = TrialLog(local_hub.home / "trials.jsonl").path
    before, lines, moes = default_lock.read_bytes(), log.read_bytes(), moe_names(local_hub)
    result = select()
    assert (default_lock.read_bytes(), log.read_bytes()) == (before, lines)
    assert moe_names(local_hub) == moes  # trials leave no folder
    text = " ".join(result.out.split())
    assert "The null is step1" in text
    assert "Short runs exaggerate differences" in text
    assert "out after 2" in text


def test_the_lock_builds_what_was_measured(
    hubmerge: Command, default_lock: Path, tmp_path: Path
) -> None:
    lock, out = read(default_lock), tmp_path / "moe"
    words = ("moerge", "--lock", default_lock, "--device", "cpu")
    result = hubmerge(*words, "--locked", "--out", out, "--json")
    assert result.code == 0, result.err
    manifest = parse_manifest((out / MANIFEST_JSON).read_bytes(), str(out))
    assert manifest.experts == lock.pick().experts
    assert {**manifest.params} == {**lock.pick().params}
    assert manifest.validation[-1].accuracy == pytest.approx(lock.pick().accuracy)
    assert manifest.lock == hashlib.sha256(default_lock.read_bytes()).hexdigest()
    assert (out / LOCK).read_bytes() == default_lock.read_bytes()
    assert "hubmerge moerge --lock hubmerge.lock" in manifest.command
    verified = hubmerge("verify", out, "--json")
    assert verified.code == 0, verified.err
    checks = {check["what"]: check["found"] for check in verified.data}
    assert checks["recipe"] == f"pick {lock.chosen!r}"
    planned = hubmerge(*words, "--policy", "last", "--push-every", "2", "--dry-run", "--json")
    assert planned.data["steps"] == [2, 4]


def test_another_lock_with_the_same_pick_does_not_replace_a_folder(
    hubmerge: Command, default_lock: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "moe", tmp_path / "other.lock"
    assert hubmerge("moerge", "--lock", default_lock, "--out", out).code == 0
    other.write_bytes(dataclasses.replace(read(default_lock), command="another").to_bytes())
    result = hubmerge("moerge", "--lock", other, "--out", out)
    assert (result.code, "exists and is not empty" in result.err) == (1, True)
    assert hubmerge("moerge", "--lock", other, "--out", out, "--replace").code == 0
    assert (out / LOCK).read_bytes() == other.read_bytes()


def test_a_requested_start_is_chosen(select: Select, lock_folder: Path) -> None:
    result = select("--policy", "step2", lock="requested.lock")
    assert result.code in (0, 4), result.err
    lock = read(lock_folder / "requested.lock")
    assert [expert.step for expert in lock.pick().experts] == [2, 2]
    assert lock.command.endswith(
        "--policy step2 --set train_steps=4 --set batch=8 --set max_examples=64"
    )


def test_a_budget_limits_the_training_steps(select: Select, lock_folder: Path) -> None:
    result = select("--budget", "11", lock="short.lock")
    assert result.code in (0, 4), result.err
    lock = read(lock_folder / "short.lock")
    challengers(lock.cut)
    assert lock.spent.evaluations == 3
    assert f"The budget ended early for {', '.join(lock.cut)}." in result.err
    result = select("--budget", "7", lock="shorter.lock")
    assert result.code == 2
    assert "does not reach step1 and last, which take 8." in result.err


def test_a_dry_run_prints_the_cost(select: Select, lock_folder: Path) -> None:
    result = select("--dry-run", "--json", lock="never.lock")
    rivals = challengers(result.data["starts"])
    assert result.data["race_steps"] == race_steps(rivals)
    assert result.data["sweep_steps"] == 4 * 4  # the common steps
    assert result.data["starts"]["last"] == [8, 8]
    assert (
        f"race takes {race_steps(rivals)} training steps"
        in select("--dry-run", lock="never.lock").out
    )
    assert select("--dry-run", "--exhaustive", "--json").data["horizons"] == [4]
    assert not (lock_folder / "never.lock").exists()


@pytest.mark.parametrize(("words", "message"), [
    (("--set", "train_step=4"), "did you mean 'train_steps'"),
    (("--set", "lr=no", "--set", "top_k=0"), "--set: top_k"),
    (("--set", "push_every=2"), "--push-every"),
    (("--set", "top_k=3"), "there are 2 experts"),
    (("--policy", "step3"), "Did you mean step"),
    (("--band", "2"), "--band is for merges"),
    (("--against", "none.lock"), "--against is for merges"),
])  # fmt: skip
def test_an_invalid_request_is_refused(
    select: Select, lock_folder: Path, words: tuple[str, ...], message: str
) -> None:
    result = select(*words, lock="none.lock")
    assert result.code == 2
    assert message in result.err
    assert not (lock_folder / "none.lock").exists()


def test_repositories_that_cannot_form_a_mixture_are_refused(select: Select) -> None:
    result = select(repos=("demo/mnist", "demo/hebrew"))
    assert (result.code, "is not an adapter" in result.err) == (2, True)
    result = select(repos=("lora/mnist", "lora/mnist@step2"))
    assert (result.code, "only one task" in result.err) == (2, True)
    result = select(repos=("lora/mnist@step2", "lora/hebrew@step4"))
    assert (result.code, "only one step of each expert" in result.err) == (2, True)


def test_a_lock_is_for_moerge_or_for_merge(
    hubmerge: Command, default_lock: Path, pinned: Lock, tmp_path: Path
) -> None:
    result = hubmerge("merge", "--lock", default_lock)
    assert (result.code, f"Write `hubmerge moerge --lock {default_lock}`" in result.err) == (
        2,
        True,
    )
    ties = locks.write_lock(pinned, tmp_path / "ties.lock")
    result = hubmerge("moerge", "--lock", ties)
    assert (result.code, f"Write `hubmerge merge --lock {ties}`" in result.err) == (2, True)


@pytest.mark.parametrize(("words", "message"), [
    (("--top-k", "1", "--lr", "1e-3"), "--top-k, --lr cannot be given as well"),
    (("lora/mnist", "--merge", "ties"), "experts, --merge cannot be given as well"),
    (("--policy", "lst"), "Did you mean last"),
    (("--tasks", "mini-mnist"), "The lock is for other tasks"),
])  # fmt: skip
def test_options_that_the_lock_already_sets_are_refused(
    hubmerge: Command, default_lock: Path, words: tuple[str, ...], message: str
) -> None:
    result = hubmerge("moerge", "--lock", default_lock, *words)
    assert result.code == 2
    assert message in result.err


def test_without_a_lock_experts_must_be_named(hubmerge: Command) -> None:
    assert "No experts are named" in hubmerge("moerge").err
    assert "--policy needs --lock" in hubmerge("moerge", "a/b", "--policy", "last").err


def test_every_invalid_option_of_a_lock_is_reported(
    hubmerge: Command, default_lock: Path, tmp_path: Path
) -> None:
    text = default_lock.read_text().replace('"top_k": 2', '"top_k": 0').replace('"lr"', '"lrr"')
    (tmp_path / "edited.lock").write_text(text)
    result = hubmerge("moerge", "--lock", tmp_path / "edited.lock")
    assert result.code == 2
    assert "top_k" in result.err
    assert "did you mean 'lr'" in result.err
