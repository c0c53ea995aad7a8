"""One embedded Hub for the tests of callbacks, and a tiny language model."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.server import ServerState, read_state
from tests.models.builders import tiny_llama

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    tiny_llama(folder)
    return folder


@pytest.fixture
def server(running_home: Path, monkeypatch: pytest.MonkeyPatch) -> ServerState:
    """The Hub of `hub="local"`."""
    monkeypatch.setenv("HUBMERGE_HOME", str(running_home))
    state = read_state(running_home / "hub")
    assert state is not None
    return state


@pytest.fixture
def api(server: ServerState) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


@pytest.fixture
def repo() -> str:
    """The id of a repository that does not exist yet."""
    return f"me/expert-{next(_numbers)}"


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


@pytest.fixture
def sentences() -> Iterator[list[str]]:
    """What the callbacks of a test log."""
    kept, logger = _Kept(), logging.getLogger("hubmerge")
    logger.addHandler(kept)
    yield kept.sentences
    logger.removeHandler(kept)
