"""Export a mixture of experts for use without hubmerge: with PEFT, or with transformers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from hubmerge.cards.markdown import escape_code, escape_markdown
from hubmerge.errors import UsageError
from hubmerge.moerging.moe_model import MoeModel
from hubmerge.moerging.peft_arrow import (
    check_arrow_support,
    check_transformers_layout,
    write_equal_ranks,
)
from hubmerge.moerging.remote_code import modeling_hubmerge_moe, peft_moe
from hubmerge.refs import check_repo_id, is_sha
from hubmerge.weights.atomic_folder import atomic_folder

CARD_NAME = "README.md"
_MODELING_MODULE = "modeling_hubmerge_moe"
# The auto classes of transformers, besides AutoModel, that can open a class.
_AUTO_CLASSES: dict[str, Mapping[str, Any]] = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageClassification": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForMaskedLM": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
_PEFT_CARD = """\
# A mixture of {experts} LoRA experts, for PEFT

Each token passes, in each of {layers} layers, through the {top_k} experts that the layer's trained
router chooses (arXiv 2506.14126, section 3.3). This loads it with `peft` and `transformers`:

```python
{loader}
```

In this folder, or in the one that `huggingface_hub.snapshot_download` returns:

```python
from transformers import {kind}

base = {kind}.from_pretrained({base}, revision={revision}, dtype="float32")
model = load_peft_moe(base, Path("."))
```

`peft.create_arrow_model` on `experts/*` would route by prototypes that it computes from the
experts: it does not know the trained router.

Each folder in `experts/` is a plain LoRA for {plain_base} and can be loaded alone:
`PeftModel.from_pretrained(base, "experts/{first}")`.
"""
_TRANSFORMERS_CARD = """\
# A mixture of {experts} LoRA experts, for transformers

Each token passes, in each of {layers} layers, through the {top_k} experts that the layer's trained
router chooses (arXiv 2506.14126, section 3.3). Run this in this folder, or use the name of the
repository, with the commit as `revision`, instead of the path:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("./", trust_remote_code=True)
```

This runs `{modeling}.py` of this folder, which is short: read it first. It opens {plain_base} at
commit `{commit}` as a {kind}, from safetensors only, and adds the experts to its layers. The result
is for inference, in float32 unless `dtype` is given; use the base's tokenizer and image processor.

Each folder in `experts/` is a plain LoRA for that base and can be loaded alone with `peft`.
"""


def export_peft_arrow(moe: MoeModel, out: Path, replace: bool = False) -> None:
    """Write a mixture of experts for PEFT: experts of one rank, the router, and loading code.

    Raises UsageError for a mixture that PEFT cannot compute, and what `atomic_folder` raises.
    """
    check_arrow_support(moe.config)
    with atomic_folder(out, replace) as folder:
        write_equal_ranks(moe, folder)
        (folder / CARD_NAME).write_text(_render_card(moe, "peft", _PEFT_CARD), encoding="utf-8")


def export_transformers(moe: MoeModel, out: Path, replace: bool = False) -> None:
    """Write a mixture that `AutoModel.from_pretrained(out, trust_remote_code=True)` opens.

    Only experts, router and code are written: the base is fetched at its commit. Raises UsageError
    for open_clip's layout and for a base that is not pinned on the Hub, and what `atomic_folder`
    raises.
    """
    check_transformers_layout(moe.config)
    _check_base_is_pinned(moe)
    with atomic_folder(out, replace) as folder:
        write_equal_ranks(moe, folder)
        text = json.dumps(_transformers_config(moe), indent=2, sort_keys=True)
        (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
        source = inspect.getsource(modeling_hubmerge_moe)
        (folder / f"{_MODELING_MODULE}.py").write_text(source, encoding="utf-8")
        (folder / CARD_NAME).write_text(
            _render_card(moe, "transformers", _TRANSFORMERS_CARD), encoding="utf-8"
        )


def _check_base_is_pinned(moe: MoeModel) -> None:
    config = moe.config
    if not (_is_repo_id(config.base_model) and is_sha(config.base_revision or "")):
        raise UsageError(
            f"The base of this mixture of experts, {config.base_model!r}, is not a commit on a "
            "Hub, so an export could not fetch it.",
            "Publish the base, and make the mixture from owner/name; or export for peft.",
        )


def _transformers_config(moe: MoeModel) -> dict[str, Any]:
    """The base's configuration with its class and, for trust_remote_code, our code."""
    module = moe.model.module
    name = type(module).__name__
    auto_classes = [
        "AutoModel",
        *(auto for auto, classes in _AUTO_CLASSES.items() if name in classes.values()),
    ]
    config: dict[str, Any] = json.loads(module.config.to_json_string())
    reference = f"{_MODELING_MODULE}.{modeling_hubmerge_moe.HubmergeMixture.__name__}"
    return {**config, "architectures": [name], "auto_map": dict.fromkeys(auto_classes, reference)}


def _render_card(moe: MoeModel, library: str, template: str) -> str:
    config = moe.config
    metadata: dict[str, Any] = {"library_name": library, "tags": ["hubmerge", "arxiv:2506.14126"]}
    if _is_repo_id(config.base_model):
        metadata |= {"base_model": config.base_model, "base_model_relation": "adapter"}
    text = template.format(
        experts=len(config.experts),
        layers=len(moe.layers),
        top_k=config.top_k,
        kind=type(moe.model.module).__name__,
        base=escape_code(repr(config.base_model)),
        plain_base=escape_markdown(config.base_model),
        revision=escape_code(repr(config.base_revision)),
        commit=escape_code(str(config.base_revision)),
        first=config.experts[0].name,
        loader=inspect.getsource(peft_moe).strip(),
        modeling=_MODELING_MODULE,
    )
    return f"---\n{yaml.safe_dump(metadata)}---\n{text}"


def _is_repo_id(name: str) -> bool:
    try:
        return bool(check_repo_id(name))
    except UsageError:
        return False
