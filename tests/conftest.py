"""What all tests share: the settings, under the name that most of them know, and whether torpor can be run yet."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests.settings import FULL, M32, ROOT, SEED, SRC

__all__ = ["FULL", "M32", "ROOT", "SEED", "SRC"]

# How long an example takes says something about the load of the machine, and nothing about torpor.
hypothesis.settings.register_profile("torpor", deadline=None)
hypothesis.settings.load_profile("torpor")


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
