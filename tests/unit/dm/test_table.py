"""Tables render to the words that the kernel reads, and refuse what it never would take."""

from collections.abc import Callable
from functools import partial

import pytest

from blkrecov.dm.table import (
    MISSING,
    CoreLog,
    CorruptByte,
    CowStore,
    DelayTable,
    DiskLog,
    DropWrites,
    DustTable,
    ErrorTable,
    ErrorWrites,
    FlakeyTable,
    Leg,
    LinearTable,
    MirrorLeg,
    MirrorPart,
    MirrorTable,
    RaidKind,
    RaidTable,
    Segment,
    SnapshotOriginTable,
    SnapshotTable,
    length_of,
    raid_rates,
)
from blkrecov.errors import InvalidArgument
from blkrecov.units import Sectors

SOURCE = Segment(device="253:7", offset=Sectors(8), length=Sectors(2048))
LEGS = tuple(Leg(meta=f"253:{2 * index}", data=f"253:{2 * index + 1}") for index in range(4))

raid1 = partial(RaidTable, kind=RaidKind.RAID1, length=Sectors(2048), chunk=Sectors(0), legs=LEGS[:2])
raid5 = partial(RaidTable, kind=RaidKind.RAID5, length=Sectors(4096), chunk=Sectors(128), legs=LEGS[:3])
raid6 = partial(RaidTable, kind=RaidKind.RAID6, length=Sectors(4096), chunk=Sectors(128), legs=LEGS)
raid10 = partial(RaidTable, kind=RaidKind.RAID10, length=Sectors(4096), chunk=Sectors(128), legs=LEGS)
raid0 = partial(RaidTable, kind=RaidKind.RAID0, length=Sectors(4096), chunk=Sectors(128), legs=LEGS)


def mirror_part(length: int = 2048, log: CoreLog | DiskLog | None = None) -> MirrorPart:
    legs = (MirrorLeg(device="253:0", offset=Sectors(0)), MirrorLeg(device="253:1", offset=Sectors(64)))
    return MirrorPart(length=Sectors(length), log=log or CoreLog(region=Sectors(1024)), legs=legs)


def test_linear_segments_follow_one_another() -> None:
    """A leg made of several extents is one device; each extent starts where the one before ends."""
    second = Segment(device="/dev/loop0", offset=Sectors(0), length=Sectors(100))
    table = LinearTable(segments=(SOURCE, second)).render()
    assert [str(line) for line in table] == ["0 2048 linear 253:7 8", "2048 100 linear /dev/loop0 0"]
    assert length_of(table) == 2148


def test_error_has_no_words() -> None:
    """A line without parameters has no trailing blank, as the kernel prints it."""
    (line,) = ErrorTable(length=Sectors(8)).render()
    assert str(line) == "0 8 error"


def test_flakey_counts_the_words_of_its_features() -> None:
    """The count is of words, not of features: corrupt_bio_byte has five."""
    features = (DropWrites(), CorruptByte(nth=32, value=1))
    (line,) = FlakeyTable(source=SOURCE, up_s=60, down_s=5, features=features).render()
    assert line.params == "253:7 8 60 5 6 drop_writes corrupt_bio_byte 32 r 1 0"


def test_flakey_without_features_counts_none() -> None:
    """It fails all I/O in the down time. The count may be left out, but the kernel prints it."""
    (line,) = FlakeyTable(source=SOURCE, up_s=0, down_s=1).render()
    assert line.params == "253:7 8 0 1 0"


def test_delay_names_the_device_for_reads_and_for_writes() -> None:
    """With three words writes would be as slow as reads."""
    (line,) = DelayTable(source=SOURCE, read_ms=0, write_ms=20).render()
    assert line.params == "253:7 8 0 253:7 8 20"


def test_dust_is_told_its_block_size() -> None:
    """Its bad blocks come as messages, and are in no table."""
    (line,) = DustTable(source=SOURCE, block=4096).render()
    assert line.kind == "dust"
    assert line.params == "253:7 8 4096"


@pytest.mark.parametrize("block", [0, 256, 1000])
def test_dust_blocks_are_sectors_in_powers_of_two(block: int) -> None:
    """Kernel: drivers/md/dm-dust.c, dust_ctr()"""
    with pytest.raises(InvalidArgument):
        DustTable(source=SOURCE, block=block)


def test_flakey_counts_both_times_in_32_bits() -> None:
    """The kernel adds them up, and refuses a sum that begins again at zero."""
    assert FlakeyTable(source=SOURCE, up_s=30, down_s=2**32 - 31).render()[0].params == "253:7 8 30 4294967265 0"
    with pytest.raises(InvalidArgument):
        FlakeyTable(source=SOURCE, up_s=30, down_s=2**32 - 30)


def test_raid1_has_chunk_zero() -> None:
    """Raid1 has no stripes; another chunk is ignored with a line in the log."""
    (line,) = raid1(region=Sectors(1024)).render()
    assert str(line) == "0 2048 raid raid1 3 0 region_size 1024 2 253:0 253:1 253:2 253:3"


def test_render_writes_dashes_for_a_missing_leg() -> None:
    """A leg lost before creation keeps its slot, so the kernel's numbering of the others holds."""
    (line,) = raid1(legs=(LEGS[0], MISSING)).render()
    assert line.params == "raid1 1 0 2 253:0 253:1 - -"


def test_a_leg_without_metadata_has_one_dash() -> None:
    """The data device is used, and nothing about it persists."""
    (line,) = raid1(legs=(Leg(meta=None, data="253:1"), LEGS[1])).render()
    assert line.params == "raid1 1 0 2 - 253:1 253:2 253:3"


def test_raid_options_are_in_the_kernels_order() -> None:
    """A rendered table is compared with what the kernel prints; a rebuild counts two words."""
    table = raid6(rebuild=(1, 3), min_recovery_rate=100, max_recovery_rate=200, region=Sectors(256))
    (line,) = table.render()
    assert line.params == (
        "raid6_zr 11 128 rebuild 1 rebuild 3 min_recovery_rate 100 max_recovery_rate 200 region_size 256 "
        "4 253:0 253:1 253:2 253:3 253:4 253:5 253:6 253:7"
    )


def test_nosync_comes_first() -> None:
    """It is one word, where all other options are pairs."""
    (line,) = raid10(nosync=True).render()
    assert line.params.startswith("raid10 4 128 nosync raid10_copies 2 4 ")


@pytest.mark.parametrize(
    ("table", "leg_length"),
    [(raid0(), 1024), (raid1(), 2048), (raid5(), 2048), (raid6(), 2048), (raid10(), 2048)],
    ids=["raid0", "raid1", "raid5", "raid6", "raid10"],
)
def test_the_length_of_a_leg_follows_from_the_arrays(table: RaidTable, leg_length: int) -> None:
    """Whoever cuts the legs out of drives must cut what the kernel will use."""
    assert table.leg_length == leg_length


@pytest.mark.parametrize(
    "make",
    [
        partial(raid1, length=Sectors(0)),
        partial(raid1, legs=LEGS[:1]),
        partial(raid5, legs=LEGS[:2]),
        partial(raid6, legs=LEGS[:3]),
        partial(raid1, chunk=Sectors(128)),
        partial(raid5, chunk=Sectors(0)),
        partial(raid5, chunk=Sectors(4)),
        partial(raid5, chunk=Sectors(96)),
        partial(raid5, length=Sectors(4097)),
        partial(raid5, length=Sectors(4096 + 128)),
        partial(raid5, region=Sectors(64)),
        partial(raid5, region=Sectors(384)),
        partial(raid5, region=Sectors(8192)),
        partial(raid1, length=Sectors(2**33), region=Sectors(1024)),
        partial(raid0, region=Sectors(128)),
        partial(raid0, nosync=True),
        partial(raid0, max_recovery_rate=1),
        partial(raid6, nosync=True),
        partial(raid6, rebuild=(3, 1)),
        partial(raid6, rebuild=(1, 1)),
        partial(raid6, rebuild=(4,)),
        partial(raid6, rebuild=(-1,)),
        partial(raid6, rebuild=(0, 1, 2)),
        partial(raid5, rebuild=(0,), nosync=True),
        partial(raid5, rebuild=(2,), legs=(*LEGS[:2], MISSING)),
        partial(raid5, rebuild=(1,), legs=(*LEGS[:2], MISSING)),
        partial(raid1, legs=(MISSING, MISSING)),
        partial(raid1, min_recovery_rate=2, max_recovery_rate=1),
        partial(raid1, min_recovery_rate=0),
        partial(raid10, raid10_copies=5),
        partial(raid1, raid10_copies=3),
    ],
)
def test_a_raid_table_that_can_never_work_is_not_made(make: Callable[[], RaidTable]) -> None:
    """The kernel would say EINVAL, after the old table was suspended."""
    with pytest.raises(InvalidArgument):
        make()


def test_mirror_always_handles_errors() -> None:
    """Without the feature a failed copy is reported as a region in sync."""
    (line,) = MirrorTable(parts=(mirror_part(),)).render()
    assert str(line) == "0 2048 mirror core 1 1024 2 253:0 0 253:1 64 1 handle_errors"


def test_a_disk_log_is_believed() -> None:
    """No sync or nosync: what was written into the log beforehand decides what is copied."""
    log = DiskLog(device="253:9", region=Sectors(512))
    (line,) = MirrorTable(parts=(mirror_part(log=log),)).render()
    assert line.params == "disk 2 253:9 512 2 253:0 0 253:1 64 1 handle_errors"


def test_mirror_parts_lie_side_by_side() -> None:
    """A target copies one region at a time; several of them copy in parallel."""
    in_sync = CoreLog(region=Sectors(512), in_sync=True)
    table = MirrorTable(parts=(mirror_part(), mirror_part(4096, in_sync))).render()
    assert [(line.start, line.length) for line in table] == [(0, 2048), (2048, 4096)]
    assert table[1].params == "core 2 512 nosync 2 253:0 0 253:1 64 1 handle_errors"


@pytest.mark.parametrize("region", [0, 1, 3, 4096])
def test_a_mirrors_region_is_a_power_of_two_within_its_length(region: int) -> None:
    """The kernel refuses the others with EINVAL. Kernel: drivers/md/dm-log.c, create_log_context()"""
    with pytest.raises(InvalidArgument):
        mirror_part(log=CoreLog(region=Sectors(region)))


def test_mirrors_do_not_share_a_log() -> None:
    """Each would overwrite the other's header and bits."""
    part = mirror_part(log=DiskLog(device="253:9", region=Sectors(512)))
    with pytest.raises(InvalidArgument):
        MirrorTable(parts=(part, part))


def test_snapshot_and_origin() -> None:
    """P and not PO, unless it is asked for."""
    (snapshot,) = SnapshotTable(length=Sectors(64), origin="253:0", cow="253:1", chunk=Sectors(32)).render()
    (origin,) = SnapshotOriginTable(length=Sectors(64), origin="253:0").render()
    assert str(snapshot) == "0 64 snapshot 253:0 253:1 P 32"
    assert str(origin) == "0 64 snapshot-origin 253:0"


def test_snapshot_that_shows_its_overflow() -> None:
    """With PO a full store shows as Overflow, where P shows nothing until it is invalid."""
    store = CowStore.PERSISTENT_OVERFLOW
    table = SnapshotTable(length=Sectors(64), origin="253:0", cow="253:1", chunk=Sectors(32), store=store)
    assert table.render()[0].params == "253:0 253:1 PO 32"


@pytest.mark.parametrize("device", ["", "-", "/dev/my disk", "/dev/a\nb", "/dev/back\\slash"])
def test_a_device_is_one_word(device: str) -> None:
    """The kernel splits at blanks: a path with one would shift every word after it."""
    with pytest.raises(InvalidArgument):
        Segment(device=device, offset=Sectors(0), length=Sectors(8))


def test_writes_are_not_dropped_and_failed_at_once() -> None:
    """Kernel: drivers/md/dm-flakey.c, parse_features()"""
    with pytest.raises(InvalidArgument):
        FlakeyTable(source=SOURCE, up_s=0, down_s=1, features=(DropWrites(), ErrorWrites()))


@pytest.mark.parametrize(
    ("params", "rates"),
    [
        ("raid1 3 0 region_size 2048 2 253:0 253:1 253:2 253:3", (0, 0)),
        ("raid5_ls 9 128 rebuild 1 min_recovery_rate 1 max_recovery_rate 7 region_size 2048 1 253:0 253:1", (1, 7)),
        ("raid0 1 128 2 - 253:0 - 253:1", (0, 0)),
    ],
)
def test_the_rates_of_a_loaded_raid(params: str, rates: tuple[int, int]) -> None:
    """As Linux 6.1 prints its tables."""
    assert raid_rates(params) == rates
