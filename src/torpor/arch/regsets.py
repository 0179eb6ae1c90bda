"""What the register sets of all kinds of task share: the mask that announces their records, the check of all values."""

from __future__ import annotations

import errno

from torpor.arch.masks import in_order, mask_of
from torpor.arch.rules import Facts, faults
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from torpor.arch.contract import Room
    from torpor.arch.masks import State
    from torpor.arch.rules import Rules
    from torpor.image.record import Record

ABSENT = (errno.ENODEV, errno.EINVAL, errno.EIO, errno.ENODATA)
"""How kernels say that they have no such register set, not for this kind of task, or not for a thread that has never used it."""


def get(tid: int, note: int) -> bytes:
    """A register set, or nothing where this CPU, kernel, kind of task or thread has none."""
    try:
        return ptrace.get_regset(tid, note)
    except OSError as error:
        if error.errno in ABSENT:
            return b""
        raise


class Regsets:
    """The register records of the threads of one kind of task: the part of `RegisterSets` that a family may leave as it is."""

    __slots__ = ()

    general: type[Record]
    """The record that every thread has, first of all, ..."""
    word: int
    """... of registers with so many bytes, ..."""
    ip: str
    call: str
    """... two of which are the instruction pointer and the number of the call that the thread is in ..."""
    generals: Collection[type[Record]]
    """... and those of all kinds of task of the family: only one of them is among a thread's records."""
    states: Mapping[type[Record], State]
    rules: Rules

    def instruction_pointer(self, tid: int) -> int:
        """Where a stopped thread goes on."""
        return self.read_general(tid)[self.ip]

    def read_general(self, tid: int) -> dict[str, int]:
        """The general registers of a stopped thread, by name."""
        raise NotImplementedError

    def read(self, tid: int) -> list[Record]:
        """Every register record of a stopped thread in ascending bit order, the general one first."""
        raise NotImplementedError

    def capture(self, tid: int) -> object:
        """All but the general registers, as quickly as they can be taken: what `decode` makes records of, perhaps later."""
        return self.read(tid)[1:]

    def decode(self, captured: Any) -> list[Record]:
        """See `capture`."""
        found: list[Record] = captured
        return found

    def knows(self, record: Record) -> bool:
        """Whether `record` is one of registers."""
        return type(record) in self.states

    def mask(self, records: Sequence[Record]) -> int:
        """The record mask that announces `records` (R-B5)."""
        return mask_of(records, self.states)

    def room(self, records: Sequence[Record]) -> Room | None:
        """Nothing: the kernel has room for all registers of every thread."""
        return None

    def dropped_by_calls(self, tid: int) -> bytes:
        """Nothing: a system call keeps all registers but those that it is said to change."""
        return b""

    def give_dropped(self, tid: int, dropped: bytes) -> None:
        """Give back what `dropped_by_calls` has found."""

    def validate(
        self,
        records: Sequence[Record],
        *,
        user_limit: int,
        is_executable: Callable[[int], bool],
        is_mapped: Callable[[int], bool],
        syscall_before: Callable[[int], bool],
    ) -> list[str]:
        """Everything that is wrong with these records, a sentence each that names the register (R-D1).

        `user_limit`: the first address that no program of this kind can use. The three functions answer for the memory
        that the image describes: is this address executable, is it mapped, does a system call instruction end here.
        """
        if not in_order(records, self.states):
            return ["the register records are unknown, repeated or out of order"]
        if [type(record) for record in records if type(record) in self.generals] != [self.general]:
            return [f"the thread does not have exactly one record of {8 * self.word}-bit general registers"]
        facts = self.facts(records, user_limit, is_executable, is_mapped, syscall_before)
        return [fault for record in records for fault in faults(record, self.rules[type(record)], facts)]

    def facts(
        self,
        records: Sequence[Record],
        user_limit: int,
        is_executable: Callable[[int], bool],
        is_mapped: Callable[[int], bool],
        syscall_before: Callable[[int], bool],
    ) -> Facts:
        """What the rules of this kind of task look at."""
        facts = Facts(user_limit, is_executable, syscall_before)
        facts.word, facts.ip, facts.call = self.word, getattr(records[0], self.ip), getattr(records[0], self.call)
        return facts
