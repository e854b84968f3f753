"""Phase 1 of recipe `adapted`: there is none, as all but the TokenBlock is that of a trained model.

The ContextBlock was trained on other text and is frozen. So the contexts of new text are one scan away, and
phase 2 alone adapts a model to it. It may start from the model's own token layers. The output bias says how
often tokens occur: in the new text, and by a tenth as the trained model has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.errors import DataError, MisfitError
from tandem.objectives.base import NewTokenBlock, Objective, Phase1Inputs
from tandem.records import Phase1Record
from tandem.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from tandem.model import TandemConfig, TandemForCausalLM

SIZES = ("cell", "embed_dim", "context_dim", "token_projection", "output_bias", "boundary")
"""Settings of the section `model` that must be those of the trained model."""
OLD_SHARE = 0.1
"""Weight of the trained model's frequencies: a little text lacks most tokens (LOG.md)."""


class AdaptationRecord(Phase1Record):
    """Which model was taken. What it says of the new text before phase 2 is epoch 0 of that."""

    model: str
    token_layers: int
    """Of the trained model."""


class Adaptation(Objective):
    """Takes ContextBlock and embedding from a model folder."""

    section = "adaptation"
    record_type = AdaptationRecord
    parts = ()

    def start(self, model: TandemForCausalLM, settings: Settings) -> None:
        """ContextBlock, embedding and a share of the output bias. Raises DataError for another vocabulary."""
        trained = self._trained(settings)
        if (theirs := trained.config.vocab_size) != model.config.vocab_size:
            raise DataError(
                f"the tokenizer has {model.config.vocab_size} entries, and the model in "
                f"{settings.adaptation.model} was trained with {theirs}; use the tokenizer in that folder"
            )
        ours = model.named_weights()
        for name, weight in trained.named_weights().items():
            if not name.startswith(("token_block.", "lm_head.")):
                ours[name].detach().copy_(weight)
        if (bias := model.lm_head.bias) is not None:
            old = trained.lm_head.bias.detach().log_softmax(0) + math.log(OLD_SHARE)
            bias.detach().copy_((bias.detach() + math.log(1 - OLD_SHARE)).logaddexp(old))

    def new_heads(self, settings: Settings, new_token_block: NewTokenBlock) -> nn.ModuleDict:
        """The model's own TokenBlock, alone."""
        from torch import nn

        trained = self._trained(settings).token_block
        block = new_token_block(len(trained.layers))
        block.load_state_dict(trained.state_dict())
        return nn.ModuleDict({"trained": block})

    def train(self, inputs: Phase1Inputs) -> AdaptationRecord:
        """Nothing; the record says what was taken."""
        from torch import nn

        from tandem.training.trainable import training_only

        children = dict(inputs.model.model.named_children())
        with training_only(nn.ModuleDict({**children, **inputs.heads})) as trainable:
            pass
        return AdaptationRecord(
            parts=trainable.parts,
            tokens=0,
            seconds_s=0.0,
            model=inputs.settings.adaptation.model,
            token_layers=self._config(inputs.settings).depths[1],
        )

    def misfits(self, settings: Settings, tokens: int) -> Iterator[MisfitError]:
        """Other sizes than the trained model has. Raises DataError where there is none that can be used."""
        config, folder = self._config(settings), settings.adaptation.model
        if config.int8:
            raise DataError(f"{folder} holds 8-bit weights; give the model that it was made from")
        if not config.tie_word_embeddings:
            raise DataError(
                f"the head of the model in {folder} is not its embedding; train one whose head is"
            )
        for name in SIZES:
            ours, theirs = getattr(settings.model, name), getattr(config, name)
            if ours != theirs:
                yield MisfitError.of(
                    f"setting model.{name} = {ours} is not possible: the model in {folder} has {theirs}",
                    {f"model.{name}": theirs},
                )
        if other := {c.context_layers for c in settings.grid} - {config.context_layers}:
            yield MisfitError.of(
                f"{min(other)} context layers are not possible: the model in {folder} has "
                f"{config.context_layers}",
                {},
                "choose configurations with as many",
            )

    def summary(self, record: AdaptationRecord) -> str:
        """What was taken."""
        return f"taken from {record.model}"

    def audit(self, record: AdaptationRecord, settings: Settings, tokens: int) -> Iterator[str]:
        """The model, and that nothing was trained."""
        if record.model != settings.adaptation.model:
            yield f"it took {record.model} instead of {settings.adaptation.model}"
        if trained := [part.part for part in record.parts if part.trained or part.before != part.after]:
            yield f"it changed {trained[0]}"

    def _folder(self, settings: Settings) -> Path:
        from tandem.text.places import user_path

        if not settings.adaptation.model:
            raise DataError(
                f"recipe {settings.recipe} needs a trained model; set adaptation.model to its folder, or use "
                "`tandem adapt`"
            )
        return user_path(settings.adaptation.model)

    def _config(self, settings: Settings) -> TandemConfig:
        from tandem.model_folder.checking import read_single_config

        folder = self._folder(settings)
        try:
            return read_single_config(folder)
        except OSError as error:
            raise DataError(f"there is no model in {folder} ({error.strerror or error})") from None

    def _trained(self, settings: Settings) -> TandemForCausalLM:
        folder = self._folder(settings)
        files = (path.stat() for path in sorted(folder.glob("*.safetensors")))
        return _loaded(folder, tuple((file.st_size, file.st_mtime_ns) for file in files))


@lru_cache(1)
def _loaded(folder: Path, _files: tuple[tuple[int, int], ...]) -> TandemForCausalLM:
    """The model in a folder whose weights have these sizes and times; a training asks four times."""
    from tandem.model_folder.loading import load_model

    return load_model(folder)[0].members[0]
