"""Search the models of a Hub by base, author, tag or collection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import huggingface_hub

from hubmerge.errors import NotOnHub, UnknownName, UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import ModelRef, check_repo_id, is_sha, parse_ref, printable

_KEYS = ("author", "base", "collection", "tag")
_BASE_TAG, _LICENCE_TAG = "base_model:", "license:"
_RELATIONS = ("finetune", "adapter", "merge", "quantized")
_SAFE_VALUE = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,199})?"
)
_THREADS = 8


@dataclass(frozen=True)
class Query:
    """A search for models: every given field must match; the base may have a revision."""

    base: ModelRef | None = None
    author: str | None = None
    collection: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListedModel:
    """A model as the Hub lists it: its newest commit, files and tags.

    `bases` are the base models that its card names, `relation` is its relation to them: finetune,
    adapter, merge or quantized, None if the tags have none.
    """

    repo_id: str
    sha: str
    files: tuple[str, ...]
    tags: tuple[str, ...]
    bases: tuple[str, ...]
    relation: str | None
    licence: str | None


def parse_query(words: Sequence[str]) -> Query:
    """Parse `key=value` words; only `tag` may be repeated. Raises UsageError or UnknownName."""
    options: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value or not value.isprintable():
            raise UsageError(
                f"--search {printable(word)[:60]!r} is not key=value.",
                "Write --search base=owner/name, author=name, tag=word or collection=owner/slug.",
            )
        if key not in _KEYS:
            raise UnknownName("search key", printable(key)[:60], _KEYS)
        options.setdefault(key, []).append(value)
    repeated = [key for key, values in options.items() if key != "tag" and len(values) > 1]
    if repeated or not options:
        raise UsageError(
            f"--search {repeated[0]}= is given twice." if repeated else "--search is empty.",
            "Give base, author and collection at most once; tag may be repeated.",
        )
    base = parse_ref(options["base"][0]) if "base" in options else None
    if base is not None and (base.is_local or base.subfolder):
        raise UsageError(f"--search base={base} is not a repository.", "Write base=owner/name.")
    return Query(
        base=base,
        author=_safe_value(options, "author"),
        collection=_safe_value(options, "collection"),
        tags=tuple(options.get("tag", ())),
    )


def search(hub: Hub, query: Query, limit: int) -> list[ListedModel]:
    """The models that match, at most `limit`, most downloaded first, without the base itself.

    Raises NotOnHub for a collection that the Hub does not have.
    """
    filters = [*([f"{_BASE_TAG}{query.base.name}"] if query.base else []), *query.tags]
    if query.collection:
        infos: Iterable[huggingface_hub.ModelInfo] = _models_of_collection(hub, query.collection)
    else:
        infos = hub.call_once(
            "searching models",
            lambda api: list(
                api.list_models(
                    filter=filters or None,
                    author=query.author,
                    sort="downloads",
                    limit=limit + 1,  # the base may be among them
                    full=True,
                )
            ),
        )
    models = [
        model for info in infos if (model := _parse_info(info)) and _matches(model, query, filters)
    ]
    return models[:limit]


def _models_of_collection(hub: Hub, slug: str) -> list[huggingface_hub.ModelInfo]:
    action = f"reading the collection {slug}"
    try:
        items = hub.call(action, lambda api: api.get_collection(slug)).items
    except NotOnHub as error:
        raise NotOnHub(
            f"{hub.name} has no collection {slug}.",
            "Copy owner/slug from its page, or search by author= or tag=.",
        ) from error
    names = [item.item_id for item in items if item.item_type == "model"]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _fetch_info(hub, name), names))


def _fetch_info(hub: Hub, name: str) -> huggingface_hub.ModelInfo:
    repo_id = check_repo_id(name)
    return hub.call(f"reading {repo_id}", lambda api: api.model_info(repo_id))


def _matches(model: ListedModel, query: Query, filters: Sequence[str]) -> bool:
    """Whether a model matches the query; the Hub's own filter is not trusted."""
    author = model.repo_id.partition("/")[0]
    matches = query.author in (None, author) and set(filters) <= set(model.tags)
    return matches and not (query.base and query.base.repo_id == model.repo_id)


def _parse_info(info: huggingface_hub.ModelInfo) -> ListedModel | None:
    """The model of a Hub's answer; None if its name or commit is invalid."""
    tags = tuple(str(tag) for tag in info.tags or ())
    bases = [tag.removeprefix(_BASE_TAG) for tag in tags if tag.startswith(_BASE_TAG)]
    relation = next(
        (name for name in _RELATIONS for base in bases if base.startswith(f"{name}:")), None
    )
    with suppress(UsageError):
        if is_sha(str(info.sha)):
            return ListedModel(
                repo_id=check_repo_id(str(info.id)),
                sha=str(info.sha),
                files=tuple(str(file.rfilename) for file in info.siblings or ()),
                tags=tags,
                bases=tuple(base for base in bases if ":" not in base),
                relation=relation,
                licence=next(
                    (t.removeprefix(_LICENCE_TAG) for t in tags if t.startswith(_LICENCE_TAG)), None
                ),
            )
    return None


def _safe_value(options: dict[str, list[str]], key: str) -> str | None:
    """The value of a key that becomes part of a URL; raises UsageError for an unsafe one."""
    value = options.get(key, [None])[0]
    if value is not None and (".." in value or not _SAFE_VALUE.fullmatch(value)):
        raise UsageError(
            f"--search {key}={value[:60]!r} is not a valid name.", "Copy it from its page."
        )
    return value
