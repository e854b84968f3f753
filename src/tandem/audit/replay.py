"""The plain trainer: each kept step of both phases is taken again, from the settings and the seed alone.

One page for phase 2, one for each objective of phase 1. Shape letters: T tokens, n positions, B streams, W
tokens of a window, C context_dim.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tandem.audit.plain import (
    PlainDropouts,
    PlainSoftmax,
    PlainStep,
    batches,
    draws_of,
    gradients_of,
    linear_rate,
    seed_of,
    splits_tokens,
)
from tandem.audit.steps import (
    ROUNDED,
    EpochMeans,
    KeptStep,
    Tolerance,
    differences,
    epoch_means,
    unexplained,
)
from tandem.audit.subject import Subject
from tandem.model import TandemForCausalLM
from tandem.records import Check
from tandem.settings import Phase2Settings, PredictionSettings

CONTEXT_TOLERANCE = 1e-3
"""By which an element of a context that a step read may differ, beside what its storage rounds."""
NOT_CHECKED = "not checked: "
RATE_TOLERANCE = 2e-3
"""By which the share of positions that have converged may differ."""


def step_checks(subject: Subject) -> Iterator[Check]:
    """`phase1_steps` and `phase2_steps` of one run of a Tandem model."""
    if subject.record.kind == "tandem" and subject.objective.parts:
        of_phase1 = PHASE1.get(subject.prepared.settings.recipe)
        if of_phase1 is None:
            yield _not_checked("phase1_steps", "the audit has no plain trainer of this objective")
        else:
            yield from subject.contexts.checks(
                subject,
                "phase1_steps",
                lambda own: [_check(own, "phase1_steps", own.phase1_snapshots, of_phase1)],
            )
    yield _check(subject, "phase2_steps", subject.phase2_snapshots, phase2)


Replay = Callable[[Subject, Sequence[KeptStep], Tolerance], Iterator[str]]
"""What is wrong with the kept steps of a phase; and what was left out, which begins with NOT_CHECKED."""


def _check(subject: Subject, name: str, path: Path, replay: Replay) -> Check:
    kept_steps = subject.phase1_steps if name == "phase1_steps" else subject.phase2_steps
    if not kept_steps:
        return _not_checked(name, "no step was kept (as where several processes trained phase 1 together)")
    if subject.record.environment.device != "cpu" and subject.model.device.type == "cpu":
        return _not_checked(name, "dropout and noise were drawn on another device than this one")
    half = subject.record.environment.precision == "bfloat16"
    tolerance = ROUNDED if half or subject.rounding > 0 else Tolerance()
    # Without its cache, as weights are put into the same parameters step after step.
    with torch.autocast(subject.model.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        found = unexplained(path) + list(replay(subject, kept_steps, tolerance))
    wrong = [line for line in found if not line.startswith(NOT_CHECKED)]
    left_out = [line for line in found if line.startswith(NOT_CHECKED)]
    wrong += _means(subject, name == "phase1_steps", epoch_means(path))
    return Check(
        name=name,
        looked_at=f"{len(kept_steps)} steps that were kept, each taken again by a plain trainer: positions, "
        "learning rate, loss, gradient and the weights after it",
        figure="; ".join([*wrong, *left_out]) or f"the same, up to {kept_steps[-1].where}",
        status="fail" if wrong else "skip" if left_out else "pass",
    )


def _means(subject: Subject, phase1: bool, means: Sequence[EpochMeans]) -> Iterator[str]:
    """Whether the history has the means of the steps' losses and gradient norms."""
    record: Any = subject.record.phase1 if phase1 else subject.record.phase2
    for entry in record.history:
        # The random contexts are the first iteration, and the first step makes the second one.
        epoch = entry.iteration - 1 if hasattr(entry, "iteration") else entry.epoch
        own = next((mean for mean in means if mean.epoch == epoch), None)
        if own is None:
            continue
        said, loss = getattr(entry, "loss", None), own.loss
        if said is None:
            said = entry.train_nll_nats
        if not phase1:
            size = subject.prepared.settings.phase2.batch_positions
            loss = own.over(len(subject.ids("train")) - 1, size)
        for what, recorded, right in (
            ("loss", said, loss),
            ("gradient norm", getattr(entry, "grad_norm", own.gradient_norm), own.gradient_norm),
        ):
            if not math.isclose(recorded, right, rel_tol=1e-6, abs_tol=1e-9):
                where = f"iteration {epoch + 1}" if hasattr(entry, "iteration") else f"epoch {epoch}"
                yield f"the mean {what} of {where} is {recorded:.5g}, that of its steps {right:.5g}"
                return


def _not_checked(name: str, why: str) -> Check:
    return Check(
        name=name, looked_at="kept steps, taken again plainly", figure=f"not checked: {why}", status="skip"
    )


def loaded(model: TandemForCausalLM, heads: nn.ModuleDict, step: KeptStep) -> dict[str, nn.Parameter]:
    """The parameters that a step trained, by name, with the weights that it found."""
    named = dict(heads.named_parameters())
    named |= {name.removeprefix("model."): weight for name, weight in model.named_parameters()}
    rows = step.of("rows")
    trained: dict[str, nn.Parameter] = {}
    with torch.no_grad():
        for name, weights in step.of("before").items():
            parameter = trained[name] = named[name]
            parameter.requires_grad_(True)
            if name in rows:
                parameter[rows[name]] = weights.to(parameter)
            else:
                parameter.copy_(weights)
    return trained


# Phase 2


def phase2(subject: Subject, kept_steps: Sequence[KeptStep], tolerance: Tolerance) -> Iterator[str]:
    """Batches of positions, whose contexts a frozen ContextBlock gives; the TokenBlock is trained."""
    own, record = subject.prepared.settings.phase2, subject.record.phase2
    assert record is not None
    ids, count = subject.ids("train"), len(subject.ids("train")) - 1
    epoch_steps = math.ceil(count / own.batch_positions)
    yield from _ends(kept_steps, record.epochs, epoch_steps)
    yield from _weights(kept_steps, subject.initial, {}, subject, record.best_epoch)
    wanted = {(step.epoch, step.step): step for step in kept_steps}
    dropouts = PlainDropouts.of(own, subject.seed, "phase2")
    softmax = PlainSoftmax(
        subject.token_counts, own.batch_positions, own, draws_of(subject.seed, "phase2 negatives")
    )
    steps, moving = own.max_epochs * epoch_steps, subject.prepared.settings.embeddings.trained
    calls = _drawn(own, subject, "phase2")
    last = max(wanted)
    for place, positions in batches(own, subject.seed, count, record.epochs):
        if place > last:
            break
        step = wanted.get(place)
        if step is None:
            softmax.skip(len(positions))
            for dropout, shapes in zip(dropouts.all, calls, strict=True):
                dropout.skip(shapes, (len(positions),))
            continue
        model, read = copy.deepcopy(subject.model).requires_grad_(False), step.of("read")
        trained = loaded(model, nn.ModuleDict(), step)
        if moving:  # contexts then are of an embedding that is not there any more, but the first
            previous, current = read["previous"], read["current"]
        else:
            previous, current = subject.contexts_at("train", positions)
            yield from _contexts(step, (previous, current), subject.rounding)
        previous, current = previous.to(model.device), current.to(model.device)
        loss = softmax.of_step(ids[positions + 1])
        embeds = dropouts.embeds(model.embed(ids[positions]))
        hidden = dropouts.output(model.token_block(previous, current, embeds, dropouts.contexts))
        nll = loss(hidden, model.lm_head.weight, model.lm_head.bias)
        done = (place[0] - 1) * epoch_steps + place[1] - 1
        share = 1.0 if own.schedule == "constant" else linear_rate(done, steps, min(50, steps // 10))
        plain = PlainStep(
            float(nll.detach()),
            gradients_of(nll, trained),
            done,
            own.lr * share,
            own.max_grad_norm,
            decay=own.weight_decay,
            positions=positions,
        )
        yield from differences(step, plain, tolerance)


def _contexts(step: KeptStep, right: tuple[Tensor, Tensor], rounding: float) -> Iterator[str]:
    """Whether the first contexts that a step read are those at its positions."""
    for name, contexts in zip(("previous", "current"), right, strict=True):
        read = step.of("read")[name]
        off = float((read - contexts[: len(read)].cpu()).abs().max())
        if not off <= CONTEXT_TOLERANCE + rounding:
            yield f"the {name} contexts that {step.where} read are off by {off:.2g}"


def _ends(kept_steps: Sequence[KeptStep], epochs: int, epoch_steps: int) -> Iterator[str]:
    """Whether the last kept step is the last one of the last epoch."""
    if (there := (kept_steps[-1].epoch, kept_steps[-1].step)) != (epochs, epoch_steps):
        yield (
            f"its last step was step {there[1]} of epoch {there[0]}; the record and the settings say "
            f"{epochs} epochs of {epoch_steps} steps"
        )


def _weights(
    kept_steps: Sequence[KeptStep],
    start: TandemForCausalLM,
    heads: Mapping[str, Tensor],
    subject: Subject,
    best: int,
) -> Iterator[str]:
    """Whether the first step found the weights that the seed draws, and the best epoch left those saved."""
    drawn = {**start.named_weights(), **heads}
    first = kept_steps[0]
    if (first.epoch, first.step) == (1, 1):
        rows = first.of("rows")
        for name, weights in first.of("before").items():
            wanted = drawn[name].cpu()
            wanted = wanted[rows[name]] if name in rows else wanted
            off = float((weights - wanted).abs().max())
            if not off <= 1e-4 * max(1.0, float(wanted.abs().max())):
                yield f"{name} did not start from the weights of seed {subject.seed} (off by {off:.2g})"
                break
    saved = subject.model.named_weights()
    of_best = [step for step in kept_steps if step.epoch == best]
    if not of_best or of_best[-1].step != kept_steps[-1].step:
        return
    rows = of_best[-1].of("rows")
    for name, weights in of_best[-1].of("after").items():
        if name in saved and name not in rows and not torch.equal(weights, saved[name].cpu()):
            yield f"{name} is saved with other weights than the last step of epoch {best} left"
            return


def _drawn(
    own: PredictionSettings | Phase2Settings, subject: Subject, phase: str, along: int | None = None
) -> list[list[tuple[int, ...]]]:
    """What each dropout draws in a step: the shapes of its calls, for one row (`along` time: one token)."""
    dropouts, model = PlainDropouts.of(own, 0, phase, along=along), subject.model
    tokens = torch.zeros(1, *(() if along is None else (1,)), dtype=torch.int64, device=model.device)
    with torch.no_grad():
        embeds = dropouts.embeds(model.embed(tokens))
        if along is None:
            contexts = embeds.new_zeros(1, model.config.context_dim)
            dropouts.output(model.token_block(contexts, contexts, embeds, dropouts.contexts))
        else:
            previous, current = model.context_block.unroll(embeds, drop=dropouts.contexts)
            for head in subject.heads.values():
                dropouts.output(head(previous, current, embeds, dropouts.contexts))
    return [dropout.step_ends() for dropout in dropouts.all]


# Phase 1 by prediction


def predictive(subject: Subject, kept_steps: Sequence[KeptStep], tolerance: Tolerance) -> Iterator[str]:
    """Windows of streams that are read side by side; no gradient beyond the window, contexts carried on."""
    own, depth = subject.prepared.settings.prediction, subject.configuration.context_layers
    count = len(subject.ids("train")) - 1
    streams = min(own.streams, count)
    length = math.ceil(count / streams)
    epoch_steps = math.ceil(length / own.window)
    steps = own.max_epochs * epoch_steps
    yield from _ends(kept_steps, own.max_epochs, epoch_steps)
    heads = subject.heads
    yield from _weights(kept_steps, subject.phase1_start, heads.state_dict(), subject, 0)
    draws = draws_of(subject.seed, "prediction", depth)
    dropouts = PlainDropouts.of(own, subject.seed, "prediction", depth, along=1)
    wanted = {(step.epoch, step.step): step for step in kept_steps}
    last = max(wanted)
    calls = _drawn(own, subject, "prediction", along=1)
    carried: Tensor | None = None  # what the step before left, where that was taken again
    for epoch in range(1, last[0] + 1):
        ids, documents = _text_of_epoch(subject, epoch)
        count = len(ids) - 1
        token_counts = torch.bincount(ids, minlength=subject.model.config.vocab_size)
        softmax = PlainSoftmax(token_counts, streams * own.window, own, draws)
        share = math.ceil(count / streams)
        start = int(torch.randint(count, (), generator=draws)) + share * torch.arange(streams)
        order = torch.randperm(
            len(documents), generator=draws_of(subject.seed, "prediction order", depth, epoch)
        )
        text = torch.cat([documents[number] for number in order.tolist()])
        for number in range(1, epoch_steps + 1):
            if (epoch, number) > last:
                return
            within = torch.arange((number - 1) * own.window, min(number * own.window, length))
            positions = text[(start[:, None] + within) % count]
            step = wanted.get((epoch, number))
            if step is None:
                softmax.skip(positions.numel())
                for dropout, shapes in zip(dropouts.all, calls, strict=True):
                    dropout.skip(shapes, tuple(positions.shape))
                carried = None
                continue
            model, trained_heads = copy.deepcopy((subject.phase1_start, heads))
            trained = loaded(model.requires_grad_(False), trained_heads.requires_grad_(False), step)
            before = step.of("read").get("before")
            if number == 1 and before is not None and bool(before.any()):
                yield f"{step.where} read contexts of the epoch before"
            if carried is not None and before is not None:
                off = float((carried - before).abs().max())
                if not off <= CONTEXT_TOLERANCE + tolerance.loss:
                    yield f"{step.where} read other contexts than the step before left (off by {off:.2g})"
            read = ids[positions]
            embeds = dropouts.embeds(model.embed(read))
            restart = read == model.config.bos_token_id if model.config.boundary == "reset" else None
            previous, current = model.context_block.unroll(embeds, before, restart, drop=dropouts.contexts)
            loss, losses = softmax.of_step(ids[positions + 1].flatten()), []
            for head in trained_heads.values():
                hidden = dropouts.output(head(previous, current, embeds, dropouts.contexts))
                losses.append(loss(hidden.flatten(0, 1), model.lm_head.weight, model.lm_head.bias))
            carried, nll = current[:, -1].detach(), torch.stack(losses).mean()
            done = (epoch - 1) * epoch_steps + number - 1
            plain = PlainStep(
                float(nll.detach()),
                gradients_of(nll, trained),
                done,
                own.lr * linear_rate(done, steps, min(100, steps // 10)),
                own.max_grad_norm,
                betas=(0.9, 0.95),
                decay=own.decay_per_epoch / (own.lr * epoch_steps),
                positions=positions,
            )
            yield from differences(step, plain, tolerance)


def _text_of_epoch(subject: Subject, epoch: int) -> tuple[Tensor, list[Tensor]]:
    """The training text as an epoch reads it, tokens split at random, and the positions of each document.

    Positions are those that have a next token.
    """
    corpus, own = subject.prepared.corpus, subject.prepared.settings.prediction
    whole = subject.ids("train")
    ids, starts = whole[torch.arange(len(whole))].cpu(), torch.tensor(corpus.train.document_starts)
    if corpus.pieces is not None and splits_tokens(own, len(ids), epoch):
        draws = draws_of(subject.seed, "prediction splits", subject.configuration.context_layers, epoch)
        left, right = torch.from_numpy(corpus.pieces).long().unbind(1)
        fresh = torch.ones(len(ids), dtype=torch.bool)
        while fresh.any():
            lots = torch.rand(len(ids), generator=draws)
            cut = (fresh & (lots < own.split_tokens) & (left[ids] >= 0)).nonzero()[:, 0].numpy()
            # Each cut token becomes its left piece, and its right piece is put behind it.
            second = np.insert(np.zeros(len(ids), bool), cut + 1, True)
            longer = torch.from_numpy(np.insert(ids.numpy(), cut + 1, right[ids[cut]].numpy()))
            first = torch.from_numpy(np.append(second[1:], False))
            longer[first] = left[ids[cut]]
            starts = starts + torch.searchsorted(torch.from_numpy(cut), starts)  # cuts before each
            ids, fresh = longer, first | torch.from_numpy(second)
    edges = [*starts.tolist(), len(ids) - 1]
    return ids.to(whole.device), [torch.arange(a, b) for a, b in pairwise(edges)]


# Phase 1 by dispersion


def original(subject: Subject, kept_steps: Sequence[KeptStep], tolerance: Tolerance) -> Iterator[str]:
    """Jacobi sweeps over all positions: each reads the context before it of the last sweep, with noise."""
    own, depth = subject.prepared.settings.phase1, subject.configuration.context_layers
    model = copy.deepcopy(subject.phase1_start).requires_grad_(False)
    ids = swept_ids(subject)
    record: Any = subject.record.phase1  # of the objective's own kind
    rates = {entry.iteration: entry.convergence_rate for entry in record.history}
    yield from _ends(kept_steps, record.iterations - 1, 1)
    yield from _weights(kept_steps, subject.phase1_start, {}, subject, 0)
    shape = (len(ids), model.config.context_dim)
    contexts: Tensor | None = own.start_std * torch.randn(
        shape, generator=draws_of(subject.seed, "phase1 start", depth)
    )
    noise = torch.Generator().manual_seed(seed_of(subject.seed, "phase1 noise", depth))
    states, done = set(), 0
    for step in kept_steps:
        read = step.of("read")
        if step.epoch != done + 1:  # the sweeps between are not made again
            contexts = read.get("contexts")
            noise.set_state(read["noise"])
        elif not torch.equal(noise.get_state(), read["noise"]):
            yield f"the noise of {_sweep(step)} is not what the seed draws"
            noise.set_state(read["noise"])
        if (state := read["noise"].numpy().tobytes()) in states:
            yield f"the noise of {_sweep(step)} is that of an earlier one"
        states.add(state)
        done = step.epoch
        if contexts is None:
            yield f"{NOT_CHECKED}the contexts that {_sweep(step)} read were too large to be kept"
            continue
        if "contexts" in read and not float((read["contexts"] - contexts).abs().max()) <= CONTEXT_TOLERANCE:
            yield f"{_sweep(step)} read other contexts than the sweep before left"
            contexts = read["contexts"]
        trained = loaded(model, nn.ModuleDict(), step)
        after, loss, gradients = _swept(subject, model, ids, contexts, noise, trained)
        plain = PlainStep(loss, gradients, done - 1, own.lr, own.max_grad_norm)
        yield from (line.replace(step.where, _sweep(step)) for line in differences(step, plain, tolerance))
        rate = float(((after - contexts).square().mean(1) < own.convergence_mse).double().mean())
        said = rates[done + 1]
        if not abs(rate - said) <= RATE_TOLERANCE + 2 / len(ids):
            yield f"in {_sweep(step)} {said:.1%} of the contexts converged, plainly {rate:.1%}"
        contexts = after


def _sweep(step: KeptStep) -> str:
    return f"iteration {step.epoch + 1}"


def swept_ids(subject: Subject) -> Tensor:
    """What phase 1 sweeps over: all tokens, or windows of a batch each, spread evenly over the text."""
    own, ids = subject.prepared.settings.phase1, subject.ids("train")
    wanted = own.tokens_per_step or len(ids)
    if wanted >= len(ids):
        return ids[torch.arange(len(ids))]
    firsts = range(0, wanted, own.batch_positions)
    space, gaps = len(ids) - wanted, max(1, len(firsts) - 1)
    parts = [
        torch.arange(first, min(first + own.batch_positions, wanted)) + space * number // gaps
        for number, first in enumerate(firsts)
    ]
    return ids[torch.cat(parts)]


def _swept(
    subject: Subject,
    model: TandemForCausalLM,
    ids: Tensor,
    contexts: Tensor,
    noise: torch.Generator,
    trained: Mapping[str, nn.Parameter],
) -> tuple[Tensor, float, dict[str, Tensor | None]]:
    """One sweep: the new contexts [T, C], the mean loss of its batches, and the gradient of that."""
    own = subject.prepared.settings.phase1
    before = contexts.roll(1, 0)  # the first position follows the last one
    if model.config.boundary == "reset":
        before = before.masked_fill((ids == model.config.bos_token_id)[:, None], 0.0)
    parts = torch.arange(len(ids)).split(own.batch_positions)
    after, total = [], 0.0
    sums: dict[str, Tensor | None] = dict.fromkeys(trained)
    for part in parts:
        read = before[part] + own.noise_std * torch.randn(before[part].shape, generator=noise)
        new = model.context_block(read, model.embed(ids[part]))
        centroid = new.mean(0)
        dispersion = (new - centroid).square().sum().sqrt() / len(new)
        loss = (own.centroid_weight * centroid.square().sum() - dispersion) / len(parts)
        for name, gradient in gradients_of(loss, trained).items():
            before_it = sums[name]
            sums[name] = gradient if before_it is None or gradient is None else before_it + gradient
        after.append(new.detach().float())
        total += float(loss.detach())
    return torch.cat(after), total, sums


PHASE1: dict[str, Replay] = {"original": original, "predictive": predictive}
"""By recipe."""
