"""What all tests share: where torpor is, whether it can be run yet, and how often random things are tried.

TORPOR_TEST_FULL=1 asks for more of everything random; TORPOR_TEST_SEED=N repeats a run's random choices.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
FULL = os.environ.get("TORPOR_TEST_FULL", "") not in ("", "0")
SEED = int(os.environ.get("TORPOR_TEST_SEED") or random.SystemRandom().randrange(1 << 32))

# What makes gcc build an i386 program. With gcc-12-multilib <asm/...> is found only under its 64-bit name:
# the link /usr/include/asm belongs to gcc-multilib, which would drive out every cross compiler.
M32 = ("-m32", "-idirafter", "/usr/include/x86_64-linux-gnu")


def pytest_report_header() -> list[str]:
    user = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}, not root"
    return [f"torpor: TORPOR_TEST_SEED={SEED} TORPOR_TEST_FULL={int(FULL)}, as {user}"]


@pytest.fixture(scope="session")
def torpor_runs() -> None:
    """Required by tests that run `python -m torpor`: skips them, with the reason, but only while it is not written."""
    package = SRC / "torpor"
    if not (package / "__main__.py").exists():
        assert not (package / "cli" / "__init__.py").exists(), "torpor/cli is there but torpor/__main__.py is not"
        pytest.skip("`python -m torpor` is not written yet (no src/torpor/__main__.py)")
