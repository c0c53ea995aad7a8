"""Which checkpoints `hubmerge select` downloads: those that it tries, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file

from hubmerge.trials import TrialLog
from tests.end_to_end.conftest import REPOS, WEIGHTS, Command, LocalHub


@pytest.fixture
def empty_cache(local_hub: LocalHub) -> Iterator[Path]:
    """The cache of downloads and the log of trials, both empty; restored after the test."""
    cache, log = local_hub.home / "hub" / "cache", local_hub.home / "trials.jsonl"
    aside = local_hub.home / "aside"
    aside.mkdir()
    for path in (cache, log):
        if path.exists():
            path.rename(aside / path.name)
    yield cache
    for path in (cache, log):
        if (aside / path.name).exists():
            if path.exists():
                path.rename(aside / f"{path.name}-of-test")
            (aside / path.name).rename(path)
    aside.rename(local_hub.home / f"aside-{len(list(local_hub.home.glob('aside-*')))}")


@pytest.fixture(scope="module")
def old_repos(api: HfApi, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The repositories as an earlier hubmerge published them: no norms in their manifests."""
    repos = []
    for repo in REPOS:
        old = f"old/{repo.rpartition('/')[2]}"
        api.create_repo(old)
        for step in (2, 4, 8):
            folder = tmp_path_factory.mktemp("step")
            api.snapshot_download(repo, revision=f"step{step}", local_dir=folder)
            fields = json.loads((folder / "hubmerge.json").read_text())
            del fields["norms"]
            (folder / "hubmerge.json").write_text(json.dumps(fields))
            api.upload_folder(repo_id=old, folder_path=folder, ignore_patterns=[".cache/**"])
            api.create_tag(old, tag=f"step{step}")
        repos.append(old)
    return repos


def fetched(cache: Path) -> set[str]:
    """The commits of experts whose weights were downloaded."""
    files = cache.glob(f"models--*/snapshots/*/{WEIGHTS}")
    return {file.parent.name for file in files if "tiny-clip" not in str(file)}


def tried(local_hub: LocalHub) -> set[str]:
    """The commits of experts in measured trials."""
    trials = TrialLog(local_hub.home / "trials.jsonl").read()
    return {part.sha for trial in trials for part in trial.parts}


def commits(api: HfApi, repos: list[str] | tuple[str, ...], *steps: int) -> set[str]:
    names = {f"step{step}" for step in steps}
    refs = [tag for repo in repos for tag in api.list_repo_refs(repo).tags]
    return {str(api.model_info(repo, revision=name).sha) for repo in repos for name in names
            if any(tag.name == name for tag in refs)}  # fmt: skip


def test_a_saved_step_records_the_norms_of_its_task_vector(api: HfApi, tmp_path: Path) -> None:
    step = Path(api.snapshot_download(REPOS[0], revision="step8", local_dir=tmp_path / "step"))
    base = Path(api.snapshot_download("hubmerge/tiny-clip", local_dir=tmp_path / "base"))
    ours, theirs = load_file(base / WEIGHTS), load_file(step / WEIGHTS)
    norms = json.loads((step / "hubmerge.json").read_text())["norms"]
    squares = {name: float(np.square(theirs[name].astype(float) - ours[name]).sum())
               for name, values in ours.items() if values.dtype == np.float32}  # fmt: skip
    assert norms["model"] == pytest.approx(sum(squares.values()) ** 0.5)
    layer = "visual.transformer.resblocks.1"
    of_layer = sum(square for name, square in squares.items() if name.startswith(f"{layer}."))
    assert norms["layers"][layer] == pytest.approx(of_layer**0.5)
    total = sum(value**2 for value in norms["layers"].values())
    assert total == pytest.approx(norms["model"] ** 2)
    assert not any(name.startswith("transformer.") for name in norms["layers"])  # it was frozen


def test_every_fetched_checkpoint_was_tried(
    hubmerge: Command, local_hub: LocalHub, empty_cache: Path, tmp_path: Path
) -> None:
    result = hubmerge(
        "select", *REPOS, "--target", "ties", "--policy", "proxy", "--budget", "12",
        "--lock", tmp_path / "l",
    )  # fmt: skip
    assert result.code in (0, 4), result.err
    assert "Note: Policy" not in result.err
    assert fetched(empty_cache)
    assert fetched(empty_cache) <= tried(local_hub)


def test_a_dry_run_fetches_the_last_steps_alone(
    hubmerge: Command, api: HfApi, empty_cache: Path
) -> None:
    assert hubmerge("select", *REPOS, "--target", "ties", "--dry-run").code == 0
    assert fetched(empty_cache) == commits(api, REPOS, 8)


def test_without_recorded_norms_proxy_is_skipped_unless_it_is_asked_for(
    hubmerge: Command,
    api: HfApi,
    empty_cache: Path,
    old_repos: list[str],
    tmp_path: Path,
) -> None:
    words = ("select", *old_repos, "--target", "average", "--budget", "8", "--lock", tmp_path / "l")
    result = hubmerge(*words, "--json")
    assert result.code in (0, 4), result.err
    assert "Note: Policy proxy is skipped, as it would fetch 6 checkpoints, about" in result.err
    assert "Ask for it with --policy proxy." in result.err
    assert "proxy" not in [pick["policy"] for pick in result.data["picks"]]
    result = hubmerge(*words, "--policy", "proxy", "--json")
    assert result.code in (0, 4), result.err
    assert "Note: Policy proxy fetches 6 checkpoints, about" in result.err
    assert result.data["chosen"] == "proxy"
    assert fetched(empty_cache) == commits(api, old_repos, 2, 4, 8)
