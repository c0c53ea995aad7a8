"""A client that asks as a browser does, and an expert with four steps."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.manifest import Manifest
from hubmerge.server import ServerState
from hubmerge.source import Source
from hubmerge.training_curve import Norms, ValidationPoint

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
STEPS = (1, 2, 4, 8)
Put = Callable[..., str]


@pytest.fixture(scope="session")
def browser(hub: ServerState) -> Iterator[httpx2.Client]:
    """A browser without a session; it follows redirects."""
    with httpx2.Client(
        base_url=hub.url, headers={"Accept": BROWSER}, follow_redirects=True, timeout=None
    ) as client:
        yield client


@pytest.fixture(scope="session")
def put(api: HfApi) -> Put:
    """Commit files, by their paths, to a repository that is created if it is new."""

    def commit(repo: str, files: dict[str, bytes], message: str = "m", kind: str = "model") -> str:
        api.create_repo(repo, repo_type=kind, exist_ok=True)
        adds = [CommitOperationAdd(path, io.BytesIO(data)) for path, data in files.items()]
        return str(api.create_commit(repo, adds, commit_message=message, repo_type=kind).oid)

    return commit


def step_manifest(step: int) -> Manifest:
    """Accuracy 0.5 at step 0, then 0.6, 0.7, 0.8, 0.9 at steps 1, 2, 4, 8."""
    points = [ValidationPoint(0, None, 0.5, 100, 0.0)] + [
        ValidationPoint(s, 2.0 / s, 0.6 + 0.1 * n, 100, 1e-4) for n, s in enumerate(STEPS)
    ]
    return Manifest(
        kind="expert",
        base=Source("hubmerge/tiny-clip@main", "ab" * 20, "cd" * 32),
        task="digits@0123",
        step=step,
        last_step=8,
        validation=tuple(point for point in points if point.step <= step),
        norms=Norms(0.25 * step, {"layers.0": 0.125 * step, "layers.1": 0.0625 * step}),
        training={"lr": 0.001, "batch": step},
        command="hubmerge train",
    )


CARD = b"""---
license: mit
base_model: hubmerge/tiny-clip
pipeline_tag: image-classification
tags:
- expert
---
# Digits

A [file](config.json), a picture ![curve](curve.png) and [elsewhere](https://example.org).

| a | b |
|---|--:|
| 1 | 2 |
"""


@pytest.fixture(scope="session")
def expert(api: HfApi, put: Put) -> str:
    """A repository with the tags step1, step2, step4 and step8."""
    for step in STEPS:
        files = {
            "README.md": CARD,
            "hubmerge.json": step_manifest(step).to_bytes(),
            "config.json": b'{"architectures": ["CLIPModel"]}',
            "preprocessor_config.json": b"{}",
            "curve.png": b"\x89PNG\r\n\x1a\n",
        }
        sha = put("pages/expert", files, f"Step {step}")
        api.create_tag("pages/expert", tag=f"step{step}", revision=sha)
    return "pages/expert"
