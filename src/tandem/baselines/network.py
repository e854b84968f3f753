"""What networks have in common: their size, how they are trained, how they are scored."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tandem.advice import advice
from tandem.baselines.base import Baseline, BaselineInputs, Fitted
from tandem.errors import NonFiniteLossError, SettingsError
from tandem.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tandem.baselines.rates import RateSearch
    from tandem.contexts import Tokens
    from tandem.metrics import Score
    from tandem.records import Epoch, TrainingRecord
    from tandem.training.checkpoint import Cursor, Stopwatch


class Step(NamedTuple):
    """A step of training: its mean NLL in nats, with gradient, how many tokens it predicts, what it read.

    carried    tensors that the next step of the epoch goes on from.
    penalty    added to the loss for its gradient alone; none: nothing.
    rate       what the schedule's learning rate is multiplied by.
    """

    loss: Tensor
    tokens: int
    read: Mapping[str, Tensor]
    carried: Mapping[str, Tensor] = MappingProxyType({})
    penalty: Tensor | None = None
    rate: float = 1.0


class NetworkBaseline(Baseline):
    """A network with one embedding for input and output, as wide as the parameters allow.

    Its section of the settings has at least `lr`, `weight_decay`, `max_grad_norm` and `max_epochs`.

    warm_up    share of all steps in which the learning rate rises
    """

    section: ClassVar[str]
    sized = True
    warm_up: ClassVar[float] = 0.0

    @abstractmethod
    def widths(self, settings: Settings, max_parameters: int) -> range:
        """The widths to choose from, ascending; all wider ones have more than `max_parameters`."""

    @abstractmethod
    def parameter_count(self, settings: Settings, vocab_size: int, width: int) -> int:
        """Parameters of a network of this width."""

    @abstractmethod
    def build(self, settings: Settings, vocab_size: int, width: int) -> nn.Module:
        """An untrained network, drawn from torch's global generator."""

    @abstractmethod
    def embedding(self, model: Any) -> Tensor:
        """The embedding [V, E]; logits are hidden [n, E] times its transpose."""

    @abstractmethod
    def epoch_size(self, settings: Settings, tokens: int) -> tuple[int, int]:
        """Steps of an epoch on a stream of so many tokens, and how many tokens it predicts."""

    @abstractmethod
    def losses(
        self, model: Any, ids: Tokens, inputs: BaselineInputs, draws: torch.Generator, cursor: Cursor
    ) -> Iterator[Step]:
        """The steps of one epoch on ids [T] that `cursor` has not behind it.

        `inputs.execution` says how a step is computed; `draws` is the training's own generator, as it was at
        the start of the epoch.
        """

    @abstractmethod
    def hidden_parts(self, model: Any, ids: Tensor | Tokens, chunk_positions: int) -> Iterator[Tensor]:
        """What the softmax reads, [n, E] in parts that follow on each other, for ids [T] but the last.

        About `chunk_positions` positions are computed at once.
        """

    def depends_on(self, settings: Settings, max_parameters: int) -> Mapping[str, Any] | None:
        """What is said of time and learning rates as well, where it is."""
        own, shared = super().depends_on(settings, max_parameters), settings.baselines
        budget = {"seconds": shared.seconds, "learning_rates": list(shared.learning_rates)}
        return {**(own or {}), **{name: value for name, value in budget.items() if value}}

    def averaged_epochs(self, settings: Settings, history: Sequence[Epoch]) -> int:  # noqa: ARG002
        """How many epochs, with the one after `history`, weights are averaged over; 0: they are not."""
        return 0

    def fit(self, inputs: BaselineInputs) -> Fitted:
        """See Baseline. Training is on one process, scoring in float32."""
        from tandem.baselines.rates import RateSearch
        from tandem.contexts import Tokens
        from tandem.training.checkpoint import Stopwatch
        from tandem.training.initialization import seeded

        settings, device = inputs.settings, inputs.device
        chunk = settings.phase2.chunk_positions
        assert inputs.seed is not None

        def total(width: int) -> int:
            return self.parameter_count(settings, inputs.vocab_size, width)

        width = widest(total, self.widths(settings, inputs.max_parameters), inputs.max_parameters, self.title)
        validation = Tokens(inputs.validation, device)
        search = RateSearch(settings.baselines.learning_rates, settings.section(self.section).lr)
        while True:
            clock = Stopwatch()
            with seeded(device, inputs.seed, self._name):
                model = self.build(settings, inputs.vocab_size, width).to(device)
                scored = partial(self.score, model, validation, chunk)
                try:
                    score, record = self._train(model, inputs, clock, search, scored)
                except NonFiniteLossError:
                    if not search.add(math.inf, clock.seconds_s):
                        raise
                else:
                    if not search.add(score.nll_nats, clock.seconds_s):
                        break
            inputs.checkpoint.remove()  # of this trial
        embedding = self.embedding(model).numel()
        return Fitted(
            score,
            embedding,
            total(width) - embedding,
            record.model_copy(update={"search": tuple(search.trials)}),
            clock.seconds_s,
            lambda ids: self.score(model, Tokens(ids, device), chunk),
            model.state_dict(),
        )

    def score(self, model: Any, ids: Tensor | Tokens, chunk_positions: int) -> Score:
        """Score of ids [T], all but the first, by a model in eval mode; the softmax is exact.

        Logits of `chunk_positions` positions are held at once.
        """
        import torch

        from tandem.metrics import Score, score_parts

        with torch.no_grad():
            hidden = self.hidden_parts(model, ids, chunk_positions)
            chunks = (chunk for part in hidden for chunk in part.split(chunk_positions))
            losses, correct = score_parts(chunks, self.embedding(model), ids, slice(0, len(ids) - 1))
        return Score.of(losses.float().numpy(), correct)

    def least_parameters(self, settings: Settings, vocab_size: int) -> int:
        """Of the narrowest one."""
        return self.parameter_count(settings, vocab_size, self.widths(settings, 0)[0])

    @property
    def _name(self) -> str:
        return self.section.removeprefix("baselines.")

    def _train(
        self,
        model: nn.Module,
        inputs: BaselineInputs,
        clock: Stopwatch,
        search: RateSearch,
        score: Callable[[], Score],
    ) -> tuple[Score, TrainingRecord]:
        """Train all parameters in place by AdamW; the model ends with the weights of its best epoch.

        All epochs (or seconds) are used, since the learning rate falls to its end over them. The training NLL
        of an epoch is the mean over it, while the weights move.
        """
        from tandem.contexts import Tokens
        from tandem.training.checkpoint import Cursor, Draws
        from tandem.training.initialization import generator_for
        from tandem.training.monitor import TrainingMonitor
        from tandem.training.optimizer import (
            WeightAverage,
            adamw,
            clip_gradients,
            cosine_share,
            set_rate,
            timed_share,
        )

        own, ids = inputs.settings.section(self.section), Tokens(inputs.train, inputs.device)
        assert inputs.seed is not None
        draws = generator_for(inputs.seed, f"{self._name} windows")
        epoch_steps, epoch_tokens = self.epoch_size(inputs.settings, len(ids))
        steps = epoch_steps * own.max_epochs
        limit_s = inputs.settings.baselines.seconds
        lr_setting = "baselines.learning_rates" if search.rates else f"{self.section}.lr"
        monitor = TrainingMonitor(
            *(self.title, lr_setting, own.max_epochs, inputs.on_tick, [model]),
            limit_s=limit_s,
            tell=inputs.checkpoint.tell,
        )
        parameters, snapshots = list(model.parameters()), inputs.snapshots
        cursor = Cursor(device=inputs.device)
        optimizer = adamw(parameters, own.weight_decay, own.lr)
        snapshots.follow(dict(model.named_parameters()), optimizer, epoch_steps)
        inputs.checkpoint.resume(
            weights=model,
            optimizer=optimizer,
            dropout=Draws(inputs.device),
            monitor=monitor,
            snapshots=snapshots,
            clock=clock,
            cursor=cursor,
            search=search,
        )

        def share(seconds_s: float | None) -> float:
            """Of the largest learning rate, for the next step."""
            if limit_s is not None and seconds_s is not None:
                return timed_share(seconds_s / limit_s, self.warm_up)
            done = (cursor.epoch - 1) * epoch_steps + cursor.steps
            return cosine_share(done, steps, round(steps * self.warm_up))

        def goes_on() -> bool:
            """Whether there is a further epoch, or one that was begun."""
            if limit_s is None:
                return bool(cursor.epoch <= own.max_epochs)
            return cursor.steps > 0 or not monitor.history or monitor.seconds_s < limit_s

        while goes_on():
            model.train()
            draws.set_state(cursor.begin(draws.get_state))
            average = WeightAverage(optimizer, self.averaged_epochs(inputs.settings, monitor.history))
            for loss, tokens, read, carried, penalty, rate in self.losses(model, ids, inputs, draws, cursor):
                step, seconds_s = cursor.steps + 1, None if limit_s is None else monitor.seconds_s
                optimizer.zero_grad()
                (loss if penalty is None else loss + penalty).backward()
                nll, gradient_norm = float(loss.detach()), clip_gradients(parameters, own.max_grad_norm)
                monitor.check_step(nll, gradient_norm, cursor)
                ends = limit_s is not None and seconds_s is not None and seconds_s >= limit_s
                set_rate(optimizer, search.lr * share(seconds_s) * rate)
                of_step: partial[dict[str, Tensor]] = partial(dict, read)
                with snapshots.step(cursor.epoch, step, nll, gradient_norm, of_step, seconds_s, ends):
                    optimizer.step()
                average.after_step((average.epochs - 1) * epoch_steps + step)
                cursor.add(nll * tokens, tokens)
                cursor.carried = dict(carried)
                inputs.checkpoint.after_step()
                monitor.step(cursor.seen / epoch_tokens, cursor.mean_loss)
                if ends:
                    break
            last_steps = (cursor.epoch - 1) * epoch_steps + cursor.steps
            model.eval()
            with average.in_place():
                if monitor.end_epoch(cursor.mean_loss, score(), cursor.seen):
                    snapshots.best_epoch()
            cursor.end_epoch()
        return monitor.restore_best(), monitor.record(steps=last_steps)


def random_state(device: torch.device) -> Tensor:
    """Of torch's global generator for a device, from which dropout is drawn there."""
    import torch

    own = torch.random if device.type == "cpu" else getattr(torch, device.type)
    state: Tensor = own.get_rng_state()
    return state


def widest(total: Callable[[int], int], widths: range, max_parameters: int, title: str) -> int:
    """The largest of the ascending `widths` whose `total` of parameters is within max_parameters.

    Raises SettingsError if not even the smallest is.
    """
    for width in reversed(widths):
        if total(width) <= max_parameters:
            return width
    raise SettingsError(
        f"the {title} has {total(widths[0])} parameters even at width {widths[0]}, more than the "
        f"{max_parameters} it may have" + advice(("raise {}", "baselines.max_parameters"))
    )
