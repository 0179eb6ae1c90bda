"""torpor restart: make a saved program go on.

The program stays under this command, as if it had started it: its standard streams are this command's where they were a
terminal, signals are passed on, and its exit status becomes this command's.
"""

from __future__ import annotations

import os
import sys

from torpor.cli.arguments import SERVER, Option, Verb
from torpor.cli.progress import Progress
from torpor.errors import Obstacle, UsageError
from torpor.linux import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from torpor.cli.arguments import Parsed
    from torpor.restart import Restarted

VERB = Verb(
    "restart",
    "Make the program in the image FILE (- is standard input) go on from the instant it was saved.",
    ["FILE"],
    [
        Option("--detach", doc="leave it alone as soon as it runs, and print its process id"),
        Option("--pids", value="MODE", doc="same, namespace or auto: its old process ids here, or in a namespace of its own"),
        Option("--cpu", value="MODE", doc="same, or used: accept a CPU that lacks what the program never used"),
        Option("--lazy", doc="let it run before its memory is there: what it touches comes at once, the rest behind, verified"),
        Option("--allow-changed", value="PATH", doc="a file that may differ from what it was; may be repeated", repeated=True),
        SERVER,
    ],
)
PASSED_ON = (signals.SIGHUP, signals.SIGINT, signals.SIGQUIT, signals.SIGTERM, signals.SIGUSR1, signals.SIGUSR2, signals.SIGCONT)


def run(arguments: Parsed) -> int:
    """Run the verb. Raises TorporError."""
    detach, lazy, server = arguments.switch("detach"), arguments.switch("lazy"), arguments.text("server")
    options: dict[str, Any] = {
        "pids": arguments.choice("pids", ("auto", "same", "namespace")),
        "cpu": arguments.choice("cpu", ("same", "used")),
        "allow_changed": arguments.several("allow_changed"),
    }
    if server and not detach:
        raise UsageError(Obstacle("torpor restart", "what a server restarts is not this command's child", "say --detach"))
    if server and lazy:
        raise UsageError(Obstacle("torpor restart", "a server brings all memory back first", "leave out --server or --lazy"))
    progress = Progress("check")
    try:
        if server:
            return _by_server(server, arguments.operands[0], options, progress)
        from torpor.restart import restart, restart_as_child

        program = (restart if detach else restart_as_child)(arguments.operands[0], lazy=lazy, progress=progress, **options)
    finally:
        progress.close()
    if lazy:
        print(f"torpor: process {program.pid} runs, and {program.following >> 20} MiB of its memory follow", file=sys.stderr)
    _report(program.warnings, program.mode, program.pid, program.own_pid)
    if detach:
        print(program.pid)
        program.leave()
        return 0
    return _stay(program)


def _by_server(server: str, image: str, options: dict[str, Any], progress: Progress) -> int:
    from torpor.serve.client import ask, obstacle

    done = ask(server, {"verb": "restart", "source": image, **options}, progress)
    progress.close()
    _report(map(obstacle, done["warnings"]), done["mode"], done["pid"], done["own_pid"])
    print(done["pid"])
    return 0


def _report(warnings: Iterable[Obstacle], mode: str, pid: int, own_pid: int) -> None:
    for warning in warnings:
        print(f"torpor: {warning}", file=sys.stderr)
    if mode == "namespace":
        print(f"torpor: process {own_pid} goes on in a pid namespace of its own, as {pid} here", file=sys.stderr)


def _stay(program: Restarted) -> int:
    """Pass signals on until the program ends; its exit status, as a shell would give it."""
    for number in PASSED_ON:
        signals.handle(number, lambda caught, _frame: _pass_on(program.pid, caught))
    taken = _give_terminal(program)
    try:
        status = program.wait()
    finally:
        _take_terminal(taken)
    if status < 0:
        print("torpor: the process that watched over the program was killed", file=sys.stderr)
        return 1
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _pass_on(pid: int, caught: int) -> None:
    try:
        os.kill(pid, caught)
    except ProcessLookupError:
        pass


def _give_terminal(program: Restarted) -> int:
    """Make the program's process group the terminal's foreground group. Returns the group that it was, or 0."""
    try:
        if os.tcgetpgrp(0) != os.getpgrp():
            return 0
        group = os.getpgid(program.pid)
        if group == os.getpgrp() or os.getsid(program.pid) != os.getsid(0):
            return 0
        os.tcsetpgrp(0, group)
    except OSError:
        return 0
    return os.getpgrp()


def _take_terminal(group: int) -> None:
    if group:
        signals.ignore(signals.SIGTTOU)
        try:
            os.tcsetpgrp(0, group)
        except OSError:
            pass
