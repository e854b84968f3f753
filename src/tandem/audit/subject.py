"""What is audited: one saved run with all it came from, and what the audit computes of it, once."""

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from tandem.audit.reference import Block, block_losses, context_blocks, contexts_at
from tandem.contexts import ContextsSample, Tokens
from tandem.experiment.artefacts import load_head, load_model, load_sample
from tandem.experiment.pipeline import Prepared, head_for, load_heads, new_heads, new_model
from tandem.model import TandemForCausalLM, TokenBlock
from tandem.records import RunRecord
from tandem.settings import Configuration
from tandem.training.initialization import start_from_head
from tandem.training.prediction import head_name
from tandem.training.trainable import model_parts, part_fingerprints, part_samples

LEAST_WARM_UP = 256
LENGTH, TRAINING_BLOCKS = 256, 32
"""Tokens of a block, and how many blocks of training text are scored again."""
SAME_WEIGHT = 1e-4
"""Weights drawn from one seed on two processors differ by less (1e-6); a part that was trained by more."""
TOKENS, NUDGE = 512, 1e-7
INEXACT = "the ContextBlock amplifies rounding errors, so nothing that it gives can be recomputed"


class Contexts:
    """Contexts that were computed for the last ContextBlock: runs that differ in token depth share them."""

    def __init__(self) -> None:
        self._of: tuple[str, ...] = ()
        self._made: dict[Hashable, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, subject: "Subject") -> dict[Hashable, tuple[torch.Tensor, torch.Tensor]]:
        """What there is for the ContextBlock and embedding of this run; others are let go of."""
        weights = tuple(
            print_ for part, print_ in subject.parts.items() if not part.startswith("token_block")
        )
        if weights != self._of:
            self._of, self._made = weights, {}
        return self._made


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
    tokenizer: PreTrainedTokenizerFast
    sample: ContextsSample | None
    contexts: Contexts

    @classmethod
    def load(
        cls,
        prepared: Prepared,
        record: RunRecord,
        siblings: tuple[RunRecord, ...],
        folder: Path,
        contexts: Contexts,
    ) -> "Subject":
        """From a model folder. Raises RunDirError if the model cannot be read."""
        model, tokenizer = load_model(folder)
        model.to(prepared.device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
        return cls(prepared, record, siblings, folder, model, tokenizer, load_sample(folder), contexts)

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

    def ids(self, split: str) -> Tokens:
        """Tokens of a split, [T], on the model's device; int64 what is read of them."""
        stream = self.prepared.corpus.train if split == "train" else self.prepared.corpus.validation
        return Tokens(stream.ids, self.model.device)

    @cached_property
    def phase1_head(self) -> TokenBlock | None:
        """The token layers of phase 1 that phase 2 started from; none where the folder does not hold them."""
        kept, context_layers = load_head(self.folder), self.configuration.context_layers
        heads = new_heads(self.prepared, context_layers, self.seed)
        if kept is None or not heads:
            return None
        head = head_for(heads, self.configuration.token_layers)
        try:
            load_heads([head], kept)
        except RuntimeError:
            return None
        return head

    @cached_property
    def phase1_samples(self) -> dict[str, tuple[float, ...]]:
        """Some weights of each part that phase 1 began with, its own token layers included."""
        context_layers = self.configuration.context_layers
        heads = new_heads(self.prepared, context_layers, self.seed)
        model = new_model(self.prepared, Configuration(context_layers), self.seed)
        return part_samples(model) | part_samples(nn.ModuleDict({head_name(head): head for head in heads}))

    @cached_property
    def initial(self) -> TandemForCausalLM:
        """The model as it was before any training; its TokenBlock as phase 2 found it."""
        model = new_model(self.prepared, self.configuration, self.seed)
        starts = self.prepared.settings.phase2.start == "phase1" and self.record.kind == "tandem"
        if starts and self.phase1_head is not None:
            start_from_head(model.token_block, self.phase1_head)
        return model

    @cached_property
    def initial_samples(self) -> dict[str, tuple[float, ...]]:
        """Some weights of each of its parts."""
        return part_samples(self.initial)

    def unmoved(self, part: str, tolerance: float = SAME_WEIGHT) -> bool:
        """Whether a part of the saved model has the weights it was before any training."""
        ours, theirs = (dict(model_parts(model))[part].state_dict() for model in (self.model, self.initial))
        return all(bool((tensor - theirs[name]).abs().max() <= tolerance) for name, tensor in ours.items())

    @cached_property
    @torch.no_grad()
    def exact(self) -> bool:
        """Whether contexts can be recomputed: not where the block amplifies the last digits of its input."""
        ids = self.ids("validation")[:TOKENS]
        block = copy.deepcopy(self.model.context_block).double()
        embeds = self.model.embed(ids).double()
        context = torch.zeros(2, block.context_dim, dtype=torch.float64, device=ids.device)
        context[1] += NUDGE
        for embed in embeds:
            context = block(context, embed.expand(2, -1))
        return bool((context[0] - context[1]).abs().max() <= 100 * NUDGE)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Fingerprints of the parts of the saved model."""
        return part_fingerprints(self.model)

    @cached_property
    def warm_up(self) -> int:
        """Tokens read before a block, so that what came earlier no longer matters.

        What the run's own scan needed; everything, where the run read the stream in one piece.
        """
        assert self.record.contexts is not None
        scans = (self.record.contexts.train, self.record.contexts.validation)
        needed = [scan.tokens if scan.method == "loop" else scan.burn_in for scan in scans]
        return max(LEAST_WARM_UP, *needed)

    def blocks(self, split: str, starts: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Contexts before and after the tokens of blocks of a split, as `context_blocks` gives them.

        Single contexts, which are compared as numbers, are read from twice as far back as blocks, whose
        losses are averaged: the run's own burn-in was enough at the places where it was measured.
        """
        made = self.contexts.of(self)
        warm_up = self.warm_up * (2 if length == 1 else 1)
        key = (split, length, tuple(starts.tolist()), warm_up)
        if key not in made:
            ids = self.ids(split)
            if length == 1 and 2 * len(ids) < len(starts) * warm_up:  # then reading everything takes less
                both = contexts_at(self.model, ids, starts.to(ids.device), warm_up)
                made[key] = (both[0][:, None], both[1][:, None])
            else:
                made[key] = context_blocks(self.model, ids, starts.to(ids.device), length, warm_up)
        return made[key]

    def whole(self, split: str) -> Block:
        """All of a split as one block, read in parts that are no shorter than what is read before each."""
        ids = self.ids(split)
        length = min(max(LENGTH, self.warm_up), len(ids))
        parts = self.blocks(split, torch.arange(0, len(ids), length), length)
        previous, current = (part.flatten(0, 1)[: len(ids) - 1] for part in parts)
        return Block(ids, previous, current)

    @cached_property
    def validation(self) -> Block:
        """All of the validation text."""
        return self.whole("validation")

    @cached_property
    def validation_losses(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Of every scored token, and whether it was the likeliest."""
        return block_losses(self.model, self.validation)

    @cached_property
    def training(self) -> list[Block]:
        """Parts of the training text, spread over all of it; all of it where that is no more."""
        ids = self.ids("train")
        if len(ids) <= TRAINING_BLOCKS * LENGTH:
            return [self.whole("train")]
        spaced = torch.linspace(0, len(ids) - 1 - LENGTH, TRAINING_BLOCKS, dtype=torch.float64).long()
        previous, current = self.blocks("train", spaced, LENGTH)
        return [
            Block(ids[start : start + LENGTH + 1], previous[number], current[number])
            for number, start in enumerate(spaced.tolist())
        ]
