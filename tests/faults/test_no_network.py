"""Nothing asks the network unless something on it was named."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny

from tandem.cli.main import run
from tandem.settings import dump_settings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that anything in this process asked for; none is answered."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def refused(*address: Any, **more: Any) -> Any:
        asked.append((address, more))
        raise OSError("there is no network here")

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            refused(address)
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", local_only)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_no_command_asks_the_network(
    text_file: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(text_file, configurations=((1, 1),), seeds=(0,))
    file, run_dir, model = (tmp_path / name for name in ("settings.yaml", "run", "run/models/C1T1-seed0"))
    file.write_text(dump_settings(settings), "utf-8")
    other = tmp_path / "other"
    for command in (
        ("experiment", str(file), "--output", str(run_dir), "--baselines.models", "unigram"),
        ("audit", str(model)),
        ("evaluate", str(model), "--data", str(text_file)),
        ("score", str(model), str(text_file)),
        ("generate", str(model), "--prompt", "the", "--max-new-tokens", "2"),
        ("quantize", str(model), "--output", str(tmp_path / "int8")),
        ("adapt", str(model), "--data", str(text_file), "--output", str(other)),
        ("ensemble", str(model), str(other), "--output", str(tmp_path / "both")),
        ("report", str(run_dir)),
        ("doctor",),
    ):
        assert run(command) == 0, capsys.readouterr().err
    assert asked == []


def test_a_hub_source_does(asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub name is asked for; so the test above can fail."""
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between two tries
    assert run(["train", "--tokenizer.source", "someone/something", "--output", str(tmp_path / "m")]) == 2
    assert asked != []
