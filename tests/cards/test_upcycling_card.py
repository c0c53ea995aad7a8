"""The card of a merge made from a lock: a golden file, what it claims, and hostile words in it."""

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
from hubmerge.lock import Lock, parse_lock
from hubmerge.manifest import Manifest
from hubmerge.refs import printable
from tests.cards.test_card import HOSTILE, front
from tests.cards.worlds import TASKS, lock, merge, pick, score, scores, source

GOLDEN = Path(__file__).with_name("golden_merge.md")


def told(of: Lock | None = None, manifest: Manifest | None = None) -> str:
    of = of or lock()
    return render_card(CardInput(manifest or merge(of), scores(of), lock=of))


def test_the_card_is_the_golden_one() -> None:
    assert told() == GOLDEN.read_text(encoding="utf-8")


def test_the_world_of_these_tests_has_a_sound_lock() -> None:
    assert parse_lock(lock().to_bytes(), "here") == lock()


def test_it_tells_the_same_again() -> None:
    once = told()
    assert render_card(CardInput(merge(), scores(), lock=lock()), once) == once


def test_the_headline_has_an_interval_and_each_gain() -> None:
    # (80 + 70) / 2 = 75; 1.96 * sqrt(0.8 * 0.2 / 1000 + 0.7 * 0.3 / 1000) / 2 = 1.89.
    assert (
        "**Upcycling score 75.00 %** (95 % interval 73.11 to 76.89), raw mean test accuracy over 2 "
        "tasks: +10.00 against merging the last steps; +2.00 against the best common step; +30.00 "
        "against the base."
    ) in told()


def test_an_inconclusive_choice_is_said_in_the_headline() -> None:
    weak = pick("coordinate", 4, 2, 0.61, (0.01, -0.02, 0.04))
    unsure = lock(conclusive=False, picks=(*lock().picks[:2], weak))
    head = told(unsure).split("\n## ")[0]
    assert "**The selection is inconclusive:**" in head
    assert "does not beat last beyond the noise (+1.00 (-2.00 to +4.00) points over last)" in head
    assert "inconclusive" not in told().split("\n## ")[0]


def test_the_choice_of_the_rival_is_inconclusive() -> None:
    same = lock(chosen="last", conclusive=False)
    assert "**The selection is inconclusive:** no policy beats last" in told(same)


def test_only_what_was_scored_on_the_same_tasks_is_a_gain() -> None:
    partly = [s for s in scores() if s.recipe is None or s.task == "cats@1" or s.value == 0.70]
    uniform = CardInput(merge(), [], lock=lock()).uniform_recipe
    partly = [s for s in partly if not (s.recipe == uniform and s.task == "dogs@1")]
    card = render_card(CardInput(merge(), partly, lock=lock()))
    assert "against the best common step" not in card
    assert (
        "```\nhubmerge merge --lock hubmerge.lock --policy uniform --out ./uniform-merge\n"
        "hubmerge eval ./uniform-merge --tasks cats,dogs\n```"
    ) in card


def test_without_a_lock_it_says_how_to_get_the_rivals() -> None:
    manifest = merge(lock=None)
    own = [score(manifest.digest, task, 0.5) for task in TASKS]
    card = render_card(CardInput(manifest, own))
    last = [f"{e.name}@{e.last_sha[:12]}" for e in manifest.experts if e.last_sha]
    assert (
        f"hubmerge merge {' '.join(last)} --method ties --set density=0.2 --set scale=1.0 "
        "--out ./last-merge"
    ) in card
    assert "hubmerge select o/cats o/dogs --target ties" in card
    assert f"hubmerge eval o/base@{manifest.base.sha[:12]} --tasks cats,dogs" in card
    assert "## How it was chosen" not in card


def test_the_normalised_value_is_only_in_the_folded_table() -> None:
    card = told()
    folded = card.split("<details>")[1].split("</details>")[0]
    # (80 / 90 + 70 / 80) / 2
    assert "| mean | 88.19 |" in folded
    assert "88.19" not in card.replace(folded, "")
    assert "It is not\ndivided by the experts' own accuracy" in card


def test_a_pick_that_is_not_the_choice_says_so() -> None:
    card = told(manifest=merge(policy="last"))
    assert "It is what the policy last picked; the lock's choice is that of coordinate." in card


def test_a_merge_that_the_lock_does_not_pick_borrows_nothing_from_it() -> None:
    strange = merge(experts=(source("cats@1", 2), source("dogs@1", 8)))
    card = told(manifest=strange)
    assert "It is none of the picks of the lock beside it" in card
    assert "| cats | o/cats | 2 of 8 | `" in card
    assert "` | - | - | - |" in card


def test_the_lock_knows_the_task_of_an_expert_that_does_not() -> None:
    silent = tuple(dataclasses.replace(e, task=None) for e in lock().pick().experts)
    card = told(manifest=merge(experts=silent))
    assert "| cats | 50.00 | 90.00 | 60.00 | 80.00 | +20.00 | 1000 | 1.26 |" in card


def test_steps_that_were_not_needed_are_counted() -> None:
    assert "took 6 training steps, and 16 up to their last ones: 62.50 %" in told()
    assert "It is made of the experts' last steps, 16" in told(manifest=merge(policy="last"))
    unknown = tuple(dataclasses.replace(e, last_step=None) for e in lock().pick().experts)
    assert "training steps" not in told(manifest=merge(experts=unknown))


def test_the_front_matter_is_what_the_hub_reads() -> None:
    said = front(told())
    assert (said["license"], said["datasets"]) == ("apache-2.0", ["o/cat-pictures"])
    assert (said["metrics"], said["base_model"]) == (["accuracy"], ["o/cats", "o/dogs"])
    card = ModelCard(told())
    assert card.data.base_model_relation == "merge"  # type: ignore[attr-defined]
    assert [r.metric_value for r in card.data.eval_results] == [0.8, 0.7]  # type: ignore[attr-defined]


def test_a_stated_licence_is_told_as_such() -> None:
    card = told(manifest=merge(licence="cc-by-nc-4.0"))
    assert front(card)["license"] == "cc-by-nc-4.0"
    assert "- cc-by-nc-4.0, as stated by whoever merged." in card


def test_an_unknown_licence_stays_unknown() -> None:
    silent = (source("cats@1", 4, licence=None), source("dogs@1", 2))
    card = told(manifest=merge(experts=silent))
    assert front(card)["license"] == "unknown"
    assert "- Unknown: not every source names one." in card
    assert "- o/cats: unknown\n- o/dogs: mit" in card


def test_licences_that_clash_are_told_and_none_is_named() -> None:
    both = (source("cats@1", 4, licence="gpl-3.0"), source("dogs@1", 2, licence="cc-by-nc-4.0"))
    card = told(manifest=merge(experts=both))
    assert front(card)["license"] == "unknown"
    assert "o/cats is under gpl-3.0 and o/dogs under cc-by-nc-4.0: no licence" in card


def test_results_are_in_the_hubs_own_format() -> None:
    said = yaml.safe_load(eval_results(CardInput(merge(), scores(), lock=lock())))
    entries = parse_eval_result_entries(said)
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("o/cat-pictures", "cats", 0.8)
    ]
    assert entries[0].dataset_revision == "c" * 40
    assert eval_results(CardInput(merge(), [], lock=lock())) == ""


def test_a_token_is_in_no_card() -> None:
    token = "hf_" + "a" * 34
    card = told(lock(command=f"hubmerge select --token {token}"), merge(command=token))
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


def with_words(text: str) -> str:
    """The card of a lock and a merge that say `text` wherever they may say anything."""
    of, task = lock(), f"{text}@1"
    picks = tuple(
        dataclasses.replace(p, policy=text if p.policy == "coordinate" else p.policy)
        for p in of.picks
    )
    bad = dataclasses.replace(
        of, method=text, chosen=text, picks=picks, budget=text, split=text, command=text,
        tasks=(dataclasses.replace(of.tasks[0], id=task, data=text), of.tasks[1]),
        swaps={task: of.swaps["cats@1"], "dogs@1": of.swaps["dogs@1"]},
    )  # fmt: skip
    manifest = merge(of, method=text, command=text, licence=text, training={"notes": [text]})
    return render_card(CardInput(manifest, scores(of), lock=bad))


def shown_page(card: str) -> Page:
    """What a reader sees: the front matter is for the Hub alone."""
    body = card[card.index(BEGIN) :]
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_shown_as_words(text: str) -> None:
    card, harmless = with_words(text), with_words("word")
    page = shown_page(card)
    assert card.count(BEGIN) == card.count(END) == 1
    assert isinstance(front(card), dict)
    assert page.tags == shown_page(harmless).tags
    assert card.count("\n```") == harmless.count("\n```")
    assert "49" not in page.text.replace("arXiv 2506.14126", "")
    assert "\x1b" not in card
    rows = [line for line in card.splitlines() if line.startswith("| dogs | o/dogs")]
    assert all(line.count("|") == 8 for line in rows)
    assert printable(text) in page.text
