"""python3 together.py PROGRAM ARGUMENT... [, PROGRAM ARGUMENT...]...: runs all of them at once, where there is no shell."""

from __future__ import annotations

import os
import sys

words = sys.argv[1:]
while words:
    end = words.index(",") if "," in words else len(words)
    if not os.fork():
        os.execv(words[0], words[:end])
    words = words[end + 1 :]
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
