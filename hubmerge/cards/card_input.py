"""What a card is told from: manifest, scores, lock and routing; and what of them is its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hubmerge.forgetting import Forgetting
from hubmerge.lock import Lock, Pick
from hubmerge.manifest import Manifest, last_recipe, recipe_id
from hubmerge.routing import Routing
from hubmerge.scores import Score, by_task

LAST, UNIFORM = "last", "uniform"


@dataclass(frozen=True)
class StepTag:
    """A step revision of an expert's repository: its name, its commit, its validation accuracy."""

    step: int
    name: str
    sha: str
    accuracy: float | None = None


@dataclass(frozen=True)
class CardInput:
    """What a card is told from: a manifest, and the log in which its scores are looked up.

    `lock` is the one beside a merge or a mixture, `routing` what was measured of a mixture, and
    `forgotten` what was measured of either beside its experts. `steps` are those of its repository
    and `used_by` the merges made of an expert, where a Hub was asked.
    """

    manifest: Manifest
    scores: Sequence[Score]
    split: str = "test"
    lock: Lock | None = None
    steps: tuple[StepTag, ...] = ()
    used_by: tuple[str, ...] = ()
    routing: Routing | None = None
    forgotten: Forgetting | None = None

    @cached_property
    def own(self) -> list[Score]:
        """The scores of this very model on the split, one per task."""
        digest = self.manifest.digest
        mine = (s for s in self.scores if s.model == digest and s.split == self.split)
        known = {self.manifest.task, *self.tasks}
        return list(by_task(mine, known).values())

    @property
    def mixed(self) -> bool:
        """Whether its tasks are measured by different metrics, so that they have no mean."""
        return len({score.metric for score in self.own}) > 1

    @cached_property
    def pick(self) -> Pick | None:
        """The pick of the lock that this merge was made of; the chosen one, if it is several."""
        if self.lock is None:
            return None
        alike = [p for p in self.lock.picks if self.recipe_of(p) == self.manifest.recipe]
        chosen = [pick for pick in alike if pick.policy == self.lock.chosen]
        return next(iter(chosen or alike), None)

    @property
    def tasks(self) -> list[str | None]:
        """The id of each expert's task; a lock knows it even where the expert does not."""
        experts = self.manifest.experts
        if self.lock and self.pick and [e.sha for e in self.pick.experts] == [
            e.sha for e in experts
        ]:  # fmt: skip
            return [task.id for task in self.lock.tasks]
        return [expert.task for expert in experts]

    def policy(self, name: str) -> Pick | None:
        """What a policy of the lock picked."""
        picks = self.lock.picks if self.lock else ()
        return next((pick for pick in picks if pick.policy == name), None)

    def recipe_of(self, pick: Pick) -> str:
        """The recipe of a pick; what it leaves unsaid, such as a number format, is as here."""
        assert self.lock is not None
        params = {**self.manifest.params, **pick.params}
        return recipe_id(self.lock.base.source, pick.experts, self.lock.method, params)

    @property
    def last_recipe(self) -> str | None:
        """The same merge of the last steps: tuned as this one where there is a lock.

        None for a mixture whose training had not ended: its rival would be trained for longer.
        """
        if self.manifest.is_moe and self.manifest.step != self.manifest.last_step:
            return None
        pick = self.policy(LAST)
        return self.recipe_of(pick) if pick else last_recipe(self.manifest)

    @property
    def uniform_recipe(self) -> str | None:
        """The same merge of the best common step; only a lock knows it."""
        pick = self.policy(UNIFORM)
        return self.recipe_of(pick) if pick else None

    def of_recipe(self, recipe: str | None) -> list[Score]:
        """The scores of a merge, by its recipe, on the same tasks and split; none if any lacks."""
        return self._alike(s for s in self.scores if recipe and s.recipe == recipe)

    def of_model(self, digest: str) -> list[Score]:
        """The scores of a model on the same tasks and split; none if any lacks."""
        return self._alike(s for s in self.scores if s.model == digest)

    def _alike(self, scores: Iterable[Score]) -> list[Score]:
        wanted = {(score.task, score.metric) for score in self.own}
        same = {s.task: s for s in scores if s.split == self.split and (s.task, s.metric) in wanted}
        return list(same.values()) if len(same) == len(self.own) else []
