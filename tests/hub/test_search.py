"""Looking over a whole Hub for experts of a base: what fits it, and why the rest does not."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.numpy import save

from hubmerge.errors import HubUnreachable, NotOnHub, UnknownName, UsageError
from hubmerge.flows.search import Candidate, find_experts
from hubmerge.hub.client import Hub
from hubmerge.hub.headers import read_shapes
from hubmerge.hub.resolve import resolve
from hubmerge.hub.search import Query, parse_query
from hubmerge.manifest import Manifest, Point, Source
from hubmerge.refs import ModelRef, parse_ref
from tests.hub.proxy import Proxy, say, status

_owners = itertools.count(1)
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["a"]}


def weights(**shapes: tuple[int, ...]) -> bytes:
    return save({name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def card(base: str | None, *lines: str) -> bytes:
    said = [f"base_model: {base}"] if base else []
    return "\n".join(["---", *said, *lines, "license: mit", "---", "# hello", ""]).encode()


def make(api: HfApi, repo: str, files: dict[str, bytes], tag: str = "") -> str:
    api.create_repo(repo)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    sha = str(api.create_commit(repo, operations, commit_message="files").oid)
    if tag:
        api.create_tag(repo, tag=tag)
    return sha


def expert_of(base: Source, kind: str = "expert") -> bytes:
    experts = (base, base) if kind == "merge" else ()
    return Manifest(
        kind="merge" if kind == "merge" else "expert", base=base, experts=experts, task="cats@1",
        step=4, validation=(Point(4, None, 0.5, 10, 0.1),), files={"model.safetensors": "d" * 64},
    ).to_bytes()  # fmt: skip


@pytest.fixture
def owner() -> str:
    """Somebody whose models no other test knows."""
    return f"searched-{next(_owners)}"


@pytest.fixture
def base(api: HfApi, owner: str) -> str:
    make(api, f"{owner}/base", {"model.safetensors": weights(a=(2, 2), b=(3,))})
    return f"{owner}/base"


def experts(hub: Hub, base: str, **more: str) -> dict[str, Candidate]:
    query = parse_query([f"base={base}", *(f"{key}={value}" for key, value in more.items())])
    found = find_experts(hub, query, 50, lambda what, done, total: None)
    return {one.repo_id.partition("/")[2]: one for one in found}


def test_full_experts_by_their_shapes(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    named = {"README.md": card(base)}
    make(api, f"{owner}/good", {**named, "model.safetensors": weights(a=(2, 2), b=(3,))}, "step8")
    make(api, f"{owner}/other", {**named, "model.safetensors": weights(a=(2, 9), b=(3,))})
    make(api, f"{owner}/head", {**named, "model.safetensors": weights(a=(2, 2), b=(3,), c=(1,))})
    make(api, f"{owner}/pickled", {**named, "pytorch_model.bin": b"x"})
    make(api, f"{owner}/empty", named)
    make(api, f"{owner}/broken", {**named, "model.safetensors": b"\xff" * 200})
    found = experts(hub, base)
    assert {name: (one.kind, one.fits) for name, one in found.items()} == {
        "good": ("full", "yes"),
        "other": ("full", "no"),
        "head": ("full", "no"),
        "pickled": ("pickle", "no"),
        "empty": ("none", "no"),
        "broken": ("full", "unknown"),
    }
    assert found["good"].why == "its card names the base; all 2 tensors have its shapes"
    assert (found["good"].steps, found["good"].last_step) == (1, 8)
    assert (found["good"].licence, found["good"].relation) == ("mit", "finetune")
    assert found["other"].why == "its card names the base, but it has 1 tensor (a) of another shape"
    assert "it adds 1 tensor (c)" in found["head"].why
    assert "no safetensors file" in found["broken"].why


def test_no_weights_are_read(hub: Hub, api: HfApi, owner: str, base: str, proxy: Proxy) -> None:
    files = {"README.md": card(base), "model.safetensors": weights(a=(2, 2), b=(3,))}
    make(api, f"{owner}/good", files)
    assert experts(hub, base)["good"].fits == "yes"
    assert not list(hub.cache.rglob("*.safetensors"))


def test_adapters_by_their_configuration(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    def adapter(name: str, **config: object) -> None:
        files = {
            "README.md": card(base), "adapter_model.safetensors": weights(x=(1,)),
            "adapter_config.json": json.dumps({**LORA, **config}).encode(),
        }  # fmt: skip
        make(api, f"{owner}/{name}", files)

    adapter("good", base_model_name_or_path=base)
    adapter("elsewhere", base_model_name_or_path="other/base")
    adapter("prompts", base_model_name_or_path=base, peft_type="PROMPT_TUNING")
    adapter("hostile", base_model_name_or_path=["\x1b[31m"])
    found = experts(hub, base)
    assert {name: (one.kind, one.fits) for name, one in found.items()} == {
        "good": ("adapter", "likely"),
        "elsewhere": ("adapter", "no"),
        "prompts": ("adapter", "no"),
        "hostile": ("adapter", "unknown"),
    }
    assert found["good"].relation == "adapter"
    assert found["elsewhere"].why == "its adapter_config.json names other/base"
    assert "no weights to merge" in found["prompts"].why


def test_our_experts_by_their_manifest(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    sha = str(api.model_info(base).sha)
    again = str(api.upload_file(path_or_fileobj=b"#", path_in_repo="README.md", repo_id=base).oid)
    other = make(api, f"{owner}/other-base", {"model.safetensors": weights(a=(5,))})

    def expert(name: str, source: Source, kind: str = "expert") -> None:
        files = {
            "README.md": card(base), "model.safetensors": weights(a=(2, 2), b=(3,)),
            "hubmerge.json": expert_of(source, kind),
        }  # fmt: skip
        make(api, f"{owner}/{name}", files)

    expert("same", Source(f"{base}@{again[:12]}", again, "d" * 64))
    expert("before", Source(f"{base}@{sha[:12]}", sha, "d" * 64))
    expert("other", Source(f"{owner}/other-base@x", other, "d" * 64))
    expert("gone", Source(f"{owner}/nowhere@x", "e" * 40, "d" * 64))
    expert("local", Source("./base", "d" * 64, "d" * 64))
    expert("merged", Source(f"{base}@x", again, "d" * 64), "merge")
    found = experts(hub, base)
    assert {name: one.fits for name, one in found.items()} == {
        "same": "yes", "before": "yes", "other": "no", "gone": "no", "local": "no", "merged": "no",
    }  # fmt: skip
    assert {one.task for name, one in found.items() if name != "merged"} == {"cats"}
    assert found["before"].why.endswith("with the same weights")


def test_one_broken_manifest_hides_no_others(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    files = {"README.md": card(base), "model.safetensors": weights(a=(2, 2), b=(3,))}
    make(api, f"{owner}/good", files)
    make(api, f"{owner}/forged", {**files, "hubmerge.json": b'{"kind": "\\u001b[31m"}'})
    found = experts(hub, base)
    assert (found["good"].fits, found["forged"].fits) == ("yes", "unknown")
    assert found["forged"].why.isprintable()


def test_a_hub_that_does_not_answer_is_no_verdict(
    hub: Hub, api: HfApi, owner: str, base: str, proxy: Proxy
) -> None:
    make(api, f"{owner}/one", {"README.md": card(base)})
    proxy.fail(f"GET .*{owner}/one/refs", status(503), times=9)
    with pytest.raises(HubUnreachable):
        experts(hub, base)


def test_a_mixture_is_no_expert(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    files = {"moe_config.json": b"{}", "router.safetensors": weights(a=(2, 2))}
    make(api, f"{owner}/mixed", {**files, "README.md": card(base)})
    mixed = experts(hub, base)["mixed"]
    assert (mixed.kind, mixed.fits) == ("mixture", "no")
    assert "its experts are adapters in its folders" in mixed.why


def test_shapes_are_those_of_the_folder_asked_for(hub: Hub, api: HfApi, owner: str) -> None:
    expert = {"adapter_model.safetensors": weights(a=(1, 2)), "head-x.safetensors": weights(h=(3,))}
    inside = {f"experts/one/{name}": data for name, data in expert.items()}
    make(api, f"{owner}/shaped", {**inside, "router.safetensors": weights(r=(4,))})
    for asked, shapes in ((f"{owner}/shaped", {"r": (4,)}),
                          (f"hf://{owner}/shaped/experts/one", {"a": (1, 2)})):  # fmt: skip
        assert read_shapes(hub, resolve(hub, parse_ref(asked))) == shapes


def test_author_and_tags_narrow_it_down(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    files = {"model.safetensors": weights(a=(2, 2), b=(3,))}
    make(api, f"{owner}/one", {**files, "README.md": card(base, "tags: [cats, small]")})
    make(api, f"{owner}/two", {**files, "README.md": card(base, "tags: [cats]")})
    make(api, f"{owner}x/three", {**files, "README.md": card(base, "tags: [cats]")})
    assert set(experts(hub, base)) == {"one", "two", "three"}
    assert set(experts(hub, base, author=owner)) == {"one", "two"}
    assert set(experts(hub, base, tag="small")) == {"one"}
    found = find_experts(hub, Query(author=owner), 50, lambda what, done, total: None)
    assert {one.repo_id for one in found} == {f"{owner}/{name}" for name in ("base", "one", "two")}
    assert {one.fits for one in found} == {"unknown"}
    assert len(find_experts(hub, Query(author=owner), 2, lambda what, done, total: None)) == 2


def test_a_collection(hub: Hub, api: HfApi, owner: str, base: str, proxy: Proxy) -> None:
    make(api, f"{owner}/in", {"README.md": card(base)})
    make(api, f"{owner}/out", {"README.md": card(None)})
    items = [
        {"_id": str(n), "id": f"{owner}/{name}", "type": kind, "position": n}
        for n, (name, kind) in enumerate([("in", "model"), ("out", "model"), ("x", "dataset")])
    ]
    told = {
        "slug": "o/s-1", "title": "t", "owner": {}, "items": items, "position": 0, "upvotes": 0,
        "lastUpdated": "2026-01-01T00:00:00.000Z", "private": False, "theme": "x",
    }  # fmt: skip
    proxy.fail("GET /api/collections/o/s-1", say(json.dumps(told).encode()))
    assert set(experts(hub, base, collection="o/s-1")) == {"in"}
    with pytest.raises(NotOnHub, match="no collection o/s-1") as refused:
        experts(hub, base, collection="o/s-1")
    assert "no collections at all" in refused.value.hint


def test_a_hub_that_answers_more_than_was_asked(
    hub: Hub, api: HfApi, owner: str, base: str, proxy: Proxy
) -> None:
    sha = make(api, f"{owner}/one", {"README.md": card(base)})
    told = [
        {"id": id, "sha": sha, "tags": [f"base_model:{base}"], "siblings": []}
        for id in (f"{owner}/one", "../etc", f"{owner}/\x1b[31m", "o/--config=x")
    ]
    told += [{"id": f"{owner}/one", "sha": "../..", "tags": []}, {"id": base, "sha": sha}]
    proxy.fail("GET /api/models.filter", say(json.dumps(told).encode()))
    assert set(experts(hub, base)) == {"one"}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["base"],
        ["base="],
        ["=x"],
        ["base=a/b", "base=c/d"],
        ["author=a", "author=b"],
        ["author=../x"],
        ["collection=a/../b"],
        ["base=./folder"],
        ["base=a"],
        ["tag=\x1b[31m"],
    ],
)
def test_what_is_no_search_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_query(words)
    assert refused.value.message.isprintable()


def test_an_unknown_key_is_answered_with_the_known() -> None:
    with pytest.raises(UnknownName, match="search key 'tags'") as refused:
        parse_query(["tags=x"])
    assert "tag" in refused.value.hint


def test_a_query_is_read(tmp_path: Path) -> None:
    words = ["base=o/n@step8", "tag=a", "tag=b=c", "author=me", "collection=me/nice-models-66"]
    assert parse_query(words) == Query(
        ModelRef("o/n", revision="step8"), "me", "me/nice-models-66", ("a", "b=c")
    )
