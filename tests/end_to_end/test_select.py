"""hubmerge select on a real Hub: it chooses steps on validation data and writes a lock."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock
from hubmerge.trials import TrialLog
from tests.end_to_end.conftest import ROWS, Command, CommandResult, LocalHub
from tests.locks import stderr_of

REPOS = ("demo/mnist", "demo/hebrew")
Select = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def lock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the locks of this file."""
    return tmp_path_factory.mktemp("locks")


@pytest.fixture
def select(hubmerge: Command, lock_folder: Path) -> Select:
    """Run `hubmerge select` on the two repositories, for task arithmetic by default."""

    def run(*words: str, lock: str = "a.lock", target: str = "task_arithmetic") -> CommandResult:
        arguments = words if any(word.startswith("demo/") for word in words) else (*REPOS, *words)
        if "--budget" not in words:
            arguments = (*arguments, "--budget", "60")
        return hubmerge("select", *arguments, "--target", target, "--lock", lock_folder / lock)

    return run


@pytest.fixture
def default_lock(select: Select, lock_folder: Path) -> Path:
    """The lock of a selection whose budget is enough for all policies, written once."""
    path = lock_folder / "a.lock"
    if not path.exists():
        assert select().code in (0, 4)
    return path


def read(path: Path) -> Lock:
    return parse_lock(path.read_bytes(), str(path))


def trials(local_hub: LocalHub) -> TrialLog:
    return TrialLog(local_hub.home / "trials.jsonl")


def test_every_policy_has_a_pick_in_the_lock(
    select: Select, lock_folder: Path, local_hub: LocalHub
) -> None:
    result = select()
    assert result.code in (0, 4), result.err
    lock = read(lock_folder / "a.lock")
    policies = [pick.policy for pick in lock.picks]
    # No run was stopped early here.
    assert policies == [
        "last", "best-expert", "proxy", "uniform", "coordinate", "average-last", "weights", "joint",
    ]  # fmt: skip
    assert lock.pick("last").experts[0].step == 8
    assert lock.pick().accuracy >= max(pick.accuracy for pick in lock.picks) - 0.05
    assert {pin.source.sha for pin in lock.experts} >= {e.sha for e in lock.pick().experts}
    assert [task.rows for task in lock.tasks] == [ROWS["validation"]] * 2
    assert result.code == (0 if lock.conclusive else 4)
    assert "joint" in result.out
    assert "[" in result.out
    copies = list((local_hub.home / "locks").glob("*.lock"))
    assert (lock_folder / "a.lock").read_bytes() in [copy.read_bytes() for copy in copies]


def test_evidence_is_measured_again(hubmerge: Command, default_lock: Path, tmp_path: Path) -> None:
    lock = read(default_lock)
    picks = tuple(pick for pick in lock.picks if pick.policy in (lock.chosen, lock.rival))
    lock = dataclasses.replace(lock, picks=picks)
    path = tmp_path / "short.lock"
    path.write_bytes(lock.to_bytes())
    words = ("verify", path, "--evidence", "--json")
    honest = hubmerge(*words)
    assert honest.code == 0, honest.err
    assert {check["what"] for check in honest.data} >= {f"accuracy of {lock.chosen}"}
    path.write_bytes(with_more_right(lock, lock.rival, ROWS["validation"] * 2 // 5).to_bytes())
    parse_lock(path.read_bytes(), "forged")  # its numbers follow from one another
    forged = hubmerge(*words)
    assert forged.code == 3
    assert f"Pick {lock.rival!r} has" in forged.err


def with_more_right(lock: Lock, policy: str, rows: int) -> Lock:
    """A lock in which one pick has more right rows of its first task, with all that follows."""
    pick = lock.pick(policy)
    task = lock.tasks[0]
    accuracies = {**pick.tasks, task.id: pick.tasks[task.id] - rows / task.rows}
    forged = dataclasses.replace(
        pick,
        tasks=accuracies,
        accuracy=math.fsum(accuracies.values()) / len(accuracies),
        stderr=stderr_of(accuracies, task.rows),
    )
    others = [dataclasses.replace(p, gain=None) for p in lock.picks if p is not pick]
    return dataclasses.replace(
        lock,
        picks=(forged, *others),
        uniform=(),
        conclusive=False,
        outcome=None,
        cross_fit=None,
        controls=(),
    )


def test_a_second_run_measures_nothing_and_writes_the_same_bytes(
    select: Select, default_lock: Path, local_hub: LocalHub
) -> None:
    before, lines = default_lock.read_bytes(), trials(local_hub).path.read_bytes()
    select()
    assert default_lock.read_bytes() == before
    assert trials(local_hub).path.read_bytes() == lines


def test_the_lock_builds_what_was_measured(
    select: Select, hubmerge: Command, default_lock: Path, tmp_path: Path
) -> None:
    lock, out = read(default_lock), tmp_path / "merged"
    result = hubmerge("merge", "--lock", default_lock, "--out", out)
    assert result.code == 0, result.err
    evaluated = hubmerge("eval", out, "--split", "validation", "--json")
    values = {score["task"]: score["value"] for score in evaluated.data}
    assert values == pytest.approx(dict(lock.pick().tasks))


@pytest.mark.slow
def test_layers_with_scales_of_their_own_are_built_from_the_lock(
    select: Select, hubmerge: Command, lock_folder: Path, tmp_path: Path
) -> None:
    path, out = lock_folder / "layers.lock", tmp_path / "merged"
    steps = ("demo/mnist@step8", "demo/hebrew@step8")
    result = select(*steps, "--policy", "layers", "--budget", "40", lock="layers.lock")
    assert result.code in (0, 4), result.err
    lock = read(path)
    assert lock.chosen == "layers"
    # Whether a scale of its own helps a group depends on the processor: here it has one anyway.
    scales = {"scale": 0.3, "scale[@0:4]": [0.2, 0.3, 0.45]}
    picks = [
        dataclasses.replace(pick, params=scales) if pick.policy == "layers" else pick
        for pick in lock.picks
    ]
    path.write_bytes(dataclasses.replace(lock, picks=tuple(picks)).to_bytes())
    merged = hubmerge("merge", "--lock", path, "--out", out, "--json")
    assert merged.code == 0, merged.err
    settings = ["scale=0.3", "scale[@0:4]=[0.2,0.3,0.45]"]
    for name in ("weight", "keep", "intruders"):
        values = (str(getattr(expert, name)) for expert in lock.pick().experts)
        settings.append(f"{name}={','.join(values)}")
    words = [word for setting in settings for word in ("--set", setting)]
    method = ("--method", "task_arithmetic", "--out", tmp_path / "typed")
    typed = hubmerge("merge", *steps, *method, *words)
    assert typed.code == 0, typed.err
    weights = "open_clip_model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "typed" / weights).read_bytes()
    verified = hubmerge("verify", out, "--json")
    assert verified.code == 0, verified.err
    assert {check["what"]: check["found"] for check in verified.data}["recipe"] == "pick 'layers'"
    again = select(*steps, "--against", str(path), "--budget", "20", lock="layers2.lock")
    assert again.code in (0, 4), again.err
    locked = read(lock_folder / "layers2.lock").pick("locked")
    assert locked.params == scales
    evaluated = hubmerge("eval", out, "--split", "validation", "--json")
    values = {score["task"]: score["value"] for score in evaluated.data}
    assert values == pytest.approx(dict(locked.tasks))  # as measured in memory


def test_the_controls_are_what_eval_measures(hubmerge: Command, default_lock: Path) -> None:
    lock = read(default_lock)
    by_kind = {control.kind: control for control in lock.controls}
    assert [*by_kind] == ["base", "expert", "without", "random"]
    evaluated = hubmerge(
        "eval", by_kind["base"].name, "--tasks", "mini-mnist,mini-hebrew",
        "--split", "validation", "--json",
    )  # fmt: skip
    values = [score["value"] for score in evaluated.data]
    assert sum(values) / 2 == pytest.approx(by_kind["base"].accuracy)
    assert lock.cross_fit is not None
    gain = lock.pick().gain
    assert gain is not None
    assert gain[0] == pytest.approx(lock.cross_fit.accuracy - lock.cross_fit.rival)


def test_test_data_are_never_read(select: Select, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubmerge.tasks import data, source

    read_rows = source.read_rows

    def read_no_test_rows(task: object, split: str) -> object:
        assert split != "test"
        return read_rows(task, split)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "read_rows", read_no_test_rows)
    assert select("--budget", "6", "--seed", "3", lock="guarded.lock").code in (0, 4)


def test_a_budget_limits_the_number_of_merges(select: Select, lock_folder: Path) -> None:
    result = select("--budget", "8", lock="short.lock")
    assert result.code in (0, 4), result.err
    assert "The budget ended" in result.err
    lock = read(lock_folder / "short.lock")
    assert lock.spent.evaluations <= 8
    assert lock.budget == "8"


@pytest.mark.slow
def test_a_requested_policy_is_chosen(select: Select, lock_folder: Path) -> None:
    assert select("--policy", "uniform", "--budget", "24", lock="uniform.lock").code in (0, 4)
    lock = read(lock_folder / "uniform.lock")
    assert lock.chosen == "uniform"
    assert len({expert.step for expert in lock.pick().experts}) == 1


@pytest.mark.slow
def test_the_worst_task_can_be_maximised(select: Select, lock_folder: Path) -> None:
    assert select("--objective", "worst", "--budget", "24", lock="worst.lock").code in (0, 4)
    lock = read(lock_folder / "worst.lock")
    assert lock.objective == "worst"
    assert "--objective worst" in lock.command
    worst = {pick.policy: min(pick.tasks.values()) for pick in lock.picks}
    assert worst["coordinate"] >= max(worst["last"], worst["proxy"])


def test_the_front_is_listed_and_can_be_built(
    select: Select, hubmerge: Command, lock_folder: Path, tmp_path: Path
) -> None:
    words = ("--objective", "pareto", "--budget", "24")
    assert select(*words, lock="front.lock").code in (0, 4)
    lock = read(lock_folder / "front.lock")
    front = [pick for pick in lock.picks if pick.policy.startswith("front-")]
    assert front[0].accuracy == max(pick.accuracy for pick in lock.picks)
    for pick in front:
        for other in front:
            assert pick is other or any(pick.tasks[t] > other.tasks[t] for t in pick.tasks)
    result = hubmerge(
        "merge", "--lock", lock_folder / "front.lock", "--policy", front[-1].policy,
        "--out", tmp_path / "front",
    )  # fmt: skip
    assert result.code == 0, result.err


@pytest.mark.slow
def test_an_earlier_lock_is_the_rival(
    select: Select, lock_folder: Path, default_lock: Path
) -> None:
    result = select("--against", str(default_lock), "--budget", "40", lock="new.lock")
    lock = read(lock_folder / "new.lock")
    assert lock.rival == "locked"
    assert lock.pick("locked").accuracy == pytest.approx(read(default_lock).pick().accuracy)
    # The candidates are the same, so nothing is better than the earlier choice.
    assert result.code == 4
    assert "Inconclusive" in result.err


@pytest.mark.slow
def test_lines_of_the_log_that_are_no_trials_are_reported_and_kept(
    select: Select, default_lock: Path, local_hub: LocalHub
) -> None:
    log = trials(local_hub).path
    before = log.read_bytes()
    first, _, rest = before.partition(b"\n")
    newer = first.replace(b'"parts"', b'"members"')
    log.write_bytes(b"\n".join([first, b"garbage", b"\0\xff", newer, b'{"recipe": ', rest]))
    spoiled, lock = log.read_bytes(), default_lock.read_bytes()
    try:
        result = select()
        assert f"Skipped 4 lines of {log}: no trials" in result.err
        assert log.read_bytes() == spoiled
        assert default_lock.read_bytes() == lock
    finally:
        log.write_bytes(before)


@pytest.mark.slow
def test_out_writes_pictures_and_a_table(select: Select, tmp_path: Path) -> None:
    select("--out", str(tmp_path / "pictures"), "--budget", "8", lock="pictures.lock")
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert pictures.pop("selection.csv").startswith(b"what,nam")
    assert set(pictures) == {"heatmap.png", "curves.png"}
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())


def test_json_is_the_lock(select: Select, default_lock: Path) -> None:
    result = select("--json")
    assert json.loads(result.out) == json.loads(default_lock.read_bytes())


def test_a_dry_run_measures_nothing(select: Select, lock_folder: Path, local_hub: LocalHub) -> None:
    lines = trials(local_hub).path.read_bytes()
    result = select("--dry-run", lock="never.lock")
    assert result.code == 0
    assert "2 4 8" in result.out
    assert not (lock_folder / "never.lock").exists()
    assert trials(local_hub).path.read_bytes() == lines


def test_with_one_step_each_only_weights_and_rescale_run(select: Select, lock_folder: Path) -> None:
    result = select("demo/mnist@step8", "demo/hebrew@step8", "--budget", "16", lock="single.lock")
    assert result.code in (0, 4), result.err
    policies = [pick.policy for pick in read(lock_folder / "single.lock").picks]
    assert policies == ["last", "weights", "rescale"]


@pytest.mark.parametrize(("words", "message"), [
    (("--target", "tis"), "Did you mean ties"),
    (("--target", "moe"), "is not an adapter"),
    (("--target", "mo"), "Did you mean moe"),
    (("--set", "top_k=1"), "--set is for --target moe"),
    (("--policy", "best"), "Did you mean best-expert"),
    (("--policy", "rescale", "--budget", "1"), "Raise --budget"),
    (("--budget", "ten"), "is not a budget"),
    (("--against", "nowhere.lock"), "There is no lock"),
    (("--tasks", "mini-fashion,mini-mnist"), "No repository is for mini-fashion"),
    (("demo/mnist",), "only one task"),
    (("demo/mnist@step2", "demo/mnist@step8"), "only one task"),
    (("demo/mnist", "demo/hebrew", "demo/mnist"), "demo/mnist is named more than once"),
    (("demo/mnist", "demo/nothing"), "no such repository"),
    (("./folder", "demo/mnist"), "is a folder"),
    (("--tasks", "mini-mnist"), "one task for each repository"),
])  # fmt: skip
def test_an_invalid_request_is_refused(
    hubmerge: Command, lock_folder: Path, words: tuple[str, ...], message: str
) -> None:
    repos = () if any("/" in word and word[0] != "." for word in words) else REPOS
    target = () if "--target" in words else ("--target", "ties")
    result = hubmerge("select", *repos, *words, *target, "--lock", lock_folder / "none.lock")
    assert result.code in (1, 2)
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (lock_folder / "none.lock").exists()


def test_a_file_that_is_not_a_lock_is_not_replaced(select: Select, lock_folder: Path) -> None:
    (lock_folder / "notes.txt").write_text("mine")
    result = select(lock="notes.txt")
    assert result.code == 2
    assert "Not replaced: " in result.err
    assert "is not a valid lock" in result.err
    assert (lock_folder / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def trainer_repo(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a repository as Trainer writes it: checkpoint-N folders in one commit."""
    root = tmp_path_factory.mktemp("trainer")
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    for step in (2, 8):
        folder = root / f"checkpoint-{step}"
        api.snapshot_download("demo/mnist", revision=f"step{step}", local_dir=folder)
        for name in ("hubmerge.json", "README.md", "curve.csv", "curve.png", ".gitattributes"):
            (folder / name).unlink(missing_ok=True)
    api.create_repo("me/trainer", exist_ok=True)
    api.upload_folder(repo_id="me/trainer", folder_path=root, ignore_patterns=["**/.cache/**"])
    return "me/trainer"


@pytest.mark.slow
def test_without_a_budget_no_policy_is_cut(hubmerge: Command, lock_folder: Path) -> None:
    path = lock_folder / "unlimited.lock"
    result = hubmerge("select", *REPOS, "--target", "task_arithmetic", "--lock", path)
    assert result.code in (0, 4), result.err
    assert "The budget ended" not in result.err
    assert not read(path).cut


@pytest.mark.slow
def test_folders_of_one_commit_are_different_candidates(
    select: Select, hubmerge: Command, lock_folder: Path, trainer_repo: str, tmp_path: Path
) -> None:
    result = select(
        trainer_repo, "demo/hebrew", "--tasks", "mini-mnist,mini-hebrew",
        "--base", "hubmerge/tiny-clip", "--budget", "20", lock="folders.lock",
    )  # fmt: skip
    assert result.code in (0, 4), result.err
    lock = read(lock_folder / "folders.lock")
    row = next(line for line in result.out.splitlines() if line.startswith(" mini-mnist"))
    assert row.count("[") == 1  # one of the two folders was chosen
    swaps = lock.swaps[lock.tasks[0].id]
    assert [swap.step for swap in swaps] == [2, 8]
    assert {swap.sha for swap in swaps} == {lock.pick().experts[0].sha}  # the same commit
    assert swaps[0].own != swaps[1].own  # measured here: the repository has no record of them
    base = ("--base", "hubmerge/tiny-clip", "--json")
    merges = [
        hubmerge("merge", f"{trainer_repo}@checkpoint-{step}", "demo/hebrew@step2", *base)
        for step in (2, 8)
    ]
    assert len({merge.data["digest"] for merge in merges}) == 2, [merge.err for merge in merges]
    path = lock_folder / "folders.lock"
    result = hubmerge("merge", "--lock", path, "--locked", "--out", tmp_path / "m")
    assert result.code == 0, result.err


def test_an_earlier_lock_of_another_method_is_refused(select: Select, default_lock: Path) -> None:
    result = select("--against", str(default_lock), target="ties", lock="other.lock")
    assert result.code == 2
    assert "Select with --target task_arithmetic" in result.err


def test_an_edited_lock_with_an_invalid_value_is_refused(
    select: Select, lock_folder: Path, default_lock: Path
) -> None:
    text = default_lock.read_text()
    (lock_folder / "edited.lock").write_text(re.sub(r'"keep": 1.0', '"keep": -1.0', text))
    result = select("--against", str(lock_folder / "edited.lock"), lock="other.lock")
    assert result.code in (2, 3), result.err
    assert "keep" in result.err


def test_a_lock_records_the_command_that_wrote_it(select: Select, lock_folder: Path) -> None:
    tasks = "mini-mnist,mini-hebrew"
    assert select("--tasks", tasks, "--budget", "9", lock="typed.lock").code in (0, 4)
    assert read(lock_folder / "typed.lock").command.endswith(f"--budget 9 --tasks {tasks}")
