"""Language models: trained on targets after prompts, asked which of several targets is likeliest.

Rank classification as in T-Few and TIES (arXiv 2205.05638, 2306.01708): the sum of the
log-probabilities of a choice's tokens, end of sequence included, without normalising by length.
Shapes: B prompts, P tokens of the longest, N targets (one or more a prompt), L tokens of the
longest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput

from hubmerge.errors import DataError
from hubmerge.learners.classification import check_numbers, pad_right
from hubmerge.learners.learner import Batch, Example
from hubmerge.tasks.examples import Paired, Ranked

_IGNORED = -100  # what transformers and cross_entropy pass over


class Reader(nn.Module):
    """A language model that reads targets: prompts and targets -> what it makes of each token.

    Returns the log-probability of every target token and the token it would have said, both [N, L];
    0 where there is none.
    """

    def __init__(self, model: nn.Module, is_seq2seq: bool, shares_encoder: bool = True) -> None:
        super().__init__()
        self.model, self._is_seq2seq, self._shares_encoder = model, is_seq2seq, shares_encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self._is_seq2seq:
            logits = self._decoded(input_ids, attention_mask, labels, owner)
        else:  # the logits at a token are about the next one
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            logits, labels = out.logits[:, -labels.shape[1] : -1], labels[:, 1:]
        flat = cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        return -flat.view_as(labels), logits.argmax(dim=-1)

    def _decoded(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, owner: Tensor
    ) -> Tensor:
        """Logits [N, L, V]; each prompt is encoded once, however many targets it has."""
        asked: dict[str, Any] = {"input_ids": input_ids[owner]}
        if self._shares_encoder:
            encode = cast(Any, self.model).get_encoder()
            hidden = encode(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            asked = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden[owner])}
        # Given labels, a model would take their loss as well, which nobody asks for.
        shifted = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        asked |= {"decoder_input_ids": shifted(labels)} if shifted else {"labels": labels}
        out = self.model(**asked, attention_mask=attention_mask[owner], use_cache=False)
        return cast(Tensor, out.logits)


@dataclass(frozen=True)
class LanguageLearner:
    """Prompts of at most `max_tokens` tokens, and targets of at most as many.

    `positions` is how many tokens a decoder can read in all, None for any number.
    """

    network: Reader
    tokenizer: Any
    is_seq2seq: bool
    max_tokens: int
    positions: int | None = None
    varies: bool = False

    def for_training(self, example: Ranked | Paired, seed: int) -> Example:
        return self._read(example.prompt, [example.target], 0)

    def for_evaluation(self, example: Ranked | Paired) -> Example:
        if isinstance(example, Ranked):
            return self._read(example.prompt, example.choices, example.answer)
        return self._read(example.prompt, [example.target], -1)

    def collate(self, examples: Sequence[Example]) -> Batch:
        owner = [number for number, one in enumerate(examples) for _ in one["targets"]]
        targets = [target for one in examples for target in one["targets"]]
        answer = torch.tensor([one["answer"] for one in examples])
        batch = {"owner": torch.tensor(owner), "answer": answer}
        prompts = [one["input_ids"] for one in examples]
        if self.is_seq2seq:
            return batch | self._padded(prompts) | {"labels": pad_right(targets, _IGNORED)}
        whole = [torch.cat([prompts[n], t]) for n, t in zip(owner, targets, strict=True)]
        hidden = [torch.full_like(prompts[n], _IGNORED) for n in owner]
        labels = [torch.cat([h, t]) for h, t in zip(hidden, targets, strict=True)]
        return batch | self._padded(whole) | {"labels": pad_right(labels, _IGNORED)}

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != _IGNORED).sum())

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        told, _ = self._told(network, batch)
        return -told.sum()

    def answers(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        told, said = self._told(network, batch)
        check_numbers(told)
        if int(batch["answer"][0]) < 0:  # no choices: each token of the target counts
            labels = batch["labels"] if self.is_seq2seq else batch["labels"][:, 1:]
            real = labels != _IGNORED
            return said.masked_fill(~real, -1), labels.masked_fill(~real, -1)
        table = by_prompt(told.sum(dim=-1), batch["owner"])
        return table.argmax(dim=-1, keepdim=True), batch["answer"].unsqueeze(-1)

    def scores(self, network: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities of each prompt's choices [B, C], -inf where it has fewer."""
        told, _ = self._told(network, batch)
        return by_prompt(told.sum(dim=-1), batch["owner"])

    def _told(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        names = ("input_ids", "attention_mask", "labels", "owner")
        return cast("tuple[Tensor, Tensor]", network(*(batch[name] for name in names)))

    def _read(self, prompt: str, targets: Sequence[str], answer: int) -> Example:
        ids = [torch.tensor(self.target_ids(target)) for target in targets]
        room = self.max_tokens
        if self.positions is not None:
            room = min(room, self.positions - max(map(len, ids)))
        return {"input_ids": torch.tensor(self._prompt_ids(prompt, room)), "targets": ids,
                "answer": answer}  # fmt: skip

    def _prompt_ids(self, prompt: str, room: int) -> list[int]:
        if self.is_seq2seq:
            said = self.tokenizer(prompt, truncation=True, max_length=room)
            return cast("list[int]", said["input_ids"])
        # A decoder reads on from the prompt's end, so that end stays, and no end of sequence is
        # put there; what the tokenizer puts before every text stays as well.
        said = self.tokenizer(prompt, return_special_tokens_mask=True)
        framed = list(zip(said["input_ids"], said["special_tokens_mask"], strict=True))
        start = [token for token, _ in takewhile(itemgetter(1), framed)]
        text = [token for token, is_frame in framed if not is_frame]
        return start + text[max(0, len(text) + len(start) - room) :]

    def target_ids(self, target: str) -> list[int]:
        """The tokens of a target with end of sequence; raises DataError if they are too many."""
        # A decoder goes on after the prompt's last word, as people write.
        text = target if self.is_seq2seq else f" {target}"
        ids = self.tokenizer(text_target=text, add_special_tokens=False)["input_ids"]
        ids = [*ids, self.tokenizer.eos_token_id]
        most = min(self.max_tokens, (self.positions or self.max_tokens + 1) - 1)
        if len(ids) > most:
            raise DataError(
                f"The answer {target[:40]!r} ... has {len(ids)} tokens, and only {most} would be "
                "read.",
                "Raise `max_tokens:` in the task's YAML, or shorten the answer.",
            )
        return ids

    def is_cut(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than are read."""
        return len(self.tokenizer(prompt)["input_ids"]) > self.max_tokens

    def _padded(self, rows: Sequence[Tensor]) -> Batch:
        ids = pad_right(rows, self.tokenizer.pad_token_id)
        mask = pad_right([torch.ones_like(row) for row in rows], 0)
        return {"input_ids": ids, "attention_mask": mask}


def by_prompt(scores: Tensor, owner: Tensor) -> Tensor:
    """Scores [N] of targets as a row for each prompt [B, C], -inf where it has fewer targets."""
    counts = torch.bincount(owner)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(owner), device=owner.device) - first[owner]
    table = scores.new_full((len(counts), int(counts.max())), -torch.inf)
    table[owner, place] = scores
    return table
