"""The input of a card (manifest, scores, lock, routing), and the scores that belong to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hubmerge.forgetting import Forgetting
from hubmerge.lock import Lock, Pick
from hubmerge.manifest import Manifest, recipe_of_last_steps
from hubmerge.recipe_ids import recipe_id
from hubmerge.routing import Routing
from hubmerge.scores import Score, by_task

LAST, UNIFORM = "last", "uniform"


@dataclass(frozen=True)
class StepTag:
    """A tagged step of a repository: its name, its commit and its validation accuracy."""

    step: int
    name: str
    sha: str
    accuracy: float | None = None


@dataclass(frozen=True)
class CardInput:
    """Everything that a card is rendered from: a manifest, and a log that contains its scores.

    `lock` is the lock stored with a merge or a mixture, `routing` the measured routing of a
    mixture, and `forgotten` what either forgets compared with its experts. `steps` (the steps of
    the repository) and `used_by` (the merges made of an expert) need a Hub, else they are empty.
    `language_loader` is the class that loads a language model, None if it is not known.
    """

    manifest: Manifest
    scores: Sequence[Score]
    split: str = "test"
    lock: Lock | None = None
    steps: tuple[StepTag, ...] = ()
    used_by: tuple[str, ...] = ()
    routing: Routing | None = None
    forgotten: Forgetting | None = None
    language_loader: str | None = None

    @cached_property
    def own_scores(self) -> list[Score]:
        """The scores of this model on the split, one per task; all are shares."""
        digest = self.manifest.digest
        on_split = (s for s in self.scores if s.model == digest and s.split == self.split)
        scores = (score for score in on_split if score.is_share)
        task_ids = {self.manifest.task, *self.task_ids}
        return list(by_task(scores, task_ids).values())

    @property
    def has_mixed_metrics(self) -> bool:
        """Whether its tasks are measured by different metrics, and therefore have no mean."""
        return len({score.metric for score in self.own_scores}) > 1

    @cached_property
    def pick(self) -> Pick | None:
        """The lock's pick with the recipe of this model; of several, preferably the chosen one."""
        if self.lock is None:
            return None
        matches = [p for p in self.lock.picks if self.recipe_of(p) == self.manifest.recipe]
        chosen = [pick for pick in matches if pick.policy == self.lock.chosen]
        return next(iter(chosen or matches), None)

    @property
    def task_ids(self) -> list[str | None]:
        """The task id of each expert: from the lock if it matches, else from the expert."""
        experts = self.manifest.experts
        if self.lock and self.pick and [e.sha for e in self.pick.merged] == [
            e.sha for e in experts
        ]:  # fmt: skip
            pairs = zip(self.lock.tasks, self.pick.experts, strict=True)
            return [task.id for task, expert in pairs if expert.weight != 0]
        return [expert.task for expert in experts]

    def pick_of_policy(self, name: str) -> Pick | None:
        """The pick of one policy of the lock."""
        picks = self.lock.picks if self.lock else ()
        return next((pick for pick in picks if pick.policy == name), None)

    def recipe_of(self, pick: Pick) -> str:
        """The recipe of a pick; parameters that it leaves out are taken from this model."""
        assert self.lock is not None
        params = {**self.manifest.params, **pick.params}
        return recipe_id(self.lock.base.source, pick.merged, self.lock.method, params)

    @property
    def last_recipe(self) -> str | None:
        """The recipe of the same model made from the last steps, tuned alike if there is a lock.

        None for a mixture whose training had not ended: the other would be trained for longer.
        """
        if self.manifest.is_moe and self.manifest.step != self.manifest.last_step:
            return None
        pick = self.pick_of_policy(LAST)
        return self.recipe_of(pick) if pick else recipe_of_last_steps(self.manifest)

    @property
    def uniform_recipe(self) -> str | None:
        """The recipe of the same model made from the best common step; needs a lock."""
        pick = self.pick_of_policy(UNIFORM)
        return self.recipe_of(pick) if pick else None

    def scores_of_recipe(self, recipe: str | None) -> list[Score]:
        """The scores of a recipe on the same tasks and split; empty if any is missing."""
        return self._on_same_tasks(s for s in self.scores if recipe and s.recipe == recipe)

    def scores_of_model(self, digest: str) -> list[Score]:
        """The scores of a model on the same tasks and split; empty if any is missing."""
        return self._on_same_tasks(s for s in self.scores if s.model == digest)

    def _on_same_tasks(self, scores: Iterable[Score]) -> list[Score]:
        wanted = {(score.task, score.metric) for score in self.own_scores}
        same = {s.task: s for s in scores if s.split == self.split and (s.task, s.metric) in wanted}
        return list(same.values()) if len(same) == len(self.own_scores) else []
