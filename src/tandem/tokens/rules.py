"""What the rules of a tokenizer.json say about its tokens: the one place where they are read."""

import json
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers

Rule = dict[str, Any]


class Rules:
    """The rules of a tokenizer, from its canonical JSON."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._rules = tokenizer, json.loads(tokenizer.to_str())
        self._before = _steps(self._rules["pre_tokenizer"], "pretokenizers")

    @property
    def is_byte_level(self) -> bool:
        """Whether every character of a token's string stands for one byte, as in GPT-2."""
        return "ByteLevel" in _kinds(_steps(self._rules["decoder"], "decoders"))

    @property
    def may_be_cut(self) -> bool:
        """Whether pieces of a text encode to the same ids as the whole: so with GPT-2's pre-tokenizer."""
        pre = self._rules["pre_tokenizer"] or {}
        return (
            pre.get("type") == "ByteLevel"
            and pre.get("use_regex", True)
            and not pre.get("add_prefix_space", True)
            and self._rules["normalizer"] is None
            and all(token["special"] for token in self._rules["added_tokens"])
        )

    @property
    def is_lossless(self) -> bool:
        """Whether any text comes back by construction: a BPE of all 256 bytes, of unchanged text."""
        model = self._rules["model"]
        return (
            self._rules["normalizer"] is None
            and "ByteLevel" in _kinds(self._before)
            and _kinds(self._before) <= {"ByteLevel", "Digits", "Punctuation", "Split"}
            and all(step.get("behavior") != "Removed" for step in self._before)
            and model["type"] == "BPE"
            and not model["continuing_subword_prefix"]
            and not model["end_of_word_suffix"]
            and all(t["special"] or not (t["lstrip"] or t["rstrip"]) for t in self._rules["added_tokens"])
            and all(self._tokenizer.token_to_id(b) is not None for b in pre_tokenizers.ByteLevel.alphabet())
        )

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for text outside the vocabulary."""
        number, name = (self._rules["model"].get(field) for field in ("unk_id", "unk_token"))
        if isinstance(number, int):
            return number
        return self._tokenizer.token_to_id(name) if isinstance(name, str) else None

    @property
    def exact_decoder(self) -> Any:
        """A decoder to compare texts by, where the tokenizer's own gives back less than its tokens hold."""
        decoder = self._rules["decoder"]
        if decoder is None and "ByteLevel" in _kinds(self._before):
            return decoders.ByteLevel()
        if decoder is not None and decoder["type"] == "WordPiece":
            # Without the library's tidying, which takes spaces away that the text may have had.
            return decoders.WordPiece(prefix=decoder["prefix"], cleanup=False)
        return None


def _steps(rule: Rule | None, name: str) -> list[Rule]:
    """The steps of a rule: itself, or those of a sequence, which lists them under `name`."""
    if rule is None:
        return []
    return [step for part in rule[name] for step in _steps(part, name)] if name in rule else [rule]


def _kinds(steps: list[Rule]) -> set[str]:
    return {step["type"] for step in steps}
