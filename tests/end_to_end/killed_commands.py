"""Kill commands, or the Hub they use, at seeded moments; the same command must finish the work.

    python -m tests.end_to_end.killed_commands --kills 200 --seed 0

Training, publishing, selecting and merging go on in one home. Before each kill the work of one
command is removed; then it is started, it or the server is killed with SIGKILL after a random part
of the time that it takes, and the same command runs again until it ends by itself. What must hold:
after a kill, every tag has exactly the files that it has without a kill, and a folder of a merge is
not there or whole; at the end, tags, lock and merge have the same bytes as without kills. The
output is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError

from hubmerge.durable import hash_file
from hubmerge.server import ServerState, lease
from tests.warm_python import serve_warm_python

_TRAIN = (
    "train", "--base", "hubmerge/tiny-clip", "--steps", "4", "--push-every", "1,2,4",
    "--lr", "5e-4", "--batch", "4",
)  # fmt: skip
_MOST_RUNS = 5  # of one command, of which all but the last are killed
Contents = dict[str, str]


@dataclass(frozen=True)
class World:
    """A home with a Hub, two experts that no kill touches, and what the commands write.

    An expert that is trained again has other commits, so that a lock of it would be out of date.
    """

    folder: Path
    path: Path  # of the warm programs

    @property
    def commands(self) -> Mapping[str, Sequence[str]]:
        """The commands by name, in an order in which they can run."""
        lock, out = str(self.folder / "hubmerge.lock"), str(self.folder / "merged")
        return {
            "train": (*_TRAIN, "--task", "mini-mnist", "--to", "kill/mnist"),
            "select": (
                "select", "kill/fashion", "kill/hebrew", "--target", "average", "--budget", "6",
                "--lock", lock, "--out", str(self.folder / "selection"),
            ),
            "merge": ("merge", "--lock", lock, "--out", out),
            "push": ("merge", "--lock", lock, "--out", out, "--push", "kill/merged"),
        }  # fmt: skip

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start `hubmerge` with the embedded Hub of this home."""
        environment = {
            **os.environ,
            "PATH": f"{self.path}:{os.environ['PATH']}",
            "HUBMERGE_HOME": str(self.folder / "home"),
            "HUBMERGE_HUB": "local",
        }
        log = (self.folder / "log.txt").open("ab")
        return subprocess.Popen(["hubmerge", *command], env=environment, stdout=log, stderr=log)

    def remove(self, api: HfApi, name: str) -> None:
        """Remove what a command made."""
        home = self.folder / "home"
        if name == "train":
            _delete(api, "kill/mnist")
            shutil.rmtree(home / "runs" / "kill" / "mnist")
        elif name == "select":
            (self.folder / "hubmerge.lock").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "selection", ignore_errors=True)
            (home / "trials.jsonl").unlink(missing_ok=True)
        elif name == "merge":
            shutil.rmtree(self.folder / "merged", ignore_errors=True)
        else:
            _delete(api, "kill/merged")

    def contents(self, api: HfApi) -> Contents:
        """Every file of every tag, of the lock and of the merge, by its digest."""
        found = dict(_tagged_files(api, ("kill/mnist", "kill/merged")))
        for path in (self.folder / "hubmerge.lock", *(self.folder / "merged").rglob("*")):
            if path.is_file():
                found[str(path.relative_to(self.folder))] = hash_file(path)
        return found


def _delete(api: HfApi, repo: str) -> None:
    api.delete_repo(repo, missing_ok=True)


def _tagged_files(api: HfApi, repos: Sequence[str]) -> Iterator[tuple[str, str]]:
    for repo in repos:
        try:
            refs = api.list_repo_refs(repo)
        except RepositoryNotFoundError:
            continue
        for ref in [*refs.tags, *refs.branches]:
            for file in api.list_repo_tree(repo, revision=ref.target_commit, recursive=True):
                if isinstance(file, RepoFile):
                    yield f"{repo}@{ref.name}/{file.path}", file.blob_id


@contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """A world whose two experts are trained."""
    with serve_warm_python(folder) as path:
        world = World(folder, path)
        for task in ("hebrew", "fashion"):
            expert = (*_TRAIN, "--task", f"mini-{task}", "--to", f"kill/{task}")
            assert world.start(expert).wait() == 0
        yield world


def run(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill so many times, and count what did not hold."""
    source, counts, problems = random.Random(seed), Counter[str](), list[str]()
    hub = folder / "home" / "hub"
    with open_world(folder) as world, lease(hub) as server:
        seconds = {}
        for name, command in world.commands.items():
            began = time.monotonic()
            assert world.start(command).wait() in (0, 4), name
            seconds[name] = time.monotonic() - began
        expected = world.contents(_api(server))
        while sum(counts.values()) < kills:
            name = source.choice([*world.commands])
            problems += _kill_and_repeat(world, name, seconds, source, counts, expected)
    return {"seed": seed, "kills": dict(counts), "problems": problems}


def _kill_and_repeat(
    world: World,
    name: str,
    seconds: dict[str, float],
    source: random.Random,
    counts: Counter[str],
    expected: Contents,
) -> Iterator[str]:
    """Remove the work of a command and do it again, with kills; yields what did not hold.

    `seconds` is how long each command took when it was last not killed.
    """
    command, hub = world.commands[name], world.folder / "home" / "hub"
    with lease(hub) as server:
        world.remove(_api(server), name)
    for number in range(_MOST_RUNS):
        with lease(hub) as server:
            process, began, is_killed = world.start(command), time.monotonic(), False
            if number < _MOST_RUNS - 1 and (number == 0 or source.random() < 0.3):
                victim = source.choice(("command", "command", "server"))
                try:
                    process.wait(source.uniform(0, seconds[name]))
                except subprocess.TimeoutExpired:
                    is_killed = True
                    counts[f"{name}: {victim}"] += 1
                    os.kill(server.pid if victim == "server" else process.pid, signal.SIGKILL)
            code = process.wait()
            if not is_killed:
                seconds[name] = time.monotonic() - began
        with lease(hub) as server:
            after = world.contents(_api(server))
        for path, digest in after.items():
            # main moves from step to step, and what is pushed twice has no other bytes.
            if "@main/" not in path and expected.get(path) != digest:
                yield f"{name}, run {number}: {path} differs"
        if code in (0, 4):
            break
    if code not in (0, 4):
        yield f"{name} did not end: {code}"
    yield from (f"{name}: {path} is missing" for path in expected.keys() - after.keys())
    yield from (f"{name}: {path} is too much" for path in after.keys() - expected.keys())
    yield from (
        f"{name}: {path} differs" for path, old in expected.items() if after.get(path) != old
    )


def _api(server: ServerState) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


def main() -> None:
    """Print the result as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), options.kills, options.seed)))


if __name__ == "__main__":
    main()
