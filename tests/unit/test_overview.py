"""What is not well, in which words, and what to do about it; how busy all of it is."""

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import provision, traffic
from blkrecov.condition import state_of
from blkrecov.errors import OutOfResources
from blkrecov.model import Document, DriveStatus, Health, Layout, MemberState
from blkrecov.observed import Live, Observed
from blkrecov.overview import Overview, Problem, activity, problems, report, sample, summary, sync_ratio
from blkrecov.traffic import Rates
from blkrecov.units import MIB
from tests.unit.arrays import drive, drives, raid_words, seen, with_lost, with_lun, with_shadow, with_states
from tests.unit.overviews import at_work, counted, overview, recovery

LOST, HELD = MemberState.FAILED, MemberState.REBUILDING


def mirror(spares: int = 0) -> Document:
    """A raid1 v on d0 and d1, and more drives without a LUN."""
    return with_lun(drives(2 + spares), Layout.RAID1, on=("d0", "d1"))[0]


def well(document: Document) -> Overview:
    return overview(document, seen(document, raid_words("AA")))


def lines(shown: Overview) -> list[tuple[str, str]]:
    return [(str(problem), problem.remedy) for problem in problems(shown)]


def test_a_healthy_array_has_no_problem() -> None:
    """One line for a monitoring system."""
    shown = well(mirror())
    assert problems(shown) == ()
    assert summary(shown) == "array lab is healthy: 2 drives, 1 LUN"
    assert report(shown) == {"healthy": True, "summary": summary(shown), "problems": [], "tasks": []}


def test_a_lun_that_somebody_else_has_suspended() -> None:
    """Whatever else is to be said of it: nothing that its users wait for comes back before that."""
    document = provision.fail_drive(mirror(spares=1), "d1").document
    lun = document.lun("v")
    top = Live(
        name="blkrecov-lab-v",
        uuid=f"BLKRECOV-{lun.uuid.hex}-lun",
        number="253:9",
        table=(),
        status=(),
        suspended=True,
        inactive=False,
        open_count=1,
        held=True,
    )
    observed = seen(document, raid_words("AD"))
    shown = overview(document, dataclasses.replace(observed, devices={**observed.devices, top.uuid: top}))
    assert lines(shown)[1] == (
        "LUN v is suspended, and not by the array: all that is asked of it waits",
        "let it go on with: dmsetup resume blkrecov-lab-v",
    )
    assert summary(shown).startswith("array lab is not healthy: drive d1 failed, LUN v suspended;")


def test_a_drive_that_does_not_answer() -> None:
    """It is online as far as anybody knows."""
    document = mirror()
    error = OutOfResources("/dev/loop1 does not answer: far is suspended", remedy="dmsetup resume far")
    shown = dataclasses.replace(well(document), stalled={document.drive("d1").uuid: error})
    assert lines(shown) == [
        ("drive d1 is stalled: /dev/loop1 does not answer: far is suspended", "dmsetup resume far"),
    ]


def test_a_degraded_lun_with_a_drive_to_spare() -> None:
    """The drive comes first, since the LUN suffers from it; each with its remedy."""
    document = provision.fail_drive(mirror(spares=1), "d1").document
    shown = overview(document, seen(document, raid_words("AD")))
    reason = document.drive("d1").reason
    assert lines(shown) == [
        (f"drive d1 has failed: {reason}", "mend it and bring it back with: blkrecov drive reconnect d1"),
        ("LUN v has lost 1 member of 2 (d1)", "blkrecov recover v"),
    ]
    assert summary(shown) == "array lab is not healthy: drive d1 failed, LUN v failed redundancy; 3 drives, 1 LUN"


def test_a_degraded_lun_without_a_drive_to_spare() -> None:
    """A Recover would be refused: what has to come first is said first."""
    document = provision.fail_drive(mirror(), "d1").document
    shown = overview(document, seen(document, raid_words("AD")))
    remedy = "add a drive with: blkrecov drive add PATH --size SIZE; then: blkrecov recover v"
    assert lines(shown)[1] == ("LUN v has lost 1 member of 2 (d1)", remedy)


def test_a_lun_that_is_recovered_is_waited_for() -> None:
    """What is under way is no call to the operator, unless it is paused."""
    document = mirror(spares=1)
    document = document.with_lun(with_states(document.lun("v"), MemberState.IN_SYNC, HELD))
    observed = seen(document, raid_words("Aa", "recover", "16/64"))
    task = recovery(document)
    what = "LUN v is being rebuilt (1 member of 2 (d1)); task 7 (recover) is"
    assert lines(overview(document, observed, at_work(task, 1, 4))) == [(f"{what} in progress, 25 %", "")]
    paused = at_work(recovery(document, paused=True), 1, 4)
    assert lines(overview(document, observed, paused)) == [(f"{what} paused, 25 %", "blkrecov task resume 7")]
    assert summary(overview(document, observed, paused)).endswith("; 3 drives, 1 LUN, 1 task under way")


def test_a_stopped_rebuild_is_taken_up_again() -> None:
    """It was cancelled: the substitute is there, and nobody is at it."""
    document = mirror()
    lun = msgspec.structs.replace(with_states(document.lun("v"), MemberState.IN_SYNC, HELD), frozen=True)
    shown = overview(document.with_lun(lun), seen(document, raid_words("Aa", "recover", "16/64")))
    what = "LUN v is without redundancy, the rebuild of 1 member of 2 (d1) was stopped"
    assert lines(shown) == [(what, "blkrecov recover v")]


def test_a_lun_that_synchronises_says_how_far_it_is() -> None:
    """The kernel does it by itself, and there is no task."""
    document = mirror()
    shown = overview(document, seen(document, raid_words("aa", "resync", "16/64")))
    assert lines(shown) == [("LUN v is being synchronised, 25%", "")]
    assert sync_ratio(shown, document.lun("v")) == 0.25


@pytest.mark.parametrize(
    ("words", "ratio"),
    [("AA", 1.0), ("Aa recover 0/64", 0.0), ("Aa idle 64/64", 0.0), ("AA check 16/64", 1.0), ("AD", None)],
)
def test_a_check_is_no_synchronisation(words: str, ratio: float | None) -> None:
    """And "Aa N/N idle" is a recovery that is about to begin, not one that has ended."""
    document = mirror()
    legs, action, done = (*words.split(), "idle", "64/64")[:3]
    assert sync_ratio(overview(document, seen(document, raid_words(legs, action, done))), document.lun("v")) == ratio


def test_a_lun_that_has_failed_says_whom_it_waits_for() -> None:
    """Its data may be on the drives that are away."""
    document = mirror()
    for name in ("d0", "d1"):
        document = provision.fail_drive(document, name).document
    shown = overview(document, seen(document, raid_words("DD")))
    what = "LUN v has failed: it has lost 2 members of 2 (d0, d1), which raid1 cannot do without"
    assert lines(shown)[2] == (what, "blkrecov drive reconnect d0")


def test_a_lun_that_could_not_be_brought_up_says_why() -> None:
    """The error's own words, and its own remedy."""
    document = mirror()
    error = OutOfResources("no memory", remedy="free some")
    shown = Overview(document=document, observed=seen(document), trouble={document.lun("v").uuid: error})
    assert lines(shown) == [("LUN v is offline: no memory", "free some")]
    assert lines(overview(document, seen(document))) == [("LUN v is offline", "bring it up with: blkrecov refresh")]


def test_members_that_disagree_are_repaired() -> None:
    """By a scrub's count, or because nobody could look after a power cut."""
    document = mirror()
    observed = seen(document, raid_words("AA"))
    counted_ = document.with_lun(msgspec.structs.replace(document.lun("v"), mismatches=256))
    suspect = document.with_lun(msgspec.structs.replace(document.lun("v"), suspect=True))
    assert lines(overview(counted_, observed)) == [
        ("LUN v has members that may disagree: 128 KiB", "blkrecov recover v")
    ]
    assert lines(overview(suspect, observed)) == [
        ("LUN v has members that may disagree since a power cut", "blkrecov recover v")
    ]


def test_an_incomplete_lun_is_to_be_restored() -> None:
    """It is not ready until then."""
    document = mirror()
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), incomplete="the restore was cancelled"))
    shown = overview(document, seen(document, raid_words("AA")))
    assert lines(shown) == [("LUN v is not whole: the restore was cancelled", "restore it: blkrecov resync SHADOW:v")]


def test_a_drive_that_is_set_aside_is_replaced_or_trusted() -> None:
    """It works; what depends on it is told as well."""
    document = mirror()
    document = document.with_drive(msgspec.structs.replace(document.drive("d1"), failing="it failed 3 times"))
    assert lines(overview(document, seen(document, raid_words("AA")))) == [
        (
            "drive d1 is set aside: it failed 3 times",
            "blkrecov drive replace d1; or trust it again: blkrecov drive trust d1",
        ),
        ("LUN v depends on 1 member of 2 (d1), set aside", "blkrecov drive replace d1"),
    ]


@pytest.mark.parametrize("status", [status for status in DriveStatus if status is not DriveStatus.ONLINE])
def test_no_drive_that_is_not_online_is_well(status: DriveStatus) -> None:
    """Whatever VDS_HEALTH it would have: a drive that is offline is "healthy" by that."""
    gone = msgspec.structs.replace(drive(0), status=status, reason="")
    document = Document(array=gone.uuid, name="lab", drives=(gone,))
    (problem,) = problems(overview(document, Observed()))
    assert (problem.kind, problem.name, problem.remedy) == (
        "drive",
        "d0",
        "mend it and bring it back with: blkrecov drive reconnect d0",
    )


def test_a_lost_shadow_copy_is_deleted() -> None:
    """Its contents are gone for good."""
    document = with_lost(with_shadow(mirror(spares=2), on=("d2",), layout=Layout.LINEAR)[0])
    found = problems(overview(document, seen(document, raid_words("AA"))))
    assert Problem("LUN", "s", "failed", "is lost: its store was full", "blkrecov snapshot delete s") in found


@given(
    legs=st.sampled_from(["AA", "Aa", "aa", "AD", "DA", "DD"]),
    action=st.sampled_from(["idle", "resync", "recover", "check", "repair"]),
    away=st.sets(st.sampled_from(["d0", "d1", "d2"])),
    states=st.tuples(*[st.sampled_from(list(MemberState))] * 2),
    frozen=st.booleans(),
    mismatches=st.sampled_from([None, 0, 8]),
)
def test_all_is_well_exactly_when_there_is_no_problem(
    legs: str, action: str, away: set[str], states: tuple[MemberState, ...], frozen: bool, mismatches: int | None
) -> None:
    """The words never say less than the health does, whatever the array is in."""
    document = mirror(spares=1)
    lun = with_states(document.lun("v"), *states)
    document = document.with_lun(msgspec.structs.replace(lun, frozen=frozen, mismatches=mismatches))
    observed = seen(document, raid_words(legs, action, "16/64"), away=tuple(away))
    shown = overview(document, observed)
    healthy = state_of(document, observed, document.lun("v"))[1] is Health.HEALTHY
    assert (problems(shown) == ()) == healthy
    assert all("(d" in problem.what for problem in problems(shown) if "has failed: " in problem.what)
    assert report(shown)["healthy"] == healthy


def test_a_shadow_copy_fails_with_its_origin() -> None:
    """Its own store is whole; what to do is said of the origin."""
    document = with_shadow(mirror(spares=2), on=("d2",), layout=Layout.LINEAR)[0]
    document = document.with_lun(with_states(document.lun("v"), LOST, LOST))
    found = problems(overview(document, seen(document, raid_words("DD"))))
    assert Problem("LUN", "s", "failed", "has failed with its origin, LUN v") in found


# How busy it is.


def test_rates_are_differences() -> None:
    """Two seconds apart: 10 MiB read, 4 MiB written, busy for half of the time."""
    assert traffic.rates(counted(5, 1, 100), counted(15, 5, 1100), 2.0) == Rates(
        read=5 * MIB, written=2 * MIB, busy=0.5
    )


def test_a_device_that_was_made_anew_says_nothing() -> None:
    """Its counters began again; no device is ever less than idle."""
    assert traffic.rates(counted(5, 5), counted(0, 0), 1.0) is None
    assert traffic.rates(counted(5, 5), counted(6, 6), 0.0) is None


def test_a_device_is_busy_all_of_the_time_at_most() -> None:
    """The kernel counts in steps of its timer."""
    found = traffic.rates(counted(), counted(1, 0, 1004), 1.0)
    assert found is not None
    assert found.busy == 1.0


def test_activity_tells_rates_and_the_time_left() -> None:
    """Of drives, LUNs and tasks, with a null where nothing can be told."""
    document = mirror(spares=1)
    observed = seen(document, raid_words("AA"))
    d0, lun, task = document.drive("d0"), document.lun("v"), recovery(document)
    before = overview(document, observed, at_work(task, 1, 9), traffic={d0.uuid: counted(), lun.uuid: counted()})
    now = overview(
        document,
        observed,
        at_work(task, 5, 9),
        at_s=2.0,
        traffic={d0.uuid: counted(2, 4, 500), lun.uuid: counted(0, 2)},
    )
    shown = activity(sample(now), sample(before))
    assert shown["drives"][0] == {"name": "d0", "status": "online", "read": MIB, "written": 2 * MIB, "busy": 0.25}
    assert shown["drives"][1] == {"name": "d1", "status": "online", "read": None, "written": None, "busy": None}
    assert shown["luns"][0] == {
        "name": "v",
        "layout": "raid1",
        "health": "healthy",
        "sync": 1.0,
        "read": 0.0,
        "written": MIB,
        "busy": 0.0,
    }
    assert [(row["phase"], row["rate"], row["left_s"]) for row in shown["tasks"]] == [("rebuild", 2 * MIB, 2.0)]
    assert [row["rate"] for row in activity(sample(now), None)["tasks"]] == [None]


def test_another_phase_is_no_progress_of_the_one_before() -> None:
    """It counts from its own beginning."""
    document = mirror()
    observed, task = seen(document, raid_words("AA")), recovery(document)
    before = overview(document, observed, at_work(task, 1, 9))
    now = overview(document, observed, at_work(msgspec.structs.replace(task, done=1), 5, 9), at_s=1.0)
    assert activity(sample(now), sample(before))["tasks"][0]["rate"] is None
