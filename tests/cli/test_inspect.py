"""`torpor inspect` and `torpor verify` against what /proc said of the program itself, and on images of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import altered
from tests.altered import Item, Subject, environment
from tests.image import samples
from torpor.image.format import ARCHITECTURES
from torpor.image.kinds import Choice, Flags
from torpor.image.writer import ImageWriter
from torpor.objects.processes import Process
from torpor.objects.threads import Thread

NOBODY = 54321  # a user without an account


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("subject"))


def torpor(*argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torpor", *map(str, argv)]
    options = {"env": environment(), "capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run(command, check=False, **options)


def text_of(*argv: str | Path, **options: Any) -> str:
    done = torpor("inspect", *argv, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def data_of(*argv: str | Path) -> Any:
    return json.loads(text_of("--json", *argv))


def only(found: Iterator[Any]) -> Any:
    (one,) = found
    return one


# --- against the live program ---------------------------------------------------------------------------------------


@pytest.fixture
def live(subject: Subject, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The program itself, stopped, and an image of it as it is now."""
    with altered.running(subject.argv) as pid:
        image = tmp_path / "image"
        done = torpor("checkpoint", str(pid), "-o", image)
        assert done.returncode == 0, done.stderr
        os.kill(pid, 19)
        yield pid, image


def test_json_agrees_with_proc(live: tuple[int, Path], subject: Subject) -> None:
    pid, image = live
    data = data_of(image)
    records = data["records"]
    proc = Path(f"/proc/{pid}")
    root = only(one for one in records["Process"] if one["parent"] == 0)
    assert (root["pid"], root["sid"], root["state"], root["arch"]) == (pid, pid, "alive", ARCHITECTURES[data_arch(data)])
    assert root["arguments"] == subject.argv
    child = only(one for one in records["Process"] if one["parent"] and one["state"] == "alive")
    assert child["arguments"] == subject.argv  # from the pages that it shares with its parent
    ended = only(one for one in records["Process"] if one["state"] == "zombie")
    assert (ended["parent"], ended["exit_status"], ended["arguments"]) == (root["id"], 7 << 8, None)

    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    threads = [one for one in records["Thread"] if one["process"] == root["id"]]
    assert {one["tid"] for one in threads} == {int(tid) for tid in os.listdir(proc / "task")}
    assert threads[0]["name"] == status["Name"]
    assert threads[0]["blocked"] == int(status["SigBlk"], 16)
    assert threads[0]["uids"] == [int(uid) for uid in status["Uid"].split()]
    assert threads[0]["effective"] == int(status["CapEff"], 16)

    mm = only(one for one in records["Mm"] if one["id"] == root["mm"])
    mapped = [line.split()[0] for line in (proc / "maps").read_text().splitlines() if "[vsyscall]" not in line]
    assert [f"{one['start']:08x}-{one['end']:08x}" for one in mm["mappings"]] == mapped

    table = only(one for one in records["FdTable"] if one["id"] == root["files"])
    assert {one["fd"] for one in table["entries"]} == {int(fd) for fd in os.listdir(proc / "fd")}
    opened = {one["id"]: one for one in records["OpenFile"]}
    nodes = {one["id"]: one for one in records["FileNode"]}
    for entry in table["entries"]:
        link = os.readlink(proc / "fd" / str(entry["fd"]))
        if entry["file"] in opened and not link.startswith("/memfd:"):
            assert nodes[opened[entry["file"]]["node"]]["path"] == link.removesuffix(" (deleted)")


def data_arch(data: Any) -> int:
    return next(number for number, name in ARCHITECTURES.items() if name == data["header"]["arch"])


def test_text_shows_what_an_engineer_looks_for(live: tuple[int, Path], subject: Subject) -> None:
    pid, image = live
    text = text_of(image)
    print(text)
    threads = os.listdir(f"/proc/{pid}/task")
    for expected in (
        f"3 processes, {1 + len(threads)} threads",
        f"{pid} subject",
        " ".join(subject.argv),
        "zombie (exit status 7)",
        f"Linux {os.uname().release}",
        "pending      SIGTERM, code",
        "pending      SIGRTMIN, code",
        "ignored      SIGPIPE",
        "signal       SIGUSR1 to 0x",
        "ONSTACK|RESTART",
        "blocks SIGTERM SIGCHLD SIGRTMIN",
        "ITIMER_REAL: in 99",
        "0: MONOTONIC, in 99",
        "(clock_nanosleep)",
        "(pause)",
        "rsp 0000",
        "registers  0x",
        "X86General64",
        "[stack]",
        "[vdso]",
        "subject (memfd",
        "epoll, watches ",
        "for OUT|ERR|HUP|ET",
        "eventfd 3, semaphore",
        "timerfd, MONOTONIC, in 99",
        "signalfd, SIGTERM SIGCHLD SIGRTMIN",
        f"{subject.directory}/file at 4, RDWR|APPEND",
        f"{subject.directory}/gone (deleted, 4 bytes in the image) at 4, RDWR",
        "record lock, exclusive, bytes 1 to 2",
        "flock, exclusive",
        "umask ",
    ):
        assert expected in text, expected
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "[vsyscall]" not in line:
            start, end = line.split()[0].split("-")
            assert f"{int(start, 16):012x}-{int(end, 16):012x} {line.split()[1]}" in text, line


# --- every record with all fields -----------------------------------------------------------------------------------


def test_json_has_every_record_with_all_its_fields(subject: Subject) -> None:
    data = data_of(subject.image)
    items = altered.read(subject.image)
    shown = [data["header"], data["trailer"], *(one for records in data["records"].values() for one in records)]
    shown += [register for thread in data["records"]["Thread"] for register in thread["register_records"]]
    assert len(shown) == len(items) + 1  # the Trailer
    registers = 0
    thread: Thread | None = None
    seen: dict[str, int] = {}
    for record in (item.record for item in items[1:]):
        name = type(record).__name__
        if type(record).__module__.startswith("torpor.arch.") and thread:
            plain = data["records"]["Thread"][seen["Thread"] - 1]["register_records"][registers]
            assert plain["class"] == name
            registers += 1
        else:
            plain = data["records"][name][seen.get(name, 0)]
            seen[name] = seen.get(name, 0) + 1
        if isinstance(record, Thread):
            thread, registers = record, 0
            assert plain["register_names"] == [one["class"] for one in plain["register_records"]]
            assert len(plain["register_names"]) == record.registers.bit_count()
        for field in record.declared:
            value = getattr(record, field.name)
            assert field.name in plain
            if isinstance(value, bytes):
                assert bytes.fromhex(plain[field.name]) == value
            elif isinstance(value, int | str) and not isinstance(field, Choice | Flags):
                assert plain[field.name] == value


# --- images of every kind -------------------------------------------------------------------------------------------


def test_without_any_right(subject: Subject) -> None:
    """An ordinary user reads an image through a pipe; what is imported is imported before root becomes that user."""
    script = (
        "import os, sys, json, threading; from torpor import cli; from torpor.cli import inspect, picture, verify\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid({0}); os.setuid({0})\n"
        "sys.exit(cli.main([{1!r}, '-']))"
    )
    for verb in ("inspect", "verify"):
        with open(subject.image, "rb") as image:
            command = [sys.executable, "-c", script.format(NOBODY, verb)]
            done = subprocess.run(command, stdin=image, env=environment(), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert str(subject.pid) in done.stdout or verb == "verify"


@pytest.mark.parametrize("name", ["ppc64le", "ppc32"])
def test_another_architecture(subject: Subject, tmp_path: Path, name: str) -> None:
    number = next(number for number, known in ARCHITECTURES.items() if known == name)
    items = altered.read(subject.image)
    for item in items:
        if hasattr(item.record, "arch"):
            item.record.arch = number
    image = tmp_path / "image"
    altered.write(items, image)
    assert f"architecture {name}" in text_of(image)
    assert data_of(image)["header"]["arch"] == name
    # Its threads' registers are still those of the machine that it was made on, and all kinds of task are known.
    done = torpor("verify", image)
    assert (done.returncode, done.stdout) == (5, "") and "take another checkpoint" in done.stderr


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;x\a", "\u202egnp", "a\nb", "\udcff\udc80", "\u00e9\U0001f600"])
def test_no_text_of_an_image_reaches_the_terminal_as_it_is(subject: Subject, tmp_path: Path, name: str) -> None:
    items = altered.read(subject.image)
    for item in items:
        if isinstance(item.record, Thread):
            item.record.name = name
        if type(item.record).__name__ in ("FileNode", "Fs", "X86Header"):
            for field in ("path", "cwd", "root", "model", "features"):
                if hasattr(item.record, field):
                    setattr(item.record, field, "/" + name)
    image = tmp_path / "image"
    altered.write(items, image)
    for encoding in ("utf-8", "ascii"):
        text = text_of(image, env=environment() | {"PYTHONIOENCODING": encoding})
        assert all(char.isprintable() or char == "\n" for char in text)
        assert "\n" + name[:1] not in text
    thread = only(one for one in data_of(image)["records"]["Thread"] if one["tid"] == subject.pid)
    assert thread["name"] == name


def test_an_image_that_fits_together_badly_is_still_shown(subject: Subject, tmp_path: Path) -> None:
    items = altered.read(subject.image)
    image = tmp_path / "image"
    for item in items:
        if isinstance(item.record, Thread):
            item.record.registers |= 1 << 50
    altered.write(items, image)
    assert "bit 50 (lacking)" in text_of(image)
    assert "bit 50" in data_of(image)["records"]["Thread"][0]["register_names"]

    items = [item for item in altered.read(subject.image) if type(item.record).__name__ not in ("Pages", "FileData")]
    altered.write(items, image)
    assert all(one["arguments"] is None for one in data_of(image)["records"]["Process"])
    assert f"{subject.pid} subject" in text_of(image)


def test_an_image_without_a_process(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with ImageWriter.open(image) as writer:
        writer.add(samples.header())
        writer.finish()
    assert "0 processes, 0 threads" in text_of(image)
    assert data_of(image)["records"] == {}
    done = torpor("verify", image)
    assert done.returncode == 5
    assert "there is no process in it" in done.stderr


def test_a_tree_deeper_than_the_screen(subject: Subject, tmp_path: Path) -> None:
    items = altered.read(subject.image)
    ended = only(item.record for item in items if isinstance(item.record, Process) and item.record.state)
    parent, number = ended.id, 1 << 20
    for depth in range(3000):
        values = {field.name: getattr(ended, field.name) for field in Process.declared}
        items.append(Item(Process(**values | {"id": number + depth, "parent": parent, "pid": 100000 + depth})))
        parent = number + depth
    image = tmp_path / "image"
    altered.write(items, image)
    assert "102999" in text_of(image)
    assert len(data_of(image)["records"]["Process"]) == 3003


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verify_says_what_it_is(subject: Subject) -> None:
    done = torpor("verify", subject.image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{subject.image}: complete; 3 processes, 3 threads, ")
    assert f"Linux {os.uname().release} {os.uname().machine}" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_verify_finds_one_wrong_bit_in_the_data(subject: Subject, tmp_path: Path) -> None:
    data = bytearray(subject.image.read_bytes())
    data[-5000] ^= 1
    image = tmp_path / "image"
    image.write_bytes(data)
    done = torpor("verify", image)
    assert done.returncode == 5
    assert "altered" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_an_output_that_takes_nothing(subject: Subject, verb: str) -> None:
    with open("/dev/full", "wb") as full:
        done = torpor(verb, subject.image, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith("torpor: standard output: cannot write to it: No space left")
    out, into = os.pipe()
    os.close(out)
    done = torpor(verb, subject.image, capture_output=False, stdout=into, stderr=subprocess.PIPE)
    os.close(into)
    assert (done.returncode, done.stderr) == (1, "")
    done = torpor(verb, "/nonexistent")
    assert done.returncode == 1
    assert "torpor: /nonexistent: cannot read the image: No such file" in done.stderr


# -- another CPU


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a copy of this machine's /proc/cpuinfo that lacks one flag ("" for none)."""

    def copy(lacking: str) -> Path:
        text = Path("/proc/cpuinfo").read_text()
        lines = [f"{line} ".replace(f" {lacking} ", " ") if line.startswith("flags") else line for line in text.splitlines()]
        (tmp_path / "cpuinfo").write_text("\n".join(lines))
        return tmp_path / "cpuinfo"

    return copy


def test_another_cpu(subject: Subject, cpuinfo: Callable[[str], Path]) -> None:
    """The verdict needs nothing but the image and the description, not even the CPU that it is about."""
    done = torpor("inspect", subject.image, "--cpu", cpuinfo("nothing"))
    assert (done.returncode, done.stderr) == (0, "")
    assert ": can run on " in done.stdout
    done = torpor("inspect", subject.image, "--cpu", subject.image)
    assert (done.returncode, done.stderr) == (0, "")
    done = torpor("inspect", subject.image, "--cpu", cpuinfo("sse"))
    assert (done.returncode, done.stderr) == (4, "")
    assert "sse: its SSE registers are in use" in done.stdout
    assert "--cpu used" not in done.stdout
    done = torpor("inspect", subject.image, "--cpu", cpuinfo("rdtscp"))
    assert (done.returncode, done.stderr) == (4, "")
    assert "rdtscp: offered to the program" in done.stdout
    assert "--cpu used" in done.stdout


@pytest.mark.parametrize(("path", "code"), [("/dev/null", 2), ("/etc/passwd", 2), ("/nonexistent", 1), ("/", 1)])
def test_no_cpu(subject: Subject, path: str, code: int) -> None:
    done = torpor("inspect", subject.image, "--cpu", path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("torpor: ")
    assert "Traceback" not in done.stderr
