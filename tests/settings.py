"""Where torpor is and how much is tried: what the tests share that does not need pytest (the guests of tests/machines have none).

TORPOR_TEST_FULL=1 asks for more of everything random; TORPOR_TEST_SEED=N repeats a run's random choices. TORPOR_TEST_MODE=snapshot,
incremental, ahead or lazy has the tests of tests/calls, tests/debian and tests/torture make their checkpoints and restarts so
(mode.py).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
FULL = os.environ.get("TORPOR_TEST_FULL", "") not in ("", "0")
MODE = os.environ.get("TORPOR_TEST_MODE", "")
MODES = ("snapshot", "incremental", "ahead", "lazy")
if MODE not in ("", *MODES):
    raise ValueError(f"TORPOR_TEST_MODE={MODE}: it is one of {', '.join(MODES)}")
SEED = int(os.environ.get("TORPOR_TEST_SEED") or random.SystemRandom().randrange(1 << 32))

# What makes gcc build an i386 program. With gcc-12-multilib <asm/...> is found only under its 64-bit name:
# the link /usr/include/asm belongs to gcc-multilib, which would drive out every cross compiler.
M32 = ("-m32", "-idirafter", "/usr/include/x86_64-linux-gnu")
