"""What `torpor serve` does with requests that are none, and with those who may not ask. It goes on serving, whatever comes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import altered
from tests.conftest import ROOT
from tests.debian.runner import ORDINARY, Lab
from tests.serving import Server, answers, ask, connect, raw
from tests.test_bad_input import as_ordinary, goes_on, refused, torpor
from torpor.serve import plain, request

BUSY = ["/bin/sh", "-c", "while :; do :; done"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "socket") as server:
        yield server


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing but a newline": (b"\n", "no JSON"),
    "no JSON": (b"torpor checkpoint 42\n", "no JSON"),
    "no UTF-8": (b"\xff\xfe\xfd\n", "no JSON"),
    "a binary": (bytes(range(11, 256)) + b"\n", "no JSON"),
    "a number": (b"1\n", "no JSON object"),
    "a list": (b"[1]\n", "no JSON object"),
    "nested": (b"[" * 60000 + b"\n", "nested too deeply"),
    "nested objects": (b'{"a":' * 12000 + b"\n", "nested too deeply"),
    "a long number": (b'{"torpor": ' + b"9" * 60000 + b"}\n", "no JSON"),
    "a long line": (b'{"torpor": 1, "verb": "' + b"x" * (1 << 20) + b'"}\n', "more than 65536 bytes"),
    "an endless line": (b" " * (1 << 17), "more than 65536 bytes"),
    "no version": (b'{"verb": "check"}\n', '"torpor" must be'),
    "another version": (b'{"torpor": 2, "verb": "check"}\n', '"torpor" must be'),
    "a version that is no number": (b'{"torpor": true, "verb": "check"}\n', '"torpor" must be'),
    "no verb": (b'{"torpor": 1}\n', '"verb" must be one of checkpoint, check, restart, verify'),
    "an unknown verb": (b'{"torpor": 1, "verb": "exec"}\n', '"verb" must be one of'),
    "a verb that is a list": (b'{"torpor": 1, "verb": []}\n', '"verb" must be one of'),
    "an unknown field": (b'{"torpor": 1, "verb": "check", "uid": 0}\n', 'check has no field "uid"'),
    "a field of another verb": (b'{"torpor": 1, "verb": "check", "output": "/x"}\n', 'check has no field "output"'),
    "no pid": (b'{"torpor": 1, "verb": "checkpoint", "output": "/x"}\n', 'checkpoint needs "pid"'),
    "no output": (b'{"torpor": 1, "verb": "checkpoint", "pid": 42}\n', 'checkpoint needs "output"'),
    "a pid in words": (b'{"torpor": 1, "verb": "check", "pid": "42"}\n', '"pid" must be a process id'),
    "a pid below 0": (b'{"torpor": 1, "verb": "check", "pid": -1}\n', '"pid" must be a process id'),
    "a pid that is true": (b'{"torpor": 1, "verb": "check", "pid": true}\n', '"pid" must be a process id'),
    "a pid with a fraction": (b'{"torpor": 1, "verb": "check", "pid": 1.0}\n', '"pid" must be a process id'),
    "a pid that is too high": (b'{"torpor": 1, "verb": "check", "pid": 2147483648}\n', '"pid" must be a process id'),
    "a path that is a number": (b'{"torpor": 1, "verb": "verify", "source": 0}\n', '"source" must be the name of a file'),
    "an empty path": (b'{"torpor": 1, "verb": "verify", "source": ""}\n', '"source" must be the name of a file'),
    "a path with a zero": (b'{"torpor": 1, "verb": "verify", "source": "/x\\u0000"}\n', '"source" must be the name'),
    "half a character": (b'{"torpor": 1, "verb": "verify", "source": "/\\ud800"}\n', '"source" must be the name'),
    "a relative path": (b'{"torpor": 1, "verb": "verify", "source": "x"}\n', "is relative"),
    "a stream that has not come": (b'{"torpor": 1, "verb": "verify", "source": "-"}\n', 'no descriptor "stdin"'),
    "an output that has not come": (b'{"torpor": 1, "verb": "checkpoint", "pid": 1, "output": "-"}\n', 'no descriptor "stdout"'),
    "kill in words": (b'{"torpor": 1, "verb": "checkpoint", "pid": 1, "output": "/x", "kill": "no"}\n', '"kill" must be true'),
    "compression that is a number": (b'{"torpor": 1, "verb": "checkpoint", "pid": 1, "output": "/x", "compress": 3}\n', "a string"),
    "a relative parent": (b'{"torpor": 1, "verb": "checkpoint", "pid": 1, "output": "/x", "parent": "-"}\n', "is relative"),
    "a choice": (b'{"torpor": 1, "verb": "restart", "source": "/x", "pids": "mine"}\n', '"pids" must be one of'),
    "a choice that is an object": (b'{"torpor": 1, "verb": "restart", "source": "/x", "cpu": {}}\n', '"cpu" must be one of'),
    "a path for paths": (b'{"torpor": 1, "verb": "restart", "source": "/x", "allow_changed": "/y"}\n', "must be a list"),
    "a number among paths": (b'{"torpor": 1, "verb": "restart", "source": "/x", "allow_changed": [1]}\n', "the name of a file"),
    "descriptors that have not come": (b'{"torpor": 1, "verb": "check", "descriptors": ["stdin"]}\n', "1 names for 0 descriptors"),
    "an unknown descriptor": (b'{"torpor": 1, "verb": "check", "descriptors": ["mem"]}\n', '"descriptors" must be a list of'),
    "a descriptor in a list": (b'{"torpor": 1, "verb": "check", "descriptors": [["stdin"]]}\n', '"descriptors" must be a list of'),
    "a descriptor twice": (b'{"torpor": 1, "verb": "check", "descriptors": ["stdin", "stdin"]}\n', "names one twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input(server: Server, name: str) -> None:
    line, says = HOSTILE[name]
    (answer,) = raw(server.path, line)
    assert (answer["torpor"], answer["exit_code"], answer["error"]) == (1, 2, "UsageError"), answer
    (found,) = answer["obstacles"]
    assert found["object"] == "request" and says in found["reason"] and found["remedy"], found
    assert ask(server.path, verb="check")["exit_code"] == 0


def test_a_line_that_does_not_end(server: Server) -> None:
    with connect(server.path) as connection:
        connection.sendall(b'{"torpor": 1, "verb": "check"}')
        connection.shutdown(socket.SHUT_WR)
        (answer,) = answers(connection)
    assert answer["exit_code"] == 2 and "does not end" in answer["obstacles"][0]["reason"]


def test_who_is_refused_while_he_is_still_sending_gets_the_answer(server: Server) -> None:
    """And not EPIPE or ECONNRESET."""
    with connect(server.path) as connection:
        connection.sendall(b"x" * (1 << 16))
        assert b"more than 65536" in connection.recv(1 << 16, socket.MSG_PEEK)
        connection.sendall(b"x" * (1 << 16))
        (answer,) = answers(connection)
    assert answer["exit_code"] == 2


def test_a_client_that_says_nothing_and_one_that_does_not_listen(server: Server) -> None:
    connect(server.path).close()
    with connect(server.path) as connection:
        connection.sendall(b'{"torpor": 1, "verb": "check"}\n')
        connection.shutdown(socket.SHUT_RD)
    assert ask(server.path, verb="check")["exit_code"] == 0


def test_a_line_in_pieces_and_more_behind_it(server: Server) -> None:
    with connect(server.path) as connection:
        for byte in b'{"torpor": 1, "verb": "check"}\n':
            connection.sendall(bytes([byte]))
        connection.shutdown(socket.SHUT_WR)  # `nc -N` does so; the client is still there
        assert answers(connection)[0]["exit_code"] == 0
    line = b'{"torpor": 1, "verb": "check"}\n{"torpor": 1, "verb": "none"}\n'
    assert [answer["exit_code"] for answer in raw(server.path, line)] == [0]


def test_descriptors_that_make_no_sense(server: Server, tmp_path: Path) -> None:
    file, directory = os.open(ROOT / "README.md", os.O_RDONLY), os.open(tmp_path, os.O_PATH)

    def said(*descriptors: int, **more: Any) -> str:
        line = json.dumps({"torpor": 1, "verb": "verify", "source": "/x", **more}).encode() + b"\n"
        (answer,) = raw(server.path, line, descriptors)
        return f"{answer['exit_code']} {answer['obstacles'][0]['reason']}"

    try:
        assert said(file) == "2 0 names for 1 descriptors"
        assert said(*[file] * 5) == "2 more than 4 descriptors"
        assert said(*[file] * 200) == "2 more than 4 descriptors"
        assert said(file, descriptors=["directory"], source="x") == '2 "directory": Not a directory'
        assert said(directory, descriptors=["stdin"], source="-").startswith("1 cannot read the image")
        assert said(directory, descriptors=["directory"], source="x") == "1 cannot read the image: No such file or directory"
        assert said(file, descriptors=["stdin"], source="-").startswith("5 is not an image")
    finally:
        os.close(file)
        os.close(directory)


# --- who


PEER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"torpor": 1, "verb": "check", "pid": %d}\\n' % int(sys.argv[2]))
print(s.makefile().read(), end="")
"""


def refused_peer(said: str, *words: str) -> None:
    answer = json.loads(said)
    assert (answer["exit_code"], answer["error"]) == (6, "NoPermission"), said
    assert all(word in answer["obstacles"][0]["reason"] for word in words), said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_roots_server_serves_root_alone(tmp_path: Path) -> None:
    with Lab(ORDINARY) as lab, altered.running(BUSY, wait=False) as pid:
        path = lab.directory / "socket"
        with Server(path) as server:
            peer = [lab.torpor[0], "-c", PEER, str(path), str(pid)]
            options: dict[str, Any] = {"user": ORDINARY, "group": ORDINARY, "extra_groups": [], "cwd": "/"}
            done = subprocess.run(peer, capture_output=True, text=True, **options)
            assert "PermissionError" in done.stderr  # the mode of the socket
            refused(as_ordinary(lab, "check", "--server", str(path)), 6, "may not connect")
            path.chmod(0o666)  # somebody means well
            done = subprocess.run(peer, capture_output=True, text=True, **options)
            refused_peer(done.stdout, f"user {ORDINARY}", "it serves user 0")
            # The command itself does not even ask: it would hand its directory to another user's process.
            refused(as_ordinary(lab, "checkpoint", str(pid), "-o", "image", "--server", str(path)), 6, "its server is of user 0")
            assert ask(server.path, verb="check")["exit_code"] == 0
            goes_on(pid)
        assert [file.name for file in lab.directory.iterdir() if file.name != "src"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_an_ordinary_users_server() -> None:
    """It saves his programs into his files, and no others; and root has it not serve him, but can run torpor himself."""
    as_him: dict[str, Any] = {"user": ORDINARY, "group": ORDINARY, "extra_groups": []}
    with Lab(ORDINARY) as lab, altered.running(BUSY, wait=False, **as_him) as his, altered.running(BUSY, wait=False) as roots:
        path = lab.directory / "socket"
        with Server(path, tuple(lab.torpor), env=lab.environment, cwd=lab.directory, **as_him) as server:
            done = as_ordinary(lab, "checkpoint", str(his), "-o", "image", "--server", "socket")
            assert done.returncode == 0, done.stderr
            found = (lab.directory / "image").stat()
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (ORDINARY, ORDINARY, 0o600)
            goes_on(his)
            done = as_ordinary(lab, "checkpoint", str(roots), "-o", "other", "--server", "socket")
            refused(done, 6, f"pid {roots}: ", "may not look into it")
            refused(as_ordinary(lab, "checkpoint", str(his), "-o", "/root/x", "--server", "socket"), 6, "Permission denied")
            goes_on(roots)
            refused_peer(json.dumps(ask(path, verb="check")), f"it serves user {ORDINARY}")
            refused(torpor("check", "--server", path), 6, f"its server is of user {ORDINARY}")
            assert server.process.poll() is None
        assert sorted(file.name for file in lab.directory.iterdir()) == ["image", "src"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a pid namespace")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
@pytest.mark.parametrize(("namespace", "what"), [("--pid", "process ids"), ("--mount", "files")])
def test_a_client_in_a_container(server: Server, namespace: str, what: str) -> None:
    peer = [sys.executable, "-c", PEER, str(server.path), "1"]
    done = subprocess.run(["unshare", "--fork", namespace, *peer], capture_output=True, text=True)
    if "unshare:" in done.stderr:
        pytest.skip(f"no such namespace can be made here: {done.stderr.strip()}")
    refused_peer(done.stdout, f"another view of {what}", "container")


# --- the protocol as it is documented


def examples() -> list[list[dict[str, Any]]]:
    blocks = (ROOT / "docs" / "serve.md").read_text().split("```json\n")[1:]
    return [[json.loads(line) for line in block.partition("```")[0].splitlines()] for block in blocks]


def alike(documented: Any, found: Any) -> bool:
    """Whether two answers have the same fields, with values of the same types."""
    if isinstance(documented, dict):
        return isinstance(found, dict) and documented.keys() == found.keys() and all(alike(documented[k], found[k]) for k in found)
    if isinstance(documented, list):
        return isinstance(found, list) and len(documented) == len(found) and all(map(alike, documented, found))
    return type(documented) is type(found)


def test_the_examples_of_the_documentation(server: Server, tmp_path: Path) -> None:
    """Each request of docs/serve.md is made, in order, of a real program, and answered as it says there."""
    with altered.running(["sleep", "1000"]) as pid:

        def here(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: here(one) for name, one in value.items()}
            if isinstance(value, list):
                return [here(one) for one in value]
            return pid if value == 42 else value.replace("/home/ann", str(tmp_path)) if isinstance(value, str) else value

        asked = []
        for example in examples():
            if len(example) == 1:
                assert list(example[0]) == ["torpor", "progress"]
                continue
            asked_for, documented = here(example)
            if asked_for["verb"] == "restart":
                subprocess.run(["true"], check=True)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie has its id, so that it cannot have it again
            answer = ask(server.path, **{name: value for name, value in asked_for.items() if name != "torpor"})
            assert alike(documented, answer), (asked_for, answer)
            for name in ("exit_code", "error", "obstacles"):
                assert documented.get(name) == answer.get(name), (asked_for, answer)
            if asked_for["verb"] == "restart":
                assert answer["result"]["own_pid"] == pid
                os.kill(answer["result"]["pid"], 9)
            asked.append(asked_for["verb"])
        assert {"checkpoint", "check", "verify", "restart"} == set(asked)


def test_the_table_of_the_documentation() -> None:
    """Every field of every verb is in it, and what is needed is called so."""
    rows = [line.split("|")[1:5] for line in (ROOT / "docs" / "serve.md").read_text().splitlines() if line.startswith("|")]
    verb, found = "", {}
    for first, name, _, text in rows[2:]:
        verb = first.strip(" `") or verb
        found[verb, name.strip(" `")] = "needed" in text
    real = {("every one", name): False for name in request.COMMON}
    real |= {(verb, name): name in request.REQUIRED[verb] for verb, (_, fields) in request.VERBS.items() for name in fields}
    assert found == real


# --- JSON without the module


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters())
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner), max_leaves=20)


@settings(deadline=None)
@given(VALUES)
def test_plain_json_is_json(value: Any) -> None:
    assert json.loads(plain.dumps(value)) == value
    for text in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, ensure_ascii=False, separators=(",", ":"))):
        assert plain.loads(text) == value


@settings(deadline=None)
@given(st.text('{}[]",:\\u0d8 e1-.tn') | st.binary().map(lambda data: data.decode("latin-1")))
def test_what_is_no_json_is_refused(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = ValueError
    try:
        found: Any = plain.loads(text)
    except ValueError:
        found = ValueError
    if expected is not ValueError:
        assert found == expected
    # What it takes beyond that (control characters in strings, numbers such as 01) harms nobody.
