"""What a model folder says of itself, checked before anything is built of it or loaded from it.

A folder may come from anyone. So its files are read here, in bounded memory, and compared: the sizes in
config.json with the header of the weights file, which gives the shape of each tensor before its numbers.
"""

import copy
import json
import math
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tandem.decoding import check_regular, read_text
from tandem.errors import DataError
from tandem.folders import CONFIG
from tandem.model import TandemConfig, TandemEnsemble, TandemEnsembleConfig, TandemForCausalLM

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that run whatever code they hold when they are read. Tandem reads none of them."""
CONFIG_BYTES = 1 << 20
"""The most bytes of a config.json; a usual one has a thousand."""
HEADER_BYTES = 1 << 22
"""The most bytes of the header of a weights file; one of 2,000 layers has half of that."""
FOREIGN = ("quantization_config", "transformers_weights", "fusion_config", "per_layer_config")
"""Keys of config.json by which the library would load other files, or build other layers."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Of one value of each type that a weights file may hold, as safetensors calls it."""
DIMENSIONS = 8
"""No tensor of a model has more."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Weights in any of these are read, and converted."""
WHOLE = {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
HEAD = "lm_head.weight"
AnyConfig = TandemConfig | TandemEnsembleConfig
AnyModel = TandemForCausalLM | TandemEnsemble
"""What a folder may hold: a model, or several that count as one."""
MODELS: dict[str, Any] = {kind.config_class.model_type: kind for kind in (TandemForCausalLM, TandemEnsemble)}
"""By the name that config.json has for each."""


class Stored(NamedTuple):
    """A tensor of a weights file: its shape, and its type as safetensors calls it."""

    shape: tuple[int, ...]
    dtype: str


def read_json(path: Path, most_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """The object in a small file. Raises DataError where there is none, and OSError as `open`."""
    try:
        found = json.loads(read_text(path, most_bytes))
    except (ValueError, RecursionError) as error:
        fault = getattr(error, "msg", "it is nested too deeply, or a number in it is too long")
        raise DataError(f"{path.name} is not valid JSON ({fault})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path.name} holds no JSON object")
    return found


def read_config(folder: Path) -> AnyConfig:
    """The configuration of a model. Raises DataError, with the file, where it is none to build a model of.

    Nothing that it names is fetched or imported.
    """
    values = read_json(folder / CONFIG)
    if foreign := next((key for key in FOREIGN if values.get(key)), None):
        raise DataError(f"{CONFIG} asks for a {foreign}, which Tandem does not load")
    if (folder / ADAPTER).exists():
        raise DataError(
            f"{ADAPTER} stands beside the weights; merge the adapter into them (merge_and_unload)"
        )
    for key in ("auto_map", "dtype", "torch_dtype"):  # our own classes are loaded, in float32
        values.pop(key, None)
    if (kind := str(values.get("model_type"))) not in MODELS:
        raise DataError(f"{CONFIG} is that of a model of type '{kind}', not of a Tandem model")
    try:
        config: AnyConfig = MODELS[kind].config_class.from_dict(values)
    except Exception as error:  # the library checks types in ways of its own
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{CONFIG}: {said[-1].strip()}") from None
    return config


def read_single_config(folder: Path) -> TandemConfig:
    """As `read_config`, where an ensemble is none. Raises DataError for one."""
    configs = read_config(folder).configs
    if len(configs) > 1:
        raise DataError(
            f"{folder} holds an ensemble of {len(configs)} models; give one of those it was made of"
        )
    return configs[0]


def check_weights(folder: Path, config: AnyConfig) -> None:
    """Whether the weights in a folder are those of a model of this configuration, by their names and shapes.

    Raises DataError, with the file, where they are not. No weight is read.
    """
    stored: dict[str, Stored] = {}
    name = WEIGHTS if (folder / WEIGHTS).exists() else INDEX
    for path in _weights_files(folder):
        for tensor, found in stored_tensors(path):
            if tensor in stored:
                raise DataError(f"{path.name} holds {tensor} a second time")
            stored[tensor] = found
    # A layer has several tensors, so that a model is not built of more layers than there can be.
    if (layers := sum(sum(one.depths) for one in config.configs)) > len(stored):
        raise DataError(f"{CONFIG} names {layers:,} layers, and {name} has {len(stored):,} tensors")
    with torch.device("meta"):  # shapes alone, without memory
        expected = MODELS[config.model_type](copy.deepcopy(config)).state_dict()
    ours = {tensor.removeprefix("model."): weight for tensor, weight in expected.items()}
    theirs = {tensor.removeprefix("model."): found for tensor, found in stored.items()}
    heads = {tensor for tensor in (*ours, *theirs) if tensor.endswith(HEAD)}
    free = heads if config.tie_word_embeddings else set()
    for kind, wrong in (
        ("missing", ours.keys() - theirs.keys() - free),
        ("unexpected", theirs.keys() - ours.keys() - free),
        ("mismatched", {n for n in ours.keys() & theirs.keys() if tuple(ours[n].shape) != theirs[n].shape}),
    ):
        if wrong:
            raise DataError(f"{kind} keys in {name}, such as {min(wrong)[:100]}")
    for tensor in sorted(ours.keys() & theirs.keys()):
        dtype, found_dtype = ours[tensor].dtype, theirs[tensor].dtype
        if found_dtype not in (FLOATS if dtype.is_floating_point else (WHOLE.get(dtype),)):
            raise DataError(f"{name} has numbers of type {found_dtype} in {tensor}")


def _weights_files(folder: Path) -> list[Path]:
    """The files of the weights in a folder: one, or the parts that an index lists."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        parts = read_json(folder / INDEX, HEADER_BYTES).get("weight_map")
        names = list(parts.values()) if isinstance(parts, Mapping) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise DataError(f"{INDEX} names no files of this folder")
        if wrong := next((name for name in names if not name.endswith(".safetensors")), None):
            raise DataError(f"{INDEX} names {wrong[:100]!r}, which is no safetensors file")
        return [folder / name for name in dict.fromkeys(names)]
    if pickle := next((path for path in sorted(folder.iterdir()) if path.suffix in PICKLES), None):
        raise DataError(
            f"{pickle.name} may run code when it is read, so Tandem does not; ask who made it for {WEIGHTS}"
        )
    raise DataError(f"there is no {WEIGHTS}")


def stored_tensors(path: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors in a safetensors file, by name. Raises DataError where they do not fill it exactly."""
    check_regular(path)
    damaged = f"{path.name} is no whole safetensors file"
    with path.open("rb") as file:
        size, first = path.stat().st_size, file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(HEADER_BYTES, size - 8):
            raise DataError(f"{damaged}: its header would have {length:,} bytes")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = []
            for name, found in header.items():
                shape, (begin, end) = tuple(found["shape"]), found["data_offsets"]
                if len(shape) > DIMENSIONS or not all(
                    type(number) is int and 0 <= number < 1 << 48 for number in (*shape, begin, end)
                ):
                    raise ValueError
                if math.prod(shape) * BYTES[found["dtype"]] != end - begin:
                    raise DataError(f"{damaged}: {name[:100]} has another size than its shape")
                ends.append((begin, end))
                yield name, Stored(shape, found["dtype"])
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise DataError(f"{damaged}: its header cannot be read") from None
    ends = [(0, 0), *sorted(ends), (size - 8 - length, 0)]
    if any(before != begin for (_, before), (begin, _) in pairwise(ends)):
        raise DataError(f"{damaged}: its tensors overlap, or leave a part of it out")
