"""Pickled weights become folders of safetensors that everything else opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from huggingface_hub import HfApi

from hubmerge.durable import hash_file
from hubmerge.hub.client import Hub
from hubmerge.server import ServerState, lease
from hubmerge.server.tokens import Tokens
from tests.command_line import run_command as run

pytestmark = pytest.mark.usefixtures("running_hub")

TEXT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model saved as pickle and as safetensors."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    network.save_pretrained(folder / "safe")
    (folder / "bin").mkdir()
    torch.save(network.state_dict(), folder / "bin" / "pytorch_model.bin")
    torch.save({"lr": 0.1}, folder / "bin" / "training_args.bin")
    shutil.copy(folder / "safe" / "config.json", folder / "bin")
    (folder / "bin" / "README.md").write_text("---\nbase_model: me/base\n---\nMine.\n")
    return folder


def assert_same(folder: Path, model: Path) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected = transformers.AutoModelForCausalLM.from_pretrained(model / "safe")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_a_folder(model: Path, tmp_path: Path) -> None:
    done = run("import", model / "bin", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert_same(tmp_path / "out", model)
    record = json.loads((tmp_path / "out" / "import.json").read_text())
    digest = hash_file(model / "bin" / "pytorch_model.bin")
    assert record["files"] == json.loads(done.stdout)["files"] == {"pytorch_model.bin": digest}
    assert record["source"] == "bin"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "config.json", "import.json", "model.safetensors"]
    again = run("import", model / "bin", "--out", tmp_path / "again")
    assert again.exit_code == 0
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert "exists" in run("import", model / "bin", "--out", tmp_path / "out").stderr


def test_shards(model: Path, tmp_path: Path) -> None:
    state = torch.load(model / "bin" / "pytorch_model.bin", weights_only=True)
    names = list(state)
    source = tmp_path / "shards"
    source.mkdir()
    shutil.copy(model / "bin" / "config.json", source)
    for number, part in ((1, names[:5]), (2, names[5:])):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, source / shard)
    done = run("import", source, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert_same(tmp_path / "out", model)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    missing = run("import", source, "--out", tmp_path / "other")
    assert "1 of 2 shards" in missing.stderr
    assert not (tmp_path / "other").exists()


def test_a_file_alone_and_several_files(model: Path, tmp_path: Path) -> None:
    done = run("import", model / "bin" / "pytorch_model.bin", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert not (tmp_path / "out" / "config.json").exists()
    source = tmp_path / "several"
    source.mkdir()
    for name in ("first.pt", "second.pt"):
        torch.save({"w": torch.ones(2)}, source / name)
    refused = run("import", source, "--out", tmp_path / "one")
    assert refused.exit_code == 2
    assert "--file" in refused.stderr
    done = run("import", source, "--file", "second.pt", "--out", tmp_path / "one")
    assert done.exit_code == 0
    assert "no file third.pt" in run("import", source, "--file", "third.pt",
                                     "--out", tmp_path / "two").stderr  # fmt: skip
    assert "no pickled weights" in run("import", model / "safe", "--out", tmp_path / "3").stderr


def test_an_adapter_of_peft_merges(model: Path, tmp_path: Path) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(model / "safe")
    adapted = peft.get_peft_model(
        network, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    adapted.save_pretrained(tmp_path / "lora", safe_serialization=False)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = adapted(ids).logits
    words = ["--base", model / "safe", "--method", "average", "--out", tmp_path / "out"]
    refused = run("merge", tmp_path / "lora", *words)
    assert f"hubmerge import {tmp_path / 'lora'} --out DIR" in refused.stderr
    imported = run("import", tmp_path / "lora", "--out", tmp_path / "safe-lora")
    assert imported.exit_code == 0, imported.stderr
    done = run("merge", tmp_path / "safe-lora", *words)
    assert done.exit_code == 0, done.stderr
    result = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(result(ids).logits, expected, atol=1e-5, rtol=0)


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    refused = run("import", tmp_path / "model.pt", "--out", tmp_path / "out")
    assert refused.exit_code == 1
    assert "whole pickled module" in refused.stderr
    assert "state_dict()" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerState]:
    with lease(tmp_path / "hub") as state:
        yield state


def test_a_repository_and_the_converter_bot(
    model: Path, tmp_path: Path, server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", server.token)
    api = Hub(server.url, lambda: server.token, tmp_path / "cache", "the test Hub").api
    api.create_repo("me/old")
    api.upload_folder(repo_id="me/old", folder_path=model / "bin")
    refused = run("merge", "me/old", "--base", model / "safe", "--out", tmp_path / "m", hub="")
    assert "hubmerge import me/old --out DIR" in refused.stderr
    done = run("import", "me/old", "--out", tmp_path / "out", hub="")
    assert done.exit_code == 0, done.stderr
    assert "converter" not in done.stderr
    assert_same(tmp_path / "out", model)
    source = json.loads((tmp_path / "out" / "import.json").read_text())["source"]
    assert source.startswith("me/old@")
    bot = HfApi(endpoint=server.url, token=Tokens(server.data).create("SFconvertbot", "write"))
    bot.upload_file(
        path_or_fileobj=model / "safe" / "model.safetensors", path_in_repo="model.safetensors",
        repo_id="me/old", create_pr=True,
    )  # fmt: skip
    refused = run("merge", "me/old", "--base", model / "safe", "--out", tmp_path / "m", hub="")
    assert "Name me/old@refs/pr/1, where the Hub's converter" in refused.stderr
    done = run("import", "me/old", "--out", tmp_path / "again", hub="")
    assert "me/old@refs/pr/1 has the weights as safetensors" in done.stderr
    merged = run("merge", "me/old@refs/pr/1", "--base", model / "safe", "--method", "average",
                 "--out", tmp_path / "merged", hub="")  # fmt: skip
    assert merged.exit_code == 0, merged.stderr
