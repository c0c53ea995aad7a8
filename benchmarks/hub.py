"""The embedded Hub: transfers beside a copy with its digest, and many clients at once.

transfers  upload, upload again and download of one file of weights by the client library, with
           LFS (Xet off) and with Xet (its default), as multiples of the time of `cp` and SHA-256 of
           the file. Each client is a process of its own; its start is not counted.
load       publishers and readers at once: commits and reads in a second, writes that were lost
           (commits or tags that are not there afterwards, or have other bytes), and the memory of
           the server after a quarter of the work and at the end, in MB.

    python -m benchmarks.hub                  a minute or two on an idle machine
    python -m benchmarks.hub --quick          to see that it runs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from benchmarks.cases import BUILD
from hubmerge.server import ServerState, lease

OUT = BUILD / "bench-hub.json"
_CLIENT = """
import sys, time
from huggingface_hub import HfApi, hf_hub_download
verb, repo, path, cache = sys.argv[1:]
api = HfApi()
api.whoami()  # imports, and the first connection
if verb == "upload":
    import hf_xet
began = time.perf_counter()
if verb == "upload":
    api.upload_file(path_or_fileobj=path, path_in_repo="model.safetensors", repo_id=repo)
else:
    hf_hub_download(repo, "model.safetensors", cache_dir=cache)
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Transfer:
    """One line of the table: seconds of the client and of cp with SHA-256."""

    client: str
    what: str
    seconds: float
    copy_seconds: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.copy_seconds


@dataclass(frozen=True)
class Load:
    """What many clients at once did."""

    clients: int
    commits: int
    commits_per_second: float
    reads_per_second: float
    lost: int
    megabytes_at_a_quarter: float
    megabytes_at_the_end: float


def measure_transfers(
    server: ServerState, folder: Path, megabytes: int, repeats: int
) -> Iterator[Transfer]:
    """Upload, upload again and download, with and without Xet."""
    api = HfApi(endpoint=server.url, token=server.token)
    for client, more in (("lfs", {"HF_HUB_DISABLE_XET": "1"}), ("xet", {})):
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": server.url, "HF_TOKEN": str(server.token),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more,
        }  # fmt: skip
        seconds: dict[str, list[float]] = {"upload": [], "again": [], "download": [], "copy": []}
        for number in range(repeats):
            file, repo = folder / "weights", f"bench/{client}-{number}"
            file.write_bytes(os.urandom(megabytes << 20))
            api.create_repo(repo)
            environment["HF_HOME"] = str(folder / f"{client}-{number}")
            seconds["copy"].append(_copy_and_hash(file, folder / "copy"))
            for what, verb in (("upload", "upload"), ("again", "upload"), ("download", "download")):
                words = [
                    sys.executable,
                    "-c",
                    _CLIENT,
                    verb,
                    repo,
                    str(file),
                    str(folder / "cache"),
                ]
                done = subprocess.run(
                    words, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                seconds[what].append(float(done.stdout))
            shutil.rmtree(folder / "cache")
        copy = statistics.median(seconds.pop("copy"))
        for what, values in seconds.items():
            yield Transfer(client, what, statistics.median(values), copy)


def _copy_and_hash(source: Path, target: Path) -> float:
    began = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
        hashlib.file_digest(file, "sha256")
    return time.perf_counter() - began


def measure_load(server: ServerState, clients: int, commits: int) -> Load:
    """Half of the clients commit and tag in repositories that two of them share; half read."""
    api, process = HfApi(endpoint=server.url, token=server.token), psutil.Process(server.pid)
    writers, readers = clients // 2, clients - clients // 2
    repos = [f"bench/load-{number}" for number in range(max(1, writers // 2))]
    for repo in repos:
        api.create_repo(repo)
    expected: dict[tuple[str, str], bytes] = {}
    is_over = False

    def write(writer: int) -> None:
        client, repo = HfApi(endpoint=server.url, token=server.token), repos[writer % len(repos)]
        for number in range(commits):
            tag, content = f"step{writer}-{number}", os.urandom(512)
            change = CommitOperationAdd(f"{writer}.txt", content)
            done = _until_done(
                lambda c=change, t=tag: client.create_commit(repo, [c], commit_message=t)
            )
            client.create_tag(repo, tag=tag, revision=done.oid)
            expected[repo, tag] = content

    def read(reader: int) -> int:
        client, repo, count = HfApi(endpoint=server.url, token=False), repos[reader % len(repos)], 0
        while not is_over:
            client.list_repo_files(repo)
            client.list_repo_refs(repo)
            count += 2
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        reading = [pool.submit(read, reader) for reader in range(readers)]
        writing = [pool.submit(write, writer) for writer in range(writers)]
        while len(expected) < writers * commits // 4 and not all(job.done() for job in writing):
            time.sleep(0.05)
        early = process.memory_info().rss / 1e6
        for job in writing:
            job.result()
        seconds, is_over = time.perf_counter() - began, True
        reads = sum(job.result() for job in reading)
    return Load(
        clients, len(expected), len(expected) / seconds, reads / seconds,
        _count_lost(api, repos, expected), early, process.memory_info().rss / 1e6,
    )  # fmt: skip


def _until_done(commit: Callable[[], CommitInfo]) -> CommitInfo:
    """A commit that lost the race for the branch is made again."""
    for _ in range(1000):
        try:
            return commit()
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", 0) not in (409, 412):
                raise
    raise SystemExit("a commit lost every race")


def _count_lost(api: HfApi, repos: list[str], expected: Mapping[tuple[str, str], bytes]) -> int:
    tags = {
        repo: {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
        for repo in repos
    }
    lost = 0
    with tempfile.TemporaryDirectory() as cache:
        for (repo, tag), content in expected.items():
            name = f"{tag.removeprefix('step').partition('-')[0]}.txt"
            sha = tags[repo].get(tag)
            path = sha and api.hf_hub_download(repo, name, revision=sha, cache_dir=cache)
            lost += not path or Path(path).read_bytes() != content
    return lost


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--megabytes", type=int, default=350)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    megabytes, repeats = (8, 1) if options.quick else (options.megabytes, options.repeats)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    BUILD.mkdir(exist_ok=True)
    transfers = []
    with tempfile.TemporaryDirectory(dir=BUILD) as name, lease(Path(name) / "hub") as server:
        print(f"{'client':8}{'what':12}{'seconds':>9}{'cp + sha256':>13}{'ratio':>8}")
        for row in measure_transfers(server, Path(name), megabytes, repeats):
            transfers.append({**asdict(row), "ratio": row.ratio})
            print(
                f"{row.client:8}{row.what:12}{row.seconds:9.2f}{row.copy_seconds:13.2f}{row.ratio:8.2f}"
            )
        load = measure_load(server, 16, 3 if options.quick else 50)
        print(json.dumps(asdict(load)))
    value = {
        "megabytes": megabytes,
        "repeats": repeats,
        "transfers": transfers,
        "load": asdict(load),
    }
    OUT.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
