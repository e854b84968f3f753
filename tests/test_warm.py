"""The Python that other tests start processes with does what the real one does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from warm import python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the real one")

SAYS = "import os, sys; print(sys.argv, os.getcwd(), os.environ['X'], sys.stdin.read(), flush=True); "


@pytest.mark.parametrize("end", ["", "sys.exit(7)", "1 / 0", "sys.exit('why')", "os.kill(os.getpid(), 9)"])
def test_it_does_what_the_real_one_does(end: str, tmp_path: Path) -> None:
    """Arguments, folder, environment, input, output and the end, whether by a code, an error or a signal."""
    (tmp_path / "script.py").write_text(SAYS + end, "utf-8")
    for args in (["-c", SAYS + end, "a b", ""], ["script.py", "-x"], ["-u", "-m", "script", "-x"]):
        ours, real = (
            subprocess.run(
                [program, *args], cwd=tmp_path, env={"X": "ü"}, input="typed", capture_output=True, text=True
            )
            for program in (python(), sys.executable)
        )
        assert (ours.returncode, ours.stdout) == (real.returncode, real.stdout), ours.stderr
        assert ours.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_process(number: int) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen(
        [python(), "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        process.communicate()  # to the end of its output, which the child has alone
        assert process.returncode == -number
    assert child != process.pid


def test_libraries_are_loaded_and_a_tandem_comes_from_where_the_path_says(tmp_path: Path) -> None:
    there = "import sys; print([name in sys.modules for name in ('torch', 'conftest')])"
    code = f"{there}; import tandem; print(tandem.X)"
    for text in ("one", "two"):
        (tmp_path / text / "tandem").mkdir(parents=True)
        (tmp_path / text / "tandem" / "__init__.py").write_text(f"X = {text!r}", "utf-8")
        for program, torch in ((python(), True), (sys.executable, False)):
            environment = {**os.environ, "PYTHONPATH": text}
            said = subprocess.check_output([program, "-c", code], cwd=tmp_path, env=environment, text=True)
            assert said.splitlines() == [f"[{torch}, False]", text]


def test_tandem_and_what_draws_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("", "utf-8")
    names = ("torch", "transformers", "matplotlib", "tandem")
    code = f"import sys, toy; print([name in sys.modules for name in {names}])"
    environment = {**os.environ, "WITHOUT_TANDEM": "yes", "PYTHONPATH": str(tmp_path)}
    said = subprocess.check_output([python(), "-c", code], env=environment, text=True)
    assert said.strip() == "[True, True, False, False]"
