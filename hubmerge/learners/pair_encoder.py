"""How a prompt and an answer become tokens: the one place for training, evaluation and ranking.

The tokens are those that lm_eval scores (EleutherAI/lm-evaluation-harness, `_encode_pair` and
`loglikelihood` of `lm_eval/api/model.py`), with end of sequence after the answer unless the task
says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from operator import itemgetter
from typing import Any, cast

from hubmerge.errors import DataError
from hubmerge.refs import printable


@dataclass(frozen=True)
class TokenPair:
    """The tokens of a prompt, and of the answer that continues it.

    `fixed` counts the special tokens that truncation keeps: at the start of a decoder's prompt, at
    the end of a sequence-to-sequence model's.
    `is_aligned` is whether the answer begins with a token of its own: if not, the text of both has
    a token that is partly prompt and partly answer.
    """

    prompt: list[int]
    fixed: int
    answer: list[int]
    is_aligned: bool = True


@dataclass(frozen=True)
class PairEncoder:
    """Prompts and answers as tokens of a model.

    `join` is what stands between them, None for the default of `join_of`. With `eos`, an answer
    ends with end of sequence.
    """

    tokenizer: Any
    is_seq2seq: bool
    join: str | None = None
    eos: bool = True

    def encode(self, prompt: str, answer: str) -> TokenPair:
        """The tokens of a prompt and its answer; raises DataError for an answer without tokens.

        White space at the end of a prompt belongs to the answer, whose first token usually begins
        with it. A decoder reads both as one text, a sequence-to-sequence model each as a text of
        its own. Before an empty prompt a decoder reads beginning of sequence, or end of sequence if
        it has none.
        """
        text = prompt.rstrip()
        answer_text = prompt[len(text) :] + self.join_of(prompt, answer) + answer
        if self.is_seq2seq:
            ids = self.tokenizer(text_target=answer_text, add_special_tokens=False)["input_ids"]
            pair = TokenPair(*self.prompt_ids(text), list(ids))
        else:
            pair = self._continue(text, answer_text)
        if not pair.answer:
            raise _no_tokens(prompt, answer)
        ends = not self.eos or pair.answer[-1] == self.tokenizer.eos_token_id
        if ends:
            return pair
        ids = [*pair.answer, self.tokenizer.eos_token_id]
        return TokenPair(pair.prompt, pair.fixed, ids, pair.is_aligned)

    def join_of(self, prompt: str, answer: str) -> str:
        """What stands between a prompt and an answer: `join`, or else a space where words need one.

        That is after the prompt of a decoder, unless there is white space already, or the prompt
        ends with a token of its own in the vocabulary, as chat templates do.
        """
        if self.join is not None:
            return self.join
        spaced = not prompt or prompt[-1].isspace() or answer[:1].isspace()
        return "" if self.is_seq2seq or spaced or prompt.endswith(self._added_tokens) else " "

    def prompt_ids(self, prompt: str) -> tuple[list[int], int]:
        """The tokens of a prompt alone, as for generation, and how many of them are `fixed`."""
        if self.is_seq2seq:
            encoding = self.tokenizer(prompt, return_special_tokens_mask=True)
            end = sum(1 for _ in takewhile(bool, reversed(encoding["special_tokens_mask"])))
            return list(encoding["input_ids"]), end
        if not prompt:
            return [self._start_token], 1
        return self._encode_start(prompt)

    def truncate(self, ids: Sequence[int], fixed: int, limit: int) -> list[int]:
        """At most `limit` tokens of a prompt: its end for a decoder, else its beginning."""
        cut = max(0, len(ids) - limit)
        if self.is_seq2seq:
            end = len(ids) - fixed
            return [*ids[: max(0, end - cut)], *ids[end:]]
        return [*ids[:fixed], *ids[fixed + cut :]]

    def _continue(self, prompt: str, answer: str) -> TokenPair:
        if not prompt:
            ids = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
            begins = ids[:1] == [self._start_token]
            return TokenPair([self._start_token], 1, ids[1:] if begins else ids)
        context, fixed = self._encode_start(prompt)
        whole, _ = self._encode_start(prompt + answer)
        is_aligned = whole[: len(context)] == context
        return TokenPair(context, fixed, whole[len(context) :], is_aligned)

    def _encode_start(self, text: str) -> tuple[list[int], int]:
        """A text to be continued: no special tokens at its end, and how many are at its start."""
        if text.startswith(self._start_text):  # written out, so it is not added again
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            return ids, int(ids[:1] == [self._start_token])
        encoding = self.tokenizer(text, return_special_tokens_mask=True)
        tokens = list(zip(encoding["input_ids"], encoding["special_tokens_mask"], strict=True))
        start = [token for token, _ in takewhile(itemgetter(1), tokens)]
        return [*start, *(token for token, is_special in tokens if not is_special)], len(start)

    @cached_property
    def _start_token(self) -> int:
        """The token that a text begins with where nothing is before it."""
        begin = self.tokenizer.bos_token_id
        return cast(int, self.tokenizer.eos_token_id if begin is None else begin)

    @cached_property
    def _start_text(self) -> str:
        return cast(str, self.tokenizer.decode([self._start_token]))

    @cached_property
    def _added_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in self.tokenizer.added_tokens_encoder if token)


def _no_tokens(prompt: str, answer: str) -> DataError:
    return DataError(
        f"The answer {printable(answer[:40])!r} has no token of its own after the prompt "
        f"{printable(prompt[-40:])!r}.",
        'Write `join: " "` in the task\'s YAML, or end the prompt where a word ends.',
    )
