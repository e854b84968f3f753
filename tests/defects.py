"""Mistakes to plant into otherwise correct runs: each is one that somebody makes, or has made.

`plant(name, patch)` puts one in place through pytest's MonkeyPatch (or anything with its `setattr`), for as
long as that lasts. The audit must name every one (tests/test_audit.py); three of them are those of the
original experiment, whose effect bench/conclusions.py measures.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from conftest import seal_again
from tokenizers import Tokenizer
from torch import Tensor

from tandem.contexts import Contexts, previous_contexts
from tandem.contexts.stream import Stream
from tandem.cross_entropy import SampledSoftmax, token_nll
from tandem.experiment import contexts as both_splits
from tandem.experiment import one_run, pipeline, prepared, runner
from tandem.metrics import Score, perplexity
from tandem.model import TokenBlock, sequential_contexts
from tandem.model.cell_gated import GatedContextBlock
from tandem.model.cell_residual import ResidualContextBlock
from tandem.objectives import OBJECTIVES, Phase1Inputs, predictive
from tandem.text import files, hub, listing, python_docs, rows, sources, splits
from tandem.tokens import encoding, prepare, shards
from tandem.training import dropout, optimizer, phase2, split_tokens
from tandem.training.initialization import generator_for
from tandem.training.monitor import TrainingMonitor
from tandem.training.snapshots import Snapshots


class Patch(Protocol):
    """What plants: pytest's MonkeyPatch."""

    def setattr(self, target: object, name: str, value: object) -> None:
        """Replace an attribute for a while."""


Defect = Callable[[Patch], None]


def _contexts(patch: Patch, split: str, change: Callable[[Any, Stream, Tensor], Tensor]) -> None:
    """Change the contexts of one split, as they are computed: training first, then validation."""
    real, calls = both_splits.compute_contexts, [0]

    def changed(model: Any, stream: Stream, *rest: Any) -> Any:
        contexts, record = real(model, stream, *rest)
        calls[0] += 1
        if split == ("train", "validation")[(calls[0] - 1) % 2]:
            contexts = Contexts.of(change(model, stream, contexts.whole()))
        return contexts, record

    patch.setattr(both_splits, "compute_contexts", changed)


def zero_validation_contexts(patch: Patch) -> None:
    """The original experiment's C1T2: a validation cache that was never written."""
    _contexts(patch, "validation", lambda _model, _stream, contexts: torch.zeros_like(contexts))


def zero_training_contexts(patch: Patch) -> None:
    """The same for training."""
    _contexts(patch, "train", lambda _model, _stream, contexts: torch.zeros_like(contexts))


def late_validation_contexts(patch: Patch) -> None:
    """Contexts off by one: those of the token before."""
    _contexts(patch, "validation", lambda _model, _stream, contexts: contexts.roll(1, 0))


def early_training_contexts(patch: Patch) -> None:
    """Contexts off by one the other way: those of the token that is to be predicted."""
    _contexts(patch, "train", lambda _model, _stream, contexts: contexts.roll(-1, 0))


def noise_at_evaluation(patch: Patch) -> None:
    """Phase 1's noise left on."""
    _contexts(
        patch,
        "validation",
        lambda _model, _stream, contexts: (
            contexts + 0.1 * torch.randn(contexts.shape, generator=generator_for(0, "defect"))
        ),
    )


def noisy_sweep_for_training(patch: Patch) -> None:
    """The original experiment: training contexts are one noisy Jacobi sweep, validation is sequential."""

    @torch.no_grad()
    def swept(model: Any, stream: Stream, contexts: Tensor) -> Tensor:
        draws = generator_for(0, "defect")
        parts = []
        for at in torch.arange(len(contexts)).split(4096):
            read = previous_contexts(contexts, at, stream.resets)
            read = read + 0.1 * torch.randn(read.shape, generator=draws)
            parts.append(model.context_block(read, model.embed(stream.ids[at])))
        return torch.cat(parts)

    _contexts(patch, "train", swept)


def stale_contexts(patch: Patch) -> None:
    """Contexts of the ContextBlock as it was before phase 1, from a cache nobody refreshed."""
    real = pipeline.contexts_of

    def stale(of: Any, model: Any, train: Any, validation: Any) -> Any:
        trained = {k: v.clone() for k, v in model.context_block.state_dict().items()}
        depth = len(model.context_block.layers)
        prepared.initialize_block(model.context_block, model, generator_for(0, "context_block", depth))
        made = real(of, model, train, validation)
        model.context_block.load_state_dict(trained)
        return made

    patch.setattr(pipeline, "contexts_of", stale)


def no_burn_in(patch: Patch) -> None:
    """Segments that start from zero, with nothing read before them."""

    def cut(model: Any, stream: Stream, _contexts: Tensor) -> Tensor:
        pieces = stream.ids[:].split(64)
        blocks = [sequential_contexts(model.context_block, model.embed(p)[None]) for p in pieces]
        return torch.cat([current[0] for _, current in blocks])

    _contexts(patch, "validation", torch.no_grad()(cut))


def previous_context_for_a_single_layer(patch: Patch) -> None:
    """The original experiment's C2T1: the only token layer reads the context before the token."""

    def forward(
        self: Any, previous: Tensor, current: Tensor, token_embeds: Tensor, drop: Any = None
    ) -> Tensor:
        contexts = {"previous": previous, "current": current, None: None}
        x = token_embeds
        for layer, reads in zip(self.layers, self.reads, strict=True):
            x = layer(contexts["previous" if len(self.layers) == 1 else reads], x, drop)
        return x

    patch.setattr(TokenBlock, "forward", forward)


def look_ahead(patch: Patch) -> None:
    """The context of the next token is read in place of the current one."""
    for block in (ResidualContextBlock, GatedContextBlock):
        real = block.unroll

        def ahead(*args: Any, _real: Any = real, **kwargs: Any) -> tuple[Tensor, Tensor]:
            previous, current = _real(*args, **kwargs)
            return previous, torch.cat((current[:, 1:], current[:, -1:]), dim=1)

        patch.setattr(block, "unroll", ahead)


def frozen_part_moves(patch: Patch) -> None:
    """The ContextBlock drifts while the TokenBlock is trained."""
    real = phase2._forward

    def drifting(model: Any, *args: Any) -> Tensor:
        with torch.no_grad():
            next(model.context_block.parameters()).mul_(1.0001)
        return real(model, *args)

    patch.setattr(phase2, "_forward", drifting)


def head_trained_by_accident(patch: Patch) -> None:
    """The embedding, and with it the head, is handed to the optimizer."""
    real = pipeline.train_token_block

    def with_head(model: Any, train: Any, validation: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["refresh"] = lambda: (train, validation)
        return real(model, train, validation, *args, **kwargs)

    patch.setattr(pipeline, "train_token_block", with_head)


def parameters_left_out(patch: Patch) -> None:
    """The optimizer is given the second one of two token layers only."""
    real = phase2.adamw

    def fewer(parameters: Any, weight_decay: float, lr: float) -> Any:
        left = list(parameters)
        return real(left[len(left) // 2 :], weight_decay, lr)

    patch.setattr(phase2, "adamw", fewer)


def phase1_of_another_seed(patch: Patch) -> None:
    """Every seed takes up the phase 1 of seed 0."""
    path, inputs = runner.phase1_path, one_run.phase1_fingerprint
    patch.setattr(
        runner, "phase1_path", lambda run_dir, variant, layers, _seed: path(run_dir, variant, layers, 0)
    )
    patch.setattr(one_run, "phase1_fingerprint", lambda prepared, layers, _seed: inputs(prepared, layers, 0))


def wrong_tokenizer_at_evaluation(patch: Patch) -> None:
    """Validation is encoded with another vocabulary of the same size."""
    real, calls = shards.Encoder, [0]

    def other(tokenizer: Any, *rest: Any) -> Any:
        calls[0] += 1
        if calls[0] % 2 == 0:
            rules = json.loads(tokenizer.to_str())
            vocabulary = rules["model"]["vocab"]
            last = len(vocabulary) - 1
            # All but the end-of-text token change places.
            rules["model"]["vocab"] = {token: n and last + 1 - n for token, n in vocabulary.items()}
            tokenizer = Tokenizer.from_str(json.dumps(rules))
        return real(tokenizer, *rest)

    patch.setattr(shards, "Encoder", other)


def last_batch_dropped(patch: Patch) -> None:
    """The last partial batch does not count."""
    real = phase2.score_stream

    def dropped(model: Any, stream: Any, contexts: Any, chunk: int, **how: Any) -> Score:
        score = real(model, stream, contexts, chunk, **how)
        kept = len(score.losses) // chunk * chunk
        return Score.of(score.losses[:kept], round(score.accuracy * kept))

    patch.setattr(phase2, "score_stream", dropped)


def averaged_over_batches(patch: Patch) -> None:
    """PPL is exp of the mean of batch means, not of the mean over tokens."""
    real = one_run.validation_record

    def averaged(score: Score, tokens: Any) -> Any:
        batches = np.split(score.losses, range(256, len(score.losses), 256))
        nll = float(np.mean([batch.mean() for batch in batches]))
        return real(replace(score, nll_nats=nll), tokens)

    patch.setattr(one_run, "validation_record", averaged)


def mean_of_perplexities(patch: Patch) -> None:
    """PPL is the mean of the PPL of batches."""
    real = one_run.validation_record

    def averaged(score: Score, tokens: Any) -> Any:
        batches = np.split(score.losses, range(256, len(score.losses), 256))
        mean = float(np.mean([perplexity(float(batch.mean())) for batch in batches]))
        return real(score, tokens).model_copy(update={"perplexity": mean})

    patch.setattr(one_run, "validation_record", averaged)


def scored_token_is_the_current_one(patch: Patch) -> None:
    """Targets off by one at evaluation: what is scored has just been read."""

    @torch.no_grad()
    def shifted(model: Any, stream: Stream, kept: Contexts, chunk: int, **_: Any) -> Score:
        losses, correct = [], 0
        for at in torch.arange(len(stream) - 1).split(chunk):
            around = kept.window(0, len(kept)).before_and_after(at, stream.resets)
            hidden = model.token_block(*around, model.embed(stream.ids[at]))
            nll, best = token_nll(hidden, model.lm_head.weight, stream.ids[at], model.lm_head.bias)
            losses.append(nll)
            correct += int((best == stream.ids[at]).sum())
        return Score.of(torch.cat(losses).numpy(), correct)

    patch.setattr(phase2, "score_stream", shifted)


def trained_on_shifted_targets(patch: Patch) -> None:
    """Targets off by one in training: the token after next."""
    real = phase2.training_loss

    def shifted(*args: Any) -> Any:
        loss_of = real(*args)
        return lambda targets: loss_of(targets.roll(-1))

    patch.setattr(phase2, "training_loss", shifted)


def phase2_always_from_seed_0(patch: Patch) -> None:
    """The seed does not reach the TokenBlock: seeds that are no replications."""
    real = prepared.generator_for

    def fixed(seed: int, *purpose: Any) -> Any:
        return real(0 if purpose[0] == "token_block" else seed, *purpose)

    patch.setattr(prepared, "generator_for", fixed)


def shuffle_ignored(patch: Patch) -> None:
    """Batches come in another order than the settings and the seed say."""
    real = phase2.generator_for
    patch.setattr(phase2, "generator_for", lambda seed, *purpose: real(seed + 1, *purpose))


def training_reads_the_previous_context(patch: Patch) -> None:
    """Training alone reads contexts one token late; evaluation is right."""
    real = phase2._batches

    def late(train: Any, *rest: Any) -> Any:
        return real(replace(train, contexts=Contexts.of(train.contexts.whole().roll(1, 0))), *rest)

    patch.setattr(phase2, "_batches", late)


def a_third_of_the_text(patch: Patch) -> None:
    """Two thirds of the training text are never read."""
    real = phase2._batches

    def less(train: Any, *rest: Any) -> Any:
        part = len(train.stream) // 3
        return real(replace(train, stream=train.stream.first(part)), *rest)

    patch.setattr(phase2, "_batches", less)


def phase1_on_a_few_tokens(patch: Patch) -> None:
    """Phase 1 sweeps over less text than the settings say."""
    for objective in OBJECTIVES.values():

        def less(inputs: Phase1Inputs, _real: Any = objective.train) -> Any:
            return _real(replace(inputs, stream=inputs.stream.first(600)))

        patch.setattr(objective, "train", less)


def norm_counted_as_trained(patch: Patch) -> None:
    """The original experiment: embed_norm counted as trained, though no gradient reached it."""
    real = one_run.count_parameters

    def counted(*args: Any) -> Any:
        counts = real(*args)
        return counts.model_copy(update={"trained_phase2": counts.trained_phase2 + counts.embed_norm})

    patch.setattr(one_run, "count_parameters", counted)


def other_weights_saved(patch: Patch) -> None:
    """What is saved is not what was scored."""
    real = runner.save_model

    def saved(folder: Any, trained: Any, *rest: Any) -> None:
        with torch.no_grad():
            trained.model.token_block.layers[0].linear.weight.mul_(1.1)
        real(folder, trained, *rest)

    patch.setattr(runner, "save_model", saved)


def duplicates_across_splits(patch: Patch) -> None:
    """The check that keeps validation documents out of training is off."""
    patch.setattr(splits, "_count_overlap", lambda *_given: 0)


# Training after its first step


def _settings_of_phase1(patch: Patch, section: str, **values: Any) -> None:
    """Phase 1 is trained with other settings than those that are written down."""
    for objective in OBJECTIVES.values():

        def other(inputs: Phase1Inputs, _real: Any = objective.train) -> Any:
            own = getattr(inputs.settings, section).model_copy(update=values)
            return _real(replace(inputs, settings=inputs.settings.model_copy(update={section: own})))

        patch.setattr(objective, "train", other)


def _settings_of_phase2(patch: Patch, **values: Any) -> None:
    """The same of phase 2."""
    real = pipeline.train_token_block

    def other(model: Any, train: Any, validation: Any, settings: Any, *rest: Any, **more: Any) -> Any:
        return real(model, train, validation, settings.model_copy(update=values), *rest, **more)

    patch.setattr(pipeline, "train_token_block", other)


def lr_of_its_own(patch: Patch) -> None:
    """A learning rate that the settings do not reach."""
    real = phase2.adamw
    patch.setattr(phase2, "adamw", lambda parameters, decay, _lr: real(parameters, decay, 0.003))


def no_schedule(patch: Patch) -> None:
    """The learning rate stays where it is."""
    for module in (phase2, optimizer):
        patch.setattr(module, "linear_share", lambda *_: 1.0)


def no_clipping(patch: Patch) -> None:
    """Gradients are measured and not clipped."""
    real = phase2.clip_gradients
    patch.setattr(phase2, "clip_gradients", lambda parameters, _: real(parameters, 1e9))


def decay_of_everything(patch: Patch) -> None:
    """Biases and gains decay like matrices."""
    patch.setattr(
        phase2,
        "adamw",
        lambda parameters, decay, lr: torch.optim.AdamW(list(parameters), lr=lr, weight_decay=decay),
    )


def other_betas(patch: Patch) -> None:
    """Phase 1's moments look back as far as torch's do."""
    patch.setattr(predictive, "BETAS", (0.9, 0.999))


def moments_forgotten(patch: Patch) -> None:
    """The optimizer begins anew in every epoch."""
    real, found = phase2.adamw, list[Any]()

    def remembered(*given: Any) -> Any:
        found.append(real(*given))
        return found[-1]

    scored = phase2.score_stream

    def forgetting(*args: Any, **how: Any) -> Score:
        found[-1].state.clear()
        return scored(*args, **how)

    patch.setattr(phase2, "adamw", remembered)
    patch.setattr(phase2, "score_stream", forgetting)


def gradients_that_add_up(patch: Patch) -> None:
    """The gradient of the step before is still there."""
    real = phase2.GradientAccumulator.backward

    def adding(self: Any, *given: Any) -> float:
        before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        loss = real(self, *given)
        for parameter, gradient in zip(self._parameters, before, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient
        return loss

    patch.setattr(phase2.GradientAccumulator, "backward", adding)


def trained_on_validation_too(patch: Patch) -> None:
    """A step on the validation text between two epochs."""
    real = phase2.score_stream

    def learning(model: Any, stream: Any, contexts: Any, *rest: Any, **how: Any) -> Score:
        with torch.enable_grad():
            at = torch.arange(min(256, len(stream) - 1))
            around = contexts.window(0, len(contexts)).before_and_after(at, stream.resets)
            hidden = model.token_block(*around, model.embed(stream.ids[at]))
            nll, _ = token_nll(hidden, model.lm_head.weight, stream.ids[at + 1], model.lm_head.bias)
            trained = [p for p in model.token_block.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(nll.mean(), trained) if trained else []
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= 0.05 * gradient
        return real(model, stream, contexts, *rest, **how)

    patch.setattr(phase2, "score_stream", learning)


def half_of_the_epochs(patch: Patch) -> None:
    """Phase 2 makes fewer epochs than the settings say."""
    _settings_of_phase2(patch, max_epochs=1)


def endless_patience(patch: Patch) -> None:
    """Phase 2 goes on where it was to stop."""
    _settings_of_phase2(patch, patience=99)


def no_dropout(patch: Patch) -> None:
    """Phase 2 drops nothing."""
    _settings_of_phase2(patch, dropout=0.0)


def same_dropout_in_every_step(patch: Patch) -> None:
    """Random numbers that are drawn once."""
    real = dropout.Dropout.step

    def again(self: Any, count: int) -> Any:
        self.first = getattr(self, "first", None) or self._draws.bit_generator.state
        self._draws.bit_generator.state = self.first
        return real(self, count)

    patch.setattr(dropout.Dropout, "step", again)


def same_negatives_in_every_step(patch: Patch) -> None:
    """The sample of the softmax never changes."""
    real = SampledSoftmax.of_step

    def again(self: Any, targets: Tensor) -> Any:
        self._generator.manual_seed(7)
        return real(self, targets)

    patch.setattr(SampledSoftmax, "of_step", again)


def uncorrected_sample(patch: Patch) -> None:
    """The logits of a sampled softmax are not corrected for the chance to be in it."""
    real = SampledSoftmax.__init__

    def plain(self: Any, *given: Any) -> None:
        real(self, *given)
        self._log_chance.zero_()

    patch.setattr(SampledSoftmax, "__init__", plain)


def same_order_in_every_epoch(patch: Patch) -> None:
    """Shuffling draws what it drew before."""
    real = phase2._batches

    def again(train: Any, settings: Any, order: torch.Generator, done: int) -> Iterator[Any]:
        return real(train, settings, order.manual_seed(7), done)

    patch.setattr(phase2, "_batches", again)


def last_step_left_out(patch: Patch) -> None:
    """An epoch ends before its last batch."""
    real = phase2._batches
    patch.setattr(phase2, "_batches", lambda *given: iter(list(real(*given))[:-1]))


def other_batch_size(patch: Patch) -> None:
    """Batches are half as large as the settings say."""
    _settings_of_phase2(patch, batch_positions=64)


def last_epoch_counts(patch: Patch) -> None:
    """The weights of the best epoch are not put back."""
    patch.setattr(TrainingMonitor, "restore_best", lambda self: self.best_score)


def mean_of_half_an_epoch(patch: Patch) -> None:
    """The training NLL that is told is not the mean over the epoch."""
    real = TrainingMonitor.end_epoch
    patch.setattr(
        TrainingMonitor,
        "end_epoch",
        lambda self, train_nll, *rest: real(self, train_nll - 0.02, *rest),
    )


def earlier_epochs_look_worse(patch: Patch) -> None:
    """The validation NLL that is told of the first epoch is not its own."""
    real = TrainingMonitor.end_epoch

    def worse(self: Any, train_nll: float, score: Score, *rest: Any) -> bool:
        more = 0.05 if not self.history else 0.0
        return real(self, train_nll, replace(score, nll_nats=score.nll_nats + more), *rest)

    patch.setattr(TrainingMonitor, "end_epoch", worse)


def contexts_not_carried(patch: Patch) -> None:
    """Every window of phase 1 begins without a context."""
    real = predictive._forward

    def forgetting(model: Any, heads: Any, batch: Any, *rest: Any) -> Tensor:
        return real(model, heads, replace(batch, before=None), *rest)

    patch.setattr(predictive, "_forward", forgetting)


def windows_always_cut_alike(patch: Patch) -> None:
    """Streams start at the same place in every epoch."""
    real = predictive.windows

    def alike(count: int, streams: int, window: int, _start: int, *more: int) -> Iterator[Tensor]:
        return real(
            count, streams, window, predictive.first_position(count, generator_for(0, "defect")), *more
        )

    patch.setattr(predictive, "windows", alike)


def one_weight_drawn_otherwise(patch: Patch) -> None:
    """One weight of each block starts elsewhere, and no step is kept that would show it."""
    real = prepared.initialize_block

    def drawn(block: Any, model: Any, generator: Any) -> None:
        real(block, model, generator)
        largest = max(block.parameters(), key=lambda parameter: parameter.numel())
        largest.data.view(-1)[1] += 1e-3

    patch.setattr(prepared, "initialize_block", drawn)
    patch.setattr(Snapshots, "follow", lambda *_: None)


def documents_in_one_order(patch: Patch) -> None:
    """Phase 1 by prediction reads the documents in the order of the text."""
    patch.setattr(predictive, "shuffled_documents", lambda *_: lambda places: places)


def tokens_always_whole(patch: Patch) -> None:
    """Phase 1 by prediction splits no tokens."""
    patch.setattr(predictive, "split_epochs", lambda *_: 0)


def tokens_split_without_end(patch: Patch) -> None:
    """Tokens are split in the last epochs, too."""
    patch.setattr(predictive, "split_epochs", lambda epochs, _: epochs)


def other_tokens_split(patch: Patch) -> None:
    """Tokens are split twice as often as the settings say."""
    real = split_tokens.split_tokens
    patch.setattr(
        split_tokens,
        "split_tokens",
        lambda stream, pieces, chance, draws: real(stream, pieces, 2 * chance, draws),
    )


def shorter_windows(patch: Patch) -> None:
    """Gradients of phase 1 flow half as far as the settings say."""
    _settings_of_phase1(patch, "prediction", window=8)


def noise_left_out(patch: Patch) -> None:
    """Phase 1 sweeps without noise."""
    _settings_of_phase1(patch, "phase1", noise_std=0.0)


def centroid_left_out(patch: Patch) -> None:
    """The loss of phase 1 lets its centroid go anywhere."""
    _settings_of_phase1(patch, "phase1", centroid_weight=0.0)


def early_convergence(patch: Patch) -> None:
    """Contexts count as converged that still move."""
    _settings_of_phase1(patch, "phase1", convergence_mse=0.3)


def fewer_iterations(patch: Patch) -> None:
    """Phase 1 ends before its time."""
    _settings_of_phase1(patch, "phase1", max_iterations=3)


# Data


def documents_lost(patch: Patch) -> None:
    """The reader leaves out every seventh document."""
    real = splits.open_documents

    def fewer(*given: Any) -> Iterator[str]:
        return (text for number, text in enumerate(real(*given)) if number % 7)

    patch.setattr(splits, "open_documents", fewer)


def documents_cut_short(patch: Patch) -> None:
    """The reader loses the second half of a document."""
    real = splits.open_documents
    patch.setattr(splits, "open_documents", lambda *given: (text[: len(text) // 2] for text in real(*given)))


def duplicates_stay(patch: Patch) -> None:
    """Equal documents are not noticed."""
    real, numbers = splits._words_digest, list[int]()

    def unlike(document: str) -> bytes:
        numbers.append(0)
        return real(f"{len(numbers)} {document}")

    def read(*given: Any, _real: Any = splits._read) -> Any:
        numbers.clear()
        return _real(*given)

    patch.setattr(splits, "_words_digest", unlike)
    patch.setattr(splits, "_read", read)


def last_row_lost(patch: Patch) -> None:
    """The last row of a parquet file is not read."""
    real = files._parquet_records
    patch.setattr(files, "_parquet_records", lambda *given: iter([*real(*given)][:-1]))


def last_file_lost(patch: Patch) -> None:
    """The last file of a folder or pattern is not read."""
    real = files.find_files
    patch.setattr(files, "find_files", lambda *given: real(*given)[:-1])


def files_in_another_order(patch: Patch) -> None:
    """Files are read as they come, which is the other way round here."""
    real = files.find_files
    patch.setattr(files, "find_files", lambda *given: real(*given)[::-1])


def hidden_files_read(patch: Patch) -> None:
    """Hidden files count as others do."""
    patch.setattr(listing._Listing, "_is_meant", lambda *_: True)


def linked_files_read_twice(patch: Patch) -> None:
    """A file that two names lead to is read under both."""
    real = files.find_files
    patch.setattr(files, "find_files", lambda *given: [path for path in real(*given) for _ in range(2)])


def links_not_followed(patch: Patch) -> None:
    """What lies behind a link is not read."""
    real = files.find_files

    def unlinked(source: str, *rest: Any) -> list[Path]:
        return [path for path in real(source, *rest) if path == path.resolve()]

    patch.setattr(files, "find_files", unlinked)


def always_latin_1(patch: Patch) -> None:
    """Text is decoded as if its bytes were characters."""

    def lines(file: Any, *_: Any) -> Iterator[str]:
        return iter(file.read().decode("latin-1").splitlines(keepends=True))

    patch.setattr(files, "lines", lines)


def undecodable_replaced(patch: Patch) -> None:
    """Bytes that are no UTF-8 become question marks."""

    def lines(file: Any, *_: Any) -> Iterator[str]:
        return iter(file.read().decode("utf-8", "replace").splitlines(keepends=True))

    patch.setattr(files, "lines", lines)


def broken_lines_skipped(patch: Patch) -> None:
    """Lines that are no JSON are passed over in silence."""

    def readable(lines: Any, *_: Any) -> Iterator[tuple[object, str]]:
        for line in lines:
            try:
                yield json.loads(line), "a line"
            except ValueError:
                continue

    patch.setattr(files, "_json_records", readable)


def long_documents_cut(patch: Patch) -> None:
    """Rows end after 200 characters."""
    real = rows.record_text
    for module in (files, hub):
        patch.setattr(module, "record_text", lambda *given: real(*given)[:200])


def first_message_only(patch: Patch) -> None:
    """Of a conversation only the first message is read."""
    real = rows.record_text
    for module in (files, hub):
        patch.setattr(
            module,
            "record_text",
            lambda record, where: real({**record, "messages": record["messages"][:1]}, where),
        )


def lines_joined_by_spaces(patch: Patch) -> None:
    """Line ends become spaces."""
    real = splits.open_documents
    patch.setattr(splits, "open_documents", lambda *given: (text.replace("\n", " ") for text in real(*given)))


def every_line_a_document(patch: Patch) -> None:
    """Text is cut at every line end, whatever the settings ask for."""
    patch.setattr(sources, "txt_splitter", lambda _: iter)


def text_before_the_first_match_lost(patch: Patch) -> None:
    """What comes before the first line that begins a document is not read."""
    real = files._sections

    def later(start: Any, lines: Any) -> Iterator[str]:
        return (section for section in real(start, lines) if start.search(section.split("\n")[0]))

    patch.setattr(files, "_sections", later)


def slice_ignored(patch: Patch) -> None:
    """The whole split of a data set is read."""
    real = hub.parse_hub_source
    patch.setattr(hub, "parse_hub_source", lambda source: (real(source)[0], real(source)[1].split("[")[0]))


def docstrings_of_modules_only(patch: Patch) -> None:
    """Python's classes and functions are passed over."""
    patch.setattr(python_docs, "DOCUMENTED", python_docs.ast.Module)


def topics_lost(patch: Patch) -> None:
    """Python's help topics are not read."""
    patch.setattr(python_docs, "_help_topics", lambda: iter(()))


def limit_ignored(patch: Patch) -> None:
    """More text than `data.max_train_bytes` is trained on."""
    real = splits._thin_out
    patch.setattr(
        splits,
        "_thin_out",
        lambda sizes, digests, most, seed: real(sizes, digests, 2 * most, seed),
    )


def too_much_left_out(patch: Patch) -> None:
    """Half of what `data.max_train_bytes` allows is trained on."""
    real = splits._thin_out
    patch.setattr(
        splits,
        "_thin_out",
        lambda sizes, digests, most, seed: real(sizes, digests, most // 2, seed),
    )


def left_out_unasked(patch: Patch) -> None:
    """Long documents are left out, and counted as if the settings asked for it."""
    real = splits.split_documents

    def fewer(data: Any, *rest: Any) -> Any:
        found = real(data, *rest)
        short = found.train.sizes < found.train.sizes.max()
        return replace(found, train=found.train.chosen(short), left_out=int((~short).sum()))

    patch.setattr(splits, "split_documents", fewer)


def tokenizer_of_another_text(patch: Patch) -> None:
    """The vocabulary was learned from other documents, and stays in the cache."""
    real = prepare.train_bpe

    def other(documents: Any, *rest: Any) -> Any:
        return real(list(documents)[::2], *rest)

    patch.setattr(prepare, "train_bpe", other)


def embeddings_of_another_text(patch: Patch) -> None:
    """Embeddings from a cache that nobody refreshed."""
    real = prepared.embedding_table

    def stale(*given: Any) -> Any:
        table, name = real(*given)
        return np.roll(table, 1, 0), name

    patch.setattr(prepared, "embedding_table", stale)


def no_separators(patch: Patch) -> None:
    """Nothing tells where a document begins."""
    real = encoding.Encoder._encode_batch
    patch.setattr(
        encoding.Encoder, "_encode_batch", lambda self, texts: [ids[:-1] for ids in real(self, texts)]
    )


def characters_counted_as_bytes(patch: Patch) -> None:
    """Bits per byte are bits per character."""
    real = one_run.validation_record

    def counted(score: Score, tokens: Any) -> Any:
        return real(score, replace(tokens, scored_bytes=tokens.scored_bytes // 2))

    patch.setattr(one_run, "validation_record", counted)


def edit_records(run_dir: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Somebody changes records by hand, in the run directory and with the models."""
    path = run_dir / "records.jsonl"
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        change(record)
        kept = run_dir / "models" / record["run"] / "record.json"
        if kept.is_file():
            kept.write_text(json.dumps(record), "utf-8")
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    seal_again(run_dir)
