"""An address space whose memory is on its way: where each piece of the image belongs, also after the program has moved it.

The kernel tells what happens to the address space in messages. They come in the order in which they were sent, and each thread
goes on when its message has been read: what one thread does because of what another one has done is told in the right order. But
a change is made before it is told, so what happens at the same time may be told the wrong way round. That matters where memory is
moved or grows to an address that has just become free, and what happens to it there is heard of before the news that it has; and
where a fork may be of before or after a change. Then nobody can tell what belongs where, and the program is ended rather than given
the wrong memory.
"""

from __future__ import annotations

from bisect import bisect_right

from torpor.errors import Obstacle, TorporError
from torpor.linux.userfaultfd import FORK, REMAP, REMOVE, UNMAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torpor.linux.userfaultfd import Message

    Piece = tuple[int, int, int, int]
    """First address, address behind the last, number of the chunk (or ZEROS), offset in its data."""

ZEROS = -1
_LAST = 1 << 64


class Space:
    """One address space. `fd` is its userfaultfd; `given` are the chunks of which it has all that it shall have."""

    __slots__ = ("_by_chunk", "_pieces", "alone", "fd", "given")

    def __init__(self, fd: int, pieces: Iterable[Piece], alone: Callable[[], bool] = lambda: False) -> None:
        """`pieces`: what is registered, ascending; what has no chunk is ZEROS. `alone`: whether surely only one thread is in it."""
        self.fd, self.alone = fd, alone
        self.given: set[int] = set()
        self._pieces = list(pieces)
        self._by_chunk: dict[int, list[Piece]] | None = None

    def of_chunk(self, chunk: int) -> list[Piece]:
        """Where the data of a chunk belongs."""
        if self._by_chunk is None:
            self._by_chunk = {}
            for piece in self._pieces:
                self._by_chunk.setdefault(piece[2], []).append(piece)
        return self._by_chunk.get(chunk, [])

    def at(self, address: int) -> Piece | None:
        """The piece that belongs at an address; None for memory that has come to the program since."""
        index = bisect_right(self._pieces, (address, _LAST)) - 1
        if index >= 0 and address < self._pieces[index][1]:
            return self._pieces[index]
        return None

    def settle(self, start: int, end: int) -> None:
        """The range has what it shall have: where a page of it is missing from now on, the program has thrown it away."""
        self._put((a, b, ZEROS, 0) for a, b, _, _ in self._cut(start, end))

    def apply(self, messages: list[Message], alone: bool) -> list[Space]:
        """Follow what has happened at the same time. The spaces of forked children. Raises TorporError: nobody can tell what.

        `alone`: whether there was one thread when it began.
        """
        if len(messages) > 1 and _ambiguous(messages) and not (alone and self.alone()):
            raise TorporError(
                Obstacle(
                    "memory",
                    "two threads of the program have moved it about in the same instant, in an order that the kernel does not tell",
                    "restart it without --lazy",
                )
            )
        children: list[Space] = []
        for message in messages:
            start, end = _from(message)
            if message.kind == FORK:
                child = Space(message.a, self._pieces)
                child.given = set(self.given)
                children.append(child)
            elif message.kind == REMOVE:
                self.settle(start, end)
            elif message.kind == UNMAP:
                self._cut(start, end)
            elif message.kind == REMAP:
                target = message.b
                pieces = self._cut(start, end)
                self._cut(target, target + message.c)
                self._put((a - start + target, b - start + target, chunk, offset) for a, b, chunk, offset in pieces)
        return children

    def _first(self, address: int) -> int:
        """The index of the first piece that ends behind an address."""
        index = bisect_right(self._pieces, (address, _LAST))
        return index - 1 if index and self._pieces[index - 1][1] > address else index

    def _within(self, start: int, end: int) -> list[Piece]:
        """The pieces that lie in a range, as far as they do."""
        found = []
        for index in range(self._first(start), len(self._pieces)):
            a, b, chunk, offset = self._pieces[index]
            if a >= end:
                break
            low = max(a, start)
            found.append((low, min(b, end), chunk, offset + low - a if chunk != ZEROS else 0))
        return found

    def _cut(self, start: int, end: int) -> list[Piece]:
        """Take what lies in a range out."""
        taken = self._within(start, end)
        if taken:
            index = self._first(start)
            left: list[Piece] = []
            for a, b, chunk, offset in self._pieces[index : index + len(taken)]:
                if a < start:
                    left.append((a, start, chunk, offset))
                if b > end:
                    left.append((end, b, chunk, offset + end - a if chunk != ZEROS else 0))
            self._pieces[index : index + len(taken)] = left
            self._by_chunk = None
        return taken

    def _put(self, pieces: Iterable[Piece]) -> None:
        """Put ascending pieces into a range where there are none."""
        new = list(pieces)
        if new:
            index = bisect_right(self._pieces, new[0])
            self._pieces[index:index] = new
            self._by_chunk = None


def _ambiguous(messages: list[Message]) -> bool:
    """Whether it matters in which order they are followed, and they may have been told in another one than they happened in.

    What grows does so without a word, also to where something was before that has just been moved or unmapped: so the news of that
    may come when the place has been unmapped, discarded, moved or forked again.
    """
    for index, one in enumerate(messages):
        if one.kind == FORK:
            if any(other.kind != FORK for other in messages):
                return True
        elif one.kind == REMAP:
            for at, other in enumerate(messages):
                if other is one or other.kind == FORK:
                    continue
                ranges = [_from(other), (other.b, other.b + other.c)] if other.kind == REMAP else [_from(other)]
                if any(one.b < end and start < one.b + one.c for start, end in ranges):
                    return True
                # What was left of it has been unmapped behind it (MREMAP_DONTUNMAP): nothing can grow to its very beginning.
                behind = other.kind == UNMAP and at > index and other.a <= one.a
                if not behind and any(one.a < end and start < one.a + one.c for start, end in ranges):
                    return True
    return False


def _from(message: Message) -> tuple[int, int]:
    """The range that a message is about, or that it moves."""
    return message.a, message.a + message.c if message.kind == REMAP else message.b
