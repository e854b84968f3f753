"""A device for torch, `far`, whose tensors lie on the CPU but cannot be mixed with those of the CPU.

What runs on it runs on a GPU as far as devices go: whoever leaves a tensor behind, or makes one on the wrong
device, gets an error here, too. torch calls `_far` for every operation on such tensors; it computes on the
CPU. Registered for the whole process, by what torch has for devices in Python, which is not public.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

SHAPES_ONLY = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
COPIES = ("copy_", "_to_copy")
BRACKETS = ("index", "index_put_", "_index_put_impl_")
"""Of which positions may be on the CPU, as on a GPU."""
JOINS = ("cat", "stack")
"""Which take no number from there; others do."""

_Generator = torch.Generator
_generators: dict[int, Any] = {}
"""Those made for the device, which draw on the CPU, by their address."""
_memory: dict[int, tuple[Tensor, Any]] = {}
"""Of a storage of ours, by its address: all of its numbers on the CPU; and the storage, that it may last."""


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _NearGenerator:
    def __new__(cls, device: Any = "cpu") -> Any:
        generator = _Generator("cpu" if is_far(device) else device)
        if is_far(device):
            _generators[generator._cdata] = generator
        return generator


def is_far(thing: object) -> bool:
    """Whether a tensor is on the device, or a device is it."""
    device = thing.device if isinstance(thing, Tensor) else thing
    return device is not None and torch.device(device).type == "far"  # type: ignore[arg-type]


def _view(far: Tensor, near: Tensor) -> Tensor:
    """Of the storage of `far`, what `near` is of its own."""
    geometry = near.shape, near.stride(), near.storage_offset()
    return torch.ops.aten.as_strided.default.redispatch(SHAPES_ONLY, far, *geometry)


def _moved(near: Tensor) -> Tensor:
    """A new tensor of ours for one of the CPU."""
    storage = near.detach().untyped_storage()
    count = storage.nbytes() // near.itemsize
    everything = torch.empty(0, dtype=near.dtype).set_(storage, 0, (count,), (1,))
    far = torch._C._acc.create_empty_tensor((count,), near.dtype)
    _memory[far.untyped_storage()._cdata] = everything, far.untyped_storage()
    return _view(far, near)


def _near(far: Tensor) -> Tensor:
    """What holds the numbers of one of ours."""
    everything, _ = _memory[far.untyped_storage()._cdata]
    return everything.as_strided(far.shape, far.stride(), far.storage_offset())


def _far(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation, of whose tensors some are ours: on the CPU, with tensors of ours again as its result."""
    name = operation._schema.name.removeprefix("aten::")
    if name == "as_strided":
        far, size, stride, *offset = (*args, *kwargs.values())
        geometry = size, stride, far.storage_offset() if offset in ([], [None]) else offset[0]
        return torch.ops.aten.as_strided.default.redispatch(SHAPES_ONLY, far, *geometry)
    if name == "_copy_from":
        source, target = (_near(part) if is_far(part) else part for part in args[:2])
        target.copy_(source)
        return args[1]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    if (generator := kwargs.get("generator")) is not None and generator._cdata not in _generators:
        raise RuntimeError(f"{name} on far by a generator of the CPU")

    def near(thing: Any, number: bool = True, positions: bool = False) -> Any:
        """On the CPU; `number`: one of its own may come along, `positions`: any of its own."""
        if isinstance(thing, list | tuple):
            return [near(one, number, positions) for one in thing]
        if isinstance(thing, torch.device):
            return torch.device("cpu") if is_far(thing) else thing
        if not isinstance(thing, Tensor):
            return thing
        if is_far(thing):
            return found.setdefault(id(thing), (thing, _near(thing)))[1]
        if name in COPIES or positions or (number and thing.dim() == 0):
            return thing
        raise RuntimeError(f"{name} of tensors on far, and one of shape {tuple(thing.shape)} on the CPU")

    arguments = operation._schema.arguments
    given = []
    for place, (value, one) in enumerate(zip(args, arguments, strict=False)):
        written = place == 0 and name.endswith("_")
        value = near(value, not written and name not in JOINS, name in BRACKETS and place == 1)
        given.append(
            torch.tensor(value) if isinstance(value, int | float) and str(one.type) == "Tensor" else value
        )
    made = operation(*given, **{name: near(value) for name, value in kwargs.items()})
    for one in arguments:
        if one.is_out and (out := kwargs.get(one.name)) is not None and out.shape != near(out).shape:
            out.data = _moved(near(out))  # it began empty
    stays = "device" not in kwargs or kwargs["device"] is None or is_far(kwargs["device"])
    same = {id(there): here for here, there in found.values()}
    storages = {there.untyped_storage()._cdata: here for here, there in found.values()}

    def far_again(thing: Any) -> Any:
        if isinstance(thing, list | tuple):
            return type(thing)(far_again(one) for one in thing)
        if not isinstance(thing, Tensor) or not stays:
            return thing
        if id(thing) in same:
            return same[id(thing)]
        storage = storages.get(thing.untyped_storage()._cdata)
        return _moved(thing) if storage is None or thing.numel() == 0 else _view(storage, thing)

    return far_again(made)


def register() -> None:
    """Make the device; random numbers for it are drawn on the CPU."""
    backend_registration._setup_privateuseone_for_python_backend("far", backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_far, "PrivateUse1")
    register.library = library  # type: ignore[attr-defined]  # goes when nothing holds it
    torch.Generator = _NearGenerator  # type: ignore[misc, assignment]
