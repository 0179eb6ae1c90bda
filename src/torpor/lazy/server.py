"""Brings memory to a tree that runs already: what is asked for at once, the rest behind, each chunk verified before it is given.

One thread *serves* what is asked for; others *load*: they read chunks and hash them, one after the other, and put them into place.
Only who has the *turn* reads what the kernel tells of the address spaces and puts pages into them, so that everything is done in
one order. The image is read by `Image.data` and by nothing else.
"""

from __future__ import annotations

import errno
import os
import select
import threading

from torpor.errors import Obstacle, TorporError, Unsupported
from torpor.lazy.guard import Guard, end_tree, log
from torpor.lazy.space import ZEROS, Space
from torpor.linux import libc, pidfd, procfs, sched, userfaultfd
from torpor.linux.libc import PAGE
from torpor.linux.memory import Room

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from torpor.image.chain import Source
    from torpor.image.reader import Image, Needed
    from torpor.lazy.space import Piece
    from torpor.linux.userfaultfd import Message
    from torpor.tasks.remote import Remote

AT_ONCE = 1 << 20
"""Bytes that are put into an address space by one call: for so long, some 0.3 ms, nobody can change it."""
ZEROS_AT_ONCE = 1 << 16
LOADERS = 2
RLIMIT_NOFILE = 7


class _Changing(Exception):
    """The address space is being changed; first it must be known how."""


class _Gone(Exception):
    """The address space has ended."""


class Turn:
    """A lock. Who has it and cannot follow what has happened is the last to have had it: `problem` says why, and so is raised."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.problem: TorporError | None = None

    def __enter__(self) -> None:
        self.lock.acquire()
        if self.problem:
            self.lock.release()
            raise self.problem

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error:
            self.problem = self.problem or _reason(error)
        self.lock.release()


def refusal() -> tuple[Obstacle, bool] | None:
    """Why this kernel, or this user, cannot have a lazy restart, and whether it is the user; None if it can be."""
    remedy = "leave --lazy away: the program then runs when all of its memory is there"
    try:
        fd = userfaultfd.create()
    except OSError as error:
        if error.errno == errno.EPERM:
            return _not_allowed(remedy), True
        return Obstacle("kernel", f"it has no userfaultfd(2) ({error.strerror})", remedy), False
    try:
        userfaultfd.enable(fd)
        return None
    except OSError as error:
        if error.errno == errno.EPERM:
            return _not_allowed(remedy), True
    finally:
        os.close(fd)
    fd = userfaultfd.create()
    try:
        offered = userfaultfd.offered(fd)
    finally:
        os.close(fd)
    missing = ", ".join(name for bit, name in userfaultfd.FEATURES.items() if not offered >> bit & 1)
    return Obstacle("kernel", f"its userfaultfd(2) lacks {missing}", remedy), False


def _not_allowed(remedy: str) -> Obstacle:
    reason = "the kernel does not let this user serve what it touches itself in a program's memory (CAP_SYS_PTRACE)"
    return Obstacle("userfaultfd", reason, remedy)


class Server:
    """Everything about one lazy restart, in the process that makes the tree: `add` and `serve` while it is made, `go` when it is
    complete, then `finish`; or `abandon`.
    """

    def __init__(self, image: Image, taken: Iterable[int]) -> None:
        """`taken`: the ids of the tree's tasks, none of which may be used for another purpose. Raises OSError."""
        self.failure: TorporError | None = None
        self._image, self._taken = image, frozenset(taken)
        self._guard = Guard(self._taken)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._tree: list[tuple[int, int]] = []
        self._spaces: dict[int, Space] = {}
        self._poll = select.poll()
        self._asked: list[tuple[Space, int]] = []
        """Pages that threads wait for, and that have not been looked at."""
        self._chunks: list[Needed] = []
        self._numbers: dict[tuple[int, int], int] = {}
        """Which of them a chunk of an image is; two address spaces may have pages of the same."""
        self._states: list[bool] = []
        """Whether somebody loads a chunk, or has."""
        self._lock = threading.Lock()  # of _states, _next
        self._turn = Turn()
        """Held by the thread that reads what has happened to the address spaces, or puts pages into them."""
        self._own: Room | None = None
        self._rooms: list[Room] = []
        self._next = 0
        self._given = 0
        self._threads: list[threading.Thread] = []
        self._stop = self._running = False
        self._processors: list[int] = []

    # -- while the tree is made

    def add(self, remote: Remote, ranges: Sequence[tuple[int, int]], pages: Iterable[Source]) -> None:
        """Serve these ranges (start, end) of the process of `remote`, whole mappings without a page. Raises OSError.

        `pages`: where their pages come from.
        """
        number = remote.call("userfaultfd", userfaultfd.FLAGS)
        fd = pidfd.getfd(remote.thread.process.pid, number)
        remote.call("close", number)
        pid = remote.thread.process.pid
        self._spaces[fd] = Space(fd, _pieces(ranges, self._wanted(pages)), lambda: procfs.threads(pid) == [pid])
        userfaultfd.enable(fd)
        for start, end in ranges:
            userfaultfd.register(fd, start, end - start)

    def _wanted(self, pages: Iterable[Source]) -> list[Piece]:
        """What of the chunks belongs where, ascending; these are ours from now on."""
        found: list[Piece] = []
        for source in pages:
            number = self._numbers.setdefault((id(source.image), source.chunk), len(self._chunks))
            if number == len(self._chunks):
                self._chunks.append((source.image, source.record, source.offset))
                self._states.append(False)
            found += [(start, start + length, number, offset) for start, length, offset in source.runs]
        found.sort()
        return found

    def serve(self, processors: Iterable[int]) -> None:
        """Begin to give what is asked for: the kernel itself touches memory when threads get what is theirs (rseq(2)).

        On any of `processors`: the thread that makes the tree keeps to one.
        """
        self._processors = sorted(processors)
        _, hard = procfs.limits(os.getpid())[RLIMIT_NOFILE]
        libc.set_limit(RLIMIT_NOFILE, hard, hard)  # every fork of the program brings another descriptor
        decided = threading.Event()
        began: list[threading.Thread] = []
        while not began or began[-1].native_id in self._taken:
            thread = threading.Thread(target=self._serve_if_last, args=(began, decided), daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # So it is with Linux 6.1, in copy_process() of kernel/fork.c.
                reason = "it gives no thread to a process whose children will have other clocks than itself"
                raise Unsupported(Obstacle("kernel", reason, "leave --lazy away, or say --pids namespace")) from None
            began.append(thread)
        decided.set()
        for thread in began[:-1]:
            thread.join()
        self._threads.append(began[-1])

    def go(self, born: Sequence[int]) -> None:
        """The tree, with the processes `born`, is about to run: from here on it is ended if its memory cannot be brought."""
        self._tree += [(pid, pidfd.open(pid)) for pid in born]
        self._guard.tell(self._tree)
        if self.failure:
            raise self.failure

    def stream(self) -> None:
        """Bring all the rest."""
        self._running = True
        for index in range(LOADERS):
            # They wake each other, and the kernel brings who is woken to the processor of who wakes it: left to it, both share
            # one as a rule, and a program that computes has another one to itself.
            part = self._processors[index::LOADERS] or self._processors
            thread = threading.Thread(target=self._load, args=(part,), name="torpor loads", daemon=True)
            thread.start()
            self._threads.append(thread)
        os.eventfd_write(self._wake, 1)

    # -- the end

    def abandon(self) -> None:
        """There is no tree any more."""
        self._stop = True
        self._join()

    def finish(self) -> None:
        """Wait until everything has come, or is not wanted any more. Raises TorporError when it could not be brought."""
        self._join()
        self._image.close()
        if self.failure:
            raise self.failure

    @staticmethod
    def log(error: TorporError) -> None:
        """Say it where those look whom no command stands beside."""
        for obstacle in error.obstacles:
            log(obstacle)

    def _join(self) -> None:
        """Wait for the threads, and leave nothing open."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join()
        if not self._threads:
            self._let_go()
        for _, fd in self._tree:
            os.close(fd)
        os.close(self._wake)
        self._wake = -1

    def _let_go(self) -> None:
        """From here on the kernel gives zeros for what is missing: what has been thrown away, or was never there."""
        self._guard.dismiss()
        for fd in self._spaces:
            os.close(fd)
        self._spaces.clear()

    # -- the thread that serves

    def _serve_if_last(self, began: list[threading.Thread], decided: threading.Event) -> None:
        """The thread that serves, unless another one was begun after it, because it has an id of the tree's."""
        decided.wait()
        if began[-1] is not threading.current_thread():
            return
        try:
            sched.set_affinity(0, self._processors)
            self._serve()
        except BaseException as error:
            self._fail(_reason(error))
        finally:
            self._stop = True
            for thread in self._threads[1:]:
                thread.join()
            self._let_go()
            for room in self._rooms:
                room.free()

    def _fail(self, error: TorporError) -> None:
        """End the tree, and only then let go of it."""
        ended = Obstacle("memory", "not all of it could be brought, so the program was ended", "restart it from a whole image")
        self.failure = type(error)([*error.obstacles, ended])
        self._stop = True
        with self._turn.lock:
            end_tree(self._tree, [space.fd for space in self._spaces.values()])
            self._spaces.clear()

    def _serve(self) -> None:
        for fd in (self._wake, *self._spaces):
            self._poll.register(fd, select.POLLIN)
        while not self._stop:
            ready = self._poll.poll()
            with self._turn:
                for fd, _ in ready:
                    if fd == self._wake:
                        os.eventfd_read(fd)
                    elif fd in self._spaces:
                        self._hear(self._spaces[fd])
                self._answer()
                if self._running and (self._given == len(self._chunks) or not self._spaces):
                    return

    def _answer(self) -> None:
        """Bring what threads wait for."""
        for space, address in self._asked:
            self._bring(space, address & -PAGE)
        self._asked.clear()

    def _hear(self, space: Space, *, wait: bool = False) -> None:
        """Read what has happened to an address space, and follow its changes. `wait`: something has, perhaps not told yet."""
        changes: list[Message] = []
        alone = space.alone()  # now and in the end, or the last of two threads may have ended meanwhile
        while True:
            for message in userfaultfd.read(space.fd):
                if message.kind == userfaultfd.PAGEFAULT:
                    self._asked.append((space, message.a))
                else:
                    changes.append(message)
            # Nothing can be put there before all that happens at the moment has been read: so it is looked at together.
            if not (changes or wait) or not userfaultfd.changing(space.fd):
                break
            only = select.poll()
            only.register(space.fd, select.POLLIN)
            only.poll(1)
        try:
            children = space.apply(changes, alone)
        except TorporError:
            born = [message.a for message in changes if message.kind == userfaultfd.FORK]
            self._spaces |= {fd: Space(fd, ()) for fd in born}  # which are to end as well
            raise
        for child in children:
            self._spaces[child.fd] = child
            self._poll.register(child.fd, select.POLLIN)
            os.eventfd_write(self._wake, 1)  # the thread that serves may be waiting without it

    def _drop(self, space: Space) -> None:
        """Its process has ended, or executes another program."""
        if self._spaces.pop(space.fd, None):
            self._poll.unregister(space.fd)
            os.close(space.fd)
            os.eventfd_write(self._wake, 1)  # if it was the last there is nothing to be served any more

    def _bring(self, space: Space, page: int) -> None:
        """A thread waits for a page."""
        while self._spaces.get(space.fd) is space:
            piece = space.at(page)
            try:
                if piece is None or piece[2] == ZEROS or piece[2] in space.given:
                    self._zero(space, page, piece)
                elif self._take(piece[2]):
                    number = piece[2]
                    self._own = self._own or self._room()
                    self._read(number, self._own)
                    try:
                        self._copy(space.fd, page, page + PAGE, self._own.address + piece[3] + page - piece[0], [])
                    except (_Changing, _Gone):
                        pass  # which is looked at with the rest of the chunk
                    self._give(number, self._own)
                return  # or a thread has it in hand, and it will be given with the rest of its chunk
            except _Changing:
                self._hear(space, wait=True)
            except _Gone:
                self._drop(space)

    def _zero(self, space: Space, page: int, piece: Piece | None) -> None:
        """Give a page that holds zeros, and some behind it that do."""
        end = min((page | ZEROS_AT_ONCE - 1) + 1, piece[1]) if piece and piece[2] == ZEROS else page + PAGE
        done, error = userfaultfd.zero(space.fd, page, end - page)
        if not done and error == errno.ENOENT and end - page > PAGE:
            done, error = userfaultfd.zero(space.fd, page, PAGE)  # the mapping was divided
        if done:
            return
        if error in (errno.EEXIST, errno.ENOENT):  # it is there; or the program has nothing there any more
            userfaultfd.wake(space.fd, page, PAGE)
        else:
            _raise(error)

    def _give(self, number: int, room: Room) -> None:
        """Put a chunk to where it belongs, in all address spaces that lack it."""
        while lacking := [space for space in self._spaces.values() if number not in space.given]:
            for space in lacking:
                self._give_to(space, number, room.address)
        self._given += 1

    def _give_to(self, space: Space, number: int, source: int) -> None:
        while self._spaces.get(space.fd) is space:
            done: list[tuple[int, int]] = []
            try:
                for start, end, _, offset in space.of_chunk(number):
                    self._copy(space.fd, start, end, source + offset, done)
                space.given.add(number)
                return
            except _Changing:
                for start, end in done:
                    space.settle(start, end)
                self._hear(space, wait=True)
            except _Gone:
                self._drop(space)

    def _copy(self, fd: int, start: int, end: int, source: int, done: list[tuple[int, int]]) -> None:
        """Fill the range where it lacks pages; what has been is added to `done`, always. Raises _Changing, _Gone, OSError."""
        at, step = start, AT_ONCE
        try:
            while at < end:
                length = min(step, end - at)
                count, error = userfaultfd.copy(fd, at, source + at - start, length)
                at += count
                if count:
                    step = AT_ONCE
                elif error == errno.EEXIST:
                    at += PAGE
                elif error == errno.ENOENT and userfaultfd.changing(fd):
                    # It has been moved away since the kernel looked whether anything is (mm/userfaultfd.c, mfill_atomic()).
                    raise _Changing
                elif error == errno.ENOENT and length > PAGE:
                    step = max(length // 2 & -PAGE, PAGE)  # the program has divided the mapping, or unmapped a part of it
                elif error == errno.ENOENT:
                    at += PAGE
                else:
                    _raise(error)
        finally:
            if at > start:
                done.append((start, at))

    # -- the threads that load

    def _load(self, processors: Iterable[int]) -> None:
        try:
            sched.set_affinity(0, processors)
            room = self._room()
            while not self._stop and (number := self._take_next()) is not None:
                self._read(number, room)
                with self._turn:
                    if not self._stop:
                        self._give(number, room)
                        self._answer()
        except BaseException as error:
            self._turn.problem = self._turn.problem or _reason(error)
        os.eventfd_write(self._wake, 1)

    def _take(self, number: int) -> bool:
        """Whether nobody has loaded this chunk; the caller does, then, and the rest is loaded from there on."""
        with self._lock:
            if self._states[number]:
                return False
            self._states[number] = True
            self._next = number + 1
            return True

    def _take_next(self) -> int | None:
        """The next chunk that nobody has loaded."""
        with self._lock:
            count = len(self._states)
            for index in range(self._next, self._next + count):
                if not self._states[index % count]:
                    self._states[index % count] = True
                    self._next = index % count + 1
                    return index % count
            return None

    def _read(self, number: int, room: Room) -> None:
        """Have a chunk's verified data in `room`. Raises TorporError."""
        image, record, offset = self._chunks[number]
        image.data(record, offset, room.view)

    def _room(self) -> Room:
        """Room for any of the chunks."""
        room = Room(max((record.length for _, record, _ in self._chunks), default=0))
        self._rooms.append(room)
        return room


def _pieces(ranges: Sequence[tuple[int, int]], wanted: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces of an address space: `wanted`, ascending, and what of `ranges` is between them."""
    waiting = iter(wanted)
    part = next(waiting, None)
    for start, end in ranges:
        while part and part[0] < end:
            if start < part[0]:
                yield start, part[0], ZEROS, 0
            yield part
            start, part = part[1], next(waiting, None)
        if start < end:
            yield start, end, ZEROS, 0


def _reason(error: BaseException) -> TorporError:
    """What a thread that brings memory has to say of what stopped it."""
    if isinstance(error, TorporError):
        return error
    if isinstance(error, OSError):
        return TorporError(Obstacle("memory", f"it cannot be put into place: {error.strerror}"))
    return TorporError(Obstacle("restart", f"{type(error).__name__}: {error}", "this is a bug"))


def _raise(error: int) -> None:
    if error == errno.EAGAIN:
        raise _Changing
    if error == errno.ESRCH:
        raise _Gone
    raise OSError(error, os.strerror(error))
