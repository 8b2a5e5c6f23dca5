"""What the real file system does where the machine cannot do what it is asked."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from logd.runtime.files import RealFileSystem

_WITHOUT_RESERVING = """
import ctypes, errno, struct, sys

from logd.runtime.files import RealFileSystem

LOAD_NUMBER, IS_EQUAL, RETURN = 0x20, 0x15, 0x06
REFUSE, ALLOW = 0x00050000 | errno.EOPNOTSUPP, 0x7FFF0000
FALLOCATE = 285

rules = [(LOAD_NUMBER, 0, 0, 0), (IS_EQUAL, 0, 1, FALLOCATE), (RETURN, 0, 0, REFUSE),
         (RETURN, 0, 0, ALLOW)]
program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
filter_ = ctypes.create_string_buffer(
    struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(program))
)
prctl = ctypes.CDLL(None).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, filter_, 0, 0):
    sys.exit(77)

file = RealFileSystem().open(sys.argv[1], create=True)
file.pwritev([b"kept"], 0)
file.allocate(1 << 20)
print(file.size())
"""
"""Forbids itself the system call, as a file system that cannot reserve space would."""


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="a filter of Linux on x86_64"
)
def test_where_space_cannot_be_reserved_nothing_is_written_in_its_place(tmp_path: Path) -> None:
    """Zeros in each block would land on what is appended meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_RESERVING, f"{tmp_path}/a"],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip("this machine lets nobody filter its own system calls")

    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def test_what_the_machine_does_not_let_one_look_at_is_not_taken_for_missing(tmp_path: Path) -> None:
    """A loop of links is an error to everybody; a mode would be none to root."""
    files = RealFileSystem()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")

    for missing in ("missing", "missing/below", "file/below"):
        assert not files.exists(f"{tmp_path}/{missing}")
        assert not files.is_directory(f"{tmp_path}/{missing}")
    for look in (files.exists, files.is_directory):
        with pytest.raises(OSError, match="Too many levels"):
            look(f"{tmp_path}/loop/below")
