"""The array's document as a value: encoded, looked up, compared, changed."""

from itertools import combinations
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import model, tasks
from blkrecov.errors import MetadataCorrupt, NotSupported, ObjectDeleted, ObjectNotFound
from blkrecov.model import (
    Document,
    DriveStatus,
    Extent,
    Layout,
    Lun,
    MemberState,
    Pair,
    Phase,
    Restore,
    Shadow,
    Task,
    TaskKind,
)
from tests.unit.arrays import array, drive, drives, with_lost, with_lun, with_plex, with_shadow, with_states

COUNTS = {
    Layout.LINEAR: [1, 2],
    Layout.RAID0: [2, 3],
    Layout.RAID1: [2, 3],
    Layout.RAID4: [3, 4],
    Layout.RAID5: [3, 5],
    Layout.RAID6: [4, 5],
    Layout.RAID10: [4, 6],
}


def readable(layout: Layout, members: int, lost: frozenset[int]) -> bool:
    """Whether every chunk can still be had, from what each layout keeps where."""
    left = [index for index in range(members) if index not in lost]
    match layout:
        case Layout.LINEAR | Layout.RAID0:
            places = [[{index}] for index in range(members)]
        case Layout.RAID1:
            places = [[{index} for index in range(members)]]
        case Layout.RAID10:
            places = [[{2 * pair}, {2 * pair + 1}] for pair in range(members // 2)]
        case _:
            # Any so many members as hold data's worth are enough to compute all of it.
            enough = members - (2 if layout is Layout.RAID6 else 1)
            places = [[set(chosen) for chosen in combinations(range(members), enough)]]
    return all(any(copy <= set(left) for copy in copies) for copies in places)


@pytest.mark.parametrize(("layout", "members"), [(layout, count) for layout in Layout for count in COUNTS[layout]])
def test_a_layout_survives_what_leaves_a_copy_of_everything(layout: Layout, members: int) -> None:
    """Every set of lost members, against where the copies are."""
    for number in range(members + 1):
        for lost in combinations(range(members), number):
            assert layout.survives(members, frozenset(lost)) == readable(layout, members, frozenset(lost)), lost


@pytest.mark.parametrize(
    ("layout", "members", "data"),
    [
        (Layout.LINEAR, 3, 3),
        (Layout.RAID0, 3, 3),
        (Layout.RAID1, 3, 1),
        (Layout.RAID4, 4, 3),
        (Layout.RAID5, 4, 3),
        (Layout.RAID6, 6, 4),
        (Layout.RAID10, 6, 3),
    ],
)
def test_a_layout_s_capacity(layout: Layout, members: int, data: int) -> None:
    """Members' worth of space that the host gets."""
    assert layout.data_members(members) == data


def test_the_layouts_without_redundancy() -> None:
    """Only these two have nothing to recover from."""
    assert [layout.value for layout in Layout if not layout.fault_tolerant] == ["linear", "raid0"]


def full_document() -> Document:
    """One of everything."""
    document, lun = with_lun(array(*(drive(number, hot_spare=number == 6) for number in range(7))), Layout.RAID6)
    document, _ = with_lun(document, Layout.LINEAR, "w", exported=False)
    failed = msgspec.structs.replace(document.drives[0], status=DriveStatus.FAILED, reason="failed by hand")
    document = document.with_drive(failed).with_lun(
        msgspec.structs.replace(with_states(lun, MemberState.FAILED), suspect=True, mismatches=8)
    )
    document = document.with_task(tasks.started(Task(id=1, kind=TaskKind.SCRUB, lun=lun.uuid, objects=("v",))))
    return document.without_lun(document.lun("w")).after("c1", (document.drives[1].uuid,)).after("c2", ())


def restoring_document() -> Document:
    """Shadow copies of both kinds, one lost; two LUNs being restored, one incomplete and restored before."""
    document, lun = with_lun(drives(8), Layout.RAID1)
    document, shadow = with_shadow(document)
    document = with_lost(with_shadow(document, "t")[0], "t")
    document, plex = with_plex(document)
    restore = Restore(
        uuid=UUID(int=5),
        source=shadow.uuid,
        length=131072,
        region=128,
        parts=3,
        todo=1280,
        drive=document.drives[0].uuid,
        log=(Extent(16384, 2048),),
        blank=True,
        written=True,
        held=True,
        comparing=True,
        signature="mbr:0x12345678",
    )
    document = document.with_lun(
        msgspec.structs.replace(lun, restore=restore, incomplete="it failed", restored=1700000000)
    )
    document = document.with_lun(msgspec.structs.replace(plex, restore=Restore(uuid=UUID(int=6), source=shadow.uuid)))
    task = Task(
        id=1,
        kind=TaskKind.RESYNC,
        lun=lun.uuid,
        objects=("s:v", "s:p"),
        phases=(Phase.RESTORE, Phase.COMPARE),
        pairs=(
            Pair(source=shadow.uuid, target=lun.uuid, undo=UUID(int=7)),
            Pair(source=shadow.uuid, target=plex.uuid, made=True),
        ),
        temporary=(UUID(int=7),),
    )
    return document.with_task(tasks.started(task))


@pytest.mark.parametrize("document", [full_document(), restoring_document()])
def test_a_document_comes_back_from_its_bytes(document: Document) -> None:
    """What is on the drives is all that a restart has."""
    assert model.decode(model.encode(document)) == document


def without(value: object, words: frozenset[str]) -> object:
    """A decoded document without these keys, wherever they are."""
    if isinstance(value, dict):
        return {key: without(inner, words) for key, inner in value.items() if key not in words}
    return [without(inner, words) for inner in value] if isinstance(value, list) else value


def test_a_document_from_before_shadow_copies_is_the_same() -> None:
    """What it does not say has not happened."""
    later = {"shadow", "restore", "incomplete", "restored", "pairs", "temporary"}
    payload = msgspec.json.decode(model.encode(full_document()))
    old = msgspec.json.encode(without(payload, frozenset(later)))
    assert b"shadow" not in old
    assert model.decode(old) == full_document()


def test_a_restore_from_before_it_knew_of_earlier_copies_is_the_same() -> None:
    """A key more is no other format."""
    payload = msgspec.json.decode(model.encode(restoring_document()))
    old = model.decode(msgspec.json.encode(without(payload, frozenset({"written"}))))
    assert old.lun("v").restore == msgspec.structs.replace(restoring_document().lun("v").restore or BARE, written=False)


BARE = Restore(uuid=UUID(int=1), source=UUID(int=2))


@pytest.mark.parametrize(
    ("restore", "begun"),
    [
        (BARE, False),
        (msgspec.structs.replace(BARE, length=131072), True),
        (msgspec.structs.replace(BARE, written=True), True),
    ],
)
def test_a_restore_has_begun_when_the_lun_was_written_to(restore: Restore, begun: bool) -> None:
    """By it, or by one before it."""
    assert restore.begun == begun


def test_a_lun_is_ready_when_its_contents_are_whole() -> None:
    """Neither being restored, nor left halfway."""
    _, lun = with_lun(drives(2), Layout.RAID1)
    assert lun.ready
    assert not msgspec.structs.replace(lun, restore=BARE).ready
    assert not msgspec.structs.replace(lun, incomplete="it failed").ready


@pytest.mark.parametrize(
    ("shadow", "differential"),
    [(None, False), (Shadow(origin=UUID(int=1)), False), (Shadow(origin=UUID(int=1), chunk=128), True)],
)
def test_a_shadow_copy_with_a_chunk_is_differential(shadow: Shadow | None, differential: bool) -> None:
    """Without, it is a plex."""
    _, lun = with_lun(drives(2), Layout.RAID1)
    assert msgspec.structs.replace(lun, shadow=shadow).differential == differential


def test_a_task_is_on_all_of_its_luns() -> None:
    """Sources too; what it took for its own sake is nobody's business."""
    document = restoring_document()
    names = {lun.name for lun in document.luns if document.task_on(lun.uuid) is not None}
    assert names == {"v", "s", "p"}


@given(
    st.builds(
        Document,
        array=st.uuids(),
        name=st.text(max_size=8),
        sequence=st.integers(0, 2**62),
        history=st.lists(st.text(max_size=12), max_size=3).map(tuple),
        carriers=st.lists(st.uuids(), max_size=3).map(tuple),
        running=st.text(max_size=8),
    )
)
def test_any_header_comes_back_from_its_bytes(document: Document) -> None:
    """Whatever the names hold."""
    assert model.decode(model.encode(document)) == document


def test_a_later_format_is_refused() -> None:
    """It may mean things that this version would destroy; its other fields need not even decode."""
    with pytest.raises(NotSupported, match="format 2, this blkrecov reads format 1"):
        model.decode(b'{"format": 2, "drives": "elsewhere"}')


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b'{"format": "1"}', b"\xff\x00"])
def test_bytes_that_are_no_document_are_refused(payload: bytes) -> None:
    """A damaged copy is told from another version's."""
    with pytest.raises(MetadataCorrupt):
        model.decode(payload)


@given(st.data())
def test_a_truncated_document_is_refused(data: st.DataObject) -> None:
    """The slot's checksum should have caught it; this is the second line."""
    payload = model.encode(full_document())
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(MetadataCorrupt):
        model.decode(payload[:cut])


def test_each_version_counts_and_names_the_ones_before() -> None:
    """Newest first."""
    document = drives(1).after("c1", ()).after("c2", ()).after("c3", ())
    assert (document.sequence, document.commit, document.history) == (3, "c3", ("c2", "c1"))


def test_a_document_descends_from_its_earlier_versions() -> None:
    """A drive that was away for some commits is behind, and no more."""
    old = drives(1).after("c1", ())
    new = old.after("c2", ()).after("c3", ())
    assert new.descends_from(old)
    assert new.descends_from(new)
    assert not old.descends_from(new)


def test_two_histories_do_not_descend_from_each_other() -> None:
    """The array ran on one half of its drives, then on the other: neither may win in silence."""
    common = drives(1).after("c1", ())
    left, right = common.after("l2", ()).after("l3", ()), common.after("r2", ())
    assert not left.descends_from(right)
    assert not right.descends_from(left)
    assert left.descends_from(common)


@pytest.mark.parametrize(("behind", "remembered"), [(64, True), (65, True)])
def test_what_is_older_than_the_history_is_taken_for_an_ancestor(behind: int, remembered: bool) -> None:
    """64 commits are named; a drive that was away for longer is not refused for that."""
    old = drives(1).after("c0", ())
    new = old
    for number in range(behind):
        new = new.after(f"c{number + 1}", ())
    assert len(new.history) == 64
    assert new.descends_from(old) is remembered


def test_within_the_history_an_unknown_commit_is_another_history() -> None:
    """64 behind is the last that can be told."""
    new = drives(1).after("c0", ())
    for number in range(64):
        new = new.after(f"c{number + 1}", ())
    assert not new.descends_from(drives(1).after("x0", ()))


def test_objects_are_found_by_name_and_by_uuid() -> None:
    """Programs keep UUIDs, people names."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    assert document.lun("v") == document.lun(str(lun.uuid)) == document.lun_of(lun.uuid) == lun
    assert document.drive("d1") == document.drive(str(document.drives[1].uuid)) == document.drives[1]


def test_what_never_existed_is_not_found() -> None:
    """VDS_E_OBJECT_NOT_FOUND."""
    with pytest.raises(ObjectNotFound, match="array 'lab' has no LUN 'v'"):
        drives(1).lun("v")
    with pytest.raises(ObjectNotFound, match="array 'lab' has no drive 'd9'"):
        drives(1).drive("d9")
    with pytest.raises(ObjectNotFound, match="no task 1"):
        drives(1).task(1)


def test_what_was_deleted_is_said_to_be_deleted() -> None:
    """VDS_E_OBJECT_DELETED, by name and by UUID."""
    document, lun = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    document = document.without_lun(lun).without_drive(document.drive("d2"))
    for name in ("v", str(lun.uuid)):
        with pytest.raises(ObjectDeleted, match=r"LUN .* has been deleted"):
            document.lun(name)
    with pytest.raises(ObjectDeleted, match="drive 'd2'"):
        document.drive("d2")


def test_a_name_can_be_used_again() -> None:
    """The tombstone is for the old UUID then."""
    document, old = with_lun(drives(2), Layout.RAID1)
    document = document.without_lun(old)
    new = msgspec.structs.replace(old, uuid=UUID(int=99))
    assert document.with_lun(new).lun("v") == new
    with pytest.raises(ObjectDeleted):
        document.with_lun(new).lun(str(old.uuid))


def test_only_so_many_deleted_objects_are_remembered() -> None:
    """The document has to fit its slot."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    for number in range(70):
        document = document.without_lun(msgspec.structs.replace(lun, name=f"v{number}"))
    assert [stone.name for stone in document.tombstones] == [f"v{number}" for number in range(6, 70)]


def numbered(document: Document, state: model.TaskState) -> Document:
    task = Task(id=document.next_task, kind=TaskKind.SCRUB, lun=UUID(int=1), objects=(), state=state)
    return document.with_task(task)


def test_only_so_many_ended_tasks_are_remembered() -> None:
    """The oldest go first, and no number is given twice. One that runs is never forgotten."""
    document = numbered(drives(1), model.TaskState.IN_PROGRESS)
    for _ in range(70):
        document = numbered(document, model.TaskState.COMPLETED)
    assert [task.id for task in document.tasks] == [1, *range(8, 72)]
    assert document.next_task == 72


def test_a_task_is_replaced_in_its_place() -> None:
    """Its number is its identity."""
    document = numbered(numbered(drives(1), model.TaskState.IN_PROGRESS), model.TaskState.QUEUED)
    ended = tasks.completed(document.task(1))
    document = document.with_task(ended)
    assert [task.state.value for task in document.tasks] == ["completed", "queued"]
    assert document.next_task == 3


def test_the_task_under_way_on_a_lun_is_the_one_that_has_not_ended() -> None:
    """Queued counts; ended ones are history."""
    document = numbered(drives(1), model.TaskState.COMPLETED)
    assert document.task_on(UUID(int=1)) is None
    document = numbered(document, model.TaskState.QUEUED)
    assert document.task_on(UUID(int=1)) == document.task(2)
    assert document.task_on(UUID(int=2)) is None


def test_a_lun_is_replaced_in_its_place() -> None:
    """The order of LUNs is what people see in lists."""
    document, _ = with_lun(drives(4), Layout.RAID1, "v")
    document, other = with_lun(document, Layout.RAID1, "w")
    changed = msgspec.structs.replace(document.lun("v"), suspect=True)
    assert document.with_lun(changed).luns == (changed, other)


def test_the_lost_members_are_the_failed_ones() -> None:
    """One that is being rebuilt is not lost."""
    _, lun = with_lun(drives(4), Layout.RAID6)
    lost: Lun = with_states(lun, MemberState.REBUILDING, MemberState.FAILED, MemberState.IN_SYNC, MemberState.FAILED)
    assert lost.lost == {1, 3}
