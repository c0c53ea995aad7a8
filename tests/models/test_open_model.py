"""Models of both layouts: the library's own outputs, kept by saving; and what is not opened."""

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
from hubmerge.models.loading import open_model
from hubmerge.models.model import VisionText
from hubmerge.tasks.heads import zero_shot_head
from tests.models.worlds import SIZE, change_json, write_open_clip, write_transformers

MINI = Path(hubmerge.__file__).parent / "mini" / "base"
PROMPTS = ["a photo of the digit one .", "two", "a photo of three ."]
CLASSES = ["zero", "one", "two"]
LAYOUTS = ("transformers", "open_clip")


@pytest.fixture
def theirs(tmp_path: Path) -> CLIPModel:
    """The tiny CLIP, written in both layouts."""
    model = write_transformers(tmp_path / "transformers")
    write_open_clip(tmp_path / "open_clip", model)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: VisionText, images: Tensor) -> Tensor:
    head = zero_shot_head(model.encode_text, model.scale(), CLASSES, ["a photo of {} .", "{}"])
    return normalize(model.encoder(images), dim=-1) @ head.T


@torch.no_grad()
def test_transformers_features_are_the_librarys(
    theirs: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    ours = open_model(tmp_path / "transformers")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "transformers")(
        PROMPTS, padding=True, return_tensors="pt"
    )
    text = theirs.get_text_features(**{k: tokens[k] for k in ("input_ids", "attention_mask")})
    seen = theirs.get_image_features(pixel_values=images)
    assert torch.equal(ours.encode_text(PROMPTS), text.pooler_output)
    assert torch.equal(ours.encoder(images), seen.pooler_output)
    assert ours.scale() == theirs.logit_scale.exp().item()


@torch.no_grad()
def test_open_clip_features_are_the_librarys() -> None:
    ours = open_model(MINI)
    theirs = open_clip.create_model(f"local-dir:{MINI}").eval()
    tokens = SimpleTokenizer(bpe_path=str(MINI / "bpe.txt.gz"), context_length=20)(PROMPTS)
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours.encode_text(PROMPTS), theirs.encode_text(tokens))
    assert torch.equal(ours.encoder(images), theirs.encode_image(images))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_layouts_of_one_model_give_the_same_logits(
    tmp_path: Path, images: Tensor, activation: str
) -> None:
    model = write_transformers(tmp_path / "transformers", activation)
    write_open_clip(tmp_path / "open_clip", model)
    one, two = (open_model(tmp_path / name) for name in ("transformers", "open_clip"))
    torch.testing.assert_close(one.encode_text(PROMPTS), two.encode_text(PROMPTS))
    torch.testing.assert_close(logits(one, images), logits(two, images), atol=1e-4, rtol=1e-4)


def test_the_activation_matters(theirs: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    quick = logits(open_model(tmp_path / "open_clip"), images)
    change_json(
        tmp_path / "open_clip" / "open_clip_config.json", "model_cfg", "quick_gelu", value=False
    )
    assert (logits(open_model(tmp_path / "open_clip"), images) - quick).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(40, 30), (16, 16), (12, 24)])
def test_images_are_prepared_as_the_libraries_do(
    theirs: CLIPModel, tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    one, two = (open_model(tmp_path / name).transform(False)(image) for name in LAYOUTS)
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "transformers")
    said = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(one, two)
    assert (one - said).abs().max() < 0.05  # a few grey levels: two ways to do bicubic


def test_squashed_where_the_processor_does_not_crop(theirs: CLIPModel, tmp_path: Path) -> None:
    config = tmp_path / "transformers" / "preprocessor_config.json"
    change_json(config, "do_center_crop", value=False)
    change_json(config, "size", value={"height": SIZE, "width": SIZE})
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (SIZE, 1)))
    seen = open_model(tmp_path / "transformers").transform(False)(image)
    assert seen[0, 0, 0] < seen[0, 0, 8] < seen[0, 0, 15]
    assert (seen[0, 0, 15] - seen[0, 0, 0]) * 0.2 * 255 > 55  # both edges are still there


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("size", {"shortest_edge": 20}, r"resizes to \(20, 20\) and crops \(16, 16\)"),
        ("resample", 1, "resamples in way 1, which is not supported"),
    ],
)
def test_processors_that_cannot_be_followed(
    theirs: CLIPModel, tmp_path: Path, key: str, value: object, sentence: str
) -> None:
    change_json(tmp_path / "transformers" / "preprocessor_config.json", key, value=value)
    with pytest.raises(CheckpointError, match=sentence):
        open_model(tmp_path / "transformers")


def moved_by(model: VisionText, folder: Path, source: Path) -> None:
    """Change the encoder a little and save it over a copy of its folder."""
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.add_(0.01)
    shutil.copytree(source, folder)
    model.save(folder)


@torch.no_grad()
def test_a_saved_folder_opens_with_transformers_alone(
    theirs: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    ours = open_model(tmp_path / "transformers")
    moved_by(ours, tmp_path / "saved", tmp_path / "transformers")
    again = CLIPModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.get_image_features(images).pooler_output, ours.encoder(images))
    assert torch.equal(logits(open_model(tmp_path / "saved"), images), logits(ours, images))


@torch.no_grad()
def test_a_saved_folder_opens_with_open_clip_alone(tmp_path: Path) -> None:
    ours = open_model(MINI)
    moved_by(ours, tmp_path / "saved", MINI)
    again = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    images = torch.randn(4, 3, 28, 28)
    assert torch.equal(again.encode_image(images), ours.encoder(images))
    assert again.logit_scale.exp().item() == ours.scale()


def canary(folder: Path) -> Path:
    """Code that leaves a file behind if anybody runs it."""
    left = folder / "was_run"
    code = f"from pathlib import Path\nPath({str(left)!r}).touch()\nclass Own: ...\n"
    (folder / "own.py").write_text(code)
    return left


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
    theirs: CLIPModel, tmp_path: Path, layout: str, file: str, keys: list[str], value: object
) -> None:
    left = canary(tmp_path / layout)
    change_json(tmp_path / layout / file, *keys, value=value)
    with pytest.raises(CheckpointError, match=f"{file} asks for code to be run"):
        open_model(tmp_path / layout)
    assert not left.exists()


@pytest.mark.parametrize(
    ("tower", "key", "value"),
    [
        ("text_cfg", "hf_model_name", "someone/roberta"),
        ("vision_cfg", "timm_model_name", "hf-hub:someone/vit"),
        ("vision_cfg", "timm_model_name", "local-dir:/tmp/vit"),
    ],
)
def test_nothing_is_fetched_for_open_clip(
    theirs: CLIPModel, tmp_path: Path, tower: str, key: str, value: str
) -> None:
    config = tmp_path / "open_clip" / "open_clip_config.json"
    change_json(config, "model_cfg", tower, key, value=value)
    with pytest.raises(CheckpointError, match=f"takes a tower from elsewhere, '{value}'"):
        open_model(tmp_path / "open_clip")


def test_a_tokenizer_that_is_not_there_is_not_fetched(theirs: CLIPModel, tmp_path: Path) -> None:
    for file in (tmp_path / "open_clip").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="cannot be opened as a model"):
        open_model(tmp_path / "open_clip")


@pytest.mark.parametrize(
    ("layout", "weights", "pickle"),
    [
        ("transformers", "model.safetensors", "pytorch_model.bin"),
        ("open_clip", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    ],
)
def test_pickles_are_not_opened(
    theirs: CLIPModel, tmp_path: Path, layout: str, weights: str, pickle: str
) -> None:
    folder = tmp_path / layout
    torch.save(theirs.state_dict(), folder / pickle)
    open_model(folder)
    (folder / weights).unlink()
    with pytest.raises(CheckpointError, match="has its weights only as pickles"):
        open_model(folder)


def breaks(break_it: Callable[[Path], object], sentence: str) -> tuple[object, str]:
    return break_it, sentence


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        breaks(lambda f: (f / "open_clip_config.json").unlink(), "holds no model"),
        breaks(lambda f: (f / "open_clip_config.json").write_text("{"), "is not readable JSON"),
        breaks(lambda f: (f / "open_clip_config.json").write_text("[]"), "is not a JSON object"),
        breaks(lambda f: (f / "open_clip_config.json").write_text("{}"), "cannot be opened"),
        breaks(
            lambda f: change_json(
                f / "open_clip_config.json", "model_cfg", "vision_cfg", "layers", value=5
            ),
            "cannot be opened as a model: .*Missing key",
        ),
        breaks(
            lambda f: change_json(
                f / "open_clip_config.json", "preprocess_cfg", "interpolation", value="lanczos"
            ),
            "cannot be opened as a model",
        ),
    ],
)
def test_broken_folders_are_one_sentence(
    tmp_path: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(MINI, folder)
    break_it(folder)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        open_model(folder)
    assert "\n" not in refused.value.message


def test_other_models_are_named(theirs: CLIPModel, tmp_path: Path) -> None:
    change_json(tmp_path / "transformers" / "config.json", "model_type", value="bert")
    with pytest.raises(CheckpointError, match="holds a 'bert' model"):
        open_model(tmp_path / "transformers")


def test_weights_come_in_float32(theirs: CLIPModel, tmp_path: Path) -> None:
    theirs.half().save_pretrained(tmp_path / "transformers")
    encoder = open_model(tmp_path / "transformers").encoder
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
