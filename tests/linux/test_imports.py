"""What torpor.linux may not drag in: its import is part of the pause that a user waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torpor.linux.libc


def test_no_slow_modules() -> None:
    names = ["procfs", "pagemap", "kcmp", "pidfd", "sched", "clone", "locks", "timers"]
    source = (
        f"import sys; sys.path.insert(0, {str(Path(torpor.linux.libc.__file__).parents[2])!r})\n"
        f"from torpor.linux import {', '.join(names)}\n"
        "slow = 'typing dataclasses re subprocess json inspect argparse enum signal'.split()\n"
        "sys.exit(str([name for name in slow if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True)
    assert done.stderr.strip() == "", done.stderr
