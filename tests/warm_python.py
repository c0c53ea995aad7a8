"""A `python` and a `hubmerge` for tests that start at once: forks of a process that is warm.

A test that starts thirty commands would import torch thirty times. Here one process imports it and
starts no thread; the two programs are small clients that hand over arguments, environment, folder
and streams, and end with the exit code of the fork. Run as a script, this file is both sides.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_SIZE = 1 << 20


@contextmanager
def serve_warm_python(folder: Path) -> Iterator[Path]:
    """A folder for the PATH with a warm `python` and `hubmerge`, for as long as the block runs."""
    address = folder / "socket"
    for name, arguments in (("python", ""), ("hubmerge", "-m hubmerge ")):
        client = folder / name
        client.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -ISB "{__file__}" "{address}" {arguments}"$@"\n'
        )
        client.chmod(0o755)
    command = [sys.executable, "-m", "tests.warm_python", "--serve", str(address)]
    # Sets are in another order than in the tests' own process.
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    server = subprocess.Popen(command, cwd=_ROOT, env=environment)
    try:
        while not address.exists():
            assert server.poll() is None, "the warm process ended"
            time.sleep(0.05)
        yield folder
    finally:
        server.terminate()
        server.wait()


def import_everything() -> None:
    """Import hubmerge with all libraries that it uses."""
    import matplotlib.backends.backend_agg  # noqa: F401

    import hubmerge.flows.card
    import hubmerge.flows.evaluate
    import hubmerge.flows.explain
    import hubmerge.flows.merge
    import hubmerge.flows.moerge
    import hubmerge.flows.select
    import hubmerge.flows.train
    import hubmerge.learners.factory
    import hubmerge.models.adapter
    import hubmerge.models.loading
    import hubmerge.tasks.custom_task
    import hubmerge.training.loop  # noqa: F401
    from hubmerge.cli.app import make_app

    make_app()  # imports all commands


def serve(address: str) -> None:
    """Import everything, then fork for every command that a client hands over."""
    import_everything()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)  # it is there once it listens
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(connection: socket.socket) -> None:
    """Run the command in a fork of this fork; send its process id, then its exit code."""
    data, streams, _, _ = socket.recv_fds(connection, _SIZE, 3)
    while not data.endswith(b"\n"):
        more = connection.recv(_SIZE)
        if not more:  # the client was killed
            os._exit(1)
        data += more
    child = os.fork()
    if child == 0:
        connection.close()
        _run(json.loads(data), streams)
    for stream in streams:
        os.close(stream)
    try:
        connection.sendall(f"{child}\n".encode())
    except ConnectionError:  # the client was killed, and the command with it
        os.kill(child, signal.SIGKILL)
        os._exit(1)
    threading.Thread(target=_kill_with_client, args=(connection, child), daemon=True).start()
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ConnectionError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _kill_with_client(connection: socket.socket, child: int) -> None:
    """Wait until the client is gone; if the command still runs, the client was killed."""
    with contextlib.suppress(ConnectionError):  # it was killed before it had read all
        connection.recv(1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _run(request: dict[str, object], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    sys.executable = str(request["executable"])  # its children are warm, too
    words = request["words"]
    assert isinstance(words, list)
    code: object = 1
    try:
        code = _run_program(words)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _run_program(words: list[str]) -> object:
    """Run `-m module`, `-c program` or a file, as python does; returns the exit code."""
    while words[0] in ("-u", "-B", "-P"):
        words = words[1:]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        if words[1] == "hubmerge":
            from hubmerge.cli import main

            return main()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], os.getcwd()
        program = compile(words[1], "<string>", "exec")
        exec(program, {"__name__": "__main__"})  # noqa: S102
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
    return 0


def ask(address: str, words: list[str]) -> int:
    """Hand the words to the warm process; returns the exit code of the command."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = {
        "words": words, "cwd": os.getcwd(), "env": dict(os.environ),
        "executable": str(Path(address).with_name("python")),
    }  # fmt: skip
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(connection, [data], [0, 1, 2])
    connection.sendall(data[sent:])
    lines = connection.makefile()
    child = int(lines.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    return int(lines.readline() or 1) % 256


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
