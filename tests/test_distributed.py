"""Training by several processes, as torchrun starts them, is the training by one."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import slow_but, tiny
from warm import python

from tandem.experiment.single_run import train_one
from tandem.records import RunRecord
from tandem.settings import Configuration, Settings, dump_settings
from tandem.training.progress import Watcher

WATCHED = """
import contextlib, json, os, signal, sys
from pathlib import Path
from tandem.experiment.single_run import train_one
from tandem.training.progress import Watcher
from tandem.launch import process_rank
from tandem.settings import Configuration, load_settings
from tandem.stopping import Stopped, stopping_gently
from tandem.training.gradients import GradientAccumulator

ticks, steps, backward = [], [], GradientAccumulator.backward

def watched(self, forward, rows):
    own = []

    def forward_of_part(part):
        own.append(part.stop - part.start)
        return forward(part)

    loss = backward(self, forward_of_part, rows)
    steps.append([loss, rows, own])
    if len(steps) == last and process_rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # one of them alone
    return loss

GradientAccumulator.backward = watched

class Noting(Watcher):
    def tick(self, tick):
        ticks.append([tick.phase, tick.done, dict(tick.figures)])

settings, folder, last = *sys.argv[1:3], int(sys.argv[3])
with contextlib.suppress(Stopped), stopping_gently():
    train_one(load_settings(settings), Configuration(2, 2), 0, Path(folder), Noting())
Path(f"{settings}.{process_rank()}").write_text(json.dumps([ticks, steps]), "utf-8")
"""


def launched(processes: int, script: Path, *arguments: object) -> str:
    """Standard output of a script that torchrun starts; a single process is started as usual."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [python(), *(torchrun if processes > 1 else []), str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": str(script) + ".error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(processes: int, settings: Settings, folder: Path) -> tuple[list[list[Any]], RunRecord]:
    """Of each process its ticks and steps: of each step its loss, its rows, and those that were its own."""
    told = told_of(processes, settings, folder)
    record = RunRecord.model_validate_json((folder / "model" / "record.json").read_text("utf-8"))
    return told, record


def told_of(processes: int, settings: Settings, folder: Path, last: int = 0) -> list[list[Any]]:
    """Of each process its ticks and steps; a signal comes to the second process in step `last`, if any."""
    folder.mkdir(exist_ok=True)
    script, file = folder / "watched.py", folder / "settings.yaml"
    script.write_text(WATCHED, "utf-8")
    file.write_text(dump_settings(settings), "utf-8")
    launched(processes, script, file, folder / "model", last)
    return [json.loads(Path(f"{file}.{rank}").read_text("utf-8")) for rank in range(processes)]


RECIPES: dict[str, dict[str, Any]] = {
    "original": {"recipe": "original", "phase1": {"batch_positions": 200, "max_iterations": 15}},
    "predictive": {
        "recipe": "predictive",
        "model": {"embed_dim": 16, "context_dim": 12, "cell": "gated", "output_bias": True},
        "prediction": {"streams": 7, "window": 16, "max_epochs": 2, "negatives": 20, "output_dropout": 0.1},
        "phase2": {
            "start": "phase1",
            "max_epochs": 2,
            "batch_positions": 301,
            "dropout": 0.2,
            "negatives": 20,
        },
    },
}


@pytest.mark.parametrize("recipe", slow_but({"predictive"}, RECIPES))
def test_two_processes_train_as_one_does(recipe: str, text_file: Path, tmp_path: Path) -> None:
    """Every step's loss, and every figure of the record, dropout and sampled softmax included.

    Each process computes its share of a step, and no more.
    """
    settings = tiny(text_file, threads=1, **RECIPES[recipe])
    (alone, record), (of_two, record_of_two) = (
        trained(processes, settings, tmp_path / str(processes)) for processes in (1, 2)
    )
    ((ticks, steps),) = alone
    assert len(ticks) > 10
    assert len(steps) > 20
    for _, other_steps in of_two:
        assert [loss for loss, *_ in other_steps] == pytest.approx([loss for loss, *_ in steps], abs=1e-5)
    first, second = ([sum(own) for *_, own in steps_of_one] for _, steps_of_one in of_two)
    halves = [(rows // 2, -(-rows // 2)) for _, rows, _ in steps]
    assert list(zip(first, second, strict=True)) == halves
    (ticks_of_two, _), _ = of_two
    assert [tick[:2] for tick in ticks] == [tick[:2] for tick in ticks_of_two]
    for (_, _, figures), (_, _, figures_of_two) in zip(ticks, ticks_of_two, strict=True):
        assert figures == pytest.approx(figures_of_two, rel=1e-5)
    one, two = figures_of(record), figures_of(record_of_two)
    # Where a difference that dies away crosses a limit, the last digits decide.
    burn_ins = [
        [figures.pop(f".contexts.{split}.burn_in") for split in ("train", "validation")]
        for figures in (one, two)
    ]
    assert burn_ins[0] == pytest.approx(burn_ins[1], rel=0.01)
    assert one == pytest.approx(two, rel=1e-5, abs=1e-6)

    # Stopped in phase 1 or phase 2, and continued: the same weights bit for bit.
    done = 0
    for last in (5 if recipe == "predictive" else len(steps) - 8, 0):
        told = told_of(2, settings, tmp_path / "torn", last)
        done += len(told[0][1])
        assert len(told[1][1]) == len(told[0][1]) == (last or len(told[0][1]))
    assert done == len(steps)
    torn, whole = (tmp_path / name / "model" / "model.safetensors" for name in ("torn", "2"))
    assert torn.read_bytes() == whole.read_bytes()


def figures_of(record: RunRecord) -> dict[str, float]:
    """All numbers of a record but times and memory, by where they stand."""
    found: dict[str, float] = {}

    def collect(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if not key.endswith(("_s", "_bytes")) and key not in ("environment", "data"):
                    collect(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for at, inner in enumerate(value):
                collect(inner, f"{path}[{at}]")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[path] = value

    collect(record.model_dump(mode="json"), "")
    return found


def torchrun_tandem(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 -m tandem …`."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tandem"]
    return subprocess.run(
        [python(), "-m", *launch, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def test_the_first_process_tells_and_saves(text_file: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "settings.yaml", tmp_path / "model"
    file.write_text(dump_settings(tiny(text_file, threads=1, contexts={"keep": "disk"})), "utf-8")
    done = torchrun_tandem("train", file, "--output", folder, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    saved = RunRecord.model_validate_json((folder / "record.json").read_text("utf-8"))
    assert RunRecord.model_validate_json(line) == saved
    assert saved.contexts is not None
    assert saved.contexts.train.storage == "disk"
    assert (folder / "model.safetensors").is_file()


def test_an_experiment_is_not_for_torchrun(text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(tiny(text_file, threads=1)), "utf-8")
    done = torchrun_tandem("experiment", file, "--output", tmp_path / "run")
    assert done.returncode != 0
    assert "torchrun is not for it: give --workers" in done.stderr
    assert not (tmp_path / "run").exists()


def test_too_few_rows_for_the_processes_are_refused(text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    settings = tiny(text_file, threads=1, recipe="predictive", prediction={"streams": 1, "max_epochs": 1})
    file.write_text(dump_settings(settings), "utf-8")
    done = torchrun_tandem("train", file, "--output", tmp_path / "model")
    assert done.returncode != 0
    assert "setting prediction.streams: a step has 1 of them, too few for 2 processes" in done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]


def test_all_processes_leave_a_folder_that_holds_another_model(text_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    train_one(tiny(text_file, threads=1), Configuration(1, 1), 1, model, Watcher())
    before = {path: path.read_bytes() for path in model.iterdir()}
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(tiny(text_file, threads=1)), "utf-8")
    done = torchrun_tandem("train", file, "--output", model)
    assert done.returncode != 0
    assert f"{model} holds C1T1-seed1, another run than C1T1-seed0" in done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]
    assert {path: path.read_bytes() for path in model.iterdir()} == before


CONTEXTS = """
import json
import torch
from tandem.contexts import Stream, compute_contexts, linear_contexts
from tandem.group import ALONE, process_group
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.settings import ContextSettings

results, checked = [], []
checked_runs, burn_in = linear_contexts._checked_runs, linear_contexts._burn_in

def watched(task, contexts, group):
    checked.append(group)
    return checked_runs(task, contexts, group)

linear_contexts._checked_runs = watched
with process_group(torch.device("cpu")) as group:
    for cell, boundary, keep, hasty in (
        ("gated", "carry", "memory", False),
        ("gated", "reset", "memory", False),
        ("gated", "carry", "memory", True),
        ("gated", "carry", "recompute", False),
        ("residual", "carry", "memory", False),
        ("residual", "carry", "recompute", False),
    ):
        torch.manual_seed(0)
        config = TandemConfig(
            vocab_size=40,
            embed_dim=8,
            context_dim=8,
            num_layers=2,
            cell=cell,
            boundary=boundary,
            bos_token_id=0,
        )
        model = TandemForCausalLM(config)
        for module in model.context_block.modules():
            model.context_block.initialize(module)
        stream = Stream.of(model, torch.randint(40, (12_001,)))
        settings = ContextSettings(segment_length=100, check_tokens=200, keep=keep)
        linear_contexts._burn_in = (lambda _: 40) if hasty else burn_in
        checked.clear()
        made, record = compute_contexts(model, stream, settings, group=group)
        shares = [of.size for of in checked]
        alone, record_alone = compute_contexts(model, stream, settings, group=ALONE)
        difference = float((made.whole() - alone.whole()).abs().max())
        same = record.burn_in == record_alone.burn_in and record.checked_tokens == record_alone.checked_tokens
        results.append([shares, same, record.storage, difference, record.join_error, record.loop_error])
    if group.leads:
        print(json.dumps(results))
"""


def test_processes_share_the_contexts(tmp_path: Path) -> None:
    """Every process gets the contexts that one alone computes, and how well the shares join is told.

    The third block's shares start too late on purpose; they do not join, and each process computes all.
    """
    script = tmp_path / "contexts.py"
    script.write_text(CONTEXTS, "utf-8")
    results = json.loads(launched(2, script).splitlines()[-1])
    # Edges of whose shares are checked: of both processes' where they are used; residual ones have joins.
    assert [shares for shares, *_ in results] == [[2], [2], [1], [1], [], []]
    assert [kept for _, _, kept, *_ in results] == ["memory"] * 3 + ["recompute", "memory", "recompute"]
    for number, (_, same, _, difference, join_error, loop_error) in enumerate(results):
        assert same
        assert (difference == 0) if number == 2 else (difference <= 1e-6)
        assert join_error <= 1e-5
        assert loop_error <= 1e-5


SHORT_OF_MEMORY = """
import json
from pathlib import Path

import torch
from torch import nn
from tandem.group import process_group
from tandem.group import Execution
from tandem.training.gradients import GradientAccumulator

def take_steps(group):
    x = torch.randn(16, 4)
    layer = nn.Linear(4, 1)
    gradients = GradientAccumulator(list(layer.parameters()), Execution(group))
    asked = []

    def forward(rows):
        asked.append(rows.stop - rows.start)
        if group.rank == 1 and asked[-1] > 3:  # one of the two has less memory
            raise torch.OutOfMemoryError("CUDA out of memory")
        return layer(x[rows]).square().mean()

    expected = float(layer(x).detach().square().mean())
    loss = gradients.backward(forward, 16)
    gradients.backward(forward, 16)
    alone = float(layer(x[:1]).detach().square().mean())
    last = gradients.backward(forward, 1)  # a batch of one row: none for one of the processes
    own = group.joined(torch.tensor([gradients.micro_batches]), 2).tolist()
    of_both = group.joined(layer.weight.grad, 2).tolist()
    asked_of_second = torch.tensor(asked if group.rank == 1 else [0] * 11)
    torch.distributed.broadcast(asked_of_second, 1)
    return [own, asked, asked_of_second.tolist(), [loss, last], [expected, alone], of_both]

torch.manual_seed(0)
with process_group(torch.device("cpu")) as group:
    told = take_steps(group)
threads = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
if group.leads:
    print(json.dumps([*told, [name for name in threads if "gloo" in name]]))
"""


def test_a_process_with_less_memory_makes_smaller_micro_batches(tmp_path: Path) -> None:
    """Eight rows each: the first process takes them whole, the second in quarters, found in its first step.

    No thread of the exchange is left once the group has ended: one could abort the process at its end.
    """
    script = tmp_path / "short.py"
    script.write_text(SHORT_OF_MEMORY, "utf-8")
    own, asked, asked_of_second, losses, expected, gradients, threads = json.loads(
        launched(2, script).splitlines()[-1]
    )
    assert threads == []
    assert own == [1, 4]
    assert asked[:2] == [8, 8]
    assert asked_of_second == [8, 4, *[2] * 8, 1]
    assert losses == pytest.approx(expected)
    assert gradients[0] == gradients[1]


EXCHANGED = """
import json
import torch
from torch import nn
from tandem.group import ALONE, process_group
from tandem.group import Execution
from tandem.training.gradients import TABLE_ROWS, GradientAccumulator, used_rows

V = TABLE_ROWS + 7

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.other, self.unread = nn.Embedding(V, 4), nn.Linear(4, 3), nn.Embedding(V, 300)

def gradients(group, ids, weights, parts):
    torch.manual_seed(0)
    model = Model()
    accumulator = GradientAccumulator(list(model.parameters()), Execution(group), parts)

    def forward(rows):
        made = model.other(model.table(ids[rows])).square().mean(1) * weights[rows]
        last = model.table.weight[-1, 0] + 0 * model.unread(ids[rows]).sum()
        return (made + weights[rows] * last).mean()

    accumulator.backward(forward, len(ids))
    return [parameter.grad.clone() for parameter in model.parameters()]

sizes, all_reduce = [], torch.distributed.all_reduce

def watched(tensor, *arguments, **options):
    sizes[-1] += tensor.numel()
    return all_reduce(tensor, *arguments, **options)

torch.distributed.all_reduce = watched
results = []
with process_group(torch.device("cpu")) as group:
    torch.manual_seed(1)
    for ids in (torch.randint(V - 1, (40,)), torch.arange(V), torch.zeros(40, dtype=torch.int64)):
        weights = torch.randn(len(ids))
        sizes.append(0)
        for parts in (1, 2):
            pairs = zip(gradients(group, ids, weights, parts), gradients(ALONE, ids, weights, 1), strict=True)
            results.append(max(float((ours - theirs).abs().max()) for ours, theirs in pairs))
    odd = torch.zeros(5, 3)
    odd[1, 2], odd[2, 0], odd[3, 1] = torch.nan, -1.0, 1.0
    results.append(used_rows(odd).tolist())
    told = [None] * group.size
    torch.distributed.all_gather_object(told, [results, [size / (4 * V) for size in sizes]])
    if group.leads:
        print(json.dumps(told))
"""


def test_gradients_are_exchanged_without_rows_of_zeros(tmp_path: Path) -> None:
    """Some rows of an embedding used by either process, all, one, in one part and in two: each process has
    the gradient of one process. Another embedding has a gradient of zeros. What is not a number is used.
    """
    script = tmp_path / "exchanged.py"
    script.write_text(EXCHANGED, "utf-8")
    told = json.loads(launched(2, script).splitlines()[-1])
    for (*differences, used), sent in told:
        assert max(differences) <= 1e-6
        assert len(differences) == 6
        assert used == [0, 1, 1, 1, 0]
        # Numbers, in both ways of parts, as a share of those in the table that is read.
        assert max(sent[0], sent[2]) < 2 < sent[1]
