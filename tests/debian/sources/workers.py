"""python3 workers.py: threads with locks and conditions, a pool of processes, shared memory, files with and without a name."""

import hashlib
import mmap
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized

BLOCKS = 320


def collatz(block: int) -> tuple[int, int, int]:
    """(block, number below 1500 * (block + 1) with the longest sequence in the block, its length)."""
    best = (0, 0)
    for start in range(1500 * block + 1, 1500 * (block + 1) + 1):
        number, length = start, 1
        while number != 1:
            number = number // 2 if number % 2 == 0 else 3 * number + 1
            length += 1
        best = max(best, (length, -start))
    return block, -best[1], best[0]


class Turns:
    """Lets threads write in a fixed order."""

    def __init__(self) -> None:
        self.next = 0
        self.changed = threading.Condition()

    def take(self, number: int, action: Callable[[], object]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.next == number)
            action()
            self.next += 1
            self.changed.notify_all()


def hash_chain(number: int, turns: Turns, lines: list[str]) -> None:
    link = bytes([number]) * 100_000
    for step in range(20):
        for _ in range(12):
            link = hashlib.sha512(link).digest() + link[64:]
        time.sleep(0.002)
        text = f"chain {number} step {step}: {link[:12].hex()}"
        turns.take(step * 4 + number, lambda text=text: lines.append(text))  # type: ignore[misc]


def add_up(total: "Synchronized[int]", number: int) -> None:
    for step in range(3000):
        with total.get_lock():
            total.value += number * step


def main() -> None:
    turns, lines = Turns(), list[str]()
    threads = [threading.Thread(target=hash_chain, args=(number, turns, lines)) for number in range(4)]
    total = multiprocessing.Value("q", 0)
    adders = [multiprocessing.Process(target=add_up, args=(total, number)) for number in range(1, 4)]
    memory = os.memfd_create("longest")
    os.ftruncate(memory, 8 * BLOCKS)
    with (
        multiprocessing.Pool(2) as pool,
        open("workers.txt", "w") as out,
        tempfile.TemporaryFile() as nameless,
        mmap.mmap(memory, 8 * BLOCKS) as longest,
    ):
        for adder in adders:
            adder.start()
        for thread in threads:
            thread.start()
        for block, start, length in pool.imap(collatz, range(BLOCKS)):
            out.write(f"block {block}: {start} takes {length} steps\n")
            out.flush()
            nameless.write(start.to_bytes(8, "little"))
            longest[8 * block : 8 * block + 8] = length.to_bytes(8, "little")
        for thread in threads:
            thread.join()
        for adder in adders:
            adder.join()
        out.write("\n".join(lines) + f"\ntotal {total.value}\n")
        nameless.seek(0)
        out.write(hashlib.sha256(nameless.read() + os.pread(memory, 8 * BLOCKS, 0)).hexdigest() + "\n")
    print("exit statuses", [adder.exitcode for adder in adders])


if __name__ == "__main__":
    main()
