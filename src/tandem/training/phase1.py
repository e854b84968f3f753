"""Phase 1: the ContextBlock learns contexts that spread out (SPEC section 3).

One context per position. In each iteration every position reads the previous iteration's context of its
predecessor, plus noise, and produces its new context; the old contexts are constants, so no gradient flows
through time. The loss of a batch rewards dispersion around a centroid that is held at the origin.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Literal, NoReturn

import torch
from torch import Tensor

from tandem.contexts import Stream, swept
from tandem.errors import NonFiniteLossError
from tandem.metrics import convergence_rate
from tandem.model import TandemForCausalLM
from tandem.records import PartRecord, Phase1Iteration
from tandem.settings import Phase1Settings
from tandem.training.execution import PLAIN, Execution
from tandem.training.initialization import START_SIZES, generator_for
from tandem.training.progress import OnTick, Tick, silent
from tandem.training.steps import Steps
from tandem.training.trainable import training_only


@dataclass(frozen=True)
class Phase1Result:
    """How phase 1 ended. An exhausted budget (`max_iterations`) is not called converged."""

    iterations: int
    stopped: Literal["converged", "max_iterations"]
    convergence_rate: float
    tokens: int
    seconds_s: float
    history: tuple[Phase1Iteration, ...]
    parts: tuple[PartRecord, ...]


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
) -> Phase1Result:
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
    # From here on positions are those of the process's own batches, which follow on each other.
    own = group.share(batches)
    shard = slice(own.start * size, min(own.stop * size, len(stream)))
    depth = len(block.layers)
    start = torch.randn(
        (len(stream), block.context_dim), generator=generator_for(seed, "phase1 start", depth)
    )
    contexts = (start[shard] * settings.start_std).to(model.device)
    del start  # as large as the contexts
    ids = stream.ids[shard]
    restart = None if stream.restart is None else stream.restart[shard]
    draws = torch.Generator(model.device).manual_seed(
        generator_for(seed, "phase1 noise", depth).initial_seed()
    )
    history: list[Phase1Iteration] = []
    rate = 0.0

    def embeds(positions: slice) -> Tensor:
        return model.embed(ids[positions])

    def noise(read: Tensor) -> Tensor:
        return settings.noise_std * torch.randn(read.shape, generator=draws, device=read.device)

    def pass_over(first: int, last: int) -> None:
        """Draw the noise of other processes' batches, so that a sweep has the same noise for any number."""
        for batch in range(first, last):
            count = min(size, len(stream) - batch * size)
            noise(contexts.new_empty(1).expand(count, block.context_dim))

    with training_only(model, block) as trained:
        optimizer = torch.optim.Adam(trained.parameters, lr=settings.lr)
        steps = Steps(
            [block],
            trained.parameters,
            optimizer,
            None,
            settings.max_grad_norm,
            execution,
            own.stop - own.start,
        )
        for iteration in range(2, settings.max_iterations + 1):  # the random start was the first
            new = torch.empty_like(contexts)
            # The last context before the shard; before the first position comes the last (SPEC section 3).
            lead = group.joined(contexts[-1:], group.size)[group.rank - 1]

            def loss_of(
                batch: slice, contexts: Tensor = contexts, new: Tensor = new, lead: Tensor = lead
            ) -> Tensor:
                first = (batch.start - own.start) * size
                positions = slice(first, min(first + size, len(contexts)))
                made = swept(block, contexts, positions, embeds, restart, noise, lead)
                new[positions] = made.detach()
                return oacd_loss(made, settings.centroid_weight)

            pass_over(0, own.start)
            loss, gradient_norm = steps.take(batches, loss_of, partial(_not_finite, history))
            del loss_of  # which holds on to the contexts before
            pass_over(own.stop, batches)
            still = round(convergence_rate(contexts, new, settings.convergence_mse) * len(contexts))
            rate = int(group.total(torch.tensor(still, device=model.device))) / len(stream)
            contexts = new
            history.append(
                Phase1Iteration(
                    iteration=iteration,
                    loss=loss,
                    grad_norm=gradient_norm,
                    convergence_rate=rate,
                    seconds_s=time.perf_counter() - began,
                )
            )
            figures = {"loss": loss, "converged": rate}
            on_tick(Tick("phase 1", iteration, settings.max_iterations, "iteration", figures))
            if rate >= settings.convergence_stop:
                break

    return Phase1Result(
        iterations=history[-1].iteration,
        stopped="converged" if rate >= settings.convergence_stop else "max_iterations",
        convergence_rate=rate,
        tokens=len(stream),
        seconds_s=time.perf_counter() - began,
        history=tuple(history),
        parts=trained.parts,
    )


def _not_finite(history: list[Phase1Iteration], loss: float) -> NoReturn:
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
