"""What many steps cost on the embedded Hub: refs, history, `hubmerge steps`, and one more tag.

Two repositories have the same commits, one of them many more tags. Requests are counted, because
they do not depend on how busy the machine is; seconds are the fastest of some runs.

    python -m benchmarks.hub_scale
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2

from hubmerge.flows.steps import describe_steps
from hubmerge.hub.client import Hub
from hubmerge.progress import no_progress
from hubmerge.server import ServerState, lease
from hubmerge.server.content import AddFile
from hubmerge.server.names import RepoId
from hubmerge.server.repository import TAG
from hubmerge.server.store import RepositoryStore

REPEATS = 3
FEW, MANY = "me/few", "me/many"


def write_repositories(data: Path, commits: int, tags: int) -> None:
    """Both repositories, each with a tag at every commit; the second with `tags` more of them."""
    store = RepositoryStore(data)
    store.clean_up()
    with mock.patch.object(os, "fsync", return_value=None):
        for name, more in ((FEW, 0), (MANY, tags)):
            repository = store.create(RepoId("models", *name.split("/")), author="me")
            for step in range(1, commits + 1):
                config = AddFile("config.json", json.dumps({"step": step}).encode())
                sha = repository.commit("main", [config], f"Step {step}", author="me")
                repository.create_ref(TAG, f"step{step}", sha, f"step {step}", "me")
            for number in range(more):
                repository.create_ref(TAG, f"other{number}", "main")


def measure(work: Callable[[], object]) -> dict[str, float]:
    """Requests and seconds of the first call, and of the fastest of the next ones."""
    results = []
    for _ in range(REPEATS + 1):
        with count_requests() as requests:
            began = time.perf_counter()
            work()
            results.append((len(requests), time.perf_counter() - began))
    (first, first_s), *again = results
    return {
        "requests": first,
        "seconds": round(first_s, 3),
        "requests again": min(count for count, _ in again),
        "seconds again": round(min(seconds for _, seconds in again), 3),
    }


@contextmanager
def count_requests() -> Iterator[list[str]]:
    """The requests of the client library while the block runs."""
    requests: list[str] = []
    send = httpx2.Client.send

    def count(client: httpx2.Client, request: httpx2.Request, **more: Any) -> httpx2.Response:
        requests.append(str(request.url))
        return send(client, request, **more)

    with mock.patch.object(httpx2.Client, "send", count):
        yield requests


def measure_all(server: ServerState, cache: Path) -> dict[str, dict[str, float]]:
    """Each question by its name."""
    hub = Hub(server.url, lambda: server.token, cache, "the embedded Hub", is_embedded=True)
    numbers = iter(range(1, 1000))

    def tag(repo: str) -> None:
        hub.api.create_tag(repo, tag=f"new{next(numbers)}")

    return {
        "refs": measure(lambda: hub.api.list_repo_refs(MANY)),
        "commits": measure(lambda: hub.api.list_repo_commits(MANY)),
        "hubmerge steps": measure(lambda: describe_steps(hub, [MANY], no_progress)),
        "one more tag": measure(lambda: tag(MANY)),
        "one more tag, of few": measure(lambda: tag(FEW)),
    }


def main() -> None:
    """Print the numbers as JSON, or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=1000)
    parser.add_argument("--tags", type=int, default=9000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "hub"
        write_repositories(data, options.commits, options.tags)
        with lease(data) as server:
            results = measure_all(server, Path(folder) / "cache")
    sizes = {"commits": options.commits, "tags": options.commits + options.tags}
    text = json.dumps({**sizes, "results": results}, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
