"""Disk signatures on real partition tables: what we write, sgdisk, blkid and the kernel read as we do.

Tables are sgdisk's, on loop devices that the kernel looks for partitions on; pages go through direct I/O, as they do for LUNs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.drives import raw
from blkrecov.drives.store import IoCounter
from blkrecov.errors import InvalidArgument
from blkrecov.signature import Signature, read_signature, rewritten
from blkrecov.units import KIB, MIB, Bytes
from tests.kernel.lab import run

SIZE = 8 * MIB
GUID = UUID("0a0b0c0d-0e0f-4a4b-8c8d-010203040506")
WANTED = Signature(UUID("deadbeef-0000-4000-8000-00000000beef"))
# The first from 1 MiB to 2 MiB, the second from 2 MiB to 4 MiB, in sectors.
PARTITIONS = ((2048, 2048), (4096, 4096))


@dataclass(frozen=True)
class Disk:
    """A loop device."""

    node: str
    size: Bytes

    def signature(self) -> Signature | None:
        return read_signature(partial(raw.read, self.node, counter=IoCounter()), self.size)

    def rewrite(self, wanted: Signature) -> int:
        """The number of writes."""
        writes = rewritten(partial(raw.read, self.node, counter=IoCounter()), self.size, wanted)
        for write in writes:
            raw.write(self.node, write.offset, write.data, IoCounter())
        return len(writes)

    def kernel_s_partitions(self) -> tuple[tuple[int, int], ...]:
        """Start and length of each in sectors, as the kernel reads the table now."""
        run("udevadm", "settle", "--timeout=30")  # udev's look at a partition would make it busy.
        run("blockdev", "--rereadpt", self.node)
        directories = sorted(Path(f"/sys/class/block/{Path(self.node).name}").glob("loop*p*"))
        return tuple((int((one / "start").read_text()), int((one / "size").read_text())) for one in directories)


@contextmanager
def attached(path: Path) -> Iterator[Disk]:
    node = run("losetup", "--find", "--show", "--partscan", str(path))
    try:
        yield Disk(node, Bytes(path.stat().st_size))
    finally:
        run("udevadm", "settle", "--timeout=30")
        run("losetup", "--detach", node)


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    run("sgdisk", f"--disk-guid={GUID}", "--new=1:2048:4095", "--new=2:4096:8191", str(path))
    return path


def agree_on_gpt(disk: Disk, guid: UUID) -> None:
    """All who read tables find this one sound, with this GUID and with the partitions that were made."""
    assert disk.signature() == Signature(guid)
    assert "No problems found" in run("sgdisk", "--verify", disk.node)
    assert f"Disk identifier (GUID): {str(guid).upper()}" in run("sgdisk", "--print", disk.node)
    assert run("blkid", "-p", "-o", "value", "-s", "PTUUID", disk.node) == str(guid)
    assert disk.kernel_s_partitions() == PARTITIONS


def test_a_gpt_is_read_and_rewritten(gpt: Path) -> None:
    """One page for each header."""
    with attached(gpt) as disk:
        agree_on_gpt(disk, GUID)
        assert disk.rewrite(Signature(GUID)) == 0
        assert disk.rewrite(WANTED) == 2
        agree_on_gpt(disk, WANTED.as_guid())


@pytest.mark.parametrize("size", [SIZE + 4 * MIB, SIZE + 512, SIZE - 512, 4 * MIB + 33 * 512])
def test_a_disk_of_another_size_has_its_second_table_at_the_end(gpt: Path, size: int) -> None:
    """By much, by less than the table is long, and down to the last block that is not the second partition's."""
    os.truncate(gpt, size)
    with attached(gpt) as disk:
        assert "No problems found" not in run("sgdisk", "--verify", disk.node)
        disk.rewrite(WANTED)
        agree_on_gpt(disk, WANTED.as_guid())
        last = run("sgdisk", "--print", disk.node).partition("last usable sector is ")[2].split()[0]
        assert int(last) == size // 512 - 34


def test_a_disk_too_small_for_the_second_table_is_not_written(gpt: Path) -> None:
    os.truncate(gpt, 4 * MIB + 32 * 512)
    with attached(gpt) as disk:
        with pytest.raises(InvalidArgument, match="blocks up to 8191"):
            disk.rewrite(WANTED)
        assert disk.signature() == Signature(GUID)


@pytest.mark.parametrize("damaged", [512, KIB, SIZE - 33 * 512, SIZE - 512])
def test_a_damaged_table_is_made_anew(gpt: Path, damaged: int) -> None:
    """Header or entries, of the first and of the second."""
    with gpt.open("r+b") as file:
        file.seek(damaged)
        file.write(b"\xff" * 512)
    with attached(gpt) as disk:
        disk.rewrite(WANTED)
        agree_on_gpt(disk, WANTED.as_guid())


def test_an_mbr_is_read_and_rewritten(gpt: Path) -> None:
    """sgdisk makes one of its GPT, and gives it no signature; blkid does not show a signature of zero."""
    run("sgdisk", "--gpttombr=1:2", str(gpt))
    with attached(gpt) as disk:
        assert disk.signature() == Signature(0)
        assert disk.rewrite(Signature(0x1A2B3C4D)) == 1
        assert disk.signature() == Signature(0x1A2B3C4D)
        assert run("blkid", "-p", "-o", "value", "-s", "PTUUID", disk.node) == "1a2b3c4d"
        assert disk.kernel_s_partitions() == PARTITIONS
