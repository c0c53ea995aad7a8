"""A mixture written for those who have no hubmerge: for PEFT alone, or for transformers alone."""

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

from hubmerge.cards.markdown import code, plain
from hubmerge.errors import UsageError
from hubmerge.moerging.moe_model import Mixture
from hubmerge.moerging.peft_arrow import check_arrow, check_layout, write_equal_ranks
from hubmerge.moerging.remote_code import modeling_hubmerge_moe, peft_mixture
from hubmerge.refs import check_repo_id, is_sha
from hubmerge.weights.atomic_folder import whole_folder

CARD = "README.md"
_MODELING = "modeling_hubmerge_moe"
# By which of transformers' auto classes a class may be opened, beside AutoModel.
_AUTO: dict[str, Mapping[str, Any]] = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageClassification": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForMaskedLM": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
_PEFT = """\
# A mixture of {experts} LoRA experts, for PEFT

Each token passes, in each of {layers} layers, through the {top_k} experts that the layer's trained
router chooses (arXiv 2506.14126, section 3.3). With `peft` and `transformers` alone:

```python
{loader}
```

In this folder, or in the one that `huggingface_hub.snapshot_download` gives:

```python
from transformers import {kind}

base = {kind}.from_pretrained({base}, revision={revision}, dtype="float32")
model = load_mixture(base, Path("."))
```

`peft.create_arrow_model` on `experts/*` would route by prototypes that it computes from the
experts: it cannot know the trained router.

Each folder in `experts/` is an ordinary LoRA for {plain_base} and opens alone:
`PeftModel.from_pretrained(base, "experts/{first}")`.
"""
_TRANSFORMERS = """\
# A mixture of {experts} LoRA experts, for transformers

Each token passes, in each of {layers} layers, through the {top_k} experts that the layer's trained
router chooses (arXiv 2506.14126, section 3.3). In this folder, or by the name of the repository and
the commit in its place:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("./", trust_remote_code=True)
```

That runs `{modeling}.py` of this folder: read it first, it is short. It opens {plain_base} at
commit `{revision_said}` as a {kind}, safetensors only, and puts the experts over its layers. It is
for running, in float32 unless `dtype` says otherwise; tokenizer and image processor are the base's.

Each folder in `experts/` is an ordinary LoRA for that base and opens alone with `peft`.
"""


def export_peft_arrow(mixture: Mixture, out: Path, replace: bool = False) -> None:
    """Write a mixture so that PEFT computes the same: experts of one rank, router, and the code.

    Raises UsageError for a mixture that PEFT cannot compute, and what `whole_folder` raises.
    """
    check_arrow(mixture.config)
    with whole_folder(out, replace) as folder:
        write_equal_ranks(mixture, folder)
        (folder / CARD).write_text(_card(mixture, "peft", _PEFT), encoding="utf-8")


def export_transformers(mixture: Mixture, out: Path, replace: bool = False) -> None:
    """Write a mixture so that `AutoModel.from_pretrained(out, trust_remote_code=True)` opens it.

    Only experts, router and code: the base is fetched at its commit. Raises UsageError for
    open_clip's layout and for a base that is not pinned on the Hub, and what `whole_folder` raises.
    """
    check_layout(mixture.config)
    _check_pinned(mixture)
    with whole_folder(out, replace) as folder:
        write_equal_ranks(mixture, folder)
        text = json.dumps(_config(mixture), indent=2, sort_keys=True)
        (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
        source = inspect.getsource(modeling_hubmerge_moe)
        (folder / f"{_MODELING}.py").write_text(source, encoding="utf-8")
        (folder / CARD).write_text(_card(mixture, "transformers", _TRANSFORMERS), encoding="utf-8")


def _check_pinned(mixture: Mixture) -> None:
    config = mixture.config
    if not (_is_repo(config.base_model) and is_sha(config.base_revision or "")):
        raise UsageError(
            f"The base of this mixture, {config.base_model!r}, is no commit on a Hub, so whoever "
            "opens the export could not fetch it.",
            "Publish the base, and make the mixture from owner/name; or export for peft.",
        )


def _config(mixture: Mixture) -> dict[str, Any]:
    """The base's configuration, naming its class and, for those who opt in, our code."""
    module = mixture.model.module
    name = type(module).__name__
    autos = ["AutoModel", *(auto for auto, classes in _AUTO.items() if name in classes.values())]
    said: dict[str, Any] = json.loads(module.config.to_json_string())
    reference = f"{_MODELING}.{modeling_hubmerge_moe.HubmergeMixture.__name__}"
    return {**said, "architectures": [name], "auto_map": dict.fromkeys(autos, reference)}


def _card(mixture: Mixture, library: str, template: str) -> str:
    config = mixture.config
    said: dict[str, Any] = {"library_name": library, "tags": ["hubmerge", "arxiv:2506.14126"]}
    if _is_repo(config.base_model):
        said |= {"base_model": config.base_model, "base_model_relation": "adapter"}
    text = template.format(
        experts=len(config.experts),
        layers=len(mixture.layers),
        top_k=config.top_k,
        kind=type(mixture.model.module).__name__,
        base=code(repr(config.base_model)),
        plain_base=plain(config.base_model),
        revision=code(repr(config.base_revision)),
        revision_said=code(str(config.base_revision)),
        first=config.experts[0].name,
        loader=inspect.getsource(peft_mixture).strip(),
        modeling=_MODELING,
    )
    return f"---\n{yaml.safe_dump(said)}---\n{text}"


def _is_repo(name: str) -> bool:
    try:
        return bool(check_repo_id(name))
    except UsageError:
        return False
