"""Phase 1 of recipe `original`: the ContextBlock learns contexts that spread out (OACD, SPEC section 3).

One context per position. In each iteration every position reads the previous iteration's context of its
predecessor, plus noise, and produces its new context; the old contexts are constants, so no gradient flows
through time. The loss of a batch rewards dispersion around a centroid that is held at the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tandem.errors import MisfitError, NonFiniteLossError, is_finite
from tandem.objectives.base import Objective, Phase1Inputs, large_batch
from tandem.records import Phase1Record, Record
from tandem.settings import Phase1Settings, Settings
from tandem.training.progress import Tick

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tandem.contexts import Stream
    from tandem.group import Group
    from tandem.model import TandemForCausalLM


KEPT_BYTES = 16 << 20
"""Contexts of a sweep that take no more are kept whole in a snapshot; else there are none in it."""


MANY_NUMBERS = 1 << 21
"""Numbers in the embeddings of a batch, beyond which each distinct token is multiplied once only.

A batch of 5,000 at E 768 holds 700 distinct ones. Smaller batches gain little, and keep their rounding.
"""


class Phase1Iteration(Record):
    """One iteration; the random start is iteration 1 and has no entry."""

    iteration: int
    loss: float
    grad_norm: float
    convergence_rate: float
    """Share of positions whose mean squared change since the last iteration is below the threshold."""
    seconds_s: float
    """Since the start of phase 1."""


class DispersionRecord(Phase1Record):
    """Result of phase 1 by dispersion; `tokens` are those that a sweep goes over."""

    iterations: int
    stopped: Literal["converged", "max_iterations"]
    convergence_rate: float
    history: tuple[Phase1Iteration, ...]


class Dispersion(Objective):
    """Spreads contexts by Jacobi sweeps until most of them no longer move."""

    section = "phase1"
    record_type = DispersionRecord
    memory_settings = ("phase1.batch_positions", *Objective.memory_settings)

    def train(self, inputs: Phase1Inputs) -> DispersionRecord:
        """On `tokens_per_step` tokens of the stream, or on all of them.

        Embedding and embed_norm are read and never changed; `embed_norm` is frozen throughout Tandem, and not
        counted as trained. The processes share the batches. Raises NonFiniteLossError before a
        non-finite step would reach the weights, SettingsError for fewer batches than processes.
        """
        import torch

        from tandem.contexts import jacobi_read
        from tandem.metrics import convergence_rate
        from tandem.training.checkpoint import Draws, History, Stopwatch
        from tandem.training.gradients import GradientAccumulator
        from tandem.training.initialization import generator_for
        from tandem.training.optimizer import clip_gradients
        from tandem.training.trainable import training_only

        clock, model, execution = Stopwatch(), inputs.model, inputs.execution
        group, phase1 = execution.group, inputs.settings.phase1
        block, size = model.context_block, phase1.batch_positions
        stream = windows_of(inputs.stream, phase1)
        batches = math.ceil(len(stream) / size)
        group.check_enough(batches, "phase1.batch_positions")
        own = group.share(batches)
        # From here on positions are those of the process's own batches, which follow on each other.
        shard = slice(own.start * size, min(own.stop * size, len(stream)))
        ids, resets = stream.ids[shard], None if stream.resets is None else stream.resets[shard]
        noise, history = _Noise(model, phase1, inputs.seed), History(Phase1Iteration)
        swept = _SweptContexts(group, batches, size, shard, model.device)

        def update(read: Tensor, positions: slice) -> Tensor:
            """New contexts [n, C] with their graph, of what positions read, [n, C]."""
            of_batch = ids[positions]
            if len(of_batch) * model.config.embed_dim <= MANY_NUMBERS:
                return block(read, model.embed(of_batch))
            tokens, rows = of_batch.unique(return_inverse=True)
            return block.token_steps(model.embed(tokens))(read, rows)

        def forward(sweep: Sweep, batch: slice) -> Tensor:
            """The loss of one batch, a scalar with gradients; its new contexts go to the sweep."""
            first = (batch.start - own.start) * size
            positions = slice(first, min(first + size, len(ids)))
            new = update(jacobi_read(sweep.before, positions, resets, noise.draw, sweep.lead), positions)
            sweep.after[positions] = new.detach()
            return oacd_loss(new, phase1.centroid_weight)

        def documents(sweep: Sweep) -> str:
            """Those of which contexts are not finite, in what this process sweeps over."""
            broken = (~sweep.after.isfinite().all(1)).nonzero()[:, 0] + shard.start
            if len(stream) < len(inputs.stream):
                broken = inputs.stream.window_positions(len(stream), size)[broken]
            return inputs.stream.read_at(broken)

        with training_only(model, block) as trainable:
            gradients = GradientAccumulator(trainable.parameters, execution, own.stop - own.start)
            optimizer = torch.optim.Adam(trainable.parameters, lr=phase1.lr)
            if group.size == 1:  # else what a step read is spread over the processes
                inputs.snapshots.follow(trainable.named, optimizer, 1)
            if not inputs.checkpoint.resume(
                group,
                model.device,
                weights=trainable,
                optimizer=optimizer,
                noise=Draws(noise.generator),
                snapshots=inputs.snapshots,
                history=history,
                contexts=swept,
                clock=clock,
            ):
                draws = generator_for(inputs.seed, "phase1 start", len(block.layers))
                # Under no name of its own, the draw is freed here: it may take gigabytes.
                start = (
                    torch.randn((len(stream), block.context_dim), generator=draws)[shard] * phase1.start_std
                )
                swept.own = start.to(model.device)
                del start
            contexts = swept.own
            while not _ended(history, phase1):
                iteration = len(history) + 2  # the random start was the first
                # Before the shard comes the one before it; before the first the last (SPEC section 3).
                lead = group.joined(contexts[-1:], group.size)[group.rank - 1]
                sweep = Sweep(contexts, torch.empty_like(contexts), lead)
                drawn = noise.state
                noise.pass_over(shard.start)
                loss = gradients.backward(partial(forward, sweep), batches)
                noise.pass_over(len(stream) - shard.stop)
                gradient_norm = clip_gradients(trainable.parameters, phase1.max_grad_norm)
                _check_finite(loss, gradient_norm, history, partial(documents, sweep))
                with inputs.snapshots.step(iteration - 1, 1, loss, gradient_norm, partial(sweep.read, drawn)):
                    optimizer.step()
                still = round(convergence_rate(contexts, sweep.after, phase1.convergence_mse) * len(contexts))
                rate = int(group.total(torch.tensor(still, device=model.device))) / len(stream)
                contexts = swept.own = sweep.after
                del sweep  # before the next one is made: contexts are large
                history.append(
                    Phase1Iteration(
                        iteration=iteration,
                        loss=loss,
                        grad_norm=gradient_norm,
                        convergence_rate=rate,
                        seconds_s=clock.seconds_s,
                    )
                )
                metrics = {"loss": loss, "converged": rate}
                inputs.on_tick(Tick("phase 1", iteration, phase1.max_iterations, "iteration", metrics))
                inputs.checkpoint.after_step()

        # An exhausted budget (`max_iterations`) is not called converged.
        rate = history[-1].convergence_rate
        return DispersionRecord(
            iterations=history[-1].iteration,
            stopped="converged" if rate >= phase1.convergence_stop else "max_iterations",
            convergence_rate=rate,
            tokens=len(stream),
            seconds_s=clock.seconds_s,
            history=tuple(history),
            parts=trainable.parts,
        )

    def swept_tokens(self, settings: Settings, tokens: int) -> int:
        """Those of a sweep."""
        return min(settings.phase1.tokens_per_step or tokens, tokens)

    def misfits(self, settings: Settings, tokens: int) -> Iterator[MisfitError]:
        """A batch larger than what a sweep goes over, beside what any objective without heads refuses."""
        swept, batch = self.swept_tokens(settings, tokens), settings.phase1.batch_positions
        if batch > swept:
            yield large_batch("phase1", batch, swept, swept)
        yield from super().misfits(settings, tokens)

    def summary(self, record: DispersionRecord) -> str:
        """Iterations, and why they ended."""
        stopped = record.stopped.replace("_", " ")
        return f"{record.iterations} iterations, {record.convergence_rate:.1%} converged ({stopped})"

    def audit(self, record: DispersionRecord, settings: Settings, tokens: int) -> Iterator[str]:
        """Tokens swept over, the end of the history, and the reason to stop."""
        swept = self.swept_tokens(settings, tokens)
        if record.tokens != swept:
            yield f"it swept {record.tokens} tokens instead of {swept}"
        last = record.history[-1]
        if (last.iteration, last.convergence_rate) != (record.iterations, record.convergence_rate):
            yield "its iterations or convergence rate are not those its history ends with"
        if (record.stopped == "converged") != (record.convergence_rate >= settings.phase1.convergence_stop):
            yield f"it says '{record.stopped}' at a convergence rate of {record.convergence_rate:.1%}"

    def evaluate(self, model: TandemForCausalLM, stream: Stream, settings: Settings) -> dict[str, float]:
        """Conv% of a finished block: phase 1's sweeps, with its noise and stop rule, and weights that stay.

        `convergence_rate`, and the `iterations` it took; the random start counts as the first.
        """
        import torch

        from tandem.contexts import jacobi_sweep
        from tandem.metrics import convergence_rate
        from tandem.training.initialization import generator_for

        phase1 = settings.phase1
        stream = windows_of(stream, phase1)
        draws = generator_for(0, "evaluation")
        shape = (len(stream), model.config.context_dim)
        contexts = (torch.randn(shape, generator=draws) * phase1.start_std).to(model.device)

        def noise(read: Tensor) -> Tensor:
            return (torch.randn(read.shape, generator=draws) * phase1.noise_std).to(read)

        def embeds(positions: slice) -> Tensor:
            return model.embed(stream.ids[positions])

        rate, iteration = 0.0, 1
        with torch.no_grad():
            while iteration < phase1.max_iterations and rate < phase1.convergence_stop:
                iteration += 1
                sweep = jacobi_sweep(
                    model.context_block, contexts, embeds, stream.resets, phase1.batch_positions, noise
                )
                swept = torch.empty_like(contexts)
                for positions, new in sweep:
                    swept[positions] = new
                rate = convergence_rate(contexts, swept, phase1.convergence_mse)
                contexts = swept
        return {"convergence_rate": rate, "iterations": iteration}


@dataclass(frozen=True)
class Sweep:
    """One Jacobi sweep over consecutive positions [n]: their contexts before it, and after it.

    lead    [C] context of the position before the first one
    """

    before: Tensor
    after: Tensor
    lead: Tensor

    def read(self, noise: Tensor) -> dict[str, Tensor]:
        """For a snapshot: the noise's state before the sweep, and the contexts where they are few."""
        few = self.before.nbytes <= KEPT_BYTES
        return {"noise": noise} | ({"contexts": self.before, "lead": self.lead} if few else {})


def oacd_loss(contexts: Tensor, centroid_weight: float = 0.1) -> Tensor:
    """Origin-anchored centroid dispersion of contexts X [n, C] with mean m: −‖X − m‖_F / n + w·‖m‖²."""
    centroid = contexts.mean(dim=0)
    return -(contexts - centroid).norm() / len(contexts) + centroid_weight * centroid.square().sum()


def windows_of(stream: Stream, settings: Phase1Settings) -> Stream:
    """What phase 1 sweeps over: `tokens_per_step` tokens in windows of a batch each, or the whole stream."""
    tokens = settings.tokens_per_step or len(stream)
    return stream if tokens >= len(stream) else stream.windows(tokens, settings.batch_positions)


class _SweptContexts:
    """The contexts of all positions of a sweep, of which a process has those of its batches.

    own    [n, C], those of its `shard` of the positions.
    """

    own: Tensor

    def __init__(self, group: Group, batches: int, size: int, shard: slice, device: torch.device) -> None:
        self._group, self._batches, self._size = group, batches, size
        self._shard, self._device = shard, device

    def state_dict(self) -> dict[str, Tensor]:
        """Those of all processes, with zeros up to the end of the last batch."""
        if self._group.size == 1:
            return {"contexts": self.own}
        count = math.ceil(len(self.own) / self._size)
        padded = self.own.new_zeros(count * self._size, self.own.shape[1])
        padded[: len(self.own)] = self.own
        whole = self._group.joined(padded.view(count, self._size, -1), self._batches)
        return {"contexts": whole.flatten(0, 1)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the own ones."""
        self.own = state["contexts"][self._shard].to(self._device)


class _Noise:
    """The noise that is added to the contexts which a sweep reads."""

    def __init__(self, model: TandemForCausalLM, settings: Phase1Settings, seed: int) -> None:
        import torch

        from tandem.training.initialization import generator_for

        block = model.context_block
        self._std, self._width, self._batch = settings.noise_std, block.context_dim, settings.batch_positions
        seed = generator_for(seed, "phase1 noise", len(block.layers)).initial_seed()
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self._draw = partial(torch.randn, generator=self.generator, device=model.device)

    @property
    def state(self) -> Tensor:
        """Of the random numbers, uint8."""
        return self.generator.get_state()

    def draw(self, contexts: Tensor) -> Tensor:
        """For contexts [n, C]."""
        drawn: Tensor = self._draw(contexts.shape)
        return drawn.mul_(self._std)

    def pass_over(self, positions: int) -> None:
        """Draw what other processes need for these positions: a sweep has the same noise for any number."""
        for first in range(0, positions, self._batch):
            self._draw((min(self._batch, positions - first), self._width))


def _ended(history: Sequence[Phase1Iteration], settings: Phase1Settings) -> bool:
    """Whether most contexts no longer move, or no further iteration may be made."""
    if not history:
        return False
    last = history[-1]
    return last.convergence_rate >= settings.convergence_stop or last.iteration >= settings.max_iterations


def _check_finite(
    loss: float, gradient_norm: float, history: list[Phase1Iteration], read: Callable[[], str]
) -> None:
    if is_finite(loss, gradient_norm):
        return
    from tandem.training.initialization import START_SIZES

    stopped = f"phase 1 was stopped at iteration {len(history) + 2}{read()}"
    last, lower = "no iteration before it was good", START_SIZES
    if history:
        good, lower = history[-1], ("phase1.lr", "model.weight_init_std")
        last = (
            f"last good values: iteration {good.iteration}, loss {good.loss:.4g}, "
            f"converged {good.convergence_rate:.1%}"
        )
    NonFiniteLossError.check(loss, gradient_norm, stopped, last, *lower)
