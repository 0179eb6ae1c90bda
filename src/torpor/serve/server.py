"""`torpor serve`: a socket, and a child for every request (docs/serve.md).

The child is forked from a process in which torpor is loaded, so a request costs no import; it is the tracer, so nothing that it
does, or that is done to it, concerns another request. The server itself does no more than fork, wait and answer for the dead.

One child is always made beforehand, and has copied the memory that it shares with the server: 900 page faults that a small
checkpoint does not have to take, and the fork itself.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import fcntl
import gc
import os
import select
import socket
import stat
import time

from torpor import preflight
from torpor.errors import NoPermission, Obstacle, TorporError, UsageError
from torpor.linux.prefault import take_own_pages
from torpor.serve import request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

MOST = 64
"""Requests that are carried out at once; further clients wait."""

BACKLOG = 1024
"""Clients that can have connected and wait for their turn."""

GRACE = 10.0
"""Seconds that a server which ends waits for the requests that it has given up."""

ENDS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)


def serve(path: str, ready: Callable[[], None]) -> None:
    """Listen on a new socket `path` until SIGTERM, SIGINT or SIGHUP; call `ready` when it does.

    A socket of that name on which nobody listens is replaced, anything else is refused. Raises TorporError, NoPermission,
    UsageError.
    """
    _warm_up()
    with _Listener(path) as listener:
        server = _Server(listener)
        try:
            ready()
            server.run()
        finally:
            server.end()


def _warm_up() -> None:
    """Load what is loaded late, and keep the collector from touching, and so copying, what the children share."""
    import queue
    import threading

    assert queue and threading
    preflight.kernel()  # asks the kernel once for what each child would have to ask it
    gc.collect()
    gc.freeze()
    gc.enable()  # the command line has switched it off: this one lives long


class _Listener:
    """The listening socket and its name, as a context manager that removes it."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            directory = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # Two servers that find the same stale socket would each replace the other's.
                fcntl.flock(directory, fcntl.LOCK_EX)
                self._listen(path)
            finally:
                os.close(directory)
        except OSError as error:
            self.socket.close()
            if "too long" in str(error) and error.errno is None:
                raise UsageError(Obstacle(path, "the name of a socket has at most 107 bytes (unix(7))", "choose another")) from None
            kind = NoPermission if error.errno in (errno.EACCES, errno.EPERM) else TorporError
            raise kind(Obstacle(path, f"cannot listen there: {error.strerror}", "choose another place")) from None
        except BaseException:
            self.socket.close()
            raise

    def _listen(self, path: str) -> None:
        try:
            self._bind()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._remove_stale(path)
            self._bind()
        self.socket.listen(BACKLOG)
        found = os.lstat(self._path)
        self._identity = found.st_dev, found.st_ino

    def _bind(self) -> None:
        before = os.umask(0o177)  # nobody else can connect, from the first instant
        try:
            self.socket.bind(self._path)
        finally:
            os.umask(before)

    def _remove_stale(self, path: str) -> None:
        """Remove a socket of ours that nobody listens on. Raises TorporError for everything else."""
        found = os.lstat(self._path)
        if not stat.S_ISSOCK(found.st_mode):
            raise TorporError(Obstacle(path, "there is such a file, and it is no socket", "choose another name"))
        if found.st_uid != os.geteuid():
            raise TorporError(Obstacle(path, f"it is a socket of user {found.st_uid}", "choose another name"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
            answer = probe.connect_ex(self._path)
        if answer != errno.ECONNREFUSED:
            raise TorporError(Obstacle(path, "a server listens there already", "use that one, or end it"))
        os.unlink(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)
        except OSError:
            pass  # somebody else has removed it
        self.socket.close()


class _Spare:
    """A child that waits for a client. `early`: there is none yet, and time to prepare."""

    def __init__(self, *, early: bool) -> None:
        self._channel, theirs = socket.socketpair()
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, ENDS)  # `attend` lets them in again
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become_child(theirs, early)
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        self.pidfd = os.pidfd_open(self.pid)

    def give(self, client: socket.socket) -> None:
        """Have it carry out what a client asks for. Raises OSError if it has died."""
        with self._channel:
            socket.send_fds(self._channel, [b"!"], [client.fileno()])

    def end(self) -> None:
        """It is not needed, or has been killed."""
        os.kill(self.pid, _signal.SIGKILL)
        self._channel.close()
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def _become_child(channel: socket.socket, early: bool) -> None:
    """Keep nothing of the server's but what is loaded, wait for a client, and attend to it. Does not return."""
    try:
        gc.disable()
        os.setsid()  # a restarted program must not end with the server's terminal
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        mine = channel.detach()
        os.closerange(3, mine)
        os.closerange(mine + 1, 1 << 20)
        os.chdir("/")
        if early:
            take_own_pages()
        with socket.socket(fileno=mine) as channel:
            _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            client = socket.socket(fileno=descriptors[0])
            client.setblocking(True)
            os.register_at_fork(after_in_child=client.close)  # the keeper of a restarted program is not to hold it
            request.attend(client)
        os._exit(0)  # the server has ended
    finally:
        os._exit(1)


class _Server:
    """The loop: clients, children, and the signal that ends it."""

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener.socket
        self._poll = select.poll()
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """pidfd -> (process id, its client)."""
        self._clients: dict[int, int] = {}
        """Descriptor of a client that has not gone -> process id of its child."""
        self._spare: _Spare | None = None
        self._told, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(into)
        for number in ENDS:
            _signal.signal(number, lambda number, frame: None)  # the byte in the pipe is what counts

    def run(self) -> None:
        """Serve until a signal ends it."""
        self._poll.register(self._told, select.POLLIN)
        self._poll.register(self._listener, select.POLLIN)
        self._make_spare()
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._told:
                    return
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._look_at(fd)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has gone again, or we are short of descriptors for a moment
        try:
            child = self._give(client)
        except OSError as error:  # no more processes
            reason = f"no process can be made for it: {error.strerror}"
            _answer(client, TorporError(Obstacle("request", reason, "try again later")))
            return
        self._children[child.pidfd] = child.pid, client
        self._clients[client.fileno()] = child.pid
        self._poll.register(child.pidfd, select.POLLIN)
        self._poll.register(client, 0)  # tells of nothing but that it has gone
        if len(self._children) == MOST:
            self._poll.unregister(self._listener)

    def _give(self, client: socket.socket) -> _Spare:
        """Give a client to the spare child, or to a new one where there is none, or it has been killed."""
        spare, self._spare = self._spare, None
        if spare:
            try:
                spare.give(client)
                return spare
            except OSError:
                spare.end()
        spare = _Spare(early=False)
        spare.give(client)
        return spare

    def _make_spare(self) -> None:
        try:
            self._spare = _Spare(early=True)
        except OSError:
            self._spare = None  # the next client will be told, if it lasts

    def _look_at(self, fd: int) -> None:
        """A child has ended, or a client has gone."""
        if fd in self._children:
            self._bury(fd)
        elif fd in self._clients:
            self._poll.unregister(fd)
            os.kill(self._clients.pop(fd), _signal.SIGINT)

    def _bury(self, pidfd: int) -> None:
        pid, client = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        if self._clients.pop(client.fileno(), 0):
            self._poll.unregister(client)
        if status:
            how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit status {os.WEXITSTATUS(status)}"
            _answer(client, TorporError(Obstacle("request", f"the process that carried it out has died ({how})", "try again")))
        else:
            client.close()
        if len(self._children) == MOST - 1:
            self._poll.register(self._listener, select.POLLIN)
        if not self._spare:  # only now: a request that is under way may need the CPUs
            self._make_spare()

    def end(self) -> None:
        """Give up what is being carried out, and wait for that for GRACE seconds."""
        if self._spare:
            self._spare.end()
        for pid, _ in self._children.values():
            os.kill(pid, _signal.SIGINT)
        for fd in self._clients:
            self._poll.unregister(fd)  # whoever goes now has been given up already
        self._clients.clear()
        self._poll.unregister(self._told)
        if len(self._children) < MOST:
            self._poll.unregister(self._listener)
        deadline = time.monotonic() + GRACE
        while self._children and (left := deadline - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(1000 * left):
                self._bury_last(fd)

    def _bury_last(self, pidfd: int) -> None:
        pid, client = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        if os.waitpid(pid, 0)[1]:
            _answer(client, request.given_up())
        else:
            client.close()


def _answer(client: socket.socket, error: TorporError) -> None:
    """Say what a child could not say any more, if it can be said at once."""
    with client:
        client.setblocking(False)
        try:
            request.send(client, request.refusal(error))
        except OSError:
            pass
