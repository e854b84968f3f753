"""Another package brings a baseline, a source, an executor and settings, each by one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import tiny
from warm import python

from tandem.cli.main import run
from tandem.errors import SettingsError
from tandem.settings import OneOf, Section, Settings, add_section


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the extension, installed."""
    return installed(tmp_path_factory.mktemp("site"), "toy_extension")


def installed(site: Path, module: str) -> Path:
    """Put what an installer writes for a package into a folder; returns the folder."""
    shutil.copy(Path(__file__).with_name("toy_extension.py"), site / "toy_extension.py")
    about = site / "toy_extension-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-extension\nVersion: 0.1\n", "utf-8")
    (about / "entry_points.txt").write_text(f"[tandem]\ntoy = {module}\n", "utf-8")
    return site


def tandem(*args: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command of Tandem, where the packages in `site` are installed."""
    own = [str(site)] if site else []
    path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [python(), "-m", "tandem", *args],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        encoding="utf-8",
    )


def test_an_experiment_with_all_of_them(site: Path, tmp_path: Path) -> None:
    values = tiny(
        tmp_path,
        configurations=((1, 1),),
        data={"train": "numbers:60"},
        save_models=False,
        workers=2,
        output=str(tmp_path / "run"),
    ).model_dump(mode="json")
    values["executor"] = "spawned"
    values["spawned"] = {"limit": 1}
    values["baselines"] |= {"models": ["decay", "unigram"], "decay": {"rate": 0.9}}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")

    done = tandem("experiment", str(file), "--json", site=site)
    assert done.returncode == 0, done.stderr
    assert "1 more, spawned" in done.stderr
    records = {record["run"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert list(records) == ["Decay", "unigram", "C1T1-seed0", "C1T1-seed1"]
    assert records["Decay"]["kind"] == "decay"
    assert records["Decay"]["data"]["train_source"] == "numbers:60"
    fingerprint = records["Decay"]["baseline_fingerprint"]
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert "frequencies that fade" in report

    audited = json.loads(tandem("audit", str(tmp_path / "run"), "--json", site=site).stdout)
    (own,) = (one for one in audited["runs"] if one["run"] == "Decay")
    assert {check["name"]: check["status"] for check in own["checks"]} == dict.fromkeys(
        ("counts", "perplexity", "faded", "history"), "pass"
    )

    again = tandem("experiment", str(file), "--json", "--baselines.decay.rate", "0.8", site=site)
    changed = {record["run"]: record for record in map(json.loads, again.stdout.splitlines())}
    assert changed["Decay"]["baseline_fingerprint"] != fingerprint
    assert changed["unigram"] == records["unigram"]

    without = tandem("report", str(tmp_path / "run"))
    assert without.returncode == 2
    assert "baseline 'decay' is of a package that is not installed here" in without.stderr
    assert len(without.stderr.splitlines()) == 1


def test_commands_know_its_settings(site: Path) -> None:
    shown = tandem("config", "demo", "--baselines.decay.rate", "0.5", "--spawned.limit", "3", site=site)
    values = yaml.safe_load(shown.stdout)
    assert (values["baselines"]["decay"], values["spawned"]) == ({"rate": 0.5}, {"limit": 3})
    told = tandem("experiment", "--help", site=site).stdout
    assert "--executor {local,slurm,ray,spawned}" in told
    assert "What is left of a token's count after each further token." in told
    assert "--spawned.limit" in told
    assert "--spawned.limit" not in tandem("train", "--help", site=site).stdout
    assert "--baselines.decay.rate" in tandem("train", "--help", site=site).stdout
    wrong = tandem("config", "demo", "--baselines.decay.rat", "0.5", site=site).stderr
    assert "did you mean --baselines.decay.rate" in wrong


def test_what_is_not_installed_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "demo", "--spawned.limit", "3"]) == 2
    assert "no option --spawned.limit" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="it must be 'local', 'slurm' or 'ray'"):
        Settings(executor="spawned")
    with pytest.raises(SettingsError, match=r"baselines.models.0 = 'decay' is not possible: it must be 'kn"):
        Settings(baselines={"models": ["decay"]})


def test_an_extension_that_cannot_be_imported_is_one_sentence(tmp_path: Path) -> None:
    done = tandem("config", site=installed(tmp_path, "toy_extension_of_another_name"))
    assert done.returncode == 2
    assert "extension toy of package toy-extension cannot be imported (ModuleNotFoundError" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_added_section_counts_where_it_is_not_as_by_default() -> None:
    code = (
        "from tandem.settings import Section, Settings, add_section\n"
        "before = Settings().fingerprint()\n"
        "class OwnSettings(Section):\n"
        "    x: int = 1\n"
        "class InnerSettings(Section):\n"
        "    x: int = 1\n"
        "add_section('own', OwnSettings)\n"
        "add_section('own', OwnSettings)\n"
        "add_section('phase2.inner', InnerSettings)\n"
        "values = {}, {'own': {'x': 2}}, {'phase2': {'inner': {'x': 2}}}\n"
        "prints = [Settings(**one).fingerprint() for one in values]\n"
        "assert prints[0] == before and len({*prints}) == 3, prints\n"
        "changed = Settings(variants={'a': {'own': {'x': 3}}}).with_variant('a')\n"
        "assert changed.section('own').x == 3 and Settings().section('phase2.inner').x == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_in_use_is_refused() -> None:
    class OtherSettings(Section):
        """No section of any settings."""

    for name in ("phase2", "seeds", "baselines.lstm"):
        with pytest.raises(SettingsError, match=f"there is a setting '{name}' already"):
            add_section(name, OtherSettings)


def test_names_follow_their_registry() -> None:
    registry = {"one": 1}
    names = OneOf(registry)
    assert names.metavar == "{one}"
    registry["two"] = 2
    assert names.choices == ("one", "two")
    assert names.check("two") == "two"
    with pytest.raises(ValueError, match="it must be 'one' or 'two'"):
        names.check("three")
