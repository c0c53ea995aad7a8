"""Models whose tensors transformers 5 renames when it loads them: adapters and full experts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hubmerge.weights.conversions import memory_names
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("running_hub")

TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
IDS = torch.arange(3, 12)[None]


def llava() -> PreTrainedModel:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=63,
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "type": "mrope"}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_scaling": rope},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2,
                       "patch_size": 4},
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config)


def gpt_neox() -> PreTrainedModel:
    fields = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**fields))


def vit() -> PreTrainedModel:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=3))


def text_outputs(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS).logits


def image_outputs(model: PreTrainedModel) -> torch.Tensor:
    return model(pixel_values=PIXELS).logits


PIXELS = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], list[str], Callable[..., torch.Tensor]]] = {
    "llava": (llava, ["q_proj", "down_proj"], text_outputs),
    "qwen2-vl": (qwen2_vl, ["q_proj", "down_proj"], text_outputs),
    "gpt-neox": (gpt_neox, ["query_key_value", "embed_out", "lm_head"], text_outputs),
    "vit": (vit, ["q_proj", "fc1"], image_outputs),
}


def merge(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    words = ["merge", folder / "expert", "--base", folder / "base", "--method", "average",
             "--out", folder / "out", *options]  # fmt: skip
    done = run_command(*words)
    assert done.exit_code == 0, done.stderr
    return load_file(folder / "out" / "model.safetensors")


def with_noise(parameters: Iterable[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_has_the_adapters_own_outputs(tmp_path: Path, name: str) -> None:
    make, targets, outputs = MODELS[name]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    with_noise(p for p in adapted.parameters() if p.requires_grad)
    adapted.save_pretrained(tmp_path / "expert")
    with torch.no_grad():
        expected = outputs(adapted)
    merge(tmp_path)
    result = type(model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(outputs(result), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_full_expert_saved_with_the_names_in_memory(
    tmp_path: Path, name: str, swapped: bool
) -> None:
    make, _, outputs = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    files, memory = ("expert", "base") if swapped else ("base", "expert")
    model.save_pretrained(tmp_path / "base")
    if swapped:
        (tmp_path / "base" / "model.safetensors").unlink()
        save(model, tmp_path / "base")
    with_noise(model.parameters())
    model.save_pretrained(tmp_path / "expert")
    if not swapped:
        (tmp_path / "expert" / "model.safetensors").unlink()
        save(model, tmp_path / "expert")
    assert files != memory
    merge(tmp_path)
    result = type(model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(outputs(result), outputs(model), atol=1e-5, rtol=0)


def save(model: PreTrainedModel, folder: Path) -> None:
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("named", [True, False], ids=["class-named", "by-shape"])
def test_an_adapter_of_the_vision_tower_over_a_whole_clip(tmp_path: Path, named: bool) -> None:
    torch.manual_seed(0)
    text = {**VISION, "hidden_size": 32 if named else 16, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**text, "vocab_size": 64, "max_position_embeddings": 16},
        vision_config={**VISION, "projection_dim": 16},
        projection_dim=16,
    )
    whole = transformers.CLIPModel(config)
    whole.save_pretrained(tmp_path / "base")
    tower = transformers.CLIPVisionModel(whole.config.vision_config)
    state = {n.removeprefix("vision_model."): t for n, t in whole.vision_model.state_dict().items()}
    tower.load_state_dict({name: state[name] for name in tower.state_dict()})
    adapted = peft.get_peft_model(
        tower, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    with_noise(p for p in adapted.parameters() if p.requires_grad)
    adapted.save_pretrained(tmp_path / "expert")
    if not named:
        path = tmp_path / "expert" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": None}))
    with torch.no_grad():
        expected = adapted(pixel_values=PIXELS).pooler_output
    merge(tmp_path)
    result = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        actual = result.vision_model(PIXELS).pooler_output
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_a_language_model_out_of_a_vision_language_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = llava().eval()
    whole.save_pretrained(tmp_path / "base")
    part = transformers.LlamaForCausalLM(whole.config.text_config)
    part.model.load_state_dict(whole.model.language_model.state_dict())
    part.lm_head.load_state_dict(whole.lm_head.state_dict())
    with_noise(part.parameters())
    part.save_pretrained(tmp_path / "expert")
    merge(tmp_path)
    result = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            text_outputs(result), text_outputs(part.eval()), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", MODELS)
def test_the_names_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    model = MODELS[name][0]()
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    in_memory = set(memory_names(names, config).values())
    assert in_memory <= set(model.state_dict())


def test_the_table_is_that_of_the_installed_transformers() -> None:
    """Of some classes. If it fails, run scripts/conversion_table.py; a slow test compares all."""
    from scripts import conversion_table

    table = json.loads(conversion_table.TABLE.read_text())
    known = {
        name: [entry["renames"], entry["stacks"]]
        for entry in table["conversions"]
        for name in entry["classes"]
    }
    names = [type(make()).__name__ for make, *_ in MODELS.values()]
    for name in (*names, "CLIPVisionModel", "BertModel", "LlamaForCausalLM", "MixtralForCausalLM"):
        found = json.loads(json.dumps(conversion_table.conversions_of(name)))
        assert known.get(name, [[], []]) == found


@pytest.mark.slow
def test_the_whole_table_is_that_of_the_installed_transformers() -> None:
    from scripts import conversion_table

    table, _ = conversion_table.make_table(conversion_table.class_names())
    assert conversion_table.render(table) == conversion_table.TABLE.read_text()
