"""Which files of a model folder belong to the model, and which are left out."""

from __future__ import annotations

import pytest

from hubmerge.model_files import other_files, side_files

NEEDED = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "LICENSE",
    "USE_POLICY.md",
    "additional_chat_templates/tool_use.jinja",
    "bpe_simple_vocab_16e6.txt.gz",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "image_processor_config.json",
    "label_map.json",
    "merges.txt",
    "modules.json",
    "normalizer.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.bpe",
    "vocab.json",
]
WEIGHTS = [
    "model-00001-of-00002.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
]
LEFT_OUT = [
    "2_Dense/pytorch_model.bin",
    "adapter_config.json",
    "checkpoint-8/config.json",
    "checkpoint-8/model.safetensors",
    "flax_model.msgpack",
    "model.gguf",
    "modeling_own.py",
    "onnx/config.json",
    "onnx/model.onnx",
    "openvino/openvino_model.bin",
    "openvino/openvino_model.xml",
    "optimizer.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rng_state_0.pth",
    "run.sh",
    "runs/events.out.tfevents.1.host",
    "tf_model.h5",
    "tokenizer.py",
    "trainer_state.json",
    "training_args.bin",
    "vocab.pkl",
]
CARD = [".cache/huggingface/x.json", ".gitattributes", "README.md", "curve.png", "scores.csv"]


def test_side_files_are_all_but_weights_code_and_leftovers() -> None:
    assert list(side_files(NEEDED + WEIGHTS + LEFT_OUT + CARD)) == NEEDED


def test_other_files_are_the_rest_without_the_card() -> None:
    assert list(other_files(NEEDED + WEIGHTS + LEFT_OUT + CARD)) == sorted(WEIGHTS + LEFT_OUT)


@pytest.mark.parametrize("name", ["hubmerge.json", "hubmerge.lock", "routing.json", "delta.json"])
def test_files_that_hubmerge_writes_are_not_carried(name: str) -> None:
    assert side_files([name, "config.json"]) == ("config.json",)


def test_a_subfolder_of_a_model_in_a_subfolder_is_left_out() -> None:
    paths = ["step8/model.safetensors", "step8/extra/notes.txt", "extra/notes.txt"]
    assert side_files(paths) == ("extra/notes.txt",)
