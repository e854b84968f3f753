"""Memory that transformers' `generate` takes to read a prompt, at once and in pieces, by the prompt's length.

    python bench/long_prompt.py

The model has untrained weights, the default sizes, and a gated cell. Each figure is of a process of its own.
"""

from importlib import import_module
from pathlib import Path

from measuring import SMALL, byte_size, extra_memory, in_subprocess, print_table, run

LENGTHS = (3_000,) if SMALL else (1_000, 10_000, 100_000)
PIECE = 100 if SMALL else 1024
"""Tokens that are read at a time."""


def measure(length: int, piece: int | None) -> int:
    """Bytes at the peak, beyond model and prompt, of reading `length` tokens and writing four more."""
    import torch

    from tandem import TandemConfig, TandemForCausalLM
    from tandem.experiment.machine import give_back_freed_memory

    sizes = {"vocab_size": 99, "embed_dim": 32, "context_dim": 8} if SMALL else {}
    model = TandemForCausalLM(TandemConfig(cell="gated", **sizes)).eval()
    ids = torch.randint(model.config.vocab_size, (1, length))

    def generate(prompt: torch.Tensor) -> None:
        model.generate(prompt, max_new_tokens=4, do_sample=False, prefill_chunk_size=piece)

    generate(ids[:, :8])  # what is loaded on first use
    give_back_freed_memory()
    return extra_memory(lambda: generate(ids))


def main() -> None:
    """Print the table."""
    measured = import_module(Path(__file__).stem).measure  # by the name that another process finds it by
    rows = [
        [
            f"{length:,}",
            *(byte_size(in_subprocess(measured, length=length, piece=piece)) for piece in (None, PIECE)),
        ]
        for length in LENGTHS
    ]
    print_table("Memory to read a prompt", ("tokens", "at once", f"in pieces of {PIECE:,}"), rows)


if __name__ == "__main__":
    run(main)
