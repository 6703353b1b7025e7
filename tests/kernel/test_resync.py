"""Shadow copies put back onto LUNs, on a real kernel: restores that succeed, that are held up, and that are given up.

What a test catches halfway is a restore onto a drive whose writes are slow. That drive is none of the five that carry the
configuration, so it holds up the copy and little else.
"""

import hashlib
import json
import mmap
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock
from uuid import UUID

import msgspec
import pytest

from blkrecov import geometry, restoring, resync
from blkrecov.array import Array
from blkrecov.dm import counters, names
from blkrecov.dm.status import SnapshotUsage
from blkrecov.drives import raw
from blkrecov.drives.store import IoCounter
from blkrecov.engine import fresh_ids
from blkrecov.errors import CannotRevertDiskId, Code
from blkrecov.events import EventLog
from blkrecov.geometry import Request
from blkrecov.model import Layout, Lun, Task, TaskState
from blkrecov.monitor import Monitor
from blkrecov.page83 import sysfs
from blkrecov.resync import Options
from blkrecov.session import RestoreSession
from blkrecov.shadows import ShadowRequest
from blkrecov.signature import Signature, read_signature, rewritten
from blkrecov.units import KIB, MIB, SECTOR, Bytes
from tests.kernel.lab import (
    BLOCK,
    DEADLINE_S,
    Lab,
    Slow,
    Writer,
    checksum,
    disagreements,
    disk_of,
    fill,
    in_sync,
    lun,
    made,
    our_devices,
    overwrite,
    read,
    recover,
    run,
    show,
    size_of,
    until,
    write,
)

CHUNK: Final = 64 * KIB
LAYOUTS: Final = ("linear", "raid1", "raid5", "raid6", "raid10")
PAIRS: Final = dict(zip(LAYOUTS, (*LAYOUTS[1:], LAYOUTS[0]), strict=True))
"""Each layout, and the one that it is restored onto."""


def shadow(origin: str, name: str, *, store: int = 4 * MIB, drives: Sequence[str] = ()) -> ShadowRequest:
    return ShadowRequest(
        origin=origin, name=name, size=Bytes(store), layout=Layout.LINEAR, drives=tuple(drives), exported=False
    )


def plex(origin: str, name: str, layout: str, *, drives: Sequence[str] = ()) -> ShadowRequest:
    return ShadowRequest(
        origin=origin, name=name, plex=True, layout=Layout(layout), drives=tuple(drives), exported=False
    )


def take(array: Array, *requests: ShadowRequest) -> None:
    """Shadow copies of one moment; when it returns, plexes are filled."""
    proposal, task = array.propose_shadows(requests)
    if task is None:
        array.carry_out(proposal)
    else:
        ended(array, array.start(proposal, task))


def begun(array: Array, *pairs: str, revert: bool = False, options: Options | None = None) -> Task:
    """A restore that has begun. Pairs are written as on the command line."""
    session = RestoreSession(array)
    session.begin()
    for pair in pairs:
        source, _, target = pair.partition(":")
        session.add(source, target or None)
    return session.resync(options, revert_identity=revert)


def ended(array: Array, task: Task, state: TaskState = TaskState.COMPLETED) -> Task:
    task = array.wait(task.id, timeout_s=2 * DEADLINE_S)
    assert task.state is state, task
    assert array.trouble == {}
    return task


def restored(array: Array, *pairs: str, revert: bool = False, options: Options | None = None) -> Task:
    """A restore, from its beginning to its good end."""
    return ended(array, begun(array, *pairs, revert=revert, options=options))


def nodes(array: Array, *names: str) -> dict[str, str]:
    return {name: disk_of(array, name) for name in names}


def checksums(array: Array, *names: str) -> dict[str, str]:
    return {name: checksum(node) for name, node in nodes(array, *names).items()}


def written(array: Array, *drives: str) -> int:
    """Bytes that reached the block devices of drives, by the kernel's count."""
    total = 0
    for drive in drives:
        device = array.observed.backings[array.document.drive(drive).uuid].device
        total += int(Path("/sys/block", Path(device).name, "stat").read_text().split()[6]) * SECTOR
    return total


def allocated(lab: Lab) -> int:
    """Bytes that the drives' files take up."""
    return sum(lab.path(drive).stat().st_blocks * 512 for drive in lab.drives)


def free(array: Array) -> dict[str, int]:
    return {drive.name: geometry.free_length(array.document, drive) for drive in array.document.drives}


def saved(array: Array, name: str) -> int:
    """Bytes of its origin that a shadow copy has saved, by the kernel's count."""
    array.observe()
    usage = array.observed.store(array.document.lun(name))
    assert isinstance(usage, SnapshotUsage)
    return int(usage.allocated - usage.metadata) * SECTOR


def refused(path: str) -> bool:
    """Whether reads fail."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        # A disk that came up while it was not ready has no size yet.
        return os.preadv(descriptor, [mmap.mmap(-1, BLOCK)], 0) == 0
    except OSError:
        return True
    finally:
        os.close(descriptor)


# What it costs.


class Tree:
    """A file system with directories and files of all sizes, and what is in it."""

    def __init__(self, disk: str, point: Path) -> None:
        self._disk, self._point = disk, point
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", disk)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        self._point.mkdir(exist_ok=True)
        run("mount", self._disk, str(self._point))
        try:
            yield self._point
        finally:
            run("umount", str(self._point))

    def contents(self) -> dict[str, tuple[int, str]]:
        """Mode and checksum of every file; a directory's is that of nothing."""
        run("fsck.ext4", "-f", "-n", self._disk)
        with self.mounted() as top:
            return {
                str(path.relative_to(top)): (
                    path.stat().st_mode,
                    hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest(),
                )
                for path in sorted(top.rglob("*"))
            }


def grow_tree(top: Path, source: random.Random) -> None:
    for number in range(48):
        directory = top / f"directory{number % 6}" / f"below{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"file{number}"
        path.write_bytes(source.randbytes(source.choice((100, 5000, 300_000, 3_000_000))))
        path.chmod(source.choice((0o600, 0o644, 0o755)))


def change_tree(top: Path, source: random.Random) -> None:
    files = sorted(path for path in top.rglob("*") if path.is_file())
    for path in source.sample(files, 6):
        path.write_bytes(source.randbytes(20_000))
    for path in source.sample(sorted(top.rglob("file1*")), 3):
        path.unlink()
    (top / "directory1").rename(top / "elsewhere")
    (top / "new").mkdir()
    (top / "new/file").write_bytes(source.randbytes(50_000))


@pytest.mark.long
def test_a_restore_costs_what_was_changed_and_a_full_one_nothing_but_the_kernel_s_time(lab: Lab) -> None:
    """A LUN of 1 GiB of which 1 % of the chunks were changed, then the same LUN from a copy of which nothing is known."""
    size, source = 1024 * MIB, random.Random(1)
    lab.create(5, size=Bytes(1400 * MIB))
    with lab.opened() as array:
        disk = lun(array, "data", "raid6", size, drives=("d0", "d1", "d2", "d3"))
        drives = sorted(free(array))
        tree = Tree(disk, lab.directory / "mnt")
        with tree.mounted() as top:
            grow_tree(top, source)
        then = tree.contents()
        take(array, shadow("data", "then", store=64 * MIB, drives=("d4",)))
        with tree.mounted() as top:
            change_tree(top, source)
        assert tree.contents() != then
        # Anywhere else, until it is 1 %.
        count = size // CHUNK // 100
        with open(disk, "r+b") as file:
            while saved(array, "then") < count * CHUNK:
                for _ in range(count - saved(array, "then") // CHUNK):
                    file.seek(source.randrange(size // BLOCK) * BLOCK)
                    file.write(source.randbytes(BLOCK))
                file.flush()
                os.fsync(file.fileno())
        run("udevadm", "settle")
        changed = saved(array, "then")
        assert count * CHUNK <= changed <= (count + 8) * CHUNK

        in_sync(array, "data")
        before, start = written(array, *drives), time.monotonic()
        task = restored(array, "then:data")
        seconds, moved = [time.monotonic() - start], written(array, *drives) - before
        run("udevadm", "settle")
        # With each chunk its parity; then the copy's logs, the write-intent bitmaps, and each version of the configuration.
        assert task.bytes_kernel == changed <= moved <= 3 * changed + 2 * MIB
        assert saved(array, "then") == changed
        assert tree.contents() == then

        # Again, because others share the machine: the same chunks differ, whatever was written to them.
        for _ in range(4):
            start = time.monotonic()
            assert restored(array, "then:data").bytes_kernel == changed
            seconds.append(time.monotonic() - start)
            run("udevadm", "settle")

        take(array, plex("data", "full", "linear", drives=("d4",)))
        array.carry_out(array.propose_delete("then"))
        with tree.mounted() as top:
            change_tree(top, source)
        before, start = written(array, *drives), time.monotonic()
        whole = restored(array, "full:data")
        full_seconds, full_moved = time.monotonic() - start, written(array, *drives) - before
        assert whole.bytes_kernel == size <= full_moved <= 2 * size + 8 * MIB
        assert tree.contents() == then
    print(
        f"restore of 1 GiB of raid6, {changed // CHUNK} chunks changed: {moved / MIB:.2f} MiB written for {changed / MIB:.2f}, "
        f"{min(seconds):.2f} s, {task.bytes_process // KIB} KiB by this program"
    )
    print(
        f"restore of 1 GiB of raid6 in full: {full_moved / MIB:.2f} MiB written, {full_seconds:.2f} s, "
        f"{whole.bytes_process // KIB} KiB by this program"
    )
    assert whole.bytes_process < 2 * MIB
    print(f"that is {100 * min(seconds) / full_seconds:.1f} % of the time")
    # Less than a tenth where nobody else uses the machine: what it takes is processes and devices, not bytes, and those wait.
    assert min(seconds) <= full_seconds / 5


# A new target.


def test_a_new_target_is_like_the_source_s_origin_and_takes_no_more_room_than_there_is_data(lab: Lab) -> None:
    """Layout, size and the rest; what the origin never wrote is not copied, and nothing of an earlier LUN shows there."""
    size = 24 * MIB
    lab.create(4, size=Bytes(100 * MIB))
    with lab.opened() as array:
        disk = lun(array, "origin", "raid5", size)
        in_sync(array, "origin")
        # It takes note of that: before, members may differ where there is nothing.
        array.advance_all()
        fill(disk, 2 * MIB, seed=1, offset=10 * MIB)
        take(array, shadow("origin", "then"))
        digest = checksum(disk)
        fill(disk, MIB, seed=2, offset=11 * MIB)
        # Where the new LUN will be.
        fill(lun(array, "earlier", "raid5", size, exported=False), size, seed=3)
        in_sync(array, "earlier")
        array.carry_out(array.propose_delete("earlier"))
        run("sync")
        before = allocated(lab)
        task = restored(array, "then:new")
        run("sync")
        view, like = show(array, "new"), show(array, "origin")
        assert [view[key] for key in ("layout", "size", "chunk")] == [like[key] for key in ("layout", "size", "chunk")]
        assert view["page83"]["verified"]
        assert view["page83"]["naa"] != like["page83"]["naa"]
        in_sync(array, "new")
        assert (checksum(view["device"]), checksum(disk_of(array, "then"))) == (digest, digest)
        assert disagreements(array, "new") == []
        print(f"new LUN of 24 MiB with 2 MiB of data: {task.bytes_kernel / MIB:.2f} MiB copied")
        assert task.bytes_kernel <= 5 * MIB
        # The earlier LUN's space is given back as well.
        assert allocated(lab) < before


# Held up halfway.


FIRST, LENGTH = MIB, 6 * MIB
"""What of the LUN below is used: a partition table would have the rest."""


@dataclass
class Half:
    """LUN "vol" on a slow drive, with a shadow copy "then" of it, and another one, "other", of a later moment. It was all
    written since then, partly twice: so "other" has to save what the restore overwrites.
    """

    array: Array
    slow: Slow
    disk: str
    then: str
    other: str
    now: str

    def begin(self, options: Options | None = None) -> Task:
        """A restore that is somewhere in the middle, and stays there for many seconds."""
        self.slow.delay(20)
        task = begun(self.array, "then:vol", options=options)
        until("the first regions", lambda: copied(self.array).done * SECTOR > 8 * CHUNK)
        assert not copied(self.array).complete
        return task

    def wrong(self, array: Array, *, digest: str) -> list[str]:
        """What is not as it should be when all is over: the LUN's contents, which should be these, or a shadow copy's."""
        found = {
            "vol": checksum(disk_of(array, "vol")) == digest,
            "then": checksum(disk_of(array, "then")) == self.then,
            "other": checksum(disk_of(array, "other")) == self.other,
        }
        return [name for name, good in found.items() if not good]


def copied(array: Array, name: str = "vol") -> resync.Copied:
    return resync.copied(array.observe(), array.document.lun(name))


@contextmanager
def half(slow: Slow, lab: Lab, *, exported: bool = False) -> Iterator[Half]:
    lab.create(5)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "s0"), size=slow.drive, name="s0", spare=False, force=False)
        disk = lun(array, "vol", "linear", FIRST + LENGTH + MIB, drives=("s0",), exported=exported)
        if exported:
            run("sgdisk", "--new=1:2048:6143", "--new=2:6144:10239", disk)
            run("udevadm", "settle")
        fill(disk, LENGTH, seed=1, offset=FIRST)
        then = checksum(disk)
        take(array, shadow("vol", "then", store=8 * MIB, drives=("d0",)))
        fill(disk, LENGTH, seed=2, offset=FIRST)
        other = checksum(disk)
        take(array, shadow("vol", "other", store=8 * MIB, drives=("d1",)))
        fill(disk, LENGTH // 2, seed=3, offset=FIRST)
        yield Half(array, slow, disk, then, other, checksum(disk))


def through_port(array: Array, drive: str) -> int:
    """Bytes that were written to a drive since it was brought up."""
    live = array.observe().devices[names.dm_uuid(array.document.drive(drive).uuid, "drive")]
    return counters.sectors_written(live.number) * SECTOR


def told(lab: Lab, kind: str) -> list[str]:
    return [event.message for event in EventLog(lab.state).read() if event.kind.value == kind]


def identity(disk: str, node: str) -> tuple[int, int, str | None, str | None]:
    """The device numbers of disk and node, and what the disk and the kernel's own reading of it say that it is."""
    said = sysfs.scsi_disk(disk)
    return Path(disk).stat().st_rdev, Path(node).stat().st_rdev, said.naa, said.wwid


def buffered(path: str, offset: int = 0, length: int = MIB) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.sha256(os.pread(file.fileno(), length, offset)).hexdigest()


def test_a_target_is_not_ready_while_it_is_restored_and_itself_afterwards(slow: Slow, lab: Lab) -> None:
    """To whoever asks, at once and whatever is asked; and no page that was read before is shown again, of disk or partitions.

    Somebody has it open all the time, which keeps the old pages; so it has to be forced.
    """
    with half(slow, lab, exported=True) as it:
        array, disk = it.array, it.disk
        node = show(array, "vol")["node"]
        naa = show(array, "vol")["page83"]["naa"]
        who = identity(disk, node)
        parts = sysfs.partitions(disk)
        assert len(parts) == 2
        watched = [disk, f"{disk}1", f"{disk}2"]
        held = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in watched]
        try:
            old = [buffered(path) for path in (*watched, node)]
            assert buffered(disk, FIRST) == old[1]
            with mock.patch.object(restoring, "HOLD_PATIENCE_S", 0.0):
                task = it.begin(Options(forced=frozenset([naa])))
            assert identity(disk, node) == who
            begin = time.monotonic()
            assert [refused(path) for path in (disk, f"{disk}1", node)] == [True, True, True]
            with pytest.raises(OSError, match="Input/output error"):
                write(disk, 0, bytes(BLOCK))
            assert time.monotonic() - begin < 5
            asked = subprocess.run(["sg_turs", "--verbose", disk], check=False, capture_output=True, text=True)
            assert (asked.returncode, "not ready" in (asked.stdout + asked.stderr).lower()) == (2, True), asked
            view = show(array, "vol")
            assert (view["status"], view["page83"]["verified"], view["task"]) == ("not_ready", True, task.id)
            slow.delay(0)
            ended(array, task)
            assert identity(disk, node) == who
            assert sysfs.partitions(disk) == parts
            assert [refused(path) for path in (disk, f"{disk}1", node)] == [False, False, False]
            new = [buffered(path) for path in (*watched, node)]
            # Read past every cache.
            assert new == [
                hashlib.sha256(read(path, 0, MIB)).hexdigest() for path in (disk, f"{disk}1", f"{disk}2", node)
            ]
            assert (new[1] != old[1], new[2] != old[2]) == (True, True)
        finally:
            for descriptor in held:
                os.close(descriptor)
        assert it.wrong(array, digest=it.then) == []
        assert show(array, "vol")["status"] == "online"


def test_partitions_are_those_of_the_shadow_copy_afterwards(lab: Lab) -> None:
    """The disk was partitioned anew since then. Nobody has it open; no volume is there that the shadow copy has not."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", 16 * MIB)
        run("sgdisk", "--new=1:2048:6143", "--new=2:6144:10239", disk)
        run("udevadm", "settle")
        then = sysfs.partitions(disk)
        array.carry_out(array.propose_shadows([ShadowRequest(origin="vol", name="then")])[0])
        run("sgdisk", "--delete=2", disk)
        run("udevadm", "settle")
        assert len(sysfs.partitions(disk)) == 1
        restored(array, "then")
        assert sysfs.partitions(disk) == then
        assert "No problems found" in run("sgdisk", "--verify", disk)


# Signatures.


A, B, C = (UUID(int=0x4000_8000_0000_0000_0000 + number) for number in (0xA, 0xB, 0xC))


KINDS: Final = {
    "gpt": (Signature(A), Signature(B), Signature(C)),
    "mbr": (Signature(0xAAAAAAAA), Signature(0xBBBBBBBB), Signature(0xCCCCCCCC)),
}


def sign(disk: str, signature: Signature) -> None:
    size = Bytes(size_of(disk))
    for page in rewritten(partial(raw.read, disk, counter=IoCounter()), size, signature):
        raw.write(disk, page.offset, page.data, IoCounter())


def signature(array: Array, name: str) -> Signature:
    """As it is on the disk, whose partition table is sound by all who know about such."""
    disk = disk_of(array, name)
    found = read_signature(partial(raw.read, disk, counter=IoCounter()), Bytes(size_of(disk)))
    assert found is not None
    if found.kind == "gpt":
        assert "No problems found" in run("sgdisk", "--verify", disk)
    assert run("blkid", "-p", "-o", "value", "-s", "PTUUID", disk) == str(found)[4:]
    return found


def partitioned(array: Array, name: str, kind: str, size: int, signature: Signature) -> str:
    """A LUN with a partition table of that kind, and a partition of 2 MiB."""
    disk = lun(array, name, "linear", size, exported=False)
    run("sgdisk", "--new=1:2048:6143", disk)
    if kind == "mbr":
        run("sgdisk", "--gpttombr=1", disk)
    sign(disk, signature)
    return disk


@pytest.mark.long
def test_a_disk_keeps_its_own_signature_unless_it_is_to_have_the_original_s(lab: Lab) -> None:
    """Onto the origin, onto LUNs of every size, and onto a new one; partition tables are sound each time."""
    sizes = {
        "gpt": {"larger": 24 * MIB, "same": 16 * MIB, "smaller": 8 * MIB},
        "mbr": {"larger": 24 * MIB},
    }
    lab.create(3, size=Bytes(200 * MIB))
    with lab.opened() as array:
        for kind, (first, second, third) in KINDS.items():
            disk = partitioned(array, kind, kind, 16 * MIB, first)
            fill(disk, 2 * MIB, seed=1, offset=MIB)
            take(array, *(shadow(kind, f"{name}-of-{kind}") for name in sizes[kind]))
            fill(disk, 2 * MIB, seed=2, offset=MIB)
            sign(disk, second)
            for name, size in sizes[kind].items():
                partitioned(array, f"{name}-{kind}", kind, size, third)
        back = [f"larger-of-{kind}:{kind}" for kind in KINDS]
        restored(array, *back)
        assert [signature(array, kind) for kind in KINDS] == [second for _, second, _ in KINDS.values()]
        restored(array, *back, revert=True)
        assert [signature(array, kind) for kind in KINDS] == [first for first, _, _ in KINDS.values()]
        for kind in KINDS:
            # The original has it, and no two may.
            with pytest.raises(CannotRevertDiskId, match=f"'{kind}'"):
                begun(array, f"larger-of-{kind}:larger-{kind}", revert=True)
        pairs = [(name, kind) for kind in KINDS for name in sizes[kind]]
        restored(array, *(f"{name}-of-{kind}:{name}-{kind}" for name, kind in pairs))
        for name, kind in pairs:
            disk = disk_of(array, f"{name}-{kind}")
            assert (signature(array, f"{name}-{kind}"), size_of(disk)) == (KINDS[kind][2], 16 * MIB), disk
        onto_new = [f"larger-of-{kind}:new-{kind}" for kind in KINDS]
        restored(array, *onto_new)
        for kind, (first, second, _) in KINDS.items():
            made = signature(array, f"new-{kind}")
            assert (made.kind, made in KINDS[kind]) == (kind, False)
            found = [read(disk_of(array, name), MIB, 2 * MIB) for name in (kind, f"larger-{kind}", f"new-{kind}")]
            assert found[1:] == found[:1] * 2
            sign(disk_of(array, kind), second)
            # Nobody else has it now.
            assert signature(array, f"larger-of-{kind}") == first
        restored(array, *onto_new, revert=True)
        assert [signature(array, f"new-{kind}") for kind in KINDS] == [first for first, _, _ in KINDS.values()]


# Comparing.


@pytest.mark.long
def test_what_was_copied_is_compared_and_a_difference_is_found(lab: Lab) -> None:
    """Of a LUN of which little was changed only that is compared; a bit that turned on the way is not let pass."""
    size = 16 * MIB
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", size, drives=("d0",), exported=False)
        fill(disk, size, seed=1)
        then = checksum(disk)
        take(array, shadow("vol", "then", drives=("d1",)))
        fill(disk, 3 * CHUNK, seed=2)
        fill(disk, BLOCK, seed=3, offset=10 * MIB)
        task = restored(array, "then", options=Options(verify=True))
        assert task.message == "verified: 4 regions (256 KiB) compared, 0 mismatches"
        assert checksum(disk) == then

        fill(disk, 3 * CHUNK, seed=2)
        (member,) = array.document.lun("vol").members
        compare = array.compare

        def with_difference(target: Lun) -> None:
            overwrite(array, member, bytes(BLOCK))
            compare(target)

        with mock.patch.object(array, "compare", with_difference):
            task = ended(array, begun(array, "then", options=Options(verify=True)), TaskState.FAILED)
        assert task.code == Code.VSS_E_PROVIDER_VETO.name
        assert "differs from its source: 64 KiB" in task.message
        assert "blkrecov scrub" in task.remedy
        # It was found, and not mended behind anybody's back.
        assert (member_start(array), checksum(disk_of(array, "then"))) == (bytes(BLOCK), then)
        assert (show(array, "vol")["status"], refused(disk)) == ("not_ready", True)
        restored(array, "then", options=Options(verify=True))
        assert checksum(disk) == then


def member_start(array: Array) -> bytes:
    (member,) = array.document.lun("vol").members
    device = array.observed.backings[member.drive].device
    return read(device, member.data[0].start * SECTOR, BLOCK)


# Others go on with it.


def test_a_paused_restore_moves_nothing_and_goes_on_where_it_was(slow: Slow, lab: Lab) -> None:
    """Over a stop and a start too. All that time the target is not ready, and shows nothing."""
    with half(slow, lab) as it:
        task = it.begin()
        paused = it.array.pause(task.id)
        assert (paused.paused, paused.state) == (True, TaskState.IN_PROGRESS)
        assert not [name for name in our_devices() if "-copy" in name]
        done = it.array.document.lun("vol").restore
        assert done is not None
        assert refused(it.disk)
        slow.delay(0)
        it.array.stop()
    assert our_devices() == []
    with lab.opened() as array:
        assert array.document.task(task.id).paused
        assert refused(show(array, "vol")["node"])
        assert not [name for name in our_devices() if "-copy" in name]
        before = through_port(array, "s0")
        array.resume(task.id)
        ended(array, task)
        rest = through_port(array, "s0") - before
        print(f"restore of 6 MiB, paused and stopped: {rest / MIB:.2f} MiB after it was resumed")
        assert MIB < rest <= LENGTH - 8 * CHUNK + MIB // 4
        assert it.wrong(array, digest=it.then) == []


@pytest.mark.long
def test_a_restore_goes_on_without_the_process_that_began_it(slow: Slow, lab: Lab) -> None:
    """Nor without what was in the kernel: the array is stopped. Another process opens it, waits for the restore, and ends it."""
    with half(slow, lab) as it:
        task = it.begin()
        it.array.stop()
    assert our_devices() == []
    slow.delay(0)
    done = subprocess.run(
        [sys.executable, "-m", "blkrecov.cli.main", "task", "wait", str(task.id), "--json"],
        env={**os.environ, **lab.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    assert (view["state"], view["bytes"]["kernel"]) == ("completed", LENGTH)
    with lab.opened() as array:
        assert it.wrong(array, digest=it.then) == []
        assert show(array, "vol")["status"] == "online"


@pytest.mark.long
def test_a_monitor_ends_a_restore(slow: Slow, lab: Lab) -> None:
    """Nobody waits for it."""
    with half(slow, lab) as it:
        it.begin()
    with monitored(lab):
        slow.delay(0)
        until("the end of the restore", lambda: told(lab, "resync_done"))
    assert told(lab, "resync_failed") == []
    with lab.opened() as array:
        assert it.wrong(array, digest=it.then) == []


@contextmanager
def monitored(lab: Lab) -> Iterator[None]:
    """A monitor, in a thread with an array of its own."""
    begun, running = threading.Event(), list[Monitor]()

    def work() -> None:
        with lab.opened() as array:
            running.append(Monitor(array))
            begun.set()
            running[0].run()

    thread = threading.Thread(target=work, name="monitor")
    thread.start()
    assert begun.wait(DEADLINE_S)
    try:
        yield
    finally:
        running[0].end()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_restore_goes_on_at_the_region_where_it_was_after_a_power_cut(slow: Slow, lab: Lab) -> None:
    """By itself, as soon as somebody opens the array; what was copied before is not copied again."""
    with half(slow, lab) as it:
        task = it.begin()
        until("a good part of the copy", lambda: copied(it.array).done * SECTOR > LENGTH // 3)
        assert not copied(it.array).complete
        lab.power_cut()
    assert our_devices() == []
    with lab.opened() as array:
        assert refused(disk_of(array, "vol"))
        slow.delay(0)
        ended(array, task)
        rest = through_port(array, "s0")
        print(f"restore of 6 MiB, power cut at a third: {rest / MIB:.2f} MiB written to its drive afterwards")
        assert MIB < rest <= LENGTH * 3 // 4
        assert it.wrong(array, digest=it.then) == []
        assert show(array, "vol")["status"] == "online"


# Given up.


@pytest.mark.long
def test_a_cancelled_restore_with_undo_leaves_everything_as_it_was(slow: Slow, lab: Lab) -> None:
    """Byte for byte: what had been overwritten by then is put back from a shadow copy that goes with the task. A power cut in the
    middle of that changes nothing.
    """
    with half(slow, lab) as it:
        luns, room = [lun.name for lun in it.array.document.luns], free(it.array)
        task = it.begin(Options(undo=True))
        (undo,) = {lun.name for lun in it.array.document.luns} - set(luns)
        slow.delay(200)
        assert it.array.cancel(task.id).state is TaskState.IN_PROGRESS
        lab.power_cut()
    slow.delay(0)
    with lab.opened() as array:
        task = ended(array, task, TaskState.CANCELLED)
        assert (task.code, task.percent) == (Code.VSS_S_ASYNC_CANCELLED.name, 0)
        assert "what was there before is there again" in task.message
        assert told(lab, "resync_cancelled")
        assert it.wrong(array, digest=it.now) == []
        assert (show(array, "vol")["status"], show(array, "vol")["incomplete"]) == ("online", None)
        assert ([lun.name for lun in array.document.luns], free(array)) == (luns, room)
        assert not [name for name in our_devices() if undo.replace("-", "--") in name]
        # And one that succeeds has no use for it either.
        restored(array, "then:vol", options=Options(undo=True))
        assert ([lun.name for lun in array.document.luns], free(array)) == (luns, room)
        assert it.wrong(array, digest=it.then) == []


def test_a_cancelled_restore_leaves_a_target_that_is_not_ready_until_another_one_succeeds(slow: Slow, lab: Lab) -> None:
    """Neither the old contents are whole nor the new ones; the LUN says so, over a restart too. The shadow copies are well."""
    with half(slow, lab, exported=True) as it:
        array, disk = it.array, it.disk
        task = it.begin()
        cancelled = array.cancel(task.id)
        slow.delay(0)
        assert (cancelled.state, cancelled.code) == (TaskState.CANCELLED, Code.VSS_S_ASYNC_CANCELLED.name)
        incomplete = show(array, "vol")["incomplete"]
        assert "resync of then:vol (task 1) did not end" in incomplete
        assert show(array, "vol")["status"] == "not_ready"
        assert (refused(disk), refused(show(array, "vol")["node"])) == (True, True)
        assert not [name for name in our_devices() if "-copy" in name]
        # It is no source of anything in that state.
        with pytest.raises(Exception, match="no whole contents"):
            take(array, shadow("vol", "no"))
        array.stop()
    with lab.opened() as array:
        assert show(array, "vol")["incomplete"] == incomplete
        disk = show(array, "vol")["device"]
        assert stat.S_ISBLK(Path(disk).stat().st_mode)
        assert refused(disk)
        restored(array, "then:vol", options=Options(verify=True))
        assert show(array, "vol")["incomplete"] is None
        assert it.wrong(array, digest=it.then) == []
        assert len(sysfs.partitions(disk)) == 2


# Every layout onto every other.


SIZE: Final = 8 * MIB


@pytest.fixture(scope="module")
def five(ext4: Path) -> Iterator[Lab]:
    """A LUN of each layout. All that survive the loss of a drive have a member on d1.

    For the last tests here: whoever looks for arrays would find these drives too.
    """
    with made(ext4) as lab:
        lab.create(5, spares=1, size=Bytes(140 * MIB))
        with lab.opened() as array:
            for layout, drives in zip(LAYOUTS, ("d0", "d1 d2", "d1 d2 d3", "d1 d2 d3 d4", "d1 d2 d3 d4"), strict=True):
                fill(lun(array, layout, layout, SIZE, drives=drives.split(), exported=False), SIZE, seed=len(layout))
                in_sync(array, layout)
        yield lab


@pytest.mark.long
def test_all_layouts_go_back_to_what_they_were_in_one_call(five: Lab) -> None:
    """Onto their origins, of which each has another shadow copy: that sees the restore as any other write."""
    with five.opened() as array:
        disks = nodes(array, *LAYOUTS)
        then = checksums(array, *LAYOUTS)
        take(array, *(shadow(layout, f"then-{layout}") for layout in LAYOUTS))
        for seed, disk in enumerate(disks.values()):
            fill(disk, MIB, seed=seed, offset=(1 + seed) * MIB + 3 * BLOCK)
        later = checksums(array, *LAYOUTS)
        take(array, *(shadow(layout, f"later-{layout}") for layout in LAYOUTS))
        for seed, disk in enumerate(disks.values()):
            fill(disk, 512 * KIB, seed=seed, offset=(2 + seed) * MIB)
        drives = sorted(free(array))
        before = written(array, *drives)
        task = restored(array, *(f"then-{layout}" for layout in LAYOUTS))
        moved = written(array, *drives) - before
        assert checksums(array, *LAYOUTS) == then
        for layout in LAYOUTS:
            found = checksums(array, f"then-{layout}", f"later-{layout}")
            assert found == {f"then-{layout}": then[layout], f"later-{layout}": later[layout]}
            assert disagreements(array, layout) == []
        # Of each so many chunks, most of which the other shadow copy saves; mirrored or with parity at most threefold. And the
        # configuration five times over.
        assert task.bytes_kernel == len(LAYOUTS) * 24 * CHUNK
        print(f"restore of five layouts: {task.bytes_kernel / MIB:.2f} MiB changed, {moved / MIB:.2f} MiB written")
        assert task.bytes_kernel <= moved <= 5 * task.bytes_kernel + 4 * MIB
        for layout in LAYOUTS:
            for name in (f"then-{layout}", f"later-{layout}"):
                array.carry_out(array.propose_delete(name))


@pytest.mark.long
def test_plexes_of_all_layouts_go_onto_luns_of_other_layouts(five: Lab) -> None:
    """Plexes of one moment, each onto a LUN of the next layout, while somebody writes to the LUN that they were taken of."""
    with five.opened() as array:
        digest = checksum(disk_of(array, "raid1"))
        take(array, *(plex("raid1", f"of-{layout}", layout) for layout in LAYOUTS))
        for layout in LAYOUTS:
            in_sync(array, f"of-{layout}")
        take(array, shadow("raid6", "kept", store=10 * MIB))
        kept = checksum(disk_of(array, "kept"))
        others = {source: target for source, target in PAIRS.items() if target != "raid1"}
        with Writer(disk_of(array, "raid1"), 4 * MIB) as writer:
            task = restored(
                array, *(f"of-{source}:{target}" for source, target in others.items()), options=Options(verify=True)
            )
            writer.wait_for(1)
        assert writer.wrong() == []
        assert task.bytes_kernel == len(others) * SIZE
        assert task.message.startswith("verified: "), task.message
        # Nor do they need the LUN that they were taken of.
        restored(array, "of-linear:raid1")
        assert checksums(array, *LAYOUTS) == dict.fromkeys(LAYOUTS, digest)
        assert {checksum(disk_of(array, f"of-{layout}")) for layout in LAYOUTS} == {digest}
        assert checksum(disk_of(array, "kept")) == kept
        assert [disagreements(array, layout) for layout in LAYOUTS] == [[]] * len(LAYOUTS)
        for name in ("kept", *(f"of-{layout}" for layout in LAYOUTS)):
            array.carry_out(array.propose_delete(name))


def sized(array: Array, size: int) -> int:
    """Sectors that are free where every LUN has this size and there is nothing else."""
    document = msgspec.structs.replace(array.document, luns=())
    for each in array.document.luns:
        drives = tuple(array.document.drive_of(member.drive).name for member in each.members)
        wish = Request(name=each.name, layout=each.layout, size=Bytes(size), drives=drives, exported=False)
        document = document.with_lun(geometry.place(document, wish, fresh_ids()))
    return sum(geometry.free_length(document, drive) for drive in document.drives)


@pytest.mark.long
def test_a_target_is_as_large_as_its_source_afterwards(five: Lab) -> None:
    """Larger or smaller before, in every layout, in one call. It is a LUN like any other then: it starts again, is recovered, and
    can be extended; what it does not need any more is free.
    """
    small, large = 4 * MIB, 12 * MIB
    with five.opened() as array:
        assert sum(free(array).values()) == sized(array, SIZE)
        wanted = sized(array, small)
        tops = {name: array.observed.devices[names.dm_uuid(array.document.lun(name).uuid, "lun")] for name in LAYOUTS}
        digest = fill(lun(array, "small", "linear", small, drives=("d0",), exported=False), small, seed=1)
        take(array, *(shadow("small", f"for-{layout}", store=MIB, drives=("d0",)) for layout in LAYOUTS))
        restored(array, *(f"for-{layout}:{layout}" for layout in LAYOUTS))
        for name in (*(f"for-{layout}" for layout in LAYOUTS), "small"):
            array.carry_out(array.propose_delete(name))
        assert sum(free(array).values()) == wanted
        for layout in LAYOUTS:
            disk = disk_of(array, layout)
            assert (size_of(disk), checksum(disk), show(array, layout)["size"]) == (small, digest, small)
            assert disagreements(array, layout) == []
        assert all(array.observed.devices[top.uuid].number == top.number for top in tops.values())
        array.stop()
    with five.opened() as array:
        array.fail_drive("d1")
        for layout in LAYOUTS[1:]:
            assert recover(array, layout).state is TaskState.COMPLETED
        assert checksums(array, *LAYOUTS) == dict.fromkeys(LAYOUTS, digest)
        for layout in LAYOUTS:
            array.carry_out(array.propose_extend(layout, Bytes(SIZE)))
            in_sync(array, layout)
            fill(disk_of(array, layout), SIZE - small, seed=4, offset=small)
            assert (checksum(disk_of(array, layout), small), disagreements(array, layout)) == (digest, [])

        digest = fill(lun(array, "large", "linear", large, drives=("d0",), exported=False), large, seed=2)
        take(array, *(shadow("large", f"for-{layout}", store=MIB, drives=("d0",)) for layout in LAYOUTS))
        restored(array, *(f"for-{layout}:{layout}" for layout in LAYOUTS))
        for name in (*(f"for-{layout}" for layout in LAYOUTS), "large"):
            array.carry_out(array.propose_delete(name))
        for layout in LAYOUTS:
            disk = disk_of(array, layout)
            in_sync(array, layout)
            assert (size_of(disk), checksum(disk), disagreements(array, layout)) == (large, digest, [])
