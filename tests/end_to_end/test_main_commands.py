"""The main commands one after another on a real Hub: train, steps, merge, eval, card, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, snapshot_download
from safetensors.numpy import load_file

from hubmerge.manifest import MANIFEST_JSON, parse_manifest
from tests.end_to_end.conftest import ROWS, TRAIN, Command, LocalHub

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def api(local_hub: LocalHub) -> HfApi:
    return HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)


def download(local_hub: LocalHub, repo: str, revision: str, into: Path) -> Path:
    folder = into / f"{repo.replace('/', '-')}-{revision}"
    snapshot_download(
        repo, revision=revision, endpoint=local_hub.server.url, token=False, local_dir=folder
    )
    return folder


def test_each_step_is_one_commit_and_one_tag(
    local_hub: LocalHub, hubmerge: Command, api: HfApi
) -> None:
    refs = api.list_repo_refs("demo/mnist")
    assert {tag.name for tag in refs.tags} == {"step2", "step4", "step8"}
    commits = api.list_repo_commits("demo/mnist")
    assert [c.title for c in commits[:3]] == [f"Step {n} of mini-mnist" for n in (8, 4, 2)]
    tags = {tag.name: tag.target_commit for tag in refs.tags}
    assert [c.commit_id for c in commits[:3]] == [tags["step8"], tags["step4"], tags["step2"]]
    assert "hubmerge-run:" in commits[0].message


def test_a_step_is_complete_and_matches_its_manifest(
    local_hub: LocalHub, hubmerge: Command, tmp_path: Path
) -> None:
    folder = download(local_hub, "demo/mnist", "step4", tmp_path)
    manifest = parse_manifest((folder / MANIFEST_JSON).read_bytes(), "step4")
    assert (manifest.kind, manifest.step, manifest.last_step) == ("expert", 4, 8)
    assert [point.step for point in manifest.validation] == [0, 2, 4]
    assert set(manifest.files) == {WEIGHTS, "open_clip_config.json", "bpe.txt.gz"}
    assert manifest.base.label.startswith("hubmerge/tiny-clip@")


def test_a_step_loads_with_open_clip_alone(
    local_hub: LocalHub, hubmerge: Command, tmp_path: Path
) -> None:
    folder = download(local_hub, "demo/mnist", "step8", tmp_path)
    model = open_clip.create_model(f"local-dir:{folder}")
    stored = load_file(folder / WEIGHTS)
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), stored[name])
    assert model.encode_image(torch.zeros(1, 3, 28, 28)).shape == (1, 64)


def test_only_the_image_tower_is_trained(
    local_hub: LocalHub, hubmerge: Command, tmp_path: Path
) -> None:
    early = load_file(download(local_hub, "demo/mnist", "step2", tmp_path) / WEIGHTS)
    late = load_file(download(local_hub, "demo/mnist", "step8", tmp_path) / WEIGHTS)
    moved = {name for name in early if not np.array_equal(early[name], late[name])}
    assert moved == {name for name in early if name.startswith("visual.")}


def test_training_again_changes_nothing(local_hub: LocalHub, hubmerge: Command, api: HfApi) -> None:
    before = [c.commit_id for c in api.list_repo_commits("demo/mnist")]
    result = hubmerge("train", *TRAIN, "--task", "mini-mnist", "--to", "demo/mnist", "--json")
    assert result.code == 0, result.err
    assert result.data["commits"]["step8"] == before[0]
    assert [c.commit_id for c in api.list_repo_commits("demo/mnist")] == before


@pytest.mark.slow
def test_training_elsewhere_gives_the_same_weights(
    local_hub: LocalHub, hubmerge: Command, tmp_path: Path
) -> None:
    words = ("train", *TRAIN, "--task", "mini-mnist", "--to", "demo/again", "--out", tmp_path)
    assert hubmerge(*words).code == 0
    first = download(local_hub, "demo/mnist", "step8", tmp_path) / WEIGHTS
    second = tmp_path / "steps" / "step8" / WEIGHTS
    assert first.read_bytes() == second.read_bytes()


def test_steps_are_listed(hubmerge: Command) -> None:
    rows = hubmerge("steps", "demo/mnist", "demo/hebrew", "--json").data
    assert [(row["repo_id"], row["step"]) for row in rows] == [
        (repo, step) for repo in ("demo/mnist", "demo/hebrew") for step in (2, 4, 8)
    ]
    assert {row["found"] for row in rows} == {"tag"}
    assert rows[0]["task"] == "mini-mnist"
    assert 0 < rows[0]["validation"] < 1


def test_merge_eval_card_report(
    local_hub: LocalHub, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    for step in (8, 2):
        experts = [f"demo/mnist@step{step}", f"demo/hebrew@step{step}"]
        result = hubmerge(
            "merge", *experts, "--method", "ties", "--out", tmp_path / f"step{step}", "--json"
        )
        assert result.code == 0, result.err
        assert result.data["params"]["density"] == 0.2

    merges = [str(tmp_path / "step8"), str(tmp_path / "step2")]
    scores = hubmerge(
        "eval", *merges, "hubmerge/tiny-clip", "--tasks", "mini-mnist,mini-hebrew", "--json"
    )
    assert scores.code == 0, scores.err
    assert {s["count"] for s in scores.data} == {ROWS["test"]}
    assert hubmerge("eval", "demo/mnist", "demo/hebrew", "--every-step").code == 0

    card = hubmerge("card", merges[1], "--push", "demo/early")
    assert card.code == 0, card.err
    assert "against merging the last steps" in card.out
    assert "against the base" in card.out
    pushed = ModelCard(
        Path(api.hf_hub_download("demo/early", "README.md", local_dir=tmp_path / "c")).read_text()
    )
    assert pushed.data.base_model == ["demo/mnist", "demo/hebrew"]
    mine = {s["task"].split("@")[0]: s["value"] for s in scores.data if s["label"] == merges[1]}
    in_card = {r.dataset_name: r.metric_value for r in pushed.data.eval_results}
    assert in_card == pytest.approx(mine)

    figure = tmp_path / "figure.png"
    report = hubmerge("report", "demo/mnist", "demo/hebrew", *merges, "--out", figure, "--json")
    assert report.code == 0, report.err
    curves = report.data["curves"]
    assert [point["step"] for point in curves["ties"]] == [2, 8]
    assert [point["step"] for point in curves["experts, each on its own task"]] == [2, 4, 8]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_known_score_has_the_label_of_the_request(hubmerge: Command, tmp_path: Path) -> None:
    experts = ("demo/mnist@step4", "demo/hebrew@step2")
    for name in ("one", "two"):
        assert hubmerge("merge", *experts, "--out", tmp_path / name).code == 0
    labels = [str(tmp_path / name) for name in ("one", "two")]
    words = ("eval", *labels, "--tasks", "mini-mnist", "--split", "validation", "--json")
    scores = hubmerge(*words).data
    assert [score["label"] for score in scores] == labels
    assert scores[0]["value"] == scores[1]["value"]


def test_a_model_is_measured_on_the_tasks_it_was_trained_for(hubmerge: Command) -> None:
    scores = hubmerge("eval", "demo/hebrew@step2", "--json").data
    assert [score["task"].partition("@")[0] for score in scores] == ["mini-hebrew"]


def test_a_known_score_is_not_measured_again(hubmerge: Command, local_hub: LocalHub) -> None:
    words = ("eval", "demo/mnist@step4", "--split", "validation", "--json")
    first = hubmerge(*words)
    size = (local_hub.home / "scores.jsonl").stat().st_size
    assert hubmerge(*words).data == first.data
    assert (local_hub.home / "scores.jsonl").stat().st_size == size


def test_the_same_merge_has_the_same_bytes(hubmerge: Command, tmp_path: Path) -> None:
    words = (
        "merge",
        "demo/mnist@step8",
        "demo/hebrew@step4",
        "--method",
        "dare",
        "--set",
        "seed=3",
    )
    for name in ("one", "two"):
        assert hubmerge(*words, "--out", tmp_path / name).code == 0
    swapped = (words[0], words[2], words[1], *words[3:])
    assert hubmerge(*swapped, "--out", tmp_path / "swapped").code == 0
    data = (tmp_path / "one" / WEIGHTS).read_bytes()
    assert data == (tmp_path / "two" / WEIGHTS).read_bytes()
    assert data == (tmp_path / "swapped" / WEIGHTS).read_bytes()


def test_a_merge_can_be_pushed_to_a_tag_once(hubmerge: Command, api: HfApi, tmp_path: Path) -> None:
    words = (
        "merge",
        "demo/mnist@step4",
        "demo/hebrew@step4",
        "--push",
        "demo/uniform@step4",
        "--json",
    )
    result = hubmerge(*words, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    again = hubmerge(*words, "--out", tmp_path / "b")
    assert again.data["commit"] == result.data["commit"]
    other = hubmerge(*words, "--out", tmp_path / "c", "--method", "average")
    assert other.code == 3
    assert "demo/uniform@step4 already exists and has other bytes" in other.err


def test_a_dry_run_writes_nothing(hubmerge: Command, api: HfApi, tmp_path: Path) -> None:
    merge = ("merge", "demo/mnist@step4", "demo/hebrew@step4", "--out", tmp_path / "m", "--dry-run")
    result = hubmerge(*merge, "--push", "demo/dry", "--json")
    assert [expert["label"] for expert in result.data["experts"]] == list(merge[1:3])
    train = ("train", *TRAIN, "--task", "mini-mnist", "--to", "demo/dry", "--out", tmp_path / "t")
    result = hubmerge(*train, "--dry-run", "--json")
    assert result.data["steps"] == [2, 4, 8]
    assert list(tmp_path.glob("[mt]*")) == []
    assert not api.repo_exists("demo/dry")


def test_json_is_the_only_standard_output(hubmerge: Command) -> None:
    assert json.loads(hubmerge("methods", "--json").out)
    assert len(json.loads(hubmerge("tasks", "--json").out)) == 28
