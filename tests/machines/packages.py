"""Debian packages of any architecture, fetched by an apt that has a state of its own.

The machine's own apt and dpkg never hear of the other architecture. They are only asked which mirror they use; how it is
reached (a proxy, say) is in apt's configuration files, which are read here too.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class FetchFailure(Exception):
    """A package cannot be had; the text says what apt said."""


def mirror() -> str:
    """The address of the Debian archive that this machine's own apt names for its own release."""
    here = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    listed = _run(["apt-get", "indextargets", "--format", "$(RELEASE) $(CODENAME) $(REPO_URI)", "Created-By: Packages"])
    for line in listed.splitlines():
        release, codename, address = line.split(" ", 2)
        if here in (release, codename):
            return address
    raise FetchFailure(f"apt's sources name no archive of this machine's own release {here!r}")


class Apt:
    """The packages of one architecture and suite, with `sources` these too. `state` holds apt's lists, `archives` the packages."""

    def __init__(self, architecture: str, suite: str, state: Path, archives: Path, sources: bool = False) -> None:
        self._archives = archives
        for directory in (state / "lists/partial", state / "none/partial", archives / "partial"):
            directory.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        kinds = ("deb", "deb-src") if sources else ("deb",)
        lines = [f"{kind} [arch={architecture} signed-by={KEYRING}] {mirror()} {suite} main\n" for kind in kinds]
        (state / "sources.list").write_text("".join(lines))
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",  # _apt may not enter a home directory
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
            "Dir::Etc::sourcelist": state / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": state,
            "Dir::State::lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state,
        }
        if sources:
            settings["APT::Update::Error-Mode"] = "any"  # a mirror may have no sources
        self._options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        self._empty = ["-o", f"Dir::Cache::archives={state / 'none'}"]
        self._apt("update", "-qq")

    def _apt(self, *words: str | Path) -> str:
        return _run(["apt-get", *self._options, *map(str, words)])

    def fetch(self, packages: Sequence[str]) -> list[Path]:
        """`packages` and all they depend on, downloaded where they are not yet there."""
        names = self._named("install", *packages)
        self._apt("-o", f"Dir::Cache::archives={self._archives}", "-qq", "-y", "--download-only", "install", *packages)
        return [self._archives / name for name in names]

    def fetch_kernel(self, package: str) -> Path:
        """The kernel image that `package` stands for, without the tools that would install it."""
        depends = _run(["apt-cache", *self._options, "depends", "--important", package])
        image = re.search(r"Depends: (linux-image-\S+)", depends)
        if not image:
            raise FetchFailure(f"{package} depends on no kernel image:\n{depends}")
        return self.fetch_alone(image[1])

    def fetch_alone(self, package: str) -> Path:
        """`package` without what it depends on."""
        return self._fetch_one("download", package)

    def fetch_source(self, package: str) -> Path:
        """The archive that the source package `package` begins with: its authors' own, before Debian's changes."""
        return self._fetch_one("source", "--download-only", "--tar-only", package)

    def _fetch_one(self, *words: str) -> Path:
        """The one file that a command fetches which writes into the current directory, and not all at once."""
        (name,) = self._named(*words)
        if not (self._archives / name).exists():
            partial = self._archives / "partial"
            _run(["apt-get", *self._options, "-qq", *words], cwd=partial)
            (partial / name).rename(self._archives / name)
        return self._archives / name

    def _named(self, *words: str) -> list[str]:
        """The file names of the packages that a command would fetch had it none of them."""
        lines = self._apt(*self._empty, "-qq", "-y", "--print-uris", *words).splitlines()
        return [line.split()[1] for line in lines if line.startswith("'")]


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise FetchFailure(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout
