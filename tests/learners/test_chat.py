"""Conversations become the tokens of the tokenizer's own template; only answers have labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hubmerge.errors import DataError, UsageError
from hubmerge.learners.pair_encoder import PairEncoder
from hubmerge.learners.row_encoder import IGNORED, RowEncoder
from hubmerge.tasks.examples import ChatExample, TextExample
from hubmerge.tasks.messages import Message
from tests.models.language_families import write_family

TURNS = (
    Message("user", "Is it?"),
    Message("assistant", "Yes, it is."),
    Message("user", "or no?"),
    Message("assistant", "no"),
)
ENDS = {"llama2": "</s>", "llama3": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>"}


@pytest.fixture(scope="module", params=ENDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("families") / request.param, request.param)


def encoder_of(folder: Path, max_tokens: int = 200) -> RowEncoder:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return RowEncoder(PairEncoder(tokenizer, folder.name == "t5"), max_tokens)


def answers_of(encoder: RowEncoder, example: ChatExample) -> str:
    labels = encoder.encode(example).labels[0]
    text: str = encoder.pairs.tokenizer.decode([label for label in labels if label != IGNORED])
    return text.replace(" ", "")


def test_tokens_are_those_of_the_template_and_labels_those_of_answers(family: Path) -> None:
    encoder, end = encoder_of(family), ENDS[family.name]
    row = encoder.encode(ChatExample(TURNS))
    ids = [*row.prompt, *row.targets[0]]
    turns = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    expected = encoder.pairs.tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    assert expected[: len(ids)] == ids
    assert answers_of(encoder, ChatExample(TURNS)) == f"Yes,itis.{end}no{end}"
    assert answers_of(encoder, ChatExample(TURNS, first=2)) == f"no{end}"


def test_long_conversations_are_cut_at_their_end(family: Path) -> None:
    encoder = encoder_of(family)
    whole = encoder.encode(ChatExample(TURNS))
    limit = len(whole.prompt) + 2
    cut = encoder_of(family, limit).encode(ChatExample(TURNS))
    assert (cut.targets[0], cut.is_truncated) == (whole.targets[0][:2], True)
    with pytest.raises(DataError, match="There is no answer within the first 2 of"):
        encoder_of(family, 2).encode(ChatExample(TURNS))


def test_a_template_that_refuses_is_quoted(tmp_path: Path) -> None:
    encoder = encoder_of(write_family(tmp_path / "gemma", "gemma"))
    with pytest.raises(DataError, match="System role not supported"):
        encoder.encode(ChatExample((Message("system", "Be brief."), *TURNS)))


@pytest.mark.parametrize(("name", "reason"), [("gpt2", "has none"), ("t5", "need a decoder")])
def test_conversations_need_a_decoder_with_a_template(
    tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        encoder_of(write_family(tmp_path / name, name)).encode(ChatExample(TURNS))


def test_every_token_of_a_text_is_predicted(tmp_path: Path) -> None:
    encoder = encoder_of(write_family(tmp_path / "gpt2", "gpt2"))
    row = encoder.encode(TextExample("The cat"))
    end = encoder.pairs.tokenizer.eos_token_id
    assert row.prompt == [end]
    assert row.targets == row.labels
    assert encoder.pairs.tokenizer.decode(row.targets[0]) == "The cat<|endoftext|>"
