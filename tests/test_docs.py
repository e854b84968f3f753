"""Every command and every snippet of README and docs runs, from the installed package, in another folder.

A block of `sh` runs line by line, a block of `python` as a script, each in a fresh process. They use what is
installed from a wheel, not the sources. Programs of the same names that come first on PATH make trainings
small; they then start the installed ones. `TANDEM_BENCH_SMALL` does the same to the programs of `bench/`.
Blocks of any other kind are output, and are not run.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
import yaml
from conftest import sentences, slow_but, write_jsonl
from filelock import FileLock
from tokenizers import ByteLevelBPETokenizer

from tandem.cli.arguments import ExperimentArguments, TrainArguments, parse_with_preset
from tandem.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))

import measuring  # noqa: E402

PAGES = sorted([ROOT / "README.md", ROOT / "README.ja.md", *(ROOT / "docs").rglob("*.md")])
JAPANESE = [page for page in PAGES if page.name.endswith(".ja.md")]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = ("sh", "python")
SHOWN = ("text", "yaml", "json", "toml")
"""What blocks of output and of files are tagged."""

SMALL = {
    "--data.train": "my-text/",
    "--data.validation": "None",
    **{option: str(value) for option, value in measuring.options_of(measuring.SMALL_SETTINGS).items()},
}
"""What makes a training small, unless the line says otherwise."""
SMALL_EXPERIMENT = {"--seeds": "0", "--configurations": "1 1"}
"""What makes an experiment small besides."""

NOT_RUN = {
    r"python3 bootstrap\.py ": "installs a gigabyte of packages from the network",
    r".*--executor slurm": "needs a Slurm cluster",
    r".*--executor ray": "starts a cluster with eight workers; tests/test_executors.py runs a small one",
    r"python bench/gpu\.py ": "tests/test_gpu_bench.py runs it whole",
    r"python bench/performance\.py (?!all )": "prints one of the tables of `performance.py all`, which runs",
    r"python bench/distributed\.py (dialogue|demo|predictive --times)": "the same with another preset",
    r"python bench/estimate\.py .*--contexts\.keep recompute": "the same with contexts computed again",
}
"""Lines that do not run here, and why; their programs are asked all the same whether they would take them."""

SHIM = """#!{python} -IS
import os, sys
small, experiment, name, real = {small!r}, {experiment!r}, {name!r}, {real!r}
args = sys.argv[1:]
at = args.index("-m") + 2 if "-m" in args and args[args.index("-m") + 1] == "tandem" else 0
if (at or name == "tandem") and args[at] in ("train", "experiment"):
    small.update(experiment if args[at] == "experiment" else {{}})
    if "--seeds" in args:
        first = args.index("--seeds") + 1
        while args[first + 1 : first + 2] and args[first + 1].isdigit():
            del args[first + 1]
    if "--workers" in args:
        args[args.index("--workers") + 1] = "2"
    for option, value in small.items():
        if not any(word.split("=")[0] == option for word in args):
            args += [option, *value.split()]
if name == "torchrun":
    args = ["--standalone", *args]
if name != "python":
    args = [real, *args]
os.execv(os.environ["WARM"], [os.environ["WARM"], *args])
"""
"""A program that adds the small settings to a training and starts the real one.

Of several seeds it leaves one, and of several workers two. All start as `warm` has it.
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    number: int
    tag: str
    text: str

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page.name}-{self.number}-{self.tag}"

    @property
    def commands(self) -> list[str]:
        """Its commands, those that go over several lines as one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(tags: tuple[str, ...]) -> list[Block]:
    return [
        Block(page, number, match[1].strip(), match[2])
        for page in PAGES
        for number, match in enumerate(FENCE.finditer(page.read_text("utf-8")), start=1)
        if match[1].strip() in tags
    ]


def why_not(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


def bare(command: str) -> str:
    """A command without its comment."""
    return shlex.join(shlex.split(command, comments=True))


def same(command: str) -> str:
    """A command without its comment; a dry run without the folder into which it writes nothing, too."""
    return re.sub(r" --output \S+", "", bare(command)) if "--dry-run" in command else bare(command)


def words_of(command: str) -> list[str]:
    """A line's arguments, from its program on."""
    words = shlex.split(re.sub(r"\$\([^)]*\)", "", command), comments=True)
    return [word for word in words if not re.match(r"[A-Z_]+=", word)]


RUNNING = [
    block
    for block in blocks(RUN)
    if block.page not in JAPANESE  # the English page's: see below
    and (block.tag == "python" or not all(map(why_not, block.commands)))
]

QUICK = [block for block in RUNNING if not any("bench/" in command for command in block.commands)]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, small programs before it, and what the pages take for granted.

    Made once for all processes of the tests: `package/`, `bin/`, and the working folder `place/`.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    made = base / "docs"
    with FileLock(base / "docs.lock"):
        if not (made / "done").is_file():
            shutil.rmtree(made, ignore_errors=True)
            _install(made)
            _fill(made / "place")
            for command in (
                "tandem config demo > mine.yaml",
                "tandem train --data.train my-text/ --output models/mine",
            ):
                done = run_there(command, made, made / "place")
                assert done.returncode == 0, done.stderr
            _edit(made / "place" / "mine.yaml")
            (made / "place" / "gpt2_tokenizer").mkdir()
            tokenizer = made / "place" / "models" / "mine" / "tokenizer.json"
            shutil.copy(tokenizer, made / "place" / "gpt2_tokenizer")
            (made / "done").touch()
    return made


def _install(made: Path) -> None:
    sources = made / "sources"
    sources.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(
        ROOT / "src" / "tandem", sources / "src" / "tandem", ignore=shutil.ignore_patterns("__pycache__")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    # By a wheel that it builds of these sources.
    where = ["--no-build-isolation", "--target", str(made / "package"), str(sources)]
    subprocess.run([*pip, *where], check=True)
    shutil.rmtree(sources)
    (made / "bin").mkdir()
    for name, real in (
        ("tandem", made / "package" / "bin" / "tandem"),
        ("python", Path(sys.executable)),
        ("torchrun", Path(sys.executable).with_name("torchrun")),
    ):
        shim = made / "bin" / name
        text = SHIM.format(
            python=sys.executable, small=SMALL, experiment=SMALL_EXPERIMENT, name=name, real=str(real)
        )
        shim.write_text(text, "utf-8")
        shim.chmod(0o755)


def _edit(settings: Path) -> None:
    """What README says to do with these settings; without variants, since no option changes what they set."""
    values = yaml.safe_load(settings.read_text("utf-8"))
    settings.write_text(yaml.safe_dump({**values, "variants": {}}), "utf-8")


def _fill(place: Path) -> None:
    """The texts that the pages name, all small."""
    (place / "my-text").mkdir(parents=True)
    texts = sentences(80)
    for number in range(0, 60, 2):
        (place / "my-text" / f"{number:02d}.txt").write_text("\n\n".join(texts[number : number + 2]), "utf-8")
    write_jsonl(place / "my-text.jsonl", texts[:60])
    write_jsonl(place / "chats.jsonl", texts[64:])
    (place / "other.txt").write_text("\n".join(texts[60:64]), "utf-8")
    (place / "prompt.txt").write_text("the context\n", "utf-8")
    (place / "bench").symlink_to(ROOT / "bench")
    for name, part in (("train", texts[:40]), ("valid", texts[60:66]), ("test", texts[66:72])):
        halves = [(text[:99], text[99:]) for text in part]
        chats = [
            {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": other}]}
            for one, other in halves
        ]
        articles = "".join(f" \n = Article {n} = \n \n {text} <unk> \n" for n, text in enumerate(part))
        for corpus, kind, lines in (
            ("dialogue_sgd", "jsonl", "".join(json.dumps(chat) + "\n" for chat in chats)),
            ("prose_textbooks", "jsonl", "".join(json.dumps({"text": text}) + "\n" for text in part)),
            ("wikitext-2", "txt", articles),
        ):
            file = place / "shared" / "corpora" / corpus / f"{name}.{kind}.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(lines.encode()))
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=300, special_tokens=["<|endoftext|>"])
    file = place / "shared" / "corpora" / "gpt2_tokenizer" / "tokenizer.json"
    file.parent.mkdir(parents=True)
    tokenizer.save(str(file))


def run_there(command: str, made: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """One line in a shell of its own, in `folder`, with the installed package."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
        "PATH": f"{made / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(made / "package"),
        "TANDEM_CACHE": str(made / "cache"),
        "WARM": warm.python(),
        "TANDEM_BENCH_SMALL": "1",
        "D": "shared/corpora/dialogue_sgd",
        "W": "shared/corpora/wikitext-2",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def filled_in(command: str, folder: Path) -> str:
    """With what `…` stands for: a run directory that an earlier line made, or a folder of corpora."""
    if "runs/…" in command:
        newest = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
        command = command.replace("runs/…", f"runs/{newest.name}")
    command = command.replace("TANDEM_SHARED=…", "TANDEM_SHARED=shared").replace("$(mktemp -d)", "own-cache")
    return re.sub(r"…(/\w+/)", r"shared/corpora\1", command)


@pytest.mark.parametrize("block", slow_but(QUICK, RUNNING), ids=lambda block: block.name)
def test_a_block_runs(block: Block, installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(installed / "place", folder, symlinks=True)
    if any("--output models/mine" in command for command in block.commands):
        shutil.rmtree(folder / "models")
    if block.tag == "python":
        (folder / "snippet.py").write_text(block.text, "utf-8")
        commands = ["python snippet.py"]
    else:
        commands = [command for command in block.commands if why_not(command) is None]
        commands = [command for command in commands if FIRST.get(same(command), block.name) == block.name]
    for command in commands:
        done = run_there(filled_in(command, folder), installed, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if "config demo > mine.yaml" in command:
            _edit(folder / "mine.yaml")


def test_the_package_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = run_there(
        "python -c 'import tandem; print(tandem.__file__)'; tandem --version", installed, tmp_path
    )
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed / "package"), done.stderr
    assert "tandem 0." in done.stdout


def test_every_block_says_what_it_is() -> None:
    """A block without a tag would be neither run nor known as output."""
    tags = {
        (page.name, match[1].strip()) for page in PAGES for match in FENCE.finditer(page.read_text("utf-8"))
    }
    assert {tag for _, tag in tags} <= {*RUN, *SHOWN}, tags


@pytest.mark.parametrize("page", JAPANESE, ids=lambda page: page.name)
def test_a_japanese_page_has_the_commands_of_the_english_one(page: Path) -> None:
    """So its own, which are run as the English page's, are right as well."""
    theirs, ours = (
        {bare(c) for b in blocks(RUN) if b.page == other for c in b.commands}
        for other in (page, page.with_name(page.name.replace(".ja.md", ".md")))
    )
    assert theirs <= ours


def test_every_table_of_speed_is_printed_by_all() -> None:
    program = (ROOT / "bench" / "performance.py").read_text("utf-8")
    commands = [words_of(command) for block in blocks(("sh",)) for command in block.commands]
    asked = {words[2] for words in commands if words[1:2] == ["bench/performance.py"]}
    assert asked == {"all", *re.findall(r'^    "([\w-]+)": "speed\.', program, re.MULTILINE)}


def test_every_reason_is_needed() -> None:
    commands = [command for block in blocks(("sh",)) for command in block.commands]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in commands), pattern


FIRST = {
    same(command): block.name
    for block in reversed(RUNNING)
    for command in block.commands
    if "bench/" in command or "--dry-run" in command
}
"""The first block with each line of `bench/` and each dry run. These need no other line, and no other line
needs what they leave, so they run there alone."""
NOT_RUNNING = sorted({c for b in blocks(("sh",)) for c in b.commands if why_not(c)})


@pytest.mark.parametrize("command", [c for c in NOT_RUNNING if words_of(c)[0] == "tandem"])
def test_what_does_not_run_is_taken_by_the_parser(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\n", "utf-8")
    args = words_of(command)[1:]
    kind = {"train": TrainArguments, "experiment": ExperimentArguments}[args[0]]
    parse_with_preset(args[0], kind, args[1:], "demo")


def test_bootstrap_has_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bootstrap.py"), "--help"], capture_output=True, text=True, check=True
    )
    for command in NOT_RUNNING:
        if words_of(command)[1:2] == ["bootstrap.py"]:
            what = words_of(command)[2]
            assert what in COMMANDS or what == "test"
            assert f"bootstrap.py {what}" in done.stdout
