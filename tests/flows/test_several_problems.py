"""Several experts with a problem each: one command reports them all, before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.publication import finalize_folder
from hubmerge.opening.references import open_ref, source_of
from hubmerge.refs import parse_ref
from hubmerge.server import ServerState, lease
from tests.command_line import run_command as run
from tests.weights.adapters import save_adapter, write_base
from tests.weights.moes import write_moe

pytestmark = pytest.mark.usefixtures("running_hub")

f32 = np.float32
BASE = {"fc.weight": np.arange(1, 7, dtype=f32).reshape(3, 2), "norm.weight": np.ones(3, f32)}


def write_model(folder: Path, **changed: np.ndarray | None) -> Path:
    """BASE with other tensors, or without those that are None; the parts of names are apart."""
    tensors = BASE | {name.replace("_", "."): value for name, value in changed.items()}
    write_base(folder, {name: value for name, value in tensors.items() if value is not None})
    return folder


def add_manifest(folder: Path, base: Path, hub: Hub, kind: str) -> Path:
    source = source_of(open_ref(hub, parse_ref(str(base))))
    finalize_folder(folder, Manifest(kind=kind, base=source, task="t@1"))
    return folder


@pytest.fixture
def hub(server: ServerState, tmp_path: Path) -> Hub:
    return Hub(
        server.url, lambda: server.token, tmp_path / "cache", "the test Hub", deadline_s=20.0
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base")


@pytest.fixture
def wrong(base: Path, tmp_path: Path, hub: Hub) -> list[Path]:
    """Experts in folders, each with another problem."""
    moe = add_manifest(write_moe(tmp_path / "moe", base=str(base)), base, hub, "moe")
    damaged = add_manifest(write_model(tmp_path / "damaged"), base, hub, "expert")
    save_file({"fc.weight": BASE["fc.weight"]}, damaged / "model.safetensors")
    save_adapter(
        tmp_path / "adapter",
        {"q.lora_A.weight": np.ones((1, 2), f32), "q.lora_B.weight": np.ones((3, 1), f32)},
    )
    unreadable = write_model(
        tmp_path / "unreadable", norm_weight=None, head_weight=BASE["fc.weight"]
    )
    (unreadable / "config.json").write_text("[")
    return [
        moe,
        tmp_path / "nowhere",
        damaged,
        write_model(tmp_path / "wide", fc_weight=np.ones((3, 4), f32)),
        write_model(tmp_path / "short", norm_weight=None),
        tmp_path / "adapter",
        unreadable,
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A Hub with a base, an expert, a mixture of experts and adapters without a usable base."""
    root = tmp_path_factory.mktemp("hub")
    with lease(root / "hub") as state:
        api = HfApi(endpoint=state.url, token=state.token)
        hub = Hub(state.url, lambda: state.token, root / "cache", "the test Hub")
        base, factors = write_model(root / "base"), [np.ones((1, 2), f32), np.ones((3, 1), f32)]
        expert = add_manifest(write_model(root / "expert"), base, hub, "expert")
        moe = add_manifest(write_moe(root / "moe", base="o/base"), base, hub, "moe")
        folders = [base, expert, moe]
        for name, named in {"unnamed": None, "local": "/base", "coded": "o/base-bnb-4bit"}.items():
            tensors = dict(zip(("fc.lora_A.weight", "fc.lora_B.weight"), factors, strict=True))
            save_adapter(root / name, tensors, base_model_name_or_path=named)
            folders.append(root / name)
        for folder in folders:
            api.create_repo(f"o/{folder.name}")
            api.upload_folder(repo_id=f"o/{folder.name}", folder_path=folder)
        yield state


def listed(stderr: str) -> list[str]:
    """The problems of an error message."""
    number = re.search(r"Error: (\d+) problems:", stderr)
    assert number, stderr
    problems = [line.strip() for line in stderr.splitlines() if line.startswith("  - ")]
    assert len(problems) == int(number[1])
    return problems


def test_a_mixture_is_reported_with_the_problems_of_all_others(
    base: Path, wrong: list[Path], tmp_path: Path
) -> None:
    right = write_model(tmp_path / "right")
    refused = run("merge", *wrong, right, "--base", base, "--method", "average", "--out",
                  tmp_path / "out", columns=400)  # fmt: skip
    assert refused.exit_code == 2
    problems = listed(refused.stderr)
    for folder, sentence in zip(wrong, (
        f"is a mixture of experts, not an expert: name {wrong[0]}/experts/", "There is no folder",
        "do not match the SHA-256", "fc.weight", "norm.weight", "that the base does not have",
        "its JSON cannot be read",
    ), strict=True):  # fmt: skip
        assert [str(folder) in text and sentence in text for text in problems].count(True) == 1
    assert not any(str(right) in text for text in problems)
    assert "The experts in a mixture are LoRA adapters." in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_mixture_without_manifest_is_reported_with_the_others(
    base: Path, wrong: list[Path], tmp_path: Path
) -> None:
    moe, wide, short = write_moe(tmp_path / "bare", base=str(base)), wrong[3], wrong[4]
    refused = run("merge", wide, moe, short, "--base", base, "--method", "average", "--out",
                  tmp_path / "out", columns=400)  # fmt: skip
    assert refused.exit_code == 1
    assert "bare is a mixture of experts" in " ".join(listed(refused.stderr))
    assert {name in refused.stderr for name in ("wide", "short", "each folder in its")} == {True}


def test_eval_reports_all_models_that_cannot_be_opened(base: Path, wrong: list[Path]) -> None:
    damaged, other = wrong[2], wrong[3]
    (other / "model.safetensors").write_bytes(b"no weights")
    refused = run("eval", base, damaged, other, "--tasks", "mini-mnist", columns=400)
    assert refused.exit_code == 3
    first, second = listed(refused.stderr)
    assert (str(damaged) in first, str(other) in second) == (True, True)


def test_weights_are_those_of_all_experts(base: Path, wrong: list[Path], tmp_path: Path) -> None:
    """Without the one that is left out they would not sum up to anything."""
    words = ["--base", base, "--method", "average", "--set", "weight=2,-1", "--out", tmp_path / "o"]
    refused = run("merge", wrong[0], write_model(tmp_path / "right"), *words)
    assert refused.exit_code == 2
    assert "is a mixture of experts" in " ".join(refused.stderr.split())
    assert "Weights" not in refused.stderr


def test_names_are_reported_together_before_weights_are_fetched(
    hub: Hub, server: ServerState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setenv("HUBMERGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    words = ["--method", "average", "--out", tmp_path / "out"]
    experts = ["o/nobody", "o/moe", "o/expert", "o/noone", tmp_path / "nowhere"]
    refused = run("merge", *experts, "--base", "o/base", *words, hub="", columns=400)
    assert refused.exit_code == 1
    text = "\n".join(listed(refused.stderr))
    for name in ("o/nobody", "o/moe", "o/noone", "nowhere"):
        assert text.count(name) >= 1
    assert "o/expert" not in text
    assert not list(tmp_path.rglob("*.safetensors"))
    refused = run("select", "o/nobody", "o/moe", "o/noone", "--target", "average", hub="")
    assert len(listed(refused.stderr)) == 3
    refused = run("moerge", "o/nobody", "o/moe", "o/noone", "--out", tmp_path / "out", hub="")
    assert len(listed(refused.stderr)) == 3


def test_all_bases_that_cannot_be_used_are_reported(
    hub: Hub, server: ServerState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", server.token)
    refused = run("merge", "o/unnamed", "o/local", "o/coded", "--method", "average", "--out",
                  tmp_path / "out", hub="")  # fmt: skip
    assert refused.exit_code == 2
    assert len(listed(refused.stderr)) == 3
    assert "perhaps --base o/base." in " ".join(refused.stderr.split())


def test_all_tokenizers_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    embedding = np.ones((4, 2), f32)
    folders = [tmp_path / name for name in ("base", "first", "second")]
    for folder in folders:
        write_base(folder, {"model.embed_tokens.weight": embedding})
        (folder / "tokenizer.json").write_text("{")
    vocabulary = {"model": {"vocab": {f"w{number}": number for number in range(4)}}}
    (folders[0] / "tokenizer.json").write_text(json.dumps(vocabulary))
    refused = run("merge", *folders[1:], "--base", folders[0], "--method", "average",
                  "--vocabulary", "base", "--out", tmp_path / "out", columns=400)  # fmt: skip
    assert refused.exit_code == 1
    assert ["first" in text or "second" in text for text in listed(refused.stderr)] == [True, True]


def test_all_tasks_with_two_heads_are_reported(base: Path, tmp_path: Path) -> None:
    experts = [write_model(tmp_path / name) for name in ("first", "second")]
    for number, folder in enumerate(experts):
        for task in ("cars", "flowers"):
            save_file({"weight": np.full(3, number, f32)}, folder / f"head-{task}.safetensors")
    refused = run("merge", *experts, "--base", base, "--method", "average", "--out",
                  tmp_path / "out")  # fmt: skip
    assert refused.exit_code == 1
    assert len(listed(refused.stderr)) == 2
