"""Contexts of a whole token stream: the sequential loop, the segment-parallel scan, the Jacobi sweep.

Shape letters: T tokens, C context_dim, E embed_dim, U distinct tokens, S segments.
"""

from tandem.contexts.context_store import PIECE_TOKENS, Contexts, Window
from tandem.contexts.jacobi import jacobi_sweep, jacobi_update, previous_contexts
from tandem.contexts.memory import measure_memory
from tandem.contexts.sample import ContextsSample
from tandem.contexts.scan import compute_contexts, held_in_memory
from tandem.contexts.stream import Stream, Tokens

__all__ = [
    "PIECE_TOKENS",
    "Contexts",
    "ContextsSample",
    "Stream",
    "Tokens",
    "Window",
    "compute_contexts",
    "held_in_memory",
    "jacobi_sweep",
    "jacobi_update",
    "measure_memory",
    "previous_contexts",
]
