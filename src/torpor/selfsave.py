"""Self-checkpoint (R-A1): a program asks for its own image, and the call returns twice, like fork(2).

The program runs `torpor checkpoint --self` as a child. The image has the whole tree but that child; in its place stands a process
that has just ended with exit status 3, so that the restarted program finds a child to wait for, and learns which of the two it is.
"""

from __future__ import annotations

import os
import sys

from torpor.errors import Obstacle, TorporError

TYPE_CHECKING = False

RESTARTED = 3
"""The exit status that the restarted program sees."""


def checkpoint_parent(output: str) -> None:
    """Save the program that has started this process, without this process. Raises TorporError."""
    from torpor.checkpoint import checkpoint

    checkpoint(os.getppid(), output, absent={os.getpid(): RESTARTED << 8})


def checkpoint_self(path: str | os.PathLike[str]) -> int:
    """Save the calling program and all its children into the file `path`.

    Returns a number > 0 in the program that goes on and 0 in the restarted one. Raises TorporError when no image was taken.
    """
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        code = f"import sys; sys.path.insert(0, {here!r}); from torpor.cli import command; command()"
        words = [sys.executable, "-S", "-c", code, "checkpoint", "--self", "-o", os.fspath(path)]
        actions = [(os.POSIX_SPAWN_DUP2, into, 2)]
        helper = os.posix_spawn(sys.executable, words, os.environ, file_actions=actions)
        os.close(into)
        into = -1
        said = b""
        while part := os.read(out, 65536):
            said += part
        _, status = os.waitpid(helper, 0)
    finally:
        os.close(out)
        if into >= 0:
            os.close(into)
    code_ = os.waitstatus_to_exitcode(status)
    if code_ == 0:
        return helper
    if code_ == RESTARTED:
        return 0
    text = said.decode("utf-8", "replace").strip().removeprefix("torpor: ") or f"the helper ended with status {code_}"
    raise TorporError(Obstacle("checkpoint of the program itself", text))
