"""Names of tasks of lm_eval on the command line: `lm-eval:NAME`, with `/5-shot` and `/chat`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import UsageError
from hubmerge.refs import printable

PREFIX = "lm-eval:"
_CHAT = "chat"
_SHOTS = re.compile(r"(\d{1,3})-shot")


@dataclass(frozen=True)
class LmEvalName:
    """The name of a task in lm_eval, and how it is asked.

    `shots` is the number of examples before a question, None for that of the task. With `chat`,
    questions are written in the tokenizer's chat template.
    """

    name: str
    shots: int | None = None
    chat: bool = False

    def __str__(self) -> str:
        shots = "" if self.shots is None else f"/{self.shots}-shot"
        return f"{PREFIX}{self.name}{shots}{f'/{_CHAT}' if self.chat else ''}"


@dataclass(frozen=True)
class LmEvalTask:
    """A task of lm_eval that was found: what identifies it, and what it can be measured by.

    `label` is its name on the command line. `metrics` are named as lm_eval does, metric,filter, the
    default first; `row_metrics` are those that are a mean over rows, where more is better.
    `only_split` is the split of the data that validation and test are both carved from, None if the
    task has both. `include_path` is the folder of its YAML, None for one that comes with lm_eval.
    """

    label: str
    digest: str
    metrics: tuple[str, ...]
    row_metrics: tuple[str, ...]
    only_split: str | None = None
    include_path: Path | None = None

    def find_metric(self, name: str) -> str | None:
        """The metric of that name; without a filter, that of the first filter. None for none."""
        return next((m for m in self.metrics if name in (m, m.partition(",")[0])), None)


def is_lm_eval(text: str) -> bool:
    """Whether a text names a task of lm_eval."""
    return text.startswith(PREFIX)


def parse_lm_eval_name(text: str) -> LmEvalName:
    """The name after `lm-eval:`; raises UsageError for one that is none."""
    name, *options = text.removeprefix(PREFIX).split("/")
    shots = [int(match[1]) for option in options if (match := _SHOTS.fullmatch(option))]
    unknown = [option for option in options if option != _CHAT and not _SHOTS.fullmatch(option)]
    if not name or unknown or len(shots) > 1 or options.count(_CHAT) > 1:
        raise UsageError(
            f"{printable(text)} does not name a task of lm_eval.",
            "Write lm-eval:NAME, lm-eval:NAME/5-shot, lm-eval:NAME/chat or lm-eval:NAME/5-shot/chat"
            ", and the folder of a YAML of your own as --include-path.",
        )
    return LmEvalName(name, shots[0] if shots else None, _CHAT in options)
