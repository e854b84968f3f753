"""What a model gives each document, word and token; a document is read by itself, from the model's start.

The rule is that of `tandem evaluate` for a text of one document. Where the model's documents begin with an
end-of-text token, every token of the text is scored. Otherwise nothing predicts the first one, and no figure
includes it.

Shape letters: B documents, T tokens, C context_dim (of an ensemble, the sum of those of its members).
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from tandem.errors import DataError, SettingsError
from tandem.experiment.inference import load_for_inference
from tandem.experiment.machine import keep_freed_memory
from tandem.fingerprint import Fingerprint
from tandem.metrics import bits_per_byte, perplexity
from tandem.model import TandemCache, TandemForCausalLM
from tandem.model_folder.checking import AnyModel
from tandem.model_folder.loading import settings_for
from tandem.tokens.encoding import Encoder
from tandem.tokens.rules import Rules
from tandem.tokens.store import TokenStream
from tandem.tokens.tokenizer import plain, tokenizer_fingerprint

WINDOW_DOCUMENTS, WINDOW_CHARACTERS = 4096, 1 << 20
"""Documents that are sorted by length at once, and characters of them; this bounds memory."""
BATCH_TOKENS = 1 << 14
"""Tokens, padding included, that are read at once."""
HEAD_POSITIONS = 256
"""Positions whose predictions are held at once; a power of two."""
DIGITS = 6
"""After the point of a figure that is written down; the seventh one is noise of single precision."""
WORD = re.compile(r"\S+")
Losses = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class TextScore:
    """What a model makes of one document.

    nll_nats         mean negative log-likelihood of a scored token, nats.
    tokens           scored tokens.
    bytes            UTF-8 bytes of their text.
    bits_per_byte    8 bits are charged for each byte that the tokens cannot give back.
    perplexity       exp(nll_nats).

    Where no token can be scored, as in an empty text, there are no figures but `tokens` and `bytes`.
    """

    nll_nats: float | None
    tokens: int
    bytes: int
    bits_per_byte: float | None
    perplexity: float | None


FIGURES = tuple(one.name for one in fields(TextScore))


@dataclass(frozen=True)
class TokenScore:
    """One token: its characters text[start:end], and its surprisal; none for a first one that has no
    prediction."""

    start: int
    end: int
    text: str
    nll_nats: float | None


@dataclass(frozen=True)
class WordScore:
    """One word between white space: its characters, its tokens, and the sum of their surprisals.

    None if one of them is a first token that has no prediction. A token belongs to the word in which it ends.
    One that ends in white space belongs to the next word, and at the end of a text to the last.
    """

    start: int
    end: int
    text: str
    tokens: int
    nll_nats: float | None


class KenlmScore(NamedTuple):
    """A word as KenLM's `full_scores` gives it: log10 of its probability (nan where nothing predicts it), its
    tokens (there the length of an n-gram), and whether one of them is the unknown token."""

    log10: float
    tokens: int
    oov: bool


@dataclass(frozen=True)
class State:
    """Where the reading of a text stands: what was read before the last token, and that token.

    Its size does not grow with the text. It is never changed, so any number of texts may continue it.
    """

    cache: TandemCache
    token: int | None


@dataclass(frozen=True)
class ScoredText:
    """A document as tokens, and the NLL in nats of each but the first."""

    text: str
    stream: TokenStream
    losses: Losses

    @cached_property
    def score(self) -> TextScore:
        """The figures of the whole."""
        count, total = len(self.losses), float(self.losses.sum())
        if not count or not self.stream.scored_bytes:
            return TextScore(None, count, self.stream.scored_bytes, None, None)
        mean = total / count
        likelihood = perplexity(mean)
        return TextScore(
            round(mean, DIGITS),
            count,
            self.stream.scored_bytes,
            round(bits_per_byte(total, self.stream), DIGITS),
            round(likelihood, DIGITS) if math.isfinite(likelihood) else None,
        )


class Scorer:
    """A loaded model that scores documents. `tandem.load(FOLDER)` makes one."""

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        on_warning: Callable[[str], None] = lambda _: None,
        verify: bool = True,
    ) -> None:
        """`verify` as of `load_model`; `on_warning` is told what was assumed of the model.

        Raises RunDirError where there is none.
        """
        self._made_of = (str(folder), device)
        model, tokenizer = load_for_inference(folder, device, verify=verify)
        settings, _ = settings_for(folder, tokenizer, on_warning)
        self.model: AnyModel = model
        self.tokenizer: PreTrainedTokenizerFast = tokenizer
        mark = tokenizer.eos_token if settings.data.separators["validation"] == "eos" else None
        self._mark = None if mark is None else int(tokenizer.eos_token_id)
        self._encoder = Encoder(plain(tokenizer), mark, "" if mark is None else "eos")
        if mark is None:
            on_warning(
                "no end-of-text token begins this model's documents, so the first token of a document has no "
                "prediction, and no figure includes it"
            )
        keep_freed_memory()

    def __reduce__(self) -> tuple[Any, ...]:
        """By its folder, for tools that start other processes or name their work by what does it."""
        return _load_again, (*self._made_of, self.fingerprint)

    @property
    def scores_first_token(self) -> bool:
        """Whether documents begin with an end-of-text token, which predicts the first of their own."""
        return self._mark is not None

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's weights and its tokenizer."""
        whole = Fingerprint("scorer")
        self._add_weights(whole, but=())
        return whole.hexdigest()

    @cached_property
    def contexts_fingerprint(self) -> str:
        """Of all that the contexts of a text follow from: tokenizer, embedding and ContextBlock."""
        whole = Fingerprint("contexts of a scorer")
        for config in self.model.config.configs:
            whole.update(f"{self._mark} {config.cell} {config.boundary} {config.layer_norm_eps}")
        self._add_weights(whole, but=("token_block.", "lm_head."))
        return whole.hexdigest()

    def check_same_contexts(self, other: "Scorer") -> None:
        """Raises SettingsError where a text has other contexts by another model."""
        if self.contexts_fingerprint != other.contexts_fingerprint:
            own, theirs = self._made_of[0], other._made_of[0]
            raise SettingsError(
                f"{theirs} has another ContextBlock, embedding or tokenizer than {own}, so a text cannot be "
                "read once for both; give models that `tandem adapt` made of one, or score with each alone"
            )

    def score(self, texts: Iterable[str]) -> list[TextScore]:
        """The figures of each text, in order."""
        if isinstance(texts, str):
            raise TypeError("score() takes a list of texts, not a single one; give [text]")
        parts = windows(texts, len)
        return [scored.score for window in parts for scored in self.scored(window)]

    def tokens(self, text: str) -> list[TokenScore]:
        """Every token of a text, with its characters and its surprisal."""
        return self.tokens_of(self.scored([text])[0])

    def words(self, text: str) -> list[WordScore]:
        """Every word of a text, with the sum of its tokens' surprisals."""
        return words_of(text, self.tokens(text))

    def columns(self, batch: dict[str, list[Any]], text_field: str = "text") -> dict[str, list[Any]]:
        """The figures of a batch of rows as new columns: `dataset.map(scorer.columns, batched=True)`."""
        rows = [asdict(one) for one in self.score(batch[text_field])]
        return {name: [row[name] for row in rows] for name in FIGURES}

    def begin(self) -> State:
        """The state at the start of a document."""
        return State(TandemCache(), self._mark)

    def base_score(self, state: State, text: str) -> tuple[float, State]:
        """log10 of the probability that `text` follows on a state, and the state after it; as KenLM's
        `BaseScore`.

        A text that goes on with a new word begins with its space. The log10 leaves out a first token that has
        no prediction.
        """
        losses, state = self._continued(state, self._ids(text))
        return float(-losses.sum() / math.log(10)), state

    def full_scores(self, text: str, state: State | None = None) -> Iterator[KenlmScore]:
        """Word by word what KenLM's `full_scores` gives of a sentence, which goes on from a `state`."""
        ids = self._ids(text)
        state = self.begin() if state is None else state
        losses, _ = self._continued(state, ids)
        unknown = Rules(plain(self.tokenizer)).unknown_id
        tokens = self._with_spans(text, ids, losses)
        places = word_numbers(text, tokens)
        for number in range(max(places, default=-1) + 1):
            own = [row for row, place in enumerate(places) if place == number]
            nll = [tokens[one].nll_nats for one in own]
            log10 = -sum(math.nan if one is None else one for one in nll) / math.log(10)
            yield KenlmScore(log10, len(own), any(ids[one] == unknown for one in own))

    def scored(self, texts: Sequence[str]) -> list[ScoredText]:
        """Documents of one window, scored; in order."""
        return self.scored_with((), texts)[0]

    def scored_with(self, others: Sequence["Scorer"], texts: Sequence[str]) -> list[list[ScoredText]]:
        """The same by this model and by others, a list for each; contexts are computed once.

        `check_same_contexts` says whether the others may be given.
        """
        streams = self._encoder.encode_each(texts)
        order = sorted((n for n, one in enumerate(streams) if len(one) > 1), key=lambda n: len(streams[n]))
        losses: list[list[Losses]] = [[np.empty(0)] * len(texts) for _ in (self, *others)]
        for batch in _batches(order, [len(stream) for stream in streams]):
            found, _ = self._losses([streams[n].ids for n in batch], None, others)
            for own, rows in zip(losses, found, strict=True):
                for n, row in zip(batch, rows, strict=True):
                    own[n] = row
        return [[ScoredText(*one) for one in zip(texts, streams, own, strict=True)] for own in losses]

    def _add_weights(self, whole: Fingerprint, but: tuple[str, ...]) -> None:
        """Add the tokenizer and all weights but those whose names begin so."""
        whole.update(tokenizer_fingerprint(plain(self.tokenizer)))
        for member in self.model.members:
            for name, tensor in sorted(member.named_weights().items()):
                if not name.startswith(but):
                    whole.update(name)
                    whole.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())

    def tokens_of(self, scored: ScoredText) -> list[TokenScore]:
        """The tokens of a scored text, without the end-of-text token before it."""
        return self._with_spans(scored.text, scored.stream.ids[self.scores_first_token :], scored.losses)

    def _ids(self, text: str) -> list[int]:
        """The tokens of a text that continues another."""
        return self._encoder.encode_each([text])[0].ids[self.scores_first_token :].tolist()

    def _with_spans(self, text: str, ids: Sequence[int] | Ids, losses: Losses) -> list[TokenScore]:
        spans = self._encoder.spans(text)
        assert len(spans) == len(ids)
        known = [round(one, DIGITS) for one in losses.tolist()]
        nll = [*[None] * (len(ids) - len(known)), *known]
        return [
            TokenScore(first, last, text[first:last], one)
            for (first, last), one in zip(spans, nll, strict=True)
        ]

    def _continued(self, state: State, ids: list[int]) -> tuple[Losses, State]:
        """NLL of tokens that follow on a state, and the state after them."""
        row = [*([] if state.token is None else [state.token]), *ids]
        if len(row) < 2:
            return np.empty(0), state if not row else State(state.cache, row[0])
        ((losses,),), context = self._losses([np.array(row)], state.cache.context, ())
        cache = TandemCache()
        cache.context, cache.tokens_seen = context, state.cache.tokens_seen + len(row) - 1
        return losses, State(cache, row[-1])

    @torch.inference_mode()
    def _losses(
        self, rows: Sequence[Ids], context: Tensor | None, others: Sequence["Scorer"]
    ) -> tuple[list[list[Losses]], Tensor]:
        """NLL in nats of every token but the first of each row, read from `context` [B, C] (none: zero) on.

        By this model, and by others whose contexts are the same. Also the contexts after the last token but
        one of the longest row, [B, C].
        """
        lengths = [len(row) - 1 for row in rows]
        padded = np.zeros((len(rows), max(lengths) + 1), np.int64)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = row
        ids = torch.from_numpy(padded).to(self.model.device)
        inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        widths = [config.context_dim for config in self.model.config.configs]
        starts = [None] * len(widths) if context is None else context.split(widths, dim=-1)
        by_member, contexts = [], []
        for sharing, start in zip(
            zip(*(scorer.model.members for scorer in (self, *others)), strict=True), starts, strict=True
        ):
            losses, after = _sharing_losses(sharing, ids, inside, start)
            by_member.append(-losses)
            contexts.append(after)
        # The average of the members' probabilities; of one alone, its own.
        mixed = math.log(len(widths)) - torch.stack(by_member).logsumexp(dim=0)
        return [
            [row[:length].numpy() for row, length in zip(of_model, lengths, strict=True)]
            for of_model in mixed
        ], torch.cat(contexts, dim=-1)


def _sharing_losses(
    models: Sequence[TandemForCausalLM], ids: Tensor, inside: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """NLL in nats by models of the same contexts, [models, B, T] float64; zero where not `inside`.

    Of the tokens after the first in ids [B, T + 1], read from `context` [B, C] (none: zero) on. Also the
    contexts after the last token but one, [B, C].
    """
    first_model, count = models[0], inside.shape[1]
    losses = torch.zeros((len(models), *inside.shape), dtype=torch.float64)
    span = max(1, BATCH_TOKENS // len(ids))
    for first, last in pairwise([*range(0, count, span), count]):
        part, own = ids[:, first:last], inside[:, first:last]
        embeds = first_model.embed(part)
        previous, current = first_model.context_block.unroll(embeds, context, first_model.reset_mask(part))
        context = current[:, -1].clone()
        targets = ids[:, first + 1 : last + 1]
        for number, one in enumerate(models):
            nll = _nll(one, previous, current, embeds, targets, own)
            losses[number, :, first:last][own] = nll.cpu().double()
    assert context is not None
    return losses, context


def _nll(
    model: TandemForCausalLM,
    previous: Tensor,
    current: Tensor,
    embeds: Tensor,
    targets: Tensor,
    inside: Tensor,
) -> Tensor:
    """NLL of the targets [B, T] that are `inside`, in order of their positions."""
    count = int(inside.sum())
    # Parts of nine sizes at most: oneDNN keeps what it compiles for each, amid the memory of a batch.
    size = min(HEAD_POSITIONS, 1 << (count - 1).bit_length())
    positions = F.pad(inside.nonzero(), (0, 0, 0, -count % size)).to(targets.device)
    nll = []
    for row, column in (part.unbind(1) for part in positions.split(size)):
        hidden = model.token_block(previous[row, column], current[row, column], embeds[row, column])
        logits = model.lm_head(hidden).float()
        nll.append(F.cross_entropy(logits, targets[row, column], reduction="none"))
    return torch.cat(nll)[:count]


def _load_again(folder: str, device: str, fingerprint: str) -> Scorer:
    """A scorer in another process. Raises DataError where its folder holds another model by now."""
    scorer = Scorer(Path(folder), device)
    if scorer.fingerprint != fingerprint:
        raise DataError(f"the model in {folder} is no longer the one that was loaded; start again with it")
    return scorer


def windows(things: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """`things` in order, in lists of WINDOW_DOCUMENTS or about WINDOW_CHARACTERS."""
    window: list[T] = []
    total = 0
    for thing in things:
        window.append(thing)
        total += characters(thing)
        if len(window) == WINDOW_DOCUMENTS or total >= WINDOW_CHARACTERS:
            yield window
            window, total = [], 0
    if window:
        yield window


def _batches(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Numbers in `order`, from short ones to long ones, in lists of about BATCH_TOKENS with their padding."""
    batch: list[int] = []
    for number in order:
        if batch and lengths[number] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def word_numbers(text: str, tokens: Sequence[TokenScore]) -> list[int]:
    """To which word each token belongs, by the rule of WordScore; empty for a text without words."""
    starts = [match.start() for match in WORD.finditer(text)]
    if not starts:
        return []
    numbers = []
    for token in tokens:
        number = bisect_right(starts, max(token.start, token.end - 1)) - 1
        if token.text[-1:].isspace() or number < 0:
            number += 1
        numbers.append(min(number, len(starts) - 1))
    return numbers


def words_of(text: str, tokens: Sequence[TokenScore]) -> list[WordScore]:
    """The words of a text whose tokens are these; one without a token has the surprisal 0."""
    own: list[list[float | None]] = [[] for _ in WORD.finditer(text)]
    for token, number in zip(tokens, word_numbers(text, tokens), strict=False):
        own[number].append(token.nll_nats)
    return [
        WordScore(match.start(), match.end(), match[0], len(nll), _sum(nll))
        for match, nll in zip(WORD.finditer(text), own, strict=True)
    ]


def _sum(nll: list[float | None]) -> float | None:
    known = [one for one in nll if one is not None]
    return round(math.fsum(known), DIGITS) if len(known) == len(nll) else None
