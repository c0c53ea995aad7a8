"""What the public Hub demands of a model card, so that a card that passes here passes there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hubmerge.front_matter import card_data, card_problem
from hubmerge.server.http_errors import BadRequest

CARD = "README.md"

_LICENCES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-
    clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-
    by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-
    sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0
    grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-
    mdw openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl
    zlib
"""
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*|multilingual|code")
_TEXT_LISTS = ("tags", "datasets", "metrics", "base_model")


def card_problems(readme: str) -> list[str]:
    """Why the public Hub would refuse a README, all reasons; none if it would not."""
    if problem := card_problem(readme):
        return [problem]
    card = card_data(readme)
    return [
        *_licence_problems(card.get("license")),
        *_language_problems(card.get("language")),
        *_text_problems(card),
        *_index_problems(card.get("model-index")),
    ]


def check_card(content: bytes) -> None:
    """Raise BadRequest with all reasons for which the public Hub would refuse a README."""
    if problems := card_problems(content.decode(errors="replace")):
        raise BadRequest(f"Invalid metadata in {CARD}. {' '.join(problems)}")


def _licence_problems(value: Any) -> Iterator[str]:
    known = _LICENCES.split()
    for licence in _as_list(value):
        if licence not in known:
            yield (
                '"license" must be one of the identifiers of the Hub, as apache-2.0, mit, or '
                f"other with license_name and license_link, and not {str(licence)[:60]!r}."
            )


def _language_problems(value: Any) -> Iterator[str]:
    for language in _as_list(value):
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            # YAML reads an unquoted `no` as false.
            yield (
                f'"language" must not be {str(language)[:60]!r}: use codes of ISO 639 in lower '
                "case, such as en; quote no."
            )


def _text_problems(card: dict[str, Any]) -> Iterator[str]:
    for key in _TEXT_LISTS:
        if not all(isinstance(text, str) and text.strip() for text in _as_list(card.get(key))):
            yield f'"{key}" must be text or a list of texts.'


def _index_problems(value: Any) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, list):
        yield '"model-index" must be a list.'
        return
    for index, model in enumerate(value):
        where = f'"model-index[{index}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f'{where}.name" must be a text.'
        elif not isinstance(model.get("results"), list):
            yield f'{where}.results" must be a list.'
        else:
            for number, result in enumerate(model["results"]):
                yield from _result_problems(f"{where}.results[{number}]", result)


def _result_problems(where: str, result: Any) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f'{where}" must be a mapping.'
        return
    for key in ("task.type", "dataset.type", "dataset.name"):
        part, name = key.split(".")
        if not isinstance(result.get(part), dict) or not isinstance(result[part].get(name), str):
            yield f'{where}.{key}" must be a text.'
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f'{where}.metrics" must be a list.'
        return
    for number, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            yield f'{where}.metrics[{number}].type" must be a text.'
        elif metric.get("value") is None:
            yield f'{where}.metrics[{number}].value" is required.'


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
