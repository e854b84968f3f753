"""Settings of strangers: refused in one sentence and in bounded memory, whatever a file holds."""

import os
from pathlib import Path

import pytest
import yaml

from tandem.cli.main import run
from tandem.errors import SettingsError
from tandem.settings import Settings, dump_settings, load_settings, preset_names, read_yaml
from tandem.settings import files as settings_files
from tandem.settings.files import FILE_BYTES


def bomb(depth: int, width: int, last: str = "x") -> str:
    """Lists of aliases of lists of aliases: width ** depth values in a kilobyte."""
    lines = [f"a0: &a0 [{', '.join([last] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(lines)


CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 1000))])
"""Each list holds the one before: as deep as there are lines."""
HOSTILE: dict[str, tuple[str, str]] = {
    "alias bomb": (bomb(9, 10), "its aliases stand for too many values"),
    "alias bomb of one long word": (bomb(4, 10, "x" * 5000)[:60_000], ""),
    "alias bomb in mappings": ("a: &a {b: 1}\nc: &c {<<: [*a, *a]}\n" + bomb(9, 9), "too many values"),
    "merge bomb": (
        "a0: &a0 {k: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 9}]}}" for n in range(1, 9)),
        "too many values",
    ),
    "alias chain": (CHAIN, "nested too deeply"),
    "alias of itself": ("a: &a [*a]", "stands for itself"),
    "merge of itself": ("a: &a {<<: *a}", "stands for itself"),
    "brackets": ("a: " + "[" * 30_000 + "]" * 30_000, "nested too deeply"),
    "open brackets": ("[" * 60_000, "nested too deeply"),
    "braces": ("a: " + "{a: " * 15_000, "nested too deeply"),
    "indents": ("\n".join(" " * n + "a:" for n in range(300)), "nested too deeply"),
    "dashes": ("a: " + "- " * 30_000, ""),
    "question marks": ("? " * 30_000, "nested too deeply"),
    "python tag": ('name: !!python/object/apply:os.system ["id"]', "it has a tag"),
    "python name": ("name: !!python/name:os.system", "it has a tag"),
    "own tag": ("name: !mine x", "it has a tag"),
    "tag of a set": ("seeds: !!set {1, 2}", "it has a tag"),
    "bad date": ("name: 2001-99-99", "month must be in 1..12"),
    "tagged date": ("name: !!timestamp abc", "it has a tag"),
    "tagged integer": ('name: !!int ""', "it has a tag"),
    "tagged number": ("phase2: {lr: !!float x}", "it has a tag"),
    "tagged switch": ("save_models: !!bool foo", "it has a tag"),
    "binary": ("name: !!binary '%%%'", "it has a tag"),
    "5,000 digits": ("phase2: {max_epochs: " + "9" * 5000 + "}", "a number in it is too long"),
    "hexadecimal": ("phase2: {max_epochs: 0x" + "f" * 20_000 + "}", "a number in it is too long"),
    "base 60": ("phase2: {max_epochs: 1" + ":1" * 20_000 + "}", "a number in it is too long"),
    "too large": ("phase2: {max_epochs: 9223372036854775808}", "phase2.max_epochs"),
    "negative": ("model: {embed_dim: -5}", "model.embed_dim = -5"),
    "wide": ("model: {embed_dim: 1000000000000}", "at most 1048576"),
    "wide contexts": ("model: {context_dim: 1048577}", "at most 1048576"),
    "deep": ("configurations: [[1, 1000000000]]", "at most 1024"),
    "deep heads": ("prediction: {head_layers: [1000000000]}", "at most 1024"),
    "deep baseline": ("baselines: {lstm: {layers: 1000000000}}", "at most 1024"),
    "many workers": ("workers: 1000000000", "workers"),
    "vocabulary": ("tokenizer: {vocab_size: 1000000000000}", "vocab_size"),
    "NaN": ("phase2: {lr: .nan}", "finite number"),
    "infinite": ("phase2: {lr: .inf}", "finite number"),
    "NaN share": ("data: {validation_fraction: .nan}", "less than 1"),
    "NaN beyond 1": ("phase1: {convergence_stop: .nan}", "greater than 0"),
    "NaN dropout": ("phase2: {dropout: .nan}", "less than 1"),
    "dots": ('name: ".."', "name = '..'"),
    "path as a name": ('name: "../../etc"', "name = '../../etc'"),
    "line end in a name": ('name: "a\\nb"', "name = 'a\\nb'"),
    "path as a variant": ("variants: {../x: {recipe: original}}", "../x"),
    "zero in a path": ('output: "a\\0b"', "no path has a zero character"),
    "zero in a source": ('data: {train: "a\\0b.txt"}', "no path has a zero character"),
    "zero byte": ("a: \x00", ""),
    "escape byte": ("name: \x1b[31m", "not valid YAML"),
    "unknown keys": ("\n".join(f"k{n}: 1" for n in range(2000)), "and 1,980 more"),
    "too many keys": ("\n".join(f"k{n}: 1" for n in range(6000)), "too many values"),
    "long key": (f"? {'x' * 60_000}\n: 1", "there is no setting"),
    "long value": (f"recipe: {'x' * 60_000}", "is not possible"),
    "long list": (f"seeds: [{'1,' * 20_000}]", "too many values"),
    "twice": ("seeds: [1]\nseeds: [2]", "a second time"),
    "twice below": ("phase2: {lr: 1, lr: 2}", "a second time"),
    "key that is a list": ("? [a]\n: 1", "not valid YAML"),
    "key that is a number": ("1: 2", "must be a text"),
    "list": ("- 1", "must hold settings"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "large file": ("# " + "x" * 200_000, "65,536"),
    "large file of lines": ("# x\n" * 50_000, "65,536"),
}
"""What a file holds, and words of what is said of it."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = HOSTILE[name]
    path = tmp_path / "s.yaml"
    path.write_text(content, "utf-8")
    assert run(["config", str(path)]) == 2
    out, said = capsys.readouterr()
    assert not out
    assert "Traceback" not in said
    assert said.startswith("tandem: error: ")
    assert said.count("\n") == 1
    assert says in said
    assert "s.yaml" in said
    assert len(said) < 8000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", ["device", "pipe", "link to itself", "folder"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(SettingsError, match=r"s\.yaml"):
        load_settings(str(path))


def test_a_link_to_a_settings_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("seeds: [7]", "utf-8")
    (tmp_path / "s.yaml").symlink_to(tmp_path / "real.yaml")
    assert load_settings(str(tmp_path / "s.yaml")).seeds == (7,)


def test_no_more_is_composed_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a bomb stands for is measured before any of it is made."""
    made = 0

    class Loader(settings_files._Loader):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
            nonlocal made
            made += 1
            return super().construct_object(node, deep)

    monkeypatch.setattr(settings_files, "_Loader", Loader)
    with pytest.raises(SettingsError):
        read_yaml(bomb(9, 10), "s.yaml")
    assert made == 0


def test_aliases_of_ordinary_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "variants:\n  one: &one {phase2: &p {lr: 0.1}}\n  two: {<<: *one, model: {context_dim: 32}}\n"
        "  three: {phase2: {<<: *p, max_epochs: 3}}\n",
        "utf-8",
    )
    settings = load_settings(str(path))
    assert settings.with_variant("two").phase2.lr == settings.with_variant("three").phase2.lr == 0.1


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_far_from_the_bounds(preset: str) -> None:
    text = dump_settings(load_settings(preset))
    assert 8 * len(text) < FILE_BYTES
    assert Settings(**read_yaml(text, preset)) == load_settings(preset)
