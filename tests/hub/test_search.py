"""Searching a Hub for the experts of a base: which fit it, and why the others do not."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.numpy import save

from hubmerge.errors import HubUnreachable, NotOnHub, UnknownName, UsageError
from hubmerge.flows.search import FoundModel, find_experts
from hubmerge.hub.client import Hub
from hubmerge.hub.headers import read_shapes
from hubmerge.hub.resolve import resolve
from hubmerge.hub.search import Query, parse_query
from hubmerge.manifest import Manifest
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.source import Source
from hubmerge.training_curve import ValidationPoint
from tests.hub.proxy import Proxy, replace_body, status

_owners = itertools.count(1)
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["a"]}


def weights(**shapes: tuple[int, ...]) -> bytes:
    return save({name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def card(base: str | None, *lines: str) -> bytes:
    base_lines = [f"base_model: {base}"] if base else []
    return "\n".join(["---", *base_lines, *lines, "license: mit", "---", "# hello", ""]).encode()


def make_repo(api: HfApi, repo: str, files: dict[str, bytes], tag: str = "") -> str:
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
        step=4, validation=(ValidationPoint(4, None, 0.5, 10, 0.1),),
        files={"model.safetensors": "d" * 64},
    ).to_bytes()  # fmt: skip


@pytest.fixture
def owner() -> str:
    """An owner whose models no other test uses."""
    return f"searched-{next(_owners)}"


@pytest.fixture
def base(api: HfApi, owner: str) -> str:
    make_repo(api, f"{owner}/base", {"model.safetensors": weights(a=(2, 2), b=(3,))})
    return f"{owner}/base"


def experts(hub: Hub, base: str, **more: str) -> dict[str, FoundModel]:
    query = parse_query([f"base={base}", *(f"{key}={value}" for key, value in more.items())])
    matches = find_experts(hub, query, 50, lambda what, done, total: None)
    return {item.repo_id.partition("/")[2]: item for item in matches}


def test_full_experts_are_compared_by_shape(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    readme = {"README.md": card(base)}
    make_repo(
        api, f"{owner}/good", {**readme, "model.safetensors": weights(a=(2, 2), b=(3,))}, "step8"
    )
    make_repo(api, f"{owner}/other", {**readme, "model.safetensors": weights(a=(2, 9), b=(3,))})
    make_repo(
        api, f"{owner}/head", {**readme, "model.safetensors": weights(a=(2, 2), b=(3,), c=(1,))}
    )
    make_repo(api, f"{owner}/pickled", {**readme, "pytorch_model.bin": b"x"})
    make_repo(api, f"{owner}/empty", readme)
    make_repo(api, f"{owner}/broken", {**readme, "model.safetensors": b"\xff" * 200})
    matches = experts(hub, base)
    assert {name: (item.kind, item.fits) for name, item in matches.items()} == {
        "good": ("full", "yes"),
        "other": ("full", "no"),
        "head": ("full", "no"),
        "pickled": ("pickle", "no"),
        "empty": ("none", "no"),
        "broken": ("full", "unknown"),
    }
    assert matches["good"].why == "its card names the base; all 2 tensors have its shapes"
    assert (matches["good"].steps, matches["good"].last_step) == (1, 8)
    assert (matches["good"].licence, matches["good"].relation) == ("mit", "finetune")
    assert (
        matches["other"].why == "its card names the base, but it has 1 tensor (a) of another shape"
    )
    assert "it adds 1 tensor (c)" in matches["head"].why
    assert "is not a safetensors file" in matches["broken"].why


def test_no_weights_are_downloaded(
    hub: Hub, api: HfApi, owner: str, base: str, proxy: Proxy
) -> None:
    files = {"README.md": card(base), "model.safetensors": weights(a=(2, 2), b=(3,))}
    make_repo(api, f"{owner}/good", files)
    assert experts(hub, base)["good"].fits == "yes"
    assert not list(hub.cache.rglob("*.safetensors"))


def test_adapters_are_compared_by_their_configuration(
    hub: Hub, api: HfApi, owner: str, base: str
) -> None:
    def adapter(name: str, **config: object) -> None:
        files = {
            "README.md": card(base), "adapter_model.safetensors": weights(x=(1,)),
            "adapter_config.json": json.dumps({**LORA, **config}).encode(),
        }  # fmt: skip
        make_repo(api, f"{owner}/{name}", files)

    adapter("good", base_model_name_or_path=base)
    adapter("elsewhere", base_model_name_or_path="other/base")
    adapter("prompts", base_model_name_or_path=base, peft_type="PROMPT_TUNING")
    adapter("hostile", base_model_name_or_path=["\x1b[31m"])
    matches = experts(hub, base)
    assert {name: (item.kind, item.fits) for name, item in matches.items()} == {
        "good": ("adapter", "likely"),
        "elsewhere": ("adapter", "no"),
        "prompts": ("adapter", "no"),
        "hostile": ("adapter", "unknown"),
    }
    assert matches["good"].relation == "adapter"
    assert matches["elsewhere"].why == "its adapter_config.json names other/base"
    assert "no weights to merge" in matches["prompts"].why


def test_experts_of_hubmerge_are_compared_by_their_manifest(
    hub: Hub, api: HfApi, owner: str, base: str
) -> None:
    sha = str(api.model_info(base).sha)
    again = str(api.upload_file(path_or_fileobj=b"#", path_in_repo="README.md", repo_id=base).oid)
    other = make_repo(api, f"{owner}/other-base", {"model.safetensors": weights(a=(5,))})

    def expert(name: str, source: Source, kind: str = "expert") -> None:
        files = {
            "README.md": card(base), "model.safetensors": weights(a=(2, 2), b=(3,)),
            "hubmerge.json": expert_of(source, kind),
        }  # fmt: skip
        make_repo(api, f"{owner}/{name}", files)

    expert("same", Source(f"{base}@{again[:12]}", again, "d" * 64))
    expert("before", Source(f"{base}@{sha[:12]}", sha, "d" * 64))
    expert("other", Source(f"{owner}/other-base@x", other, "d" * 64))
    expert("gone", Source(f"{owner}/nowhere@x", "e" * 40, "d" * 64))
    expert("local", Source("./base", "d" * 64, "d" * 64))
    expert("merged", Source(f"{base}@x", again, "d" * 64), "merge")
    matches = experts(hub, base)
    assert {name: item.fits for name, item in matches.items()} == {
        "same": "yes", "before": "yes", "other": "no", "gone": "no", "local": "no", "merged": "no",
    }  # fmt: skip
    assert {item.task for name, item in matches.items() if name != "merged"} == {"cats"}
    assert matches["before"].why.endswith("with the same weights")


def test_a_broken_manifest_does_not_hide_other_models(
    hub: Hub, api: HfApi, owner: str, base: str
) -> None:
    files = {"README.md": card(base), "model.safetensors": weights(a=(2, 2), b=(3,))}
    make_repo(api, f"{owner}/good", files)
    make_repo(api, f"{owner}/forged", {**files, "hubmerge.json": b'{"kind": "\\u001b[31m"}'})
    matches = experts(hub, base)
    assert (matches["good"].fits, matches["forged"].fits) == ("yes", "unknown")
    assert matches["forged"].why.isprintable()


def test_a_hub_that_does_not_answer_is_an_error(
    hub: Hub, api: HfApi, owner: str, base: str, proxy: Proxy
) -> None:
    make_repo(api, f"{owner}/one", {"README.md": card(base)})
    proxy.fail(f"GET .*{owner}/one/refs", status(503), times=9)
    with pytest.raises(HubUnreachable):
        experts(hub, base)


def test_a_moe_is_not_an_expert(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    files = {"moe_config.json": b"{}", "router.safetensors": weights(a=(2, 2))}
    make_repo(api, f"{owner}/mixed", {**files, "README.md": card(base)})
    mixed = experts(hub, base)["mixed"]
    assert (mixed.kind, mixed.fits) == ("mixture", "no")
    assert "its experts are adapters in its folders" in mixed.why


def test_shapes_are_read_from_the_given_folder_only(hub: Hub, api: HfApi, owner: str) -> None:
    expert = {"adapter_model.safetensors": weights(a=(1, 2)), "head-x.safetensors": weights(h=(3,))}
    inside = {f"experts/one/{name}": data for name, data in expert.items()}
    make_repo(api, f"{owner}/shaped", {**inside, "router.safetensors": weights(r=(4,))})
    for reference, shapes in ((f"{owner}/shaped", {"r": (4,)}),
                          (f"hf://{owner}/shaped/experts/one", {"a": (1, 2)})):  # fmt: skip
        assert read_shapes(hub, resolve(hub, parse_ref(reference))) == shapes


def test_author_and_tags_filter_the_models(hub: Hub, api: HfApi, owner: str, base: str) -> None:
    files = {"model.safetensors": weights(a=(2, 2), b=(3,))}
    make_repo(api, f"{owner}/one", {**files, "README.md": card(base, "tags: [cats, small]")})
    make_repo(api, f"{owner}/two", {**files, "README.md": card(base, "tags: [cats]")})
    make_repo(api, f"{owner}x/three", {**files, "README.md": card(base, "tags: [cats]")})
    assert set(experts(hub, base)) == {"one", "two", "three"}
    assert set(experts(hub, base, author=owner)) == {"one", "two"}
    assert set(experts(hub, base, tag="small")) == {"one"}
    matches = find_experts(hub, Query(author=owner), 50, lambda what, done, total: None)
    assert {item.repo_id for item in matches} == {
        f"{owner}/{name}" for name in ("base", "one", "two")
    }
    assert {item.fits for item in matches} == {"unknown"}
    assert len(find_experts(hub, Query(author=owner), 2, lambda what, done, total: None)) == 2


def test_the_models_of_a_collection_are_searched(
    hub: Hub, api: HfApi, owner: str, base: str
) -> None:
    make_repo(api, f"{owner}/in", {"README.md": card(base)})
    make_repo(api, f"{owner}/out", {"README.md": card(None)})
    api.create_repo(f"{owner}/x", repo_type="dataset")
    slug = api.create_collection(f"Best of {owner}").slug
    for name, kind in (("in", "model"), ("out", "model"), ("x", "dataset")):
        api.add_collection_item(slug, f"{owner}/{name}", kind)  # type: ignore[arg-type]
    assert set(experts(hub, base, collection=slug)) == {"in"}
    with pytest.raises(NotOnHub, match="no collection o/s-1"):
        experts(hub, base, collection="o/s-1")


def test_models_that_do_not_match_are_left_out(
    hub: Hub, api: HfApi, owner: str, base: str, proxy: Proxy
) -> None:
    sha = make_repo(api, f"{owner}/one", {"README.md": card(base)})
    models = [
        {"id": id, "sha": sha, "tags": [f"base_model:{base}"], "siblings": []}
        for id in (f"{owner}/one", "../etc", f"{owner}/\x1b[31m", "o/--config=x")
    ]
    models += [{"id": f"{owner}/one", "sha": "../..", "tags": []}, {"id": base, "sha": sha}]
    proxy.fail("GET /api/models.filter", replace_body(json.dumps(models).encode()))
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
def test_an_invalid_query_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_query(words)
    assert refused.value.message.isprintable()


def test_an_unknown_key_is_refused_with_the_known_keys() -> None:
    with pytest.raises(UnknownName, match="search key 'tags'") as refused:
        parse_query(["tags=x"])
    assert "tag" in refused.value.hint


def test_a_query_is_parsed(tmp_path: Path) -> None:
    words = ["base=o/n@step8", "tag=a", "tag=b=c", "author=me", "collection=me/nice-models-66"]
    assert parse_query(words) == Query(
        ModelRef("o/n", revision="step8"), "me", "me/nice-models-66", ("a", "b=c")
    )
