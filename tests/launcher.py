"""Runs of our commands without six seconds of imports each: forks of one process that has imported the libraries.

A run has its own arguments, folder, environment and output, imports this project's modules by itself, and ends as a
Python process ends. What a fork cannot show is tested with real processes: the imports, variables that Python reads
when it starts, what torchrun and accelerate launch do.

Each test process has one server. For each run the server forks a keeper, which forks the run, or one for each rank,
and reports how it ended. When the test process ends, so do server, keepers and runs.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    *("numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "scipy.optimize", "sklearn.datasets", "yaml", "tqdm"),
    *("PIL.Image", "matplotlib.pyplot", "torch.distributed", "torchvision.transforms.v2", "safetensors.torch"),
)
# They read HF_HOME, HF_ENDPOINT and their like at import: a run with other values imports them by itself.
HUB_LIBRARIES = (
    "datasets",
    "accelerate",
    "accelerate.tracking",
    "transformers.modeling_utils",
    "transformers.pipelines",
)
# What Python and the other libraries read when they start; PYTHONPATH is seen to.
READ_AT_START = ("LANG", "LC_", "LD_", "MALLOC_", "MKL_", "MPL", "OMP_", "PYTHON", "TORCH_", "TRANSFORMERS_")
KILL_AFTER_S = 30  # a rank that does not end when another one has failed, as torchrun does
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
SERVER_ENVIRONMENT = dict(os.environ)
_servers: dict[str, Any] = {}


class Run:
    """A run that has begun, to be used like `subprocess.Popen`. Of several ranks, `pid` is the keeper's, which passes
    SIGTERM on and ends them all when one fails, as torchrun does."""

    def __init__(
        self, args: Sequence[object], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None, num_ranks: int = 1
    ) -> None:
        self.args, self.returncode = [str(arg) for arg in args], None
        env = dict(os.environ if env is None else env)
        keeper, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._keeper = keeper
        self._outputs = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  not pipes, which fill up
        request = json.dumps({"args": self.args, "cwd": str(cwd), "env": env, "num_ranks": num_ranks}).encode()
        with theirs:
            socket.send_fds(server_for(env), [request], [file.fileno() for file in (theirs, *self._outputs)])
        self.pid, self.ranks = json.loads(self._keeper.recv(1000))

    def poll(self, timeout: float | None = 0) -> int | None:
        if self.returncode is None:
            self._keeper.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                answer = self._keeper.recv(100)
                self.returncode = int(answer) if answer else -signal.SIGKILL  # nothing: the keeper was killed
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        for file in self._outputs:
            file.seek(0)
        return tuple(file.read() for file in self._outputs)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(args: Sequence[object], *, timeout: float = 200, **options) -> subprocess.CompletedProcess:
    """What `python ARGS` does, as `subprocess.run` would tell it. `options` are those of `Run`."""
    process = Run(args, **options)
    try:
        output, errors = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def server_for(env: Mapping[str, str]) -> socket.socket:
    """The server whose imports suit the environment. The first call starts both."""
    if not _servers:
        ours, theirs = zip(*(socket.socketpair(type=socket.SOCK_SEQPACKET) for _ in range(2)), strict=True)
        descriptors = [end.fileno() for end in theirs]
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, descriptors)],
            env=SERVER_ENVIRONMENT,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for end in theirs:
            end.close()
        _servers.update(process=process, plain=ours[0], hub=ours[1])
    names = env.keys() | SERVER_ENVIRONMENT.keys()
    others = {name for name in names if env.get(name) != SERVER_ENVIRONMENT.get(name)} - {"PYTHONPATH"}
    if early := [name for name in others if name.startswith(READ_AT_START)]:
        raise ValueError(f"{early} are read before a fork could set them: start a real process")
    return _servers["hub" if any(name.startswith("HF_") for name in others) else "plain"]


def stop_servers() -> None:
    if _servers:
        for name in ("plain", "hub"):
            _servers[name].shutdown(socket.SHUT_RDWR)  # a worker that the test process has forked holds it too
            _servers[name].close()
        _servers["process"].wait()
        _servers.clear()


# In the server


def serve(plain: socket.socket, hub: socket.socket) -> None:
    """Returns when the test process has ended, and in a run at its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()
    requests, others = hub, plain
    server = os.getpid()
    if os.fork() == 0:
        end_with_parent(server)
        requests, others = plain, hub
        for name in HUB_LIBRARIES:
            importlib.import_module(name)
    others.close()
    server = os.getpid()
    gc.freeze()  # what is never collected is never copied either
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not request:
            return
        with contextlib.suppress(ChildProcessError):  # keepers that have ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            requests.close()
            end_with_parent(server)
            keep(socket.socket(fileno=descriptors[0]), descriptors[1:], **json.loads(request))
            return
        for descriptor in descriptors:
            os.close(descriptor)


def end_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def keep(reports: socket.socket, outputs: list[int], args: list[str], cwd: str, env: dict, num_ranks: int) -> None:
    """Returns in the run, or in each rank, when it has ended."""
    ports, announce = os.pipe()
    keeper, pids = os.getpid(), []
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            reports.close()
            os.close(announce)
            end_with_parent(keeper)
            if num_ranks > 1:
                env |= rank_variables(rank, num_ranks, port=os.read(ports, 5).decode())
            become(args, cwd, env, outputs)
            return
        pids.append(pid)
    for descriptor in outputs:
        os.close(descriptor)
    if num_ranks == 1:
        reports.send(json.dumps([pids[0], pids]).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])
    else:
        code = keep_ranks(reports, pids, announce)
    reports.send(str(code).encode())
    os._exit(0)


def rank_variables(rank: int, num_ranks: int, port: str) -> dict[str, str]:
    """As torchrun sets them."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    agent = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return {name: str(n) for name, n in numbers.items()} | agent | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def keep_ranks(reports: socket.socket, pids: list[int], announce: int) -> int:
    from torch.distributed import TCPStore

    # After the forks, for it has a thread. It takes a free port itself, so that nobody can take it in between.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(announce, f"{store.port:05}".encode() * len(pids))
    running, failed, kill_at = set(pids), False, float("inf")

    def pass_on(number: int, frame: types.FrameType | None = None) -> None:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    reports.send(json.dumps([os.getpid(), pids]).encode())
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        running.discard(pid)
        if pid and status and not failed:
            failed, kill_at = True, time.monotonic() + KILL_AFTER_S
            time.sleep(0.1)  # torchrun looks ten times a second: the others may say that they lost a peer
            pass_on(signal.SIGTERM)
        if time.monotonic() > kill_at:
            pass_on(signal.SIGKILL)
        time.sleep(0.01)
    return int(failed)


def become(args: list[str], cwd: str, env: dict[str, str], outputs: list[int]) -> None:
    """Do in this fork what `python ARGS` does."""
    for stream, descriptor in enumerate(outputs, start=1):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    libraries = [path for path in sys.path[1:] if path not in inherited]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.modules["numpy"].random.seed()  # or what draws without a seed would draw the same in each run
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    paths = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *libraries]
    if args[0] == "-m":
        sys.path[:], sys.argv[:] = [cwd, *paths], args[1:]
        runpy._run_module_as_main(args[1])  # what Python itself calls
        return
    if args[0] == "-c":
        sys.path[:], sys.argv[:], code, name = ["", *paths], ["-c", *args[2:]], args[1], "<string>"
    else:
        sys.path[:], sys.argv[:] = [str(Path(args[0]).resolve().parent), *paths], args
        code, name = Path(args[0]).read_text(encoding="utf-8"), args[0]
        main.__file__ = name
    exec(compile(code, name, "exec"), main.__dict__)


if __name__ == "__main__":
    plain, hub = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    serve(plain, hub)
