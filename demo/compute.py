"""A computation to be interrupted: python3 compute.py RESULT, 6-8 s on two cores of 2020.

A child process counts primes and twin primes block by block and sends each count through a pipe. Three threads extend
hash chains over a megabyte each. A collector puts the parts together *in order*, one line per round, into RESULT, whose
last line is a digest of all the others. Whatever the timing, the finished file is the same to the byte.
"""

import hashlib
import os
import sys
import threading
from queue import SimpleQueue

ROUNDS = 40
BLOCK = 6_000_000  # numbers sieved in a round
CHAINS = 3
LINKS = 56  # megabytes hashed per chain and round


def small_primes(limit: int) -> list[int]:
    return [n for n in range(2, limit + 1) if all(n % d for d in range(2, int(n**0.5) + 1))]


def sieve_block(start: int, primes: list[int]) -> tuple[int, int]:
    """How many primes, and pairs of twin primes, lie in [start, start + BLOCK); a pair counts where its second is."""
    candidates = bytearray(b"\x01") * (BLOCK + 2)  # of start - 2 .. start + BLOCK - 1
    first = start - 2
    for p in primes:
        begin = max(p * p, (first + p - 1) // p * p)
        if begin < start + BLOCK:
            offset = begin - first
            candidates[offset::p] = bytes(len(range(offset, len(candidates), p)))
    for n in range(first, min(2, start + BLOCK)):  # neither a negative number, 0 nor 1 is a prime
        candidates[n - first] = 0
    both = int.from_bytes(candidates[2:], "little") & int.from_bytes(candidates[:-2], "little")
    return candidates[2:].count(1), both.to_bytes(BLOCK, "little").count(1)


def count_primes(pipe: int) -> None:
    """The child: a line per round into the pipe."""
    primes = small_primes(int((ROUNDS * BLOCK) ** 0.5) + 1)
    with os.fdopen(pipe, "w", buffering=1) as out:
        for number in range(ROUNDS):
            found, twins = sieve_block(number * BLOCK, primes)
            out.write(f"{number} {found} {twins}\n")


def read_counts(pipe: int, parts: "SimpleQueue[tuple[int, str, str]]") -> None:
    """A thread: what the child sends becomes parts of the result."""
    total = 0
    with os.fdopen(pipe) as lines:
        for line in lines:
            number, found, twins = (int(word) for word in line.split())
            total += found
            parts.put((number, "primes", f"{total} primes below {(number + 1) * BLOCK}, {twins} new twins"))


def extend_chain(chain: int, parts: "SimpleQueue[tuple[int, str, str]]") -> None:
    """A thread: every link of a chain is the hash of a megabyte that the link before it has altered."""
    page = bytearray(bytes([chain]) * (1 << 20))
    link = hashlib.blake2b(page, digest_size=32).digest()
    for number in range(ROUNDS):
        for step in range(LINKS):
            place = (int.from_bytes(link[:4], "little") + step) % (len(page) - 32)
            page[place : place + 32] = link
            link = hashlib.blake2b(page, digest_size=32).digest()
        parts.put((number, f"chain{chain}", link.hex()[:24]))


def main(result: str) -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        count_primes(writer)
        os._exit(0)
    os.close(writer)

    parts: SimpleQueue[tuple[int, str, str]] = SimpleQueue()
    threads = [threading.Thread(target=extend_chain, args=(chain, parts)) for chain in range(CHAINS)]
    threads.append(threading.Thread(target=read_counts, args=(reader, parts)))
    for thread in threads:
        thread.start()

    digest = hashlib.blake2b(digest_size=32)
    rounds: list[dict[str, str]] = [{} for _ in range(ROUNDS)]
    with open(result, "w") as out:
        for number, complete in enumerate(rounds):
            while len(complete) < CHAINS + 1:
                of, name, value = parts.get()
                rounds[of][name] = value
            line = f"round {number:2}: " + "  ".join(f"{name} {complete[name]}" for name in sorted(complete)) + "\n"
            digest.update(line.encode())
            out.write(line)
            out.flush()
        out.write(f"all rounds: {digest.hexdigest()}\n")

    for thread in threads:
        thread.join()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
