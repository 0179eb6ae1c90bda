"""The house of docs/architecture.md: imports go down its floors only, and a plain start imports no slow module.

Every import counts, also one inside a function or under TYPE_CHECKING: a floor that needs the name of something above
it is on the wrong floor.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, SRC

# Higher may import lower. Names of equal height may not import each other; what is in one package may.
FLOORS = {
    "__main__": 7,
    "cli": 6,
    "__init__": 5,  # the public names
    "serve": 5,
    "checkpoint": 4,
    "restart": 4,
    "preflight": 4,
    "ahead": 4,
    "pages": 4,
    "parent": 4,
    "merge": 4,
    "watch": 4,
    "rebuild": 4,
    "selfsave": 4,
    "verify": 4,
    "objects": 3,
    "lazy": 3,
    "tasks": 2,
    "arch": 1,
    "image": 0,
    "linux": 0,
    "collector": -1,
    "errors": -1,
}
# The stories may ask preflight what stands in the way, and each has a second chapter; nothing else goes sideways.
SIDEWAYS = {
    ("checkpoint", "preflight"),
    ("restart", "preflight"),
    ("checkpoint", "pages"),
    ("checkpoint", "ahead"),
    ("ahead", "pages"),
    ("checkpoint", "parent"),
    ("pages", "parent"),
    ("watch", "checkpoint"),
    ("watch", "merge"),
    ("restart", "rebuild"),
    ("selfsave", "checkpoint"),
}
# Costly at start-up (docs/architecture.md, "Rules of every file").
SLOW = ("typing", "dataclasses", "re", "subprocess", "json", "inspect", "argparse")


def imports(path: Path, module: str, *, package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import in the file, for `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if package else module.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif (
            # importlib.import_module("torpor.x"), __import__("torpor.x")
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
            and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        ):
            yield node.lineno, node.args[0].value


def violations(src: Path) -> list[str]:
    """Every import under `src`/torpor that does not go down, as `file:line: sentence`."""
    found = []
    package_root = src / "torpor"
    for path in sorted(package_root.rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if package else parts)
        here = parts[1]
        if here not in FLOORS:
            found.append(f"{path.relative_to(src)}: {here!r} has no floor; see docs/architecture.md and FLOORS")
            continue
        for line, name in imports(path, module, package=package):
            if (name != "torpor" and not name.startswith("torpor.")) or name == "torpor.__version__":
                continue
            there = [*name.split("."), "__init__"][1]
            if there not in FLOORS:
                # `from torpor import checkpoint_self`: a public name, not a module.
                if (package_root / there).exists() or (package_root / f"{there}.py").exists():
                    continue  # reported above, where it is
                there = "__init__"
            if here == there or FLOORS[there] < FLOORS[here] or (here, there) in SIDEWAYS:
                continue
            found.append(f"{path.relative_to(src)}:{line}: {here} imports {name}: {there} is not below {here}")
    return found


def test_imports_go_down_only() -> None:
    assert violations(SRC) == []


BAD = {
    # file: (content, what must be said about it; "" = nothing)
    "torpor/__init__.py": ("from .checkpoint import checkpoint\n", ""),
    "torpor/__main__.py": ("from torpor.cli import main\n", ""),
    "torpor/errors.py": ("from torpor.linux import libc\n", "errors imports torpor.linux.libc"),
    "torpor/checkpoint.py": ("from torpor.preflight import check\nimport torpor.objects.pipes\n", ""),
    "torpor/restart.py": ("from . import checkpoint\n", "restart imports torpor.checkpoint"),
    "torpor/preflight.py": ("def f():\n    import torpor.cli.main\n", "preflight.py:2: preflight imports torpor.cli"),
    "torpor/stray.py": ("", "'stray' has no floor"),
    "torpor/cli/__init__.py": ("from torpor import checkpoint_self, errors\nimport torpor\n", ""),
    "torpor/objects/__init__.py": ("", ""),
    "torpor/objects/files.py": ("from ..tasks import freeze\nfrom . import pipes\nfrom .pipes import x\n", ""),
    "torpor/objects/pipes.py": ("from torpor import open_image\n", "objects imports torpor.open_image"),
    "torpor/tasks/freeze.py": (
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from ..objects.files import File\n",
        "tasks/freeze.py:3: tasks imports torpor.objects.files.File",
    ),
    "torpor/tasks/remote.py": ("import importlib as i\ni.import_module('torpor.cli')\n", "tasks imports torpor.cli"),
    "torpor/arch/x86.py": ("from .. import __version__\nfrom torpor import tasks as t\n", "arch imports torpor.tasks"),
    "torpor/arch/arm.py": ("from torpor.image import a\nfrom ..linux.b import c\nfrom torpor.errors import X\n", ""),
    "torpor/image/__init__.py": ("from .. import linux\n", "image/__init__.py:1: image imports torpor.linux"),
    "torpor/image/pages.py": ("from ..linux.memory import read\nimport os, struct\n", "image imports torpor.linux"),
    "torpor/linux/procfs.py": ("import torpor.image.records\n", "linux imports torpor.image.records"),
}


def test_a_bad_tree_is_detected(tmp_path: Path) -> None:
    for name, (content, _) in BAD.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = violations(tmp_path)
    expected = {name: says for name, (_, says) in BAD.items() if says}
    for name, says in expected.items():
        assert any(v.startswith(name) and says in v for v in found), "\n".join([f"not found: {name}: {says}", *found])
    assert len(found) == len(expected), "\n".join(found)


def importtime(*argv: str) -> list[str]:
    return [sys.executable, "-S", "-X", "importtime", *argv]  # -S: what `site` imports is not torpor's doing


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SRC)}


def imported(*argv: str, status: int = 0) -> set[str]:
    """The modules that `python ARGV` imports; it must end with `status`."""
    done = subprocess.run(
        importtime(*argv),
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert lines, done.stderr
    return {line.split("|")[-1].strip() for line in lines}


def slow(modules: set[str]) -> list[str]:
    return sorted(m for m in modules if m.split(".")[0] in SLOW)


def test_slow_imports_are_seen() -> None:
    assert {"argparse", "re"} <= set(slow(imported("-c", "import argparse")))
    assert slow(imported("-c", "import os, struct")) == []


@pytest.mark.usefixtures("torpor_runs")
def test_a_plain_checkpoint_and_restart_import_nothing_slow(tmp_path: Path) -> None:
    torpor = str(ROOT / "bin" / "torpor")
    image = tmp_path / "image"
    sleep = subprocess.Popen(
        ["sleep", "2"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        commands = {"version": imported(torpor, "--version")}
        commands["checkpoint"] = imported(torpor, "checkpoint", str(sleep.pid), "-o", str(image), "--kill")
    finally:
        sleep.kill()
        sleep.wait()
    commands["restart"] = imported(torpor, "restart", str(image))
    for command, modules in commands.items():
        assert "torpor.cli" in modules, command
        assert slow(modules) == [], command
        # What large programs need, what sockets need, and what only a server and its client do.
        others = {"threading", "queue", "functools", "collections", "enum", "signal", "socket", "_socket", "select"}
        assert modules & others == set(), command
        assert not [name for name in modules if name.startswith(("torpor.serve", "torpor.verify"))], command
