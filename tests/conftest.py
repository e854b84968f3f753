"""What all tests share: one thread a worker, a cache of their own, the corpora where there are any."""

import gc
import json
import os
import sys
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pytest
import warm
from sentences import WORDS, sentences

from tandem.checksums import sealed, write_checksums
from tandem.settings import Settings

__all__ = ["WORDS", "sentences"]  # for the tests

gc.disable()  # until all is imported: of those millions of objects, hardly one is garbage
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too; read as torch loads


def pytest_configure(config: pytest.Config) -> None:
    """A process of pytest-xdist uses the warm Python of the one that started it."""
    if given := getattr(config, "workerinput", {}).get("warm"):
        warm.use(given)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """What that one tells it."""
    node.workerinput["warm"] = warm.python()


def pytest_collection_modifyitems() -> None:
    """Here, as the process that only hands tests out does not come here, and so needs no torch."""
    import torch

    torch.set_num_threads(1)  # tests run side by side; more threads than cores would only wait for each other


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Tests may leave garbage; it is not looked for among what was imported."""
    gc.freeze()
    gc.set_threshold(10_000)  # as the command does
    gc.enable()


def slow_but(quick: Container[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of a test, of which all but the `quick` ones are marked as slow."""
    given = ((case, case if isinstance(case, tuple) else (case,)) for case in cases)
    return [case if case in quick else pytest.param(*own, marks=pytest.mark.slow) for case, own in given]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared tokens go to a folder of the test session, never to the user's."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("TANDEM_CACHE", str(base / "cache"))


@pytest.fixture
def warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process starts by `sys.executable`, or spawns, has the large libraries loaded."""
    monkeypatch.setattr(sys, "executable", warm.python())
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(warm.python()))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with corpora and oracle that TANDEM_SHARED names; the test is skipped without it."""
    folder = os.environ.get("TANDEM_SHARED")
    if not folder:
        pytest.skip("TANDEM_SHARED does not name a folder with the corpora and the oracle")
    return Path(folder)


def write_jsonl(path: Path, documents: list[str]) -> Path:
    """One `text` object a line."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    return path


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small training text, as JSON lines."""
    return write_jsonl(tmp_path / "text.jsonl", sentences(20))


def seal_again(folder: Path) -> None:
    """Once a test has edited files in a folder: checksums as if Tandem had written them so."""
    for name in ("records.jsonl", "manifest.json", "audit.json"):
        for path in folder.rglob(name):
            text = path.read_text("utf-8")
            objects = [
                json.loads(line) for line in (text.splitlines() if name == "records.jsonl" else [text])
            ]
            for one in objects:
                one.pop("checksum", None)
            indent = None if name == "records.jsonl" else 2
            written = [sealed(json.dumps(one, indent=indent)).rstrip() + "\n" for one in objects]
            path.write_text("".join(written), "utf-8")
    for path in folder.rglob("checksums.json"):
        write_checksums(path.parent, ("README.md",))


def tiny(text: Path, **more: object) -> Settings:
    """Settings of an experiment that takes a second or two."""
    values: dict[str, object] = {
        "name": "tiny",
        "configurations": ((1, 1), (2, 1)),
        "seeds": (0, 1),
        "device": "cpu",
        "data": {"train": str(text), "validation_fraction": 0.15},
        "tokenizer": {"vocab_size": 300},
        "embeddings": {"norm": 1.0},
        "model": {"embed_dim": 24, "context_dim": 16, "weight_init_std": 0.3},
        "contexts": {"segment_length": 64, "check_tokens": 256},  # read token by token: as few as can be
        "phase1": {"max_iterations": 6, "batch_positions": 500},
        "phase2": {"max_epochs": 2, "batch_positions": 256, "lr": 0.01},
    }
    return Settings(**merged(values, more))


def merged(values: dict[str, object], more: dict[str, object]) -> dict[str, object]:
    """`values` with what `more` says otherwise, section by section."""
    result = dict(values)
    for key, value in more.items():
        before = result.get(key)
        result[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return result


PREDICTIVE: dict[str, object] = {
    "recipe": "predictive",
    "embeddings": {"source": "random"},
    "model": {"cell": "gated", "token_projection": True, "output_bias": True, "weight_init_std": None},
    "prediction": {"max_epochs": 2, "streams": 8, "negatives": 64, "lr": 0.02},
    "phase2": {"start": "phase1", "dropout": 0.1, "negatives": 64, "schedule": "linear"},
}
"""What makes of the `tiny` experiment one of the recipe predictive."""
