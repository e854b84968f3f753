"""The model classes are known to transformers' Auto classes as soon as those are imported, and not before.

`import tandem` alone must do, but must not import transformers, which takes seconds. So a finder on
`sys.meta_path` waits for the modules that define the Auto classes, and registers ours when they have run.
"""

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from tandem.model.configuration_tandem import TandemConfig, TandemEnsembleConfig

    for config in (TandemConfig, TandemEnsembleConfig):
        AutoConfig.register(config.model_type, config)


def _register_model() -> None:
    from transformers.models.auto import modeling_auto as auto

    from tandem import model

    auto.AutoModel.register(model.TandemConfig, model.TandemModel)
    auto.AutoModelForCausalLM.register(model.TandemConfig, model.TandemForCausalLM)
    auto.AutoModelForCausalLM.register(model.TandemEnsembleConfig, model.TandemEnsemble)
    auto.AutoModelForSequenceClassification.register(
        model.TandemConfig, model.TandemForSequenceClassification
    )
    auto.AutoModelForTokenClassification.register(model.TandemConfig, model.TandemForTokenClassification)


# What each module makes possible. Nothing that our own modules import may import one of the two in turn: it
# would be half-imported then, where they need it. For the configuration that holds by its nature.
_ONCE_IMPORTED: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


def register_when_imported() -> None:
    """Register with the Auto classes that are there, and with others when they are imported."""
    if not any(isinstance(finder, _AutoModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModules())
    for name, register in _ONCE_IMPORTED.items():
        if name in sys.modules:
            register()


class _AutoModules(MetaPathFinder):
    """Leaves finding to all others, and has the two modules followed by our registration."""

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The spec that the others find for one of the two modules, whose loader then registers as well."""
        register = _ONCE_IMPORTED.get(fullname)
        if register is None or getattr(self._asking, "others", False):
            return None
        self._asking.others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.others = False
        if spec is not None and (loader := spec.loader) is not None:
            load = loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                if module.__name__ == fullname:  # a loader may serve other modules, too
                    loader.exec_module = load  # type: ignore[method-assign]
                    register()

            loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
