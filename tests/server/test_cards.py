"""What the Hub reads and demands of cards, weights and lists, as the public one does."""

from __future__ import annotations

import json
import struct

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from hubmerge.server.card_rules import card_problems

RESULT = {
    "task": {"type": "image-classification"},
    "dataset": {"name": "d", "type": "d"},
    "metrics": [{"type": "accuracy", "value": 0.5}],
}


def card(**front_matter: object) -> str:
    return f"---\n{json.dumps(front_matter)}\n---\n# Card\n"


def weights(**tensors: tuple[str, list[int]]) -> bytes:
    """A safetensors file without its numbers: the header alone is read."""
    fields = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        for name, (dtype, shape) in tensors.items()
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **fields}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "front_matter",
    [
        {},
        {"license": "apache-2.0", "language": ["en", "zh-Hans", "multilingual"], "tags": ["a"]},
        {"license": ["mit", "cc-by-4.0"], "base_model": ["me/base"], "datasets": "d"},
        {"model-index": [{"name": "m", "results": [RESULT]}]},
    ],
)
def test_a_valid_card_passes(front_matter: dict[str, object]) -> None:
    assert card_problems(card(**front_matter)) == []


@pytest.mark.parametrize(
    ("front_matter", "words"),
    [
        (
            {"license": "Apache 2.0"},
            "other with license_name and license_link, and not 'Apache 2.0'",
        ),
        ({"license": 7}, '"license"'),
        ({"language": "English"}, '"language"'),
        ({"language": [False]}, "quote no"),
        ({"tags": ["a", 1]}, '"tags"'),
        ({"base_model": {"a": 1}}, '"base_model"'),
        ({"model-index": {}}, '"model-index" must be a list'),
        ({"model-index": ["m"]}, '"model-index[0].name"'),
        ({"model-index": [{"name": "m"}]}, '"model-index[0].results"'),
        ({"model-index": [{"name": "m", "results": [{}]}]}, '.results[0].task.type"'),
        ({"model-index": [{"name": "m", "results": [{**RESULT, "metrics": []}]}]}, ".metrics"),
        (
            {"model-index": [{"name": "m", "results": [{**RESULT, "metrics": [{"type": "a"}]}]}]},
            'metrics[0].value" is required',
        ),
    ],
)
def test_a_card_that_the_public_hub_refuses_is_refused(
    front_matter: dict[str, object], words: str
) -> None:
    assert words in " ".join(card_problems(card(**front_matter)))


def test_a_commit_with_a_bad_card_is_refused_with_all_reasons(
    api: HfApi, web: httpx2.Client, repo: str
) -> None:
    bad = card(license="mine", language="English")
    checked = web.post("/api/validate-yaml", json={"content": bad, "repoType": "model"})
    assert [checked.status_code, len(checked.json()["errors"])] == [400, 2]
    line = {"key": "file", "value": {"path": "README.md", "content": bad}}
    body = "\n".join(map(json.dumps, [{"key": "header", "value": {"summary": "m"}}, line]))
    answer = web.post(f"/api/models/{repo}/commit/main", content=body)
    assert answer.status_code == 400
    assert "license" in answer.json()["error"]
    assert "language" in answer.json()["error"]
    with pytest.raises((ValueError, BadRequestError)):
        api.upload_file(path_or_fileobj=bad.encode(), path_in_repo="README.md", repo_id=repo)
    assert api.list_repo_files(repo) == [".gitattributes"]
    assert ModelCard(card(license="mit")).data.license == "mit"


def test_info_counts_the_parameters(api: HfApi, repo: str) -> None:
    first = weights(a=("F32", [2, 3]), b=("BF16", [4]))
    api.upload_file(path_or_fileobj=first, path_in_repo="model.safetensors", repo_id=repo)
    found = api.model_info(repo).safetensors
    assert found is not None
    assert (found.parameters, found.total) == ({"F32": 6, "BF16": 4}, 10)
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = json.dumps({"weight_map": {"a": names[0], "b": names[1]}}).encode()
    sharded = [
        CommitOperationAdd(names[0], first),
        CommitOperationAdd(names[1], weights(c=("F32", [5]), d=("F32", []))),
        CommitOperationAdd("model.safetensors.index.json", index),
    ]
    api.delete_file("model.safetensors", repo)
    api.create_commit(repo, sharded, commit_message="m")
    found = api.model_info(repo, expand=["safetensors"]).safetensors
    assert found is not None
    assert found.total == 16
    for broken in (b"\xff" * 9, b"", struct.pack("<Q", 2) + b"[]"):
        api.upload_file(path_or_fileobj=broken, path_in_repo=names[0], repo_id=repo)
        assert api.model_info(repo).safetensors is None


def test_lists_are_filtered_or_refused(api: HfApi) -> None:
    for name, size in (("small", 10), ("large", 2_000_000)):
        repo = api.create_repo(f"filters/{name}").repo_id
        text = card(pipeline_tag="text-generation" if size > 10 else "fill-mask").encode()
        api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=repo)
        file = weights(w=("F32", [size]))
        api.upload_file(path_or_fileobj=file, path_in_repo="model.safetensors", repo_id=repo)
    api.update_repo_settings("filters/small", gated="auto")

    def names(**filters: object) -> list[str]:
        listed = api.list_models(author="Filters", **filters)  # type: ignore[arg-type]
        return sorted(str(model.id).partition("/")[2] for model in listed)

    assert names() == ["large", "small"]
    assert names(pipeline_tag="fill-mask") == ["small"]
    assert (names(gated=True), names(gated=False)) == (["small"], ["large"])
    assert names(num_parameters="min:1K,max:1B") == ["large"]
    assert names(num_parameters="max:10") == ["small"]
    for refused in ({"apps": "vllm"}, {"inference": "warm"}, {"inference_provider": "all"}):
        with pytest.raises(HfHubHTTPError, match="This Hub cannot filter models by"):
            names(**refused)
    with pytest.raises(HfHubHTTPError, match="must be like"):
        names(num_parameters="many")
    api.create_repo("filters/data", repo_type="dataset")
    text = card(language="de", task_categories=["question-answering"]).encode()
    api.upload_file(
        path_or_fileobj=text, path_in_repo="README.md", repo_id="filters/data", repo_type="dataset"
    )
    for filters in ({"language": "de"}, {"task_categories": "question-answering"}):
        listed = api.list_datasets(author="filters", **filters)  # type: ignore[arg-type]
        assert [data.id for data in listed] == ["filters/data"]
    assert list(api.list_datasets(author="filters", language="fr")) == []


def test_the_gitignore_of_a_repository_holds(web: httpx2.Client, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"*.log\n", path_in_repo=".gitignore", repo_id=repo)
    files = [{"path": name, "size": 1, "sample": ""} for name in ("a.log", "a.txt")]
    for own, ignored in (({}, [True, False]), ({"gitIgnore": "*.txt"}, [False, True])):
        body = {"files": files, **own}
        answer = web.post(f"/api/models/{repo}/preupload/main", json=body).json()
        assert [file["shouldIgnore"] for file in answer["files"]] == ignored
