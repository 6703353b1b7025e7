"""Which of several configurations is the array's."""

from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.lineage import judge
from blkrecov.model import Document, DriveStatus
from tests.unit.arrays import drives

STRANGER = UUID(int=77)


def later(document: Document, count: int, name: str = "c") -> Document:
    for number in range(count):
        document = document.after(f"{name}{document.sequence + 1}-{number}", document.carriers)
    return document


def uuids(document: Document) -> list[UUID]:
    return [drive.uuid for drive in document.drives]


def test_a_version_of_nowhere_does_not_win_by_its_number() -> None:
    """A drive that nobody knows says that it is a million versions on."""
    real = later(drives(2), 6)
    forged = msgspec.structs.replace(real, sequence=10**6, commit="e", history=())
    found = judge({**dict.fromkeys(uuids(real), real), STRANGER: forged}, known=6)
    assert (found.newest, found.others, found.unproven) == (forged, frozenset(), frozenset(uuids(real)))


def test_nor_by_the_name_of_a_drive_that_is_away() -> None:
    """One against one is no majority."""
    real = later(drives(2), 6)
    forged = msgspec.structs.replace(real, sequence=10**6, commit="e", history=())
    first, second = uuids(real)
    assert judge({first: real, second: forged}, known=None).unproven == {first}


def test_within_the_history_the_names_of_versions_tell() -> None:
    """Whatever this machine knows."""
    real = later(drives(2), 6)
    forged = msgspec.structs.replace(real, sequence=7, commit="e", history=())
    first, second = uuids(real)
    assert judge({first: real, second: forged}, known=7).others == {first}
    assert judge({first: real, second: later(real, 64)}, known=None).others == frozenset()


def test_what_this_machine_has_written_is_newer() -> None:
    """Most drives were away for longer than the history tells, and come back: they are older, however many."""
    old = later(drives(3), 6)
    new = later(old, 65)
    first, *away = uuids(old)
    documents = {first: new, **dict.fromkeys(away, old)}
    assert judge(documents, known=71).unproven == frozenset()
    assert judge(documents, known=7).unproven == frozenset()
    assert judge(documents, known=6).unproven == set(away)
    assert judge(documents, known=None).unproven == set(away)


def test_the_newest_knows_what_a_drive_had_that_was_away() -> None:
    """On a machine that has never met the array."""
    old = later(drives(2), 6)
    first, second = uuids(old)
    gone = msgspec.structs.replace(old.drive_of(second), status=DriveStatus.REMOVED, carried=6)
    new = later(old.with_drive(gone), 65)
    assert judge({first: new, second: old}, known=None).unproven == frozenset()
    earlier = msgspec.structs.replace(old, sequence=5)
    assert judge({first: new, second: earlier}, known=None).unproven == {second}


def test_one_drive_that_stayed_behind_is_outvoted() -> None:
    """The others ran on another machine for long."""
    old = later(drives(3), 6)
    new = later(old, 100)
    behind, *moved = uuids(old)
    found = judge({behind: old, **dict.fromkeys(moved, new)}, known=6)
    assert (found.newest, found.unproven) == (new, frozenset())


@given(st.integers(1, 200), st.integers(2, 5), st.integers(0, 10**9), st.data())
def test_drives_that_nobody_knows_never_win(versions: int, count: int, ahead: int, data: st.DataObject) -> None:
    """However many they are, as long as this machine does not know their version: there is trouble, or the real one is newest."""
    real = later(drives(count), versions)
    forged = msgspec.structs.replace(real, sequence=versions + ahead, commit="e", history=())
    strangers = [UUID(int=100 + number) for number in range(data.draw(st.integers(1, 9)))]
    here = data.draw(st.sets(st.sampled_from(uuids(real)), min_size=1))
    found = judge(
        {**dict.fromkeys(here, real), **dict.fromkeys(strangers, forged)}, data.draw(st.none() | st.just(versions))
    )
    assert found.others or found.unproven


@given(st.integers(1, 200), st.integers(0, 200), st.integers(2, 5), st.data())
def test_one_line_is_never_refused_where_it_was_written(
    before: int, after: int, count: int, data: st.DataObject
) -> None:
    """Whoever was away for how long. What was never written has no name, and is on no drive."""
    versions = [later(drives(count), before)]
    for _ in range(after):
        versions.append(later(versions[-1], 1))
    carried = {drive: data.draw(st.sampled_from(versions)) for drive in uuids(versions[0])}
    carried[uuids(versions[0])[0]] = versions[-1]
    found = judge(carried, known=versions[-1].sequence)
    assert (found.newest, found.others, found.unproven) == (versions[-1], frozenset(), frozenset())
