"""The card of a merge made from a lock: a golden file, its claims, and hostile text."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt

from hubmerge.cards.card import BEGIN, END, CardInput, render_card
from hubmerge.cards.metadata import eval_results
from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock
from hubmerge.manifest import Manifest
from hubmerge.refs import printable
from tests.cards.builders import TASKS, lock, merge, pick, score, scores, source
from tests.cards.test_card import HOSTILE, front_matter_of

GOLDEN = Path(__file__).with_name("golden_merge.md")


def merge_card(selection: Lock | None = None, manifest: Manifest | None = None) -> str:
    selection = selection or lock()
    card_input = CardInput(manifest or merge(selection), scores(selection), lock=selection)
    return render_card(card_input)


def test_the_card_is_the_golden_one() -> None:
    assert merge_card() == GOLDEN.read_text(encoding="utf-8")


def test_the_card_names_all_steps_of_a_mean() -> None:
    plain = lock().pick("last")
    first, second = plain.experts
    mean = dataclasses.replace(first, averaged=(source("cats@1", 4), first))
    picks = tuple(
        dataclasses.replace(pick, experts=(mean, second)) if pick.policy == "last" else pick
        for pick in lock().picks
    )
    card = merge_card(lock(picks=picks, chosen="last", conclusive=False))
    assert "| cats | o/cats | 4+8 of 8 | `" in card
    assert "It is made of the experts' means of steps up to the last, 16 training steps" in card


def test_the_lock_of_these_tests_is_valid() -> None:
    assert parse_lock(lock().to_bytes(), "here") == lock()


def test_rendering_again_changes_nothing() -> None:
    card = merge_card()
    assert render_card(CardInput(merge(), scores(), lock=lock()), card) == card


def test_the_headline_has_an_interval_and_each_gain() -> None:
    # (80 + 70) / 2 = 75; 1.96 * sqrt(0.8 * 0.2 / 1000 + 0.7 * 0.3 / 1000) / 2 = 1.89.
    assert (
        "**Upcycling score 75.00 %** (95 % interval 73.11 to 76.89), raw mean test accuracy over 2 "
        "tasks: +10.00 against merging the last steps; +2.00 against the best common step; +30.00 "
        "against the base."
    ) in merge_card()


def test_an_inconclusive_choice_is_in_the_headline() -> None:
    weak = pick("coordinate", 4, 2, 0.61, (0.01, -0.02, 0.04))
    inconclusive = lock(conclusive=False, picks=(*lock().picks[:2], weak))
    head = merge_card(inconclusive).split("\n## ")[0]
    assert "**The selection is inconclusive:**" in head
    assert "does not beat last beyond the noise (+1.00 (-2.00 to +4.00) points over last)" in head
    assert "inconclusive" not in merge_card().split("\n## ")[0]


def test_the_choice_of_the_rival_is_inconclusive() -> None:
    same = lock(chosen="last", conclusive=False)
    assert "**The selection is inconclusive:** no policy beats last" in merge_card(same)


def test_gains_need_scores_on_the_same_tasks() -> None:
    partly = [s for s in scores() if s.recipe is None or s.task == "cats@1" or s.value == 0.70]
    uniform = CardInput(merge(), [], lock=lock()).uniform_recipe
    partly = [s for s in partly if not (s.recipe == uniform and s.task == "dogs@1")]
    card = render_card(CardInput(merge(), partly, lock=lock()))
    assert "against the best common step" not in card
    assert (
        "```\nhubmerge merge --lock hubmerge.lock --policy uniform --out ./uniform-merge\n"
        "hubmerge eval ./uniform-merge --tasks o/cats@{},o/dogs@{}\n```"
    ).format(*(expert.sha[:12] for expert in merge().experts)) in card


def test_without_a_lock_there_are_commands_for_the_baselines() -> None:
    manifest = merge(lock=None)
    own = [score(manifest.digest, task, 0.5) for task in TASKS]
    card = render_card(CardInput(manifest, own))
    last = [f"{e.name}@{e.last_sha[:12]}" for e in manifest.experts if e.last_sha]
    assert (
        f"hubmerge merge {' '.join(last)} --method ties --set density=0.2 --set scale=1.0 "
        "--out ./last-merge"
    ) in card
    assert "hubmerge select o/cats o/dogs --target ties" in card
    tasks = ",".join(f"{expert.name}@{expert.sha[:12]}" for expert in manifest.experts)
    assert f"hubmerge eval o/base@{manifest.base.sha[:12]} --tasks {tasks}\n" in card
    assert "## How it was chosen" not in card


def test_experts_without_scores_have_a_command_for_them() -> None:
    manifest = merge(lock=None)
    own = [score(manifest.digest, task, 0.5) for task in TASKS]
    card = render_card(CardInput(manifest, own))
    cats, dogs = (f"{expert.name}@{expert.sha[:12]}" for expert in manifest.experts)
    assert f"hubmerge eval {cats} {dogs}\n" in card
    alone = score(manifest.experts[0].digest, TASKS[0], 0.9)
    assert f"hubmerge eval {dogs}\n" in render_card(CardInput(manifest, [*own, alone]))


def test_commands_measure_by_the_metric_that_was_chosen() -> None:
    manifest = merge(lock=None)
    own = [score(manifest.digest, f"{task}+f1", 0.5) for task in TASKS]
    card = render_card(CardInput(manifest, own))
    tasks = ",".join(f"{expert.name}@{expert.sha[:12]}" for expert in manifest.experts)
    assert f"o/base@{manifest.base.sha[:12]} --tasks {tasks} --metric f1\n" in card
    assert f"hubmerge eval {tasks.replace(',', ' ')} --metric f1\n" in card


def test_the_normalised_value_is_only_in_the_folded_table() -> None:
    card = merge_card()
    folded = card.split("<details>")[1].split("</details>")[0]
    # (80 / 90 + 70 / 80) / 2
    assert "| mean | 88.19 |" in folded
    assert "88.19" not in card.replace(folded, "")
    assert "It is not\ndivided by the experts' own accuracy" in card


def test_a_pick_that_is_not_the_choice() -> None:
    card = merge_card(manifest=merge(policy="last"))
    assert "It was picked by the policy last; the lock's choice is the pick of coordinate." in card


def test_a_merge_that_is_not_a_pick_of_the_lock() -> None:
    other = merge(experts=(source("cats@1", 2), source("dogs@1", 8)))
    card = merge_card(manifest=other)
    assert "It is not one of the picks of its lock" in card
    assert "| cats | o/cats | 2 of 8 | `" in card
    assert "` | - | - | - |" in card


def test_a_missing_task_of_an_expert_is_taken_from_the_lock() -> None:
    without_task = tuple(dataclasses.replace(e, task=None) for e in lock().pick().experts)
    card = merge_card(manifest=merge(experts=without_task))
    assert "| cats | 50.00 | 90.00 | 60.00 | 80.00 | +20.00 | 1000 | 1.26 |" in card


def test_unneeded_training_steps_are_counted() -> None:
    assert "took 6 training steps, and 16 up to their last ones: 62.50 %" in merge_card()
    assert "It is made of the experts' last steps, 16" in merge_card(manifest=merge(policy="last"))
    unknown = tuple(dataclasses.replace(e, last_step=None) for e in lock().pick().experts)
    assert "training steps" not in merge_card(manifest=merge(experts=unknown))


def test_the_front_matter_has_the_keys_of_the_hub() -> None:
    metadata = front_matter_of(merge_card())
    assert (metadata["license"], metadata["datasets"]) == ("apache-2.0", ["o/cat-pictures"])
    assert (metadata["metrics"], metadata["base_model"]) == (["accuracy"], ["o/cats", "o/dogs"])
    card = ModelCard(merge_card())
    assert card.data.base_model_relation == "merge"  # type: ignore[attr-defined]
    assert [r.metric_value for r in card.data.eval_results] == [0.8, 0.7]  # type: ignore[attr-defined]


def test_a_stated_licence() -> None:
    card = merge_card(manifest=merge(licence="cc-by-nc-4.0"))
    assert front_matter_of(card)["license"] == "cc-by-nc-4.0"
    assert "- cc-by-nc-4.0, as stated by the author." in card


def test_an_unknown_licence() -> None:
    unlicensed = (source("cats@1", 4, licence=None), source("dogs@1", 2))
    card = merge_card(manifest=merge(experts=unlicensed))
    assert front_matter_of(card)["license"] == "unknown"
    assert "- Unknown: not every source names one." in card
    assert "- o/cats: unknown\n- o/dogs: mit" in card


def test_conflicting_licences_are_listed_and_none_is_stated() -> None:
    both = (source("cats@1", 4, licence="gpl-3.0"), source("dogs@1", 2, licence="cc-by-nc-4.0"))
    card = merge_card(manifest=merge(experts=both))
    assert front_matter_of(card)["license"] == "unknown"
    assert "o/cats is under gpl-3.0 and o/dogs under cc-by-nc-4.0: no known licence" in card


def test_eval_results_are_in_the_format_of_the_hub() -> None:
    results = yaml.safe_load(eval_results(CardInput(merge(), scores(), lock=lock())))
    entries = parse_eval_result_entries(results)
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("o/cat-pictures", "cats", 0.8)
    ]
    assert entries[0].dataset_revision == "c" * 40
    assert eval_results(CardInput(merge(), [], lock=lock())) == ""


def test_tokens_are_redacted() -> None:
    token = "hf_" + "a" * 34
    card = merge_card(lock(command=f"hubmerge select --token {token}"), merge(command=token))
    assert token not in card
    assert "hf_***" in card


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = set[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def card_with_text(text: str) -> str:
    """The card of a lock and a merge with `text` in every field that can contain any text."""
    selection, task = lock(), f"{text}@1"
    picks = tuple(
        dataclasses.replace(p, policy=text if p.policy == "coordinate" else p.policy)
        for p in selection.picks
    )
    bad = dataclasses.replace(
        selection, method=text, chosen=text, picks=picks, budget=text, split=text, command=text,
        tasks=(dataclasses.replace(selection.tasks[0], id=task, data=text), selection.tasks[1]),
        swaps={task: selection.swaps["cats@1"], "dogs@1": selection.swaps["dogs@1"]},
    )  # fmt: skip
    manifest = merge(selection, method=text, command=text, licence=text, training={"notes": [text]})
    return render_card(CardInput(manifest, scores(selection), lock=bad))


def render_page(card: str) -> Page:
    """The card as a reader sees it, without the front matter."""
    body = card[card.index(BEGIN) :]
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text: str) -> None:
    card, harmless = card_with_text(text), card_with_text("word")
    page = render_page(card)
    assert card.count(BEGIN) == card.count(END) == 1
    assert isinstance(front_matter_of(card), dict)
    assert page.tags == render_page(harmless).tags
    assert card.count("\n```") == harmless.count("\n```")
    assert "49" not in page.text.replace("arXiv 2506.14126", "")
    assert "\x1b" not in card
    rows = [line for line in card.splitlines() if line.startswith("| dogs | o/dogs")]
    assert all(line.count("|") == 8 for line in rows)
    assert printable(text) in page.text
