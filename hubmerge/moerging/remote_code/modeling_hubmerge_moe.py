"""A mixture of LoRA experts, for AutoModel.from_pretrained(..., trust_remote_code=True).

Opens the base that moe_config.json pins, with transformers' own class, and puts experts and router
over its linear layers: arXiv 2506.14126, equation 2. Reads JSON and safetensors, runs no other
code, and fetches the base at one commit. What comes out has the base's class: run it, save it not.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

# What of from_pretrained's options says where files come from, and how the base is opened.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
_HOW = ("attn_implementation", "device_map", "dtype")


class MixtureLinear(nn.Module):
    """W x + b plus, for every token, its top-k experts p_e s_e B_e A_e x.

    `lora_A` [E, R, I], `lora_B` [E, O, R], `scale` [E], `router` [E, I]; p is the softmax over the
    top-k of |router x| / temperature, or of router x / temperature if `signed`.
    """

    scale: Tensor

    def __init__(
        self, base: Any, parts: dict[str, Tensor], top_k: int, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.base = base
        device, dtype = base.weight.device, base.weight.dtype
        self.lora_A = nn.Parameter(parts["lora_A"].to(device, dtype))
        self.lora_B = nn.Parameter(parts["lora_B"].to(device, dtype))
        self.router = nn.Parameter(parts["router"].to(device, torch.float32))
        self.register_buffer("scale", parts["scale"].to(device, torch.float32), persistent=False)
        self.top_k, self.signed = top_k, settings["signed"]
        self.temperature = settings["temperature"]

    @property
    def weight(self) -> Tensor:  # T5 reads it to learn the dtype
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.base.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router) / self.temperature
        top, chosen = (logits if self.signed else logits.abs()).topk(self.top_k)
        share = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1)) * self.scale
        low = torch.einsum("...i,eri->...er", x.to(y.dtype), self.lora_A)
        low = low * share.to(y.dtype).unsqueeze(-1)
        return y + torch.einsum("...er,eor->...o", low, self.lora_B)


class HubmergeMixture:
    """What auto_map names: `from_pretrained` gives the base itself, as a mixture."""

    @classmethod
    def register_for_auto_class(cls, auto_class: object) -> None:
        """AutoModel calls it; there is nothing to do."""

    @classmethod
    def from_pretrained(
        cls, where: str, *args: object, config: Any, revision: str | None = None, **options: Any
    ) -> Any:
        """The mixture at `where`, a folder or a repository, at `revision`.

        In float32 unless `dtype` says otherwise; options not named above are passed over. Raises
        ValueError for names in moe_config.json that lead elsewhere.
        """
        fetching = {key: options[key] for key in _WHERE if key in options}

        def fetch(name: str) -> str:
            return str(cached_file(where, name, revision=revision, **fetching))

        said = _read(fetch("moe_config.json"))
        _check(said)
        how = {"dtype": "float32", **{key: options[key] for key in _HOW if key in options}}
        model = _open_base(said, config.architectures[0], {**fetching, **how})
        router = load_file(fetch("router.safetensors"))
        folders = [f"experts/{expert['name']}" for expert in said["experts"]]
        experts = [load_file(fetch(f"{one}/adapter_model.safetensors")) for one in folders]
        settings = [_read(fetch(f"{one}/adapter_config.json")) for one in folders]
        for path in said["modules"]:
            parts = {
                "lora_A": _stack(experts, f"base_model.model.{path}.lora_A.weight"),
                "lora_B": _stack(experts, f"base_model.model.{path}.lora_B.weight"),
                "scale": torch.tensor([_scale(one, path) for one in settings]),
                "router": router[f"{path}.router.weight"],
            }
            layer = MixtureLinear(model.get_submodule(path), parts, said["top_k"], said["router"])
            holder, _, name = path.rpartition(".")
            setattr(model.get_submodule(holder), name, layer)
        return model.eval()


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        said: dict[str, Any] = json.load(file)
    return said


def _check(said: dict[str, Any]) -> None:
    """Names become paths and addresses: raise ValueError for those that are none."""
    names = [(expert["name"], r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.))*") for expert in said["experts"]]
    names += [(path, r"\w+(?:\.\w+)*") for path in said["modules"]]
    names += [(said["base_model"], r"\w[\w-]*(?:\.[\w-]+)*/\w[\w-]*(?:\.[\w-]+)*")]
    names += [(said["base_revision"], r"[0-9a-f]{40}")]
    for name, pattern in names:
        if not re.fullmatch(pattern, str(name), re.ASCII):
            raise ValueError(f"moe_config.json has {name!r}, which cannot name what it should.")


def _open_base(said: dict[str, Any], architecture: str, options: dict[str, Any]) -> Any:
    kind: Any = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"{architecture!r} is no model of transformers.")
    # Always said: the base's own configuration could name code on the Hub instead.
    options.setdefault("attn_implementation", "sdpa" if kind._supports_sdpa else "eager")
    return kind.from_pretrained(
        said["base_model"],
        revision=said["base_revision"],
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )


def _stack(experts: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([expert[name] for expert in experts])


def _scale(settings: dict[str, Any], path: str) -> float:
    alphas = settings.get("alpha_pattern") or {}
    return float(alphas.get(f"^{re.escape(path)}", settings["lora_alpha"]) / settings["r"])
