#!/usr/bin/env python3
"""Sets Tandem up in a folder of its own (.venv) and runs it. Needs nothing but Python 3.11 with pip.

    python3 bootstrap.py experiment     the four-configuration experiment (any `tandem` command works)
    python3 bootstrap.py test           the linters and the tests

Run as often as you like: what is installed already is not installed again.
"""

import hashlib
import os
import shlex
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(BIN, "python.exe" if os.name == "nt" else "python")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
OLDEST = (3, 11)

for stream in (sys.stdout, sys.stderr):  # a terminal of another encoding shows ? for what it lacks
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


def say(text):
    print("bootstrap: " + text, flush=True)


def fail(text):
    sys.stderr.write("bootstrap: error: " + text + "\n")
    sys.exit(2)


def call(arguments, **more):
    return subprocess.call([PYTHON, *arguments], cwd=ROOT, **more)


def works():
    """Whether .venv holds a Python with pip: an interrupted or moved one does not."""
    try:
        return call(["-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def make_venv():
    if works():
        return
    say("making a virtual environment in .venv")
    if subprocess.call([sys.executable, "-m", "venv", "--clear", VENV]) != 0 or not works():
        fail(
            "this Python cannot make a virtual environment; install its venv module "
            "(on Debian and Ubuntu: apt install python3-venv) and run the same command again"
        )


def install(extras):
    """Install the package in editable form with pinned versions, unless just that is installed already."""
    wanted = hashlib.sha256(sys.version.encode())
    for path in (CONSTRAINTS, os.path.join(ROOT, "pyproject.toml")):
        with open(path, "rb") as file:
            wanted.update(file.read())
    stamp = os.path.join(VENV, "tandem-installed" + (("-" + extras) if extras else ""))
    if os.path.exists(stamp):
        with open(stamp, encoding="ascii") as file:
            if file.read() == wanted.hexdigest():
                return
    target = ROOT + ("[%s]" % extras if extras else "")
    say("installing the pinned packages of constraints.txt (about 1 GB with PyTorch, once)")
    began = time.time()
    if (
        call(
            [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-c",
                CONSTRAINTS,
                "-e",
                target,
            ]
        )
        != 0
    ):
        fail(
            "installing failed (pip's message is above); mend its cause, such as the network, "
            "and run the same command again"
        )
    with open(stamp, "w", encoding="ascii") as file:
        file.write(wanted.hexdigest())
    say("installed in %.0f s" % (time.time() - began))


def test(arguments):
    """What the project's checks are: the linters first, since they are quick, then the tests."""
    for name, command in (
        ("ruff check", ["-m", "ruff", "check", "."]),
        ("ruff format", ["-m", "ruff", "format", "--check", "."]),
        ("mypy", ["-m", "mypy"]),
        ("pytest", ["-m", "pytest", *arguments]),
    ):
        say(name)
        code = call(command)
        if code != 0:
            return code
    return 0


def main(arguments):
    if sys.version_info < OLDEST:
        fail("Tandem needs Python %d.%d or newer, and this is %s" % (*OLDEST, sys.version.split()[0]))
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    make_venv()
    if arguments[0] == "test":
        install("dev")
        return test(arguments[1:])
    install("")
    say("tandem " + " ".join(map(shlex.quote, arguments)))
    return call(["-m", "tandem", *arguments])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
