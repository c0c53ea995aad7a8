"""The card of a mixture: a golden file, gains over baselines, and hostile text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hubmerge.cards.card import BEGIN, END, CardInput, StepTag, render_card
from hubmerge.cards.curve import curve_csv, standard_error
from hubmerge.manifest import Manifest, parse_manifest
from hubmerge.routing import Routing
from hubmerge.scores import Score
from hubmerge.training_curve import ValidationPoint
from tests.cards.builders import lock, score
from tests.cards.moe_builders import CURVE, EXPERTS, PARAMS, moe_manifest, moe_scores, routing
from tests.cards.test_card import HOSTILE, front_matter_of
from tests.cards.test_upcycling_card import render_page

GOLDEN = Path(__file__).with_name("golden_moe.md")


def moe_card(
    manifest: Manifest | None = None,
    log: list[Score] | None = None,
    measured: Routing | None = None,
    **fields: Any,
) -> str:
    scores = moe_scores() if log is None else log
    return render_card(CardInput(manifest or moe_manifest(), scores, routing=measured, **fields))


def test_the_card_is_the_golden_one() -> None:
    assert moe_card(measured=routing()) == GOLDEN.read_text(encoding="utf-8")


def test_the_manifest_of_these_tests_is_valid() -> None:
    assert parse_manifest(moe_manifest().to_bytes(), "here").digest == moe_manifest().digest


def test_the_headline_has_the_gains() -> None:
    # (90 + 80) / 2; the last steps (85 + 75) / 2; TIES at its best (74 + 70) / 2; the base 45.
    assert (
        ", the task unknown to the router: +5.00 against the mixture from the last steps; +13.00 "
        "against a ties merge of the same experts; +40.00 against the base."
    ) in moe_card()


def test_the_best_merge_of_a_method_is_the_baseline() -> None:
    untuned = [s for s in moe_scores() if s.value not in (0.74, 0.70) or s.recipe is None]
    assert "| ties merge of the same experts, scale 1, density 0.2 | 70.00 |" in moe_card(
        log=untuned
    )
    assert "| ties merge of the same experts, scale 0.6, density 0.1 | 72.00 |" in moe_card()


def test_missing_scores_have_their_commands() -> None:
    card = moe_card(log=moe_scores()[:2])
    last = " ".join(f"{e.name}@{(e.last_sha or '')[:12]}" for e in EXPERTS)
    assert f"hubmerge moerge {last} --train-steps 300 --out ./last-mixture\n" in card
    tasks = ",".join(f"{e.name}@{e.sha[:12]}" for e in EXPERTS)
    assert f"hubmerge eval ./last-mixture --tasks {tasks}\n" in card
    assert "hubmerge select o/cats o/dogs --target moe\n" in card
    assert "--method ties --out ./plain-merge\nhubmerge eval ./plain-merge --tasks" in card
    assert "against" not in card.split("\n## ")[0]


def test_a_command_that_does_not_name_the_experts_is_not_reused() -> None:
    for command in ["hubmerge moerge o/cats", "hubmerge 'moerge"]:
        assert "last-mixture" not in moe_card(moe_manifest(command=command), moe_scores()[:2])


def test_a_card_without_scores_has_the_commands_for_them() -> None:
    card = moe_card(log=[])
    assert "Not evaluated yet." in card
    assert "```\nhubmerge eval REPO@TAG\nhubmerge card REPO@TAG --push REPO\n```" in card
    assert "model-index" not in front_matter_of(card)


def test_an_intermediate_step_is_not_compared_with_finished_training() -> None:
    card = moe_card(moe_manifest(step=100))
    assert "from the last steps |" not in card
    assert "| cats | 50.00 | 92.00 | - | 90.00 | - | 1000 | 0.95 |" in card


def test_the_front_matter_names_the_base() -> None:
    metadata = front_matter_of(moe_card())
    assert metadata["base_model"] == ["o/base"]
    assert (metadata["base_model_relation"], metadata["library_name"]) == ("adapter", "hubmerge")
    assert {"hubmerge", "moe", "mixture-of-experts", "lora"} <= set(metadata["tags"])  # type: ignore[call-overload]


def test_sections_without_measurements_are_left_out() -> None:
    card = moe_card()
    assert "## Routing" not in card
    assert "## Cost" not in card
    assert "routing.png" not in card


def test_the_arrow_export_is_offered_only_if_peft_can_compute_it() -> None:
    assert "--as peft-arrow" in moe_card()
    assert "--as peft-arrow" not in moe_card(moe_manifest(params={**PARAMS, "signed": True}))
    fused = moe_card(moe_manifest(training={"base_layout": "open_clip"}))
    assert "--as peft-arrow" not in fused
    assert '`open_clip.create_model("local-dir:FOLDER")`, then call `PeftModel' in fused


def test_the_steps_of_the_repository_are_listed() -> None:
    card = moe_card(steps=(StepTag(100, "step100", "a" * 40, 0.7),))
    assert "| 100 | step100 | `aaaaaaaaaaaa` | 70.00 |" in card
    assert "## Steps" not in moe_card()


def test_the_choice_of_a_lock_is_described() -> None:
    moe_lock = lock(method="moe")
    pick = moe_lock.pick()
    manifest = moe_manifest(experts=pick.experts, params=dict(pick.params), lock="a" * 64)
    card = moe_card(manifest, [], lock=moe_lock)
    assert "Its steps were chosen by the policy coordinate on validation" in card
    assert "| mixtures so far |" in card
    assert "| **coordinate** | 4, 2 | 68.00 |" in card


def test_a_mean_over_tasks_has_the_standard_error_of_a_mean() -> None:
    # sqrt((0.8 * 0.2 / 200 + 0.7 * 0.3 / 200)) / 2
    assert standard_error(CURVE[1]) == pytest.approx(0.0215058)
    assert curve_csv(CURVE).splitlines() == [
        "step,loss,validation_accuracy,standard_error,lr,cats,dogs",
        "0,,0.5,0.0244949,0,0.6,0.4",
        "300,0.25,0.75,0.0215058,0.0002,0.8,0.7",
    ]


def test_a_task_missing_from_a_point_has_a_dash() -> None:
    partly = (ValidationPoint(0, None, 0.5, 400, 0.0), CURVE[1])
    assert "| 0 | - | 50.00 | - | - | 0.00e+00 |" in moe_card(moe_manifest(validation=partly))


def card_with_text(text: str) -> str:
    """The card of a mixture with `text` in every field that can contain any text."""
    experts = tuple(dataclasses.replace(e, label=f"{text}@x", task=f"{text}@1") for e in EXPERTS)
    bad = moe_manifest(
        experts=experts, command=text, licence=text, method=text,
        params={**PARAMS, "router": text, "tasks": [text], text: text},
        training={"notes": [text], "data_revisions": {text: text}, "base_layout": text},
        files={f"experts/{text}/adapter_config.json": "4" * 64},
        validation=(ValidationPoint(1, None, 0.5, 1, 0.0, {text: 0.5}),),
    )  # fmt: skip
    measured = routing(
        split=text, tasks=(f"{text}@1", "dogs@1"), experts=(text, "other"),
        layers=(text, "b", "c", "d"),
    )  # fmt: skip
    return moe_card(bad, [score(bad.digest, f"{text}@1", 0.5)], measured)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text: str) -> None:
    card, harmless = card_with_text(text), card_with_text("word")
    page = render_page(card)
    assert card.count(BEGIN) == card.count(END) == 1
    assert isinstance(front_matter_of(card), dict)
    assert page.tags == render_page(harmless).tags
    assert card.count("\n```") == harmless.count("\n```")
    assert "49" not in page.text.replace("arXiv 2506.14126", "").replace("0.49", "")
    assert "\x1b" not in card
    rows = [line for line in card.splitlines() if line.startswith("| dogs | 50.00")]
    assert [line.count("|") for line in rows] == [6]
