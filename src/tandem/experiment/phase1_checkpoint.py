"""Phase 1 on disk: what it leaves to phase 2, shared by the runs of one context depth and seed."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tandem.experiment.prepared import Prepared, new_model
from tandem.fingerprint import fingerprint
from tandem.folders import atomic_write
from tandem.model import TandemForCausalLM
from tandem.objectives import OBJECTIVES, Objective
from tandem.records import Phase1Record
from tandem.settings import Configuration

SavedPhase1 = tuple[dict[str, torch.Tensor], Phase1Record]


def phase1_path(run_dir: Path, variant: str | None, context_layers: int, seed: int) -> Path:
    """Where the phase 1 result that runs of this variant, context depth and seed share lies."""
    own = "" if variant is None else f"{variant}-"
    return run_dir / "phase1" / f"{own}C{context_layers}-seed{seed}.safetensors"


def phase1_fingerprint(prepared: Prepared, context_layers: int, seed: int) -> str:
    """Of everything that phase 1 depends on: the context depth, the seed, and what they are trained on."""
    settings = prepared.settings
    section = OBJECTIVES[settings.recipe].section
    return fingerprint(
        "phase1",
        settings.recipe,
        settings.model.model_dump(mode="json"),
        settings.section(section).model_dump(mode="json") if section else {},
        prepared.corpus.fingerprint,
        prepared.table_fingerprint,
        prepared.execution.bfloat16,
        context_layers,
        seed,
    )


def new_heads(prepared: Prepared, context_layers: int, seed: int) -> nn.ModuleDict:
    """The modules that phase 1 trains beside the model, drawn from the seed."""
    return OBJECTIVES[prepared.settings.recipe].new_heads(
        prepared.settings,
        lambda depth: new_model(prepared, Configuration(context_layers, depth), seed).token_block,
    )


def phase1_state(model: TandemForCausalLM, objective: Objective) -> dict[str, torch.Tensor]:
    """The weights that phase 1 leaves to phase 2; those of the output head are the embedding's."""
    left = tuple(f"{part}." for part in objective.parts)
    weights = model.state_dict()
    return {name: weights[name] for name in weights if name.startswith(left) and name != "lm_head.weight"}


def load_phase1_state(
    state: Mapping[str, torch.Tensor], model: TandemForCausalLM, heads: nn.ModuleDict | None = None
) -> None:
    """Put what phase 1 left into a new model and new heads. Raises RuntimeError where it does not fit."""
    of_heads = {name: state[name] for name in state if heads and name.split(".")[0] in heads}
    own = {name: state[name] for name in state if name not in of_heads}
    unknown = model.load_state_dict(own, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"phase 1 left {unknown[0]}, which the model does not have")
    if heads:
        heads.load_state_dict(of_heads)


def save_phase1(path: Path, state: dict[str, torch.Tensor], record: Phase1Record, fingerprint: str) -> None:
    """Keep the weights that a finished phase 1 leaves, atomically, with a fingerprint of its inputs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path) as draft:
        save_file(tensors, draft, {"fingerprint": fingerprint, "record": record.model_dump_json()})
        open_as_new_files(draft)


def load_phase1(path: Path, fingerprint: str, objective: Objective) -> SavedPhase1 | None:
    """The kept phase 1, or none where there is none, it is damaged, or it came from anything else."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, objective.record_type.model_validate_json(metadata["record"])
    except (OSError, SafetensorError, KeyError, ValidationError):
        return None


def open_as_new_files(*paths: Path) -> None:
    """Give files the permissions that new ones get here: safetensors keeps its own from all but the owner."""
    with tempfile.TemporaryDirectory(dir=paths[0].parent) as place:
        plain = Path(place) / "plain"
        plain.touch()
        for path in paths:
            path.chmod(plain.stat().st_mode)
