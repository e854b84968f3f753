"""Whether an experiment that is killed, or made again elsewhere, ends bit for bit as it would in one go.

    python bench/kills.py                     # after every step, 200 random moments, and four fresh processes
    python bench/kills.py --random 1000 --seed 1

Three tiny experiments: recipe original, a trained embedding, and recipe predictive with both networks.

    after every step     each process makes one more step, writes its checkpoint, and is killed (SIGKILL)
    at random moments    each process is killed wherever it is: it reads, trains, computes contexts, or writes
    in fresh processes   with other hash seeds, and with 1 and 4 workers; nothing is killed

What is left at the end is compared with the same experiment in one go: weights of all models, the steps kept
for the audit and the records, bit for bit, times aside. Prints a line of JSON for each: kills (or processes),
and losses, which are files or records that differ. Records name the code: leave it alone meanwhile.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from made_up_text import write_text
from safetensors import safe_open

from tandem.experiment.runner import run_experiment
from tandem.settings import Settings, dump_settings
from tandem.shown import tolerate_any_encoding
from tandem.training.checkpoint import Checkpoint
from tandem.training.progress import Watcher

NOISE = {"dropout": 0.2, "embed_dropout": 0.1, "output_dropout": 0.1, "negatives": 50}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "original": {"phase1": {"max_iterations": 8}},
    "trained embedding": {"embeddings": {"trained": True}, "phase2": {"max_epochs": 3, "patience": 3}},
    "predictive and networks": {
        "recipe": "predictive",
        "embeddings": {"source": "random"},
        "model": {"cell": "gated", "token_projection": True, "output_bias": True, "weight_init_std": None},
        "prediction": {"max_epochs": 2, "streams": 4, "window": 48, "lr": 0.02, **NOISE},
        "phase2": {
            **{"start": "phase1", "schedule": "linear", "shuffle": True, "patience": 3},
            **{"batch_positions": 128, **NOISE},
        },
        "baselines": {
            "models": ("lstm", "gpt2"),
            "max_parameters": 9000,
            "lstm": {"max_epochs": 2, "dropout": 0.3, "streams": 4},
            "gpt2": {"max_epochs": 2, "layers": 1, "window": 32},
        },
    },
}


def settings_of(folder: Path, name: str, output: Path) -> Settings:
    """Of a tiny experiment whose every step is written."""
    values: dict[str, Any] = {
        "configurations": ((1, 1),),
        "seeds": (0,),
        "device": "cpu",
        "output": str(output),
        "checkpoint_every": 0.0,
        "data": {"train": str(folder / "text.jsonl.gz"), "validation_fraction": 0.15},
        "tokenizer": {"vocab_size": 300},
        "contexts": {"segment_length": 64, "check_tokens": 256},
    }
    defaults: dict[str, dict[str, Any]] = {
        "embeddings": {"norm": 1.0},
        "model": {"embed_dim": 24, "context_dim": 16, "weight_init_std": 0.3},
        "phase1": {"max_iterations": 5, "batch_positions": 300},
        "phase2": {"max_epochs": 2, "batch_positions": 256, "lr": 0.01},
    }
    own = EXPERIMENTS[name]
    merged = {
        key: {**defaults.get(key, {}), **own.get(key, {})} for key in (*defaults, *own) if key != "recipe"
    }
    return Settings(**values, **merged, **({"recipe": own["recipe"]} if "recipe" in own else {}))


def in_process(work: Callable[[], object], killed_after_s: float | None = None) -> bool:
    """Do the work in a process of its own, which may be killed; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    if killed_after_s is not None:
        until = time.monotonic() + killed_after_s
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _came_to_its_end(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return _came_to_its_end(os.waitpid(child, 0)[1])


def _came_to_its_end(status: int) -> bool:
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a process ended with {code}, which is none of the two that are expected")
    return code == 0


def killed_after_one_step(settings: Settings) -> None:
    """The experiment, in a process that dies once it has made and written one step."""
    after_step = Checkpoint.after_step

    def last(checkpoint: Checkpoint) -> None:
        after_step(checkpoint)
        os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.after_step = last  # type: ignore[method-assign]
    run_experiment(settings, Watcher())


def without_times(value: Any) -> Any:
    """A record less what differs between two runs of the same."""
    if isinstance(value, dict):
        apart = {"finished_at", "peak_memory_bytes", "folder", "checksum"}
        return {k: without_times(v) for k, v in value.items() if not k.endswith("_s") and k not in apart}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(run_dir: Path) -> dict[str, Any]:
    """All tensors of a run directory bit for bit, and its records."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*.safetensors")):
        name = str(path.relative_to(run_dir))
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        found[name] = {key: (str(t.dtype), t.numpy().tobytes()) for key, t in tensors.items()}
    lines = (run_dir / "records.jsonl").read_text("utf-8").splitlines()
    found |= {record["run"]: without_times(record) for record in map(json.loads, lines)}
    return found


def main() -> None:
    """Both kinds of kills, for each experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--random", type=int, default=200, help="kills at random moments, over all experiments"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given = parser.parse_args()
    tolerate_any_encoding()
    torch.set_num_threads(1)
    draws = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["TANDEM_CACHE"] = str(folder / "cache")
        write_text(folder / "text.jsonl.gz", 0.005)
        for number, name in enumerate(EXPERIMENTS):
            whole, stepped, torn = (folder / f"{kind}{number}" for kind in ("whole", "stepped", "torn"))
            began = time.monotonic()
            in_process(lambda: run_experiment(settings_of(folder, name, whole), Watcher()))  # noqa: B023
            took = time.monotonic() - began
            expected = content(whole)
            kills = 0
            while not in_process(lambda: killed_after_one_step(settings_of(folder, name, stepped))):  # noqa: B023
                kills += 1
            _say(name, "after every step", kills, _differing(expected, content(stepped)))
            wanted, kills, number_of_run = given.random // len(EXPERIMENTS), 0, 0
            differing: list[str] = []
            while kills < wanted:
                output = torn.with_name(f"{torn.name}-{number_of_run}")
                number_of_run += 1
                work = lambda: run_experiment(settings_of(folder, name, output), Watcher())  # noqa: B023, E731
                while not in_process(work, draws.uniform(0, took) if kills < wanted else None):
                    kills += 1
                differing += _differing(expected, content(output))
            _say(name, "at random moments", kills, differing)
            if not number:
                for hash_seed, workers in ((1, 1), (2, 1), (3, 4), (4, 4)):
                    output = folder / f"fresh{hash_seed}"
                    file = folder / "settings.yaml"
                    file.write_text(dump_settings(settings_of(folder, name, output)), "utf-8")
                    command = [sys.executable, "-m", "tandem", "experiment", str(file)]
                    command += ["--workers", str(workers), "--threads", "1"]
                    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
                    subprocess.run(command, env=environment, check=True, capture_output=True)
                    _say(name, "in fresh processes", workers, _differing(expected, content(output)))


def _differing(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


def _say(name: str, when: str, kills: int, differing: list[str]) -> None:
    said = {"experiment": name, "killed": when, "kills": kills, "losses": len(differing)}
    print(json.dumps(said | ({"differing": differing} if differing else {})), flush=True)


if __name__ == "__main__":
    main()
