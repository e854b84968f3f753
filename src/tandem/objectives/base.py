"""What an objective of phase 1 is to the rest of Tandem.

An objective's file imports torch, and modules that do, inside its functions: `tandem report` reads its
records, and `--help` its name, without torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tandem.errors import MisfitError
from tandem.records import Phase1Record
from tandem.settings import Settings
from tandem.training.progress import OnTick

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from tandem.contexts import Stream
    from tandem.group import Execution
    from tandem.metrics import Score
    from tandem.model import TandemForCausalLM, TokenBlock
    from tandem.training.checkpoint import Checkpoint
    from tandem.training.snapshots import Snapshots

NewTokenBlock = Callable[[int], "TokenBlock"]
"""The TokenBlock of this many layers that the run's seed draws, on the model's device."""


def no_checkpoint() -> Checkpoint:
    """Written nowhere."""
    from tandem.training.checkpoint import Checkpoint

    return Checkpoint()


def new_snapshots() -> Snapshots:
    """Empty."""
    from tandem.training.snapshots import Snapshots

    return Snapshots()


@dataclass(frozen=True)
class Phase1Inputs:
    """All that a phase 1 is trained with.

    model        untrained; `parts` of it are trained in place.
    heads        from `new_heads`; they are trained in place, too.
    stream       the training text, on the model's device.
    on_tick      is told of progress.
    execution    the processes that train together, and their precision.
    snapshots    keeps a few steps for the audit, where the objective tells it of its steps.
    checkpoint   keeps the training, where the objective names its parts and tells it of its steps.
    pieces       [V, 2] the two tokens that each was joined from, negative where it was not; none where the
                 tokenizer joins none.
    """

    model: TandemForCausalLM
    heads: nn.ModuleDict
    stream: Stream
    settings: Settings
    seed: int
    on_tick: OnTick
    execution: Execution
    snapshots: Snapshots = field(default_factory=new_snapshots)
    checkpoint: Checkpoint = field(default_factory=no_checkpoint)
    pieces: npt.NDArray[np.int32] | None = None


class Objective(ABC):
    """How phase 1 trains. Stateless: what differs between runs is passed to each method.

    section            its section of the settings; none if it has no settings.
    record_type        what `train` returns.
    parts              children of the model that it trains, and whose weights it leaves to phase 2; with
                       none it trains no heads either.
    memory_settings    what to lower where memory runs out, its own settings first.
    """

    section: ClassVar[str | None] = None
    record_type: ClassVar[type[Phase1Record]] = Phase1Record
    parts: ClassVar[tuple[str, ...]] = ("context_block",)
    memory_settings: ClassVar[tuple[str, ...]] = (
        "phase2.batch_positions",
        "model.embed_dim",
        "model.context_dim",
    )

    def start(self, model: TandemForCausalLM, settings: Settings) -> None:  # noqa: B027
        """Set the weights of a new model that are not to be drawn from the seed, in place."""

    @abstractmethod
    def train(self, inputs: Phase1Inputs) -> Phase1Record:
        """Train `parts` of the model, and the heads, in place on the training text.

        The processes do it together. Raises NonFiniteLossError before a non-finite step.
        """

    def swept_tokens(self, settings: Settings, tokens: int) -> int:
        """Tokens that a single step reads of a training text of so many, where it may read all of them.

        Their contexts are in memory twice while it does. Zero for steps of a size that the text leaves alone.
        """
        return 0

    def new_heads(self, settings: Settings, new_token_block: NewTokenBlock) -> nn.ModuleDict:
        """Untrained TokenBlocks to train beside the model, by name; phase 2 may start from one."""
        from torch import nn

        return nn.ModuleDict()

    def head_for(self, heads: nn.ModuleDict, token_layers: int) -> str:
        """Name of the head, of one or more, that a TokenBlock of so many layers starts from."""
        return next(iter(heads))

    def score_heads(
        self, record: Any, heads: nn.ModuleDict, score: Callable[[nn.Module], Score]
    ) -> Phase1Record:
        """The record with what its heads reach on the validation text, by `score`."""
        return record

    def misfits(self, settings: Settings, tokens: int) -> Iterator[MisfitError]:
        """Settings that do not fit each other or a training text of so many tokens."""
        if settings.phase2.start == "phase1":
            yield MisfitError.of(
                "setting phase2.start = 'phase1' is not possible: phase 1 of recipe "
                f"{settings.recipe} has no token layers to start from",
                {"phase2.start": "random"},
            )

    def for_one_run(self, settings: Settings, token_layers: int) -> Settings:
        """Settings for a phase 1 that serves TokenBlocks of one depth only."""
        return settings

    def figures(self, record: Any) -> Mapping[str, float]:
        """Figures of a record to show in the terminal and in the report, by name."""
        return {}

    def summary(self, record: Any) -> str:
        """How phase 1 went, in one line of the terminal."""
        return ", ".join(f"{name} {value:,.4g}" for name, value in self.figures(record).items()) or "done"

    def audit(self, record: Any, settings: Settings, tokens: int) -> Iterator[str]:
        """What in a record contradicts itself, the settings or a training text of so many tokens."""
        return iter(())

    def evaluate(self, model: TandemForCausalLM, stream: Stream, settings: Settings) -> dict[str, float]:
        """Figures of a trained model on any text that only this objective gives a meaning, by name."""
        return {}


def large_batch(section: str, batch: int, positions: int, fits: int) -> MisfitError:
    """A batch that is larger than so many positions of training text; `fits` is one that is not."""
    return MisfitError.of(
        f"setting {section}.batch_positions = {batch} is larger than the {positions} positions of training "
        "text",
        {f"{section}.batch_positions": fits},
        "give more text",
    )
