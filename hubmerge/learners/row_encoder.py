"""How the rows of a task of language become tokens of a model, for training and for evaluation.

A row is one sequence: the prompt, which is read, and then tokens that are predicted, of which those
with a label count. Ranking has several such continuations of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from hubmerge.errors import DataError, UsageError
from hubmerge.learners.chat import check_chat_template, write_chat, write_prompt
from hubmerge.learners.pair_encoder import PairEncoder, TokenPair
from hubmerge.refs import printable
from hubmerge.tasks.examples import (
    ChatExample,
    LanguageExample,
    RankExample,
    TargetExample,
    TextExample,
    chat_of,
)

IGNORED = -100  # the label that transformers and cross_entropy ignore


@dataclass(frozen=True)
class EncodedRow:
    """The tokens of a prompt and of what may follow it; `labels` are `targets` or IGNORED.

    `answer` is the index of the correct target, -1 if there are no choices.
    """

    prompt: list[int]
    targets: list[list[int]]
    labels: list[list[int]]
    answer: int = -1
    is_truncated: bool = False
    is_aligned: bool = True


@dataclass(frozen=True)
class RowEncoder:
    """Rows as tokens: prompts and answers of at most `max_tokens` tokens each.

    Conversations and plain texts have at most that many in total, and are cut at their end.
    `max_positions` is how many tokens a decoder can read in total, None for no limit.
    """

    pairs: PairEncoder
    max_tokens: int
    max_positions: int | None = None

    @property
    def settings(self) -> tuple[object, ...]:
        """What decides the tokens of a row, besides the tokenizer."""
        pairs = self.pairs
        return self.max_tokens, self.max_positions, pairs.is_seq2seq, pairs.join, pairs.eos

    @property
    def longest_text(self) -> int:
        """The most tokens of a conversation or a plain text."""
        return min(self.max_tokens, self.max_positions or self.max_tokens)

    def encode(self, example: LanguageExample) -> EncodedRow:
        """The tokens of a row.

        Raises DataError for an answer that is too long or has no tokens, and for a conversation
        that the chat template refuses; UsageError for a model that cannot read such rows.
        """
        if isinstance(example, RankExample):
            return self._encode_choices(example)
        if isinstance(example, TargetExample):
            return self._encode_pairs(example.prompt, [example.target], -1)
        if isinstance(example, TextExample):
            return self._encode_text(example.text)
        ids, labels = self._encode_chat(example)
        return self._split_at_first_label(ids, labels)

    def encode_for_training(self, example: LanguageExample) -> EncodedRow:
        """The tokens of a row with its correct answer alone; raises the same as `encode`."""
        if isinstance(example, RankExample):
            if example.chat:
                return self.encode(chat_of(example.prompt, example.target))
            return self.encode(TargetExample(example.prompt, example.target))
        return self.encode(example)

    def prompt_and_answer(
        self, example: LanguageExample, max_new_tokens: int = 1
    ) -> tuple[list[int], str]:
        """The tokens to generate from, and the answer that should follow.

        A prompt ends where answers begin in training: before white space at its end, which belongs
        to the answer, and which texts are compared without. Of a conversation the answer is its
        last message. A prompt is truncated so that `max_new_tokens` more have positions, too.
        Raises DataError for a plain text, which has no answer.
        """
        if isinstance(example, RankExample) and example.chat:
            return self.prompt_and_answer(chat_of(example.prompt, example.target), max_new_tokens)
        if isinstance(example, TextExample):
            raise DataError(
                "A plain text has no answer that could be generated.",
                "Measure it by --metric likelihood, loss or perplexity.",
            )
        if isinstance(example, ChatExample):
            *before, last = example.messages
            check_chat_template(self.pairs.tokenizer, self.pairs.is_seq2seq)
            ids, fixed = self._ids(write_prompt(self.pairs.tokenizer, before)), 0
            answer = last.content
        else:
            ids, fixed = self.pairs.prompt_ids(example.prompt.rstrip())
            answer = example.target
        limit = self.max_tokens
        if self.max_positions is not None:
            limit = min(limit, max(1, self.max_positions - max_new_tokens))
        return self.pairs.truncate(ids, fixed, limit), answer

    def answer_end(self, example: LanguageExample) -> int | None:
        """The token that ends the answers of such a row in training, None if none does.

        Raises the same as `encode` for a conversation.
        """
        if not self.pairs.eos:
            return None
        if isinstance(example, RankExample) and example.chat:
            example = chat_of(example.prompt, example.target)
        if isinstance(example, ChatExample):
            return self._encode_chat(example)[1][-1]
        return cast(int, self.pairs.tokenizer.eos_token_id)

    def _encode_choices(self, example: RankExample) -> EncodedRow:
        """Choices as answers in a chat template score what lm_eval scores on the same strings."""
        if not example.chat:
            return self._encode_pairs(example.prompt, example.choices, example.answer)
        rows = [
            self._split_at_first_label(*self._encode_chat(chat_of(example.prompt, choice), True))
            for choice in example.choices
        ]
        targets, labels = [row.targets[0] for row in rows], [row.labels[0] for row in rows]
        is_truncated = any(row.is_truncated for row in rows)
        return EncodedRow(rows[0].prompt, targets, labels, example.answer, is_truncated)

    def _encode_text(self, text: str) -> EncodedRow:
        """A text after its first token, which is beginning of sequence or stands for it."""
        if self.pairs.is_seq2seq:
            raise UsageError(
                "Plain texts need a decoder, and this model has an encoder, too.",
                "Give it prompts and answers: `kind: target` with `prompt:` and `target:`.",
            )
        pair = self.pairs.encode("", text)
        return self._split_at_first_label(
            [*pair.prompt, *pair.answer], [*([IGNORED] * len(pair.prompt)), *pair.answer]
        )

    def _encode_chat(
        self, example: ChatExample, with_space: bool = False
    ) -> tuple[list[int], list[int]]:
        """The tokens of a conversation, and the labels of its answers.

        White space before an answer is the template's, and counts only `with_space`, or if a token
        has both.
        """
        tokenizer = self.pairs.tokenizer
        check_chat_template(tokenizer, self.pairs.is_seq2seq)
        chat = write_chat(tokenizer, example.messages, example.first, self.pairs.eos)
        ids = self._ids(chat.text)
        labels = [IGNORED] * len(ids)
        for answer in chat.answers:
            before = self._ids(chat.text[: answer.start])
            if with_space or ids[: len(before)] != before:
                before = self._ids(chat.text[: answer.start].rstrip())
            start = len(before)
            end = len(self._ids(chat.text[: answer.end]))
            labels[start:end] = ids[start:end]
        if self.pairs.eos and not chat.answers[-1].has_end:
            ids, labels = ([*row, tokenizer.eos_token_id] for row in (ids, labels))
        return ids, labels

    def _ids(self, text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        return list(self.pairs.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _split_at_first_label(self, ids: list[int], labels: list[int]) -> EncodedRow:
        """A sequence, cut at its end, as what is read and what is predicted."""
        limit = self.longest_text
        kept = labels[:limit]
        first = next((n for n, label in enumerate(kept) if label != IGNORED), None)
        if first is None:
            raise DataError(
                f"There is no answer within the first {limit} of {len(ids)} tokens.",
                "Raise `max_tokens:` in the task's YAML, or shorten the row.",
            )
        is_truncated = len(ids) > limit
        return EncodedRow(ids[:first], [ids[first:limit]], [kept[first:]], -1, is_truncated)

    def _encode_pairs(self, prompt: str, answers: Sequence[str], answer: int) -> EncodedRow:
        pairs = [self.pairs.encode(prompt, each) for each in answers]
        for text, pair in zip(answers, pairs, strict=True):
            self._check_length(text, pair)
        targets = [pair.answer for pair in pairs]
        limit = self.max_tokens
        if self.max_positions is not None:
            limit = min(limit, self.max_positions - max(map(len, targets)))
        read = self.pairs.truncate(pairs[0].prompt, pairs[0].fixed, limit)
        is_truncated = len(read) < len(pairs[0].prompt)
        is_aligned = all(pair.is_aligned for pair in pairs)
        return EncodedRow(read, targets, targets, answer, is_truncated, is_aligned)

    def _check_length(self, answer: str, pair: TokenPair) -> None:
        limit = min(self.max_tokens, (self.max_positions or self.max_tokens + 1) - 1)
        if len(pair.answer) > limit:
            raise DataError(
                f"The answer {printable(answer[:40])!r} ... has {len(pair.answer)} tokens; the "
                f"limit is {limit}.",
                "Raise `max_tokens:` in the task's YAML, or shorten the answer.",
            )
