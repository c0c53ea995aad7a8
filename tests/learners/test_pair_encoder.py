"""What stands between a prompt and its answer, which special tokens there are, and what is read."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from hubmerge.errors import DataError
from hubmerge.learners.pair_encoder import PairEncoder
from tests.models.language_families import FAMILIES, write_family

CHATML = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("families")
    return {
        family: AutoTokenizer.from_pretrained(write_family(root / family, family))
        for family in FAMILIES
    }


def encoder_of(tokenizers: dict[str, Any], family: str, **fields: Any) -> PairEncoder:
    return PairEncoder(tokenizers[family], family == "t5", **fields)


@pytest.mark.parametrize(
    ("family", "prompt", "answer", "join"),
    [
        ("gpt2", "The capital of France is", "Paris", " "),
        ("gpt2", "The capital of France is ", "Paris", ""),
        ("gpt2", "The capital of France is", " Paris", ""),
        ("gpt2", "Answer:\n", "Paris", ""),
        ("qwen", CHATML, "Yes", ""),
        ("qwen", "Is it?<|im_end|>", "Yes", ""),
        ("gpt2", "Is it?<|im_end|>", "Yes", " "),  # these are plain characters for GPT-2
        ("llama2", "[INST] Is it? [/INST]", "Yes", " "),
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n", "Yes", ""),
        ("t5", "Question: is it?", "Yes", ""),
        ("gpt2", "", "Yes", ""),
    ],
)
def test_words_are_joined_by_a_space_and_templates_by_nothing(
    tokenizers: dict[str, Any], family: str, prompt: str, answer: str, join: str
) -> None:
    assert encoder_of(tokenizers, family).join_of(prompt, answer) == join
    assert encoder_of(tokenizers, family, join=" ").join_of(prompt, answer) == " "
    assert encoder_of(tokenizers, family, join="").join_of(prompt, answer) == ""


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "t5"])
def test_prompt_and_answer_read_as_one_text(tokenizers: dict[str, Any], family: str) -> None:
    tokenizer = tokenizers[family]
    pair = encoder_of(tokenizers, family).encode("The capital of France is", "Paris")
    whole = tokenizer("The capital of France is Paris")["input_ids"]
    assert [*pair.prompt, *pair.answer] == [*whole, tokenizer.eos_token_id]
    assert tokenizer.decode(pair.answer[:-1]).strip() == "Paris"
    assert pair.is_aligned
    assert pair.fixed == (0 if tokenizer.bos_token_id is None or family == "gpt2" else 1)


def test_end_of_sequence_is_left_out_or_written_once(tokenizers: dict[str, Any]) -> None:
    end = tokenizers["qwen"].eos_token_id
    with_end = encoder_of(tokenizers, "qwen").encode(CHATML, "Yes").answer
    assert with_end[-1] == end
    assert encoder_of(tokenizers, "qwen", eos=False).encode(CHATML, "Yes").answer == with_end[:-1]
    assert encoder_of(tokenizers, "qwen").encode(CHATML, "Yes<|im_end|>").answer == with_end


def test_beginning_of_sequence_is_read_once(tokenizers: dict[str, Any]) -> None:
    plain = encoder_of(tokenizers, "gemma").encode("Is it?", "Yes")
    written = encoder_of(tokenizers, "gemma").encode("<bos>Is it?", "Yes")
    assert plain == written
    assert plain.prompt.count(tokenizers["gemma"].bos_token_id) == 1


@pytest.mark.parametrize(("family", "first"), [("llama2", "<s>"), ("qwen", "<|im_end|>")])
def test_an_empty_prompt_is_one_token(tokenizers: dict[str, Any], family: str, first: str) -> None:
    pair = encoder_of(tokenizers, family, eos=False).encode("", "The cat")
    assert tokenizers[family].convert_ids_to_tokens(pair.prompt) == [first]
    assert tokenizers[family].decode(pair.answer).strip() == "The cat"


def test_a_token_across_the_boundary_is_noticed(tokenizers: dict[str, Any]) -> None:
    gpt2 = encoder_of(tokenizers, "gpt2", join="", eos=False)
    assert not gpt2.encode("good fil", "ms are fun").is_aligned
    with pytest.raises(DataError, match="The answer 's' has no token of its own") as refused:
        gpt2.encode("good film", "s")
    assert 'join: " "' in refused.value.hint
    assert encoder_of(tokenizers, "gpt2", eos=False).encode("good film", "s").answer


def test_truncation_keeps_special_tokens(tokenizers: dict[str, Any]) -> None:
    llama, t5 = encoder_of(tokenizers, "llama2"), encoder_of(tokenizers, "t5")
    ids, fixed = llama.prompt_ids("one, two, three = 1 2 3")
    assert llama.truncate(ids, fixed, 4) == [ids[0], *ids[-3:]]
    ids, fixed = t5.prompt_ids("one, two, three = 1 2 3")
    assert t5.truncate(ids, fixed, 4) == [*ids[:3], tokenizers["t5"].eos_token_id]
    assert t5.truncate(ids, fixed, len(ids)) == ids
