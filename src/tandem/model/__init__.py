"""The model as Hugging Face classes; the files beside this one travel with saved models.

They load on first use: transformers must be able to import the configuration while it is itself imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tandem.model.cells_tandem import CELLS as CELLS

if TYPE_CHECKING:
    from tandem.model.cache_tandem import TandemCache as TandemCache
    from tandem.model.cell_tandem import ContextBlock as ContextBlock
    from tandem.model.cell_tandem import sequential_contexts as sequential_contexts
    from tandem.model.configuration_tandem import TandemConfig as TandemConfig
    from tandem.model.configuration_tandem import TandemEnsembleConfig as TandemEnsembleConfig
    from tandem.model.ensemble_tandem import TandemEnsemble as TandemEnsemble
    from tandem.model.ensemble_tandem import average as average
    from tandem.model.modeling_tandem import TandemForCausalLM as TandemForCausalLM
    from tandem.model.modeling_tandem import (
        TandemForSequenceClassification as TandemForSequenceClassification,
    )
    from tandem.model.modeling_tandem import TandemForTokenClassification as TandemForTokenClassification
    from tandem.model.modeling_tandem import TandemModel as TandemModel
    from tandem.model.token_block_tandem import TokenBlock as TokenBlock

_FILES = {
    "ContextBlock": "cell",
    "TandemCache": "cache",
    "TandemConfig": "configuration",
    "TandemEnsemble": "ensemble",
    "TandemEnsembleConfig": "configuration",
    "TandemForCausalLM": "modeling",
    "TandemForSequenceClassification": "modeling",
    "TandemForTokenClassification": "modeling",
    "TandemModel": "modeling",
    "TokenBlock": "token_block",
    "average": "ensemble",
    "sequential_contexts": "cell",
}


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(import_module(f"tandem.model.{_FILES[name]}_tandem"), name)
    raise AttributeError(f"module 'tandem.model' has no attribute '{name}'")
