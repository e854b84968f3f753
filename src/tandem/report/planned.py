"""What the manifest says of the settings of each variant: plain data, whatever version of Tandem wrote it."""

import json
from collections.abc import Iterator, Mapping

from tandem.records import Manifest


def changes(manifest: Manifest, variant: str) -> tuple[str, ...]:
    """What a variant sets differently from the common settings, such as `phase2.lr = 0.002`."""
    return tuple(_leaves(_own(manifest, variant)))


def trains_plainly(manifest: Manifest | None, variant: str | None) -> bool:
    """Whether phase 2 trains without dropout and on the whole vocabulary, as far as is known.

    Otherwise its training figures are of another kind than those of validation.
    """
    settings: dict[str, object] = {}
    for source in (manifest.settings if manifest else {}, _own(manifest, variant)):
        phase2 = source.get("phase2")
        settings |= phase2 if isinstance(phase2, Mapping) else {}
    return not any(settings.get(name) for name in ("dropout", "embed_dropout", "output_dropout", "negatives"))


def _own(manifest: Manifest | None, variant: str | None) -> Mapping[str, object]:
    variants = manifest.settings.get("variants") if manifest else None
    own = variants.get(variant) if isinstance(variants, Mapping) and variant is not None else None
    return own if isinstance(own, Mapping) else {}


def _leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {json.dumps(value, ensure_ascii=False)}"
