"""All cells: the ContextBlocks to choose from, by the names that `cell` of the configuration may have.

Nothing is imported before a cell is asked for, so names can be checked without torch. An import stands
within a function, where transformers finds it as well: it copies the file beside a saved model.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cell_tandem import ContextBlock


def _residual() -> "type[ContextBlock]":
    from .cell_residual import ResidualContextBlock

    return ResidualContextBlock


def _gated() -> "type[ContextBlock]":
    from .cell_gated import GatedContextBlock

    return GatedContextBlock


CELLS: dict[str, Callable[[], "type[ContextBlock]"]] = {"residual": _residual, "gated": _gated}
"""Name → a function that imports and returns the class; `CELLS["mine"] = lambda: MyBlock` adds one."""

__all__ = ["CELLS"]
