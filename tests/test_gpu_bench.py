"""`bench/gpu.py` at its smallest sizes on the CPU: whoever has a GPU must not be the first to run it."""

import gzip
import json
import math
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from conftest import sentences

BENCH = Path(__file__).resolve().parents[1] / "bench"
PARTS = ["correctness", "original", "training", "decoding", "profile"]


def run(output: Path, *options: object) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output, and the JSON of one run on the CPU."""
    environment = {**os.environ}
    environment.pop("TANDEM_SHARED", None)
    done = subprocess.run(
        [warm.python(), str(BENCH / "gpu.py"), "--tiny", "--output", str(output), *map(str, options)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    return done.returncode, done.stdout + done.stderr, json.loads((output / "gpu.json").read_text("utf-8"))


def planned(name: str) -> dict[str, Any]:
    """What is known before a part begins, on a GPU that is to reach targets."""
    part = {"name": name, "status": "planned", "reason": "", "seconds_s": None, "budget_s": 60}
    part |= {"peak_bytes": None, "figures": [], "tables": []}
    return {"machine": None, "judged": True, "small": False, "parts": [part]}


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    """A folder as that of WikiText-2."""
    folder, texts = tmp_path / "wikitext", sentences(20)
    folder.mkdir()
    for name, part in (("train", texts[:16]), ("valid", texts[16:])):
        articles = "".join(f" \n = Article {n} = \n \n {text} <unk> \n" for n, text in enumerate(part))
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress(articles.encode()))
    return folder


@pytest.mark.slow
def test_every_part_writes_its_figures(tmp_path: Path, wikitext: Path) -> None:
    code, told, results = run(tmp_path / "gpu", "--wikitext", wikitext)
    assert code == 0, told
    assert [part["name"] for part in results["parts"]] == PARTS
    assert {part["status"] for part in results["parts"]} == {"done"}
    assert results["small"]
    assert not results["judged"]
    assert results["machine"]["device"] == "cpu"
    figures = {
        (part["name"], figure["name"]): figure for part in results["parts"] for figure in part["figures"]
    }
    assert all(part["peak_bytes"] > 0 for part in results["parts"])
    assert all(figure["value"] is not None for figure in figures.values())
    assert {figure["holds"] for figure in figures.values()} == {None}

    differences = {name: one for (part, name), one in figures.items() if part == "correctness"}
    assert len(differences) == 16
    assert all(one["value"] == 0 and one["target"] is not None for one in differences.values())
    assert {"`segments`", "`linear`"} <= {word for name in differences for word in name.split()}

    original = {name: one for (part, name), one in figures.items() if part == "original"}
    for configuration in ("C1T1", "C2T1", "C1T2", "C2T2"):
        assert original[f"{configuration}, phase 2, share of the rate in fp32"]["at_least"]
    assert [one["target"] for name, one in original.items() if name.endswith("contexts")] == [1, 1, 1]
    assert [one["target"] for one in original.values()].count(60) == 2
    assert figures["training", "validation perplexity by words"]["value"] > 1
    assert len([part for part, _ in figures if part == "decoding"]) == 2
    tables = results["parts"][-1]["tables"]
    assert len(tables) == 2
    assert all(0 < len(table["rows"]) <= 15 for table in tables)

    lines = (tmp_path / "gpu" / "gpu.md").read_text("utf-8").splitlines()
    card = results["machine"]["device_name"]
    assert "| part | what | figure | target | holds | card |" in lines
    rows = [line for line in lines if line.startswith(tuple(f"| {name} |" for name in PARTS))]
    assert len(rows) == len(figures) + 2 * len(PARTS)
    assert all(row.endswith(f"| – | {card} |") for row in rows)


def test_a_part_that_fails_is_written_down_and_the_next_one_runs(tmp_path: Path, wikitext: Path) -> None:
    (wikitext / "train.txt.gz").write_bytes(b"this is no gzip file")
    code, told, results = run(
        tmp_path / "gpu", "--wikitext", wikitext, "--parts", "training", "decoding", "--minutes", 50
    )
    training, decoding = results["parts"]
    assert code == 1
    assert training["status"] == "failed"
    assert "gzip" in training["reason"]
    assert decoding["status"] == "done"
    assert f"training: failed: {training['reason']}" in told


def test_what_has_no_text_or_no_time_is_skipped(tmp_path: Path) -> None:
    code, _, results = run(tmp_path, "--parts", "training", "decoding", "--minutes", 0.5)
    training, decoding = results["parts"]
    assert code == 0
    assert (training["status"], decoding["status"]) == ("skipped", "skipped")
    assert "--wikitext" in training["reason"]
    assert "s are left" in decoding["reason"]
    assert "| decoding | whole part | – · skipped: " in (tmp_path / "gpu.md").read_text("utf-8")


def test_a_device_that_is_not_there_ends_it_at_once(tmp_path: Path) -> None:
    code, told, results = run(tmp_path, "--device", "cuda:9")
    assert code == 2
    assert "there is no device 'cuda:9' here" in told
    assert [part["status"] for part in results["parts"]] == ["failed", *["planned"] * 4]


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); sys.argv += ['--tiny']\n"
        "import gpu; gpu.LIMITS_S['correctness'] = 0.2; gpu.main()"
    )
    options = ["--parts", "correctness", "--output", str(tmp_path)]
    done = subprocess.run([warm.python(), "-c", script, *options], capture_output=True, encoding="utf-8")
    assert done.returncode == 1, done.stderr
    (part,) = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["parts"]
    assert part["status"] == "stopped"
    assert "its limit" in part["reason"]


def test_figures_are_written_at_once_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    from on_gpu.results import PartResults, Results, Target

    results = PartResults(Results(tmp_path, planned("original")), "original")
    results.add("contexts", 2.0, "s", Target(1))
    results.add("contexts", 0.5, "s", Target(1))  # measured again
    results.add("share", 0.4, "%", Target(0.5, least=True))
    results.add("difference", math.nan, "", Target(1e-5))
    results.add("count", 3)
    found = Results.read(tmp_path)
    assert [one["holds"] for one in found.part("original")["figures"]] == [True, False, False, None]
    table = found.markdown()
    for row in (
        "| original | contexts | 0.5 s | ≤ 1 s | yes | – |",
        "| original | share | 40% | ≥ 50% | no | – |",
        "| original | difference | not finite | ≤ 1.0e-05 | no | – |",
        "| original | count | 3 | – | – | – |",
    ):
        assert row in table


def test_a_profile_tells_how_busy_the_gpu_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By made-up events as a GPU would have them: two operations, their kernels, and a range around them."""
    monkeypatch.syspath_prepend(BENCH)
    import torch
    from on_gpu.parts import StepProfile
    from on_gpu.results import PartResults, Results
    from torch.autograd import DeviceType

    def event(key: str, count: int, device_us: float, on: DeviceType, annotation: bool = False) -> Any:
        values = {"key": key, "count": count, "self_device_time_total": device_us, "device_type": on}
        return SimpleNamespace(**values, self_cpu_time_total=5.0, is_user_annotation=annotation)

    events = [
        event("aten::mm", 4, 300_000, DeviceType.CPU),
        event("aten::add", 6, 100_000, DeviceType.CPU),
        event("cudaLaunchKernel", 8, 0, DeviceType.CPU),
        event("cuLaunchKernelEx", 2, 0, DeviceType.CPU),
        event("gemm_kernel", 4, 300_000, DeviceType.CUDA),
        event("add_kernel", 6, 100_000, DeviceType.CUDA),
        event("Optimizer.step", 1, 400_000, DeviceType.CUDA, annotation=True),
    ]
    profile = StepProfile(torch.device("cpu"), (2, 4, 6))
    monkeypatch.setattr(profile, "_on_cuda", True)
    monkeypatch.setattr(profile, "_steps", 6)
    monkeypatch.setattr(profile, "_seconds", 0.8)  # of two steps
    monkeypatch.setattr(profile, "_profiler", SimpleNamespace(key_averages=lambda: events))
    profile.tell("phase 2", PartResults(Results(tmp_path, planned("profile")), "profile"))
    found = Results.read(tmp_path).part("profile")
    assert [one["value"] for one in found["figures"]] == pytest.approx([0.4, 0.5, 10])
    (table,) = found["tables"]
    assert table["rows"][:2] == [["aten::mm", "4", "300", "75.0%"], ["aten::add", "6", "100", "25.0%"]]
