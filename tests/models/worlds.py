"""One tiny CLIP with random weights, written as transformers and as open_clip write it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

WORDS = ["a", "photo", "of", "the", "zero", "one", "two", "three", "digit", "."]
SIZE, LAYERS, WIDTH, LENGTH = 16, 2, 32, 12
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def write_transformers(folder: Path, activation: str = "quick_gelu", seed: int = 0) -> CLIPModel:
    """A CLIPModel folder whole: weights, config, tokenizer and image processor."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
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
    with torch.no_grad():  # transformers starts so small that every image looks alike
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
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
    save_file(_fused(model), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    tokenizer = _tokenizer()
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


def change_json(path: Path, *keys: str, value: object) -> None:
    """Set one key, however deep, of a JSON file."""
    config = json.loads(path.read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = value
    path.write_text(json.dumps(config))


def _tokenizer() -> PreTrainedTokenizerFast:
    """Words to numbers; the end has the highest, which is how open_clip finds it."""
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


def _fused(model: CLIPModel) -> dict[str, Tensor]:
    said = model.state_dict()
    vision, text = "vision_model", "text_model"
    fused = {
        "logit_scale": said["logit_scale"],
        "text_projection": said["text_projection.weight"].T,
        "token_embedding.weight": said[f"{text}.embeddings.token_embedding.weight"],
        "positional_embedding": said[f"{text}.embeddings.position_embedding.weight"],
        "visual.proj": said["visual_projection.weight"].T,
        "visual.class_embedding": said[f"{vision}.embeddings.class_embedding"],
        "visual.conv1.weight": said[f"{vision}.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": said[f"{vision}.embeddings.position_embedding.weight"],
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
                parts = [said[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
                fused[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
    for ours, theirs in norms.items():
        for kind in ("weight", "bias"):
            fused[f"{ours}.{kind}"] = said[f"{theirs}.{kind}"]
    return {name: tensor.clone().contiguous() for name, tensor in fused.items()}
