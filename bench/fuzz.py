"""Feeds broken files to the readers of corpora, settings and model folders, and counts what becomes of them.

python bench/fuzz.py [--seconds 60] [--seed 0] [--only KIND]

Each input is a good file with some bytes changed, cut out, repeated or moved, or with pieces of a list of
hostile ones put in. The same seed gives the same inputs. An input is read, or refused by a TandemError.
Anything else is a crash: its bytes are kept in the folder `fuzz-crashes`, and the exit code is 1.
"""

import argparse
import gzip
import json
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from measuring import SMALL

from tandem.errors import TandemError
from tandem.model_folder.checking import stored_tensors
from tandem.settings import dump_settings, load_settings, preset_names
from tandem.shown import tolerate_any_encoding
from tandem.text.files import read_records
from tandem.text.reading import Reading
from tandem.text.sources import open_documents

MOST_BYTES = 1 << 16
"""Of a document, so that the bound is met as well."""
CRASHES = Path("fuzz-crashes")
PIECES = [
    *(b"\0", b"\n", b"\r\n", b"\r", b"\t", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3"),
    *(b'"', b"\\", b"\\u", b"\\ud800", b"\\u0000", b"{", b"}", b"[", b"]", b":", b",", b"{}", b"[]", b"null"),
    *(b'"text"', b'"messages"', b'"content"', b'"text": "a", ', b"NaN", b"1e999", b"-0", b"9" * 5000),
    *(b"9" * 400, b"[" * 2000, b"{" * 300, b'{"a":' * 2000, b"a" * 70_000, b"\n" * 1000, b"? "),
    *(b"&a ", b"*a", b"<<: ", b"!!int ", b"- ", b"--- ", b"...",
      b"%YAML 9.9\n", b"|", b">", b".nan", b".inf", b"0x", b"1:1:1", b"~"),
    *(b"2001-99-99", b"\x1b[2J", b"\x1f\x8b", b"BZh91AY&SY", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),
    *(b"PAR1\x15", b"PK\x03\x04", b"%PDF-", b"+/v8", b"\x85", "é".encode("latin-1"), "é".encode("utf-16")),
    *("日本".encode(), "\u2028\u202e".encode()),
]  # fmt: skip
"""What is put into files: what begins, ends or escapes something in one of them."""


def jsonl_seeds() -> list[bytes]:
    rows = [
        {"text": "the context folds the token"},
        {"text": '日本\n\t"x" é', "n": [1, 2.5, None, True, {"a": {}}]},
        {"messages": [{"role": "user", "content": "one"}, {"content": "two"}]},
    ]
    lines = "".join(json.dumps(row, ensure_ascii=bool(n % 2)) + "\n" for n, row in enumerate(rows))
    return [lines.encode(), lines.encode("utf-16"), gzip.compress(lines.encode(), mtime=0)]


def text_seeds() -> list[bytes]:
    text = "= one\nthe context folds\n\n= two\n日本 é\n\n\nlast"
    return [
        text.encode(),
        text.encode("utf-16-le"),
        text.encode("utf-32"),
        gzip.compress(text.encode(), mtime=0),
    ]


def settings_seeds() -> list[bytes]:
    own = "variants:\n  one: &one {phase2: &p {lr: 0.1}}\n  two: {<<: *one}\nseeds: [1]\nphase1: {lr: 1e-3}"
    return [own.encode(), *(dump_settings(load_settings(name)).encode() for name in preset_names())]


def weights_seeds() -> list[bytes]:
    tensors = {
        "model.embedding.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "lm_head.bias": {"dtype": "BF16", "shape": [2], "data_offsets": [16, 20]},
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return [struct.pack("<Q", len(header)) + header + bytes(20)]


def read_jsonl(path: Path) -> None:
    list(open_documents(str(path), "file", max_document_bytes=MOST_BYTES))


def read_rows(path: Path) -> None:
    for _ in read_records([str(path)], Reading("x", longest=MOST_BYTES), "text"):
        pass


def read_text(path: Path) -> None:
    for how in ("file", "blank-line", "start:^="):
        list(open_documents(str(path), how, max_document_bytes=MOST_BYTES))


def read_settings(path: Path) -> None:
    load_settings(str(path))


def read_weights(path: Path) -> None:
    list(stored_tensors(path))


KINDS: dict[str, tuple[str, Callable[[], list[bytes]], Callable[[Path], None]]] = {
    "jsonl": ("a.jsonl", jsonl_seeds, read_jsonl),
    "rows to score": ("a.jsonl", jsonl_seeds, read_rows),
    "text": ("a.txt", text_seeds, read_text),
    "settings": ("a.yaml", settings_seeds, read_settings),
    "weights": ("a.safetensors", weights_seeds, read_weights),
}
"""By name: what the file is called, good files of it, and what reads it."""


def mutated(chance: random.Random, seed: bytes, others: list[bytes]) -> bytes:
    """A file that was good, after one to six changes."""
    content = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        begin = chance.randrange(len(content) + 1)
        end = min(len(content), begin + chance.choice((1, 1, 2, 4, 16, 64)))
        part = bytes(content[begin:end])
        match chance.randrange(7):
            case 0 if part:
                content[begin] ^= 1 << chance.randrange(8)
            case 1:
                del content[begin:end]
            case 2:
                content[begin:begin] = part * chance.choice((1, 2, 100))
            case 3:
                content[begin:end] = chance.randbytes(end - begin)
            case 4:
                other = chance.choice(others)
                cut = chance.randrange(len(other) + 1)
                content[begin:] = other[cut:]
            case 5:
                del content[begin:]
            case _:
                content[begin:end] = chance.choice(PIECES)
    return bytes(content)


def fuzz(kind: str, seconds: float, seed: int, folder: Path) -> Counter[str]:
    """How many inputs of a kind were read, refused, and crashed."""
    name, seeds, read = KINDS[kind]
    chance, good, counts = random.Random(f"{kind} {seed}"), seeds(), Counter[str]()
    path, ends = folder / name, time.process_time() + seconds
    while time.process_time() < ends:
        content = mutated(chance, chance.choice(good), good)
        path.write_bytes(content)
        counts["inputs"] += 1
        began = time.process_time()
        try:
            read(path)
            counts["read"] += 1
        except TandemError:
            counts["refused"] += 1
        except Exception:
            counts["crashes"] += 1
            if counts["crashes"] <= 5:
                CRASHES.mkdir(exist_ok=True)
                kept = CRASHES / f"{kind.replace(' ', '-')}-{counts['inputs']}-{name}"
                kept.write_bytes(content)
                print(f"{kept}:\n{traceback.format_exc()}", file=sys.stderr)
        counts["slowest"] = max(counts["slowest"], round(1000 * (time.process_time() - began)))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=2 if SMALL else 60, help="CPU time, for all kinds together"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    given = parser.parse_args()
    kinds = [given.only] if given.only else list(KINDS)
    print("| kind | inputs | read | refused | crashes | slowest, ms |\n|---|---:|---:|---:|---:|---:|")
    crashes = 0
    with tempfile.TemporaryDirectory() as place:
        for kind in kinds:
            found = fuzz(kind, given.seconds / len(kinds), given.seed, Path(place))
            figures = (f"{found[key]:,}" for key in ("inputs", "read", "refused", "crashes", "slowest"))
            print(f"| {kind} | {' | '.join(figures)} |", flush=True)
            crashes += found["crashes"]
    raise SystemExit(bool(crashes))


if __name__ == "__main__":
    tolerate_any_encoding()
    main()
