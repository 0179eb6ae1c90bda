"""Stands in for torpor where the runner itself is tested: same command line, no magic.

    python3 stand_in.py BEHAVIOUR checkpoint PID -o IMAGE --kill
    python3 stand_in.py BEHAVIOUR restart IMAGE

The "image" says how the process was started; "restart" starts it from the beginning, with the same pid where it may.
That is good enough for programs that write their files anew. BEHAVIOUR is `good` or the name of one thing that it
does wrong, which the runner must notice.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path

SYS_CLONE3 = 435


def checkpoint(behaviour: str, pid: int, image: str) -> int:
    if behaviour == "refuses":
        print(f"pid {pid}: io_uring 5: cannot be saved; close it", file=sys.stderr)
        return 4
    if behaviour == "no image":
        open(image, "w").close()
    else:
        process = Path(f"/proc/{pid}")
        how = {
            "pid": pid,
            "argv": process.joinpath("cmdline").read_text().split("\0")[:-1],
            "environment": dict(v.split("=", 1) for v in process.joinpath("environ").read_text().split("\0")[:-1]),
            "directory": os.readlink(process / "cwd"),
            "output": os.readlink(process / "fd/1"),
        }
        Path(image).write_text(json.dumps(how))
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    if behaviour != "kills nothing":
        os.kill(pid, signal.SIGKILL)
    if behaviour not in ("kills nothing", "leaves a child"):
        for child in children:
            os.kill(child, signal.SIGKILL)
    return 0


def fork_as(pid: int) -> int:
    """fork(), but the child has this pid."""
    wanted = ctypes.c_int(pid)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size
    arguments = struct.pack("10Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1)
    libc = ctypes.CDLL(None, use_errno=True)
    child = int(libc.syscall(SYS_CLONE3, arguments, len(arguments)))
    if child < 0:
        raise OSError(ctypes.get_errno(), f"clone3(set_tid={pid})")
    return child


def restart(behaviour: str, image: str) -> int:
    if behaviour == "cannot restart":
        print("image: trailer: missing; take another", file=sys.stderr)
        return 5
    how = json.loads(Path(image).read_text())
    child = fork_as(how["pid"]) if os.geteuid() == 0 else os.fork()
    if child == 0:
        os.setsid()
        os.chdir(how["directory"])
        output = os.open(how["output"], os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.execve("/usr/bin/env", ["/usr/bin/env", *how["argv"]], how["environment"])
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if behaviour == "loses output":
        Path(how["directory"], "result").write_text("part of it\n")
    if behaviour == "leaves a process" and os.fork() == 0:
        time.sleep(60)
    return 128 - status if status < 0 else 3 if behaviour == "wrong status" else status


if __name__ == "__main__":
    if sys.argv[2] == "checkpoint":
        sys.exit(checkpoint(sys.argv[1], int(sys.argv[3]), sys.argv[5]))
    sys.exit(restart(sys.argv[1], sys.argv[3]))
