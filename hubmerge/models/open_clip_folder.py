"""CLIP models in open_clip's layout: open_clip_config.json and open_clip_model.safetensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hubmerge.models.preprocess import Transform, image_transform
from hubmerge.models.tensor_names import TensorNames

WEIGHTS = "open_clip_model.safetensors"
BPE = "bpe.txt.gz"


@dataclass(frozen=True)
class OpenClip:
    """An open_clip model; `encoder` is its complete `encode_image` path, including `proj`."""

    module: CLIP
    names: TensorNames
    encoder: nn.Module
    tokenizer: Any
    preprocess: PreprocessCfg
    width: int
    layout: str = "open_clip"
    name: str = "CLIP"

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        return cast(Tensor, self.module.encode_text(self.tokenizer(list(prompts))))

    def scale(self) -> float:
        return float(self.module.logit_scale.exp().item())

    def transform(self, augment: bool) -> Transform:
        return image_transform(self.preprocess, augment)

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        tensors = self.names.file_tensors(self.module, state)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_open_clip(folder: Path, config: dict[str, Any]) -> OpenClip:
    """Load the folder; the config sets the activation, so QuickGELU weights keep QuickGELU.

    Raises ValueError for a config that takes parts from elsewhere.
    """
    check_self_contained(config["model_cfg"])
    # Weights are loaded separately, because open_clip's own search also accepts a pickle.
    with without_warnings():
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
    state = load_file(folder / WEIGHTS)
    model.load_state_dict(state)
    model.eval()
    preprocess = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    image_transform(preprocess, augment=False)  # raises for unsupported settings
    names = TensorNames({name: name for name in state}, {})
    width = config["model_cfg"]["embed_dim"]
    return OpenClip(model, names, model.visual, _tokenizer(folder, config), preprocess, width)


def check_self_contained(model_cfg: dict[str, Any]) -> None:
    """Refuse towers that open_clip would look up on the Hub; timm's own model names are local.

    `hf_tokenizer_name` is allowed: open_clip reads the tokenizer in the folder instead.
    """
    text = model_cfg["text_cfg"].get("hf_model_name")
    image = model_cfg["vision_cfg"].get("timm_model_name")
    remote = text or (image if image and {":", "/"} & set(image) else None)
    if remote:
        raise ValueError(f"its config takes a tower from elsewhere, {remote!r}")


def _tokenizer(folder: Path, config: dict[str, Any]) -> Any:
    # open_clip's config has no key for a custom BPE file, so it is found by its name in the folder.
    if (folder / BPE).is_file():
        length = config["model_cfg"]["text_cfg"]["context_length"]
        return SimpleTokenizer(bpe_path=str(folder / BPE), context_length=length)
    return open_clip.get_tokenizer(f"local-dir:{folder}")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence open_clip's warning on the root logger that no weights were loaded."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
