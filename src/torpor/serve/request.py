"""One request to `torpor serve`, in the child that the server has forked for it: who asks, what, and the answer.

Whatever happens here happens to this process alone. Nothing that came over the socket is used before it has been checked.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import array
import json
import os
import socket
import struct
import time

from torpor import preflight
from torpor.checkpoint import checkpoint
from torpor.errors import NoPermission, Obstacle, TorporError, UsageError
from torpor.linux import procfs
from torpor.restart import restart
from torpor.serve.client import PROTOCOL, STREAMS
from torpor.verify import verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    Progress = Callable[[int, int], None]
    Result = dict[str, Any]

LONGEST = 64 << 10
"""Bytes that a request may have, its newline included."""

PATIENCE = 10.0
"""Seconds to wait for a request that is not there yet, or for a client to take its answer."""

SELDOM = 0.1
"""Seconds between two lines of progress."""

LINGER = 1.0
"""Seconds in which a client that is refused must have sent what it has to send."""

UNWIND = 2
"""Seconds in which a request that is given up must have come to its end; then it is killed. (A pipe may be full for ever.)"""

NAMESPACES = {"pid": "process ids", "mnt": "files", "user": "users"}
"""What a client must see as the server does, for its numbers and paths to mean the same."""


class _GivenUp(Exception):
    """The client has gone, or the server ends."""


# --- who


def admit(connection: socket.socket) -> None:
    """Let no one but the server's own user in; raises NoPermission (SO_PEERCRED, unix(7)).

    A process of the same user that lives in a container is not let in either: 42 is another process there.
    """
    pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        raise NoPermission(
            Obstacle("server", f"it serves user {os.geteuid()}, and this is user {uid}", "start one of your own")
        )
    try:
        strange = [what for kind, what in NAMESPACES.items() if procfs.namespace(pid, kind) != procfs.namespace(os.getpid(), kind)]
        if not os.path.samestat(os.stat(f"/proc/{pid}/root/"), os.stat("/")):
            strange.append("the root directory")
    except OSError:  # it has ended, or lives where it cannot be seen from here, or is not dumpable
        reason = "the process that has connected cannot be looked into, or has ended"
        raise NoPermission(Obstacle("client", reason, "ask from one that stays", pid=pid)) from None
    if strange:
        reason = f"it has another view of {', '.join(strange)} than the server (a container)"
        raise NoPermission(Obstacle("client", reason, "start a server inside of it", pid=pid))


# --- what


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The line of a request, and the descriptors that came with it. Raises UsageError, TorporError."""
    line, numbers = b"", array.array("i")
    deadline = time.monotonic() + PATIENCE
    while b"\n" not in line:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        room = socket.CMSG_SPACE((len(STREAMS) + 1) * numbers.itemsize)
        try:
            part, messages, flags, _ = connection.recvmsg(LONGEST, room, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise _wrong(f"no whole line within {PATIENCE:.0f} s") from None
        except OSError as error:
            raise _GivenUp from error
        for level, kind, data in messages:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
        if flags & socket.MSG_CTRUNC:
            raise _wrong(f"more than {len(STREAMS) + 1} descriptors")
        if not part:
            if not line:
                raise _GivenUp
            raise _wrong("a line that does not end")
        line += part
        if len(line.partition(b"\n")[0]) >= LONGEST:
            raise _wrong(f"a line of more than {LONGEST} bytes")
    return line.partition(b"\n")[0], list(numbers)


def read(line: bytes) -> dict[str, Any]:
    """The request in a line. Raises UsageError."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _wrong(f"no JSON ({reason})") from None
    if not isinstance(request, dict):
        raise _wrong("no JSON object")
    if type(request.get("torpor")) is not int or request["torpor"] != PROTOCOL:
        raise _wrong(f'"torpor" must be the version of the protocol, {PROTOCOL}')
    verb = request.get("verb")
    if not isinstance(verb, str) or verb not in VERBS:
        raise _wrong(f'"verb" must be one of {", ".join(VERBS)}')
    fields = VERBS[verb][1] | COMMON
    for name, value in request.items():
        if name not in fields:
            raise _wrong(f"{verb} has no field {json.dumps(name)[:80]}")
        fields[name](name, value)
    if missing := [name for name in REQUIRED[verb] if name not in request]:
        raise _wrong(f'{verb} needs "{missing[0]}"')
    return request


def _wrong(reason: str) -> UsageError:
    return UsageError(Obstacle("request", reason, "see docs/serve.md"))


def _number(name: str, value: object) -> None:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise _wrong(f'"{name}" must be a process id')


def _switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _wrong(f'"{name}" must be true or false')


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _wrong(f'"{name}" must be a string')


def _path(name: str, value: object) -> None:
    try:
        if isinstance(value, str) and value and b"\0" not in os.fsencode(value):
            return
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise _wrong(f'"{name}" must be the name of a file')


def _paths(name: str, value: object) -> None:
    if not isinstance(value, list):
        raise _wrong(f'"{name}" must be a list')
    for one in value:
        _path(name, one)


def _brought(name: str, value: object) -> None:
    known = {*STREAMS, "directory"}
    if not isinstance(value, list) or any(not isinstance(one, str) or one not in known for one in value):
        raise _wrong(f'"{name}" must be a list of {", ".join(sorted(known))}')
    if len(set(value)) != len(value):
        raise _wrong(f'"{name}" names one twice')


def _choice(*choices: str) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if value not in choices:
            raise _wrong(f'"{name}" must be one of {", ".join(choices)}')

    return check


def _version(name: str, value: object) -> None:
    """Looked at before anything else."""


# --- where


def stand(request: Mapping[str, Any], numbers: Sequence[int]) -> None:
    """Take the client's directory and standard streams for this process's, as far as it has sent them. Raises UsageError."""
    names = request.get("descriptors", [])
    if len(names) != len(numbers):
        raise _wrong(f"{len(names)} names for {len(numbers)} descriptors")
    given = dict(zip(names, numbers, strict=True))
    for key, stream in (("output", "stdout"), ("source", "stdin")):
        if request.get(key) == "-" and stream not in given:
            raise _wrong(f'"{key}" is "-", but no descriptor "{stream}" has come with it')
    used = [path for key in ("output", "source") if (path := request.get(key, "-")) != "-"]
    used += [request["parent"]] if "parent" in request else []
    relative = [path for path in (*used, *request.get("allow_changed", [])) if not path.startswith("/")]
    if relative and "directory" not in given:
        raise _wrong(f'{json.dumps(relative[0])[:80]} is relative, but no descriptor "directory" has come with it')
    # All of them are above 2: the server has something at 0, 1 and 2.
    for stream, number in STREAMS.items():
        if stream in given:
            os.dup2(given[stream], number)
    if "directory" in given:
        try:
            os.fchdir(given["directory"])
        except OSError as error:
            raise _wrong(f'"directory": {error.strerror}') from None
    for number in numbers:
        os.close(number)


# --- the verbs


def _checkpoint(request: Mapping[str, Any], progress: Progress | None) -> Result:
    options = {name: request[name] for name in ("kill", "parent", "compress") if name in request}
    return {"stood_still": checkpoint(request["pid"], request["output"], progress=progress, **options)}


def _check(request: Mapping[str, Any], progress: Progress | None) -> Result:
    if "pid" in request:
        return {"processes": preflight.look(request["pid"])}
    return {"kernel": [list(row) for row in preflight.kernel()]}


def _restart(request: Mapping[str, Any], progress: Progress | None) -> Result:
    """What has begun to come to life is not given up any more; before that, progress is reported."""

    def tell(done: int, total: int) -> None:
        if done == total:  # all is checked, and the next step is to make it
            _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        if progress:
            progress(done, total)

    options = {name: request[name] for name in ("pids", "cpu", "allow_changed") if name in request}
    program = restart(request["source"], progress=tell, **options)
    program.leave()
    return {
        "pid": program.pid, "own_pid": program.own_pid, "mode": program.mode,
        "warnings": [_row(warning) for warning in program.warnings],
    }  # fmt: skip


def _verify(request: Mapping[str, Any], progress: Progress | None) -> Result:
    return verify(request["source"], progress).facts()


Check = dict[str, "Callable[[str, object], None]"]
COMMON: Check = {"torpor": _version, "verb": _version, "descriptors": _brought, "progress": _switch}
VERBS: dict[str, tuple[Callable[[Mapping[str, Any], Progress | None], Result], Check]] = {
    "checkpoint": (
        _checkpoint,
        {"pid": _number, "output": _path, "kill": _switch, "parent": _path, "compress": _text},
    ),
    "check": (_check, {"pid": _number}),
    "restart": (
        _restart,
        {
            "source": _path,
            "pids": _choice("auto", "same", "namespace"),
            "cpu": _choice("same", "used"),
            "allow_changed": _paths,
        },
    ),
    "verify": (_verify, {"source": _path}),
}
"""Verb -> what carries it out, and its fields with what they can be."""
REQUIRED = {"checkpoint": ("pid", "output"), "check": (), "restart": ("source",), "verify": ("source",)}


# --- the answer


def attend(connection: socket.socket) -> NoReturn:
    """Read a request, carry it out, answer, end. An interrupt (SIGINT) gives the request up."""
    answer: dict[str, Any] | None = None
    heard = False
    try:
        try:
            # Back from the server's own way to hear of signals; those that came since the fork come now.
            _signal.set_wakeup_fd(-1)
            for number in (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGALRM):
                _signal.signal(number, _signal.SIG_DFL)
            _signal.signal(_signal.SIGINT, _give_up)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            admit(connection)
            line, numbers = receive(connection)
            heard = True
            request = read(line)
            stand(request, numbers)
            progress = _Teller(connection) if request.get("progress") else None
            answer = {"exit_code": 0, "result": VERBS[request["verb"]][0](request, progress)}
        except TorporError as error:
            answer = refusal(error)
        except (_GivenUp, KeyboardInterrupt):
            answer = refusal(given_up())
        except Exception as error:
            reason = f"{type(error).__name__}: {error} ({_place(error)})"
            answer = refusal(TorporError(Obstacle("request", reason, "this is a bug")))
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        connection.settimeout(PATIENCE)
        send(connection, answer)
        if not heard:
            linger(connection)
    except BaseException:
        os._exit(1)  # the server says that
    os._exit(0)


def _give_up(number: int, frame: object) -> None:
    """As Ctrl-C does; and if that does not help, as `kill` does, which harms no program either."""
    _signal.alarm(UNWIND)
    _signal.default_int_handler(number, frame)


def given_up() -> TorporError:
    """What is said to a client that still listens."""
    return TorporError(Obstacle("request", "it was given up, for the server ends", "start another one"))


class _Teller:
    """Sends lines of progress, never more than the client takes: what it does not read must not hold up a checkpoint."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SELDOM
        line = json.dumps({"torpor": PROTOCOL, "progress": [done, total]}).encode() + b"\n"
        try:
            # As little as this goes all at once or not at all (unix_stream_sendmsg).
            self._connection.send(line, socket.MSG_DONTWAIT)
        except OSError:
            pass


def refusal(error: TorporError) -> dict[str, Any]:
    """An error as an answer has it."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "torpor.errors")
    return {"exit_code": error.exit_code, "error": kind, "obstacles": [_row(one) for one in error.obstacles]}


def send(connection: socket.socket, answer: Mapping[str, Any]) -> None:
    """The last line, as far as the connection's time limit allows. Raises OSError when nobody takes it."""
    connection.sendall(json.dumps({"torpor": PROTOCOL, **answer}).encode() + b"\n")
    connection.shutdown(socket.SHUT_WR)


def linger(connection: socket.socket) -> None:
    """Let a client that is still sending come to its end: if we closed before, it would get an error instead of the answer."""
    deadline = time.monotonic() + LINGER
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(LONGEST):
                return
    except OSError:
        pass  # it has taken too long, or has gone


def _row(one: Obstacle) -> dict[str, Any]:
    return {"pid": one.pid, "object": one.object, "reason": one.reason, "remedy": one.remedy}


def _place(error: BaseException) -> str:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at is not None else "?"
