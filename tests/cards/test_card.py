from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from hubmerge.cards.card import BEGIN, END, CardInput, render_card
from hubmerge.cards.figures import draw_curves
from hubmerge.manifest import Manifest, recipe_of_last_steps
from hubmerge.scores import Score
from hubmerge.source import Source
from hubmerge.training_curve import ValidationPoint

BASE = Source("o/base@" + "b" * 12, "b" * 40, "d" * 64)
FILES = {"model.safetensors": "f" * 64}


def source(name: str, step: int) -> Source:
    digest, last = (name * 64)[:64], f"{name}512".ljust(40, "0")
    return Source(
        f"o/{name}@step{step}", f"{name}{step}".ljust(40, "0"), digest, step, name, 1.0, 512, last
    )


def merge_manifest(step: int) -> Manifest:
    experts = (source("cats", step), source("dogs", step))
    manifest = Manifest(
        kind="merge", base=BASE, experts=experts, method="ties", params={"density": 0.2},
        layout="open_clip", command="hubmerge merge o/cats@step64 o/dogs@step64",
        versions={"hubmerge": "0.1.0"},
    )  # fmt: skip
    return manifest.with_files({"model.safetensors": str(step).rjust(64, "0")})


def score(model: str, task: str, value: float, recipe: str | None = None) -> Score:
    stderr = math.sqrt(value * (1 - value) / 1000)
    return Score("label", model, f"{task}@1", "test", "accuracy", value, 1000, stderr, recipe)


def scores() -> list[Score]:
    early, last = merge_manifest(64), merge_manifest(512)
    assert recipe_of_last_steps(early) == last.recipe
    return [
        score(early.digest, "cats", 0.80, early.recipe),
        score(early.digest, "dogs", 0.70, early.recipe),
        score(last.digest, "cats", 0.60, last.recipe),
        score(last.digest, "dogs", 0.70, last.recipe),
        score(BASE.digest, "cats", 0.50),
        score(BASE.digest, "dogs", 0.40),
        score(source("cats", 64).digest, "cats", 0.90),
    ]


def front_matter_of(card: str) -> dict[str, object]:
    metadata: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return metadata


def test_the_headline_has_the_upcycling_score_and_the_gains() -> None:
    card = render_card(CardInput(merge_manifest(64), scores()))
    # (80 + 70) / 2 = 75; the last steps give 65 and the base 45.
    assert "**Upcycling score 75.00 %**" in card
    assert "+10.00 against merging the last steps; +30.00 against the base" in card
    assert "| cats | 50.00 | 90.00 | 60.00 | 80.00 | +20.00 | 1000 | 1.26 |" in card
    assert "| dogs | 40.00 | - | 70.00 | 70.00 | +0.00 | 1000 | 1.45 |" in card
    assert "| cats | o/cats | 64 of 512 | `cats64000000` |" in card
    assert "| dogs | o/dogs | 64 of 512 | `dogs64000000` |" in card


def test_a_merge_of_last_steps_has_no_gain_over_itself() -> None:
    assert "against merging the last steps" not in render_card(
        CardInput(merge_manifest(512), scores())
    )


def test_gains_need_the_same_tasks() -> None:
    partly = [
        s for s in scores() if not (s.recipe == merge_manifest(512).recipe and s.task == "dogs@1")
    ]
    assert "against merging the last steps" not in render_card(
        CardInput(merge_manifest(64), partly)
    )


def test_the_front_matter_has_the_keys_of_the_hub() -> None:
    metadata = front_matter_of(render_card(CardInput(merge_manifest(64), scores())))
    assert metadata["base_model"] == ["o/cats", "o/dogs"]
    assert metadata["base_model_relation"] == "merge"
    assert {"hubmerge", "merge", "ties", "arxiv:2506.14126"} <= set(metadata["tags"])  # type: ignore[call-overload]
    result = metadata["model-index"][0]["results"][0]  # type: ignore[index]
    assert result["dataset"] == {"name": "cats", "type": "cats", "split": "test"}
    assert result["metrics"][0]["value"] == 0.8


def test_a_card_without_scores_is_not_evaluated() -> None:
    card = render_card(CardInput(merge_manifest(64), []))
    assert "Not evaluated yet." in card
    assert "model-index" not in front_matter_of(card)


def test_the_same_manifest_and_scores_give_the_same_card() -> None:
    card = render_card(CardInput(merge_manifest(64), scores()))
    assert render_card(CardInput(merge_manifest(64), scores()), card) == card


def test_text_of_the_author_is_kept() -> None:
    card = render_card(CardInput(merge_manifest(64), []))
    edited = card.replace(BEGIN, f"Read this first.\n{BEGIN}") + "\n## Thanks\nTo the cats.\n"
    again = render_card(CardInput(merge_manifest(64), scores()), edited)
    assert "Read this first.\n" + BEGIN in again
    assert again.endswith("## Thanks\nTo the cats.\n")
    assert "Upcycling score 75.00" in again
    assert again.count(BEGIN) == again.count(END) == again.count("library_name:") == 1


HOSTILE = [
    "a|b", "`rm`", "```", "</script><script>alert(1)</script>", "---", "{{7*7}}", "{% raw %}",
    "<!-- x -->",
    "[click](javascript:alert(1))", "a\nb", "\x1b[31mred", "**bold**", END,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_text(text: str) -> None:
    bad = dataclasses.replace(source("cats", 64), task=f"{text}@1", label=f"{text}@x", sha=text)
    manifest = dataclasses.replace(merge_manifest(64), experts=(bad,), command=f"hubmerge {text}")
    card = render_card(CardInput(manifest, [score(manifest.digest, text, 0.5)]))
    body = card.split(BEGIN)[1]
    assert "49" not in body.replace("2506.14126", "")
    assert "<script" not in body.split("```")[0]
    assert card.count(BEGIN) == card.count(END) == 1
    assert "\x1b" not in card
    assert isinstance(front_matter_of(card), dict)
    table = [line for line in body.splitlines() if line.startswith("|") and "1000" in line]
    assert table
    assert all(line.replace("\\|", "").count("|") == 9 for line in table)


def test_an_experts_card_has_a_curve() -> None:
    points = (ValidationPoint(0, None, 0.5, 400, 0.0), ValidationPoint(8, 1.25, 0.75, 400, 1e-5))
    manifest = Manifest(
        kind="expert", base=BASE, step=8, last_step=16, task="cats@1", validation=points,
        training={"lr": 1e-5}, layout="transformers", command="hubmerge train", files=FILES,
    )  # fmt: skip
    card = render_card(CardInput(manifest, []))
    assert "| 8 | 1.2500 | 75.00 | 1.00e-05 |" in card
    assert front_matter_of(card)["base_model"] == ["o/base"]
    assert front_matter_of(card)["base_model_relation"] == "finetune"


def test_a_local_base_is_not_a_base_model_of_the_hub() -> None:
    local = dataclasses.replace(BASE, label="./base", sha=BASE.digest)
    manifest = Manifest(kind="expert", base=local, step=8, last_step=8, task="cats@1")
    assert "base_model" not in front_matter_of(render_card(CardInput(manifest, [])))


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_a_figure_is_reproducible(tmp_path: Path, name: str) -> None:
    curves = {"ties": {1: (0.5, 0.01), 64: (0.7, 0.01)}, "experts": {1: (0.5, 0.01)}}
    for folder in ("a", "b"):
        draw_curves(curves, "accuracy", tmp_path / folder / name)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_hub_data_set_is_linked_with_the_commit() -> None:
    manifest = merge_manifest(64)
    measured = dataclasses.replace(score(manifest.digest, "cats", 0.5), data="o/cats@" + "a" * 40)
    metadata = front_matter_of(render_card(CardInput(manifest, [measured])))
    dataset = metadata["model-index"][0]["results"][0]["dataset"]  # type: ignore[index]
    assert dataset == {"name": "cats", "type": "o/cats", "split": "test", "revision": "a" * 40}


def test_only_the_newest_version_of_a_task_counts() -> None:
    manifest = merge_manifest(64)
    old = dataclasses.replace(score(manifest.digest, "cats", 0.2), task="cats@0")
    card = render_card(CardInput(manifest, [old, score(manifest.digest, "cats", 0.8)]))
    assert "**Upcycling score 80.00 %**" in card
    assert "over 1 tasks" in card


def reviews() -> Manifest:
    """A merge of two experts whose tasks have the same name but different files."""
    experts = tuple(
        dataclasses.replace(source(name, 64), task=f"reviews@{name}") for name in ("a", "b")
    )
    return dataclasses.replace(merge_manifest(64), experts=experts)


def score_of(manifest: Manifest, task: str, value: float, metric: str = "accuracy") -> Score:
    base_score = score(manifest.digest, task, value)
    return dataclasses.replace(base_score, task=task, metric=metric)


def test_two_tasks_with_one_name_are_two_rows() -> None:
    manifest = reviews()
    log = [score_of(manifest, "reviews@a", 0.8), score_of(manifest, "reviews@b", 0.6)]
    log.append(dataclasses.replace(log[1], model=manifest.experts[1].digest, value=0.9))
    card = render_card(CardInput(manifest, log))
    assert "# ties merge of 2 experts: reviews@a, reviews@b\n" in card
    assert "**Upcycling score 70.00 %**" in card
    assert "over 2 tasks" in card
    assert "| reviews@a | - | - | - | 80.00 | - | 1000 |" in card
    assert "| reviews@b | - | 90.00 | - | 60.00 | - | 1000 |" in card
    assert "| reviews@b | o/b | 64 of 512 | `b64000000000` |" in card
    results = front_matter_of(card)["model-index"][0]["results"]  # type: ignore[index]
    assert [result["dataset"]["name"] for result in results] == ["reviews@a", "reviews@b"]


def test_another_task_of_that_name_is_not_in_an_experts_row() -> None:
    manifest = reviews()
    card = render_card(CardInput(manifest, [score_of(manifest, "reviews@c", 0.8)]))
    assert "| reviews@a | - | - | - | - | - | - | - |" in card
    assert "| reviews@b | - | - | - | - | - | - | - |" in card
    assert "| reviews@c | - | - | - | 80.00 | - | 1000 | 1.26 |" in card
    assert "| reviews@a | o/a | 64 of 512 | `a64000000000` |" in card


def test_an_expert_with_an_unknown_task_has_a_row_and_a_name() -> None:
    unknown = dataclasses.replace(source("cats", 64), task=None)
    manifest = dataclasses.replace(merge_manifest(64), experts=(unknown,))
    card = render_card(CardInput(manifest, [score_of(manifest, "cats@1", 0.8)]))
    assert "experts: o/cats\n" in card
    assert "| - | - | - | - | - | - | - | - |" in card
    assert "| cats | - | - | - | 80.00 | - | 1000 | 1.26 |" in card
    assert "| - | o/cats | 64 of 512 | `cats64000000` |" in card


def test_a_score_is_named_by_its_metric() -> None:
    manifest = merge_manifest(64)
    log = [score_of(manifest, task, 0.6, "exact_match") for task in ("cats@1", "dogs@1")]
    card = render_card(CardInput(manifest, log))
    assert "raw mean test exact match over 2 tasks" in card
    assert "raw, un-normalised mean test exact match over the tasks" in card
    assert "test accuracy" not in card


def test_tasks_of_different_metrics_have_no_mean() -> None:
    manifest = merge_manifest(64)
    log = [score_of(manifest, "cats@1", 0.8), score_of(manifest, "dogs@1", 0.6, "token_accuracy")]
    card = render_card(CardInput(manifest, log))
    assert (
        "\n\nThe tasks are measured differently, cats by accuracy, dogs by token accuracy, so "
        "there is no mean over them.\n\n## Scores\n\n"
    ) in card
    assert "| cats | - | - | - | 80.00 | - | 1000 | 1.26 |" in card
    assert "pcycling score" not in card
    assert "70.00" not in card
