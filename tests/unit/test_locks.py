"""One lock for each array; claims on what is about to become a drive. Real locks of the kernel, between open files."""

import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.errors import DeviceInUse
from blkrecov.locks import Lock, being_made, held_at, naming
from blkrecov.settings import Settings

LAB, TWO = UUID("a1a1a1a1-0000-4000-8000-00000000000a"), UUID("b2b2b2b2-0000-4000-8000-00000000000b")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


def taken(settings: Settings, array: UUID, name: str = "") -> Lock:
    lock = Lock(settings, array, name)
    lock.take(patience_s=0.0)
    return lock


def test_arrays_do_not_wait_for_each_other(settings: Settings) -> None:
    """One that is stuck holds up nobody."""
    first, other = taken(settings, LAB), taken(settings, TWO)
    first.release()
    other.release()


def test_who_has_an_array_is_named(settings: Settings) -> None:
    """In the same process too, where another thread may have it."""
    first = taken(settings, LAB, "lab")
    with pytest.raises(DeviceInUse, match=f"process {os.getpid()} is working on array lab, for 0 s by now"):
        taken(settings, LAB, "lab")
    first.release()
    taken(settings, LAB, "lab").release()


def test_arrays_of_one_name_wait_for_each_other(settings: Settings) -> None:
    """Only one of them may come up: the second has to see the first one's devices. A name may be any: it comes from a drive."""
    first = taken(settings, LAB, "../lab")
    with pytest.raises(DeviceInUse):
        taken(settings, TWO, "../lab")
    first.release()
    assert [file.name for file in settings.state.iterdir()] == ["..%2Flab.lock"]


def test_a_lock_goes_with_its_process(settings: Settings) -> None:
    """However that ends. The file stays, and means nothing."""
    script = (
        "import os, sys; from pathlib import Path; from uuid import UUID\n"
        "from blkrecov.locks import Lock; from blkrecov.settings import Settings\n"
        "Lock(Settings(state=Path(sys.argv[1])), UUID(sys.argv[2])).take(); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, settings.state, str(LAB)], check=False).returncode == -9
    assert (settings.state / f"{LAB}.lock").exists()
    taken(settings, LAB).release()


def test_a_file_is_made_a_drive_by_one_at_a_time(settings: Settings, tmp_path: Path) -> None:
    """By whatever name it is called; others are none of its business."""
    file, link, new = tmp_path / "d0", tmp_path / "link", tmp_path / "new"
    file.touch()
    link.hardlink_to(file)
    with being_made(settings, str(file)), being_made(settings, str(new)), being_made(settings, str(tmp_path / "d1")):
        for path in (file, link, new):
            with (
                pytest.raises(DeviceInUse, match="somebody else is making a drive of"),
                being_made(settings, str(path)),
            ):
                pass
    with being_made(settings, str(link)):
        pass


def test_a_name_is_given_beside_drives_that_are_made(settings: Settings, tmp_path: Path) -> None:
    """It is held for two looks at a directory, and what makes a drive may take long."""
    with being_made(settings, str(tmp_path / "d0")), naming(settings):
        pass


def test_nobody_is_held_who_can_be_interrupted() -> None:
    """Nor one that is not there."""
    with subprocess.Popen(["sleep", "60"]) as process:
        deadline = time.monotonic() + 10
        while held_at(str(process.pid)) is not None:  # Its program is being read.
            assert time.monotonic() < deadline
        process.kill()
    assert (held_at("unknown"), held_at("")) == (None, None)
