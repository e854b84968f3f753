"""Continuing a prompt with a saved model, at constant memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from tandem.advice import named
from tandem.errors import SettingsError
from tandem.experiment.checkpoints import load_model, unused_ids
from tandem.experiment.evaluate import settings_for
from tandem.experiment.machine import choose_device
from tandem.model import TandemCache, TandemForCausalLM
from tandem.tokens.encoding import Encoder
from tandem.tokens.tokenizer import plain

READ_AT_ONCE = 4096
"""Tokens of a prompt that are read in one go: what memory they take does not grow with the prompt."""


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
    stream: bool = True,
    on_warning: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Continue `prompt`; with `stream` the text goes to standard output as it comes.

    A prompt starts a document, as in training: the end-of-text token precedes it where documents were
    separated so. `on_warning` is told of text in it that the tokenizer loses, and of settings that the folder
    lacks. Returns prompt, text (without the prompt) and the number of tokens of both. Raises SettingsError
    for sampling settings that are impossible, RunDirError for a folder that is no model.
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
    model, tokenizer = load_model(folder)
    model.to(choose_device(device))  # type: ignore[arg-type]  # transformers wraps Module.to without its types
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
    # 0 and 1.0 are the library's words for "no limit"
    drawing = {"temperature": temperature, "top_k": top_k or 0, "top_p": 1.0 if top_p is None else top_p}
    sampling: dict[str, Any] = {"do_sample": temperature > 0, **(drawing if temperature > 0 else {})}
    torch.manual_seed(seed)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    if stream:
        print(prompt, end="", flush=True)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[misc]  # its declared `self` is a protocol of its own
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=max_new_tokens,
            past_key_values=_read(model, ids[:-1]),
            streamer=streamer,
            suppress_tokens=unused_ids(model, tokenizer) or None,
            **sampling,
        )
    new = output[0, len(ids) :].tolist()
    return {
        "prompt": prompt,
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "prompt_tokens": len(ids),
        "new_tokens": len(new),
    }


def _read(model: TandemForCausalLM, ids: list[int]) -> TandemCache:
    """The state after these tokens, of which there may be any number, also none."""
    state = TandemCache()
    for first in range(0, len(ids), READ_AT_ONCE):
        part = torch.tensor([ids[first : first + READ_AT_ONCE]], device=model.device)
        model(part, past_key_values=state, use_cache=True, logits_to_keep=1)
    return state
