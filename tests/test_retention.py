"""Retention: properties that hold for any refs and budget, and examples computed by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.lock import Lock, LockedTask, Pick, Pin, SelectionCost, Swap
from hubmerge.retention.choice import (
    RefInfo,
    choose,
    reasons_to_keep,
    required_commits,
    stored_bytes,
)
from hubmerge.retention.evidence import (
    Groups,
    accuracy_gaps,
    compute_regrets,
    group_comparable,
    paired_stderr,
)
from hubmerge.retention.plan import RetentionPlan, parse_budget, parse_plan
from hubmerge.source import Source
from hubmerge.trials import SINGLE_EXPERT, Part, RowResults, Trial

REPOS = ("me/cats", "me/dogs")
STEPS = (2, 4, 8, 16, 32)
SHARED = {"d" * 64: 20, "e" * 64: 5, "f" * 64: 1}  # size in bytes of contents that steps share


def sha(repo: str, step: int) -> str:
    return hashlib.sha1(f"{repo}@{step}".encode()).hexdigest()


def revision(
    repo: str,
    step: int,
    size: int = 10,
    own: float | None = None,
    shared: Collection[str] = ("f" * 64,),
) -> RefInfo:
    """Return a step with `size` bytes of its own, and the contents in `shared`."""
    contents = {hashlib.sha256(f"{repo}{step}".encode()).hexdigest(): size}
    contents |= {content: SHARED[content] for content in shared}
    return RefInfo(repo, f"step{step}", "tag", sha(repo, step), contents, step, own)


def source(repo: str, step: int, last: int | None = None) -> Source:
    label = f"{repo}@step{step}"
    return Source(
        label, sha(repo, step), "d" * 64, step, last_sha=sha(repo, last) if last else None
    )


def lock_of(chosen: Sequence[int], last: Sequence[int], tied: Sequence[int] = ()) -> Lock:
    """Return a lock of both repositories with two picks: the chosen and the last steps."""
    picks = [
        Pick(policy, tuple(map(source, REPOS, steps)), {}, 0.5, 0.01, {})
        for policy, steps in (("coordinate", chosen), ("last", last))
    ]
    experts = [expert for pick in picks for expert in pick.experts]
    swaps = {
        repo: tuple(
            Swap(sha(repo, step), f"{repo}@step{step}", step, tied=step in tied) for step in STEPS
        )
        for repo in REPOS
    }
    return Lock(
        base=Pin("me/base", Source("me/base@main", "b" * 40, "d" * 64), {}),
        experts=tuple(Pin(expert.label, expert, {}) for expert in experts),
        tasks=tuple(LockedTask(repo, None, 10) for repo in REPOS),
        method="ties", chosen="coordinate", picks=tuple(picks), swaps=swaps, uniform=(), seed=0,
        spent=SelectionCost(1, 1), conclusive=True,
    )  # fmt: skip


def trial(steps: Sequence[int], bits: str, method: str = "ties") -> Trial:
    """Return a merge of one step of each repository, measured on one task."""
    parts = tuple(Part(sha(repo, step)) for repo, step in zip(REPOS, steps, strict=True))
    rows = {"cats@1": RowResults(bits, len(bits))}
    return Trial(f"{method}{steps}", "base", parts, method, {}, "validation", rows)


revision_lists = st.lists(
    st.builds(
        revision,
        st.sampled_from(REPOS),
        st.sampled_from(STEPS),
        st.integers(0, 20),
        st.none() | st.floats(0, 1),
        st.sets(st.sampled_from(sorted(SHARED))),
    ),
    unique_by=lambda ref: (ref.repo, ref.step),
)
step_arguments = st.tuples(
    st.integers(0, 9), st.none() | st.floats(0, 1), st.sets(st.sampled_from(sorted(SHARED)))
)
one_repository = st.lists(step_arguments, min_size=5, max_size=8).map(
    lambda steps: [revision("me/cats", step, *arguments) for step, arguments in enumerate(steps)]
)
step_pairs = st.tuples(st.sampled_from(STEPS), st.sampled_from(STEPS))
trials = st.lists(
    st.builds(trial, step_pairs, st.text("01", min_size=4, max_size=4), st.sampled_from("ab")),
    max_size=8,
)
locks = st.dictionaries(
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.builds(lock_of, step_pairs, step_pairs),
    max_size=2,
)
budgets = st.integers(0, 300)


def budgets_near_sums(refs: Sequence[RefInfo], groups: Groups) -> st.SearchStrategy[int]:
    """Draw budgets that fit the required refs and some others exactly, or miss by one byte."""
    reasons = reasons_to_keep(refs, {}, groups)
    required = [ref for ref in refs if reasons[ref]]
    optional = [ref for ref in refs if not reasons[ref]]
    some = st.sets(st.sampled_from(optional)) if optional else st.just(set[RefInfo]())
    sums = some.map(lambda some: stored_bytes([*required, *some]))
    return st.builds(lambda total, change: max(0, total + change), sums, st.integers(-1, 1))


def group(refs: Sequence[RefInfo], measured: Sequence[Trial]) -> Groups:
    return group_comparable(measured, {ref.sha for ref in refs}, ())


@given(revision_lists, locks, trials, budgets)
def test_only_refs_with_a_reason_may_exceed_the_budget(
    refs: list[RefInfo], locks: dict[str, Lock], measured: list[Trial], budget: int
) -> None:
    groups = group(refs, measured)
    kept = [verdict for verdict in choose(refs, locks, groups, budget) if verdict.keep]
    reasons = reasons_to_keep(refs, locks, groups)
    required = {ref.sha for ref in refs if reasons[ref]}
    assert required <= {verdict.sha for verdict in kept}
    assert stored_bytes(kept) <= budget or {verdict.sha for verdict in kept} == required


@given(revision_lists, locks, trials, st.none() | budgets)
def test_every_commit_that_a_lock_requires_is_kept(
    refs: list[RefInfo], locks: dict[str, Lock], measured: list[Trial], budget: int | None
) -> None:
    verdicts = choose(refs, locks, group(refs, measured), budget)
    dropped = {verdict.sha for verdict in verdicts if not verdict.keep}
    assert not any(dropped & required_commits(lock).keys() for lock in locks.values())


def kept_names(refs: Sequence[RefInfo], groups: Groups, budget: int) -> set[str]:
    return {verdict.label for verdict in choose(refs, {}, groups, budget) if verdict.keep}


@given(one_repository, st.just([]) | trials, st.data())
def test_a_larger_budget_never_drops_what_a_smaller_one_keeps(
    refs: list[RefInfo], measured: list[Trial], data: st.DataObject
) -> None:
    groups = group(refs, measured)
    near_sums = budgets_near_sums(refs, groups)
    smaller, larger = sorted(data.draw(st.tuples(near_sums, near_sums)))
    assert kept_names(refs, groups, smaller) <= kept_names(refs, groups, larger)


@pytest.mark.parametrize(
    ("budget", "steps"), [(120, {1, 4}), (151, {1, 2, 4}), (160, {1, 2, 4}), (161, {1, 2, 3, 4})]
)
def test_the_first_step_that_does_not_fit_ends_the_list(budget: int, steps: set[int]) -> None:
    """Keeping step 3 at 120, where step 2 does not fit, would break the rule above at 151."""
    sizes = {1: 50, 2: 100, 3: 10, 4: 1}
    refs = [revision("me/cats", step, size, shared=()) for step, size in sizes.items()]
    assert kept_names(refs, {}, budget) == {f"me/cats@step{step}" for step in steps}


@given(revision_lists, locks, trials, st.none() | budgets, st.randoms())
def test_the_order_of_the_arguments_changes_nothing(
    refs: list[RefInfo],
    locks: dict[str, Lock],
    measured: list[Trial],
    budget: int | None,
    random: object,
) -> None:
    before = choose(refs, locks, group(refs, measured), budget)
    for items in (refs, measured):
        random.shuffle(items)  # type: ignore[attr-defined]
    reordered = dict(reversed(locks.items()))
    assert choose(refs, reordered, group(refs, measured), budget) == before


@given(revision_lists, trials, budgets)
def test_the_best_measured_merge_is_always_kept(
    refs: list[RefInfo], measured: list[Trial], budget: int
) -> None:
    groups = group(refs, measured)
    dropped = {verdict.sha for verdict in choose(refs, {}, groups, budget) if not verdict.keep}
    assert all(regret.value == 0 for regret in compute_regrets(groups, dropped, ()))


@given(revision_lists, budgets)
def test_a_plan_is_unchanged_by_writing_and_reading(refs: list[RefInfo], budget: int) -> None:
    plan = RetentionPlan(tuple(choose(refs, {}, {}, budget)), budget="2GB", targets=("ties",))
    assert parse_plan(plan.to_bytes(), "it") == plan


def test_reasons_name_locks_targets_and_the_series() -> None:
    refs = [revision(repo, step, own=step / 100) for repo in REPOS for step in STEPS]
    locks = {"ab" * 32: lock_of(chosen=(4, 8), last=(16, 32), tied=(2, 8, 16))}
    groups = group_comparable([trial((2, 8), "1111")], {ref.sha for ref in refs}, ())
    reasons = {
        f"{ref.repo[3:]}{ref.step}": reasons_of_ref
        for ref, reasons_of_ref in reasons_to_keep(refs, locks, groups).items()
    }
    assert reasons == {
        "cats2": ["tied with the choice of lock abababab", "best for ties"],
        "cats4": ["choice of lock abababab"],
        "cats8": ["tied with the choice of lock abababab"],  # 16 is tied too, but not next to it
        "cats16": ["pick last of lock abababab"],
        "cats32": ["best expert", "last"],
        "dogs2": [],
        "dogs4": [],
        "dogs8": ["choice of lock abababab", "best for ties"],
        "dogs16": ["tied with the choice of lock abababab"],
        "dogs32": ["pick last of lock abababab", "best expert", "last"],
    }


def test_every_series_of_steps_keeps_the_last() -> None:
    refs = [
        RefInfo("me/llm", f"stage{stage}-step{step}", "branch", sha(str(stage), step), {}, step)
        for stage in (1, 2)
        for step in (10, 20)
    ]
    kept = {verdict.name for verdict in choose(refs, {}, {}) if verdict.keep}
    assert kept == {"stage1-step20", "stage2-step20"}


def test_the_last_step_and_the_base_of_a_lock_are_required() -> None:
    lock = lock_of((4, 4), (8, 8))
    best = dataclasses.replace(lock.picks[0], experts=(source(REPOS[0], 4, last=16),) * 2)
    needed = required_commits(dataclasses.replace(lock, picks=(best, lock.picks[1])))
    assert needed[sha(REPOS[0], 16)] == "last step"
    assert needed["b" * 40] == "base"


def test_a_shared_content_is_stored_once() -> None:
    assert stored_bytes([revision("me/cats", 2), revision("me/cats", 4)]) == 21
    assert stored_bytes([revision("me/cats", 2), revision("me/dogs", 2)]) == 22


def test_the_budget_is_filled_by_smallest_gap() -> None:
    refs = [revision("me/cats", step) for step in (2, 4, 8, 16, 32)]
    measured = [trial((step, step), bits) for step, bits in ((2, "1000"), (4, "1100"), (8, "1111"))]
    verdicts = choose(refs, {}, group(refs, measured), budget=32)
    assert {v.name: v.reasons for v in verdicts} == {
        "step2": ("75.0 points behind the best",),
        "step4": ("fits the budget", "50.0 points behind the best"),
        "step8": ("best for ties",),
        "step16": ("in no measured merge",),
        "step32": ("last",),
    }


def test_regret_and_interval_match_a_calculation_by_hand() -> None:
    best, second = trial((2, 2), "1111"), trial((4, 4), "1010")
    groups = group_comparable([second, best], {sha("me/cats", 2)}, ())
    [regret] = compute_regrets(groups, {sha("me/cats", 2)}, ())
    # Rows differ by 0, 1, 0, 1: variance 1/4, over four rows 1/16, standard error 1/4.
    assert paired_stderr(best, second) == 0.25
    assert (regret.best, regret.kept, regret.value, regret.band) == (1.0, 0.5, 0.5, 1.96 * 0.25)
    assert not regret.is_noise
    assert regret.trials == 2


def test_rows_that_all_differ_alike_have_no_error() -> None:
    """Their variance is zero; as a difference of rounded squares it would be negative."""
    graded = [
        dataclasses.replace(trial((4, 4), "1"), rows={"cats@1": RowResults("", 7, (value,) * 7)})
        for value in (0.99, 0.0)
    ]
    assert paired_stderr(*graded) == pytest.approx(0, abs=1e-12)


def test_every_step_that_the_choice_averages_is_part_of_it() -> None:
    lock = lock_of((8, 2), (32, 32))
    pick = lock.pick()
    first, second = pick.experts
    mean = dataclasses.replace(first, averaged=(source("me/cats", 4), first))
    picks = [dataclasses.replace(pick, experts=(mean, second))]
    picks += [other for other in lock.picks if other.policy != pick.policy]
    roles = required_commits(dataclasses.replace(lock, picks=tuple(picks)))
    assert roles[sha("me/cats", 4)] == roles[sha("me/cats", 8)] == "choice"


def test_only_trials_of_one_method_and_the_same_rows_are_compared() -> None:
    commits = {sha("me/cats", 2), sha("me/cats", 4)}
    more_rows = trial((2, 2), "11111")
    half = dataclasses.replace(
        trial((2, 2), "11"), rows={"cats@1": RowResults("11", 4)}, recipe="half"
    )
    others = [trial((2, 2), "1111", "dare"), trial((8, 8), "1111")]
    groups = group_comparable([trial((4, 4), "1000"), more_rows, half, *others], commits, ("ties",))
    accuracies = [[trial.accuracy for trial in trials] for trials in groups.values()]
    assert accuracies == [[1.0, 0.25], [1.0]]
    assert group_comparable([trial((8, 8), "1111")], commits, ()) == {}


def test_an_unmeasured_regret_is_none_and_not_zero() -> None:
    [regret] = compute_regrets({}, (), ("ties",))
    assert (regret.target, regret.value, regret.is_noise) == ("ties", None, False)
    groups = group_comparable([trial((2, 2), "1111")], {sha("me/cats", 2)}, ())
    [regret] = compute_regrets(groups, {sha("me/cats", 2)}, ("ties",))
    assert (regret.best, regret.kept, regret.value) == (1.0, None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2 * 2**30), ("300b", 300),
        ("30%", 300), ("5usd", 500 * 10**9), ("0%", 0), ("1kb", 1000), ("1KiB", 1024),
    ],
)  # fmt: skip
def test_a_budget_is_parsed_to_bytes(text: str, size: int) -> None:
    assert parse_budget(text, total=1000, usd_per_gb_month=0.01) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "1e9B", "2GBB", "2 dollars", "inf%"])
def test_an_invalid_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a storage budget"):
        parse_budget(text, 1000, 0.01)


def plan_bytes(**changes: object) -> bytes:
    """Return the file of a plan with one changed verdict and a correct digest."""
    [verdict] = choose([revision("me/cats", 2)], {}, {}, 0)
    return RetentionPlan((dataclasses.replace(verdict, **{"keep": False, **changes}),)).to_bytes()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a plan"),
        (b"[]", "not a plan"),
        (b'{"format": 9}', "unknown format"),
        (b"[" * 100_000, "not a plan"),
        (RetentionPlan(()).to_bytes() + b" ", "was edited"),
        (RetentionPlan(()).to_bytes().replace(b'_kept": 0', b'_kept": 1'), "was edited"),
        (plan_bytes(name="main"), "is not a step"),
        (plan_bytes(name="v1"), "is not a step"),
        (plan_bytes(name="../step2"), "not a revision"),
        (plan_bytes(repo="../cats"), "not a repository"),
        (plan_bytes(sha="step2"), "invalid commit"),
        (plan_bytes(contents={"../x": 1}), "invalid commit or content SHA"),
        (plan_bytes(kind="pull"), "not a plan"),
    ],
)
def test_an_invalid_plan_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        parse_plan(data, "it")


def test_a_plan_has_sizes_and_costs() -> None:
    refs = [revision("me/cats", step, size=10**9) for step in (2, 4)]
    fields = json.loads(
        RetentionPlan(tuple(choose(refs, {}, {})), usd_per_gb_month=0.02).to_bytes()
    )
    assert fields["totals"] == {
        "bytes_kept": 10**9 + 1, "bytes_dropped": 10**9,
        "usd_per_month_kept": 0.02, "usd_per_month_dropped": 0.02,
    }  # fmt: skip
    assert [verdict["bytes"] for verdict in fields["verdicts"]] == [10**9 + 1] * 2


def test_only_merges_measured_on_validation_count() -> None:
    """A trial on test data, or of a single expert, must not decide which steps are kept."""
    merge = trial((2, 8), "1100")
    tested = dataclasses.replace(trial((4, 8), "1111"), split="test")
    single = dataclasses.replace(trial((8, 8), "1111"), method=SINGLE_EXPERT)
    empty = dataclasses.replace(trial((8, 2), "1111"), rows={})
    groups = group_comparable([tested, single, empty, merge], {sha("me/cats", 2)}, ())
    assert [list(trials) for trials in groups.values()] == [[merge]]


def test_measurements_of_a_folder_in_a_commit_are_those_of_the_commit() -> None:
    plain = trial((2, 8), "1111")
    parts = (
        dataclasses.replace(plain.parts[0], sha=f"{plain.parts[0].sha}/checkpoint-2"),
        plain.parts[1],
    )
    groups = group_comparable([dataclasses.replace(plain, parts=parts)], {sha("me/cats", 2)}, ())
    assert accuracy_gaps(groups)[sha("me/cats", 2)] == 0
    [regret] = compute_regrets(groups, {sha("me/cats", 2)}, ())
    assert regret.kept is None
