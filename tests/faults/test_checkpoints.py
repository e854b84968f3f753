"""A training that is stopped anywhere, and continued, ends as if nothing had happened."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sentences, slow_but, tiny, write_jsonl
from safetensors import safe_open
from warm import python

from tandem import metrics, stopping
from tandem.contexts import job, linear, segments
from tandem.errors import RunDirError
from tandem.experiment.runner import run_experiment
from tandem.experiment.single_run import train_one
from tandem.records import RunRecord
from tandem.settings import Configuration, Settings, dump_settings
from tandem.stopping import Stopped
from tandem.training.checkpoint import Checkpoint, read_tree, write_tree
from tandem.training.progress import Watcher

Stopper = Callable[[Settings, int], list[str]]
ALL_DROPOUT = {"dropout": 0.2, "embed_dropout": 0.1, "output_dropout": 0.1, "negatives": 50}
KINDS: dict[str, dict[str, Any]] = {
    "original": {"phase1": {"max_iterations": 5, "batch_positions": 300, "tokens_per_step": 900}},
    "trained embedding": {"embeddings": {"trained": True}, "phase2": {"max_epochs": 3, "patience": 3}},
    "predictive": {
        "recipe": "predictive",
        "model": {"cell": "gated", "output_bias": True, "token_projection": True},
        "prediction": {"max_epochs": 2, "streams": 4, "window": 64, **ALL_DROPOUT},
        "phase2": {"start": "phase1", "shuffle": True, "schedule": "linear", "patience": 3, **ALL_DROPOUT},
        "contexts": {"keep": "recompute"},
    },
    "networks": {
        "configurations": ((2, 2),),
        "baselines": {
            "models": ("lstm", "awd-lstm", "gpt2", "transformer"),
            "max_parameters": 9000,
            "lstm": {"max_epochs": 2, "dropout": 0.3, "window": 64},
            "awd_lstm": {"max_epochs": 3, "window": 64, "average_after": 1, "lr": 0.05},
            "gpt2": {"max_epochs": 2, "layers": 1, "window": 32, "batch_windows": 16},
            "transformer": {"max_epochs": 2, "layers": 1, "window": 32, "batch_windows": 16},
        },
    },
    "rates": {
        "phase2": {"max_epochs": 1},
        "baselines": {
            "models": ("lstm",),
            "max_parameters": 9000,
            "learning_rates": (0.0001, 0.02),
            "lstm": {"max_epochs": 2, "window": 64},
        },
    },
}


def settings_of(folder: Path, kind: str, **more: Any) -> Settings:
    text = write_jsonl(folder / "text.jsonl", sentences(20))
    values = {"configurations": ((1, 1),), "seeds": (0,), "checkpoint_every": 0.0, **KINDS[kind], **more}
    return tiny(text, **values)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        apart = {"finished_at", "peak_memory_bytes", "folder"}
        return {k: without_times(v) for k, v in value.items() if not k.endswith("_s") and k not in apart}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(path: Path) -> tuple[dict[str, tuple[str, bytes]], Any]:
    """Tensors bit for bit, and the metadata less times: its order is the library's."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = {k: json.loads(v) if v[:1] in ("{", "[") else v for k, v in (file.metadata() or {}).items()}
    return {n: (str(t.dtype), t.numpy().tobytes()) for n, t in tensors.items()}, without_times(
        {name: value for name, value in told.items() if name not in ("checksum", "beside")}
    )


def all_content(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*.safetensors"))}


class Steps:
    """Counts the steps of all trainings, and stops after some of them, as a signal does."""

    def __init__(self, patch: pytest.MonkeyPatch, stops_after: Callable[[int], bool]) -> None:
        self.done, after_step = 0, Checkpoint.after_step

        def counted(checkpoint: Checkpoint) -> None:
            after_step(checkpoint)  # writes, as every step is to be written
            self.done += 1
            if stops_after(self.done):
                raise Stopped(signal.SIGTERM)

        patch.setattr(Checkpoint, "after_step", counted)


@pytest.mark.parametrize("kind", slow_but({"predictive"}, KINDS))
def test_a_chain_of_stops_ends_bit_for_bit_alike(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped every few steps until it ends, an experiment has the same weights, snapshots and records."""
    settings, whole, torn = settings_of(tmp_path, kind), tmp_path / "whole", tmp_path / "torn"
    with monkeypatch.context() as patch:
        steps = Steps(patch, lambda _: False)
        _, expected = run_experiment(settings.model_copy(update={"output": str(whole)}), Watcher())
    all_steps, stops, records = steps.done, 0, list[RunRecord]()
    every = max(3, all_steps // 5)
    with monkeypatch.context() as patch:
        steps = Steps(patch, lambda done: done % every == 0)
        while not records:
            try:
                _, records = run_experiment(settings.model_copy(update={"output": str(torn)}), Watcher())
            except Stopped:
                stops += 1
                assert list((torn / "checkpoints").iterdir())
    assert stops >= 4
    assert steps.done == all_steps  # none is made twice
    assert all_content(torn) == all_content(whole)
    alike = [without_times(record.model_dump(mode="json")) for record in (*records, *expected)]
    assert alike[: len(records)] == alike[len(records) :]
    assert not (torn / "checkpoints").exists()


@pytest.mark.parametrize("kind", slow_but({"original"}, KINDS))
def test_a_signal_while_contexts_or_scores_are_computed_saves_the_training(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered between two parts of them, and no step is made twice, however rarely one is saved."""
    settings, real = settings_of(tmp_path, kind, checkpoint_every=1e6), stopping.stop_between_parts
    parts, stops_at = 0, 0

    def counted() -> None:
        nonlocal parts
        parts += 1
        if parts == stops_at:
            stopping._on_signal(signal.SIGTERM, None)
        real()

    for module in (job, linear, segments, metrics):
        monkeypatch.setattr(module, "stop_between_parts", counted)
    steps = Steps(monkeypatch, lambda _: False)

    def run(name: str) -> None:
        stopping._State.number = None
        run_experiment(settings.model_copy(update={"output": str(tmp_path / name)}), Watcher())

    run("whole")
    all_steps, all_parts, expected = steps.done, parts, all_content(tmp_path / "whole")
    for number, share in enumerate((0.3, 0.6, 0.97)):
        steps.done, parts, stops_at = 0, 0, int(share * all_parts)
        with pytest.raises(Stopped):
            run(f"torn{number}")
        assert parts == stops_at
        stops_at = 0
        run(f"torn{number}")
        assert steps.done == all_steps
        assert all_content(tmp_path / f"torn{number}") == expected


def train(settings: Settings, folder: Path, **more: Any) -> tuple[RunRecord, list[str]]:
    said: list[str] = []

    class Noting(Watcher):
        def preparing(self, what: str) -> None:
            said.append(what)

    return train_one(settings, Configuration(1, 1), 0, folder, Noting(), **more), said


def stopped_training(folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    with monkeypatch.context() as patch:
        Steps(patch, lambda done: done == steps)
        with pytest.raises(Stopped):
            train(settings, folder)


def test_a_stopped_training_continues_and_a_finished_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, model = settings_of(tmp_path, "original"), tmp_path / "model"
    expected, _ = train(settings, tmp_path / "whole")
    for steps in (3, 5):  # in phase 1, then in phase 2
        stopped_training(model, settings, monkeypatch, steps)
    assert (model / "checkpoints" / "C1T1-seed0.safetensors").exists()
    record, _ = train(settings, model)
    assert all_content(model) == all_content(tmp_path / "whole")
    assert without_times(record.model_dump(mode="json")) == without_times(expected.model_dump(mode="json"))
    before = (model / "record.json").read_bytes()
    again, said = train(settings, model)
    assert again == record
    assert said[-1] == f"{model} is finished; train it anew with force_new"
    assert (model / "record.json").read_bytes() == before
    train(settings, model, force_new=True)
    assert (model / "record.json").read_bytes() != before


def test_a_stopped_training_of_other_settings_is_refused_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, model = settings_of(tmp_path, "original"), tmp_path / "model"
    stopped_training(model, settings, monkeypatch, 8)
    other = settings.model_copy(update={"phase2": settings.phase2.model_copy(update={"lr": 0.5})})
    with pytest.raises(RunDirError, match=r"of other settings: phase2\.lr was 0\.01 and is 0\.5; "):
        train(other, model)
    with pytest.raises(RunDirError, match="seed was 0 and is 1"):
        train_one(settings, Configuration(1, 1), 1, model, Watcher())
    record, _ = train(other, model, force_new=True)
    assert record.status == "finished"


def test_a_damaged_checkpoint_is_named_and_the_training_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, model = settings_of(tmp_path, "original"), tmp_path / "model"
    stopped_training(model, settings, monkeypatch, 8)
    (path,) = (path for path in (model / "checkpoints").glob("C1T1*"))
    flipped = bytearray(path.read_bytes())
    flipped[-100] ^= 1
    path.write_bytes(flipped)
    record, said = train(settings, model)
    assert f"the checkpoint {path} is damaged, so this training begins anew" in said
    assert record == train(settings, model)[0]


def test_a_full_disk_does_not_end_a_training(tmp_path: Path) -> None:
    """The file may have a few bytes only: what is written is no checkpoint, and nothing is left of it."""
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path / "own" / "one.safetensors", {}, 0.0, said.append)

    class Part:
        def state_dict(self) -> dict[str, Any]:
            return {"x": torch.zeros(100_000)}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    assert not checkpoint.resume(part=Part())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        checkpoint.after_step()
        checkpoint.after_step()
        checkpoint._write(last=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(said) == 2
    assert said[1].endswith("what came after the one before it is lost")
    assert said[0].startswith(f"cannot write the checkpoint {tmp_path / 'own' / 'one.safetensors'} (")
    assert said[0].endswith("training goes on")
    assert not list((tmp_path / "own").iterdir())
    checkpoint.after_step()
    assert Checkpoint(tmp_path / "own" / "one.safetensors", {}).resume(part=Part())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tree = {
        "numbers": [1, 2.5, True, None, float("inf"), 1 << 64],
        "by number": {0: {"a": torch.arange(3)}, 1: {}},
        "halves": torch.randn(3, 2).bfloat16(),
        "transposed": torch.randn(3, 2).t(),
        "scalar": torch.tensor(2.0),
        "none": torch.empty(0, 4),
        "bits": torch.tensor([True, False]),
        "draws": torch.Generator().get_state(),
    }
    tree["again"] = tree["scalar"]
    write_tree(path := tmp_path / "tree.safetensors", tree, {"own": "x"})
    read = read_tree(path)
    assert json.dumps(read, default=lambda x: [str(x.dtype), x.tolist()]) == json.dumps(
        tree, default=lambda x: [str(x.dtype), x.tolist()]
    )
    whole = path.read_bytes()
    for position in range(8, len(whole), 37):  # no flipped bit is read as anything else
        flipped = bytearray(whole)
        flipped[position] ^= 16
        path.write_bytes(flipped)
        again = read_tree(path)
        assert again is None or str(again) == str(read)
    for length in range(0, len(whole), 512):
        path.write_bytes(whole[:length])
        assert read_tree(path) is None


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_the_training_and_says_how_to_go_on(tmp_path: Path, number: str, code: int) -> None:
    settings = settings_of(tmp_path, "original", phase2={"max_epochs": 2000, "patience": 2000})
    file, model = tmp_path / "settings.yaml", tmp_path / "model"
    file.write_text(dump_settings(settings.model_copy(update={"checkpoint_every": 3600.0})), "utf-8")
    command = [python(), "-m", "tandem", "train", str(file), "--output", str(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)],
    ) as process:
        assert process.stderr is not None
        told = ""
        for line in process.stderr:
            told += line
            if "phase 1:" in line:  # said once phase 2 has made a step
                break
        process.send_signal(getattr(signal, number))
        told += process.stderr.read()
    assert process.returncode == code, told
    assert "Traceback" not in told
    last = told.rstrip().splitlines()[-1]
    assert last == (
        f"tandem: interrupted; the same command continues where it was: tandem train {file} --output {model}"
    )
    assert (model / "checkpoints" / "C1T1-seed0.safetensors").exists()
