"""A process that has torpor loaded already and calls its functions for the harness: the mechanism alone, as the commands use it.

Each line on standard input is a request, its words separated by tabs; the answer is a line on standard output.

    checkpoint PID FILE      -> ok NS FILE DIRECTORY  (of it, in fsync of the file and of its directory)
    standing PID FILE        -> the same; the program stands still until all is written, as with --kill, but goes on
    next PID FILE [PARENT]   -> the same; what has changed since PARENT, which was taken by this request, too (without: all)
    restart FILE [ALLOWED]   -> ok NS START PID      (START: when it began, CLOCK_REALTIME in ns)
    lazily FILE [ALLOWED]    -> the same; its memory comes while it runs
    reap                     -> ok
                             -> failed TEXT
"""

from __future__ import annotations

import os
import stat
import sys
import time

from torpor.checkpoint import checkpoint
from torpor.restart import Restarted, restart_as_child
from torpor.tasks.tracking import Tracking

story = sys.modules["torpor.checkpoint"]  # `torpor.checkpoint` is the function
limits: dict[str, int] = {name: vars(story)[name] for name in ("WORTH_A_COPY", "WORTH_SAVING_AHEAD")}
"""From which size on a program does not stand still for as long as its memory takes."""
tracking = Tracking()
served: list[Restarted] = []
"""Programs that get their memory from here."""
waited = {False: 0, True: 0}
"""ns in fsync: of files, of directories."""
fsync = os.fsync


def timed_fsync(fd: int) -> None:
    """fsync(2), and how long it took."""
    start = time.perf_counter_ns()
    fsync(fd)
    waited[stat.S_ISDIR(os.fstat(fd).st_mode)] += time.perf_counter_ns() - start


os.fsync = timed_fsync  # type: ignore[assignment]


def answer(verb: str, words: list[str]) -> list[object]:
    """Do what a request says."""
    global tracking
    if verb in ("checkpoint", "standing", "next"):
        pid, file, parent = int(words[0]), words[1], words[2] if len(words) > 2 else None
        if verb == "next" and not parent:
            tracking.close()
            tracking = Tracking()
        for limit, usual in limits.items():
            vars(story)[limit] = 1 << 62 if verb == "standing" else usual
        waited.update({False: 0, True: 0})
        start = time.perf_counter_ns()
        checkpoint(pid, file, parent=parent, tracking=tracking if verb == "next" else None)
        return [time.perf_counter_ns() - start, waited[False], waited[True]]
    if verb in ("restart", "lazily"):
        begin, start = time.time_ns(), time.perf_counter_ns()
        program = restart_as_child(words[0], allow_changed=words[1:], lazy=verb == "lazily")
        took = time.perf_counter_ns() - start
        if verb == "lazily":
            served.append(program)
        else:
            program.leave()
        return [took, begin, program.pid]
    while served:
        served.pop().wait()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    return []


for line in sys.stdin:
    verb, *words = line.rstrip("\n").split("\t")
    try:
        print("ok", *answer(verb, words), flush=True)
    except Exception as error:
        print("failed", " / ".join(str(error).splitlines()), flush=True)
