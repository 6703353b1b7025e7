"""The devices that a document asks for, as literal names and tables."""

from itertools import pairwise
from uuid import UUID

import msgspec
import pytest

from blkrecov import changes, stack
from blkrecov.dm.mirror_log import log_length
from blkrecov.model import UNIT, Document, DriveStatus, Extent, Layout, Lun, MemberState, Restore, Successor
from blkrecov.stack import Device, Layer
from blkrecov.units import Sectors
from tests.unit.arrays import array, drive, drives, with_lost, with_lun, with_plex, with_shadow, with_states


def tables(devices: tuple[Device, ...]) -> dict[str, list[str]]:
    return {device.name: [str(line) for line in device.table] for device in devices}


def plex(document: Document, lun: Lun, rebuild: tuple[int, ...] = ()) -> list[str]:
    nodes = {leg.uuid: stack.node(leg.name) for leg in stack.legs(document, lun)}
    return [str(line) for line in stack.plex(document, lun, nodes, rebuild).table]


def test_a_port_is_the_whole_drive() -> None:
    """Sector N of the port is sector N of the drive: extents need no translation. 216 MiB are 442368 sectors."""
    document = drives(1)
    port = stack.port(document, document.drives[0], "/dev/loop3")
    assert tables((port,)) == {"blkrecov-lab-drive-d0": ["0 442368 linear /dev/loop3 0"]}
    assert (port.uuid, port.layer, port.visible) == (
        "BLKRECOV-000000000000000000000000000d0000-drive",
        Layer.PORT,
        False,
    )


@pytest.mark.parametrize("status", [status for status in DriveStatus if status is not DriveStatus.ONLINE])
def test_a_port_of_a_drive_that_is_not_online_fails_all_io(status: DriveStatus) -> None:
    """The backing device may be there and readable: the document decides."""
    document = drives(1)
    lost = msgspec.structs.replace(document.drives[0], status=status)
    assert tables((stack.port(document, lost, "/dev/loop3"),)) == {"blkrecov-lab-drive-d0": ["0 442368 error"]}


def test_a_port_without_backing_fails_all_io() -> None:
    """It keeps its minor number, so nothing above has to change when the drive is back."""
    document = drives(1)
    assert tables((stack.port(document, document.drives[0], None),)) == {"blkrecov-lab-drive-d0": ["0 442368 error"]}


def test_legs_are_runs_of_their_drive_s_port() -> None:
    """Metadata first, as the kernel wants the pair."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    assert tables(stack.legs(document, lun)) == {
        "blkrecov-lab-v-rmeta_0": ["0 2048 linear /dev/mapper/blkrecov-lab-drive-d0 16384"],
        "blkrecov-lab-v-rimage_0": ["0 131072 linear /dev/mapper/blkrecov-lab-drive-d0 18432"],
        "blkrecov-lab-v-rmeta_1": ["0 2048 linear /dev/mapper/blkrecov-lab-drive-d1 16384"],
        "blkrecov-lab-v-rimage_1": ["0 131072 linear /dev/mapper/blkrecov-lab-drive-d1 18432"],
    }


def test_a_leg_of_several_extents_is_several_lines() -> None:
    """A drive's free space may be in pieces."""
    document, lun = with_lun(drives(2), Layout.RAID0)
    member = msgspec.structs.replace(lun.members[0], data=(Extent(20480, UNIT), Extent(40960, 31 * UNIT)))
    first = stack.legs(document, lun.with_member(0, member))[0]
    assert tables((first,)) == {
        "blkrecov-lab-v-rimage_0": [
            "0 2048 linear /dev/mapper/blkrecov-lab-drive-d0 20480",
            "2048 63488 linear /dev/mapper/blkrecov-lab-drive-d0 40960",
        ]
    }


def test_a_failed_member_on_a_drive_that_works_is_an_error() -> None:
    """Its superblock would be believed: dm-raid has no UUID to tell that it missed writes."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    legs = tables(stack.legs(document, with_states(lun, MemberState.FAILED)))
    assert legs["blkrecov-lab-v-rmeta_0"] == ["0 2048 error"]
    assert legs["blkrecov-lab-v-rimage_0"] == ["0 131072 error"]
    assert legs["blkrecov-lab-v-rmeta_1"] == ["0 2048 linear /dev/mapper/blkrecov-lab-drive-d1 16384"]


def test_a_failed_member_on_a_failed_drive_keeps_its_legs() -> None:
    """The port's error says it all: failing a drive replaces one table, whatever lies on it."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    before = stack.legs(document, lun)
    document = document.with_drive(msgspec.structs.replace(document.drives[0], status=DriveStatus.FAILED))
    assert stack.legs(document, with_states(lun, MemberState.FAILED)) == before


def test_legs_are_named_by_their_place_and_known_by_their_member() -> None:
    """A substitute has the name of what it replaces, and another UUID."""
    document, lun = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    other = msgspec.structs.replace(lun.members[0], uuid=document.array)
    before, after = stack.legs(document, lun)[0], stack.legs(document, lun.with_member(0, other))[0]
    assert before.name == after.name == "blkrecov-lab-v-rmeta_0"
    assert before.uuid != after.uuid


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        (Layout.RAID0, "0 131072 raid raid0 1 128 2 - {0} - {1}"),
        (Layout.RAID1, "0 131072 raid raid1 3 0 region_size 2048 2 {0} {1} {2} {3}"),
        (
            Layout.RAID4,
            "0 131072 raid raid4 3 128 region_size 2048 3 {0} {1} {2} {3} {4} {5}",
        ),
        (
            Layout.RAID5,
            "0 131072 raid raid5_ls 3 128 region_size 2048 3 {0} {1} {2} {3} {4} {5}",
        ),
        (
            Layout.RAID6,
            "0 131072 raid raid6_zr 3 128 region_size 2048 4 {0} {1} {2} {3} {4} {5} {6} {7}",
        ),
        (
            Layout.RAID10,
            "0 131072 raid raid10 5 128 region_size 2048 raid10_copies 2 4 {0} {1} {2} {3} {4} {5} {6} {7}",
        ),
    ],
)
def test_the_plex_of_each_layout(layout: Layout, line: str) -> None:
    """The kernel's words, in the order in which it prints them."""
    document, lun = with_lun(drives(8), layout)
    assert plex(document, lun) == [line.format(*(stack.node(leg.name) for leg in stack.legs(document, lun)))]


def test_a_frozen_lun_is_the_only_one_with_rates() -> None:
    """1 KiB/s, as a minimum too, or md would take its own. The others keep to the machine's limits, which can be changed live."""
    document, lun = with_lun(drives(3), Layout.RAID5)
    (line,) = plex(document, msgspec.structs.replace(lun, frozen=True))
    assert line.startswith("0 131072 raid raid5_ls 7 128 min_recovery_rate 1 max_recovery_rate 1 region_size 2048 3 ")


def test_a_frozen_lun_without_redundancy_has_nothing_to_hold_back() -> None:
    """The kernel refuses rates for raid0."""
    document, lun = with_lun(drives(2), Layout.RAID0)
    assert plex(document, msgspec.structs.replace(lun, frozen=True)) == plex(document, lun)


def test_a_linear_plex_is_extents_of_ports() -> None:
    """No legs between: there is nothing to replace."""
    document, lun = with_lun(array(drive(0, 40), drive(1, 30)), Layout.LINEAR)
    assert stack.legs(document, lun) == ()
    assert plex(document, lun) == [
        "0 81920 linear /dev/mapper/blkrecov-lab-drive-d0 16384",
        "81920 49152 linear /dev/mapper/blkrecov-lab-drive-d1 16384",
    ]


def test_members_to_rebuild_are_named_in_the_table() -> None:
    """For the one load that begins it."""
    document, lun = with_lun(drives(4), Layout.RAID6)
    assert "rebuild 1 rebuild 3 " in plex(document, lun, (1, 3))[0]


def test_the_lun_is_its_size_of_the_plex() -> None:
    """The plex may be larger: each member is whole units. 65 MiB on two members are 33 each."""
    document, lun = with_lun(drives(3), Layout.RAID0, mib=65)
    top = stack.top(document, lun, failed=False)
    assert tables((top,)) == {"blkrecov-lab-v": ["0 133120 linear /dev/mapper/blkrecov-lab-v-plex 0"]}
    assert (top.layer, top.visible) == (Layer.LUN, True)
    assert plex(document, lun)[0].startswith("0 135168 raid raid0")


def test_a_failed_lun_keeps_its_node() -> None:
    """The host gets an I/O error, not a device that vanished; the SCSI disk above stays."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    assert tables((stack.top(document, lun, failed=True),)) == {"blkrecov-lab-v": ["0 131072 error"]}


def test_only_the_lun_is_visible() -> None:
    """blkid on a leg would find the LUN's file system once more."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    nodes = {leg.uuid: stack.node(leg.name) for leg in stack.legs(document, lun)}
    devices = (*stack.legs(document, lun), stack.plex(document, lun, nodes), stack.port(document, drive(0), None))
    assert [device.name for device in devices if device.visible] == []


# Members that move.


def moving(document: Document, lun: Lun, new: str = "d5") -> tuple[Document, Lun]:
    """The first member is on its way to another drive, into two pieces there."""
    length = lun.members[0].length
    successor = Successor(
        uuid=document.array,
        drive=document.drive(new).uuid,
        meta=(Extent(16384, UNIT),) if lun.members[0].meta else (),
        log=(Extent(18432, UNIT),),
        data=(Extent(20480, UNIT), Extent(40960, length - UNIT)),
    )
    moved = lun.with_member(0, msgspec.structs.replace(lun.members[0], successor=successor))
    return document.with_lun(moved), moved


def test_a_leg_that_moves_is_a_mirror_of_two_places() -> None:
    """Four parts of 16 MiB side by side, each with its log; the superblock's log is kept in memory."""
    document, lun = moving(*with_lun(drives(6), Layout.RAID1, on=("d0", "d1")))
    old, new = "/dev/mapper/blkrecov-lab-drive-d0", "/dev/mapper/blkrecov-lab-drive-d5"
    side = "/dev/mapper/blkrecov-lab-v-rimage_0"
    mirrors = [
        f"{start} 32768 mirror disk 2 {side}_log_{number} 4096 2 {side}_from {start} {side}_to {start} 1 handle_errors"
        for number, start in enumerate((0, 32768, 65536, 98304))
    ]
    devices = stack.legs(document, lun)
    assert tables(devices) == {
        "blkrecov-lab-v-rmeta_0_from": [f"0 2048 linear {old} 16384"],
        "blkrecov-lab-v-rmeta_0_to": [f"0 2048 linear {new} 16384"],
        "blkrecov-lab-v-rmeta_0": [
            "0 2048 mirror core 1 256 2 /dev/mapper/blkrecov-lab-v-rmeta_0_from 0 "
            "/dev/mapper/blkrecov-lab-v-rmeta_0_to 0 1 handle_errors"
        ],
        "blkrecov-lab-v-rimage_0_from": [f"0 131072 linear {old} 18432"],
        "blkrecov-lab-v-rimage_0_to": [f"0 2048 linear {new} 20480", f"2048 129024 linear {new} 40960"],
        **{f"blkrecov-lab-v-rimage_0_log_{n}": [f"0 512 linear {new} {18432 + n * 512}"] for n in range(4)},
        "blkrecov-lab-v-rimage_0": mirrors,
        "blkrecov-lab-v-rmeta_1": ["0 2048 linear /dev/mapper/blkrecov-lab-drive-d1 16384"],
        "blkrecov-lab-v-rimage_1": ["0 131072 linear /dev/mapper/blkrecov-lab-drive-d1 18432"],
    }
    assert {device.layer for device in devices if "_0_" in device.name} == {Layer.SIDE}
    assert [device.name for device in devices if device.visible] == []


def test_a_leg_that_moves_is_the_same_device() -> None:
    """So is the plex's table: the raid sees nothing of it. What is below has the copy's UUID, not the member's."""
    document, lun = with_lun(drives(6), Layout.RAID5, on=("d0", "d1", "d2"))
    after, moved = moving(document, lun)
    legs = {device.uuid: device.name for device in stack.legs(after, moved) if device.layer is Layer.LEG}
    assert legs == {device.uuid: device.name for device in stack.legs(document, lun)}
    assert plex(after, moved) == plex(document, lun)
    sides = [device.uuid for device in stack.legs(after, moved) if device.layer is Layer.SIDE]
    assert all(uuid.startswith(f"BLKRECOV-{document.array.hex}-") for uuid in sides)


def test_a_linear_lun_has_legs_for_what_moves() -> None:
    """And the plex goes through them."""
    document, lun = moving(*with_lun(array(drive(0, 40), drive(1, 30), drive(5)), Layout.LINEAR, on=("d0", "d1")))
    moved = next(device for device in stack.legs(document, lun) if device.layer is Layer.LEG)
    assert moved.name == "blkrecov-lab-v-rimage_0"
    first, second = plex(document, lun)
    length = lun.members[0].length
    assert first == f"0 {length} linear /dev/mapper/blkrecov-lab-v-rimage_0 0"
    assert second.startswith(f"{length} {131072 - length} linear /dev/mapper/blkrecov-lab-drive-")


@pytest.mark.parametrize("name", ["d0", "d5"])
def test_nothing_is_copied_to_or_from_a_drive_that_is_not_online(name: str) -> None:
    """The leg is where the member is, so that the LUN does not wait for what cannot be written."""
    document, lun = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    after, moved = moving(document, lun)
    after = after.with_drive(msgspec.structs.replace(after.drive(name), status=DriveStatus.FAILED))
    assert stack.legs(after, moved) == stack.legs(document, lun)


@pytest.mark.parametrize("state", [MemberState.FAILED, MemberState.REBUILDING])
def test_a_member_that_is_not_in_sync_is_not_copied(state: MemberState) -> None:
    """What it holds is of no use."""
    document, lun = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    after, moved = moving(document, lun)
    assert stack.legs(after, with_states(moved, state)) == stack.legs(document, with_states(lun, state))


@pytest.mark.parametrize(
    ("mib", "parts", "region"),
    [
        (1, 1, 512),
        (16, 1, 4096),
        (24, 1, 4096),
        (31, 1, 4096),
        (33, 2, 4096),
        (64, 4, 4096),
        (128, 4, 8192),
        (1_000_001, 4, 8192),
        (2**21, 4, 8192),
        (2**21 + 4, 4, 16384),
        (2**24, 4, 65536),
    ],
)
def test_how_a_member_is_copied(mib: int, parts: int, region: int) -> None:
    """Parts and regions are a part of the on-drive format: the logs of a copy are read by the version that goes on with it."""
    found = stack.parts(mib * UNIT)
    assert (len(found), {part.region for part in found}) == (parts, {region})
    assert found[0].start == 0
    for before, after in pairwise(found):
        assert before.start + before.length == after.start
    assert found[-1].start + found[-1].length == mib * UNIT
    for part in found:
        assert part.start % UNIT == 0
        assert part.length >= part.region
        # Header, then one bit per region.
        assert 1024 + -(-part.length // part.region) // 8 + 8 <= stack.LOG_LENGTH * 512


def test_the_logs_of_all_parts_fit_the_extent_that_they_are_in() -> None:
    """One behind the other."""
    assert Sectors(stack.PARTS * stack.LOG_LENGTH) <= UNIT


# Shadow copies.


def shadowed() -> Document:
    """A mirror v, and a shadow copy s of it."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    return with_shadow(document, on=("d2", "d3"))[0]


def test_an_origin_s_device_is_its_plex_through_what_saves() -> None:
    """As long as the plex, whatever the LUN's size."""
    document, _ = with_lun(drives(6), Layout.RAID0, mib=65)
    document, _ = with_shadow(document)
    origin = stack.origin(document, document.lun("v"))
    assert tables((origin,)) == {"blkrecov-lab-v-origin": ["0 135168 snapshot-origin /dev/mapper/blkrecov-lab-v-plex"]}
    assert (origin.uuid, origin.layer, origin.visible) == (
        "BLKRECOV-00001002000000000000000000000000-origin",
        Layer.ORIGIN,
        False,
    )


def test_a_shadow_copy_s_device_reads_the_origin_s_plex_and_its_own() -> None:
    """As long as what it shows. Persistent; in chunks of 64 KiB."""
    document = shadowed()
    shadow = stack.shadow(document, document.lun("s"))
    assert tables((shadow,)) == {
        "blkrecov-lab-s-shadow": [
            "0 131072 snapshot /dev/mapper/blkrecov-lab-v-plex /dev/mapper/blkrecov-lab-s-plex P 128"
        ]
    }
    assert (shadow.layer, shadow.visible) == (Layer.SHADOW, False)


def test_who_reads_what() -> None:
    """An origin through what saves, for as long as it has shadow copies; a shadow copy through what finds its contents."""
    document, _ = with_plex(shadowed())
    assert {lun.name: stack.below(document, lun) for lun in document.luns} == {
        "v": "/dev/mapper/blkrecov-lab-v-origin",
        "s": "/dev/mapper/blkrecov-lab-s-shadow",
        "p": "/dev/mapper/blkrecov-lab-p-plex",
    }
    document = with_lost(document)
    assert stack.below(document, document.lun("v")) == "/dev/mapper/blkrecov-lab-v-plex"


def test_only_shadow_copies_are_read_only_to_their_hosts() -> None:
    """Of both kinds, and when they are lost: a disk that is read-only stays so."""
    document, _ = with_plex(shadowed())
    tops = {lun.name: stack.top(document, lun, failed=False) for lun in document.luns}
    assert {name: top.read_only for name, top in tops.items()} == {"v": False, "s": True, "p": True}
    document = with_lost(document)
    top = stack.top(document, document.lun("s"), failed=False)
    assert (str(top.table[0]), top.read_only) == ("0 131072 error", True)


@pytest.mark.parametrize("changed", [{"incomplete": "it failed"}, {"restore": Restore(UUID(int=1), UUID(int=2))}])
def test_the_node_of_a_lun_that_is_not_whole_fails(changed: dict[str, object]) -> None:
    """Nobody reads half of it, nor writes what the copy would overwrite."""
    document = shadowed()
    lun = msgspec.structs.replace(document.lun("v"), **changed)
    assert tables((stack.top(document, lun, failed=False),)) == {"blkrecov-lab-v": ["0 131072 error"]}


# Restores.


def restoring(
    document: Document, name: str = "v", *, source: str = "s", region: int = 128, length: int = 131072
) -> Lun:
    restore = Restore(
        uuid=UUID(int=0xC0 << 96),
        source=document.lun(source).uuid,
        length=length,
        region=region,
        todo=1280,
        drive=document.drive("d5").uuid,
        log=(Extent(16384, UNIT),),
    )
    return msgspec.structs.replace(document.lun(name), restore=restore)


def test_a_copy_goes_from_the_shadow_copy_through_what_saves() -> None:
    """Four parts of 16 MiB side by side, each behind its log on the drive that has them; other shadow copies save what it
    overwrites.
    """
    document = shadowed()
    devices = stack.copy(document, restoring(document))
    shadow, origin = "/dev/mapper/blkrecov-lab-s-shadow", "/dev/mapper/blkrecov-lab-v-origin"
    assert tables(devices) == {
        **{
            f"blkrecov-lab-v-copy_log_{number}": [
                f"0 64 linear /dev/mapper/blkrecov-lab-drive-d5 {16384 + 64 * number}"
            ]
            for number in range(4)
        },
        "blkrecov-lab-v-copy": [
            f"{start} 32768 mirror disk 2 /dev/mapper/blkrecov-lab-v-copy_log_{number} 128 "
            f"2 {shadow} {start} {origin} {start} 1 handle_errors"
            for number, start in enumerate(range(0, 131072, 32768))
        ],
    }
    assert [device.layer for device in devices] == [Layer.SIDE] * 4 + [Layer.COPY]
    assert devices[-1].uuid == "BLKRECOV-000000c0000000000000000000000000-copy"
    assert [device.name for device in devices if device.visible] == []


@pytest.mark.parametrize(("parts", "count"), [(0, 4), (1, 1), (3, 3), (16, 4)])
def test_a_copy_has_no_more_parts_than_are_worth_it(parts: int, count: int) -> None:
    """Which is written down: the logs tell of the regions of their own part."""
    document = shadowed()
    lun = restoring(document)
    assert lun.restore is not None
    lun = msgspec.structs.replace(lun, restore=msgspec.structs.replace(lun.restore, parts=parts))
    assert len(stack.copy(document, lun)[-1].table) == count


def test_a_copy_onto_another_lun_writes_to_its_plex() -> None:
    """It has no shadow copies; from a plex it reads that. The copy is as long as the source."""
    document, _ = with_plex(shadowed())
    document, _ = with_lun(document, Layout.LINEAR, "w", mib=96)
    (line,) = stack.copy(document, restoring(document, "w", source="p", region=131072))[-1].table
    assert (line.start, line.length) == (0, 131072)
    assert line.params == (
        "disk 2 /dev/mapper/blkrecov-lab-w-copy_log_0 131072 "
        "2 /dev/mapper/blkrecov-lab-p-plex 0 /dev/mapper/blkrecov-lab-w-plex 0 1 handle_errors"
    )


@pytest.mark.parametrize(
    ("changed", "copying", "comparing"),
    [
        ({}, True, False),
        ({"length": 0}, False, False),
        ({"held": True}, False, False),
        ({"comparing": True}, False, True),
        ({"source": UUID(int=9)}, False, False),
        ({"source": UUID(int=9), "comparing": True}, False, False),
    ],
)
def test_when_the_kernel_copies_and_compares(changed: dict[str, object], copying: bool, comparing: bool) -> None:
    """When the log says what, nobody holds it up, and the source is there."""
    document = shadowed()
    lun = restoring(document)
    assert lun.restore is not None
    lun = msgspec.structs.replace(lun, restore=msgspec.structs.replace(lun.restore, **changed))
    assert (stack.copying(document, lun), stack.comparing(document, lun)) == (copying, comparing)
    gone = with_lost(document)
    assert not stack.copying(gone, lun)
    assert not stack.comparing(gone, lun)
    assert not stack.copying(document, document.lun("v"))


def test_the_logs_of_all_parts_of_a_copy_fit_the_extent_that_they_are_in() -> None:
    """As many parts as there may be, each with as many regions as it may have: header, then one bit for each."""
    assert changes.PARTS * stack.COPY_LOG_LENGTH <= UNIT
    assert log_length(changes.MANY_REGIONS) <= stack.COPY_LOG_LENGTH * 512


def test_a_comparison_is_a_mirror_of_what_was_copied_that_nobody_writes_to() -> None:
    """The runs one behind the other, on either side; each side fails all writes, for md would put the one over the other."""
    document = shadowed()
    runs = (Extent(0, 256), Extent(4096, 128))
    devices = stack.comparison(document, restoring(document), runs)
    sides = {"compare_from": "s-shadow", "compare_to": "v-origin"}
    assert tables(devices) == {
        **{
            f"blkrecov-lab-v-{role}": [
                f"0 256 flakey /dev/mapper/blkrecov-lab-{end} 0 0 1 1 error_writes",
                f"256 128 flakey /dev/mapper/blkrecov-lab-{end} 4096 0 1 1 error_writes",
            ]
            for role, end in sides.items()
        },
        "blkrecov-lab-v-compare": [
            "0 384 raid raid1 2 0 nosync 2 "
            "- /dev/mapper/blkrecov-lab-v-compare_from - /dev/mapper/blkrecov-lab-v-compare_to"
        ],
    }
    assert [device.layer for device in devices] == [Layer.SIDE, Layer.SIDE, Layer.COPY]
    assert {device.uuid.split("-")[1] for device in devices} == {"000000c0000000000000000000000000"}
