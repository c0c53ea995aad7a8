"""open_clip's layout: open_clip_config.json and open_clip_model.safetensors."""

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
    """An open_clip model; its whole `encode_image` path is the encoder, `proj` included."""

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
        tensors = self.names.tensors(self.module, state)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def open_open_clip(folder: Path, config: dict[str, Any]) -> OpenClip:
    """Open the folder; the config decides the activation, so QuickGELU weights keep QuickGELU.

    Raises ValueError for a config whose parts lie elsewhere.
    """
    _check_whole(config["model_cfg"])
    # The weights are loaded apart from open_clip, whose own search would also take a pickle.
    with _without_warnings():
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
    state = load_file(folder / WEIGHTS)
    model.load_state_dict(state)
    model.eval()
    preprocess = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    image_transform(preprocess, augment=False)  # raises for what it cannot do
    names = TensorNames({name: name for name in state}, {})
    width = config["model_cfg"]["embed_dim"]
    return OpenClip(model, names, model.visual, _tokenizer(folder, config), preprocess, width)


def _check_whole(model_cfg: dict[str, Any]) -> None:
    """Only a name of timm's own is whole: others are looked up on the Hub when the model is made.

    `hf_tokenizer_name` is no such name; open_clip reads the tokenizer beside the config instead.
    """
    text = model_cfg["text_cfg"].get("hf_model_name")
    image = model_cfg["vision_cfg"].get("timm_model_name")
    elsewhere = text or (image if image and {":", "/"} & set(image) else None)
    if elsewhere:
        raise ValueError(f"its config takes a tower from elsewhere, {elsewhere!r}")


def _tokenizer(folder: Path, config: dict[str, Any]) -> Any:
    # open_clip has no key for a BPE file of one's own, so ours lies beside the config.
    if (folder / BPE).is_file():
        length = config["model_cfg"]["text_cfg"]["context_length"]
        return SimpleTokenizer(bpe_path=str(folder / BPE), context_length=length)
    return open_clip.get_tokenizer(f"local-dir:{folder}")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """open_clip warns on the root logger that the weights were not loaded: just what was asked."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
