"""A language model in a GGUF file becomes a folder that transformers loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubmerge.errors import UsageError
from hubmerge.reproduce.units.gguf import convert_gguf

TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"]
WIDTH, HIDDEN = 8, 16
SHAPES = {
    "token_embd": (len(TOKENS), WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.ffn_norm": (WIDTH,),
    "blk.0.attn_q": (WIDTH, WIDTH),
    "blk.0.attn_k": (WIDTH // 2, WIDTH),
    "blk.0.attn_v": (WIDTH // 2, WIDTH),
    "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_gate": (HIDDEN, WIDTH),
    "blk.0.ffn_up": (HIDDEN, WIDTH),
    "blk.0.ffn_down": (WIDTH, HIDDEN),
}
# Tensors that GGUF keeps as they are, unlike queries and keys, and their names in transformers.
KEPT = {
    "token_embd": "model.embed_tokens.weight",
    "blk.0.attn_v": "model.layers.0.self_attn.v_proj.weight",
    "blk.0.ffn_down": "model.layers.0.mlp.down_proj.weight",
    "output_norm": "model.norm.weight",
}


def write_gguf(file: Path) -> dict[str, Any]:
    """Write a tiny Llama of one layer with a tied head; returns its tensors."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    draw = np.random.default_rng(0)
    tensors = {name: draw.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_weights_tokenizer_template_and_licence_are_kept(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "tiny.F32.gguf")
    folder = convert_gguf(tmp_path / "tiny.F32.gguf", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    for name, key in KEPT.items():
        assert torch.equal(state[key], torch.from_numpy(tensors[name])), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat)["input_ids"] == [1, 5, 2]
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    again = convert_gguf(tmp_path / "tiny.F32.gguf", tmp_path / "again")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


def test_without_the_package_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="needs the package gguf") as error:
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    assert "hubmerge[gguf]" in error.value.hint
