"""What a baseline is: what it is given, what it gives back, and what is said of it.

Nothing here imports torch, nor does the file of a baseline: `--help` and the report read it as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tandem.objectives.base import new_snapshots, no_checkpoint
from tandem.records import Check, RunRecord, TrainingRecord
from tandem.settings import Configuration, Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tandem.group import Execution
    from tandem.metrics import Score
    from tandem.training.checkpoint import Checkpoint
    from tandem.training.progress import OnTick
    from tandem.training.snapshots import Snapshots

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class BaselineInputs:
    """All that a baseline is fitted with.

    train             [T] token ids to learn from (uint16 or int32, may be memory-mapped), at least two.
    validation        [T'] token ids to be scored on, at least two.
    vocab_size        V; every id is below it.
    settings          of the experiment; its own section is `settings.section(NAME)`.
    max_parameters    that it may have, where `sized`.
    seed              None where it is not `seeded`.
    on_tick           is told of progress.
    snapshots         keeps a few steps for the audit, where the baseline tells it of its steps.
    checkpoint        keeps the training, where the baseline names its parts and tells it of its steps.
    """

    train: Ids
    validation: Ids
    vocab_size: int
    settings: Settings
    max_parameters: int
    seed: int | None
    device: torch.device
    execution: Execution
    on_tick: OnTick
    snapshots: Snapshots = field(default_factory=new_snapshots)
    checkpoint: Checkpoint = field(default_factory=no_checkpoint)


@dataclass(frozen=True)
class Fitted:
    """A baseline after training.

    score                   on validation: every token but the first, in stream order.
    embedding_parameters    of the tied embedding; 0 for n-gram models.
    other_parameters        all the others; of n-gram models the n-grams they keep.
    training                how it went; None for n-gram models.
    seconds_s               training and scoring.
    score_stream            scores any other stream [T] of the same vocabulary with the trained model.
    weights                 by name, for the audit to compute with; None for n-gram models.
    """

    score: Score
    embedding_parameters: int
    other_parameters: int
    training: TrainingRecord | None
    seconds_s: float
    score_stream: Callable[[Ids], Score] = field(repr=False, compare=False)
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)


class Baseline(ABC):
    """A model to compare with; its key in `tandem.baselines.BASELINES` is the kind that settings name."""

    title: ClassVar[str]
    """What its runs are called, less their seed."""
    description: ClassVar[str]
    """What it is, in a few English words; the report may have it in its own words."""
    section: ClassVar[str | None] = None
    """Dotted name of the settings that it has for itself alone."""
    seeded: ClassVar[bool] = True
    """Whether anything is drawn at random, so that it runs once with each seed; else it runs once."""
    sized: ClassVar[bool] = False
    """Whether `baselines.max_parameters` bounds it."""
    memory_settings: ClassVar[tuple[str, ...]] = ()
    """Which of its settings to lower where memory runs out, by their dotted names."""

    @abstractmethod
    def fit(self, inputs: BaselineInputs) -> Fitted:
        """Train on `inputs.train` and score validation.

        Raises SettingsError where it cannot be, NonFiniteLossError if a step is not finite.
        """

    def refit(self, inputs: BaselineInputs, record: RunRecord) -> Fitted | None:  # noqa: ARG002
        """The model of a record again, for the audit to compare; None where that would take long."""
        return None

    def label(self, settings: Settings) -> str:  # noqa: ARG002
        """The title, with the settings that are part of it."""
        return self.title

    def least_parameters(self, settings: Settings, vocab_size: int) -> int:  # noqa: ARG002
        """Of the smallest such model, where it is `sized`."""
        return 0

    def depends_on(self, settings: Settings, max_parameters: int) -> Mapping[str, Any] | None:
        """What its result depends on beside text and tokens, for a fingerprint; None where it is nothing."""
        own = settings.section(self.section).model_dump(mode="json") if self.section else {}
        return {**({"max_parameters": max_parameters} if self.sized else {}), **own} or None

    def configurations(self, settings: Settings) -> tuple[Configuration, ...] | None:  # noqa: ARG002
        """Of a control, the Tandem models to train without phase 1; None: it is a model of its own."""
        return None

    def checks(self, inputs: BaselineInputs, record: RunRecord) -> list[Check]:  # noqa: ARG002
        """What the audit checks of its record beside what it checks of every baseline."""
        return []
