"""What a run says of itself, replayed from its own history and held against the settings that it names.

Nothing here uses training code: who stops when, which epoch is best, and how large a network is, is worked
out again from the definitions in the settings.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tandem.fingerprint import fingerprint
from tandem.records import Check, Epoch, RunRecord, TrainingRecord, ValidationRecord
from tandem.settings import Settings

ROUNDING = 1e-9
"""Relative difference of two sums of the same numbers."""
SAME_NLL = 1e-3
"""Nats by which a head may score differently in phase 1 and at the start of phase 2."""
RISE, USUAL_LR = 0.3, 0.1
"""Nats by which training NLL may rise over all epochs, and the largest usual learning rate."""
LONGEST_TOKEN = 256
"""Bytes of a long token: those of the first token are not scored, unless it only marks a document's start."""


def history_check(written: Mapping[str, Any], record: RunRecord, records: Sequence[RunRecord]) -> Check:
    """`history` of one finished run, with the settings as they were written down and all finished records."""
    reference, allowed = baseline_limits(written, records)
    own = variant_settings(written, record.variant) if record.is_tandem else reference
    doubts = list(_doubts(record, own))
    wrong = [*_times(record), *_scores(record, own)]
    if record.is_tandem:
        wrong += [*_contexts(record, own), *_phase1(record, own), *_phase2(record, own)]
    else:
        said = list(_baseline(record, own, allowed))
        if _other_settings(record, own, allowed):
            doubts += ["its settings are not those that are written down", *said]
        else:
            wrong += said
    epochs = len(record.trained.history) if record.trained else 0
    return Check(
        name="history",
        looked_at="the run's own history, replayed plainly: epochs, stop, best epoch, figures, times, sizes",
        figure="; ".join([*wrong, *doubts]) or f"{epochs} epochs as the settings say",
        status="fail" if wrong else "warn" if doubts else "pass",
    )


# Settings


def variant_values(written: Mapping[str, Any], variant: str | None) -> dict[str, Any]:
    """Settings as they were written down, with what a variant changes; a model folder has no variants."""
    values = {key: value for key, value in written.items() if key != "variants"}
    for key, change in ((written.get("variants") or {}).get(variant) or {}).items():
        before = values.get(key)
        both = isinstance(before, Mapping) and isinstance(change, Mapping)
        values[key] = {**before, **change} if both else change  # type: ignore[dict-item]
    return values


def variant_settings(written: Mapping[str, Any], variant: str | None) -> Settings:
    """The same, typed."""
    return Settings(**variant_values(written, variant))


def baseline_limits(written: Mapping[str, Any], records: Iterable[RunRecord]) -> tuple[Settings, int | None]:
    """Settings whose sizes the baselines are given, and the parameters they may have; None: not known.

    They are those of the variant whose smallest configuration is the largest.
    """
    sizes: dict[str | None, dict[tuple[int | None, int | None], int]] = {}
    for r in records:
        if r.kind == "tandem" and r.parameters is not None:
            sizes.setdefault(r.variant, {})[r.context_layers, r.token_layers] = r.parameters.total
    grid = {(context, token) for context, token in Settings(**written).configurations}
    names: list[str | None] = list(written.get("variants") or ()) or [None]
    if not all(grid <= sizes.get(name, {}).keys() for name in names):
        return variant_settings(written, names[0]), None
    smallest = {name: min(sizes[name][depths] for depths in grid) for name in names}
    largest = max(names, key=lambda name: smallest[name])
    settings = variant_settings(written, largest)
    return settings, settings.baselines.max_parameters or smallest[largest]


def _other_settings(record: RunRecord, settings: Settings, allowed: int | None) -> bool:
    """Whether a baseline names other settings of its own than those that are written down."""
    own = _network_section(record, settings)
    if own is None or allowed is None:
        return False
    now = {"max_parameters": allowed, **own.model_dump(mode="json")}
    return record.baseline_fingerprint != fingerprint("baseline", record.kind, now)


def _network_section(record: RunRecord, settings: Settings) -> Any:
    """Settings of the LSTM or GPT-2; None of other baselines, which train nothing or bring their own."""
    return {"lstm": settings.baselines.lstm, "gpt2": settings.baselines.gpt2}.get(record.kind)


# All runs


def _times(record: RunRecord) -> Iterator[str]:
    """Seconds as the sum of their parts."""
    parts = {"phase 2": record.phase2.seconds_s if record.phase2 else 0.0}
    if record.contexts:
        scans = record.contexts.train.seconds_s + record.contexts.validation.seconds_s
        yield from _unequal("seconds of its contexts", record.contexts.seconds_s, scans)
        parts["contexts"] = record.contexts.seconds_s
    if record.phase1:
        parts["phase 1"] = record.phase1.seconds_s
    alone, spent = record.seconds_alone_s, record.seconds_spent_s
    if record.is_tandem:
        yield from _unequal("seconds alone", alone, math.fsum(parts.values()))
        here = record.phase1_computed_here
        yield from _unequal("seconds spent", spent, math.fsum(parts.values()) if here else parts["phase 2"])
    else:
        yield from _unequal("seconds spent", spent, alone)
        if record.training and record.training.seconds_s > alone:
            yield f"its training took {record.training.seconds_s:.2f} s, and the whole run {alone:.2f} s"
    for name, seconds in {**parts, "run": spent}.items():
        if not 0 <= seconds < math.inf:
            yield f"its {name} took {seconds} s"


def _scores(record: RunRecord, settings: Settings) -> Iterator[str]:
    """Validation figures against each other."""
    said = record.validation
    assert said is not None
    scored = record.data.validation_tokens - 1
    if said.tokens != scored:
        yield f"validation scored {said.tokens} tokens, and there are {scored}"
    yield from _loss("validation NLL", said.nll_nats)
    yield from _exponential("validation PPL", said.perplexity, said.nll_nats)
    yield from _share_of_tokens("validation accuracy", said.accuracy, said.tokens)
    yield from _bits(record, said, settings)
    if said.documents is not None:
        tokens, nll = said.documents.unpack()
        mean = float(nll.sum()) / max(int(tokens.sum()), 1)
        if not math.isclose(mean, said.nll_nats, rel_tol=1e-5, abs_tol=1e-6):
            yield f"its documents have the mean NLL {mean:.6f}, and it says {said.nll_nats:.6f}"
        if int(tokens.sum()) != scored or len(tokens) != record.data.validation_documents:
            yield (
                f"its {len(tokens)} documents hold {int(tokens.sum())} scored tokens, and there are "
                f"{record.data.validation_documents} with {scored}"
            )


def _bits(record: RunRecord, said: ValidationRecord, settings: Settings) -> Iterator[str]:
    """Bits per byte lie between those over all bytes and those over all but a first token's."""
    bits = said.nll_nats * said.tokens / math.log(2) + 8 * record.data.validation_lost_bytes
    marked = settings.tokenizer.source == "bpe" and settings.data.separators["validation"] == "eos"
    most = max(record.data.validation_bytes, 1)
    least = max(most - (0 if marked else LONGEST_TOKEN), 1)
    low, high = bits / most * (1 - ROUNDING), bits / least * (1 + ROUNDING)
    if math.isfinite(bits) and not low <= said.bits_per_byte <= high:
        yield f"bits per byte are {said.bits_per_byte:.4f}, and its NLL gives {bits / most:.4f}"


def _doubts(record: RunRecord, settings: Settings) -> Iterator[str]:
    """What is odd, and no error by itself."""
    section = _network_section(record, settings) or settings.phase2
    epochs = [e for e in record.trained.history if e.epoch > 0] if record.trained else []
    if len(epochs) > 1 and section.lr <= USUAL_LR:
        first, last = epochs[0].train_nll_nats, epochs[-1].train_nll_nats
        if last > first + RISE:
            yield f"training NLL rose from {first:.3f} in the first epoch to {last:.3f} in the last"


# Phases


def _contexts(record: RunRecord, settings: Settings) -> Iterator[str]:
    said = record.contexts
    assert said is not None
    for split, scan in (("training", said.train), ("validation", said.validation)):
        tokens = getattr(record.data, "train_tokens" if split == "training" else "validation_tokens")
        if scan.tokens != tokens:
            yield f"{split} contexts are of {scan.tokens} tokens, and there are {tokens}"
        if scan.tolerance != settings.contexts.tolerance:
            right = settings.contexts.tolerance
            yield f"{split} contexts had the tolerance {scan.tolerance:g}, the settings say {right:g}"
        if not max(scan.loop_error, scan.join_error) <= scan.tolerance:
            yield f"{split} contexts are beyond their tolerance of {scan.tolerance:g}"
        if settings.contexts.method == "loop" and scan.method != "loop":
            yield f"{split} contexts came by {scan.method}, the settings say loop"
    for split, rank in (
        ("training", said.effective_rank_train),
        ("validation", said.effective_rank_validation),
    ):
        if not 0 <= rank <= 1 + ROUNDING:
            yield f"the effective rank of {split} contexts is {rank}"
    distances = [point.distance for point in said.memory]
    if distances != sorted(set(distances)) or distances[:1] not in ([], [0]):
        yield f"its memory is of the distances {distances}, which do not rise from 0"
    if not all(0 <= point.change < math.inf for point in said.memory):
        yield "its memory has a change that is negative or not finite"


def _phase1(record: RunRecord, settings: Settings) -> Iterator[str]:
    """Phase 1 of the recipes that Tandem brings; of a control there is none."""
    said: Any = record.phase1
    if said is None:
        if record.kind == "tandem":
            yield "it has no phase 1"
        return
    if record.recipe not in ("original", "predictive"):
        return
    dispersion = record.recipe == "original"
    name = "iteration" if dispersion else "epoch"
    history = said.history
    yield from _rising(f"phase 1, {name}", [(getattr(e, name), e.seconds_s) for e in history], said.seconds_s)
    values = [(getattr(e, name), e.loss if dispersion else e.train_nll_nats, e.grad_norm) for e in history]
    yield from _repeated(f"{name}s", "loss in phase 1", [value[:2] for value in values])
    for number, loss, norm in values:
        if not (math.isfinite(loss) and 0 <= norm < math.inf) or not (dispersion or loss >= 0):
            yield f"phase 1 has the loss {loss} and gradient norm {norm} in {name} {number}"
    numbers = [value[0] for value in values]
    first = 2 if dispersion else 1
    yield from _numbered(f"phase 1, {name}s", numbers, first)
    last = numbers[-1] if numbers else 0
    said_last = said.iterations if dispersion else said.epochs
    if said_last != last:
        yield f"phase 1 says {said_last} {name}s, and its history ends with {last}"
    yield from _dispersion(record, settings) if dispersion else _prediction(record, settings)


def _dispersion(record: RunRecord, settings: Settings) -> Iterator[str]:
    """The stop, replayed: the first iteration with enough converged positions, else the last one allowed."""
    said: Any = record.phase1
    own, rates = settings.phase1, [(e.iteration, e.convergence_rate) for e in said.history]
    tokens = record.data.train_tokens
    swept = tokens if own.tokens_per_step is None else min(own.tokens_per_step, tokens)
    if said.tokens != swept:
        yield f"phase 1 swept {said.tokens} tokens, the settings say {swept}"
    for iteration, rate in rates:
        yield from _share_of_tokens(f"the convergence of iteration {iteration}", rate, said.tokens)
    end = next((i for i, rate in rates if rate >= own.convergence_stop), None)
    last, rate = rates[-1] if rates else (0, 0.0)
    if end is None and last != own.max_iterations:
        yield (
            f"phase 1 stopped after {last} iterations, but only {rate:.1%} had converged; the settings say "
            f"{own.convergence_stop:.1%} or {own.max_iterations} iterations"
        )
    elif end is not None and end != last:
        yield f"phase 1 ran on to iteration {last}, but {own.convergence_stop:.1%} had converged at {end}"
    elif last > own.max_iterations:
        yield f"phase 1 made {last} iterations, the settings say {own.max_iterations}"
    stopped = "max_iterations" if end is None else "converged"
    if said.stopped != stopped:
        yield f"phase 1 says '{said.stopped}', and its history says '{stopped}'"
    if said.convergence_rate != rate:
        yield f"phase 1 says that {said.convergence_rate:.1%} converged, and its history ends with {rate:.1%}"


def _prediction(record: RunRecord, settings: Settings) -> Iterator[str]:
    said: Any = record.phase1
    own, tokens = settings.prediction, record.data.train_tokens
    if said.epochs != own.max_epochs:
        yield f"phase 1 made {said.epochs} epochs, the settings say {own.max_epochs}"
    if said.tokens != tokens:
        yield f"phase 1 read a text of {said.tokens} tokens, and there are {tokens}"
    streams = min(own.streams, tokens - 1)
    positions = streams * math.ceil((tokens - 1) / streams)
    if said.positions != positions:
        yield f"phase 1 predicted {said.positions} tokens in an epoch, the settings say {positions}"
    depths, found = sorted(set(own.head_layers)), [head.token_layers for head in said.heads]
    if found != depths:
        yield f"phase 1 has heads of {found} layers, the settings say {depths}"
    validation, parameters = record.validation, record.parameters
    assert validation is not None
    assert parameters is not None
    for head in said.heads:
        name = f"the head of {head.token_layers} layers"
        yield from _loss(f"the NLL of {name}", head.nll_nats)
        yield from _share_of_tokens(f"the accuracy of {name}", head.accuracy, validation.tokens)
        if head.token_layers != record.token_layers:
            continue
        if head.parameters != parameters.token_block:
            yield f"{name} has {head.parameters} parameters, and such a TokenBlock {parameters.token_block}"
        start = record.phase2.history[0] if record.phase2 and record.phase2.history else None
        if start is None or start.epoch != 0:
            continue
        if not abs(start.validation_nll_nats - head.nll_nats) <= SAME_NLL:
            yield (
                f"{name} has the NLL {head.nll_nats:.4f}, and phase 2, which starts from it, "
                f"{start.validation_nll_nats:.4f}"
            )


def _phase2(record: RunRecord, settings: Settings) -> Iterator[str]:
    said, own = record.phase2, settings.phase2
    assert said is not None
    # The weights at the start count as an epoch where they are those of a head, which a control lacks.
    from_head = own.start == "phase1" and record.kind == "tandem"
    yield from _training(record, said, int(not from_head), own.max_epochs, own.patience)
    positions = record.data.train_tokens - 1
    if said.positions is not None and said.positions != positions:
        yield f"phase 2 predicted {said.positions} tokens in an epoch, and there are {positions}"
    if said.first_loss_nats is not None:
        yield from _loss("the loss of the first step", said.first_loss_nats)


# Training by epochs


def _training(
    record: RunRecord, said: TrainingRecord, first: int, max_epochs: int | None, patience: int | None
) -> Iterator[str]:
    """Epochs from `first` on, the stop by `patience` (none: never) and `max_epochs` (none: not known)."""
    history, validation = said.history, record.validation
    assert validation is not None
    if not history:
        yield "its history is empty"
        return
    yield from _numbered("its epochs", [e.epoch for e in history], first)
    yield from _rising("epoch", [(e.epoch, e.seconds_s) for e in history], said.seconds_s)
    for name, losses in (
        ("training NLL", [(e.epoch, e.train_nll_nats) for e in history]),
        ("validation NLL", [(e.epoch, e.validation_nll_nats) for e in history]),
    ):
        yield from _repeated("epochs", name, losses)
        for epoch, loss in losses:
            yield from _loss(f"the {name} of epoch {epoch}", loss)
    for e in history:
        yield from _share_of_tokens(
            f"the validation accuracy of epoch {e.epoch}", e.validation_accuracy, validation.tokens
        )
    last = history[-1].epoch
    if said.epochs != last:
        yield f"it says {said.epochs} epochs, and its history ends with epoch {last}"
    if max_epochs is not None:
        yield from _stop(said, max_epochs, patience)
    best = min(history, key=lambda e: e.validation_nll_nats)
    yield from _figures_of(best, said, validation)


def _stop(said: TrainingRecord, max_epochs: int, patience: int | None) -> Iterator[str]:
    """Why and when training was to end, replayed epoch by epoch."""
    last, lowest, waited, end = said.history[-1].epoch, math.inf, 0, None
    for e in said.history:
        waited = 0 if e.validation_nll_nats < lowest else waited + 1
        lowest = min(lowest, e.validation_nll_nats)
        if end is None and patience is not None and waited >= patience:
            end = e.epoch
    if end is not None and end < last:
        yield f"it ran on to epoch {last}, but patience {patience} was reached at epoch {end}"
    elif last > max_epochs or (end is None and last < max_epochs):
        if said.stopped == "patience" and last < max_epochs:
            yield f"it stopped after {last} epochs by patience, but {waited} of {patience} had passed"
        yield f"{last} epochs were made, the settings say {max_epochs}"
    reason = "max_epochs" if end is None else "patience"
    if said.stopped != reason:
        yield f"it says that it ended by {said.stopped}, and its history says by {reason}"


def _figures_of(best: Epoch, said: TrainingRecord, validation: ValidationRecord) -> Iterator[str]:
    """The recorded figures are those of the best epoch."""
    if said.best_epoch != best.epoch:
        yield f"its best epoch is said to be {said.best_epoch}, and in its history it is {best.epoch}"
    for name, ours, theirs in (
        ("training NLL", best.train_nll_nats, said.train_nll_nats),
        ("validation NLL", best.validation_nll_nats, validation.nll_nats),
        ("validation accuracy", best.validation_accuracy, validation.accuracy),
    ):
        if ours != theirs:
            yield f"its {name} is {theirs:.6f}, and that of its best epoch {ours:.6f}"
    yield from _exponential("training PPL", said.train_perplexity, said.train_nll_nats)


# Baselines


def _baseline(record: RunRecord, settings: Settings, allowed: int | None) -> Iterator[str]:
    """Epochs and size of the networks; what an n-gram model counts as parameters."""
    own, said, parameters = _network_section(record, settings), record.training, record.parameters
    assert parameters is not None
    if (parameters.trained_phase1, parameters.trained_phase2) != (0, parameters.total):
        yield f"it is said to train {parameters.trained_phase2} of {parameters.total} parameters"
    if parameters.total != parameters.embedding + parameters.other:
        yield f"its {parameters.total} parameters are not the sum of their parts"
    if said is not None:
        yield from _training(record, said, 1, own.max_epochs if own else None, None)
    elif own is not None:
        yield "it has no record of its training"
    if own is None:
        return
    vocabulary, lstm = record.data.vocab_size, record.kind == "lstm"
    sizes = _lstm_sizes if lstm else _gpt2_sizes
    fitting = [
        (total, embedding)
        for total, embedding in sizes(settings, vocabulary, allowed or parameters.total)
        if total <= (allowed or parameters.total)
    ]
    if allowed is not None and parameters.total > allowed:
        yield f"it has {parameters.total} parameters and may have {allowed}"
    if not fitting or fitting[-1] != (parameters.total, parameters.embedding):
        total, embedding = fitting[-1] if fitting else (0, 0)
        yield (
            f"it has {parameters.total} parameters, {parameters.embedding} of them its embedding; the widest "
            f"by the settings has {total} and {embedding}"
        )


def _lstm_sizes(settings: Settings, vocabulary: int, most: int) -> Iterator[tuple[int, int]]:
    """Parameters in all and of the embedding, by width; a layer has four gates and two biases each."""
    embed, layers = settings.model.embed_dim, settings.baselines.lstm.layers
    for width in range(1, math.isqrt(most // 4) + 2):
        total = vocabulary * embed
        for layer in range(layers):
            read = embed if layer == 0 else width
            total += 4 * (width * read + width * width + 2 * width)
        if width != embed:
            total += width * embed + embed  # back to the embedding's width
        yield total, vocabulary * embed


def _gpt2_sizes(settings: Settings, vocabulary: int, most: int) -> Iterator[tuple[int, int]]:
    """The same of a GPT-2, whose width is a multiple of its heads; norms and matrices have biases."""
    own = settings.baselines.gpt2
    for width in range(own.heads, max(own.heads, math.isqrt(most // 12)) + 1, own.heads):
        attention = width * 3 * width + 3 * width + width * width + width
        feed_forward = width * 4 * width + 4 * width + 4 * width * width + width
        layer = 2 * width + attention + 2 * width + feed_forward
        yield (vocabulary + own.window) * width + own.layers * layer + 2 * width, vocabulary * width


# Single figures


def _numbered(what: str, numbers: Sequence[int], first: int) -> Iterator[str]:
    wanted = list(range(first, first + len(numbers)))
    if list(numbers) != wanted or not numbers:
        shown = ", ".join(map(str, numbers[:6])) + (", …" if len(numbers) > 6 else "")
        yield f"{what} are numbered {shown or 'not at all'}, and should count from {first}"


def _rising(what: str, seconds: Sequence[tuple[int, float]], total: float) -> Iterator[str]:
    """Seconds since the start, which rise and stay below the total."""
    for (_, before), (number, after) in pairwise([(0, 0.0), *seconds]):
        if not before <= after:
            yield f"{what} {number} ended after {after:.3f} s, before the one in front of it"
    if seconds and not seconds[-1][1] <= total:
        yield f"{what} {seconds[-1][0]} ended after {seconds[-1][1]:.3f} s, of {total:.3f} s in all"


def _repeated(what: str, name: str, losses: Sequence[tuple[int, float]]) -> Iterator[str]:
    """The same loss to the last digit twice: an epoch was repeated, or trained nothing."""
    seen: dict[float, int] = {}
    for number, loss in losses:
        if loss != 0 and math.isfinite(loss) and loss in seen:
            yield f"{what} {seen[loss]} and {number} have the same {name} to the last digit"
        seen.setdefault(loss, number)


def _loss(name: str, loss: float) -> Iterator[str]:
    if not 0 <= loss < math.inf:
        yield f"{name} is {loss}"


def _exponential(name: str, said: float, nll: float) -> Iterator[str]:
    right = math.exp(nll) if nll < 700 else math.inf
    if said != right and not math.isclose(said, right, rel_tol=ROUNDING):
        yield f"{name} {said:.4f} is not exp of its NLL, {right:.4f}"


def _share_of_tokens(name: str, share: float, tokens: int) -> Iterator[str]:
    """A share of so many tokens is a whole number of them."""
    count = share * tokens
    if not 0 <= share <= 1:
        yield f"{name} is {share:.4f}, and a share is from 0 to 1"
    elif abs(count - round(count)) > 1e-6 * max(tokens, 1) ** 0.5:
        yield f"{name} is {share:.6f}, which is no whole number of {tokens} tokens"


def _unequal(name: str, said: float, parts: float) -> Iterator[str]:
    if not math.isclose(said, parts, rel_tol=ROUNDING, abs_tol=1e-9):
        yield f"{name} are {said:.3f}, and their parts give {parts:.3f}"
