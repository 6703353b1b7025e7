"""Whether a device would answer, by what sysfs says of it and of what it stands on."""

import os
from pathlib import Path

import pytest

from blkrecov import blockdev
from blkrecov.dm import stalled
from blkrecov.dm.stalled import Stalled, below_is_suspended, hangs, refuse_stalled


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk, of this very file system as it were, that stands on the device-mapper device slow."""
    number = tmp_path.stat().st_dev
    top = made(tmp_path, "sda", f"{os.major(number)}:{os.minor(number)}")
    slow = made(tmp_path, "dm-7", "253:7", name="slow")
    (top / "slaves/dm-7").symlink_to(slow)
    monkeypatch.setattr(blockdev, "SYSFS", tmp_path)
    monkeypatch.setattr(stalled, "PATIENCE_S", 0.01)
    stalled._hung.clear()
    return tmp_path


def made(sysfs: Path, disk: str, number: str, name: str = "") -> Path:
    device = sysfs / "devices" / disk
    (device / "slaves").mkdir(parents=True)
    (sysfs / number).symlink_to(f"devices/{disk}")
    (device / "dev").write_text(f"{number}\n")
    counts(device, ended=0, under_way=0)
    if name:
        (device / "dm").mkdir()
        (device / "dm/name").write_text(f"{name}\n")
        (device / "dm/suspended").write_text("0\n")
    return device


def counts(device: Path, *, ended: int, under_way: int) -> None:
    (device / "inflight").write_text(f"       0        {under_way}\n")
    (device / "stat").write_text(f"{ended} 0 0 0 0 0 0 0 {under_way} 0 0 0 0 0 0 0 0\n")


def test_a_file_on_well_devices_is_let_pass(sysfs: Path) -> None:
    refuse_stalled(str(sysfs))


def test_what_is_not_there_says_so_itself(sysfs: Path) -> None:
    """When it is opened."""
    refuse_stalled(str(sysfs / "gone"))


def test_a_suspended_device_below_is_named(sysfs: Path) -> None:
    """With what lets it go on."""
    (sysfs / "253:7/dm/suspended").write_text("1\n")
    with pytest.raises(Stalled, match="does not answer: slow is suspended") as refused:
        refuse_stalled(str(sysfs))
    assert refused.value.remedy == "let it go on with: dmsetup resume slow"
    found = below_is_suspended(str(sysfs))
    assert found is not None
    assert found.message == refused.value.message


def test_a_device_below_on_which_no_request_ends_is_named(sysfs: Path) -> None:
    counts(sysfs / "253:7", ended=5, under_way=1)
    assert below_is_suspended(str(sysfs)) is None
    with pytest.raises(Stalled, match="no request to dm-7 has come back"):
        refuse_stalled(str(sysfs))


def test_what_was_waited_for_in_vain_is_not_waited_for_again(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until something on it has ended: then it may go on."""
    device = sysfs / "253:7"
    counts(device, ended=5, under_way=1)
    assert hangs(device)
    monkeypatch.setattr(stalled, "PATIENCE_S", 3600.0)
    assert hangs(device)
    counts(device, ended=6, under_way=0)
    assert not hangs(device)
