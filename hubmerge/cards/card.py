"""Manifest + scores -> README.md. Nothing else goes in, so the same two give the same card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from hubmerge.cards.curve import CSV, PICTURE, curve_rows, curve_words, thinned
from hubmerge.cards.making import adapter_name, annealed, notes, provenance, stopped_early
from hubmerge.cards.markdown import code, no_marker, plain
from hubmerge.cards.rows import merge_rows, percent, summary_rows
from hubmerge.cards.usage import kind_of, loading, relation
from hubmerge.errors import UsageError
from hubmerge.manifest import Manifest
from hubmerge.refs import check_repo_id
from hubmerge.scores import Score, by_task, shown_names, upcycling

BEGIN, END = "<!-- hubmerge:begin -->", "<!-- hubmerge:end -->"
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_TEMPLATE = files("hubmerge") / "cards" / "card.md"


@dataclass(frozen=True)
class CardInput:
    """What a card is told from: a manifest, and the log in which its scores are looked up."""

    manifest: Manifest
    scores: Sequence[Score]
    split: str = "test"

    @property
    def own(self) -> list[Score]:
        """The scores of this very model on the split, one per task."""
        digest = self.manifest.digest
        mine = (s for s in self.scores if s.model == digest and s.split == self.split)
        known = {self.manifest.task, *(expert.task for expert in self.manifest.experts)}
        return list(by_task(mine, known).values())

    @property
    def mixed(self) -> bool:
        """Whether its tasks are measured by different metrics, so that they have no mean."""
        return len({score.metric for score in self.own}) > 1


def render_card(told: CardInput, before: str = "") -> str:
    """The card as Markdown; text that a human wrote outside the markers of `before` stays.

    Every string from outside is escaped: it can neither break the front matter nor a table.
    """
    manifest = told.manifest
    merge = manifest.kind == "merge"
    # A fixed template over plain data; nothing from a Hub is ever used as a template.
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        front_matter=_front_matter(told),
        begin=BEGIN,
        end=END,
        title=plain(_title(manifest)),
        headline=_headline(told),
        merge=merge,
        mixed=told.mixed,
        split=told.split,
        summary=summary_rows(manifest, told.own, told.scores, told.split),
        rows=_escaped(merge_rows(manifest, told.own, told.scores) if merge else _own_rows(told)),
        curve=curve_rows(manifest.validation),
        picture=_picture(manifest),
        csv=CSV,
        thinned=len(thinned(manifest.validation)) < len(manifest.validation),
        provenance=[plain(line) for line in provenance(manifest)],
        command=code(manifest.command),
        loading=loading(manifest),
        limits=_limits(manifest),
        version=plain(str(manifest.versions.get("hubmerge", ""))),
    )
    return _kept_around(text, before)


def _front_matter(told: CardInput) -> str:
    manifest = told.manifest
    merge = manifest.kind == "merge"
    sources = [s for s in (manifest.experts if merge else [manifest.base]) if not s.is_local]
    said: dict[str, Any] = {
        "library_name": manifest.layout,
        "pipeline_tag": kind_of(manifest).pipeline,
        "base_model": [name for source in sources if (name := _hub_name(source.name))],
        "base_model_relation": relation(manifest),
        "tags": ["hubmerge", "model-upcycling", *_own_tags(manifest), "arxiv:2506.14126"],
        "model-index": _model_index(told),
    }
    if not said["base_model"]:
        del said["base_model_relation"]
    known = {key: value for key, value in said.items() if value}
    dumped = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{no_marker(dumped)}---"


def _model_index(told: CardInput) -> list[dict[str, Any]]:
    kind = kind_of(told.manifest).task
    if kind is None or not told.own:
        return []
    names = shown_names(score.task for score in told.own)
    results = [
        {
            "task": {"type": kind, "name": kind.replace("-", " ").capitalize()},
            "dataset": _dataset(score, names[score.task]),
            "metrics": [_metric(score)],
        }
        for score in told.own
    ]
    return [{"name": _title(told.manifest), "results": results}]


def _metric(score: Score) -> dict[str, Any]:
    return {"type": score.metric, "value": round(score.value, 6), "name": _metric_name(score)}


def _metric_name(score: Score) -> str:
    return score.metric.replace("_", " ").capitalize()


def _dataset(score: Score, name: str) -> dict[str, str]:
    """The data set as the Hub links it; one of our own has no id, so its task stands for it."""
    dataset_id, _, revision = (score.data or "").partition("@")
    said = {"name": name, "type": dataset_id or name, "split": score.split}
    return {**said, "revision": revision} if revision else said


def _title(manifest: Manifest) -> str:
    if manifest.kind == "merge":
        names = shown_names(expert.task for expert in manifest.experts if expert.task)
        tasks = ", ".join(names.get(e.task or "") or e.name for e in manifest.experts)
        return f"{manifest.method} merge of {len(manifest.experts)} experts: {tasks}"
    return f"Expert for {manifest.task_name or 'one task'} at step {manifest.step}"


def _headline(told: CardInput) -> str:
    manifest, score = told.manifest, upcycling(told.own)
    if manifest.kind == "expert":
        return _expert_headline(manifest)
    if told.mixed:
        return _mixed_headline(told.own)
    if score is None:
        return "Not evaluated yet."
    gains = [
        f"{row['gain']} {row['versus']}"
        for row in summary_rows(manifest, told.own, told.scores, told.split)
        if row["gain"]
    ]
    versus = f" ({'; '.join(gains)})" if gains else ""
    return (
        f"**Upcycling score {percent(score.value)} %** ± {percent(score.stderr)}, raw mean "
        f"{told.split} accuracy over {score.tasks} tasks{versus}."
    )


def _mixed_headline(scores: Sequence[Score]) -> str:
    """Says which task is measured how: the table has accuracies of both kinds in one column."""
    names = shown_names(score.task for score in scores)
    how = ", ".join(f"{names[score.task]} by {_metric_name(score).lower()}" for score in scores)
    return f"The tasks are measured differently, {plain(how)}, so there is no mean over them."


def _expert_headline(manifest: Manifest) -> str:
    adapter = adapter_name(manifest)
    an_adapter = f"an adapter ({plain(adapter)}) on" if adapter else "an adapter on"
    made = an_adapter if manifest.layout == "peft" else "fine-tuned from"
    mode = f": {said}" if (said := annealed(manifest)) else ""
    stop = f"The run was stopped early at step {manifest.step}. " if stopped_early(manifest) else ""
    return (
        f"Step {manifest.step} of {manifest.last_step}, {made} {plain(manifest.base.label)}{mode}. "
        f"{stop}Every pushed step is a tag of this repository: an early one often merges better "
        "than the last."
    )


def _picture(manifest: Manifest) -> str:
    """The curve that lies beside the card, with what it shows in words."""
    if not manifest.validation:
        return ""
    return f"![{curve_words(manifest.validation)}]({PICTURE})"


def _own_rows(told: CardInput) -> list[dict[str, str]]:
    manifest = told.manifest
    mine = [s for s in told.scores if s.model == manifest.digest]
    newest = {(score.task, score.split): score for score in mine}
    names = shown_names(task for task, _ in newest)
    return [
        {
            "task": f"{names[score.task]}, {score.split}",
            "value": percent(score.value),
            "count": str(score.count),
            "stderr": percent(score.stderr),
        }
        for score in newest.values()
    ]


def _limits(manifest: Manifest) -> str:
    if manifest.kind == "expert":
        return "An expert for one task; on other tasks it may be worse than its base."
    said = (
        "Scores are on test splits of the very tasks the experts were trained for; nothing is "
        "claimed beyond them. The licence is bound by those of the base and of every expert."
    )
    return " ".join([said, *map(plain, notes(manifest))])


def _own_tags(manifest: Manifest) -> list[str]:
    if manifest.kind == "merge":
        return ["merge", str(manifest.method)]
    adapter = [str(manifest.training.get("tune") or "lora")] if manifest.layout == "peft" else []
    return ["expert", f"step-{manifest.step}", *adapter]


def _hub_name(name: str) -> str | None:
    try:
        return check_repo_id(name)
    except UsageError:
        return None


def _escaped(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{key: plain(value) for key, value in row.items()} for row in rows]


def _kept_around(text: str, before: str) -> str:
    """The new card with whatever a human wrote before and after the markers of the old one."""
    if BEGIN not in before or END not in before:
        return text
    old_head, _, rest = before.partition(BEGIN)
    new_front, _, new_rest = text.partition(BEGIN)
    above = _FRONT.sub("", old_head, count=1)
    below = rest.rpartition(END)[2]
    inside = new_rest.rpartition(END)[0]
    front = _FRONT.match(new_front)
    return f"{front[0] if front else ''}{above}{BEGIN}{inside}{END}{below}"
