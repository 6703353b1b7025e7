"""Drives that fail again and again: what counts as a failure, and when it is too often."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import flapping, provision
from blkrecov.flapping import DAY, cleared, noted
from blkrecov.model import Document, DriveStatus, Layout, MemberState
from tests.unit.arrays import array, drive, drives, with_lun, with_states

NOW = 1_700_000_000
LOST = MemberState.FAILED
GOOD = MemberState.IN_SYNC


def with_status(document: Document, name: str, status: DriveStatus, reason: str = "I/O errors") -> Document:
    return document.with_drive(msgspec.structs.replace(document.drive(name), status=status, reason=reason))


def with_failures(document: Document, name: str, *failures: int) -> Document:
    return document.with_drive(msgspec.structs.replace(document.drive(name), failures=failures))


@pytest.mark.parametrize("status", [DriveStatus.FAILED, DriveStatus.REMOVED])
def test_a_drive_that_fails_or_goes_away_has_failed(status: DriveStatus) -> None:
    """The others have not."""
    before = drives(2)
    after = noted(before, with_status(before, "d0", status), NOW)
    assert after.drive("d0").failures == (NOW,)
    assert after.drive("d0").failing == ""
    assert after.drive("d1") == before.drive("d1")


def test_a_drive_that_lost_a_member_has_failed_though_it_is_online() -> None:
    """The kernel gave its leg up: that is how most drives begin to fail."""
    before, lun = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    after = noted(before, before.with_lun(with_states(lun, GOOD, LOST)), NOW)
    assert [item.failures for item in after.drives] == [(), (NOW,), ()]


def test_one_failure_counts_once_however_many_members_it_takes() -> None:
    """Members of several LUNs, and the drive itself."""
    before, v = with_lun(drives(2), Layout.RAID1, "v")
    before, w = with_lun(before, Layout.RAID1, "w")
    lost = before.with_lun(with_states(v, LOST)).with_lun(with_states(w, LOST))
    name = before.drive_of(v.members[0].drive).name
    assert noted(before, lost, NOW).drive(name).failures == (NOW,)
    gone = with_status(lost, name, DriveStatus.REMOVED)
    assert noted(before, gone, NOW).drive(name).failures == (NOW,)


def test_a_drive_fails_once_for_as_long_as_it_is_away() -> None:
    """Looking again finds nothing new, and coming back is no failure."""
    gone = with_status(drives(1), "d0", DriveStatus.REMOVED)
    back = with_status(gone, "d0", DriveStatus.ONLINE, "")
    assert noted(gone, gone, NOW) is gone
    assert noted(gone, back, NOW) is back


def test_members_that_were_lost_before_are_no_news() -> None:
    """They stay lost until they are substituted."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    document = document.with_lun(with_states(lun, LOST))
    assert noted(document, document, NOW) is document


def test_a_failure_that_was_asked_for_is_none() -> None:
    """Whoever tests what stands on an array lets the same drive fail all day."""
    before, _ = with_lun(drives(2), Layout.RAID1)
    after = provision.fail_drive(before, "d0").document
    assert noted(before, after, NOW) is after


def test_a_drive_that_is_new_has_no_past() -> None:
    """It was not online before: it was not there."""
    before = drives(1)
    after = with_status(array(*before.drives, drive(1)), "d1", DriveStatus.FAILED)
    assert noted(before, after, NOW) is after


def test_the_third_failure_within_a_day_sets_a_drive_aside() -> None:
    """With the reason in words."""
    before = with_failures(drives(1), "d0", NOW - DAY + 60, NOW - 60)
    after = noted(before, with_status(before, "d0", DriveStatus.FAILED), NOW).drive("d0")
    assert after.failures == (NOW - DAY + 60, NOW - 60, NOW)
    assert after.failing == "failed or went away 3 times within 24 hours"


def test_failures_of_yesterday_are_forgotten() -> None:
    """Three in a week are no flapping."""
    before = with_failures(drives(1), "d0", NOW - DAY, NOW - 60)
    after = noted(before, with_status(before, "d0", DriveStatus.FAILED), NOW).drive("d0")
    assert (after.failures, after.failing) == ((NOW - 60, NOW), "")
    assert noted(before, before, NOW).drive("d0").failures == (NOW - 60,)


def test_a_drive_that_is_set_aside_stays_so() -> None:
    """That it was quiet for a month proves nothing; the reason is the one of then."""
    before = with_failures(drives(1), "d0", NOW - 2, NOW - 1)
    aside = noted(before, with_status(before, "d0", DriveStatus.FAILED), NOW)
    later = noted(aside, with_status(aside, "d0", DriveStatus.ONLINE, ""), NOW + 30 * DAY).drive("d0")
    assert later.failures == ()
    assert later.failing == aside.drive("d0").failing


def test_a_clock_that_was_wrong_does_no_lasting_harm() -> None:
    """Failures in a far future would count for ever."""
    before = with_failures(drives(1), "d0", NOW + 10 * DAY, NOW + 11 * DAY)
    after = noted(before, with_status(before, "d0", DriveStatus.FAILED), NOW).drive("d0")
    assert (after.failures, after.failing) == ((NOW,), "")


def test_a_drive_that_is_cleared_is_like_new() -> None:
    """Nothing else of it changes."""
    plain = drives(1).drives[0]
    assert cleared(msgspec.structs.replace(plain, failures=(1, 2, 3), failing="failed 3 times")) == plain


@given(st.lists(st.tuples(st.integers(0, 2 * DAY), st.sampled_from(["fail", "back", "lose", "look"])), max_size=30))
def test_a_drive_is_set_aside_at_the_third_failure_of_a_day_and_never_before(steps: list[tuple[int, str]]) -> None:
    """Whatever happens in between, and in whatever order failures are found."""
    document, _ = with_lun(drives(2), Layout.RAID1)
    document = document.with_lun(with_states(document.lun("v"), GOOD, GOOD))
    times: list[int] = []
    aside = False
    now = NOW
    for wait, word in steps:
        now += wait
        drive_is, lun = document.drive("d0"), document.lun("v")
        after = document
        index = next(index for index, member in enumerate(lun.members) if member.drive == drive_is.uuid)
        if word == "fail":
            after = with_status(document, "d0", DriveStatus.FAILED)
            if drive_is.online:
                times.append(now)
        elif word == "back":
            after = with_status(document, "d0", DriveStatus.ONLINE, "")
            fresh = msgspec.structs.replace(lun.members[index], state=GOOD)
            document = after = after.with_lun(lun.with_member(index, fresh))
        elif word == "lose":
            lost = msgspec.structs.replace(lun.members[index], state=LOST)
            after = document.with_lun(lun.with_member(index, lost))
            if drive_is.online and lun.members[index].state is not LOST:
                times.append(now)
        document = noted(document, after, now)
        recent = [time for time in times if now - time < flapping.WINDOW]
        aside = aside or len(recent) >= flapping.LIMIT
        assert list(document.drive("d0").failures) == recent
        assert bool(document.drive("d0").failing) == aside
        assert document.drive("d1").failures == ()
