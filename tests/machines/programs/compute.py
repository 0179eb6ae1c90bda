"""python3 compute.py DIRECTORY: threads that each compute a chain of numbers until the file DIRECTORY/stop is there.

DIRECTORY/progress holds how many links have been taken in, as it grows; at the end each thread's last link is printed, by which
`last_link` can see from outside whether it is right.
"""

from __future__ import annotations

import hashlib
import math
import os
import queue
import sys
import threading

THREADS = 4
AT_ONCE = 50  # links between two messages to the first thread


def link(value: str) -> str:
    """The next number of a chain: a hash, an integer and a float of it."""
    digest = hashlib.sha256(value.encode()).digest()
    number = int.from_bytes(digest, "big") ** 3 % (2**127 - 1)
    return f"{number:x} {math.sqrt(number) / (number % 1000 + 0.7):.6e}"  # no sin(): glibc's makes QEMU's G4 say SIGILL


def last_link(thread: int, links: int) -> str:
    """What thread number `thread` has after so many links."""
    value = str(thread)
    for _ in range(links):
        value = link(value)
    return value


def chain(thread: int, stop: threading.Event, said: queue.Queue[tuple[int, int, str]]) -> None:
    value, links = str(thread), 0
    while not stop.is_set():
        for _ in range(AT_ONCE):
            value = link(value)
        links += AT_ONCE
        said.put((thread, links, value))


def main(directory: str) -> None:
    stop = threading.Event()
    said: queue.Queue[tuple[int, int, str]] = queue.Queue(100)
    threads = [threading.Thread(target=chain, args=(number, stop, said)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    last = {number: (0, str(number)) for number in range(THREADS)}
    with open(f"{directory}/progress", "wb", buffering=0) as progress:
        while any(thread.is_alive() for thread in threads) or not said.empty():
            try:
                number, links, value = said.get(timeout=0.1)
            except queue.Empty:
                continue
            assert links == last[number][0] + AT_ONCE, f"a message of thread {number} is lost: {links} after {last[number][0]}"
            last[number] = links, value
            os.pwrite(progress.fileno(), b"%20d" % sum(links for links, _ in last.values()), 0)
            if os.path.exists(f"{directory}/stop"):
                stop.set()
    for number, (links, value) in last.items():
        print(number, links, value)


if __name__ == "__main__":
    main(sys.argv[1])
