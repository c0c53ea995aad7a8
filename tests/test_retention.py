"""What stays under a budget: laws for any revisions, and numbers worked by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.lock import Lock, LockedTask, Pick, Pin, Spent, Swap
from hubmerge.manifest import Source
from hubmerge.retention.choice import Named, choose, reasons_to_keep, references, stored
from hubmerge.retention.evidence import Groups, comparable, paired_stderr, regrets
from hubmerge.retention.plan import Plan, parse_budget, parse_plan
from hubmerge.trials import ALONE, Part, Rows, Trial

REPOS = ("me/cats", "me/dogs")
STEPS = (2, 4, 8, 16, 32)


def sha(repo: str, step: int) -> str:
    return hashlib.sha1(f"{repo}@{step}".encode()).hexdigest()


def revision(repo: str, step: int, size: int = 10, own: float | None = None) -> Named:
    """A step with contents of its own, and one that it shares with all others of its repository."""
    contents = {hashlib.sha256(f"{repo}{step}".encode()).hexdigest(): size, "f" * 64: 1}
    return Named(repo, f"step{step}", "tag", sha(repo, step), contents, step, own)


def source(repo: str, step: int, last: int | None = None) -> Source:
    name = f"{repo}@step{step}"
    return Source(name, sha(repo, step), "d" * 64, step, last_sha=sha(repo, last) if last else None)


def lock_of(chosen: Sequence[int], last: Sequence[int], tied: Sequence[int] = ()) -> Lock:
    """A lock over both repositories: its choice, and the pick of the last steps."""
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
        spent=Spent(1, 1), conclusive=True,
    )  # fmt: skip


def trial(steps: Sequence[int], bits: str, method: str = "ties", more: str = "") -> Trial:
    """A merge of one step of each repository, measured on one task."""
    parts = tuple(Part(sha(repo, step)) for repo, step in zip(REPOS, steps, strict=True))
    rows = {"cats@1": Rows(bits, len(bits))}
    return Trial(f"{method}{steps}{more}", "base", parts, method, {}, "validation", rows)


revisions = st.lists(
    st.builds(
        revision,
        st.sampled_from(REPOS),
        st.sampled_from(STEPS),
        st.integers(0, 100),
        st.none() | st.floats(0, 1),
    ),
    unique_by=lambda one: (one.repo, one.step),
)
some_steps = st.tuples(st.sampled_from(STEPS), st.sampled_from(STEPS))
trials = st.lists(
    st.builds(trial, some_steps, st.text("01", min_size=4, max_size=4), st.sampled_from("ab")),
    max_size=8,
)
locks = st.dictionaries(
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.builds(lock_of, some_steps, some_steps),
    max_size=2,
)
budgets = st.integers(0, 500)


def grouped(named: Sequence[Named], tried: Sequence[Trial]) -> Groups:
    return comparable(tried, {one.sha for one in named}, ())


@given(revisions, locks, trials, budgets)
def test_only_what_must_stay_exceeds_the_budget(
    named: list[Named], held: dict[str, Lock], tried: list[Trial], budget: int
) -> None:
    groups = grouped(named, tried)
    kept = [one for one in choose(named, held, groups, budget) if one.keep]
    forced = {one.sha for one, why in reasons_to_keep(named, held, groups).items() if why}
    assert forced <= {one.sha for one in kept}
    assert stored(kept) <= budget or {one.sha for one in kept} == forced


@given(revisions, locks, trials, st.none() | budgets)
def test_all_that_a_lock_references_stays(
    named: list[Named], held: dict[str, Lock], tried: list[Trial], budget: int | None
) -> None:
    dropped = {o.sha for o in choose(named, held, grouped(named, tried), budget) if not o.keep}
    assert not any(dropped & references(lock).keys() for lock in held.values())


@given(revisions, locks, trials, budgets, budgets)
def test_a_larger_budget_drops_nothing_that_a_smaller_one_keeps(
    named: list[Named], held: dict[str, Lock], tried: list[Trial], one: int, other: int
) -> None:
    groups = grouped(named, tried)
    less, more = (
        {verdict.sha for verdict in choose(named, held, groups, budget) if verdict.keep}
        for budget in sorted((one, other))
    )
    assert less <= more


@given(revisions, locks, trials, st.none() | budgets, st.randoms())
def test_the_order_of_what_is_given_changes_nothing(
    named: list[Named],
    held: dict[str, Lock],
    tried: list[Trial],
    budget: int | None,
    random: object,
) -> None:
    before = choose(named, held, grouped(named, tried), budget)
    for things in (named, tried):
        random.shuffle(things)  # type: ignore[attr-defined]
    turned = dict(reversed(held.items()))
    assert choose(named, turned, grouped(named, tried), budget) == before


@given(revisions, trials, budgets)
def test_the_best_that_was_measured_always_stays(
    named: list[Named], tried: list[Trial], budget: int
) -> None:
    groups = grouped(named, tried)
    dropped = {one.sha for one in choose(named, {}, groups, budget) if not one.keep}
    assert all(regret.value == 0 for regret in regrets(groups, dropped, ()))


@given(revisions, budgets)
def test_a_plan_is_read_as_it_was_written(named: list[Named], budget: int) -> None:
    plan = Plan(tuple(choose(named, {}, {}, budget)), budget="2GB", targets=("ties",))
    assert parse_plan(plan.to_bytes(), "it") == plan


def test_reasons_are_told() -> None:
    named = [revision(repo, step, own=step / 100) for repo in REPOS for step in STEPS]
    held = {"ab" * 32: lock_of(chosen=(4, 8), last=(16, 32), tied=(2, 8, 16))}
    groups = comparable([trial((2, 8), "1111")], {one.sha for one in named}, ())
    told = {f"{o.repo[3:]}{o.step}": why for o, why in reasons_to_keep(named, held, groups).items()}
    assert told == {
        "cats2": ["tied with the choice of lock abababab", "best for ties"],
        "cats4": ["choice of lock abababab"],
        "cats8": ["tied with the choice of lock abababab"],  # 16 is tied too, and no neighbour
        "cats16": ["pick last of lock abababab"],
        "cats32": ["best expert", "last"],
        "dogs2": [],
        "dogs4": [],
        "dogs8": ["choice of lock abababab", "best for ties"],
        "dogs16": ["tied with the choice of lock abababab"],
        "dogs32": ["pick last of lock abababab", "best expert", "last"],
    }


def test_a_series_of_steps_keeps_its_own_last() -> None:
    named = [
        Named("me/llm", f"stage{stage}-step{step}", "branch", sha(str(stage), step), {}, step)
        for stage in (1, 2)
        for step in (10, 20)
    ]
    kept = {one.name for one in choose(named, {}, {}) if one.keep}
    assert kept == {"stage1-step20", "stage2-step20"}


def test_the_last_step_that_a_lock_was_measured_against_stays() -> None:
    lock = lock_of((4, 4), (8, 8))
    best = dataclasses.replace(lock.picks[0], experts=(source(REPOS[0], 4, last=16),) * 2)
    needed = references(dataclasses.replace(lock, picks=(best, lock.picks[1])))
    assert needed[sha(REPOS[0], 16)] == "last step"
    assert needed["b" * 40] == "base"


def test_a_shared_content_is_stored_once() -> None:
    assert stored([revision("me/cats", 2), revision("me/cats", 4)]) == 21
    assert stored([revision("me/cats", 2), revision("me/dogs", 2)]) == 22


def test_the_rest_goes_by_least_regret() -> None:
    named = [revision("me/cats", step) for step in (2, 4, 8, 16, 32)]
    told = [trial((step, step), bits) for step, bits in ((2, "1000"), (4, "1100"), (8, "1111"))]
    verdicts = choose(named, {}, grouped(named, told), budget=32)
    assert {v.name: v.reasons for v in verdicts} == {
        "step2": ("75.0 points behind the best",),
        "step4": ("fits the budget", "50.0 points behind the best"),
        "step8": ("best for ties",),
        "step16": ("in no measured merge",),
        "step32": ("last",),
    }


def test_regret_and_its_noise_are_worked_by_hand() -> None:
    best, second = trial((2, 2), "1111"), trial((4, 4), "1010")
    groups = comparable([second, best], {sha("me/cats", 2)}, ())
    [told] = regrets(groups, {sha("me/cats", 2)}, ())
    # Rows differ by 0, 1, 0, 1: variance 1/4, over four rows 1/16, standard error 1/4.
    assert paired_stderr(best, second) == 0.25
    assert (told.best, told.kept, told.value, told.band) == (1.0, 0.5, 0.5, 1.96 * 0.25)
    assert not told.is_noise
    assert told.trials == 2


def test_only_like_is_compared_with_like() -> None:
    ours = {sha("me/cats", 2), sha("me/cats", 4)}
    longer = trial((2, 2), "11111")
    half = dataclasses.replace(trial((2, 2), "11"), rows={"cats@1": Rows("11", 4)}, recipe="half")
    groups = comparable(
        [trial((4, 4), "1000"), longer, half, trial((2, 2), "1111", "dare"), trial((8, 8), "1111")],
        ours, ("ties",),
    )  # fmt: skip
    assert [[one.accuracy for one in its] for its in groups.values()] == [[1.0, 0.25], [1.0]]
    assert comparable([trial((8, 8), "1111")], ours, ()) == {}


def test_what_was_not_measured_is_not_told_as_zero() -> None:
    [told] = regrets({}, (), ("ties",))
    assert (told.target, told.value, told.is_noise) == ("ties", None, False)
    groups = comparable([trial((2, 2), "1111")], {sha("me/cats", 2)}, ())
    [told] = regrets(groups, {sha("me/cats", 2)}, ("ties",))
    assert (told.best, told.kept, told.value) == (1.0, None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2 * 2**30), ("300b", 300),
        ("30%", 300), ("5usd", 500 * 10**9), ("0%", 0), ("1kb", 1000), ("1KiB", 1024),
    ],
)  # fmt: skip
def test_budgets(text: str, size: int) -> None:
    assert parse_budget(text, total=1000, usd_per_gb_month=0.01) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "1e9B", "2GBB", "2 dollars", "inf%"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(UsageError, match="no budget"):
        parse_budget(text, 1000, 0.01)


def sealed(**change: object) -> bytes:
    """A plan whose one verdict is not what we would make, with the digest that it should have."""
    [verdict] = choose([revision("me/cats", 2)], {}, {}, 0)
    return Plan((dataclasses.replace(verdict, **{"keep": False, **change}),)).to_bytes()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no plan"),
        (b"[]", "no plan"),
        (b'{"format": 9}', "does not know"),
        (b"[" * 100_000, "no plan"),
        (Plan(()).to_bytes() + b" ", "not as it was made"),
        (Plan(()).to_bytes().replace(b'"bytes_kept": 0', b'"bytes_kept": 1'), "as it was made"),
        (sealed(name="main"), "is no step"),
        (sealed(name="v1"), "is no step"),
        (sealed(name="../step2"), "not a revision"),
        (sealed(repo="../cats"), "not a repository"),
        (sealed(sha="step2"), "has no commit"),
        (sealed(contents={"../x": 1}), "no SHA"),
        (sealed(kind="pull"), "no plan"),
    ],
)
def test_what_is_no_plan_of_ours_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(IntegrityError, match=told):
        parse_plan(data, "it")


def test_a_plan_says_what_it_costs() -> None:
    named = [revision("me/cats", step, size=10**9) for step in (2, 4)]
    said = json.loads(Plan(tuple(choose(named, {}, {})), usd_per_gb_month=0.02).to_bytes())
    assert said["totals"] == {
        "bytes_kept": 10**9 + 1, "bytes_dropped": 10**9,
        "usd_per_month_kept": 0.02, "usd_per_month_dropped": 0.02,
    }  # fmt: skip
    assert [one["bytes"] for one in said["verdicts"]] == [10**9 + 1] * 2


def test_only_merges_on_validation_have_a_say() -> None:
    """A score on test, or of an expert alone, must not decide what is kept."""
    tried = trial((2, 8), "1100")
    tested = dataclasses.replace(trial((4, 8), "1111"), split="test")
    alone = dataclasses.replace(trial((8, 8), "1111"), method=ALONE)
    empty = dataclasses.replace(trial((8, 2), "1111"), rows={})
    groups = comparable([tested, alone, empty, tried], {sha("me/cats", 2)}, ())
    assert [list(found) for found in groups.values()] == [[tried]]
