"""Contexts of a whole token stream: the sequential loop, the segment-parallel scan, the Jacobi sweep.

Shape letters: T tokens, C context_dim, E embed_dim, U distinct tokens, S segments.
"""

from tandem.contexts.context_store import PIECE_TOKENS as PIECE_TOKENS
from tandem.contexts.context_store import Contexts as Contexts
from tandem.contexts.context_store import Window as Window
from tandem.contexts.jacobi import jacobi_read as jacobi_read
from tandem.contexts.jacobi import jacobi_sweep as jacobi_sweep
from tandem.contexts.jacobi import previous_contexts as previous_contexts
from tandem.contexts.memory import measure_memory as measure_memory
from tandem.contexts.sample import ContextsSample as ContextsSample
from tandem.contexts.scan import compute_contexts as compute_contexts
from tandem.contexts.scan import held_in_memory as held_in_memory
from tandem.contexts.stream import Stream as Stream
from tandem.contexts.stream import Tokens as Tokens
