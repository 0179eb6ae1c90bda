"""torpor's commands in a process that is forked from one which has torpor loaded.

Where QEMU translates, half of what a small checkpoint takes is the start of Python. Two ways were weighed: torpor called from
Python by the test itself, whose process would then be the tracer, and its children the restarted ones; or what `python -m torpor`
runs, in a forked process: all is as with the command but for what is loaded already. The second won, for the torture program and
the interrupted calls; the other cases, and so every kernel, take the command itself.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

from tests.settings import ROOT
from tests.torture.harness import COMMAND_WITHIN, Reaper, Run, TortureFailure, describe

LOADED = Path("/run/loaded")
"""The modules that a command has had at its end."""


def load() -> None:
    """Have what the last command has loaded loaded here, for all that are forked from here."""
    for name in LOADED.read_text().split() if LOADED.exists() else []:
        importlib.import_module(name)


def torpor(reaper: Reaper, *arguments: str | Path, **environment: str) -> Run:
    """As the harness's own function."""
    load()
    start = time.monotonic()
    words = [str(word) for word in arguments]
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if not pid:
            os.environ.update(environment)
            _command(words, output.fileno())
        reaper.own.add(pid)
        pidfd = os.pidfd_open(pid)
        ended = bool(select.select([pidfd], [], [], COMMAND_WITHIN)[0])
        os.close(pidfd)
        doing = describe(pid)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        reaper.own.discard(pid)
        seconds = time.monotonic() - start
        output.seek(0)
        said = output.read().decode(errors="replace")
    if not ended:
        raise TortureFailure(f"torpor {words} has not ended; {doing}\n{said}")
    return Run(words, code, said, seconds)


def _command(words: list[str], output: int) -> NoReturn:
    """What `python -m torpor` does, with the descriptors that it would have."""
    code = 1
    try:
        for number, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(number, standard)
        os.closerange(3, 1 << 16)
        os.chdir(ROOT)
        from torpor.cli import main

        code = main(words)
        sys.stdout.flush()
        LOADED.write_text(" ".join(name for name in sys.modules if name.startswith("torpor")))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
