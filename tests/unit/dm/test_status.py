"""Status words become values, or an error that holds them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.dm.status import (
    DustStatus,
    Journal,
    LegHealth,
    LogHealth,
    MalformedStatus,
    MirrorHealth,
    MirrorLog,
    MirrorStatus,
    RaidStatus,
    SnapshotTrouble,
    SnapshotUsage,
    SyncAction,
    parse_dust,
    parse_mirror,
    parse_raid,
    parse_snapshot,
)
from blkrecov.units import Sectors


def test_parse_raid_reads_every_word() -> None:
    """As Linux 6.1 prints it, target 1.15.1."""
    assert parse_raid("raid5_ls 3 AaD 512/2048 recover 128 16 -") == RaidStatus(
        kind="raid5_ls",
        legs=(LegHealth.IN_SYNC, LegHealth.OUT_OF_SYNC, LegHealth.FAILED),
        done=Sectors(512),
        total=Sectors(2048),
        action=SyncAction.RECOVER,
        mismatch=Sectors(128),
        data_offset=Sectors(16),
        journal=Journal.NONE,
    )


def test_parse_raid_takes_the_words_of_older_and_newer_kernels() -> None:
    """Words were appended twice, and may be again."""
    old = parse_raid("raid1 2 AA 2048/2048 idle 0")
    assert old.data_offset == 0
    assert old == parse_raid("raid1 2 AA 2048/2048 idle 0 0 - and more")


def test_lost_legs_are_the_failed_and_the_missing() -> None:
    """Neither serves reads; one that is only out of sync will come back by itself."""
    assert parse_raid("raid6_zr 5 AD-aA 0/8 recover 0 0 -").lost == (1, 2)


@pytest.mark.parametrize(
    ("params", "in_sync"),
    [
        ("raid1 2 AA 2048/2048 idle 0 0 -", True),
        ("raid1 2 Aa 2048/2048 idle 0 0 -", False),  # A recovery is about to begin.
        ("raid1 2 AA 1024/2048 repair 0 0 -", False),  # An initial resync that a reload continued.
        ("raid1 2 AA 0/2048 frozen 0 0 -", False),  # Suspended: letters and ratio mean nothing.
        ("raid1 2 AA 2048/2048 check 0 0 -", False),
        ("raid1 2 AD 2048/2048 idle 0 0 -", False),
        ("raid1 2 A- 2048/2048 idle 0 0 -", False),
    ],
)
def test_in_sync_takes_action_ratio_and_every_leg(params: str, in_sync: bool) -> None:
    """Each of the three alone is wrong at some moment."""
    assert parse_raid(params).in_sync is in_sync


@pytest.mark.parametrize(
    "params",
    [
        "",
        "raid1 2 AA 2048/2048 idle",
        "raid1 3 AA 2048/2048 idle 0",
        "raid1 x AA 2048/2048 idle 0",
        "raid1 2 AX 2048/2048 idle 0",
        "raid1 2 AA 2048 idle 0",
        "raid1 2 AA 2048/2048 sleeping 0",
        "raid1 2 AA 2048/2048 idle 0 0 ?",
    ],
)
def test_an_unreadable_raid_status_is_an_error_with_the_text(params: str) -> None:
    """Guessing would let a lost leg pass for a good one."""
    with pytest.raises(MalformedStatus) as caught:
        parse_raid(params)
    assert caught.value.text == params


def test_parse_mirror_with_a_disk_log() -> None:
    """As Linux 6.1 prints it, target 1.14.0."""
    assert parse_mirror("2 253:0 253:1 27/512 1 AS 3 disk 253:2 A") == MirrorStatus(
        devices=("253:0", "253:1"),
        done=27,
        total=512,
        legs=(MirrorHealth.ALIVE, MirrorHealth.COPY_FAILED),
        log=MirrorLog(kind="disk", device="253:2", health=LogHealth.ALIVE),
    )


def test_a_full_mirror_with_a_failed_log_is_not_in_sync() -> None:
    """What the log lost, a reload will not know."""
    assert parse_mirror("2 253:0 253:1 512/512 1 AA 1 core").in_sync
    assert not parse_mirror("2 253:0 253:1 512/512 1 AA 3 disk 253:2 D").in_sync
    assert not parse_mirror("2 253:0 253:1 512/512 1 AD 1 core").in_sync


@pytest.mark.parametrize(
    "params",
    [
        "2 253:0 253:1 512/512 1 AA",
        "2 253:0 253:1 512/512 1 AAA 1 core",
        "2 253:0 253:1 512/512 0 1 core",
        "2 253:0 512/512 1 AA 1 core",
        "2 253:0 253:1 512/512 1 AA 1 userspace",
        "2 253:0 253:1 512/512 1 AA 2 disk 253:2",
    ],
)
def test_an_unreadable_mirror_status_is_an_error(params: str) -> None:
    """A mirror that copies for us is believed only when every word is understood."""
    with pytest.raises(MalformedStatus):
        parse_mirror(params)


def test_parse_snapshot_reads_the_usage() -> None:
    """An empty store of 16 KiB chunks holds its header and one metadata area."""
    usage = SnapshotUsage(allocated=Sectors(64), total=Sectors(16384), metadata=Sectors(64))
    assert parse_snapshot("64/16384 64") == usage


@pytest.mark.parametrize("trouble", list(SnapshotTrouble))
def test_parse_snapshot_reads_the_phrases(trouble: SnapshotTrouble) -> None:
    """One of them is two words."""
    assert parse_snapshot(trouble.value) is trouble


@pytest.mark.parametrize(
    ("words", "fails", "quiet"),
    [
        ("7:0 bypass verbose", False, False),
        ("7:0 bypass quiet", False, True),
        ("7:0 fail_read_on_bad_block quiet", True, True),
    ],
)
def test_parse_dust_reads_both_switches(words: str, fails: bool, quiet: bool) -> None:
    """As Linux 6.1 prints it, target 1.0.0."""
    assert parse_dust(words) == DustStatus(fails=fails, quiet=quiet)


@given(st.text(alphabet="raid1 2Aa-D/0idlecore\u0662", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """A surprise from a new kernel is one kind of error, never an IndexError somewhere below."""
    for parse in (parse_raid, parse_mirror, parse_snapshot, parse_dust):
        with suppress(MalformedStatus):
            parse(text)
