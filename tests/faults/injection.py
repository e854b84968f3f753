"""Faults of the disk, at one file operation of a command after another, each in a new process.

shim.c stands between a process and its files, and a C compiler is needed to build it. A server of one thread
imports all that Tandem needs, once, and forks for each job.
"""

import ctypes
import gc
import hashlib
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

HERE = Path(__file__).parent
MODES = ("OFF", "COUNT", "FAIL", "KILL", "TEAR", "LOG")
VARYING = (
    *("seconds", "peak_memory", "finished_at", "created_at", "audited_at", "checksum", "_s"),
    *("git_commit", "code_fingerprint"),  # somebody may be at work on the code
)
"""Names of a record, or their beginnings or ends, that differ from one run to the next."""


class Outcome(NamedTuple):
    """How a job ended.

    code          exit code; -9 after SIGKILL
    operations    that it made on files of its folder
    told          on standard error
    result        what its function returned
    """

    code: int
    operations: int
    told: str
    result: Any


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("cc") if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """The shim as a library."""
    library = folder / "shim.so"
    command = [
        compiler() or "cc",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(HERE / "shim.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


class Server:
    """Runs functions of `work`, each in a process of its own, with a fault in one folder."""

    def __init__(self, place: Path, path: list[str]) -> None:
        """`place`: a folder for what it needs. `path`: where the functions are imported from."""
        self.place = place
        environment = {
            **os.environ,
            "LD_PRELOAD": str(build(place)),
            "OMP_NUM_THREADS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "GOMP_SPINCOUNT": "1000",
            "PYTHONPATH": os.pathsep.join(filter(None, [*path, *sys.path])),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "injection.py"), str(place)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(
        self,
        work: str,
        *given: object,
        root: Path,
        mode: str = "COUNT",
        operation: int = 0,
        error: int = 0,
        log: Path | None = None,
        environment: dict[str, str] | None = None,
        warm: bool = False,
    ) -> Outcome:
        """`module:function` with these arguments, and a fault at an operation (from 1) within `root`.

        `warm`: without a fault, and in the server itself, so that later jobs find loaded what it needed.
        """
        job = {
            "work": work,
            "given": given,
            "root": str(root),
            "mode": MODES.index(mode),
            "operation": operation,
            "error": error,
            "log": str(log or ""),
            "environment": environment or {},
            "warm": warm,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Outcome(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def command(*words: str) -> int:
    """A command of Tandem; returns its exit code."""
    from tandem.cli.main import run

    return run(list(words))


def read_again(run_dir: str) -> int:
    """Report on an experiment and load its models: neither starts a thread, as training would."""
    from tandem.model_folder.loading import load_model

    load_model(Path(run_dir) / "models" / "C1T1-seed0")
    return command("report", run_dir)


def command_with_marks(*words: str) -> int:
    """As `command`; whatever is reported as saved is marked in the log."""
    from tandem.experiment import run_dir, runner, single_run

    shim = ctypes.CDLL(None)
    append, save, baseline = run_dir.append_record, runner.save_model, runner.save_baseline

    def append_marked(folder: Path, record: Any) -> None:
        append(folder, record)
        shim.faults_mark(f"record {record.run}".encode())

    def save_marked(folder: Path, *given: Any) -> None:
        save(folder, *given)
        shim.faults_mark(f"model {folder}".encode())

    def save_baseline_marked(folder: Path, *given: Any) -> None:
        baseline(folder, *given)
        shim.faults_mark(f"model {folder}".encode())

    run_dir.append_record = append_marked
    runner.save_model = single_run.save_model = save_marked  # type: ignore[assignment]
    runner.save_baseline = save_baseline_marked  # type: ignore[assignment]
    code = command(*words)
    if code == 0:
        shim.faults_mark(b"done")
    return code


def save_kinds(source: str, target: str) -> int:
    """Save again what an experiment saved in `source`: a model in 8 bits, phase 1, manifest and records."""
    from tandem.experiment.artefacts import load_phase1, save_phase1
    from tandem.experiment.inference import quantize_model
    from tandem.objectives import OBJECTIVES
    from tandem.records import append_record, read_manifest, read_records, write_manifest
    from tandem.training.snapshots import Snapshots

    ours, run_dir = Path(target), Path(source)
    if not (ours / "model" / "config.json").exists():
        quantize_model(run_dir / "models" / "C1T1-seed0", ours / "model")
    (path,) = (path for path in (run_dir / "phase1").iterdir() if "snapshots" not in path.name)
    with safe_open(path, "pt") as file:
        inputs = file.metadata()["fingerprint"]
    saved = load_phase1(path, inputs, OBJECTIVES["original"])
    manifest = read_manifest(run_dir)
    assert saved is not None
    assert manifest is not None
    save_phase1(ours / "phase1" / path.name, *saved, inputs, Snapshots())
    write_manifest(ours, manifest)
    there = {record.run for record in read_records(ours)}
    for record in read_records(run_dir):
        if record.run not in there:
            append_record(ours, record)
    return 0


def save_over(folder: str, content: str) -> int:
    """Save three files, of which one is always the same."""
    from tandem.checksums import write_checksums
    from tandem.folders import atomic_folder

    with atomic_folder(Path(folder), "config.json") as draft:
        (draft / "config.json").write_text(content, "utf-8")
        (draft / "weights").write_text(content * 3, "utf-8")
        (draft / "same").write_text("same", "utf-8")
        write_checksums(draft)
    return 0


def contents(folder: str) -> dict[str, str]:
    """What lies in a folder, file by file: digests of what does not vary from one run to the next."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "records.jsonl":
            records = map(json.loads, path.read_text("utf-8").splitlines())
            found[name] = repr(sorted({record["run"]: repr(_same(record)) for record in records}.items()))
        elif path.suffix == ".json" and path.name != "checksums.json":
            found[name] = repr(_same(json.loads(path.read_text("utf-8"))))
        elif path.suffix == ".safetensors":
            found[name] = _of_tensors(path)
        elif path.name not in ("checksums.json", "README.md") and not path.name.startswith(
            ("report", "records.lock", "perplexity_by_seconds")
        ):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "a file"
    return found


def left_behind(folder: str) -> str:
    """A digest of what a command that died or failed left there, drafts included, without what varies."""
    found = []
    for path in sorted(Path(folder).rglob("*")):
        name = re.sub(r"\d+-\d+(?=\.partial)", "", str(path.relative_to(folder)))  # the process
        found.append((name, "folder" if path.is_dir() else _without_what_varies(path)))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _without_what_varies(path: Path) -> str:
    """A digest of a file, whole or torn."""
    with suppress(Exception):  # half of a file is told by its bytes
        if path.suffix == ".safetensors":
            return _of_tensors(path)
        if path.suffix == ".jsonl":
            return repr([_same(json.loads(line)) for line in path.read_text("utf-8").splitlines()])
        if path.suffix == ".json":
            content = _same(json.loads(path.read_text("utf-8")))
            for name, digest in content.get("sha256", {}).items():  # whether it fits, as a record has times
                beside = path.with_name(name)
                now = hashlib.sha256(beside.read_bytes()).hexdigest() if beside.exists() else None
                content["sha256"][name] = now == digest
            return repr(content)
    content = path.read_bytes()
    return hashlib.sha256(re.sub(rb"\d", b"", content) if path.suffix == ".md" else content).hexdigest()


def _same(value: Any) -> Any:
    """A record without what varies."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not (k.startswith(VARYING) or k.endswith(VARYING))}
        return {name: _same(one) for name, one in kept.items()}
    return [_same(one) for one in value] if isinstance(value, list) else value


def _of_tensors(path: Path) -> str:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}  # the library writes it in any order, and so checksums vary
        about = {name: text for name, text in metadata.items() if name not in ("checksum", "beside")}
        if "record" in about:
            about["record"] = json.dumps(_same(json.loads(about["record"])))
        whole = hashlib.sha256(repr(sorted(about.items())).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            whole.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            whole.update(tensor.contiguous().flatten().view(dtype=_bytes()).numpy().data)
    return whole.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def _serve(place: Path) -> None:
    """Fork for each job."""
    import importlib

    import torch
    import transformers.modeling_utils

    os.environ.pop("LD_PRELOAD")
    for module in pkgutil.walk_packages(importlib.import_module("tandem").__path__, "tandem."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):
                importlib.import_module(module.name)
    torch.set_num_threads(1)
    assert transformers.modeling_utils
    shim = ctypes.CDLL(None)
    shim.faults_set.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_char_p)
    shim.faults_done.restype = ctypes.c_long
    for line in sys.stdin:
        job = json.loads(line)
        told, result = place / "told", place / "result"
        for path in (told, result):
            path.unlink(missing_ok=True)
        if job["warm"]:
            _warm(job)
            print(json.dumps([0, 0, "", None]), flush=True)
            continue
        if (child := os.fork()) == 0:
            _do(job, told, result, shim)
        _, status = os.waitpid(child, 0)
        ended = json.loads(result.read_text("utf-8") or "[0, null]")
        said = told.read_text("utf-8", "replace")
        print(json.dumps([os.waitstatus_to_exitcode(status), ended[0], said, ended[1]]), flush=True)


def _warm(job: dict[str, Any]) -> None:
    """Do the work in this process, with what it shows on no screen, and leave the environment as it was."""
    before = dict(os.environ)
    os.environ.update(job["environment"])
    outputs = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        pkgutil.resolve_name(job["work"])(*job["given"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
            os.close(output)
        os.close(nowhere)
        os.environ.clear()
        os.environ.update(before)
    gc.collect()
    gc.freeze()  # so that children share the memory of what is loaded
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "only a process of one thread may fork"


def _do(job: dict[str, Any], told: Path, result: Path, shim: Any) -> None:
    """The child's whole life."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(job["environment"])
        tempfile.tempdir = None  # which may have been looked up before
        # Opened before any fault, so that it can always tell.
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in (told, result)]
        os.dup2(files[0], 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work = pkgutil.resolve_name(job["work"])
        shim.faults_set(
            os.fsencode(job["root"]), job["mode"], job["operation"], job["error"], os.fsencode(job["log"])
        )
        returned = work(*job["given"])
        shim.faults_end()
        os.write(files[1], json.dumps([shim.faults_done(), returned]).encode())
        code = returned if isinstance(returned, int) else 0
    except BaseException:
        shim.faults_end()
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
