"""Whose turn it is: the most endangered LUN first, and no two at a time on one drive."""

import msgspec

from blkrecov import provision, recover, tasks, turns
from blkrecov.model import Document, Layout, Lun, MemberState, Task, TaskKind, TaskState
from tests.unit.arrays import drives, seen, uuids, with_lun, with_states

LOST = MemberState.FAILED
GOOD = MemberState.IN_SYNC


def two(first: str, second: str, *, count: int = 8) -> Document:
    """A raid1 v and a raid1 w on these pairs of drives."""
    document, _ = with_lun(drives(count), Layout.RAID1, "v", on=tuple(first.split()))
    document, _ = with_lun(document, Layout.RAID1, "w", on=tuple(second.split()))
    return document


def recovering(document: Document, name: str, state: TaskState = TaskState.IN_PROGRESS) -> Document:
    lun = document.lun(name)
    task = Task(id=document.next_task, kind=TaskKind.RECOVER, lun=lun.uuid, objects=(name,), state=state)
    return document.with_task(task)


def wanted(document: Document, name: str) -> Lun:
    return document.lun(name)


def test_two_luns_that_share_a_drive_are_not_recovered_at_the_same_time() -> None:
    """Also not if it is the substitute's drive that they would share."""
    shared, apart = two("d0 d1", "d1 d2"), two("d0 d1", "d2 d3")
    assert turns.must_wait(recovering(shared, "v"), wanted(shared, "w"))
    assert not turns.must_wait(recovering(apart, "v"), wanted(apart, "w"))


def test_what_has_ended_waits_or_is_paused_is_in_nobody_s_way() -> None:
    """Nothing moves on its drives."""
    document = two("d0 d1", "d1 d2")
    for state in (TaskState.QUEUED, TaskState.COMPLETED, TaskState.CANCELLED, TaskState.FAILED):
        assert not turns.must_wait(recovering(document, "v", state), wanted(document, "w"))
    running = recovering(document, "v")
    paused = running.with_task(tasks.paused(running.task(1)))
    assert not turns.must_wait(paused, wanted(document, "w"))


def test_a_scrub_is_in_nobody_s_way() -> None:
    """Redundancy goes before doubt; md gives the scrub what is left."""
    document = two("d0 d1", "d1 d2")
    lun = document.lun("v")
    scrubbing = document.with_task(
        Task(id=1, kind=TaskKind.SCRUB, lun=lun.uuid, objects=("v",), state=TaskState.IN_PROGRESS)
    )
    assert not turns.must_wait(scrubbing, wanted(document, "w"))


def test_the_most_endangered_lun_has_the_first_turn() -> None:
    """A raid6 that lost one member can lose another still; a raid5 that lost one cannot."""
    document, six = with_lun(drives(12), Layout.RAID6, "six", on=("d0", "d1", "d2", "d3"))
    document, five = with_lun(document, Layout.RAID5, "five", on=("d0", "d4", "d5"))
    document = document.with_lun(with_states(six, LOST)).with_lun(with_states(five, LOST))
    document = recovering(recovering(document, "six", TaskState.QUEUED), "five", TaskState.QUEUED)
    assert [task.objects for task in turns.queued(document, seen(document))] == [("five",), ("six",)]


def test_of_equals_the_first_to_come_is_the_first_to_go() -> None:
    """Nobody waits for ever behind those who came later."""
    document = two("d0 d1", "d2 d3")
    for name in ("v", "w"):
        document = document.with_lun(with_states(document.lun(name), LOST))
    document = recovering(recovering(document, "w", TaskState.QUEUED), "v", TaskState.QUEUED)
    assert [task.objects for task in turns.queued(document, seen(document))] == [("w",), ("v",)]


def test_recover_queues_behind_a_recovery_on_the_same_drives() -> None:
    """It is accepted, and begins by itself; nothing is taken from the array before."""
    document = provision.fail_drive(two("d0 d1", "d1 d2"), "d1").document
    first, begun = recover.propose(document, seen(document), document.lun("v"), None, uuids(0x9000))
    assert (begun.state, begun.objects) == (TaskState.IN_PROGRESS, ("v", "d2"))
    second, waiting = recover.propose(first.document, seen(first.document), document.lun("w"), None, uuids(0xA000))
    assert (waiting.state, waiting.percent, waiting.phases) == (TaskState.QUEUED, 0, ())
    assert (second.document.luns, second.prepare, second.then) == (first.document.luns, (), ())


def test_a_queued_recovery_begins_with_what_it_was_asked_for() -> None:
    """The spare that was named stays named."""
    document = two("d0 d1", "d1 d2")
    document = provision.fail_drive(document, "d1").document
    busy = recovering(document, "v")
    proposal, waiting = recover.propose(busy, seen(busy), busy.lun("w"), busy.drive("d0"), uuids(0x9000))
    assert (waiting.state, waiting.phases, proposal.prepare) == (TaskState.QUEUED, (), ())
    assert proposal.document.luns == busy.luns
    ended = proposal.document.with_task(tasks.completed(proposal.document.task(1)))
    _, begun = recover.begin(ended, seen(ended), ended.lun("w"), waiting, uuids(0x9000))
    assert (begun.state, begun.objects) == (TaskState.IN_PROGRESS, ("w", "d0"))
    assert msgspec.structs.replace(begun, phases=(), objects=("w",)) == tasks.started(waiting)


def test_what_is_due_and_comes_to_nothing_stands_still() -> None:
    """Whatever changes the document makes it worth an attempt at once, and so does a look at which nothing was due."""
    standstill = turns.Standstill()
    looks = [(True, 7), (True, 7), (True, 7), (True, 8), (True, 8), (False, 8), (True, 8), (False, 8), (False, 8)]
    stood = [False, True, True, False, True, False, False, False, False]
    assert [standstill.seen(due, sequence) for due, sequence in looks] == stood


def test_a_queued_recovery_that_has_its_drives_may_wait_for_its_spare() -> None:
    """Its own drives are free, so it looks as if its turn had come; the only spare is taken by the recovery before it."""
    document = two("d0 d1", "d2 d3", count=5)
    document = provision.fail_drive(document, "d0").document
    first, _ = recover.propose(document, seen(document), document.lun("v"), document.drive("d4"), uuids(0x9000))
    document = provision.fail_drive(first.document, "d2").document
    second, waiting = recover.propose(document, seen(document), document.lun("w"), document.drive("d4"), uuids(0xA000))
    assert waiting.state is TaskState.QUEUED
    document = second.document
    assert not turns.must_wait(document, document.lun("w"))
    proposal, _ = recover.begin(document, seen(document), document.lun("w"), waiting, uuids(0xB000))
    assert turns.must_wait(document, proposal.document.lun("w"))
