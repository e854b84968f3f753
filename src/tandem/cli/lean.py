"""A quick start of `tandem generate`: most of what transformers imports is for other uses."""

import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

UNUSED = ("accelerate", "scipy", "sklearn")
"""What transformers imports where it is installed, for other models or for training."""
COMPILER = "torch._dynamo"
"""The compiler of torch. It takes seconds to import, and is asked for decorators only."""


class _CompilerLater(ModuleType):
    """In the compiler's place until anybody asks for more than its decorators."""

    __file__ = None

    @staticmethod
    def disable(function: Any = None, *_: object, **__: object) -> Any:
        """What the decorators do to a function that is not compiled; without one, a decorator."""
        return _CompilerLater.disable if function is None else function

    assume_constant_result = allow_in_graph = disable

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(import_module(COMPILER), name)


def import_transformers() -> None:
    """Import what a model needs, as if `UNUSED`, the compiler and torch.distributed were not installed.

    Only where nothing is imported yet: a process that does more than run one model on one device needs them.
    """
    if {"torch", "transformers"} & set(sys.modules):
        return
    sys.modules[COMPILER] = _CompilerLater(COMPILER)
    distributed: Any = import_module("torch.distributed")
    attention: Any = ModuleType(f"{COMPILER}._trace_wrapped_higher_order_op")
    attention.TransformGetItemToIndex = None  # for attention, which Tandem does not have
    absent: Any = {n: None for n in UNUSED if n not in sys.modules} | {attention.__name__: attention}
    is_available, distributed.is_available = distributed.is_available, lambda: False
    sys.modules.update(absent)
    with suppress(Exception):  # where another version asks for more, the regular import goes on from there
        import_module("transformers.generation.utils")
        import_module("transformers.modeling_utils")
        embedding: Any = import_module("torch.nn").Embedding
        embedding.reset_parameters = lambda _: None  # weights are read; drawing some first imports sympy
    distributed.is_available = is_available
    for name in absent:
        del sys.modules[name]
