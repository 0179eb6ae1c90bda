"""The client's end of `torpor serve`: one request, its descriptors, and what is answered.

It is loaded by a command that is to be faster than one that loads torpor: nothing but C modules and `plain`.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys

from torpor.errors import BadImage, NoPermission, Obstacle, TorporError, Unsupported, UsageError
from torpor.serve import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from torpor.serve.plain import Value

    Progress = Callable[[int, int], None]

PROTOCOL = 1
"""The version of the protocol (docs/serve.md)."""

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
"""What a request calls the descriptors that it brings: these, and "directory"."""

_ERRORS = {kind.__name__: kind for kind in (TorporError, UsageError, Unsupported, BadImage, NoPermission)}


def ask(server: str, request: Mapping[str, Value], progress: Progress | None = None) -> dict[str, Any]:
    """Have the server that listens on the socket `server` carry out a request; its result.

    It stands where this process stands: the current directory and the standard streams go with the request. `progress` is
    called as torpor.checkpoint does it. Raises what the same function of torpor would raise, and TorporError or NoPermission
    when there is no server, or not one of this user.
    """
    connection = _connect(server)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        brought = {"directory": here} | {name: number for name, number in STREAMS.items() if _is_open(number)}
        message: dict[str, Value] = {"torpor": PROTOCOL, **request, "descriptors": list(brought), "progress": progress is not None}
        _send(connection, plain.dumps(message).encode() + b"\n", list(brought.values()))
        return _result(server, connection, progress)
    finally:
        os.close(here)
        connection.close()


def _connect(server: str) -> _socket.socket:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(server)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            raise TorporError(Obstacle(server, "no server listens there", f"start one: torpor serve {server}")) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NoPermission(Obstacle(server, "this user may not connect to it", "start a server of your own")) from None
        raise TorporError(Obstacle(server, f"cannot connect: {error.strerror or error}", "name the socket of a server")) from None
    # It is handed this directory and these streams: not to another user.
    uid = int.from_bytes(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
    if uid != os.geteuid():
        raise NoPermission(Obstacle(server, f"its server is of user {uid}, and this is {os.geteuid()}", "start one of your own"))
    return connection


def _is_open(number: int) -> bool:
    try:
        os.get_inheritable(number)
    except OSError:
        return False
    return True


def _send(connection: _socket.socket, line: bytes, descriptors: list[int]) -> None:
    numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in descriptors)
    try:
        sent = connection.sendmsg([line], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)])
        connection.sendall(line[sent:])
    except BrokenPipeError:
        pass  # it has answered already, and why


def _result(server: str, connection: _socket.socket, progress: Progress | None) -> dict[str, Any]:
    """Read lines until the answer. Raises what it says."""
    pending = b""
    while True:
        line, newline, rest = pending.partition(b"\n")
        if not newline:
            try:
                more = connection.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                raise TorporError(Obstacle(server, "the server has ended, or was killed, before it answered", "start it again"))
            pending += more
            continue
        pending = rest
        try:
            said = plain.loads(line.decode())
        except ValueError as error:
            raise TorporError(Obstacle(server, f"what listens there is no server of torpor's ({error})")) from None
        if not isinstance(said, dict):
            raise TorporError(Obstacle(server, "what listens there is no server of torpor's"))
        at = said.get("progress")
        if isinstance(at, list) and progress:
            progress(*(int(str(number)) for number in at))
        if "exit_code" in said:
            return _outcome(said)


def _outcome(said: Mapping[str, Value]) -> dict[str, Any]:
    result, rows = said.get("result"), said.get("obstacles")
    if isinstance(result, dict):
        return result
    found = [obstacle(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    raise _ERRORS.get(str(said.get("error")), TorporError)(found or "the server gave no reason")


def obstacle(row: Mapping[str, Value]) -> Obstacle:
    """An Obstacle from what the protocol has for it."""
    pid = row.get("pid")
    words = [str(row.get(name) or "") for name in ("object", "reason", "remedy")]
    return Obstacle(*words, pid=pid if isinstance(pid, int) else None)
