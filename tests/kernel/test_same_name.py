"""Two arrays of one name in one machine, as where somebody else's drive is put in: neither is touched for the other's sake."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blkrecov.array import Array
from blkrecov.dm import names
from blkrecov.errors import ObjectExists
from blkrecov.settings import Settings, remembered
from blkrecov.units import MIB
from tests.kernel.lab import Lab, checksum, disk_of, fill, in_sync, lun, our_devices, recover, tables

ROOT = Path(__file__).resolve().parents[2]


def both(lab: Lab) -> Settings:
    """Of a machine that sees the drives of both."""
    return Settings(state=lab.state, directories=(str(lab.directory), str(lab.directory / "usb")))


@pytest.fixture
def stranger(lab: Lab) -> Iterator[Lab]:
    """Another machine's array "lab", on drives that are in this one now; it is down, and its LUN has contents."""
    usb = lab.directory / "usb"
    usb.mkdir()
    other = Lab(usb)
    other.create(2)
    with other.opened() as array:
        fill(lun(array, "vol", "raid1", 8 * MIB), 8 * MIB, seed=2)
    other.stop()
    away = lab.directory / "in" / "a" / "drawer"
    away.parent.mkdir(parents=True)
    usb.rename(away)
    lab.create(2)
    away.rename(usb)
    yield other
    # Of two that are remembered under one name none can be opened by it.
    boot(lab, "stop")
    lab.drives.clear()


@contextmanager
def opened(lab: Lab, uuid: str) -> Iterator[Array]:
    with Array.opened(both(lab), uuid) as array:
        yield array


def uuid_of(lab: Lab) -> str:
    return str(remembered(lab.settings)[0].uuid)


def boot(lab: Lab, word: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **lab.environment,
        "BLKRECOV_DIRECTORIES": ":".join(both(lab).directories),
    }
    command = [sys.executable, "-m", "blkrecov.boot", word]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_another_array_of_the_same_name_is_refused_before_anything_is_touched(stranger: Lab, lab: Lab) -> None:
    """What is ours was taken for what is left of the other: an idle LUN's disk vanished. The remedy works."""
    ours, theirs = uuid_of(lab), uuid_of(stranger)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", 8 * MIB)
        fill(disk, 8 * MIB, seed=1)
        in_sync(array, "vol")
    before = tables()
    what = f"array 'lab' \\({theirs}\\).*such as blkrecov-lab-"
    with pytest.raises(ObjectExists, match=what) as refused, opened(lab, theirs):
        pass
    assert refused.value.remedy == f"take that one down first: blkrecov array stop --array {ours}"
    assert (tables(), Path(disk).exists()) == (before, True)

    contents = checksum(disk, 8 * MIB)
    lab.stop()
    with opened(lab, theirs) as array:
        assert checksum(disk_of(array, "vol"), 8 * MIB) != contents
    with pytest.raises(ObjectExists, match=ours), opened(lab, ours):
        pass
    with opened(lab, theirs) as array:
        array.stop()
    with opened(lab, ours) as array:
        assert checksum(disk_of(array, "vol"), 8 * MIB) == contents


def test_a_start_and_an_end_of_the_machine_go_by_uuid(stranger: Lab, lab: Lab) -> None:
    """Both are remembered. One of them comes up; it is told why the other does not; and what is up is taken down."""
    lab.stop()
    ours, theirs = uuid_of(lab), uuid_of(stranger)
    with opened(lab, theirs) as array:
        array.stop()
    assert {str(array.uuid) for array in remembered(lab.settings)} == {ours, theirs}
    started = boot(lab, "start")
    assert (started.returncode, started.stderr.count("cannot be brought up: ")) == (0, 1)
    assert our_devices()
    stopped = boot(lab, "stop")
    assert (stopped.returncode, stopped.stderr, our_devices()) == (0, "", [])


def test_devices_that_an_earlier_version_has_made_are_recognised(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade happens under LUNs that are in use. Theirs have no array in their UUIDs, and never get one."""
    lab.create(0)
    with monkeypatch.context() as patch, lab.opened() as array:
        patch.setattr(names, "dm_uuid_in", lambda _, uuid: uuid)
        lab.add(array, "d0", "d1")
        lab.add(array, "d2", spare=True)
        disk = lun(array, "vol", "raid1", 8 * MIB, drives=("d0", "d1"))
        lun(array, "gone", "linear", 4 * MIB, drives=("d0",))
        contents = fill(disk, 8 * MIB, seed=3)
        in_sync(array, "vol")
    made, before = our_devices(), tables()
    with lab.opened() as array:
        assert tables() == before
        array.carry_out(array.propose_delete("gone"))
        assert [name for name in our_devices() if "gone" in name] == []
        array.fail_drive("d1")
        assert recover(array, "vol").code == "S_OK"
        assert checksum(disk, 8 * MIB) == contents
    assert set(our_devices()) == {name for name in made if "gone" not in name}
    stopped = boot(lab, "stop")
    assert (stopped.returncode, stopped.stderr, our_devices()) == (0, "", [])
