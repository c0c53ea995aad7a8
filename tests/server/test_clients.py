"""Programs without hubmerge, each in its own process, with only HF_ENDPOINT set."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.server import ServerState

TRANSFORMERS = """
import sys, torch
from transformers import AutoModel, BertConfig, BertModel
repo = sys.argv[1]
config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                    intermediate_size=8, vocab_size=11, max_position_embeddings=8)
from huggingface_hub import HfApi
for step in (1, 2):
    model = BertModel(config)
    torch.nn.init.constant_(model.embeddings.word_embeddings.weight, step)
    commit = model.push_to_hub(repo)
    HfApi().create_tag(repo, tag=f"step{step}", revision=commit.oid)
for step in (1, 2):
    loaded = AutoModel.from_pretrained(repo, revision=f"step{step}")
    print(loaded.embeddings.word_embeddings.weight.mean().item())
"""
PEFT = """
import sys, torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, BertConfig, BertModel
from huggingface_hub import HfApi
repo = sys.argv[1]
base = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                            intermediate_size=8, vocab_size=11, max_position_embeddings=8))
base.push_to_hub(repo + "-base")
model = get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))
for step in (1, 2):
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(value, step)
    commit = model.push_to_hub(repo)
    HfApi().create_tag(repo, tag=f"step{step}", revision=commit.oid)
for step in (1, 2):
    plain = AutoModel.from_pretrained(repo + "-base")
    loaded = PeftModel.from_pretrained(plain, repo, revision=f"step{step}")
    print(next(v for n, v in loaded.named_parameters() if "lora_B" in n).mean().item())
"""
SENTENCES = """
import sys, torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast
repo, folder = sys.argv[1], sys.argv[2]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
open(folder + "/vocab.txt", "w").write("\\n".join(words))
BertTokenizerFast(folder + "/vocab.txt").save_pretrained(folder)
config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                    intermediate_size=8, vocab_size=6, max_position_embeddings=8)
BertModel(config).save_pretrained(folder)
model = SentenceTransformer(modules=[Transformer(folder), Pooling(8), Normalize()])
model.push_to_hub(repo, exist_ok=True)
loaded = SentenceTransformer(repo)
print([type(module).__name__ for module in loaded])
print(torch.allclose(torch.tensor(loaded.encode(["a a"])), torch.tensor(model.encode(["a a"]))))
"""
PUSHED_DATASETS = """
import sys
from datasets import Dataset, load_dataset
repo = sys.argv[1]
for config in ("one", "two"):
    Dataset.from_dict({"x": [config, "y"]}).push_to_hub(repo, config)
for config in ("one", "two"):
    print(load_dataset(repo, config, split="train").to_list())
"""
DATASETS = """
import sys
from datasets import load_dataset
print(load_dataset(sys.argv[1], split="train").to_list())
print(load_dataset(sys.argv[1], split="train", streaming=True).take(1).__iter__().__next__())
"""


def run(hub: ServerState, home: Path, code: str, *arguments: str, xet: bool = True) -> list[str]:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


with_and_without_xet = pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])


@pytest.mark.slow
@with_and_without_xet
@pytest.mark.parametrize("code", [TRANSFORMERS, PEFT], ids=["transformers", "peft"])
def test_models_are_pushed_and_each_step_is_loaded(
    hub: ServerState, repo: str, tmp_path: Path, code: str, xet: bool
) -> None:
    assert run(hub, tmp_path, code, repo, xet=xet)[-2:] == ["1.0", "2.0"]


@pytest.mark.slow
@with_and_without_xet
def test_an_embedding_model_is_pushed_and_loaded(
    hub: ServerState, repo: str, tmp_path: Path, xet: bool
) -> None:
    (tmp_path / "base").mkdir()
    lines = run(hub, tmp_path, SENTENCES, repo, str(tmp_path / "base"), xet=xet)
    assert lines[-2:] == ["['Transformer', 'Pooling', 'Normalize']", "True"]


@pytest.mark.slow
@with_and_without_xet
def test_data_are_pushed_and_loaded(hub: ServerState, repo: str, tmp_path: Path, xet: bool) -> None:
    lines = run(hub, tmp_path, PUSHED_DATASETS, f"{repo}-data", xet=xet)
    assert lines[-2:] == ["[{'x': 'one'}, {'x': 'y'}]", "[{'x': 'two'}, {'x': 'y'}]"]


@pytest.mark.slow
def test_datasets_loads_a_parquet_file(hub: ServerState, api: HfApi, tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), file)
    api.create_repo("tests/data", repo_type="dataset")
    add = CommitOperationAdd("data/train-00000-of-00001.parquet", file.getvalue())
    api.create_commit("tests/data", [add], commit_message="m", repo_type="dataset")
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert run(hub, tmp_path, DATASETS, "tests/data")[-2:] == [str(rows), str(rows[0])]
