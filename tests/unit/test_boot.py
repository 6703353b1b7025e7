"""What the arrays' unit waits for, as text; and what udev is told of names and labels by a shell script that has its own eyes."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import UUID

import pytest

from blkrecov import boot
from blkrecov.dm import names
from blkrecov.drives.label import Label
from blkrecov.settings import Remembered, Settings, remember

HELPER = Path(__file__).resolve().parents[2] / "blkrecov/data/blkrecov_id"


def told(*words: str) -> list[str]:
    return subprocess.run(["sh", HELPER, *words], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/srv", "srv.mount"),
        ("/srv/drives", "srv-drives.mount"),
        ("/srv/a-b c", "srv-a\\x2db\\x20c.mount"),
        ("/.hidden/.too", "\\x2ehidden-.too.mount"),
        ("/lägg", "l\\xc3\\xa4gg.mount"),
    ],
)
def test_a_mount_unit_is_named_as_systemd_escape_does(path: str, unit: str) -> None:
    """systemd.unit(5). Only the first character of all may not be a dot."""
    assert boot.mount_unit(PurePosixPath(path)) == unit


def test_arrays_wait_for_every_directory_above_a_drive() -> None:
    """Which of them is a mount point is not known before the machine is up; waiting for a unit that is not there is free."""
    assert boot.ordering(["/srv/drives", "/srv/drives/d0.img"]) == (
        "After=srv-drives-d0.img.mount srv-drives.mount srv.mount\n"
    )


def test_arrays_on_block_devices_wait_for_all_devices() -> None:
    """The device's name may be another's by now, so there is no single one to wait for."""
    assert boot.ordering(["/dev/sdb"]) == ("Wants=systemd-udev-settle.service\nAfter=systemd-udev-settle.service\n")


def test_a_path_may_be_any_bytes() -> None:
    """The generator would write nothing at all for the sake of one."""
    assert boot.mount_unit(PurePosixPath(os.fsdecode(b"/srv/\xff"))) == "srv-\\xff.mount"


def test_the_generator_gives_each_array_a_unit(tmp_path: Path) -> None:
    """It waits for its own drives only, which may lie on another array's LUN. The unit of all waits for all of them."""
    settings = Settings(state=tmp_path / "state", directories=("/srv/drives",))
    lab, inner = UUID(int=1), UUID(int=2)
    remember(settings, Remembered(lab, "lab", ("/mnt/d1.img",)))
    remember(settings, Remembered(inner, "inner", ("/data/d1.img", "/dev/sdb")))
    remember(settings, Remembered(UUID(int=3), "without-drives"))
    boot.generate(settings, tmp_path)
    assert {file.parent.name: file.read_text() for file in tmp_path.glob("*.d/drives.conf")} == {
        f"blkrecov-array@{lab}.service.d": "[Unit]\nDescription=Array lab of blkrecov\nAfter=mnt-d1.img.mount mnt.mount\n",
        f"blkrecov-array@{inner}.service.d": (
            "[Unit]\nDescription=Array inner of blkrecov\nAfter=data-d1.img.mount data.mount\n"
            "Wants=systemd-udev-settle.service\nAfter=systemd-udev-settle.service\n"
        ),
        "blkrecov-arrays.service.d": (
            f"[Unit]\nWants=blkrecov-array@{inner}.service blkrecov-array@{lab}.service\n"
            f"After=blkrecov-array@{inner}.service blkrecov-array@{lab}.service\nAfter=srv-drives.mount srv.mount\n"
        ),
    }


@pytest.mark.parametrize(("array", "lun"), [("lab", "data"), ("a-b", "c-d"), ("a-", "b"), ("a--", "b--c")])
def test_the_helper_splits_a_name_as_we_do(array: str, lun: str) -> None:
    """A link below /dev/blkrecov is named after array and LUN, which may have hyphens anywhere but in front."""
    name = names.lun_name(array, lun)
    assert names.split_dm_name(name) == (array, lun)
    said = told("node", name, names.dm_uuid_in(UUID(int=2), names.dm_uuid(UUID(int=1), "lun")))
    assert said == [f"BLKRECOV_ARRAY={array}", f"BLKRECOV_LUN={lun}"]


def test_the_helper_reads_a_label(tmp_path: Path) -> None:
    drive, array = UUID("00112233-4455-6677-8899-aabbccddeeff"), UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
    label = Label.new(
        size=2**25, drive_uuid=drive, array_uuid=array, drive_name="d0", array_name="lab", created_s=1_700_000_000
    )
    file = tmp_path / "drive"
    file.write_bytes(label.encode())
    assert told("drive", str(file)) == [f"BLKRECOV_DRIVE={drive}", f"BLKRECOV_ARRAY_UUID={array}"]


@pytest.mark.parametrize("content", [b"", b"blkrecov drive", bytes(4096), b"blkrecov slot\0\0\0" + bytes(4080)])
def test_the_helper_says_nothing_of_what_has_no_label(tmp_path: Path, content: bytes) -> None:
    """Every disk of the machine is asked, and one that is not ours must keep what others say of it."""
    file = tmp_path / "other"
    file.write_bytes(content)
    assert told("drive", str(file)) == []


def test_one_array_keeps_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not by a mistake of ours either, which nobody has thought of. It is told with where it was made."""
    settings = Settings(state=tmp_path)
    ids = {str(UUID(int=number)): name for number, name in ((1, "a"), (2, "b"), (3, "c"))}
    for uuid, name in ids.items():
        remember(settings, Remembered(UUID(uuid), name))
    done: list[str] = []

    class Stub:
        """In place of an array, which takes a kernel: what it does is not what this is about."""

        def __init__(self, key: str) -> None:
            self.key = key
            self.trouble: dict[UUID, str] = {}

        @classmethod
        @contextmanager
        def opened(cls, settings: Settings, key: str) -> Iterator["Stub"]:
            if ids[key] == "b":
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
            done.append(ids[key])
            yield cls(key)

        def stop(self) -> None:
            done.append(f"{ids[self.key]} stopped")

    monkeypatch.setattr("blkrecov.array.Array", Stub)
    monkeypatch.setattr(boot, "_system_stops", lambda: False)
    monkeypatch.setattr(boot, "arrays_up", dict)
    boot.start(settings)
    assert done == ["a", "c"]
    monkeypatch.setattr(boot, "arrays_up", lambda: {name: uuid for uuid, name in ids.items()})
    assert not boot.stop(settings)
    assert done[2:] == ["a", "a stopped", "c", "c stopped"]
    assert [record.exc_info is not None for record in caplog.records] == [True, True, False]
