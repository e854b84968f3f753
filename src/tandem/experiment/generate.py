"""Continuing a prompt with a saved model, at constant memory."""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TextStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tandem.advice import named
from tandem.errors import SettingsError
from tandem.experiment.inference import load_for_inference
from tandem.model import TandemCache, average
from tandem.model_folder.checking import AnyModel
from tandem.model_folder.loading import settings_for, unused_ids
from tandem.shown import several_lines, to_terminal
from tandem.tokens.encoding import Encoder
from tandem.tokens.tokenizer import plain


def generate_text(
    folder: Path,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    device: str = "auto",
    int8: bool = False,
    verify: bool = True,
    stream: bool = True,
    on_warning: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Continue `prompt`; with `stream` the text goes to standard output as it comes (on a terminal, with
    control characters escaped).

    A prompt starts a document, as in training: the end-of-text token precedes it where documents were
    separated so. `int8`: with weights of 8 bits. `verify` as of `load_model`.
    `on_warning` is told of text in it that the tokenizer loses, and of settings that the folder lacks.
    Returns prompt, text (without the prompt) and the number of tokens of both. Raises SettingsError for
    sampling settings that are impossible, and for `int8` where torch cannot. Raises RunDirError for a folder
    that is no model.
    """
    warm = "0 (always the likeliest token) or between 0.01 and 100"
    checked = (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature == 0 or 0.01 <= temperature <= 100, warm),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
        ("seed", seed, 0 <= seed < 1 << 63, "at least 0 and below 2**63"),
    )
    if wrong := [
        f"{named(name)} {value} is not possible: it must be {rule}"
        for name, value, fits, rule in checked
        if not fits
    ]:
        raise SettingsError("; ".join(wrong))
    model, tokenizer = load_for_inference(folder, device, int8, verify)
    settings, _ = settings_for(folder, tokenizer, on_warning)
    starts = settings.data.separator == "eos" and tokenizer.eos_token is not None
    read = Encoder(plain(tokenizer), tokenizer.eos_token, "eos" if starts else "").encode([prompt])
    ids = read.ids.tolist()
    if read.lost.bytes:
        on_warning(
            f"the model does not see {read.lost.bytes:,} of the {read.text_bytes:,} bytes of the prompt as "
            f"they are: its tokenizer has no tokens for {read.lost.examples}"
        )
    if not ids:
        reason = "cannot be tokenized" if prompt else "is empty"
        raise SettingsError(
            f"{named('prompt')} {reason}, and this model has no end-of-text token to start from"
        )
    choose = sampler(model, temperature, top_k, top_p, unused_ids(model, tokenizer))
    torch.manual_seed(seed)
    streamer = _Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    if streamer is not None:
        print(_as_text(prompt), end="", flush=True)
        streamer.put(torch.tensor(ids))
    new: list[int] = []
    with torch.inference_mode():
        for token in islice(next_tokens(model, model.read(ids[:-1]), ids[-1], choose), max_new_tokens):
            new.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            if token == tokenizer.eos_token_id:
                break
    if streamer is not None:
        streamer.end()
    return {
        "prompt": prompt,
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "prompt_tokens": len(ids),
        "new_tokens": len(new),
    }


class _Streamer(TextStreamer):
    """Prints text as it comes; a terminal shows control characters, and does not obey them."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(_as_text(text), stream_end)


def _as_text(text: str) -> str:
    """For standard output: as it is for a program, as people can read it on a terminal."""
    return several_lines(text) if to_terminal(sys.stdout) else text


def sampler(
    model: AnyModel,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    unused: list[int] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Logits [1, V] → the next token [1], never an `unused` one; by the steps of transformers in order."""
    steps = LogitsProcessorList()
    if unused:
        steps.append(SuppressTokensLogitsProcessor(unused, str(model.device)))
    if temperature not in (0, 1):
        steps.append(TemperatureLogitsWarper(float(temperature)))
    if temperature and top_k is not None:
        steps.append(TopKLogitsWarper(top_k))
    if temperature and top_p is not None and top_p < 1:
        steps.append(TopPLogitsWarper(float(top_p)))
    none_read: Any = torch.empty(1, 0, dtype=torch.long)  # no step asks what was read before

    def choose(logits: Tensor) -> Tensor:
        scores = steps(none_read, logits.float())
        if temperature == 0:
            return scores.argmax(dim=-1)
        probabilities = scores.softmax(dim=-1)
        return _drawn(probabilities) if model.config.int8 else torch.multinomial(probabilities, 1)[0]

    return choose


def _drawn(probabilities: Tensor) -> Tensor:
    """A token [1] drawn by one random number, from probabilities [1, V].

    torch.multinomial draws one for every entry, which would take a fifth of the time of 8-bit weights. Other
    models keep it, since their texts follow from its numbers.
    """
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
    drawn = torch.rand(1, 1, dtype=torch.float64, device=sums.device) * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True)[0].clamp(max=sums.shape[1] - 1)


def next_tokens(
    model: AnyModel, state: TandemCache, token: int, choose: Callable[[Tensor], Tensor]
) -> Iterator[int]:
    """Tokens without end after `token`, before which the state was reached.

    Blocks are called directly: `model.generate` took several times as long around them (LOG.md).
    """
    members, widths = list(model.members), [config.context_dim for config in model.config.configs]
    context = state.context
    if context is None:
        context = torch.zeros(1, sum(widths), dtype=model.dtype, device=model.device)
    contexts = list(context.split(widths, dim=-1))
    while True:
        ids, logits = torch.tensor([token], device=model.device), []
        for number, member in enumerate(members):
            before, embeds = contexts[number], member.embed(ids)
            if (reset := member.reset_mask(ids)) is not None:
                before = before.masked_fill(reset[:, None], 0.0)
            contexts[number] = member.context_block(before, embeds)
            logits.append(member.lm_head(member.token_block(before, contexts[number], embeds)))
        token = int(choose(average(logits)))
        yield token
