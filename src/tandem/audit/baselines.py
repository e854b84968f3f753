"""Checks of baselines: networks from the weights that they kept, n-grams counted again, all by plain code."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tandem.audit.network_steps import IN_BFLOAT16, ON_A_GPU, TOLERANCE, Replay, start_findings
from tandem.audit.networks import Ids, PlainNetwork
from tandem.audit.ngrams import NgramScore, score_kneser_ney, score_unigram
from tandem.audit.peers import NETWORKS
from tandem.audit.steps import EpochMeans, KeptStep, epoch_means, read_steps, unexplained
from tandem.checksums import check_files
from tandem.decoding import read_text
from tandem.errors import TandemError
from tandem.metrics import Score, perplexity
from tandem.records import Check, RunRecord, TrainingRecord
from tandem.records.audit import Status
from tandem.settings import Settings
from tandem.tokens.prepare import Corpus
from tandem.tokens.store import TokenStream

NLL_TOLERANCE, NLL_ON_A_GPU = 1e-4, 1e-3
"""Nats per token by which a recomputed mean may differ. GPUs use TF32 in LSTMs."""
SAME_MEAN = 0.01
"""Share by which the mean over an epoch may differ from that of its steps."""
EXPLAINS = 0.5
"""Of a difference so much may be left where a known mistake is named."""
PARTS, PART_TOKENS, WARM_UP = 32, 256, 64
"""Parts of the training text that are scored again, their tokens, and those read before each."""
TRAIN_MARGIN = 0.2
"""Nats per token by which the training text may score worse than the mean over the best epoch said."""
PERTURBED = 256
"""Validation tokens of which later ones are changed."""
NGRAMS: dict[str, Callable[[Ids, Ids, int, str], NgramScore]] = {
    "kneser-ney": lambda train, text, size, label: score_kneser_ney(
        train, text, size, int(label.rpartition("-")[2])
    ),
    "bigram": lambda train, text, size, _: score_kneser_ney(train, text, size, 2),
    "unigram": lambda train, text, size, _: score_unigram(train, text, size),
}
"""By kind: training text [T], text to score, vocabulary, what the runs are called (`KN-5`) → the score."""


def baseline_checks(
    settings: Settings, corpus: Corpus, device: torch.device, record: RunRecord, folder: Path
) -> Iterator[Check]:
    """All checks but `counts` of one of NETWORKS, with what is kept of it, or of NGRAMS."""
    if record.kind in NGRAMS:
        yield from _ngram_checks(corpus, record)
        return
    yield consistency_check(record)
    if not folder.is_dir():
        yield unchecked("model", "the kept weights", "no model is kept, so its figures were not recomputed")
        return
    assert record.training is not None
    assert record.seed is not None
    looked_at = "weights and record in the folder of the model, against settings and run"
    try:
        check_files(folder)
        weights = load_file(folder / "model.safetensors")
        network = NETWORKS[record.kind](settings, weights, record.seed)
        network.lr = record.training.lr or network.lr
        steps = read_steps(folder / "snapshots.safetensors")
        first = [step for step in steps if (step.epoch, step.step) == (1, 1)]
        start = [fault for step in first for fault in start_findings(network, step)]
        between = unexplained(folder / "snapshots.safetensors", network.limit_s is not None) if steps else []
        means = epoch_means(folder / "snapshots.safetensors") if steps else []
        between += _wrong_means(network, record.training, means, len(corpus.train))
        network.module.load_state_dict(weights)
        written = RunRecord.model_validate_json(read_text(folder / "record.json"))
    except (OSError, TandemError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        yield _check("model", looked_at, [f"what is kept of it cannot be used ({reason})"], "")
        return
    network.module.to(device)
    model = _Model(network, record, record.training, record.seed, corpus, weights, steps, between)
    wrong = [] if written == record else ["its record.json is not that of the run"]
    yield _check("model", looked_at, wrong, "the run's own")
    yield model.perplexity()
    yield model.parameters()
    yield model.causality()
    yield model.train_nll()
    looked_at = "all weights before the first step, and the state of random draws, against those of the seed"
    if first:
        yield _check("start", looked_at, start, f"as seed {record.seed} draws them")
    else:
        yield unchecked("start", looked_at, "the first step was too large to be kept")
    yield model.training_steps()  # it leaves other weights in the network


def _wrong_means(
    network: PlainNetwork, training: TrainingRecord, means: Sequence[EpochMeans], tokens: int
) -> Iterator[str]:
    """Whether the history has the means of the steps' losses; the last step may be a shorter one."""
    count, size = network.epoch_size(tokens)[1], network.step_size(tokens)
    counts = {epoch.epoch: epoch.positions or count for epoch in training.history}
    losses = {mean.epoch: mean.over(counts.get(mean.epoch, count), size) for mean in means}
    for epoch in training.history:
        right = losses.get(epoch.epoch, epoch.train_nll_nats)
        if not math.isclose(epoch.train_nll_nats, right, rel_tol=SAME_MEAN):
            yield (
                f"the mean loss of epoch {epoch.epoch} is {epoch.train_nll_nats:.5g}, that of its steps "
                f"{right:.5g}"
            )
            return


def unchecked(name: str, looked_at: str, why: str) -> Check:
    """A check that could not be made."""
    return Check(name=name, looked_at=looked_at, figure=f"not checked: {why}", status="skip")


@dataclass(frozen=True)
class _Model:
    """A network baseline, the weights and steps that were kept; `between`: what is wrong between them."""

    network: PlainNetwork
    record: RunRecord
    training: TrainingRecord
    seed: int
    corpus: Corpus
    weights: dict[str, Tensor]
    steps: list[KeptStep]
    between: list[str]

    def perplexity(self) -> Check:
        """Its validation figures."""
        losses, right = self.network.losses(self.corpus.validation.ids)
        correct = int(right.sum()), int(right.sum())
        why = self._explained(float(losses.mean()))
        here = self.network.device.type == self.record.environment.device == "cpu"
        tolerance, how = NLL_TOLERANCE if here else NLL_ON_A_GPU, "from the kept weights"
        return _figures(self.record, self.corpus.validation, losses, correct, how, why, tolerance)

    def training_steps(self) -> Check:
        """Steps of its training, made again."""
        looked_at = "kept steps of training, made again plainly from the settings and the seed"
        network, there, device = self.network, self.record.environment, self.network.device.type
        # What cuDNN drops between its layers it draws by itself.
        by_itself = device != "cpu" and network.has_state and network.own.layers > 1
        draws = there.device.split(":")[0] == device and not by_itself
        limit = TOLERANCE if device == there.device == "cpu" else ON_A_GPU
        bfloat16 = there.precision == "bfloat16"
        limit = IN_BFLOAT16 if bfloat16 else limit
        replay = Replay(network, self.corpus.train.ids, self.seed, bfloat16, limit, draws)
        found = replay.findings(self.steps, self.training, self.weights)
        wrong = [*found, *self.between]
        shown = ", ".join(step.where for step in self.steps)
        if not draws and network.drops:
            replay.notes.append(f"losses and weights, as dropout was drawn on {there.device}")
        if not wrong and not self.steps:
            return unchecked("steps", looked_at, "its steps were too large to be kept")
        if not wrong and replay.notes:
            return unchecked("steps", looked_at, f"{'; '.join(replay.notes)} (read and rates: {shown})")
        return _check("steps", looked_at, wrong, shown)

    def _explained(self, nll: float) -> str:
        """The known mistake that gives the recorded NLL, if one does."""
        assert self.record.validation is not None
        said, ids = self.record.validation.nll_nats, self.corpus.validation.ids
        if abs(said - nll) <= NLL_TOLERANCE:
            return ""
        for epoch in self.training.history:
            if abs(epoch.validation_nll_nats - nll) <= NLL_TOLERANCE:
                return f"the kept weights have that of epoch {epoch.epoch}"
        others = {"tokens that come later, read as well, give it": self.network.losses(ids, ahead=True)}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            others["dropout, left on, gives it"] = self.network.losses(ids, dropout=True)
        left = {words: abs(float(losses.mean()) - said) for words, (losses, _) in others.items()}
        nearest = min(left, key=lambda words: left[words])
        return nearest if left[nearest] <= EXPLAINS * abs(said - nll) else "no known mistake"

    def parameters(self) -> Check:
        """How many it has."""
        said, embedding = self.record.parameters, self.weights[self.network.embedding].numel()
        total = sum(weight.numel() for weight in self.network.module.parameters())
        right = {"embedding": embedding, "other": total - embedding, "total": total, "trained_phase2": total}
        wrong = [
            f"{name} {getattr(said, name):,} (counted {count:,})"
            for name, count in right.items()
            if getattr(said, name) != count
        ]
        return _check("parameters", "recorded counts, against the kept weights", wrong, f"{total:,} in all")

    def causality(self) -> Check:
        """Whether what scores looks ahead."""
        looked_at = (
            "logits at and before a token on the way that scores, when all tokens after it are changed"
        )
        ids = np.asarray(self.corpus.validation.ids[:PERTURBED]).astype(np.int64)
        head, worst = self.weights[self.network.embedding], 0.0
        plain = self._hidden(ids)
        for start in {max(1, len(ids) // 4), max(1, len(ids) // 2), len(ids) - 1}:
            changed = np.where(np.arange(len(ids)) < start, ids, (ids + 1) % len(head))
            moved = (self._hidden(changed) - plain)[:start] @ head.T
            worst = max(worst, float(moved.abs().max()))
        wrong = [f"a logit changes by {worst:.2g} with later tokens"] if not worst <= 1e-4 else []
        return _check("causality", looked_at, wrong, f"largest change {worst:.2g}")

    @torch.no_grad()
    def _hidden(self, ids: Ids) -> Tensor:
        self.network.module.eval()
        return torch.cat(list(self.network.scored(ids))).cpu()

    def _cut(self, epoch: int, positions: int, whole: int) -> bool:
        """Whether an epoch is the last one of a training that was given seconds, and had too few."""
        return self.network.limit_s is not None and epoch == self.training.epochs and 0 < positions < whole

    def train_nll(self) -> Check:
        """`training`: on the training text it is not clearly worse than its best epoch was."""
        ids, (_, predicted) = self.corpus.train.ids, self.network.epoch_size(len(self.corpus.train))
        wrong = [
            f"epoch {epoch.epoch} predicted {epoch.positions} tokens instead of {predicted}"
            for epoch in self.training.history
            if epoch.positions not in (None, predicted)
            and not self._cut(epoch.epoch, epoch.positions or 0, predicted)
        ]
        parts = []
        for start in np.linspace(0, max(0, len(ids) - PART_TOKENS - WARM_UP - 1), PARTS).astype(int):
            losses = self.network.losses(ids[start : start + PART_TOKENS + WARM_UP + 1])[0]
            parts.append(losses[WARM_UP if start else 0 :])
        losses, said = np.concatenate(parts), self.training.train_nll_nats
        nll, error = float(losses.mean()), float(losses.std()) / math.sqrt(len(losses))
        limit = said + TRAIN_MARGIN + 4 * error
        check = _check(
            "training",
            "tokens predicted in each epoch; the kept model's NLL on parts of the training text",
            wrong,
            f"final NLL {nll:.3f}, in its best epoch {said:.3f} nats (limit {limit:.3f})",
        )
        return check if wrong or nll <= limit else check.model_copy(update={"status": "warn"})


def _ngram_checks(corpus: Corpus, record: RunRecord) -> Iterator[Check]:
    assert record.parameters is not None
    train, text = corpus.train.ids, corpus.validation.ids
    found = NGRAMS[record.kind](train, text, corpus.vocab_size, record.configuration)
    how = "counted again by plain formulas"
    yield _figures(record, corpus.validation, found.losses, found.correct, how, "no known mistake")
    said, wrong = (record.parameters.other, record.parameters.total), []
    if said != (found.ngrams, found.ngrams):
        wrong.append(f"{said[0]:,} n-grams, {said[1]:,} in all (counted {found.ngrams:,})")
    yield _check("parameters", "n-grams that the model has counted", wrong, f"{found.ngrams:,} n-grams")


def refit_check(score: Score, stream: TokenStream, record: RunRecord) -> Check:
    """`perplexity` of a model that was fitted and scored anew by its own package."""
    correct = round(score.accuracy * score.tokens)
    how = "fitted to the training text again by its own package"
    return _figures(record, stream, score.losses.astype(np.float64), (correct, correct), how, "")


def _figures(
    record: RunRecord,
    stream: TokenStream,
    losses: npt.NDArray[np.float64],
    correct: tuple[int, int],
    how: str,
    why: str,
    tolerance: float = NLL_TOLERANCE,
) -> Check:
    """`perplexity`: the recorded validation figures, against losses [n] in nats and fewest and most hits."""
    said, n = record.validation, len(losses)
    assert said is not None
    nll = float(losses.mean())
    bits = (n * nll / math.log(2) + 8 * stream.lost.bytes) / stream.scored_bytes
    wrong = []
    if not abs(said.nll_nats - nll) <= tolerance:
        wrong.append(f"NLL {said.nll_nats:.4f}, recomputed {nll:.4f}" + (f" ({why})" if why else ""))
    if not math.isclose(said.perplexity, perplexity(said.nll_nats), rel_tol=1e-6):
        wrong.append(f"PPL {said.perplexity:.2f} is not exp of its NLL, {perplexity(said.nll_nats):.2f}")
    # Two logits may tie within rounding, and then either may be the arg-max.
    least, most = correct[0] / n, correct[1] / n
    if not least - tolerance - 2 / n <= said.accuracy <= most + tolerance + 2 / n:
        wrong.append(f"accuracy {said.accuracy:.4f}, recomputed {most:.4f}")
    if not abs(said.bits_per_byte - bits) <= tolerance * max(1.0, bits):
        wrong.append(f"bits per byte {said.bits_per_byte:.4f}, recomputed {bits:.4f}")
    if said.documents is not None:
        tokens, recorded = said.documents.unpack()
        # The first token of the text is not scored; token t has loss t - 1.
        edges = np.maximum(np.append(stream.document_starts, n + 1) - 1, 0)
        sums = np.diff(np.append(0.0, np.cumsum(losses))[edges])
        if len(sums) != len(recorded):
            wrong.append(f"{len(recorded)} documents instead of {len(sums)}")
        elif (off := np.abs(sums - recorded) > tolerance * np.maximum(tokens, 1) * 10 + 1e-3).any():
            wrong.append(f"{int(off.sum())} of {len(sums)} documents have another NLL")
    looked_at = f"validation NLL, PPL, accuracy, bits per byte and every document's NLL, {how}"
    return _check(
        "perplexity",
        looked_at,
        wrong,
        f"PPL {perplexity(nll):.2f}, NLL within {abs(said.nll_nats - nll):.1g} nats",
    )


def consistency_check(record: RunRecord) -> Check:
    """`consistency`: a record's figures against each other, where no model is kept to recompute them from."""
    said = record.validation
    assert said is not None
    wrong = []
    if not np.isclose(said.perplexity, perplexity(said.nll_nats), rtol=1e-6):
        wrong.append(f"PPL {said.perplexity:.2f} is not exp of its NLL, {perplexity(said.nll_nats):.2f}")
    if said.documents is not None:
        tokens, nll = said.documents.unpack()
        mean = float(nll.sum() / max(int(tokens.sum()), 1))
        if not abs(mean - said.nll_nats) <= 1e-4:
            wrong.append(f"its documents have the mean NLL {mean:.4f}, it says {said.nll_nats:.4f}")
    if record.trained is not None:
        best = min(epoch.validation_nll_nats for epoch in record.trained.history)
        if best != said.nll_nats:
            wrong.append(f"the lowest NLL of its history is {best:.4f}, it says {said.nll_nats:.4f}")
    return Check(
        name="consistency",
        looked_at="the record's own figures against each other",
        figure="; ".join(wrong) or f"PPL {said.perplexity:.2f}",
        status="fail" if wrong else "pass",
    )


def _check(name: str, looked_at: str, wrong: list[str], figure: str) -> Check:
    status: Status = "fail" if wrong else "pass"
    return Check(name=name, looked_at=looked_at, figure="; ".join(wrong) or figure, status=status)
