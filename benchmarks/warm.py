"""A process that has torpor loaded already and calls its functions for the harness: the mechanism alone, as the commands use it.

Each line on standard input is a request, its words separated by tabs; the answer is a line on standard output.

    checkpoint PID FILE      -> ok NS
    restart FILE [ALLOWED]   -> ok NS START PID      (START: when it began, CLOCK_REALTIME in ns)
    reap                     -> ok
                             -> failed TEXT
"""

from __future__ import annotations

import os
import sys
import time

from torpor.checkpoint import checkpoint
from torpor.restart import restart_as_child


def answer(verb: str, words: list[str]) -> list[object]:
    """Do what a request says."""
    if verb == "checkpoint":
        pid, file = int(words[0]), words[1]
        start = time.perf_counter_ns()
        checkpoint(pid, file)
        return [time.perf_counter_ns() - start]
    if verb == "restart":
        begin, start = time.time_ns(), time.perf_counter_ns()
        program = restart_as_child(words[0], allow_changed=words[1:])
        took = time.perf_counter_ns() - start
        program.leave()
        return [took, begin, program.pid]
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
