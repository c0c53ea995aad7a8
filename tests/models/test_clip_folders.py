"""CLIP folders of both layouts: outputs, saving, and folders that are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.models.loading import load_model
from hubmerge.models.model import LabelEncoder
from hubmerge.tasks.heads import zero_shot_head
from tests.models.builders import SIZE, change_json, write_open_clip, write_transformers

MINI = Path(hubmerge.__file__).parent / "mini" / "base"
PROMPTS = ["a photo of the digit one .", "two", "a photo of three ."]
CLASSES = ["zero", "one", "two"]
LAYOUTS = ("transformers", "open_clip")


@pytest.fixture
def clip(tmp_path: Path) -> CLIPModel:
    """The tiny CLIP, written in both layouts."""
    model = write_transformers(tmp_path / "transformers")
    write_open_clip(tmp_path / "open_clip", model)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: LabelEncoder, images: Tensor) -> Tensor:
    head = zero_shot_head(model.encode_text, model.scale(), CLASSES, ["a photo of {} .", "{}"])
    return normalize(model.encoder(images), dim=-1) @ head.T


@torch.no_grad()
def test_transformers_features_match_the_library(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = load_model(tmp_path / "transformers")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "transformers")(
        PROMPTS, padding=True, return_tensors="pt"
    )
    text = clip.get_text_features(**{k: tokens[k] for k in ("input_ids", "attention_mask")})
    image = clip.get_image_features(pixel_values=images)
    assert torch.equal(model.encode_text(PROMPTS), text.pooler_output)
    assert torch.equal(model.encoder(images), image.pooler_output)
    assert model.scale() == clip.logit_scale.exp().item()


@torch.no_grad()
def test_open_clip_features_match_the_library() -> None:
    model = load_model(MINI)
    reference = open_clip.create_model(f"local-dir:{MINI}").eval()
    tokens = SimpleTokenizer(bpe_path=str(MINI / "bpe.txt.gz"), context_length=20)(PROMPTS)
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.encode_text(PROMPTS), reference.encode_text(tokens))
    assert torch.equal(model.encoder(images), reference.encode_image(images))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_layouts_of_one_model_give_the_same_logits(
    tmp_path: Path, images: Tensor, activation: str
) -> None:
    model = write_transformers(tmp_path / "transformers", activation)
    write_open_clip(tmp_path / "open_clip", model)
    first, second = (load_model(tmp_path / name) for name in ("transformers", "open_clip"))
    torch.testing.assert_close(first.encode_text(PROMPTS), second.encode_text(PROMPTS))
    torch.testing.assert_close(logits(first, images), logits(second, images), atol=1e-4, rtol=1e-4)


def test_the_activation_matters(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    quick = logits(load_model(tmp_path / "open_clip"), images)
    change_json(
        tmp_path / "open_clip" / "open_clip_config.json", "model_cfg", "quick_gelu", value=False
    )
    assert (logits(load_model(tmp_path / "open_clip"), images) - quick).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(40, 30), (16, 16), (12, 24)])
def test_preprocessing_matches_the_library(
    clip: CLIPModel, tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    first, second = (load_model(tmp_path / name).transform(False)(image) for name in LAYOUTS)
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "transformers")
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(first, second)
    assert (first - expected).abs().max() < 0.05  # a few grey levels


def test_images_are_squashed_if_the_processor_does_not_crop(
    clip: CLIPModel, tmp_path: Path
) -> None:
    config = tmp_path / "transformers" / "preprocessor_config.json"
    change_json(config, "do_center_crop", value=False)
    change_json(config, "size", value={"height": SIZE, "width": SIZE})
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (SIZE, 1)))
    pixels = load_model(tmp_path / "transformers").transform(False)(image)
    assert pixels[0, 0, 0] < pixels[0, 0, 8] < pixels[0, 0, 15]
    assert (pixels[0, 0, 15] - pixels[0, 0, 0]) * 0.2 * 255 > 55  # both edges are kept


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("size", {"shortest_edge": 20}, r"resizes to \(20, 20\) and crops to \(16, 16\)"),
        ("resample", 1, "has resample 1, which is not supported"),
    ],
)
def test_unsupported_processors_are_refused(
    clip: CLIPModel, tmp_path: Path, key: str, value: object, sentence: str
) -> None:
    change_json(tmp_path / "transformers" / "preprocessor_config.json", key, value=value)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(tmp_path / "transformers")


def save_changed(model: LabelEncoder, folder: Path, source: Path) -> None:
    """Change the encoder and save it over a copy of its folder."""
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.add_(0.01)
    shutil.copytree(source, folder)
    model.save(folder)


@torch.no_grad()
def test_a_saved_folder_loads_with_transformers(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = load_model(tmp_path / "transformers")
    save_changed(model, tmp_path / "saved", tmp_path / "transformers")
    reloaded = CLIPModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(reloaded.get_image_features(images).pooler_output, model.encoder(images))
    assert torch.equal(logits(load_model(tmp_path / "saved"), images), logits(model, images))


@torch.no_grad()
def test_a_saved_folder_loads_with_open_clip(tmp_path: Path) -> None:
    model = load_model(MINI)
    save_changed(model, tmp_path / "saved", MINI)
    reloaded = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    images = torch.randn(4, 3, 28, 28)
    assert torch.equal(reloaded.encode_image(images), model.encoder(images))
    assert reloaded.logit_scale.exp().item() == model.scale()


def canary(folder: Path) -> Path:
    """Add a module that creates a file if it is run; returns the path of that file."""
    marker = folder / "was_run"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: ...\n"
    (folder / "own.py").write_text(code)
    return marker


@pytest.mark.parametrize(
    ("layout", "file", "keys", "value"),
    [
        ("transformers", "config.json", ["auto_map"], {"AutoModel": "own.Own"}),
        ("transformers", "config.json", ["text_config", "trust_remote_code"], True),
        ("transformers", "tokenizer_config.json", ["auto_map"], {"AutoTokenizer": ["own.Own"]}),
        ("transformers", "preprocessor_config.json", ["auto_map"], {"AutoProcessor": "own.Own"}),
        (
            "open_clip",
            "open_clip_config.json",
            ["model_cfg", "text_cfg", "tokenizer_kwargs"],
            {"trust_remote_code": True},
        ),
        ("open_clip", "tokenizer_config.json", ["auto_map"], {"AutoTokenizer": ["own.Own"]}),
    ],
)  # fmt: skip
def test_no_code_is_run(
    clip: CLIPModel, tmp_path: Path, layout: str, file: str, keys: list[str], value: object
) -> None:
    marker = canary(tmp_path / layout)
    change_json(tmp_path / layout / file, *keys, value=value)
    with pytest.raises(CheckpointError, match=f"{file} would run code"):
        load_model(tmp_path / layout)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("tower", "key", "value"),
    [
        ("text_cfg", "hf_model_name", "someone/roberta"),
        ("vision_cfg", "timm_model_name", "hf-hub:someone/vit"),
        ("vision_cfg", "timm_model_name", "local-dir:/tmp/vit"),
    ],
)
def test_nothing_is_fetched_for_open_clip(
    clip: CLIPModel, tmp_path: Path, tower: str, key: str, value: str
) -> None:
    config = tmp_path / "open_clip" / "open_clip_config.json"
    change_json(config, "model_cfg", tower, key, value=value)
    with pytest.raises(CheckpointError, match=f"takes a tower from elsewhere, '{value}'"):
        load_model(tmp_path / "open_clip")


def test_a_missing_tokenizer_is_not_fetched(clip: CLIPModel, tmp_path: Path) -> None:
    for file in (tmp_path / "open_clip").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded as a model"):
        load_model(tmp_path / "open_clip")


@pytest.mark.parametrize(
    ("layout", "weights", "pickle"),
    [
        ("transformers", "model.safetensors", "pytorch_model.bin"),
        ("open_clip", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    ],
)
def test_pickles_are_not_loaded(
    clip: CLIPModel, tmp_path: Path, layout: str, weights: str, pickle: str
) -> None:
    folder = tmp_path / layout
    torch.save(clip.state_dict(), folder / pickle)
    load_model(folder)
    (folder / weights).unlink()
    with pytest.raises(CheckpointError, match="has its weights only as pickles"):
        load_model(folder)


def breaks(break_it: Callable[[Path], object], sentence: str) -> tuple[object, str]:
    return break_it, sentence


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        breaks(lambda f: (f / "open_clip_config.json").unlink(), "is not a model folder"),
        breaks(lambda f: (f / "open_clip_config.json").write_text("{"), "is not readable JSON"),
        breaks(lambda f: (f / "open_clip_config.json").write_text("[]"), "is not a JSON object"),
        breaks(lambda f: (f / "open_clip_config.json").write_text("{}"), "cannot be loaded"),
        breaks(
            lambda f: change_json(
                f / "open_clip_config.json", "model_cfg", "vision_cfg", "layers", value=5
            ),
            "cannot be loaded as a model: .*Missing key",
        ),
        breaks(
            lambda f: change_json(
                f / "open_clip_config.json", "preprocess_cfg", "interpolation", value="lanczos"
            ),
            "cannot be loaded as a model",
        ),
    ],
)
def test_broken_folders_raise_one_line(
    tmp_path: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(MINI, folder)
    break_it(folder)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        load_model(folder)
    assert "\n" not in refused.value.message


def test_the_type_of_an_unsupported_model_is_named(clip: CLIPModel, tmp_path: Path) -> None:
    change_json(tmp_path / "transformers" / "config.json", "model_type", value="bert")
    with pytest.raises(CheckpointError, match="is a 'bert' model"):
        load_model(tmp_path / "transformers")


def test_weights_are_loaded_in_float32(clip: CLIPModel, tmp_path: Path) -> None:
    clip.half().save_pretrained(tmp_path / "transformers")
    encoder = load_model(tmp_path / "transformers").encoder
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
