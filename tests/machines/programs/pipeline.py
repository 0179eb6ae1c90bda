"""python3 pipeline.py DIRECTORY: what pipeline.sh does, where there is no shell: four processes joined by pipes."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable


def count() -> None:
    number = 0
    while not os.path.exists("stop"):
        number += 1
        os.write(1, b"line %d\n" % number)


def replace() -> None:
    for line in sys.stdin.buffer:
        os.write(1, line.replace(b"line", b"row"))


def tee() -> None:
    with open("progress", "wb", buffering=0) as progress:
        while data := os.read(0, 1024):
            progress.write(data)
            os.write(1, data)


def digest() -> None:
    found = hashlib.md5()
    while data := os.read(0, 4096):
        found.update(data)
    print(found.hexdigest(), " -")


def main(directory: str, *stages: Callable[[], None]) -> None:
    os.chdir(directory)
    source = -1
    for stage in stages:
        ends = os.pipe() if stage is not stages[-1] else (-1, -1)
        if not os.fork():
            for fd, number in ((source, 0), (ends[1], 1)):
                if fd >= 0:
                    os.dup2(fd, number)
            for fd in (source, *ends):
                if fd >= 0:
                    os.close(fd)
            stage()
            sys.stdout.flush()
            os._exit(0)
        for fd in (source, ends[1]):
            if fd >= 0:
                os.close(fd)
        source = ends[0]
    for _ in stages:
        os.wait()


if __name__ == "__main__":
    main(sys.argv[1], count, replace, tee, digest)
