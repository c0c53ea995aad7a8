"""Models over a whole Hub: by the base they name, author, tag, collection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from huggingface_hub import ModelInfo

from hubmerge.errors import NotOnHub, UnknownName, UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import ModelRef, check_repo_id, is_sha, parse_ref, printable

_KEYS = ("author", "base", "collection", "tag")
_BASE, _LICENCE = "base_model:", "license:"
_RELATIONS = ("finetune", "adapter", "merge", "quantized")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,199})?")
_AT_ONCE = 8


@dataclass(frozen=True)
class Query:
    """What models are looked for: all that is given must hold; the base may name a revision."""

    base: ModelRef | None = None
    author: str | None = None
    collection: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A model as the Hub lists it: its newest commit, its files and what its tags say.

    `bases` are the models its card names as its base, `relation` what it is to them: finetune,
    adapter, merge or quantized, None where nobody says.
    """

    repo_id: str
    sha: str
    files: tuple[str, ...]
    tags: tuple[str, ...]
    bases: tuple[str, ...]
    relation: str | None
    licence: str | None
    is_gated: bool


def parse_query(words: Sequence[str]) -> Query:
    """Read `key=value` words; only tag may come twice. Raises UsageError or UnknownName."""
    said: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value or not value.isprintable():
            raise UsageError(
                f"--search {printable(word)[:60]!r} is not key=value.",
                "Write --search base=owner/name, author=name, tag=word or collection=owner/slug.",
            )
        if key not in _KEYS:
            raise UnknownName("search key", printable(key)[:60], _KEYS)
        said.setdefault(key, []).append(value)
    twice = [key for key, values in said.items() if key != "tag" and len(values) > 1]
    if twice or not said:
        raise UsageError(
            f"--search {twice[0]}= is given twice." if twice else "--search names nothing.",
            "Name base, author and collection once each; tag as often as you like.",
        )
    base = parse_ref(said["base"][0]) if "base" in said else None
    if base is not None and (base.is_local or base.subfolder):
        raise UsageError(f"--search base={base} is no repository.", "Write base=owner/name.")
    return Query(
        base=base,
        author=_plain(said, "author"),
        collection=_plain(said, "collection"),
        tags=tuple(said.get("tag", ())),
    )


def search(hub: Hub, query: Query, limit: int) -> list[Listed]:
    """The models that fit, at most `limit`, the most downloaded first; the base is not its own.

    Raises NotOnHub for a collection that the Hub does not have.
    """
    filters = [*([f"{_BASE}{query.base.name}"] if query.base else []), *query.tags]
    if query.collection:
        found: Iterable[ModelInfo] = _collected(hub, query.collection)
    else:
        found = hub.ask_once(
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
    listed = [one for info in found if (one := _listed(info)) and _fits(one, query, filters)]
    return listed[:limit]


def _collected(hub: Hub, slug: str) -> list[ModelInfo]:
    what = f"reading the collection {slug}"
    try:
        items = hub.ask(what, lambda api: api.get_collection(slug)).items
    except NotOnHub as error:
        raise NotOnHub(
            f"{hub.name} has no collection {slug}.",
            "The embedded Hub has no collections at all: search by author= or tag=.",
        ) from error
    names = [item.item_id for item in items if item.item_type == "model"]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda name: _info(hub, name), names))


def _info(hub: Hub, name: str) -> ModelInfo:
    repo_id = check_repo_id(name)
    return hub.ask(f"reading {repo_id}", lambda api: api.model_info(repo_id))


def _fits(one: Listed, query: Query, filters: Sequence[str]) -> bool:
    """Whether a model is what was asked for, whatever the Hub made of it."""
    author = one.repo_id.partition("/")[0]
    wanted = query.author in (None, author) and set(filters) <= set(one.tags)
    return wanted and not (query.base and query.base.repo_id == one.repo_id)


def _listed(info: ModelInfo) -> Listed | None:
    """None for a model whose name or commit is not safe to use."""
    tags = tuple(str(tag) for tag in info.tags or ())
    told = [tag.removeprefix(_BASE) for tag in tags if tag.startswith(_BASE)]
    relation = next(
        (name for name in _RELATIONS for one in told if one.startswith(f"{name}:")), None
    )
    with suppress(UsageError):
        if is_sha(str(info.sha)):
            return Listed(
                repo_id=check_repo_id(str(info.id)),
                sha=str(info.sha),
                files=tuple(str(one.rfilename) for one in info.siblings or ()),
                tags=tags,
                bases=tuple(name for name in told if ":" not in name),
                relation=relation,
                licence=next(
                    (t.removeprefix(_LICENCE) for t in tags if t.startswith(_LICENCE)), None
                ),
                is_gated=bool(info.gated),
            )
    return None


def _plain(said: dict[str, list[str]], key: str) -> str | None:
    """The value of a key, which becomes part of an address."""
    value = said.get(key, [None])[0]
    if value is not None and (".." in value or not _PLAIN.fullmatch(value)):
        raise UsageError(f"--search {key}={value[:60]!r} is no name.", "Copy it from its page.")
    return value
