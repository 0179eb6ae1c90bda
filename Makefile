# make demo       a computation is checkpointed, killed, restarted: as root and as an ordinary user
# make test       everything a change must pass: ruff, mypy, pytest
# make test-full  the same with more of everything that is random
# make test-machines  the part of the tests that runs on other kernels and processors, under QEMU (one alone: ARGS='-k i386')
# make lint       ruff and mypy alone
# make bench      what checkpoints and restarts cost, beside moving the same bytes without torpor (ARGS='--history FILE --svg FILE')
#
# What is missing is installed from Debian (as root; otherwise you are told what to install), the Python tools go into
# .venv. A second run installs nothing. PYTHON=... chooses the interpreter, ARGS=... goes to pytest or the benchmarks.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?=
# Tests start torpor thousands of times: to compile it each time would double what that takes.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=
MACHINE := $(shell uname -m)

# perl-base, bash, gzip, coreutils and util-linux are part of every Debian.
TEST_PACKAGES := python3 python3-venv make gcc libc6-dev binutils perl ruby ffmpeg sqlite3 xz-utils
ifeq ($(MACHINE),x86_64)
# gcc-12-multilib and not gcc-multilib: that one conflicts with Debian's cross compilers.
TEST_PACKAGES += gcc-12-multilib libc6-dev-i386
# What tests/machines builds for and boots.
TEST_PACKAGES += qemu-system-x86 qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross
TEST_PACKAGES += gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
TEST_PACKAGES += qemu-system-misc gcc-riscv64-linux-gnu libc6-dev-riscv64-cross
TEST_PACKAGES += gcc-s390x-linux-gnu libc6-dev-s390x-cross
TEST_PACKAGES += qemu-system-ppc gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross
TEST_PACKAGES += gcc-powerpc-linux-gnu libc6-dev-powerpc-cross
# bc, bison, bzip2 and flex would be for two kernels that are built, if no copy is at hand: who wants that installs them.
endif

# The interpreter: Debian's own before any other, because tests and demo also run as users who may not enter the home
# directory in which another one was built.
define functions
python() {
	local p
	for p in $(PYTHON) /usr/bin/python3 /usr/bin/python3.1[1-9] python3; do
		if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then command -v "$$p"; return; fi
	done
	return 1
}
need() {
	local p missing=()
	for p; do
		[[ "$$(dpkg-query -W -f '$${db:Status-Status}' "$$p" 2>/dev/null)" == installed ]] || missing+=("$$p")
	done
	(($${#missing[@]})) || return 0
	if ! command -v apt-get >/dev/null; then
		echo "make: not a Debian system: see to it that you have what these packages hold: $${missing[*]}" >&2
	elif ((EUID)); then
		echo "make: these packages are missing; install them as root: apt-get install $${missing[*]}" >&2
		exit 1
	else
		echo "make: installing $${missing[*]}" >&2
		apt-get -qq update
		DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "$${missing[@]}" >/dev/null
	fi
}
old_python() {
	echo "make: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3" >&2
	exit 1
}
endef

.PHONY: help demo test test-full test-machines lint bench pytest packages venv clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo:
	@$(functions)
	python >/dev/null || need python3
	py=$$(python) || old_python
	exec "$$py" demo/run

bench:
	@$(functions)
	need python3 gcc libc6-dev
	py=$$(python) || old_python
	exec "$$py" benchmarks/run $(ARGS)

test: packages venv lint pytest

test-full: export TORPOR_TEST_FULL := 1
test-full: test

test-machines: packages venv
	@.venv/bin/python -m pytest tests/machines $(ARGS)

lint: venv
	@.venv/bin/ruff check .
	.venv/bin/mypy src tests tools benchmarks demo
	for script in bin/torpor benchmarks/run demo/run; do .venv/bin/mypy "$$script"; done

pytest: venv
	@.venv/bin/python -m pytest $(ARGS)

packages:
	@$(functions)
	need $(TEST_PACKAGES)

# .venv/made-from says for which dependencies and interpreter the tools were installed.
venv:
	@$(functions)
	python >/dev/null || need python3
	py=$$(python) || old_python
	project='import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(p["build-system"], p["project"])'
	state=$$("$$py" -VV; echo "$$py"; "$$py" -c "$$project")
	if [[ "$$(cat .venv/made-from 2>/dev/null)" != "$$state" ]]; then
		"$$py" -c 'import ensurepip' 2>/dev/null || need python3-venv
		echo "make: tools into .venv for $$py" >&2
		rm -rf .venv
		"$$py" -m venv .venv
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
		echo "$$state" >.venv/made-from
	fi

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
