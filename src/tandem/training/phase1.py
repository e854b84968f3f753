"""Phase 1: the ContextBlock learns contexts that spread out (SPEC section 3).

One context per position. In each iteration every position reads the previous iteration's context of its
predecessor, plus noise, and produces its new context; the old contexts are constants, so no gradient flows
through time. The loss of a batch rewards dispersion around a centroid that is held at the origin.
"""

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tandem.contexts import Stream, jacobi_sweep
from tandem.errors import NonFiniteLossError
from tandem.metrics import convergence_rate
from tandem.model import TandemForCausalLM
from tandem.records import PartRecord, Phase1Iteration
from tandem.settings import Phase1Settings
from tandem.training.initialization import generator_for
from tandem.training.progress import OnTick, Tick, silent
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


def train_context_block(
    model: TandemForCausalLM,
    stream: Stream,
    settings: Phase1Settings,
    seed: int,
    on_tick: OnTick = silent,
) -> Phase1Result:
    """Train model.context_block in place, on the stream's first `max_tokens` tokens.

    Embedding and embed_norm are read and never changed; `embed_norm` is frozen throughout Tandem, and not
    counted as trained. Raises NonFiniteLossError before a non-finite step would reach the weights.
    """
    began = time.perf_counter()
    block = model.context_block
    stream = stream.first(settings.max_tokens or len(stream))
    depth = len(block.layers)
    start = torch.randn(
        (len(stream), block.context_dim), generator=generator_for(seed, "phase1 start", depth)
    )
    contexts = (start * settings.start_std).to(model.device)
    draws = torch.Generator(model.device).manual_seed(
        generator_for(seed, "phase1 noise", depth).initial_seed()
    )
    batches = -(-len(stream) // settings.batch_positions)
    history: list[Phase1Iteration] = []
    rate = 0.0

    def embeds(positions: slice) -> Tensor:
        return model.embed(stream.ids[positions])

    def noise(read: Tensor) -> Tensor:
        return settings.noise_std * torch.randn(read.shape, generator=draws, device=read.device)

    with training_only(model, block) as trained:
        optimizer = torch.optim.Adam(trained.parameters, lr=settings.lr)
        for iteration in range(2, settings.max_iterations + 1):  # the random start was the first
            optimizer.zero_grad()
            swept = torch.empty_like(contexts)
            losses: list[Tensor] = []
            for positions, new in jacobi_sweep(
                block, contexts, embeds, stream.restart, settings.batch_positions, noise
            ):
                batch_loss = oacd_loss(new, settings.centroid_weight)
                (batch_loss / batches).backward()
                losses.append(batch_loss.detach())
                swept[positions] = new.detach()
            gradient_norm = torch.nn.utils.clip_grad_norm_(trained.parameters, settings.max_grad_norm)
            loss = float(torch.stack(losses).mean())
            if not (math.isfinite(loss) and torch.isfinite(gradient_norm)):
                raise NonFiniteLossError(_non_finite(iteration, loss, history))
            optimizer.step()

            rate = convergence_rate(contexts, swept, settings.convergence_mse)
            contexts = swept
            history.append(
                Phase1Iteration(
                    iteration=iteration,
                    loss=loss,
                    grad_norm=float(gradient_norm),
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


def _non_finite(iteration: int, loss: float, history: list[Phase1Iteration]) -> str:
    last = (
        f"last good values: iteration {history[-1].iteration}, loss {history[-1].loss:.4g}, "
        f"converged {history[-1].convergence_rate:.1%}"
        if history
        else "no iteration before it was good"
    )
    return (
        f"phase 1 was stopped at iteration {iteration}: the loss or its gradient is not finite "
        f"(loss {loss}); {last}; try a lower --phase1.lr or --model.weight-init-std"
    )
