"""The fault plan: each failure as a client sees it, and what hubmerge makes of a plan."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from huggingface_hub import HfApi

from hubmerge.errors import UsageError
from hubmerge.server.app import build_app
from hubmerge.server.faults import Fault, FaultMiddleware, read_fault_plan
from hubmerge.server.process import _listen
from hubmerge.server.tokens import Tokens
from tests.command_line import run_command

PLAN = r"""
- {request: 'search=a', fault: status, status: 429, retry_after: 7, message: slowly, times: 2}
- {request: 'search=b', fault: redirect, to: "http://elsewhere/"}
- {request: 'POST /api/repos/create', fault: lose}
- {request: 'search=c', fault: reset, after: 1}
- {request: 'search=d', fault: hang, times: null}
- {request: 'search=e', fault: drip, delay: 0}
- {request: 'search=f', fault: truncate}
- {request: 'search=g', fault: flip}
"""
SCOPE = {"method": "GET", "raw_path": b"/x", "query_string": b""}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx2.Client, str]]:
    """A Hub with the plan, and a token."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "plan.yaml").write_text(PLAN)
    app = build_app(folder / "data", None)
    faulty = FaultMiddleware(app, read_fault_plan(folder / "plan.yaml"))
    server = uvicorn.Server(uvicorn.Config(faulty, log_level="error", lifespan="off"))
    with _listen(0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        token = Tokens(folder / "data").create("me", "write")
        with httpx2.Client(base_url=url, timeout=5) as client:
            yield client, token
        server.should_exit = True
        thread.join()


def test_each_failure(served: tuple[httpx2.Client, str]) -> None:
    web, _ = served
    plain = web.get("/api/models?search=x").content
    for _ in range(2):
        answer = web.get("/api/models?search=a")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
        assert answer.json() == {"error": "slowly"}
    assert web.get("/api/models?search=a").content == plain
    assert web.get("/api/models?search=b").headers["Location"] == "http://elsewhere/"
    assert web.get("/api/models?search=c").content == plain
    with pytest.raises(httpx2.TransportError):
        web.get("/api/models?search=c")
    for _ in range(2):
        with pytest.raises(httpx2.ReadTimeout):
            web.get("/api/models?search=d", timeout=0.2)
    assert web.get("/api/models?search=e").content == plain
    with pytest.raises(httpx2.TransportError):
        web.get("/api/models?search=f")
    flipped = web.get("/api/models?search=g").content
    assert len(flipped) == len(plain)
    assert sum((a ^ b).bit_count() for a, b in zip(flipped, plain, strict=True)) == 1


def test_a_lost_response_has_its_effect(served: tuple[httpx2.Client, str]) -> None:
    web, token = served
    api = HfApi(endpoint=str(web.base_url).rstrip("/"), token=token)
    with pytest.raises(httpx2.TransportError):
        api.create_repo("me/lost")
    assert api.repo_exists("me/lost")


@pytest.mark.parametrize(("plan", "message"), [
    ("- {request: '(', fault: hang}", "no regular expression"),
    ("- {request: a, fault: explode}", "fault"),
    ("- {request: a, fault: status, status: 200}", "status"),
    ("- {request: a, fault: hang, tims: 3}", "tims"),
    ("request: a", "list"),
    ("[{request: a, fault: hang, times: 0}, {fault: hang}]", "times must.*1.request is missing"),
    ("a: [", "cannot be read"),
])  # fmt: skip
def test_a_wrong_plan_is_refused_before_anything_is_served(
    tmp_path: Path, plan: str, message: str
) -> None:
    (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(UsageError, match=message):
        read_fault_plan(tmp_path / "plan.yaml")
    done = run_command("hub", "serve", "--faults", tmp_path / "plan.yaml", "--data", tmp_path / "d")
    assert done.exit_code == 2
    assert not (tmp_path / "d").exists()


def test_the_first_fault_that_matches_counts() -> None:
    faults = [Fault(request="x", fault="hang"), Fault(request="x", fault="reset", times=2)]
    middleware = FaultMiddleware(lambda *_: None, faults)  # type: ignore[arg-type,return-value]
    kinds = [found.fault if (found := middleware._next_fault(SCOPE)) else None for _ in range(3)]
    assert kinds == ["hang", "reset", None]


def test_a_quota_is_refilled_request_by_request() -> None:
    times = iter([0, 10, 20, 99.5, 100, 101, 110, 111])
    quota = Fault(request="x", fault="quota", limit=2, seconds=100)
    middleware = FaultMiddleware(lambda *_: None, [quota], lambda: next(times))  # type: ignore[arg-type,return-value]
    waits = [
        found.retry_after if (found := middleware._next_fault(SCOPE)) else None for _ in range(8)
    ]
    assert waits == [None, None, 80, 1, None, 9, None, 89]


def test_the_tests_that_the_page_names_exist() -> None:
    page = Path(__file__).parents[2] / "docs" / "faults.md"
    names = set(re.findall(r"`(?:tests/[a-z_/]*/)?(\w+\.py)`", page.read_text()))
    assert len(names) > 20
    assert names <= {path.name for path in (page.parents[1] / "tests").rglob("*.py")}
