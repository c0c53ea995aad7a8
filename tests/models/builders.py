"""Builders of folders with tiny random models, written by their libraries.

A CLIP in both layouts (transformers, open_clip), and encoders and language models of transformers.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hubmerge.models.loading import load_model
from hubmerge.specs import Kind

WORDS = ["a", "photo", "of", "the", "zero", "one", "two", "three", "digit", "."]
SIZE, LAYERS, WIDTH, LENGTH = 16, 2, 32, 12
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
SENTENCES = [
    "a photo of the digit one, two or three",
    "Is this true? Yes or no?",
    "good films are fun and bad films are dull",
    "the cat sat on the mat and the dog did not",
    "question: which of the two? answer: the first",
]


_models: dict[tuple[Path, Kind], Any] = {}


def load_copy(folder: Path, kind: Kind = "image") -> Any:
    """The model in a folder that no test changes: loaded once, copied without its tokenizer."""
    if (folder, kind) not in _models:
        _models[folder, kind] = load_model(folder, kind)
    model = _models[folder, kind]
    tokenizer = getattr(model, "tokenizer", None)
    return copy.deepcopy(model, {id(tokenizer): tokenizer})


def write_transformers(folder: Path, activation: str = "quick_gelu", seed: int = 0) -> CLIPModel:
    """A complete CLIPModel folder: weights, config, tokenizer and image processor."""
    torch.manual_seed(seed)
    tokenizer = _word_tokenizer()
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "hidden_act": activation,
    }
    config = CLIPConfig(
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    _perturb(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_center_crop": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "size": {"shortest_edge": SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def write_open_clip(folder: Path, model: CLIPModel) -> None:
    """The same model in open_clip's layout: fused q, k and v, transposed projections."""
    folder.mkdir()
    save_file(
        _open_clip_tensors(model), folder / "open_clip_model.safetensors", metadata={"format": "pt"}
    )
    tokenizer = _word_tokenizer()
    tokenizer.save_pretrained(folder)
    tower = {"width": WIDTH, "layers": LAYERS}
    config = {
        "model_cfg": {
            "embed_dim": 24,
            "quick_gelu": model.config.vision_config.hidden_act == "quick_gelu",
            "vision_cfg": {**tower, "image_size": SIZE, "patch_size": 8, "head_width": WIDTH // 4},
            "text_cfg": {
                **tower,
                "heads": 4,
                "context_length": LENGTH,
                "vocab_size": len(tokenizer),
                "hf_tokenizer_name": "the/one-beside-this-file",
            },
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def tiny_bert(
    folder: Path, kind: type[PreTrainedModel] = BertModel, seed: int = 0
) -> BertModel | BertForMaskedLM:
    """A BERT folder: weights, config and a tokenizer that adds [CLS] and [SEP]."""
    tokenizer = _subword_tokenizer("[PAD]", "[SEP]", "[CLS]")
    config = BertConfig(**_SIZES, vocab_size=len(tokenizer), max_position_embeddings=64)
    return _save_model(folder, kind, config, tokenizer, seed)


def tiny_t5(folder: Path, seed: int = 0) -> T5ForConditionalGeneration:
    """A T5 folder with tied embeddings; the tokenizer adds </s>."""
    tokenizer = _subword_tokenizer("<pad>", "</s>")
    config = T5Config(
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=4,
        vocab_size=len(tokenizer),
        decoder_start_token_id=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save_model(folder, T5ForConditionalGeneration, config, tokenizer, seed)


def tiny_gpt2(folder: Path, seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 folder with a tied head; like the real one, it has no padding token."""
    tokenizer = _subword_tokenizer(None, "<|endoftext|>")
    config = GPT2Config(
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        n_positions=128,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save_model(folder, GPT2LMHeadModel, config, tokenizer, seed)


def tiny_llama(folder: Path, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    """A Llama folder with grouped-query attention and no padding token."""
    tokenizer = _subword_tokenizer(None, "</s>")
    config = LlamaConfig(
        **_SIZES,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save_model(folder, LlamaForCausalLM, config, tokenizer, seed)


def tiny_vit(
    folder: Path, kind: type[PreTrainedModel] = ViTModel, seed: int = 0
) -> ViTModel | ViTForImageClassification:
    """A ViT folder: weights, config and image processor."""
    config = ViTConfig(**_SIZES, image_size=SIZE, patch_size=8)
    model = _save_model(folder, kind, config, None, seed)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 2,
        "size": {"height": SIZE, "width": SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}


def _save_model(
    folder: Path, kind: type, config: object, tokenizer: PreTrainedTokenizerFast | None, seed: int
) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = kind(config).eval()
    _perturb(model)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model


def _perturb(model: PreTrainedModel) -> None:
    """Add noise: with transformers' small initial weights all inputs give almost equal outputs."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)


def _subword_tokenizer(
    pad: str | None, end: str, start: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences; it can encode any text."""
    special = [name for name in (pad, end, start) if name]
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator(SENTENCES, trainer)
    if pad:  # the tokenizers with a padding token also add special tokens to texts
        pairs.post_processor = processors.TemplateProcessing(
            single=f"{start or ''} $A {end}".strip(),
            special_tokens=[(name, special.index(name)) for name in special],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        pad_token=pad,
        eos_token=None if start else end,
        cls_token=start,
        sep_token=end if start else None,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def change_json(path: Path, *keys: str, value: object) -> None:
    """Set one (possibly nested) key of a JSON file."""
    config = json.loads(path.read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = value
    path.write_text(json.dumps(config))


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer; the end token has the highest id, which is how open_clip finds it."""
    names = ["<pad>", "<unk>", "<start>", *WORDS, "<end>"]
    numbers = {name: number for number, name in enumerate(names)}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[("<start>", numbers["<start>"]), ("<end>", numbers["<end>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _open_clip_tensors(model: CLIPModel) -> dict[str, Tensor]:
    state = model.state_dict()
    vision, text = "vision_model", "text_model"
    fused = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "token_embedding.weight": state[f"{text}.embeddings.token_embedding.weight"],
        "positional_embedding": state[f"{text}.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "visual.class_embedding": state[f"{vision}.embeddings.class_embedding"],
        "visual.conv1.weight": state[f"{vision}.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state[f"{vision}.embeddings.position_embedding.weight"],
    }
    norms = {
        "ln_final": f"{text}.final_layer_norm",
        "visual.ln_pre": f"{vision}.pre_layrnorm",
        "visual.ln_post": f"{vision}.post_layernorm",
    }
    for tower, prefix in ((text, "transformer"), (vision, "visual.transformer")):
        for layer in range(LAYERS):
            ours, theirs = f"{prefix}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            norms |= {
                f"{ours}.ln_1": f"{theirs}.layer_norm1",
                f"{ours}.ln_2": f"{theirs}.layer_norm2",
                f"{ours}.mlp.c_fc": f"{theirs}.mlp.fc1",
                f"{ours}.mlp.c_proj": f"{theirs}.mlp.fc2",
                f"{ours}.attn.out_proj": f"{theirs}.self_attn.out_proj",
            }
            for kind in ("weight", "bias"):
                parts = [state[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
                fused[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
    for ours, theirs in norms.items():
        for kind in ("weight", "bias"):
            fused[f"{ours}.{kind}"] = state[f"{theirs}.{kind}"]
    return {name: tensor.clone().contiguous() for name, tensor in fused.items()}
