"""Tandem: language models made of two blocks, a ContextBlock and a TokenBlock.

The model classes load on first use, so that `import tandem` and `tandem --help` need no torch. Transformers'
Auto classes know them in any case.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tandem.registration import register_when_imported

if TYPE_CHECKING:
    from tandem.model import (
        TandemCache,
        TandemConfig,
        TandemForCausalLM,
        TandemForSequenceClassification,
        TandemForTokenClassification,
        TandemModel,
    )
    from tandem.records.table import records_table as records
    from tandem.scoring.scorer import Scorer

__all__ = [
    "TandemCache",
    "TandemConfig",
    "TandemForCausalLM",
    "TandemForSequenceClassification",
    "TandemForTokenClassification",
    "TandemModel",
    "load",
    "records",
]


def load(folder: str, device: str = "auto") -> "Scorer":
    """The model in a folder, to score texts with. Raises TandemError as `tandem evaluate` does."""
    from pathlib import Path

    from tandem.scoring.scorer import Scorer

    return Scorer(Path(folder), device)


def __getattr__(name: str) -> Any:
    if name == "records":
        return import_module("tandem.records")
    if name in __all__:
        from tandem import model

        return getattr(model, name)
    raise AttributeError(f"module 'tandem' has no attribute '{name}'")


register_when_imported()
