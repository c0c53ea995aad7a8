"""Options of `hubmerge train`: LoRA's layers, means, and runs that continue published steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from huggingface_hub import HfApi
from typer.testing import Result

from hubmerge.choosing.candidates import open_pool
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest, parse_manifest
from hubmerge.progress import no_progress
from hubmerge.refs import parse_ref
from hubmerge.server import lease
from hubmerge.tasks.lookup import find_task
from hubmerge.weights.checkpoint import open_checkpoint
from tests.command_line import run_command
from tests.models.builders import tiny_llama

pytestmark = pytest.mark.usefixtures("running_hub")

OPTIONS = ("--lr", "1e-2", "--steps", "4", "--push-every", "2,4", "--batch", "4", "--schedule",
           "constant", "--warmup-steps", "0")  # fmt: skip
Train = Callable[..., Result]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama as `base`, and a task of prompts and answers."""
    folder = tmp_path_factory.mktemp("world")
    tiny_llama(folder / "base")
    rows = [{"text": text, "reply": reply} for text, reply in (("a good film", "yes"),
            ("a bad film", "no"), ("fun", "yes"), ("dull", "no"))]  # fmt: skip
    files = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    for name in files.values():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "name": "films", "kind": "target", "prompt": "{{ text }}:", "target": "{{ reply }}",
        "data": {"path": ".", "files": files}, "splits": {name: name for name in files},
    }  # fmt: skip
    (folder / "films.yaml").write_text(yaml.safe_dump(fields))
    return folder


@pytest.fixture(scope="module")
def api(running_home: Path) -> Any:
    with lease(running_home / "hub") as server:
        yield HfApi(endpoint=server.url, token=server.token)


@pytest.fixture
def hub(running_home: Path, api: HfApi) -> Hub:
    return Hub(str(api.endpoint), lambda: str(api.token), running_home / "hub/cache", "the Hub")


@pytest.fixture
def train(world: Path) -> Train:
    def run(to: str, *words: object) -> Result:
        return run_command("train", "--base", world / "base", "--task", world / "films.yaml",
                           "--to", to, *OPTIONS, *words, "--json")  # fmt: skip

    return run


def download(api: HfApi, repo: str, tag: str, tmp_path: Path) -> Path:
    return Path(api.snapshot_download(repo, revision=tag, local_dir=tmp_path / repo / tag))


def manifest_in(folder: Path) -> Manifest:
    return parse_manifest((folder / "hubmerge.json").read_bytes(), str(folder))


def test_layers_and_saved_modules(train: Train, world: Path, api: HfApi, tmp_path: Path) -> None:
    words = ("--tune", "lora", "--target-modules", "v_proj,q_proj", "--modules-to-save", "lm_head")
    done = train("runs/layers", *words)
    assert done.exit_code == 0, done.stderr
    folder = download(api, "runs/layers", "step4", tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["modules_to_save"] == ["lm_head"]
    training = manifest_in(folder).training
    assert (training["target_modules"], training["modules_to_save"]) == ("q_proj,v_proj", "lm_head")
    base = world / "base"
    tuned = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), str(folder)
    )
    expected: Any = tuned.merge_and_unload().eval()
    done = run_command("merge", folder, "--base", base, "--method", "average", "--out",
                       tmp_path / "merged")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    merged: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, expected(tokens).logits)
    whole = open_checkpoint(base).read("lm_head.weight")
    assert (open_checkpoint(tmp_path / "merged").read("lm_head.weight") != whole).any()
    other = train("runs/layers", "--tune", "lora", "--target-modules", "v_proj")
    assert other.exit_code == 3
    assert "--target-modules q_proj,v_proj" in other.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target-modules", "q_proj,vproj,x"), "did you mean v_proj"),
        (("--target-modules", "norm"), "'norm' is no linear layer of this model"),
        (("--modules-to-save", "lm_haed"), "did you mean lm_head"),
        (("--modules-to-save", "mlp"), "no module with weights of its own"),
        (("--modules-to-save", "q_proj"), "cannot be adapted and trained whole"),
    ],
)
def test_names_that_no_module_has(train: Train, words: tuple[str, ...], message: str) -> None:
    done = train("runs/wrong", "--tune", "lora", *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_bases_in_4_bits_need_a_gpu(train: Train) -> None:
    done = train("runs/quantised", "--tune", "lora", "--load-in", "4bit")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert done.exit_code == 2
    assert "A base in 4 bits needs" in done.stderr


@pytest.mark.parametrize("tune", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_run_continues_a_published_step(
    train: Train, world: Path, api: HfApi, tmp_path: Path, tune: str
) -> None:
    source, to = f"runs/{tune}", f"runs/{tune}-continued"
    assert train(source, "--tune", tune, "--steps", "3", "--push-every", "2,3").exit_code == 0
    words = ("--task", world / "films.yaml", "--to", to)
    done = run_command("train", "--start-from", f"{source}@step2", *words, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["commits"]) == ["step3"]
    first = manifest_in(download(api, source, "step2", tmp_path))
    whole = manifest_in(download(api, source, "step3", tmp_path))
    last = manifest_in(download(api, to, "step3", tmp_path))
    # Only the moments of the optimizer differ, and they have no part in the next loss.
    assert last.validation[-1].loss == pytest.approx(whole.validation[-1].loss)
    assert last.validation[: len(first.validation)] == first.validation
    assert last.base == first.base
    assert last.training["start_step"] == 2
    assert str(last.training["start_from"]).startswith(f"{source}@")
    assert "not published" in str(last.training["optimizer"])
    assert (last.training["lr"], last.training["tune"]) == (0.01, tune)
    for more, message in (
        (("--steps", "2"), "is step 2, and the run ends at step 2"),
        (("--tune", "ia3" if tune == "full" else "full"), "cannot continue"),
    ):
        done = run_command("train", "--start-from", f"{source}@step2", *words[:2], "--to",
                           "runs/none", *more)  # fmt: skip
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr


def test_means_are_recorded(
    train: Train, world: Path, api: HfApi, hub: Hub, tmp_path: Path
) -> None:
    done = train("runs/means", "--average", "ema:0.9", "--sam", "0.05")
    assert done.exit_code == 0, done.stderr
    folder = download(api, "runs/means", "step4", tmp_path)
    training = manifest_in(folder).training
    assert (training["average"], training["sam"]) == ("ema:0.9", 0.05)
    card = (folder / "README.md").read_text()
    assert "means of weights ema:0.9" in card
    assert train("runs/means", "--average", "ema:0.99").exit_code == 3
    assert train("runs/weights", "--push-every", "4").exit_code == 0
    refs = [parse_ref("runs/weights"), parse_ref("runs/means")]
    pool = open_pool(hub, refs, [find_task(str(world / "films.yaml"))], None, no_progress,
                     metric="exact_match").pool  # fmt: skip
    (candidates,) = pool.candidates  # of one expert
    assert [candidate.source.label for candidate in candidates] == [
        "runs/means@step2", "runs/means@step4", "runs/weights@step4",
    ]  # fmt: skip
