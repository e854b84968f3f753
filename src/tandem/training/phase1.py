"""Phase 1: the ContextBlock learns contexts that spread out (SPEC section 3).

One context per position. In each iteration every position reads the previous iteration's context of its
predecessor, plus noise, and produces its new context; the old contexts are constants, so no gradient flows
through time. The loss of a batch rewards dispersion around a centroid that is held at the origin.
"""

import math
import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tandem.contexts import Stream, swept
from tandem.errors import NonFiniteLossError
from tandem.metrics import convergence_rate
from tandem.model import TandemForCausalLM
from tandem.records import Phase1Iteration, Phase1Record
from tandem.settings import Phase1Settings
from tandem.training.execution import PLAIN, Execution
from tandem.training.gradients import GradientAccumulator
from tandem.training.initialization import START_SIZES, generator_for
from tandem.training.optimizer import clip_gradients
from tandem.training.progress import OnTick, Tick, silent
from tandem.training.trainable import training_only


@dataclass(frozen=True)
class Sweep:
    """One Jacobi sweep over consecutive positions [n]: their contexts before it, and after it.

    lead    [C] context of the position before the first one
    """

    before: Tensor
    after: Tensor
    lead: Tensor


def oacd_loss(contexts: Tensor, centroid_weight: float = 0.1) -> Tensor:
    """Origin-anchored centroid dispersion of contexts X [n, C] with mean m: −‖X − m‖_F / n + w·‖m‖²."""
    centroid = contexts.mean(dim=0)
    return -(contexts - centroid).norm() / len(contexts) + centroid_weight * centroid.square().sum()


def windows_of(stream: Stream, settings: Phase1Settings) -> Stream:
    """What phase 1 sweeps over: `tokens_per_step` tokens in windows of a batch each, or the whole stream."""
    tokens = settings.tokens_per_step or len(stream)
    return stream if tokens >= len(stream) else stream.windows(tokens, settings.batch_positions)


def train_context_block(
    model: TandemForCausalLM,
    stream: Stream,
    settings: Phase1Settings,
    seed: int,
    on_tick: OnTick = silent,
    execution: Execution = PLAIN,
) -> Phase1Record:
    """Train model.context_block in place, on `tokens_per_step` tokens of the stream, or on all of them.

    Embedding and embed_norm are read and never changed; `embed_norm` is frozen throughout Tandem, and not
    counted as trained. The processes of `execution` share the batches. Raises NonFiniteLossError before a
    non-finite step would reach the weights, SettingsError for fewer batches than processes.
    """
    began, group = time.perf_counter(), execution.group
    block, size = model.context_block, settings.batch_positions
    stream = windows_of(stream, settings)
    batches = math.ceil(len(stream) / size)
    group.check_enough(batches, "phase1.batch_positions")
    own = group.share(batches)
    # From here on positions are those of the process's own batches, which follow on each other.
    shard = slice(own.start * size, min(own.stop * size, len(stream)))
    ids, restart = stream.ids[shard], None if stream.restart is None else stream.restart[shard]
    contexts = (_start(model, len(stream), seed)[shard] * settings.start_std).to(model.device)
    noise = _Noise(model, settings, seed)
    history: list[Phase1Iteration] = []

    def forward(sweep: Sweep, batch: slice) -> Tensor:
        """The loss of one batch, a scalar with gradients; its new contexts go to the sweep."""
        first = (batch.start - own.start) * size
        positions = slice(first, min(first + size, len(ids)))
        embeds = partial(_embeds, model, ids)
        new = swept(block, sweep.before, positions, embeds, restart, noise.draw, sweep.lead)
        sweep.after[positions] = new.detach()
        return oacd_loss(new, settings.centroid_weight)

    with training_only(model, block) as trainable:
        gradients = GradientAccumulator(trainable.parameters, execution, own.stop - own.start)
        optimizer = torch.optim.Adam(trainable.parameters, lr=settings.lr)
        for iteration in range(2, settings.max_iterations + 1):  # the random start was the first
            # Before the shard comes the one before it; before the first position the last (SPEC section 3).
            lead = group.joined(contexts[-1:], group.size)[group.rank - 1]
            sweep = Sweep(contexts, torch.empty_like(contexts), lead)
            noise.pass_over(shard.start)
            loss = gradients.backward(partial(forward, sweep), batches)
            noise.pass_over(len(stream) - shard.stop)
            gradient_norm = clip_gradients(trainable.parameters, settings.max_grad_norm)
            _check_finite(loss, gradient_norm, history)
            optimizer.step()
            still = round(convergence_rate(contexts, sweep.after, settings.convergence_mse) * len(contexts))
            rate = int(group.total(torch.tensor(still, device=model.device))) / len(stream)
            contexts = sweep.after
            del sweep  # before the next one is made: contexts are large
            history.append(
                Phase1Iteration(
                    iteration=iteration,
                    loss=loss,
                    grad_norm=gradient_norm,
                    convergence_rate=rate,
                    seconds_s=time.perf_counter() - began,
                )
            )
            metrics = {"loss": loss, "converged": rate}
            on_tick(Tick("phase 1", iteration, settings.max_iterations, "iteration", metrics))
            if rate >= settings.convergence_stop:
                break

    # An exhausted budget (`max_iterations`) is not called converged.
    return Phase1Record(
        iterations=iteration,
        stopped="converged" if rate >= settings.convergence_stop else "max_iterations",
        convergence_rate=rate,
        tokens=len(stream),
        seconds_s=time.perf_counter() - began,
        history=tuple(history),
        parts=trainable.parts,
    )


def _start(model: TandemForCausalLM, positions: int, seed: int) -> Tensor:
    """Random contexts [T, C] of standard deviation 1, on the CPU."""
    block = model.context_block
    draws = generator_for(seed, "phase1 start", len(block.layers))
    return torch.randn((positions, block.context_dim), generator=draws)


def _embeds(model: TandemForCausalLM, ids: Tensor, positions: slice) -> Tensor:
    """e_t [n, E] at these positions."""
    return model.embed(ids[positions])


class _Noise:
    """The noise that is added to the contexts which a sweep reads."""

    def __init__(self, model: TandemForCausalLM, settings: Phase1Settings, seed: int) -> None:
        block = model.context_block
        self._std, self._width, self._batch = settings.noise_std, block.context_dim, settings.batch_positions
        purpose = generator_for(seed, "phase1 noise", len(block.layers))
        self._draws = torch.Generator(model.device).manual_seed(purpose.initial_seed())

    def draw(self, contexts: Tensor) -> Tensor:
        """For contexts [n, C]."""
        return self._std * torch.randn(contexts.shape, generator=self._draws, device=contexts.device)

    def pass_over(self, positions: int) -> None:
        """Draw what other processes need for these positions: a sweep has the same noise for any number."""
        for first in range(0, positions, self._batch):
            count = min(self._batch, positions - first)
            torch.randn(count, self._width, generator=self._draws, device=self._draws.device)


def _check_finite(loss: float, gradient_norm: float, history: list[Phase1Iteration]) -> None:
    if loss < math.inf and math.isfinite(gradient_norm):
        return
    last = (
        f"last good values: iteration {history[-1].iteration}, loss {history[-1].loss:.4g}, "
        f"converged {history[-1].convergence_rate:.1%}"
        if history
        else "no iteration before it was good"
    )
    raise NonFiniteLossError.of(
        f"phase 1 was stopped at iteration {len(history) + 2}",
        loss,
        last,
        *(("phase1.lr", "model.weight_init_std") if history else START_SIZES),
    )
