"""Real processes that start quickly: forks of one that has imported everything already and done nothing else."""

import faulthandler
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch.multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["imported"])


def running_server():
    """The process that others are forked from: with this checkout's modules, and one thread."""
    from multiprocessing.forkserver import ensure_running

    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), OMP_NUM_THREADS="1"):
        ensure_running()


class Command:
    """``contrastneg ARGUMENTS``, or what another module does as a command, in a process and a session of its own.

    What is asked of it is named as in ``subprocess.Popen``; what it prints goes to files.
    """

    def __init__(self, *arguments, module="contrastneg", cwd=None, **environment):
        running_server()
        self._files = ExitStack()
        folder = Path(self._files.enter_context(tempfile.TemporaryDirectory()))
        self._printed = [folder / "stdout", folder / "stderr"]
        for path in self._printed:
            path.touch()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        place = (os.path.abspath(cwd or os.getcwd()), environment, self._printed)
        self._process = FORKS.Process(target=_command, args=(module, list(map(str, arguments)), *place))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """The exit status, negative where a signal ended it, None while it runs."""
        return self._process.exitcode

    def poll(self):
        """The same."""
        return self.returncode

    def send_signal(self, signum):
        """To this process alone."""
        os.kill(self.pid, signum)

    def lines(self, of="stdout"):
        """What it prints, line by line as it comes, until it has ended."""
        with self._printed[of == "stderr"].open() as stream:
            line, ended = "", False
            while True:
                line += stream.readline()
                if line.endswith("\n"):
                    yield line
                    line = ""
                elif ended:
                    return
                else:
                    ended = self.returncode is not None  # one more look: it may have printed since
                    time.sleep(0.002)

    def communicate(self, timeout):
        """All that it printed on both streams, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self.send_signal(signal.SIGUSR1)  # it prints where it stands
            self._process.join(1)
            os.killpg(self.pid, signal.SIGKILL)
        printed = [path.read_text() for path in self._printed]
        self._files.close()
        assert self.returncode is not None, f"still running after {timeout} seconds: {printed}"
        return printed


def _command(module, arguments, cwd, environment, printed):
    multiprocessing.set_start_method(None, force=True)  # its own loader processes start as anywhere else
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in zip(printed, (sys.stdout, sys.stderr), strict=True):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
    faulthandler.register(signal.SIGUSR1, file=2)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def two_commands(*arguments, **options):
    """``contrastneg ARGUMENTS`` on two ranks that meet as those that Lightning or torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    places = ({"RANK": place, "LOCAL_RANK": place, "NODE_RANK": "0"} for place in "01")
    return [Command(*arguments, **options, **meet, **place) for place in places]


def in_two_processes(function, *arguments):
    """Call a test module's function with a rank, 0 or 1, and arguments in a process each; an error there is one here."""
    running_server()
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def script_in_two_processes(script, *arguments):
    """Run a script with a rank, 0 or 1, and arguments as ``sys.argv[1:]`` in a process each."""
    in_two_processes(_script, script, list(map(str, arguments)))


def _script(rank, script, arguments):
    multiprocessing.set_start_method(None, force=True)
    sys.argv = ["-c", str(rank), *arguments]
    exec(script, {"__name__": "__main__"})
