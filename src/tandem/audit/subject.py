"""What is audited: one saved run with all it came from, and what the audit computes of it, once."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from tandem.audit.inputs import AuditInputs
from tandem.audit.parts import Start, part_prints, part_starts, parts_of
from tandem.audit.plain import batches
from tandem.audit.reference import Block, Joined, block_losses, contexts_at
from tandem.audit.start import initial_model, started_from
from tandem.audit.steps import KeptStep, read_steps
from tandem.checksums import read_checksums
from tandem.contexts import ContextsSample, Tokens
from tandem.experiment.artefacts import load_head, load_sample
from tandem.experiment.machine import environment
from tandem.model import TandemForCausalLM, TokenBlock
from tandem.model_folder.loading import load_model
from tandem.objectives import OBJECTIVES, Objective
from tandem.records import Check, RunRecord
from tandem.settings import Configuration, Settings

LEAST_WARM_UP = 256
LENGTH, TRAINING_BLOCKS = 256, 32
"""Tokens of a block, and how many blocks of training text are scored again."""
SAME_WEIGHT = 1e-4
"""Weights drawn from one seed on two processors differ by less (1e-6); a part that was trained by more."""
HEADS: dict[str, Callable[[Settings], tuple[int, ...]]] = {
    "original": lambda _: (),
    "predictive": lambda settings: settings.prediction.head_layers,
}
"""Depths of the token layers that phase 1 trains beside the model, by recipe; others' objectives tell."""
TOKENS, NUDGE, FADES = 512, 1e-7, 1e-3
INEXACT = "the ContextBlock amplifies rounding errors, so nothing that it gives can be recomputed"

Losses = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]
"""Of every scored token, and whether it was the likeliest."""


class ComputedContexts:
    """Contexts that were computed for the last ContextBlock: runs that differ in token depth share them."""

    def __init__(self) -> None:
        self._of: tuple[str, ...] = ()
        self._made: dict[str, torch.Tensor] = {}
        self._checks: dict[tuple[str, ...], tuple[Check, ...]] = {}
        self._losses: dict[tuple[str, ...], Losses] = {}

    def of(self, subject: "Subject") -> dict[str, torch.Tensor]:
        """What there is for the ContextBlock and embedding of this run; others are let go of."""
        weights = tuple(
            print_ for part, print_ in subject.parts.items() if not part.startswith("token_block")
        )
        if weights != self._of:
            self._of, self._made, self._checks, self._losses = weights, {}, {}, {}
        return self._made

    def checks(
        self, subject: "Subject", name: str, make: Callable[["Subject"], Iterable[Check]]
    ) -> tuple[Check, ...]:
        """Checks of phase 1 and of contexts alone, made once for runs whose records of these are the same."""
        self.of(subject)
        records = (subject.record.phase1, subject.record.contexts)
        key = (name, *(record.model_dump_json() for record in records if record is not None))
        if key not in self._checks:
            self._checks[key] = tuple(make(subject))
        return self._checks[key]

    def losses(self, subject: "Subject", token_block: TokenBlock, compute: Callable[[], Losses]) -> Losses:
        """Of the validation text through these token layers, computed once."""
        self.of(subject)
        key = tuple(part_prints(nn.ModuleDict({"token_block": token_block})).values())
        if key not in self._losses:
            self._losses[key] = compute()
        return self._losses[key]


@dataclass(frozen=True)
class Subject:
    """A finished run of a Tandem model.

    prepared    text, tokens and embeddings made again from the settings.
    record      what the run wrote down; its results are there.
    siblings    records of all runs of the experiment, this one included.
    sample      of the contexts that the run read; none if it kept none.
    quick       whether checks leave out what takes long.
    """

    prepared: AuditInputs
    record: RunRecord
    siblings: tuple[RunRecord, ...]
    folder: Path
    model: TandemForCausalLM
    tokenizer: PreTrainedTokenizerFast
    sample: ContextsSample | None
    contexts: ComputedContexts
    quick: bool

    @classmethod
    def load(
        cls,
        prepared: AuditInputs,
        record: RunRecord,
        siblings: tuple[RunRecord, ...],
        folder: Path,
        contexts: ComputedContexts,
        quick: bool = False,
    ) -> "Subject":
        """From a model folder. Raises RunDirError if the model cannot be read."""
        loaded, tokenizer = load_model(folder)
        model = loaded.members[0]
        model.to(prepared.device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
        sample = load_sample(folder)
        return cls(prepared, record, siblings, folder, model, tokenizer, sample, contexts, quick)

    @property
    def saved_again(self) -> str | None:
        """How a later program changed the model when it saved it again: nothing recomputes then; or none."""
        rows, entries = self.model.config.vocab_size, self.prepared.corpus.vocab_size
        if rows > entries:
            return f"its embedding has {rows} rows, and {entries} when it was trained"
        for dtype in (torch.bfloat16, torch.float16):
            if all(torch.equal(weight, weight.to(dtype).float()) for weight in self.model.parameters()):
                return f"its weights were rounded to {str(dtype).removeprefix('torch.')} after its training"
        return None

    @property
    def configuration(self) -> Configuration:
        """The depths that the record names."""
        assert self.record.context_layers is not None
        assert self.record.token_layers is not None
        return Configuration(self.record.context_layers, self.record.token_layers)

    @property
    def depths(self) -> tuple[int, int]:
        """As numbers."""
        return self.configuration.context_layers, self.configuration.token_layers

    @property
    def seed(self) -> int:
        """The seed that the record names."""
        assert self.record.seed is not None
        return self.record.seed

    def ids(self, split: str) -> Tokens:
        """Tokens of a split, [T], on the model's device; int64 what is read of them."""
        stream = self.prepared.corpus.train if split == "train" else self.prepared.corpus.validation
        return Tokens(stream.ids, self.model.device)

    @property
    def objective(self) -> Objective:
        """Of its phase 1."""
        return OBJECTIVES[self.prepared.settings.recipe]

    @cached_property
    def phase1_steps(self) -> list[KeptStep]:
        """Those of phase 1. Raises ValueError where they cannot be read."""
        return read_steps(self.phase1_snapshots)

    @property
    def phase1_snapshots(self) -> Path:
        """Where those of phase 1 are: in the model folder, else in the run directory."""
        own = self.folder / "phase1_snapshots.safetensors"
        variant = "" if self.record.variant is None else f"{self.record.variant}-"
        name = f"{variant}C{self.record.context_layers}-seed{self.seed}-snapshots.safetensors"
        here = own.is_file() or own.name in read_checksums(self.folder)
        return own if here else self.folder.parent.parent / "phase1" / name

    @property
    def rounding(self) -> float:
        """Of the training contexts, by their storage."""
        return 0.0 if self.record.contexts is None else self.record.contexts.train.rounding

    @cached_property
    def token_counts(self) -> torch.Tensor:
        """How often each token occurs in the training text, [V] int64."""
        ids = np.asarray(self.prepared.corpus.train.ids).astype(np.int64)
        return torch.from_numpy(np.bincount(ids, minlength=self.model.config.vocab_size))

    def drawn(self, token_layers: int) -> TandemForCausalLM:
        """The untrained model of the seed, with so many token layers."""
        depths = (self.configuration.context_layers, token_layers)
        table, ids = self.prepared.table(self.seed)[0], self.prepared.corpus.train.ids
        model = initial_model(self.model.config, table, ids, depths, self.seed)
        self.objective.start(model, self.prepared.settings)
        return model.to(self.model.device)  # type: ignore[arg-type]  # as above

    @cached_property
    def phase1_start(self) -> TandemForCausalLM:
        """The model as phase 1 finds it."""
        return self.drawn(1)

    @cached_property
    def heads(self) -> nn.ModuleDict:
        """The modules that phase 1 trains beside the model, as the seed draws them."""
        settings = self.prepared.settings
        if settings.recipe not in HEADS:
            return self.objective.new_heads(settings, lambda depth: self.drawn(depth).token_block)
        depths = sorted(set(HEADS[settings.recipe](settings)))
        return nn.ModuleDict({f"head{depth}": self.drawn(depth).token_block for depth in depths})

    @cached_property
    def phase1_head(self) -> nn.ModuleDict | None:
        """The head of phase 1 that phase 2 started from, by name; none where the folder does not hold it."""
        saved = load_head(self.folder)
        if saved is None or not self.heads:
            return None
        name = self.objective.head_for(self.heads, self.configuration.token_layers)
        head = nn.ModuleDict({name: copy.deepcopy(self.heads[name])})
        try:
            head.load_state_dict(saved)
        except RuntimeError:
            return None
        return head

    @cached_property
    def phase1_parts(self) -> dict[str, Start]:
        """Each part that phase 1 began with, its heads included."""
        return part_starts(self.phase1_start) | part_starts(self.heads)

    @cached_property
    def drawn_alike(self) -> bool:
        """Whether random numbers are the same here as where the run was made, to the last digit."""
        there, here = self.record.environment, environment(self.model.device)
        machines = {one.platform.split()[-1] for one in (there, here)}
        return len(machines) == 1 and (there.torch, there.cpu_capability) == (here.torch, here.cpu_capability)

    @cached_property
    def initial(self) -> TandemForCausalLM:
        """The model as it was before any training; its TokenBlock as phase 2 found it."""
        model = self.drawn(self.configuration.token_layers)
        starts = self.prepared.settings.phase2.start == "phase1" and self.record.kind == "tandem"
        if starts and self.phase1_head is not None:
            (head,) = self.phase1_head.values()
            assert isinstance(head, TokenBlock)
            started_from(model.token_block, head)
        return model

    @cached_property
    def initial_start(self) -> dict[str, Start]:
        """Each of its parts."""
        return part_starts(self.initial)

    def unmoved(self, part: str, tolerance: float = SAME_WEIGHT) -> bool:
        """Whether a part of the saved model has the weights it was before any training."""
        ours, theirs = (dict(parts_of(model))[part].state_dict() for model in (self.model, self.initial))
        return all(bool((tensor - theirs[name]).abs().max() <= tolerance) for name, tensor in ours.items())

    @property
    def exact(self) -> bool:
        """Whether contexts can be recomputed: not where the block amplifies the last digits of its input."""
        return self.amplification <= 100

    @property
    def amplification(self) -> float:
        """How many times larger a small change of a context is some tokens later; infinite if NaN."""
        computed = self.contexts.of(self)
        if "amplification" not in computed:
            computed["amplification"] = self._amplification()
        return float(computed["amplification"])

    @torch.no_grad()
    def _amplification(self) -> torch.Tensor:
        ids = self.ids("validation")[:TOKENS]
        block = copy.deepcopy(self.model.context_block).double()
        embeds = self.model.embed(ids).double()
        context = torch.zeros(2, block.context_dim, dtype=torch.float64, device=ids.device)
        context[1] += NUDGE
        step = block.loop_step()
        for embed in embeds[:, None].expand(-1, 2, -1).unbind():
            context = step(context, embed)
        return ((context[0] - context[1]).abs().max() / NUDGE).nan_to_num(math.inf)

    @property
    def dtype(self) -> torch.dtype:
        """In which contexts are recomputed: double precision unless the block lets rounding errors fade."""
        fades = self.amplification <= FADES or self.model.device.type == "mps"
        return torch.float32 if fades else torch.float64

    @cached_property
    def parts(self) -> dict[str, str]:
        """Fingerprints of the parts of the saved model."""
        return part_prints(self.model)

    @cached_property
    def warm_up(self) -> int:
        """Tokens read before a block, so that what came earlier no longer matters.

        What the run's own scan needed; everything, where the run read the stream in one piece.
        """
        assert self.record.contexts is not None
        scans = (self.record.contexts.train, self.record.contexts.validation)
        needed = [scan.tokens if scan.method == "loop" else scan.burn_in for scan in scans]
        return max(LEAST_WARM_UP, *needed)

    @property
    def phase2_snapshots(self) -> Path:
        """Where the kept steps of phase 2 are."""
        return self.folder / "snapshots.safetensors"

    @cached_property
    def phase2_steps(self) -> list[KeptStep]:
        """Those of phase 2. Raises ValueError where they cannot be read."""
        return read_steps(self.phase2_snapshots)

    @cached_property
    def phase2_batches(self) -> dict[tuple[int, int], torch.Tensor]:
        """Positions [n] of these, as settings and seed draw them, by epoch and step."""
        places = {(step.epoch, step.step) for step in self.phase2_steps}
        count, epochs = len(self.ids("train")) - 1, max((epoch for epoch, _ in places), default=0)
        drawn = batches(self.prepared.settings.phase2, self.seed, count, epochs)
        return {place: positions for place, positions in drawn if place in places}

    def rank_positions(self, split: str) -> torch.Tensor:
        """Positions [n] of a split whose contexts the effective rank is of: evenly spaced ones."""
        count, most = len(self.ids(split)), self.prepared.settings.contexts.rank_positions
        return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).long()

    @cached_property
    def _looked_at(self) -> torch.Tensor:
        """Positions, ascending, whose contexts any check looks at; those of validation follow on training."""
        length = len(self.ids("train"))
        sampled = torch.empty(0, dtype=torch.int64) if self.sample is None else self.sample.train_at
        ranked = () if self.quick else (self.rank_positions("train"),)
        train = torch.cat(
            (
                *(sampled, *ranked, self.beginning),
                *self.phase2_batches.values(),
                *self._scored_training,
            )
        ).unique()
        return torch.cat((train[train < length], length + torch.arange(len(self.ids("validation")))))

    def contexts_at(self, split: str, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Contexts before and after the tokens at positions [n] of a split, both [n, C].

        They are among those of the sample, of the kept batches, and of the text that is scored. Read from
        twice as far back as the run's own burn-in, which was enough at the places where it was measured.
        """
        computed = self.contexts.of(self)
        # Both splits are one stream here, that of training first.
        count, nothing = len(self.ids("train")), torch.empty(0, dtype=torch.int64)
        there, wanted = computed.get("positions", nothing), self._looked_at
        missing = wanted[~torch.isin(wanted, there)]
        if len(missing):
            ids = Joined(self.ids("train"), self.ids("validation"))
            with torch.autocast(self.model.device.type, enabled=False):  # also for a step in half precision
                found = contexts_at(self.model, ids, missing, 2 * self.warm_up, self.dtype)
            there, order = torch.cat((there, missing)).sort()
            computed["positions"], order = there, order.to(self.model.device)
            for name, new in zip(("previous", "current"), found, strict=True):
                computed[name] = torch.cat((computed.get(name, new[:0]), new))[order]
        positions = positions.cpu() + (0 if split == "train" else count)
        place = torch.searchsorted(there, positions).to(self.model.device)
        return computed["previous"][place], computed["current"][place]

    def _block(self, split: str, positions: torch.Tensor) -> Block:
        """The tokens at consecutive positions, which are read, and the one after them."""
        return Block(
            self.ids(split)[int(positions[0]) : int(positions[-1]) + 2], *self.contexts_at(split, positions)
        )

    @cached_property
    def validation(self) -> Block:
        """All of the validation text."""
        return self._block("validation", torch.arange(len(self.ids("validation")) - 1))

    @cached_property
    def validation_losses(self) -> Losses:
        """Of the validation text."""
        return self.losses_of(self.model.token_block)

    def losses_of(self, token_block: TokenBlock) -> Losses:
        """The same with other token layers. Runs that share contexts often share these, too."""
        return self.contexts.losses(
            self, token_block, lambda: block_losses(self.model, self.validation, token_block=token_block)
        )

    @property
    def beginning(self) -> torch.Tensor:
        """Positions of the training text by which a start that counts as an epoch is scored: as many as are
        validated on. None where no start counts."""
        counts = self.record.phase2 is not None and self.record.phase2.history[0].epoch == 0
        return torch.arange(min(len(self.ids("train")), len(self.ids("validation"))) - 1 if counts else 0)

    @cached_property
    def starting_nll(self) -> float:
        """Training NLL of that start on its positions."""
        losses, _ = block_losses(
            self.model, self._block("train", self.beginning), token_block=self.initial.token_block
        )
        return float(losses.mean(dtype=np.float64))

    @cached_property
    def _scored_training(self) -> list[torch.Tensor]:
        """Positions of parts of the training text, spread over all of it; all of it where it is no more."""
        length = len(self.ids("train"))
        if length <= TRAINING_BLOCKS * LENGTH:
            return [torch.arange(length - 1)]
        spaced = torch.linspace(0, length - 1 - LENGTH, TRAINING_BLOCKS, dtype=torch.float64).long()
        return [torch.arange(start, start + LENGTH) for start in spaced.tolist()]

    @cached_property
    def training(self) -> list[Block]:
        """These parts of the training text."""
        return [self._block("train", positions) for positions in self._scored_training]
