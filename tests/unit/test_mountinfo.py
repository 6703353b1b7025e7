"""What the kernel says of mounts and swap: names may be any bytes, and none makes an error."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import holders, mountinfo, observer
from blkrecov.blockdev import plain, printable
from blkrecov.mountinfo import Mount, parse

ROOT = b"21 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw,errors=remount-ro\n"


def escaped(name: bytes) -> bytes:
    """Kernel: fs/proc_namespace.c, mangle()."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes((byte,)) for byte in name)


def mounted_on(point: bytes, source: bytes = b"eve") -> bytes:
    return b"36 21 0:40 /sub " + escaped(point) + b" rw,nosuid - fuse.x " + escaped(source) + b" rw,user_id=1000\n"


def test_a_line_of_each_kind() -> None:
    """Optional fields are any number, none too; they end at the lone dash."""
    assert parse(ROOT + mounted_on(b"/srv/my disks - x", b"")) == (
        Mount("254:1", "/", "/", "rw,relatime", "ext4", "/dev/vda1"),
        Mount("0:40", "/sub", "/srv/my disks - x", "rw,nosuid", "fuse.x", ""),
    )


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name), st.binary().filter(lambda name: b"\0" not in name))
def test_any_bytes_may_be_a_name(point: bytes, source: bytes) -> None:
    """It is read as it is, and the mounts beside it as well."""
    first, odd, last = parse(ROOT + mounted_on(point, source) + ROOT)
    assert first == last
    assert (os.fsencode(odd.point), os.fsencode(odd.source)) == (point, source)


@given(st.binary())
def test_no_bytes_are_an_error(content: bytes) -> None:
    """Those that are no line are passed over."""
    assert parse(ROOT + content + b"\n" + ROOT)[0] == parse(ROOT)[0]
    parse(content)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"36 21 0:40 / /x",
        b"36 21 0:40 / /x rw",
        b"36 21 0:40 / /x rw shared:1 fuse eve rw",
        b"36 21 0:40 / /x rw - fuse",
        b"36 21 0:a / /x rw - fuse eve rw",
    ],
)
def test_what_cannot_be_understood_is_passed_over(line: bytes) -> None:
    """The others are mounted all the same."""
    assert parse(ROOT + line + b"\n" + ROOT) == 2 * parse(ROOT)


def test_no_path_has_a_nul() -> None:
    """To ask for one would be an error of its own kind."""
    assert parse(mounted_on(b"/x").replace(b"/x", b"/\\000x"))[0].point == "/\\000x"


def test_this_machine_has_a_root() -> None:
    assert "/" in {mount.point for mount in mountinfo.read()}


def test_swaps(tmp_path: Path) -> None:
    """Kernel: mm/swapfile.c, swap_show(). A kernel without swap has no such file."""
    file = tmp_path / "swaps"
    assert mountinfo.swaps(file) == ()
    file.write_bytes(
        b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        b"/dev/vda2                               partition\t524284\t\t0\t\t-2\n"
        b"/srv/a\\040\xff\xc2\xa0b                      file\t\t524284\t\t0\t\t-3\n"
    )
    assert mountinfo.swaps(file) == ("/dev/vda2", os.fsdecode(b"/srv/a \xff\xc2\xa0b"))


def test_names_are_told_without_surrogates() -> None:
    """A message does nothing to a terminal either."""
    name = os.fsdecode(b"/srv/\xff\x1b[2J \xc2\xa0\xc3\xa4")
    assert msgspec.json.decode(msgspec.json.encode(plain(name))) == "/srv/\\udcff\x1b[2J \xa0ä"
    assert printable(name) == "/srv/\\udcff\\x1b[2J \\xa0ä"


def test_a_process_may_have_any_bytes_as_its_name(tmp_path: Path) -> None:
    """prctl(2), PR_SET_NAME; here it is the name of the program's file, whose working directory is looked for."""
    program = tmp_path / os.fsdecode(b") \xff\x1b")
    program.symlink_to(sys.executable)
    command = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [program, "-ISc", command], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = holders.users((str(tmp_path),))
        process.communicate(b"")
    assert f"process {process.pid} () \\udcff\\x1b)" in found


def test_a_file_may_have_any_bytes_as_its_name(tmp_path: Path) -> None:
    """That of a loop device, as sysfs tells it."""
    (tmp_path / "loop0").mkdir()
    (tmp_path / "loop0" / "backing_file").write_bytes(b"/srv/\xff\n")
    assert list(holders._files_of({7: "sda"}, str(tmp_path), "loop*/backing_file", "{0}")) == []


def test_the_mounts_of_what_is_no_device() -> None:
    assert observer.mounts("/nowhere") == ()
