from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from hubmerge.cli.evaluate import _scores_table
from hubmerge.errors import DataError
from hubmerge.flows import report as reporting
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import PinnedModel
from hubmerge.refs import ModelRef, Revision
from hubmerge.scores import Score, ScoreLog, by_task, display_names, upcycling
from hubmerge.source import Source


def score(value: float = 0.5, task: str = "mnist@1", model: str = "m", **more: object) -> Score:
    stderr = math.sqrt(value * (1 - value) / 100)
    fields = {"label": "a/b@step1", "model": model, "task": task, "split": "test"}
    return Score(
        **{**fields, "metric": "accuracy", "value": value, "count": 100, "stderr": stderr, **more}
    )  # type: ignore[arg-type]


def test_the_upcycling_score_is_the_raw_mean() -> None:
    # (0.9 + 0.5) / 2 = 0.7; sqrt(0.03^2 + 0.05^2) / 2 = sqrt(0.0034) / 2 = 0.02915...
    result = upcycling([score(0.9, "a@1"), score(0.5, "b@1")])
    assert result is not None
    assert result.value == pytest.approx(0.7)
    assert result.stderr == pytest.approx(math.sqrt(0.0034) / 2)
    assert result.tasks == 2
    assert upcycling([]) is None


def test_there_is_no_mean_across_metrics() -> None:
    mixed = [score(0.9, "a@1"), score(0.5, "b@1", metric="token_accuracy")]
    assert upcycling(mixed) is None
    assert _columns(mixed) == ["model", "a", "b"]
    assert _columns([score(0.9, "a@1"), score(0.5, "b@1")]) == ["model", "a", "b", "mean"]


def _columns(scores: list[Score]) -> list[object]:
    table = _scores_table(scores, "test")
    assert isinstance(table, Table)
    return [column.header for column in table.columns]


def test_known_tasks_with_the_same_name_keep_their_scores() -> None:
    scores = [score(value, f"reviews@{n}") for n, value in enumerate((0.1, 0.2, 0.3, 0.4))]
    assert list(by_task(scores, {"reviews@1", "reviews@2"})) == ["reviews@1", "reviews@2"]
    assert list(by_task(scores, {"reviews@9", None})) == ["reviews@3"]
    assert display_names(["a@1", "b@1", "b@2"]) == {"a@1": "a", "b@1": "b@1", "b@2": "b@2"}


def _report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scores: list[Score], *steps: int
) -> reporting.AccuracyReport:
    """The report on a merge of two experts at step 8, of two tasks that are named `reviews`.

    With `steps`, the report on mixtures of these experts after so many steps, with equal scores.
    """
    base = Source("o/base@1", "b", "d")
    experts = tuple(Source(f"o/{n}@1", n, n, 8, f"reviews@{n}") for n in "12")
    merge = Manifest(kind="merge", base=base, experts=experts, method="ties")
    moe = dataclasses.replace(merge, kind="moe", method="moe")
    models = [
        dataclasses.replace(moe, step=step, files={"router.safetensors": str(step)})
        for step in steps
    ] or [merge]
    log = ScoreLog(tmp_path / "scores.jsonl")
    for model in models:
        log.append(dataclasses.replace(score, model=model.digest) for score in scores)
    pinned = [
        cast(PinnedModel, SimpleNamespace(manifest=model, revision=SimpleNamespace(label="m")))
        for model in models
    ]
    monkeypatch.setattr(reporting, "_pin_models", lambda *_: pinned)
    return reporting.report_accuracy(cast(Any, None), [], log, "test")


def test_a_report_keeps_tasks_with_the_same_name_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = _report(monkeypatch, tmp_path, [score(0.9, "reviews@1"), score(0.5, "reviews@2")])
    assert report.tasks == ("reviews@1", "reviews@2")
    assert report.curves["ties"][8].value == pytest.approx(0.7)


def test_a_report_puts_mixtures_at_the_step_of_their_experts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scores = [score(0.9, "reviews@1"), score(0.5, "reviews@2")]
    assert set(_report(monkeypatch, tmp_path, scores, 64).curves) == {"moe"}
    report = _report(monkeypatch, tmp_path, scores, 64, 128)
    assert set(report.curves) == {"moe trained=64", "moe trained=128"}
    assert report.curves["moe trained=64"].keys() == {8}


def test_a_report_refuses_a_mean_across_metrics(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = score(0.5, "reviews@2", metric="token_accuracy")
    with pytest.raises(DataError, match="measured differently, by accuracy and token_accuracy"):
        _report(monkeypatch, tmp_path, [score(0.9, "reviews@1"), other])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_upcycling_score_is_between_those_of_its_tasks(values: list[float]) -> None:
    result = upcycling([score(value, f"t{i}@1") for i, value in enumerate(values)])
    assert result is not None
    assert min(values) - 1e-12 <= result.value <= max(values) + 1e-12


def test_the_log_reads_what_was_appended(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path / "deep" / "scores.jsonl")
    assert log.read() == []
    log.append([score(0.5), score(0.6, "other@1")])
    assert ScoreLog(log.path).read() == [score(0.5), score(0.6, "other@1")]


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path / "scores.jsonl")
    log.append([score(0.5)])
    log.append([score(0.8)])
    assert [s.value for s in log.read()] == [0.8]
    assert len(log.path.read_text().splitlines()) == 2


@pytest.mark.parametrize("torn", ['{"label": "a', "not json", '{"other": 1}', "\x00\xff"])
def test_an_incomplete_line_does_not_spoil_the_next(tmp_path: Path, torn: str) -> None:
    log = ScoreLog(tmp_path / "scores.jsonl")
    log.append([score(0.5)])
    with log.path.open("a") as file:
        file.write(torn)
    log.append([score(0.6, "other@1")])
    assert [s.value for s in log.read()] == [0.5, 0.6]


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path / "scores.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ScoreLog(log.path).append([score(0.5, f"t{n}@1")]), range(64)))
    assert len(log.read()) == 64
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_experts_of_one_task_have_a_curve_for_each_tuning_and_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, log = Source("o/base@1", "b", "d"), ScoreLog(tmp_path / "scores.jsonl")
    pinned = []
    values = {"o/full": 0.5, "o/lora": 0.6, "o/lora-2": 0.7}
    for repo, value in values.items():
        for step in (1, 2):
            tune = "full" if repo == "o/full" else "lora"
            manifest = Manifest(
                kind="expert", base=base, task="a@1", step=step, training={"tune": tune},
                files={"weights": f"{repo}{step}"},
            )  # fmt: skip
            log.append([score(value + step / 100, "a@1", manifest.digest)])
            revision = Revision(ModelRef(repo, revision=f"step{step}"), "sha", step)
            pinned.append(SimpleNamespace(manifest=manifest, revision=revision))
    monkeypatch.setattr(reporting, "_pin_models", lambda *_: pinned)
    report = reporting.report_accuracy(cast(Any, None), [], log, "test")
    curves = {
        name: {step: point.value for step, point in curve.items()}
        for name, curve in report.curves.items()
    }
    name = reporting.EXPERTS
    assert curves == {
        f"full {name}": {1: 0.51, 2: 0.52},
        f"lora {name}": {1: 0.61, 2: 0.62},
        f"lora {name} (2)": {1: 0.71, 2: 0.72},
    }
    assert report.left_out == ()
