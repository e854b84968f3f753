"""What the LSTM and the GPT-2 have in common: their size, how they are trained, how they are scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tandem.advice import advice
from tandem.baselines.base import Baseline, BaselineInputs, Fitted
from tandem.errors import SettingsError
from tandem.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tandem.contexts import Tokens
    from tandem.metrics import Score
    from tandem.records import TrainingRecord
    from tandem.training.checkpoint import Cursor, Stopwatch


class Step(NamedTuple):
    """A step of training: its mean NLL in nats, with gradient, how many tokens it predicts, what it read.

    carried    tensors that the next step of the epoch goes on from.
    """

    loss: Tensor
    tokens: int
    read: Mapping[str, Tensor]
    carried: Mapping[str, Tensor] = MappingProxyType({})


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

    def fit(self, inputs: BaselineInputs) -> Fitted:
        """See Baseline. Training is on one process, scoring in float32."""
        from tandem.contexts import Tokens
        from tandem.training.checkpoint import Stopwatch
        from tandem.training.initialization import seeded

        clock, settings, device = Stopwatch(), inputs.settings, inputs.device
        chunk = settings.phase2.chunk_positions
        assert inputs.seed is not None

        def total(width: int) -> int:
            return self.parameter_count(settings, inputs.vocab_size, width)

        width = widest(total, self.widths(settings, inputs.max_parameters), inputs.max_parameters, self.title)
        validation = Tokens(inputs.validation, device)
        with seeded(device, inputs.seed, self._name):
            model = self.build(settings, inputs.vocab_size, width).to(device)
            score, record = self._train(model, inputs, clock, lambda: self.score(model, validation, chunk))
        embedding = self.embedding(model).numel()
        return Fitted(
            score,
            embedding,
            total(width) - embedding,
            record,
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
        self, model: nn.Module, inputs: BaselineInputs, clock: Stopwatch, score: Callable[[], Score]
    ) -> tuple[Score, TrainingRecord]:
        """Train all parameters in place by AdamW; the model ends with the weights of its best epoch.

        All epochs are run, since the learning rate falls to its end over them. The training NLL of an epoch
        is the mean over it, while the weights move.
        """
        import torch

        from tandem.contexts import Tokens
        from tandem.training.checkpoint import Cursor, Draws
        from tandem.training.initialization import generator_for
        from tandem.training.monitor import TrainingMonitor
        from tandem.training.optimizer import adamw, clip_gradients, cosine_share

        own, ids = inputs.settings.section(self.section), Tokens(inputs.train, inputs.device)
        assert inputs.seed is not None
        draws = generator_for(inputs.seed, f"{self._name} windows")
        epoch_steps, epoch_tokens = self.epoch_size(inputs.settings, len(ids))
        steps = epoch_steps * own.max_epochs
        monitor = TrainingMonitor(
            *(self.title, f"{self.section}.lr", own.max_epochs, inputs.on_tick, [model]),
            tell=inputs.checkpoint.tell,
        )
        parameters, snapshots, cursor = (
            list(model.parameters()),
            inputs.snapshots,
            Cursor(device=inputs.device),
        )
        optimizer = adamw(parameters, own.weight_decay, own.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_share(step, steps, round(steps * self.warm_up))
        )
        snapshots.follow(dict(model.named_parameters()), optimizer, epoch_steps)
        inputs.checkpoint.resume(
            weights=model,
            optimizer=optimizer,
            schedule=schedule,
            dropout=Draws(inputs.device),
            monitor=monitor,
            snapshots=snapshots,
            clock=clock,
            cursor=cursor,
        )
        while cursor.epoch <= own.max_epochs:
            model.train()
            draws.set_state(cursor.begin(draws.get_state))
            for loss, tokens, read, carried in self.losses(model, ids, inputs, draws, cursor):
                step = cursor.steps + 1
                optimizer.zero_grad()
                loss.backward()
                nll, gradient_norm = float(loss.detach()), clip_gradients(parameters, own.max_grad_norm)
                monitor.check_step(nll, gradient_norm, cursor)
                with snapshots.step(cursor.epoch, step, nll, gradient_norm, partial(dict, read)):
                    optimizer.step()
                schedule.step()
                cursor.add(nll * tokens, tokens)
                cursor.carried = dict(carried)
                inputs.checkpoint.after_step()
                monitor.step(cursor.seen / epoch_tokens, cursor.mean_loss)
            model.eval()
            if monitor.end_epoch(cursor.mean_loss, score(), cursor.seen):
                snapshots.best_epoch()
            cursor.end_epoch()
        return monitor.restore_best(), monitor.record()


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
