"""What is audited: one saved run with all it came from, and what the audit computes of it, once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tandem.audit.reference import Block, block_losses, spread_blocks, whole_stream
from tandem.contexts import ContextsSample
from tandem.experiment.artefacts import load_model, load_sample
from tandem.experiment.pipeline import Prepared, new_model
from tandem.model import TandemForCausalLM
from tandem.records import RunRecord
from tandem.settings import Configuration
from tandem.training.trainable import part_fingerprints

LEAST_WARM_UP = 256


@dataclass(frozen=True)
class Subject:
    """A finished run of a Tandem model.

    prepared    text, tokens and embeddings made again from the settings
    record      what the run wrote down; its results are there
    siblings    records of all runs of the experiment, this one included
    sample      of the contexts that the run read; none if it kept none
    """

    prepared: Prepared
    record: RunRecord
    siblings: tuple[RunRecord, ...]
    folder: Path
    model: TandemForCausalLM
    sample: ContextsSample | None

    @classmethod
    def load(
        cls, prepared: Prepared, record: RunRecord, siblings: tuple[RunRecord, ...], folder: Path
    ) -> "Subject":
        """From a model folder. Raises RunDirError if the model cannot be read."""
        model, _ = load_model(folder)
        model.to(prepared.device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
        return cls(prepared, record, siblings, folder, model, load_sample(folder))

    @property
    def configuration(self) -> Configuration:
        """The depths that the record names."""
        assert self.record.context_layers is not None
        assert self.record.token_layers is not None
        return Configuration(self.record.context_layers, self.record.token_layers)

    @property
    def seed(self) -> int:
        """The seed that the record names."""
        assert self.record.seed is not None
        return self.record.seed

    def ids(self, split: str) -> torch.Tensor:
        """Tokens of a split, [T] int64, on the model's device."""
        stream = self.prepared.corpus.train if split == "train" else self.prepared.corpus.validation
        return torch.from_numpy(np.asarray(stream.ids, np.int64)).to(self.model.device)

    @cached_property
    def initial(self) -> TandemForCausalLM:
        """The model as it was before any training."""
        return new_model(self.prepared, self.configuration, self.seed)

    @cached_property
    def initial_parts(self) -> dict[str, str]:
        """Fingerprints of its parts."""
        return part_fingerprints(self.initial)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Fingerprints of the parts of the saved model."""
        return part_fingerprints(self.model)

    @cached_property
    def warm_up(self) -> int:
        """Tokens read before a block, so that what came earlier no longer matters.

        Twice what the run's own scan needed; everything, where the run read the stream in one piece.
        """
        assert self.record.contexts is not None
        scans = (self.record.contexts.train, self.record.contexts.validation)
        needed = [scan.tokens if scan.method == "loop" else 2 * scan.burn_in for scan in scans]
        return max(LEAST_WARM_UP, *needed)

    @cached_property
    def validation(self) -> Block:
        """All of the validation text."""
        return whole_stream(self.model, self.ids("validation"), self.warm_up)

    @cached_property
    def validation_losses(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Of every scored token, and whether it was the likeliest."""
        return block_losses(self.model, self.validation)

    @cached_property
    def training(self) -> list[Block]:
        """Parts of the training text, spread over all of it."""
        return spread_blocks(self.model, self.ids("train"), self.warm_up)
