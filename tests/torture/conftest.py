"""Programs are built once for each run; what they leave behind is adopted and ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.torture.harness import compile_program, subreaper

Build = Callable[[str, int], Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """build(name, bits): the program, built at its first use; a test that needs 32 bit is skipped where gcc cannot."""
    directory = tmp_path_factory.mktemp("programs")
    built: dict[tuple[str, int], Path] = {}

    def program(name: str, bits: int) -> Path:
        if (name, bits) not in built:
            built[name, bits] = compile_program(name, bits, directory)
        return built[name, bits]

    return program


@pytest.fixture
def adopted() -> Iterator[None]:
    """Orphans come to us."""
    with subreaper():
        yield
