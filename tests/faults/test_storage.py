"""A disk that is full, broken or without power, and damaged files: a quick part of `bench/faults.py`."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
import damage
import injection
import power
from commands import Commands, not_one_sentence, not_there

from tandem.audit.steps import read_steps
from tandem.checksums import check_files, read_checksums, sealed, unsealed
from tandem.cli.main import run
from tandem.errors import DamageError, RunDirError, SettingsError
from tandem.experiment.artefacts import model_damage
from tandem.folders import atomic_write
from tandem.model import TokenBlock
from tandem.model_folder.loading import load_model, settings_for
from tandem.records import read_experiment, read_records, records_path
from tandem.stopping import look_after_steps

needs_cc = pytest.mark.skipif(injection.compiler() is None, reason="there is no C compiler `cc`, or no Linux")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Commands]:
    """One server for all tests of this process."""
    found = Commands(tmp_path_factory.mktemp(f"faults-{worker_id}").resolve(), ("train", "experiment"))
    shutil.copytree(found.root / "out", found.place / "experiment")
    yield found
    found.server.close()


@needs_cc
@pytest.mark.slow
def test_every_kind_is_saved_whole_or_not_at_all(commands: Commands) -> None:
    target, server = commands.root / "out", commands.server

    def save(**fault: object) -> injection.Outcome:
        given = (str(commands.place / "experiment"), str(target))
        return server.run("injection:save_kinds", *given, root=commands.root, **fault)  # type: ignore[arg-type]

    commands.clear()
    target.mkdir()
    count = save().operations
    whole = commands.contents()
    log = commands.place / "kinds"
    commands.clear()
    target.mkdir()
    save(mode="LOG", log=log)
    kinds = [said for kind, said, _ in power.operations(log) if kind == "N"]
    assert len(kinds) == count > 60
    for number in range(1, count + 1, 17):
        commands.clear()
        target.mkdir()
        assert save(mode="TEAR" if kinds[number - 1] == "W" else "KILL", operation=number).code == -9
        assert save().code == 0
        assert commands.contents() == whole, number
        assert not commands.left(), number
    for number in range(2, count + 1, 29):
        commands.clear()
        target.mkdir()
        done = save(mode="FAIL", operation=number, error=errno.ENOSPC)
        last = done.told.splitlines()[-1] if done.told else ""
        assert done.code == 0 or ("No space left on device" in last and "partial" not in last), (number, last)
        assert save().code == 0
        assert commands.contents() == whole, number


@needs_cc
def test_an_older_folder_stays_or_the_mix_is_named(commands: Commands) -> None:
    folder, server = commands.root / "model", commands.server

    def save(content: str, **fault: object) -> injection.Outcome:
        return server.run("injection:save_over", str(folder), content, root=commands.root, **fault)  # type: ignore[arg-type]

    commands.clear()
    injection.save_over(str(folder), "old")
    count, found = save("new").operations, set()
    for mode in ("KILL", "FAIL"):
        for number in range(1, count + 1, 1 if mode == "KILL" else 4):
            injection.save_over(str(folder), "old")
            save("new", mode=mode, operation=number, error=errno.EIO)
            try:
                check_files(folder)
            except DamageError:
                found.add("mixed")
            else:
                texts = {(folder / name).read_text("utf-8")[:3] for name in ("config.json", "weights")}
                assert len(texts) == 1, number
                found |= texts
            injection.save_over(str(folder), "new")
            assert not commands.left()
    assert found == {"old", "mixed", "new"}


@needs_cc
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_or_broken_disk_is_one_sentence(commands: Commands, code: int) -> None:
    saving = commands.saving("train", "/.out.")
    places = {errno.ENOSPC: (2, 12, saving[-9]), errno.EIO: (saving[30],), errno.EDQUOT: (saving[0],)}
    for number in places[code]:
        commands.clear()
        done = commands.run("train", mode="FAIL", operation=number, error=code)
        assert not list(not_one_sentence(done, os.strerror(code), commands.root)), done.told


@needs_cc
def test_what_was_trained_is_saved_elsewhere(commands: Commands) -> None:
    number = commands.saving("train", "/.out.")[20]
    commands.clear()
    done = commands.run("train", mode="FAIL", operation=number, error=errno.ENOSPC)
    place = Path(done.told.rpartition("; it is whole in ")[2].partition(" instead; move that folder")[0])
    assert place.parent == commands.place / "tmp"
    load_model(place)
    assert injection.contents(str(place)) == {
        name: told for name, told in commands.expected["train"].items() if "claims" not in name
    }


@needs_cc
def test_a_killed_command_ends_with_the_same_bits(commands: Commands) -> None:
    commands.clear()
    assert commands.run("train", mode="KILL", operation=commands.operations["train"] - 30).code == -9
    assert not list(commands.losses_after("train"))


@needs_cc
def test_checkpoints_of_a_finished_training_are_removed(commands: Commands) -> None:
    number = commands.saving("train", "/out/checkpoints")[-2]
    commands.clear()
    assert commands.run("train", mode="KILL", operation=number).code == -9
    assert (commands.root / "out" / "checkpoints").is_dir()
    assert not list(commands.losses_after("train"))


@needs_cc
def test_what_was_reported_as_saved_survives_a_loss_of_power(commands: Commands) -> None:
    commands.clear()
    log, draw, disk = commands.place / "log", random.Random(0), power.Disk()
    commands.run("experiment", "command_with_marks", mode="LOG", log=log)
    operations, place, done = power.operations(log), commands.place / "after", 0
    for moment in sorted(draw.randrange(len(operations) // 2, len(operations)) for _ in range(16)):
        for operation in operations[done:moment]:
            disk.do(*operation)
        done = moment
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        power.put(disk.after_loss(draw), str(commands.root), place)
        assert not list(not_there(commands, "experiment", disk.marks, place)), moment
    assert len(disk.marks) >= 4


@needs_cc
def test_damage_is_never_silently_used(commands: Commands) -> None:
    draw, found = random.Random(0), dict[tuple[str, str], int]()
    run_dir = Path(shutil.copytree(commands.place / "experiment", commands.place / "damaged"))
    artefacts = [
        damage.model_folder(run_dir / "models" / "C1T1-seed0"),
        damage.baseline_folder(run_dir / "models" / "LSTM-seed0"),
        *damage.run_directory(run_dir),
    ]
    for artefact in artefacts:
        whole = artefact.read([])
        for path in artefact.files:
            size = path.stat().st_size
            changes = [damage.flipped(path, draw) for _ in range(5)]
            changes += [damage.cut(path, draw.randrange(size)) for _ in range(2)]
            changes += [damage.cut(path, 0), damage.missing(path), damage.pipe(path)]
            for number, change in enumerate(changes):
                with damage.as_it_was(path):
                    said = artefact.after(change, whole)
                assert said != "used", (artefact.kind, path.name, number)
                found[artefact.kind, said] = found.get((artefact.kind, said), 0) + 1
    assert all(found[artefact.kind, "named"] > 7 for artefact in artefacts), found


@needs_cc
def test_a_run_whose_model_is_damaged_or_gone_is_made_again(commands: Commands) -> None:
    commands.clear()
    commands.run("experiment")
    models = commands.root / "out" / "models"
    weights = models / "C1T1-seed0" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shutil.rmtree(models / "LSTM-seed0")
    done = commands.run("experiment")
    assert "C1T1-seed0 is made again" in done.told
    assert "its model.safetensors is damaged" in done.told
    assert "LSTM-seed0 is made again" in done.told
    assert commands.contents() == commands.expected["experiment"]
    assert "made again" not in commands.run("experiment").told


@needs_cc
def test_a_torn_record_is_said_and_its_run_is_made_again(commands: Commands) -> None:
    run_dir = Path(shutil.copytree(commands.place / "experiment", commands.place / "torn"))
    path, told = run_dir / "records.jsonl", list[str]()
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_records(run_dir, told.append)) == 2
    assert told == [f"the last line of {path} was not written to its end; its run counts as not done"]
    path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1', 1))
    with pytest.raises(RunDirError, match=r"line \d is damaged"):
        read_records(run_dir)


@needs_cc
def test_records_that_are_gone_or_of_another_experiment_are_said(commands: Commands) -> None:
    commands.clear()
    commands.run("experiment")
    run_dir = commands.root / "out"
    path = records_path(run_dir)
    content = path.read_text("utf-8")
    other = [unsealed(line) for line in content.splitlines()]
    own = json.loads(other[0])["data"]["tokens_fingerprint"]
    path.write_text("".join(sealed(line.replace(own, "0" * len(own))) + "\n" for line in other), "utf-8")
    done = commands.run("experiment")
    assert done.code == 2
    assert "is not of this experiment: its C1T1-seed0 was made with other text" in done.told
    path.unlink()
    with pytest.raises(RunDirError, match=r"records\.jsonl is empty or gone, while .+ has models"):
        read_experiment(run_dir)
    done = commands.run("experiment")
    assert f"{path} has no record of C1T1-seed0, whose model is in {run_dir}" in done.told
    assert commands.contents() == commands.expected["experiment"]


@needs_cc
def test_kept_steps_that_are_gone_or_exchanged_are_said(commands: Commands) -> None:
    run_dir = Path(shutil.copytree(commands.place / "experiment", commands.place / "steps"))
    (of_phase1,) = (run_dir / "phase1").glob("*-snapshots.safetensors")
    (of_model,) = (run_dir / "models").glob("C1*/snapshots.safetensors")
    for path, other in ((of_phase1, of_model), (of_model, of_phase1)):
        assert read_steps(path)
        with damage.as_it_was(path):
            path.unlink()
            with pytest.raises(ValueError, match="is missing"):
                read_steps(path)
            shutil.copyfile(other, path)
            with pytest.raises(ValueError, match="are not those that were written"):
                read_steps(path)


@needs_cc
def test_checksums_of_a_model_are_left_out_where_asked(commands: Commands) -> None:
    whole = commands.place / "experiment" / "models" / "C1T1-seed0"
    folder = Path(shutil.copytree(whole, commands.place / "unverified"))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    text = str(commands.place / "text.jsonl")
    for name, *more in (
        ("evaluate", "--data", text),
        ("score", text),
        ("generate", "--prompt", "ba", "--max-new-tokens", "2"),
        ("quantize",),
        ("ensemble", str(whole)),
    ):
        words = ("injection:command", name, str(folder), *more)
        done = commands.server.run(*words, root=commands.root)
        assert (done.code, "model.safetensors is damaged" in done.told) == (2, True), name
        assert commands.server.run(*words, "--no-verify", root=commands.root).code == 0, name


@needs_cc
@pytest.mark.parametrize("command", ["evaluate", "score"])
def test_a_signal_stops_a_scoring_at_once(
    command: str, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = commands.place / "experiment" / "models" / "C1T1-seed0", str(commands.place / "text.jsonl")
    calls, real = 0, TokenBlock.forward

    def signalled(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **named)

    monkeypatch.setattr(TokenBlock, "forward", signalled)
    look_after_steps()  # as a program's own training leaves it
    assert run([command, str(folder), *(["--data", text] if command == "evaluate" else [text])]) == 143
    assert calls == 1
    assert "tandem: interrupted" in capsys.readouterr().err


@needs_cc
def test_settings_of_a_saved_model_are_never_guessed(commands: Commands) -> None:
    folder = Path(
        shutil.copytree(commands.place / "experiment" / "models" / "C1T1-seed0", commands.place / "own")
    )
    _, tokenizer = load_model(folder)
    told = list[str]()
    path = folder / "settings.yaml"
    path.write_text(path.read_text("utf-8") + "# by hand\n", "utf-8")
    settings_for(folder, tokenizer, told.append)
    assert told == [f"{path} is not the one that was saved; what it says now is used"]
    path.unlink()
    with pytest.raises(SettingsError, match=r"settings\.yaml is missing; put back"):
        settings_for(folder, tokenizer, told.append)
    assert model_damage(folder) == "its settings.yaml is missing"
    assert "settings.yaml" in read_checksums(folder)


def test_drafts_of_a_process_that_is_gone_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with atomic_write(path) as draft:
        name = draft.parent.name
        draft.write_text("{}", "utf-8")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    start = name.partition(f"{os.getpid()}-")[0]
    gone, alive = (tmp_path / f"{start}{process}-0.partial" for process in (ended.pid, os.getppid()))
    elsewhere = tmp_path / f".file.json.0000abcd.{ended.pid}-0.partial"
    for folder in (gone, alive, elsewhere):
        folder.mkdir()
        (folder / "file.json").write_text("half", "utf-8")
    with atomic_write(path) as draft:
        draft.write_text("[]", "utf-8")
    assert sorted(tmp_path.iterdir()) == sorted([path, alive, elsewhere])
