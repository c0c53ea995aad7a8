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
DATASETS = """
import sys
from datasets import load_dataset
print(load_dataset(sys.argv[1], split="train").to_list())
print(load_dataset(sys.argv[1], split="train", streaming=True).take(1).__iter__().__next__())
"""


def run(hub: ServerState, home: Path, code: str, *arguments: str) -> list[str]:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home / "hf"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_transformers_pushes_and_loads_each_step(
    hub: ServerState, repo: str, tmp_path: Path
) -> None:
    assert run(hub, tmp_path, TRANSFORMERS, repo)[-2:] == ["1.0", "2.0"]


def test_datasets_loads_a_parquet_file(hub: ServerState, api: HfApi, tmp_path: Path) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), file)
    api.create_repo("tests/data", repo_type="dataset")
    add = CommitOperationAdd("data/train-00000-of-00001.parquet", file.getvalue())
    api.create_commit("tests/data", [add], commit_message="m", repo_type="dataset")
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert run(hub, tmp_path, DATASETS, "tests/data")[-2:] == [str(rows), str(rows[0])]
