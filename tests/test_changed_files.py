"""Files that an image names and that have changed meanwhile: all of them are listed at once, and code is known by its build."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import torpor
from torpor.errors import TorporError
from torpor.linux import elf

SLEEP = shutil.which("sleep") or "/bin/sleep"


class Subject:
    """The image of a sleep(1) of our own, which had two files open and has been killed."""

    def __init__(self, directory: Path) -> None:
        self.program, self.image = directory / "sleep", directory / "image"
        self.data = [directory / "one", directory / "two"]
        shutil.copy(SLEEP, self.program)
        for path in self.data:
            path.write_text("as it was\n")
        with self.data[0].open() as one, self.data[1].open() as two:
            null = subprocess.DEVNULL
            popen = subprocess.Popen([self.program, "1000"], stdin=one, stdout=null, stderr=two, start_new_session=True)
        try:
            end = time.monotonic() + 10
            while os.readlink(f"/proc/{popen.pid}/exe") != str(self.program):
                assert time.monotonic() < end
                time.sleep(0.01)
            torpor.checkpoint(popen.pid, self.image, kill=True)
        finally:
            popen.kill()
            popen.wait()

    def runs(self, **options: list[str]) -> None:
        """It restarts."""
        program = torpor.restart(self.image, **options)  # type: ignore[arg-type]
        os.kill(program.pid, 15)
        assert program.wait() == 15  # a wait status

    def refused(self, **options: list[str]) -> list[str]:
        """It does not, and no process appears; what is said, a line each."""
        try:
            program = torpor.restart(self.image, **options)  # type: ignore[arg-type]
        except TorporError as error:
            return str(error).splitlines()
        os.kill(program.pid, 9)
        pytest.fail("it was restarted")

    def touch(self, *paths: Path) -> None:
        for path in paths:
            os.utime(path, ns=(1, 1))


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    if not elf.build_id(Path(SLEEP).read_bytes()):
        pytest.skip(f"{SLEEP} has no build id here")
    yield Subject(tmp_path)


def test_the_same_build_with_another_date(subject: Subject) -> None:
    subject.touch(subject.program)
    subject.runs()


def test_another_build_of_the_same_size_and_date(subject: Subject) -> None:
    code, st = subject.program.read_bytes(), subject.program.stat()
    build = elf.build_id(code)
    subject.program.write_bytes(code.replace(build, bytes(byte ^ 1 for byte in build)))
    os.utime(subject.program, ns=(st.st_atime_ns, st.st_mtime_ns))
    (line,) = subject.refused()
    assert str(subject.program) in line and "another build" in line and "--allow-changed" in line
    subject.runs(allow_changed=[str(subject.program)])


def test_all_differences_are_listed_at_once(subject: Subject) -> None:
    subject.touch(subject.data[0])
    subject.data[1].write_text("another length\n")
    subject.program.unlink()
    lines = subject.refused()
    assert len(lines) == 3, lines
    said = {path.name: line for path in (*subject.data, subject.program) for line in lines if str(path) in line}
    assert "modified" in said["one"] and "bytes" in said["two"] and "cannot be found" in said["sleep"]
    shutil.copy(SLEEP, subject.program)
    allowed = [str(path) for path in subject.data]
    (line,) = subject.refused(allow_changed=allowed[:1])
    assert allowed[1] in line
    subject.runs(allow_changed=allowed)


def test_code_that_has_no_build_id(tmp_path: Path) -> None:
    without = tmp_path / "without"
    strip = ["objcopy", "--remove-section=.note.gnu.build-id", SLEEP, str(without)]
    subprocess.run(strip, check=True)
    assert not elf.build_id(without.read_bytes())
    (tmp_path / "it").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.SLEEP", str(without))
        subject = Subject(tmp_path / "it")
    subject.touch(subject.program)
    subject.runs()  # by its hash
    code = bytearray(subject.program.read_bytes())
    code[-1] ^= 1
    subject.program.write_bytes(code)
    (line,) = subject.refused()
    assert "another build" in line
