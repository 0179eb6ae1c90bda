"""Images made to do harm: a real one, read, changed in one place, and written again with every checksum right.

The program that the image is of has something of everything; see SOURCE. Nothing here checks what it writes: that is
the point.
"""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.conftest import M32, SRC
from tests.image import samples
from torpor.image.format import DataRecord
from torpor.image.kinds import Array, Blob, Choice, Field, Fixed, Flags, Ident, Pairs, Raw, Ref, Structs, Text
from torpor.image.reader import Image
from torpor.image.record import Record, Struct
from torpor.objects import plan

assert plan  # with it, every record class is known

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static int to_child[2], to_parent[2];
static char stack[65536];

static void on(int number) { (void)number; }
static void *waits(void *unused) { for (;;) pause(); return unused; }

static void child(void)
{
    char byte;
    while (read(to_child[0], &byte, 1) == 1)
        (void)!write(to_parent[1], &byte, 1);
    _exit(0);
}

int main(int count, char **argument)
{
    (void)count;
    if (pipe(to_child) || pipe(to_parent)) return 1;
    int file = open(argument[1], O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600);
    int gone = open(argument[2], O_RDWR | O_CREAT, 0600);
    int memory = memfd_create("subject", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    if (file < 0 || gone < 0 || memory < 0) return 2;
    (void)!write(file, "file", 4); (void)!write(gone, "gone", 4); (void)!write(memory, "memory", 6);
    unlink(argument[2]);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 2};
    fcntl(file, F_SETLK, &lock);
    flock(gone, LOCK_EX);
    fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK);

    struct sigaction action = {.sa_handler = on, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGALRM, &action, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_DFL); /* a shell ignores them for what it runs in the background */
    signal(SIGQUIT, SIG_DFL);
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, 0);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN); sigaddset(&blocked, SIGTERM); sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, 0);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 42});
    raise(SIGTERM);

    struct itimerval every = {{1000, 0}, {1000, 0}};
    setitimer(ITIMER_REAL, &every, 0);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value = {.sival_int = 7}};
    struct itimerspec spec = {{1000, 0}, {1000, 0}};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &spec, 0);
    if (!fork()) child();
    if (!fork()) _exit(7);
    int ticking = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), counter = eventfd(3, EFD_SEMAPHORE);
    timerfd_settime(ticking, 0, &spec, 0);
    signalfd(-1, &blocked, SFD_CLOEXEC);
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event watched = {.events = EPOLLOUT | EPOLLET, .data = {.u64 = 1 << 20}};
    epoll_ctl(set, EPOLL_CTL_ADD, counter, &watched);

    char *shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    char *both = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *mine = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared[1] = both[1] = 1;
    memset(mine, 1, 3 * 4096);
    madvise(mine, 8192, MADV_DONTDUMP);

    pthread_t thread;
    pthread_create(&thread, 0, waits, 0);
    sleep(1000000);
    (void)!write(to_child[1], "held", 4);
    for (;;) sleep(1000000);
}
"""


class Subject:
    """The program and, in `directory`, an image of it, `chained`: that needs an earlier one; `pid` is what it was."""

    def __init__(self, directory: Path, *, word: int = 8, chained: bool = False) -> None:
        self.directory, self.image = directory, directory / "image"
        source, program = directory / "subject.c", directory / "subject"
        source.write_text(SOURCE)
        options = ["gcc", "-O1", "-Wall", "-Werror", "-pthread", *(M32 if word == 4 else ())]
        subprocess.run([*options, "-o", str(program), str(source)], check=True)
        self.argv = [str(program), str(directory / "file"), str(directory / "gone")]
        with running(self.argv) as pid:
            words: list[str] = []
            if chained:
                # In another directory, so that it is named by its whole path.
                earlier = directory.with_name(directory.name + "-earlier") / "image"
                earlier.parent.mkdir()
                self._save(pid, earlier)
                words = ["--parent", str(earlier), "--compress", "zstd"]
            self._save(pid, self.image, *words)
            self.pid = pid

    def _save(self, pid: int, image: Path, *words: str) -> None:
        torpor = [sys.executable, "-m", "torpor", "checkpoint", str(pid), "-o", str(image), *words]
        done = subprocess.run(torpor, env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def environment() -> dict[str, str]:
    """Where `python -m torpor` is found."""
    return os.environ | {"PYTHONPATH": str(SRC)}


class running:
    """A program in a session of its own, with nothing open that torpor cannot save; killed at the end with its group."""

    def __init__(self, argv: list[str], *, wait: bool = True, **options: Any) -> None:
        self.wait = wait
        self.popen = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            start_new_session=True, close_fds=True, **options,
        )  # fmt: skip

    def __enter__(self) -> int:
        """Its pid; with `wait`, as soon as it has come to rest."""
        if self.wait:
            settled(self.popen.pid)
        return self.popen.pid

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # until whoever inherits its orphans has waited for them, too
            try:
                os.killpg(self.popen.pid, 9)
            except ProcessLookupError:
                break
            self.popen.poll()
            time.sleep(0.002)
        self.popen.wait()


def settled(pid: int) -> None:
    """Wait until process `pid` sleeps, and has for a while."""
    deadline, asleep = time.monotonic() + 10, 0
    while asleep < 10:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert time.monotonic() < deadline, f"process {pid} does not come to rest: {state}"
        asleep = asleep + 1 if state in "ST" else 0
        time.sleep(0.005)


# --- reading and writing ------------------------------------------------------------------------------------------


@dataclass
class Item:
    """A record, and the raw data behind it if it is a data record."""

    record: Record
    data: bytes | None = None


def read(path: Path) -> list[Item]:
    """Everything in an image but its Trailer, which `write` makes anew."""
    with Image.open(path) as image:
        offsets = {id(record): offset for record, offset in image.chunks}
        items = [Item(image.header)]
        for record in image.records:
            data = None
            if isinstance(record, DataRecord):
                buffer = bytearray(record.stored)
                image.fill(memoryview(buffer), offsets[id(record)])
                data = bytes(buffer)
            items.append(Item(record, data))
        return items


def write(items: list[Item], path: Path) -> None:
    """An image of these, with nothing checked: neither values nor references."""
    parts = []
    with mock.patch.object(Struct, "admit", lambda self, values: None):
        for item in items:
            parts.append(samples.record(item.record.type_word, item.record.pack()))
            if item.data is not None:
                parts.append(item.data)
    path.write_bytes(samples.by_hand(*parts, with_header=False))


# --- changing one value -------------------------------------------------------------------------------------------


@dataclass
class Change:
    """Another value for one field: of record number `index`, or of a struct inside of it, which `path` leads to."""

    index: int
    path: tuple[tuple[str, int], ...]  # (field with structs, number of the struct)
    field: str
    value: Any
    where: str

    def __str__(self) -> str:
        shown = hex(self.value) if isinstance(self.value, int) else repr(self.value)
        return f"{self.where}.{self.field} = {shown if len(shown) < 200 else shown[:200] + '...'}"

    def apply(self, items: list[Item]) -> list[Item]:
        """The items with the change, sharing with `items` whatever is not changed."""
        changed = list(items)
        record = copy.deepcopy(items[self.index].record)
        changed[self.index] = Item(record, items[self.index].data)
        owner: Any = record
        for name, number in self.path:
            owner = getattr(owner, name)[number]
        setattr(owner, self.field, self.value)
        return changed


def changes(items: list[Item], rng: random.Random, others: list[int]) -> Iterator[Change]:
    """Hostile values for every field of every record class in `items`, from the declarations alone.

    `others`: numbers that mean something outside, such as the ids of processes that are none of the image's business.
    """
    ids = [getattr(item.record, item.record.ident) for item in items if item.record.ident]
    by_class: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_class.setdefault(type(item.record).__name__, []).append(index)
    for name, indices in by_class.items():
        index = rng.choice(indices)
        yield from _changes(items[index].record, index, (), f"{name}[{indices.index(index)}]", rng, ids, others)


def _changes(
    owner: Struct, index: int, path: tuple[tuple[str, int], ...], where: str, rng: random.Random, ids: list[int],
    others: list[int],
) -> Iterator[Change]:  # fmt: skip
    for field in owner.declared:
        old = getattr(owner, field.name)
        seen = [old]
        for value in values(field, old, rng, ids, others):
            if value not in seen:
                seen.append(value)
                yield Change(index, path, field.name, value, where)
        if isinstance(field, Structs) and not isinstance(field, Pairs) and old:
            number = rng.randrange(len(old))
            inside = f"{where}.{field.name}[{number}]"
            yield from _changes(old[number], index, (*path, (field.name, number)), inside, rng, ids, others)


KERNEL = (0xFFFFFFFF81000000, 0xFFFF888000000000, 0x0000800000000000, 0x7FFFFFFFF000, 0xFFFFE000)
"""Addresses: of the kernel's code and memory, the first that is not canonical, and the ends of user space."""


def values(field: Field, old: Any, rng: random.Random, ids: list[int], others: list[int]) -> list[Any]:
    """Values that `field` should not have, or that should do no harm."""
    if isinstance(field, Raw):
        return [bytes(field.size), b"\xff" * field.size, rng.randbytes(field.size)]
    if isinstance(field, Ident | Ref):
        return [0, old + 1, (1 << 64) - 1, *rng.sample(ids, min(6, len(ids)))]
    if isinstance(field, Flags):
        return [1 << bit for bit in range(8 * field.size)] + [(1 << 8 * field.size) - 1, 0]
    if isinstance(field, Choice):
        return [*field.names, max(field.names) + 1, (1 << 8 * field.size) - 1]
    if isinstance(field, Fixed):
        return _numbers(8 * field.size, field.kind.startswith("i"), old, rng, others)
    if isinstance(field, Text):
        texts = ["", "/", "/nonexistent/file", "../..", "/proc/self/mem", "/dev/null", "/proc/self/fd/0"]
        return [*texts, "a\nb\x1b[2J", "\udcff", "\0", "x" * field.max, "/" + "y" * (field.max - 1), old + "x"]
    if isinstance(field, Blob):
        return [b"", bytes(len(old)), old[:-1], rng.randbytes(min(field.max, 64)), rng.randbytes(field.max)]
    if isinstance(field, Array):
        number = _numbers(8 * field.size, False, 0, rng, others)
        changed = [[*old[:at], rng.choice(number), *old[at + 1 :]] for at in range(min(len(old), 4))]
        return [[], old[:-1], old[::-1], old * 2, [0] * field.max, *changed]
    if isinstance(field, Pairs):
        at = rng.randrange(max(1, len(old)))
        strange = [pair for start, length in old[at : at + 1] for pair in _strange_pairs(start, length, rng, others)]
        return [[], old[:-1], old[::-1], old * 2, *([*old[:at], pair, *old[at + 1 :]] for pair in strange)]
    assert isinstance(field, Structs)
    return [[], old[:-1], old[1:], old[::-1], old + old[-1:], old * min(field.max, 1000) if old else []]


def _strange_pairs(first: int, second: int, rng: random.Random, others: list[int]) -> Iterator[tuple[int, int]]:
    yield from ((number, second) for number in _numbers(64, False, first, rng, others))
    yield from ((first, number) for number in _numbers(64, False, second, rng, others))


def _numbers(bits: int, signed: bool, old: int, rng: random.Random, others: list[int]) -> list[int]:
    top = 1 << bits
    found = [0, 1, 2, 63, 64, 4095, 4096, top - 1, top - 2, top - 4096, top >> 1, (top >> 1) - 1, rng.randrange(top)]
    found += [old + step for step in (1, -1, 2, 8, 4096, -4096, 1 << 31)]
    found += [old ^ 1 << rng.randrange(bits) for _ in range(4)]
    found += [*KERNEL, *others, old * 2, rng.randrange(1 << 16)]
    low, high = (-(top >> 1), (top >> 1) - 1) if signed else (0, top - 1)
    # As a signed number, a great one is a negative one.
    found = [value - top if signed and high < value < top else value for value in found]
    return [value for value in found if low <= value <= high]
