"""The class that a card pastes to load a language model."""

from __future__ import annotations

import json

import pytest

from hubmerge.cards.card import CardInput, render_card
from hubmerge.model_class import language_loader

from .test_expert_card import expert

MAPPING = {"base_model_class": "T5ForConditionalGeneration", "parent_library": "transformers.x"}


@pytest.mark.parametrize(
    ("files", "loader"),
    [
        ({"config.json": {"architectures": ["LlamaForCausalLM"]}}, "AutoModelForCausalLM"),
        ({"config.json": {"architectures": ["GPT2LMHeadModel"]}}, "AutoModelForCausalLM"),
        (
            {"config.json": {"architectures": [MAPPING["base_model_class"]]}},
            "AutoModelForSeq2SeqLM",
        ),
        ({"adapter_config.json": {"task_type": "CAUSAL_LM"}}, "AutoModelForCausalLM"),
        ({"adapter_config.json": {"auto_mapping": MAPPING}}, "AutoModelForSeq2SeqLM"),
        ({"config.json": {"architectures": None}}, None),
        ({"config.json": {"architectures": [3, "Mystery"]}}, None),
        ({"config.json": []}, None),
        ({"adapter_config.json": {"auto_mapping": "x", "task_type": None}}, None),
        ({}, None),
    ],
)
def test_the_class_follows_from_the_configuration(
    files: dict[str, object], loader: str | None
) -> None:
    assert language_loader(lambda name: json.dumps(files[name]) if name in files else "") == loader


def test_a_broken_configuration_shows_nothing() -> None:
    assert language_loader(lambda name: "{") is None


@pytest.mark.parametrize("layout", ["transformers", "peft"])
def test_the_card_pastes_that_class_alone(layout: str) -> None:
    manifest = expert(task_kind="target", layout=layout)
    card = render_card(CardInput(manifest, (), language_loader="AutoModelForCausalLM"))
    assert "`AutoModelForCausalLM.from_pretrained" in card
    assert "AutoModelForSeq2SeqLM" not in card
