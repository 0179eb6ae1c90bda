"""The runner finds every fault it is there to find: shown with a stand-in for torpor that makes them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.debian import runner
from tests.debian.runner import Lab, Program, compare, instants

PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else "python3"
STAND_IN = str(Path(__file__).with_name("stand_in.py"))

# A second of work in two processes; the stand-in's restart does it all again.
WORK = """
import os, sys, time
child = os.fork()
if child == 0:
    time.sleep(1)
    os._exit(0)
with open("result", "w") as out:
    for i in range(20):
        time.sleep(0.05)
        out.write(f"{i * i}\\n")
os.waitpid(child, 0)
print("done")
sys.exit(7)
"""
PROGRAM = Program("work", [PYTHON, "-c", WORK], outputs=["result"], status=7)


def lab(behaviour: str) -> Lab:
    return Lab(os.geteuid(), [PYTHON, STAND_IN, behaviour])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the stand-in restarts under the original pid")
def test_no_fault_no_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    with lab("good") as here:
        expected = here.undisturbed(PROGRAM)
        assert expected.status == 7
        assert expected.left["result"][0] == sum(len(f"{i * i}\n") for i in range(20))
        assert 1.0 <= expected.seconds < 10
        compare(here, PROGRAM, expected, 1)
        assert here.ours() == {}
    assert not here.directory.exists()
    printed = capsys.readouterr().out
    assert printed.count("undisturbed, interrupted at") - printed.count("missed") == 2
    assert printed.count("2 processes, checkpoint") >= 4


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("refuses", r"exit status 4: pid \d+: io_uring 5: cannot be saved; close it"),
        ("no image", "the image is empty"),
        ("kills nothing", "it was not killed, but ended with exit status 7"),
        ("leaves a child", r"s later there is still \d+ .* -c"),
        ("cannot restart", "exit status 5, not 7: image: trailer: missing; take another"),
        ("wrong status", "exit status 3, not 7"),
        ("loses output", r"not as undisturbed: result \(\d+ bytes and 11 bytes\)"),
        ("leaves a process", r"torpor restart has ended, and .* still \d+ .*stand_in"),
    ],
)
def test_each_fault_is_found(behaviour: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GONE_WITHIN", 2.0)
    # Nothing of the program may be waited for as if it were gone: it runs longer than that.
    slow = Program("work", [PYTHON, "-c", WORK.replace("sleep(1)", "sleep(4)")], outputs=["result"], status=7)
    program = slow if behaviour == "leaves a child" else PROGRAM
    with lab(behaviour) as here:
        expected = here.undisturbed(PROGRAM)
        with pytest.raises(AssertionError, match=complaint) as raised:
            compare(here, program, expected, 1)
        assert "repeat it with TORPOR_TEST_SEED=" in str(raised.value)
        assert here.ours() == {}


def test_a_program_that_is_always_too_quick_is_a_failure() -> None:
    with lab("good") as here:
        quick = Program("quick", ["true"])
        expected = runner.Outcome(0, 0.5, {"stdout": (0, "")})
        with pytest.raises(AssertionError, match="always ended before"):
            compare(here, quick, expected, 1)


def test_an_exit_status_of_its_own_is_a_failure() -> None:
    with lab("good") as here, pytest.raises(AssertionError, match=r"exit status 3, not 0; its last words: oh\n"):
        here.undisturbed(Program("fails", ["sh", "-c", "echo oh; exit 3"]))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs something as another user")
def test_an_ordinary_user_is_one() -> None:
    see = "id -u; id -g; id -G; grep Cap /proc/self/status; ls /proc/self/fd; cut -d' ' -f1,6 /proc/$$/stat; pwd >where"
    seen: list[str] = []

    def keep(directory: Path) -> dict[str, bytes]:
        seen.append(directory.joinpath("stdout").read_text())
        return {}

    with Lab(runner.ORDINARY) as here:
        here.undisturbed(Program("see", ["sh", "-c", see], outputs=["where"], collect=keep))
        # torpor's source is where this user can read it.
        assert Path(here.environment["PYTHONPATH"], "torpor/errors.py").stat().st_uid == runner.ORDINARY
        here.undisturbed(Program("import", [here.torpor[0], "-c", "import torpor.errors"]))
    lines = seen[0].split("\n")
    assert lines[:3] == [str(runner.ORDINARY)] * 3
    capabilities = [line.split()[1] for line in lines if line.startswith(("CapEff", "CapPrm", "CapAmb", "CapInh"))]
    assert capabilities == ["0" * 16] * 4
    assert lines[-6:-2] == ["0", "1", "2", "3"]  # 3 is ls's own
    pid, session = lines[-2].split()
    assert pid == session


def test_instants_lie_within_the_run() -> None:
    rng = random.Random(1)
    for _ in range(100):
        chosen = instants(rng, 10.0, 3)
        assert chosen == sorted(chosen)
        assert chosen[0] >= 1.0
        assert chosen[-1] <= 9.0
