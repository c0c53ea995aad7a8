"""The card of a mixture: a golden file, what it claims and against what, hostile words in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hubmerge.cards.card import BEGIN, END, CardInput, StepTag, render_card
from hubmerge.cards.curve import curve_csv, standard_error
from hubmerge.manifest import Manifest, Point, parse_manifest
from hubmerge.routing import Routing
from hubmerge.scores import Score
from tests.cards.mixtures import CURVE, EXPERTS, PARAMS, mixture, routing, scores
from tests.cards.test_card import HOSTILE, front
from tests.cards.test_upcycling_card import shown_page
from tests.cards.worlds import lock, score

GOLDEN = Path(__file__).with_name("golden_mixture.md")


def told(
    manifest: Manifest | None = None,
    found: list[Score] | None = None,
    measured: Routing | None = None,
    **said: Any,
) -> str:
    log = scores() if found is None else found
    return render_card(CardInput(manifest or mixture(), log, routing=measured, **said))


def test_the_card_is_the_golden_one() -> None:
    assert told(measured=routing()) == GOLDEN.read_text(encoding="utf-8")


def test_the_manifest_of_these_tests_is_a_sound_one() -> None:
    assert parse_manifest(mixture().to_bytes(), "here").digest == mixture().digest


def test_it_leads_with_its_gains() -> None:
    # (90 + 80) / 2; the last steps (85 + 75) / 2; TIES at its best (74 + 70) / 2; the base 45.
    assert (
        ", the task unknown to the router: +5.00 against the mixture from the last steps; +13.00 "
        "against a ties merge of the same experts; +40.00 against the base."
    ) in told()


def test_of_several_merges_of_a_method_the_best_is_the_rival() -> None:
    untuned = [s for s in scores() if s.value not in (0.74, 0.70) or s.recipe is None]
    assert "| ties merge of the same experts, scale 1, density 0.2 | 70.00 |" in told(found=untuned)
    assert "| ties merge of the same experts, scale 0.6, density 0.1 | 72.00 |" in told()


def test_what_was_not_scored_has_its_command() -> None:
    card = told(found=scores()[:2])
    last = " ".join(f"{e.name}@{(e.last_sha or '')[:12]}" for e in EXPERTS)
    assert f"hubmerge moerge {last} --train-steps 300 --out ./last-mixture\n" in card
    assert "hubmerge eval ./last-mixture --tasks cats,dogs\n" in card
    assert "hubmerge select o/cats o/dogs --target moe\n" in card
    assert "--method ties --out ./plain-merge\nhubmerge eval ./plain-merge --tasks" in card
    assert "against" not in card.split("\n## ")[0]


def test_a_command_that_names_other_experts_is_no_way_to_the_last_steps() -> None:
    for command in ["hubmerge moerge o/cats", "hubmerge 'moerge"]:
        assert "last-mixture" not in told(mixture(command=command), scores()[:2])


def test_without_scores_it_says_how_to_get_them() -> None:
    card = told(found=[])
    assert "Not evaluated yet." in card
    assert "```\nhubmerge eval REPO@TAG\nhubmerge card REPO@TAG --push REPO\n```" in card
    assert "model-index" not in front(card)


def test_a_step_on_the_way_claims_nothing_over_a_training_that_ended() -> None:
    card = told(mixture(step=100))
    assert "from the last steps |" not in card
    assert "| cats | 50.00 | 92.00 | - | 90.00 | - | 1000 | 0.95 |" in card


def test_the_front_matter_says_that_it_needs_its_base() -> None:
    said = front(told())
    assert said["base_model"] == ["o/base"]
    assert (said["base_model_relation"], said["library_name"]) == ("adapter", "hubmerge")
    assert {"hubmerge", "moe", "mixture-of-experts", "lora"} <= set(said["tags"])  # type: ignore[call-overload]


def test_what_was_not_measured_is_not_told() -> None:
    card = told()
    assert "## Routing" not in card
    assert "## Cost" not in card
    assert "routing.png" not in card


def test_peft_is_promised_what_it_can_compute() -> None:
    assert "--as peft-arrow" in told()
    assert "--as peft-arrow" not in told(mixture(params={**PARAMS, "signed": True}))
    fused = told(mixture(training={"base_layout": "open_clip"}))
    assert "--as peft-arrow" not in fused
    assert '`open_clip.create_model("local-dir:FOLDER")`, then call `PeftModel' in fused


def test_its_steps_are_told_as_those_of_an_expert() -> None:
    card = told(steps=(StepTag(100, "step100", "a" * 40, 0.7),))
    assert "| 100 | step100 | `aaaaaaaaaaaa` | 70.00 |" in card
    assert "## Steps" not in told()


def test_a_lock_beside_it_tells_of_its_choice() -> None:
    of = lock(method="moe")
    pick = of.pick()
    made = mixture(experts=pick.experts, params=dict(pick.params), lock="a" * 64)
    card = told(made, [], lock=of)
    assert "the policy coordinate chose on validation" in card
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


def test_a_task_that_a_point_lacks_is_missing() -> None:
    partly = (Point(0, None, 0.5, 400, 0.0), CURVE[1])
    assert "| 0 | - | 50.00 | - | - | 0.00e+00 |" in told(mixture(validation=partly))


def with_words(text: str) -> str:
    """The card of a mixture that says `text` wherever it may say anything."""
    experts = tuple(dataclasses.replace(e, label=f"{text}@x", task=f"{text}@1") for e in EXPERTS)
    bad = mixture(
        experts=experts, command=text, licence=text, method=text,
        params={**PARAMS, "router": text, "tasks": [text], text: text},
        training={"notes": [text], "data_revisions": {text: text}, "base_layout": text},
        files={f"experts/{text}/adapter_config.json": "4" * 64},
        validation=(Point(1, None, 0.5, 1, 0.0, {text: 0.5}),),
    )  # fmt: skip
    measured = routing(
        split=text, tasks=(f"{text}@1", "dogs@1"), experts=(text, "other"),
        layers=(text, "b", "c", "d"),
    )  # fmt: skip
    return told(bad, [score(bad.digest, f"{text}@1", 0.5)], measured)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_shown_as_words(text: str) -> None:
    card, harmless = with_words(text), with_words("word")
    page = shown_page(card)
    assert card.count(BEGIN) == card.count(END) == 1
    assert isinstance(front(card), dict)
    assert page.tags == shown_page(harmless).tags
    assert card.count("\n```") == harmless.count("\n```")
    assert "49" not in page.text.replace("arXiv 2506.14126", "").replace("0.49", "")
    assert "\x1b" not in card
    rows = [line for line in card.splitlines() if line.startswith("| dogs | 50.00")]
    assert [line.count("|") for line in rows] == [6]
