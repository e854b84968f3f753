"""How a training is computed: by which processes, and in which precision."""

from dataclasses import dataclass

from tandem.group import ALONE, Group


@dataclass(frozen=True)
class Execution:
    """How steps are computed; their mathematics is the same for all.

    bfloat16    whether matrices are multiplied in bf16 while training (sums, states and scores never are)
    """

    group: Group = ALONE
    bfloat16: bool = False


PLAIN = Execution()
"""By this process alone, in the model's own precision."""
