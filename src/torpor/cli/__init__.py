"""The command line: one module per verb. This is the only floor that knows terminals and exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 3 restarted self, 4 cannot be saved or restarted here, 5 bad image, 6 no permission.
"""

from __future__ import annotations

import gc
import os
import sys

from torpor.errors import Obstacle, TorporError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from torpor.cli.arguments import Parsed, Verb

VERBS = {
    "checkpoint": "save a running program and all its children into a file",
    "restart": "make a saved program go on",
    "watch": "save a program again and again, each time only what has changed",
    "merge": "make one file of an image that needs earlier ones",
    "inspect": "show what is in an image",
    "verify": "read an image from end to end and check every hash",
    "check": "say what stands in the way of a checkpoint, or what this kernel can do",
    "serve": "carry out what others ask for on a socket, with everything loaded",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `torpor` with the words `argv` (sys.argv without the program's name). Returns the exit code."""
    gc.disable()  # a command lives for milliseconds, and what it makes lives as long as it does
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_usage())
            return 0 if words else 2
        if words[0] in ("-V", "--version"):
            from torpor import __version__

            print(f"torpor {__version__}")
            return 0
        verb, run = _verb(words[0])
        parsed = verb.parse(words[1:])
        if parsed.help:
            print(verb.usage())
            return 0
        return run(parsed)
    except TorporError as error:
        for obstacle in error.obstacles:
            print(f"torpor: {obstacle}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


def command() -> NoReturn:
    """Run `torpor` and end the process at once: to take the interpreter to pieces first takes 4 ms."""
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1  # the reader has gone, or the disk is full
    os._exit(code)


def _verb(name: str) -> tuple[Verb, Callable[[Parsed], int]]:
    """What a verb takes, and what runs it; only its own module is imported."""
    if name not in VERBS:
        raise UsageError(Obstacle(f"torpor {name}", "there is no such verb", "see torpor --help"))
    module = __import__(f"torpor.cli.{name}", fromlist=["VERB"])
    verb: Verb = module.VERB
    run: Callable[[Parsed], int] = module.run
    return verb, run


def _usage() -> str:
    lines = ["usage: torpor VERB ...", "", "Checkpoint and restart of running Linux programs.", ""]
    lines += [f"  {name:<12} {doc}" for name, doc in VERBS.items()]
    return "\n".join([*lines, "", "torpor VERB --help tells more."])
