"""Kernels whose vdso has less room than this one's: torpor's code then lies over the section headers.

There is none at hand, so torpor is made to need more: one slot more than fit behind the headers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.settings import ROOT
from tests.torture.conftest import Build
from tests.torture.harness import Torture

pytestmark = [pytest.mark.usefixtures("torpor_runs", "adopted"), pytest.mark.timeout(120)]

NEEDS_MORE = """
import os, sys
import torpor
from torpor import arch
from torpor.linux import procfs
from torpor.tasks import places
from torpor.tasks.task import Process

pid, image = int(sys.argv[1]), sys.argv[2]
kind = arch.of_program(pid)
vdso = next(mapping for mapping in procfs.maps(pid) if mapping.path == "[vdso]")
process = Process(pid, pid)
process.arch = kind
headers = vdso.start + places._headers_end(process, vdso.start, os.pread(process.mem, 64, vdso.start))
type(kind).slot_count = (vdso.end - headers - len(kind.code)) // kind.slot_size + 1
place = places.find_padding(process, [vdso])
assert vdso.start < place < headers, (vdso.start, place, headers)
there = os.pread(process.mem, len(kind.code), place)
for _ in range(3):
    torpor.checkpoint(pid, image)
    now = os.pread(process.mem, len(kind.code), place)
    assert kind.word == 4 or now == there, "the headers are not as they were"
torpor.checkpoint(pid, image, kill=True)
"""


@pytest.mark.parametrize("bits", [64, 32])
def test_code_over_section_headers(build: Build, tmp_path: Path, bits: int) -> None:
    with Torture(build("torture", bits), tmp_path / "run", threads=9) as victim:
        image = tmp_path / "image"
        command = [sys.executable, "-c", NEEDS_MORE, str(victim.pid), str(image)]
        done = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)
        assert not done.returncode, done.stderr
        victim.reaper.wait_gone([victim.pid])
        assert not (run := victim.run_torpor("restart", image, "--detach")).code, run
        victim.pid = victim.outside_pid()
        victim.verify()
        victim.checkpoint_and_go_on()
