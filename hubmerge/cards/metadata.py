"""A card's front matter, and results in the Hub's own format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from hubmerge.cards.card_input import CardInput
from hubmerge.cards.licence import licence_metadata, most_restrictive
from hubmerge.cards.usage import kind_of, library, relation
from hubmerge.errors import UsageError
from hubmerge.manifest import Manifest
from hubmerge.refs import check_repo_id
from hubmerge.scores import Score, shown_names

EVAL_RESULTS = ".eval_results/hubmerge.yaml"


def front_matter(told: CardInput, title: str) -> dict[str, Any]:
    """What the Hub reads of a card; what is not known is left out, an unknown licence is said."""
    manifest = told.manifest
    merge = manifest.is_merge
    # What a mixture is made of is in it whole: like any adapter it needs its base and no more.
    sources = [s for s in (manifest.experts if merge else [manifest.base]) if not s.is_local]
    said: dict[str, Any] = {
        **licence_metadata(licence(manifest)),
        "library_name": library(manifest),
        "pipeline_tag": kind_of(manifest).pipeline,
        "base_model": _hub_names(source.name for source in sources),
        "base_model_relation": relation(manifest),
        "tags": ["hubmerge", "model-upcycling", *_own_tags(manifest), "arxiv:2506.14126"],
        "datasets": _hub_names(data.partition("@")[0] for data in data_sets(told).values()),
        "metrics": list(dict.fromkeys(score.metric for score in told.own)),
        "model-index": _model_index(told, title),
    }
    if not said["base_model"]:
        del said["base_model_relation"]
    return {key: value for key, value in said.items() if value}


def licence(manifest: Manifest) -> str | None:
    """The licence that was stated, else what follows from the sources; None if that is unknown."""
    if manifest.licence:
        return manifest.licence
    sources = [manifest.base, *manifest.experts]
    return most_restrictive(source.licence for source in sources)


def data_sets(told: CardInput) -> dict[str, str]:
    """Task id -> its Hub data set as owner/name@sha, of the tasks that have one."""
    locked = {task.id: task.data for task in told.lock.tasks} if told.lock else {}
    scored = {score.task: score.data for score in told.own}
    return {task: data for task, data in {**locked, **scored}.items() if data}


def eval_results(told: CardInput) -> str:
    """The scores as an .eval_results file, "" where no task has its data on a Hub.

    The Hub shows those whose data set is registered as a benchmark, and passes over the others.
    """
    entries = []
    for score in told.own:
        data_set, _, revision = (score.data or "").partition("@")
        if _hub_names([data_set]):
            where = {"id": data_set, "task_id": score.task_name}
            notes = f"{score.split} split, {score.count} rows, standard error {score.stderr:.6f}"
            entries.append({
                "dataset": {**where, "revision": revision} if revision else where,
                "value": round(score.value, 6),
                "notes": notes,
            })  # fmt: skip
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) if entries else ""


def metric_name(score: Score) -> str:
    """The metric in words."""
    return score.metric.replace("_", " ").capitalize()


def _model_index(told: CardInput, title: str) -> list[dict[str, Any]]:
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
    return [{"name": title, "results": results}]


def _metric(score: Score) -> dict[str, Any]:
    return {"type": score.metric, "value": round(score.value, 6), "name": metric_name(score)}


def _dataset(score: Score, name: str) -> dict[str, str]:
    """The data set as the Hub links it; one of our own has no id, so its task stands for it."""
    dataset_id, _, revision = (score.data or "").partition("@")
    said = {"name": name, "type": dataset_id or name, "split": score.split}
    return {**said, "revision": revision} if revision else said


def _own_tags(manifest: Manifest) -> list[str]:
    if manifest.is_merge:
        return ["merge", str(manifest.method)]
    if manifest.is_moe:
        return ["moe", "mixture-of-experts", "lora"]
    adapter = [str(manifest.training.get("tune") or "lora")] if manifest.layout == "peft" else []
    return ["expert", f"step-{manifest.step}", *adapter]


def _hub_names(names: Iterable[str]) -> list[str]:
    """Those that are names of repositories, each once."""
    return [name for name in dict.fromkeys(names) if _is_hub_name(name)]


def _is_hub_name(name: str) -> bool:
    try:
        return bool(check_repo_id(name))
    except UsageError:
        return False
