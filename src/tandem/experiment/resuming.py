"""Which training a checkpoint is of, where it lies, and what differs from the one that is asked for."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tandem.advice import advice
from tandem.errors import RunDirError
from tandem.experiment.baseline import baseline_fingerprint
from tandem.experiment.prepared import TrainingInputs
from tandem.folders import CHECKPOINTS
from tandem.settings import counted_settings
from tandem.training.checkpoint import SCHEMA, Checkpoint

PHASE1 = "phase1"
"""A finished phase 1 of `tandem train`, beside the checkpoints; and how those of a phase 1 begin."""
SHOWN = 3
"""So many differences are named."""


def checkpoint_of(
    folder: Path,
    training: str,
    prepared: TrainingInputs,
    seed: int | None,
    tell: Callable[[str], None],
    kind: str = "tandem",
) -> Checkpoint:
    """Of the training of this name, in a run directory or a model folder; `kind` is that of its run."""
    settings, corpus = prepared.settings, prepared.corpus
    identity = {
        "format": SCHEMA,
        "training": training,
        "seed": seed,
        "settings": counted_settings(settings.model_dump(mode="json")),
        "baseline": baseline_fingerprint(prepared, kind),
        "text or tokens": corpus.fingerprint,
        "embeddings": prepared.table(0 if seed is None else seed)[1],
        "precision": prepared.precision,
    }
    path = folder / CHECKPOINTS / f"{training}.safetensors"
    return Checkpoint(path, json.loads(json.dumps(identity)), settings.checkpoint_every, tell)


def check_same_training(folder: Path, *checkpoints: Checkpoint) -> None:
    """RunDirError where the folder has the checkpoint of another training than these: it would be lost."""
    paths = {checkpoint.path: checkpoint for checkpoint in checkpoints}
    for path in sorted((folder / CHECKPOINTS).glob("*.safetensors")):
        ours = paths.get(path)
        found = (ours or Checkpoint(path)).found()
        if found is None:  # damaged, or no checkpoint
            continue
        wanted = ours.identity if ours else {**checkpoints[0].identity, "training": "?"}
        if names := list(differences(found, wanted)):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise RunDirError(
                f"{folder} holds a training that was stopped, of other settings: "
                f"{', '.join(names[:SHOWN])}{more}"
                + advice(
                    "continue it with those", ("give another {}", "output"), ("lose it with {}", "force_new")
                )
            )


def remove_checkpoints(folder: Path) -> None:
    """What a training left there that had not ended, and its finished phase 1."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """What differs between two such identities, by dotted name, with both values where they are short."""
    for key in dict.fromkeys([*theirs, *ours]):
        there, here = theirs.get(key), ours.get(key)
        if there == here:
            continue
        dotted = f"{name}.{key}" if name else key
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from differences(there, here, "" if dotted == "settings" else dotted)
        elif key in ("baseline", "text or tokens", "embeddings", "training", "format"):
            yield "another version of Tandem" if key == "format" else f"other {key}"
        else:
            yield f"{dotted} was {json.dumps(there)} and is {json.dumps(here)}"
