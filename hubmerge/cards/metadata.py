"""A card's front matter, and evaluation results in the Hub's own format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from hubmerge.cards.card_input import CardInput
from hubmerge.cards.licence import licence_metadata, most_restrictive
from hubmerge.cards.usage import base_model_relation, library_name, task_kind_of
from hubmerge.errors import UsageError
from hubmerge.manifest import Manifest
from hubmerge.refs import check_repo_id
from hubmerge.scores import Score, display_names

EVAL_RESULTS = ".eval_results/hubmerge.yaml"


def front_matter(card_input: CardInput, title: str) -> dict[str, Any]:
    """The metadata that the Hub reads; unknown values are left out, except an unknown licence."""
    manifest = card_input.manifest
    # A mixture contains its experts, so like any adapter it only needs its base.
    sources = [
        s for s in (manifest.experts if manifest.is_merge else [manifest.base]) if not s.is_local
    ]
    data: dict[str, Any] = {
        **licence_metadata(licence(manifest)),
        "library_name": library_name(manifest),
        "pipeline_tag": task_kind_of(manifest).pipeline,
        "base_model": _hub_names(source.name for source in sources),
        "base_model_relation": base_model_relation(manifest),
        "tags": ["hubmerge", "model-upcycling", *_kind_tags(manifest), "arxiv:2506.14126"],
        "datasets": _hub_names(
            data.partition("@")[0] for data in hub_datasets(card_input).values()
        ),
        "metrics": list(dict.fromkeys(score.metric for score in card_input.own_scores)),
        "model-index": _model_index(card_input, title),
    }
    if not data["base_model"]:
        del data["base_model_relation"]
    return {key: value for key, value in data.items() if value}


def licence(manifest: Manifest) -> str | None:
    """The stated licence, else the one that follows from the sources; None if it is unknown."""
    if manifest.licence:
        return manifest.licence
    sources = [manifest.base, *manifest.experts]
    return most_restrictive(source.licence for source in sources)


def hub_datasets(card_input: CardInput) -> dict[str, str]:
    """Task id -> Hub data set as owner/name@sha, for the tasks that have one."""
    locked = {task.id: task.data for task in card_input.lock.tasks} if card_input.lock else {}
    scored = {score.task: score.data for score in card_input.own_scores}
    return {task: data for task, data in {**locked, **scored}.items() if data}


def eval_results(card_input: CardInput) -> str:
    """The scores as an .eval_results file, "" if no task has its data on a Hub.

    The Hub shows scores on data sets that are registered as benchmarks, and ignores the others.
    """
    entries = []
    for score in card_input.own_scores:
        data_set, _, revision = (score.data or "").partition("@")
        if _hub_names([data_set]):
            dataset = {"id": data_set, "task_id": score.task_name}
            notes = f"{score.split} split, {score.count} rows, standard error {score.stderr:.6f}"
            entries.append({
                "dataset": {**dataset, "revision": revision} if revision else dataset,
                "value": round(score.value, 6),
                "notes": notes,
            })  # fmt: skip
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) if entries else ""


def metric_name(score: Score) -> str:
    """The metric in words."""
    return score.metric_title.capitalize()


def metric_of(card_input: CardInput) -> str:
    """The metric of all scores of a model, in words: accuracy, if it has none yet."""
    metrics = {score.metric for score in card_input.own_scores} or {"accuracy"}
    return metrics.pop().replace("_", " ") if len(metrics) == 1 else "score"


def _model_index(card_input: CardInput, title: str) -> list[dict[str, Any]]:
    kind = task_kind_of(card_input.manifest).task
    if kind is None or not card_input.own_scores:
        return []
    names = display_names(score.task for score in card_input.own_scores)
    results = [
        {
            "task": {"type": kind, "name": kind.replace("-", " ").capitalize()},
            "dataset": _dataset(score, names[score.task]),
            "metrics": [_metric(score)],
        }
        for score in card_input.own_scores
    ]
    return [{"name": title, "results": results}]


def _metric(score: Score) -> dict[str, Any]:
    return {"type": score.metric, "value": round(score.value, 6), "name": metric_name(score)}


def _dataset(score: Score, name: str) -> dict[str, str]:
    """The data set as the Hub links it; local data has no id, so the name of the task is used."""
    dataset_id, _, revision = (score.data or "").partition("@")
    dataset = {"name": name, "type": dataset_id or name, "split": score.split}
    return {**dataset, "revision": revision} if revision else dataset


def _kind_tags(manifest: Manifest) -> list[str]:
    if manifest.is_merge:
        return ["merge", str(manifest.method)]
    if manifest.is_moe:
        return ["moe", "mixture-of-experts", "lora"]
    adapter = [str(manifest.training.get("tune") or "lora")] if manifest.layout == "peft" else []
    step = [] if manifest.step is None else [f"step-{manifest.step}"]
    return ["expert", *step, *adapter]


def _hub_names(names: Iterable[str]) -> list[str]:
    """The names that are valid repository ids, each once."""
    return [name for name in dict.fromkeys(names) if _is_hub_name(name)]


def _is_hub_name(name: str) -> bool:
    try:
        return bool(check_repo_id(name))
    except UsageError:
        return False
