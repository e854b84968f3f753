"""A Python that has the large libraries loaded: a new process of it starts in a second instead of ten.

Most tests that start a process want one of Tandem's own, not another import of torch and transformers. So a
server imports those libraries once, for all processes of pytest-xdist. For each PYTHONPATH that is asked for
it forks a second server. That one imports the Tandem of the path, and forks for each process. What is asked
for is started by `python()`, which takes the arguments of the real one: its folder, environment, open files
and signals are those of its child. With WITHOUT_TANDEM in the environment neither Tandem nor what draws is
loaded there, for tests of what imports which.
What the fork could not be true to is left to the real Python: other options, another locale or number of
threads. Tests of importing itself use the real one.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

CLIENT = """#!{real} -IS
import os, signal, socket, sys

REAL, PLACE, SAME = {real!r}, {place!r}, {same!r}
args = sys.argv[1:]
while args and args[0] in ("-u", "-B"):
    del args[0]
known = len(args) > 1 and args[0] in ("-c", "-m") or args and not args[0].startswith("-")
known = known and args[1:2] != ["submitit.local._local"]  # its job's name is its own number, and it is quick
if not known or any(os.environ.get(name) != value for name, value in SAME.items()):
    os.execv(REAL, [REAL, *sys.argv[1:]])

def opened(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

def connected(place):
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.connect(place)
    return server

files = [number for number in map(int, os.listdir("/proc/self/fd")) if opened(number)]
import json
path = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
with connected(PLACE) as first:
    first.sendall(json.dumps(None if "WITHOUT_TANDEM" in os.environ else path).encode())
    first.shutdown(socket.SHUT_WR)
    server = connected(PLACE + first.recv(9).decode())
umask = os.umask(0)
os.umask(umask)
ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
asked = json.dumps([sys.argv[0], args, dict(os.environ), os.getcwd(), umask, ignored, files]).encode()
socket.send_fds(server, [len(asked).to_bytes(4, "big")], files)
server.sendall(asked)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    if not (number == signal.SIGINT and ignored):
        signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
for number in files:
    os.close(number)  # the child has them; who waits for their end is to wait for it alone
told = server.recv(1)
code = int.from_bytes(told + server.recv(3), "big", signed=True) if told else 1
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""
"""What stands for Python: hands its whole start over to the server, and ends as the child did."""

READ_ONCE = (
    *("LANG", "LC_ALL", "LC_CTYPE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("PYTHONIOENCODING", "PYTHONUTF8", "PYTHONWARNINGS", "PYTHONHASHSEED", "PYTHONOPTIMIZE"),
    *("HF_HOME", "HF_HUB_OFFLINE"),
)
"""Variables that Python or a library may read at its start, and not again."""


LIBRARIES = (
    *("torch.distributed.run", "transformers.generation.utils", "transformers.modeling_utils"),
    *("transformers.tokenization_utils_tokenizers", "transformers.generation.streamers"),
    *("scipy.sparse", "scipy.special", "scipy.stats", "rich.progress", "rich.table", "safetensors.torch"),
    *("filelock", "jinja2", "pydantic.main", "tokenizers", "tyro", "yaml"),
)
"""What Tandem imports of others; where one is missing here, tests are slower and no less right."""
DRAWING = ("matplotlib.backends.backend_svg", "matplotlib.figure")
"""What it imports to draw; loaded last."""
BARE = b"null"
"""What a client asks for that does without Tandem."""

_given: list[str] = []


def use(program: str) -> None:
    """`python()` is this program from now on, which another process has made."""
    _given.append(program)


@functools.cache
def python() -> str:
    """A program that does what `sys.executable` does, faster. Its server ends with this process."""
    if _given:
        return _given[0]
    if sys.platform != "linux":
        return sys.executable
    folder = tempfile.TemporaryDirectory(prefix="warm-")  # a short path, as sockets want
    place, program = f"{folder.name}/server", Path(folder.name, "python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    same = {name: environment.get(name) for name in READ_ONCE}
    program.write_text(CLIENT.format(real=sys.executable, place=place, same=same), "utf-8")
    program.chmod(0o755)
    environment.pop("PYTHONPATH", None)
    server = subprocess.Popen(
        [sys.executable, __file__, place],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"  # to be asked; the libraries are loaded when somebody does

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return str(program)


def _load(names: tuple[str, ...]) -> None:
    """Libraries that Tandem uses, with what its command sets for them before."""
    early = {"GOMP_SPINCOUNT": "1000", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ.update(early)
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "only a process of one thread may fork"
    for name in early:
        del os.environ[name]


def _load_tandem() -> dict[str, str]:
    """All modules of the Tandem that the path leads to, if there is one. Returns variables that they set."""
    before = dict(os.environ)
    with contextlib.suppress(ImportError):
        for module in pkgutil.walk_packages(importlib.import_module("tandem").__path__, "tandem."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "only a process of one thread may fork"
    return {name: value for name, value in os.environ.items() if name not in before}


def _fork_by_path(place: str) -> tuple[int, str, bool]:
    """Load, and fork a server for each PYTHONPATH that a client names. Returns in the children alone.

    They have a place of their own, a file to close once they listen there, and know whether they are bare.
    """
    import select
    import socket

    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(place)
    listening.listen(64)
    print("ready", flush=True)
    servers: dict[bytes, int] = {}
    while listening in select.select([0, listening], [], [])[0]:
        client, _ = listening.accept()
        path = b"".join(iter(functools.partial(client.recv, 1 << 16), b""))
        for one in (path,) if servers else (BARE, path):
            if one in servers:
                continue
            _load(DRAWING if servers else LIBRARIES)
            number = servers[one] = len(servers)
            ready, tell = os.pipe()
            if os.fork() == 0:
                client.close()
                listening.close()
                os.close(ready)
                sys.path[:1] = json.loads(one) or []  # in place of the folder of this file
                return tell, f"{place}{number}", one == BARE
            os.close(tell)
            os.read(ready, 1)
            os.close(ready)
        with client, contextlib.suppress(OSError):
            client.sendall(str(servers[path]).encode())
    for _ in servers:  # the tests are over, and they know it
        os.wait()
    os._exit(0)


def _serve(place: str, tell: int) -> dict[str, Any]:
    """Fork for each client that connects. Returns in the children alone, with what they were asked for."""
    import select
    import signal
    import socket

    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(place)
    listening.listen(64)
    os.close(tell)
    clients: dict[socket.socket, tuple[int, int]] = {}  # of each its child's id, and the file of its end
    while True:
        ends = {end: client for client, (_, end) in clients.items()}
        ready, _, _ = select.select([0, listening, *clients, *ends], [], [])
        if 0 in ready:  # the tests are over
            for child, _ in clients.values():
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        for end in (end for end in ready if end in ends):
            child, _ = clients.pop(ends[end])
            _, status = os.waitpid(child, 0)
            os.close(end)
            with ends[end] as client, contextlib.suppress(OSError):
                client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        for client in (client for client in ready if client in clients):
            with contextlib.suppress(ConnectionError):
                number = client.recv(1)
                os.kill(clients[client][0], number[0] if number else signal.SIGKILL)
        if listening in ready:
            client, _ = listening.accept()
            start, files, *_ = socket.recv_fds(client, 4, 250)
            text, size = b"", int.from_bytes(start, "big")
            while len(text) < size:
                text += client.recv(size - len(text))  # no more: a signal's number may follow on it
            if (child := os.fork()) == 0:
                for other, (_, end) in clients.items():
                    other.close()
                    os.close(end)
                client.close()
                listening.close()
                names = ("program", "args", "environment", "folder", "umask", "ignored", "numbers")
                return {**dict(zip(names, json.loads(text), strict=True)), "files": files}
            for file in files:
                os.close(file)
            clients[client] = (child, os.pidfd_open(child))


def _take_place(asked: dict[str, Any], more: dict[str, str]) -> None:
    """Files, folder, environment and names of the process that was asked for."""
    import fcntl
    import multiprocessing
    import random
    import signal

    import numpy

    os.setpgid(0, 0)
    above = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 512) for file in asked["files"]]
    for file in {0, 1, 2, *asked["files"]}:
        os.close(file)
    for number, file in zip(asked["numbers"], above, strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before, mode, stream = getattr(sys, name), "w" if number else "r", None
        if number in asked["numbers"]:
            buffering = 1 if number == 2 or os.isatty(number) else -1
            kinds = {"encoding": before.encoding, "errors": before.errors}
            stream = open(number, mode, buffering, closefd=False, **kinds)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN if asked["ignored"] else signal.default_int_handler)
    os.chdir(asked["folder"])
    os.umask(asked["umask"])
    os.environ.clear()
    os.environ.update({**more, **asked["environment"]})
    sys.executable = asked["program"]
    multiprocessing.set_executable(sys.executable)
    importlib.invalidate_caches()
    random.seed()
    numpy.random.seed()  # noqa: NPY002


def _run(args: list[str]) -> None:
    """As Python does what follows it on its command line."""
    import runpy

    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if args[0] == "-m":
        sys.argv = ["-m", *args[2:]]
        sys.path.insert(0, str(Path.cwd()))
        runpy._run_module_as_main(args[1])  # type: ignore[attr-defined]
    elif args[0] == "-c":
        sys.argv = ["-c", *args[2:]]
        sys.path.insert(0, "")
        exec(compile(args[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = args
        sys.path.insert(0, str(Path(args[0]).resolve().parent))
        main.__file__ = str(Path.cwd() / args[0])
        exec(compile(Path(args[0]).read_bytes(), args[0], "exec"), main.__dict__)


def _done() -> bool:
    """What is done at a regular end, but for taking 3,000 modules apart; False where that goes wrong."""
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return False  # which a regular end tells
    return True


if __name__ == "__main__":
    import gc

    gc.disable()  # nothing of what is loaded is garbage
    told, own, bare = _fork_by_path(sys.argv[1])
    said = {} if bare else _load_tandem()
    gc.freeze()  # and it stays in memory that all children share
    gc.enable()
    ask = _serve(own, told)
    _take_place(ask, said)
    if bare:
        sys.path[:0] = filter(None, ask["environment"].get("PYTHONPATH", "").split(os.pathsep))
    code: object = 0
    try:
        _run(ask["args"])
    except SystemExit as stop:
        code = stop.code
    if isinstance(code, int | None) and _done():
        os._exit((code or 0) & 0xFF)
    sys.exit(code)  # type: ignore[arg-type]
