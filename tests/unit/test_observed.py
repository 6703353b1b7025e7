"""Whose devices the kernel's are."""

from uuid import UUID

import msgspec

from blkrecov.dm import names
from blkrecov.model import Document, Tombstone
from blkrecov.observed import canonical, own_and_strangers
from tests.unit.arrays import array, drive

OTHER = UUID(int=0xBAD)
GONE = UUID(int=0x60)


def lab() -> Document:
    return msgspec.structs.replace(array(drive(0)), tombstones=(Tombstone("drive", GONE, "d9"),))


def port(owner: UUID) -> str:
    return names.dm_uuid(owner, "drive")


def test_the_uuid_says_whose_a_device_is() -> None:
    """Whatever it is called, and whether its owner is in the configuration still or not. Another's is not ours for its name."""
    document = lab()
    leg = names.dm_uuid(UUID(int=7), "rimage")
    listed = {
        "blkrecov-lab-data-rimage_0": names.dm_uuid_in(document.array, leg),
        "renamed": names.dm_uuid_in(document.array, names.dm_uuid(UUID(int=8), "plex")),
        "blkrecov-lab-drive-u0": names.dm_uuid_in(OTHER, port(UUID(int=9))),
        "blkrecov-else-drive-u0": names.dm_uuid_in(OTHER, port(UUID(int=9))),
        "vg0-lv0": "LVM-abc",
    }
    assert own_and_strangers(document, listed) == (
        ("blkrecov-lab-data-rimage_0", "renamed"),
        ("blkrecov-lab-drive-u0",),
    )
    assert canonical(listed["blkrecov-lab-data-rimage_0"]) == canonical(leg) == leg


def test_devices_of_version_0_1_go_by_their_names() -> None:
    """Their UUIDs tell nothing of an array. What the configuration does not have any more is to be taken away all the same."""
    document = lab()
    listed = {
        "blkrecov-lab-drive-d0": port(document.drives[0].uuid),
        "blkrecov-lab-drive-d9": port(GONE),
        "blkrecov-lab-old-rimage_0": names.dm_uuid(UUID(int=7), "rimage"),
        "blkrecov-else-old-rimage_0": names.dm_uuid(UUID(int=8), "rimage"),
    }
    assert own_and_strangers(document, listed) == (tuple(listed)[:3], ())


def test_a_drive_that_is_nobodys_shows_that_the_name_is_anothers() -> None:
    """Of version 0.1 as well: whatever is up stands on drives' ports."""
    document = lab()
    listed = {
        "blkrecov-lab-old-rimage_0": names.dm_uuid(UUID(int=7), "rimage"),
        "blkrecov-lab-drive-u0": port(UUID(int=9)),
        "blkrecov-lab-drive-d0": port(document.drives[0].uuid),
    }
    assert own_and_strangers(document, listed) == (("blkrecov-lab-drive-d0",), tuple(listed)[:2])
