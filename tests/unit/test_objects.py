"""The list of storage objects between processes: what is to be told is told once, and numbers go on."""

from pathlib import Path

import pytest

from blkrecov.dmrp.information import DriveLetterInfo, ProgressType, TaskInfo
from blkrecov.dmrp.storage import ObjectList
from blkrecov.objects import ObjectFile
from blkrecov.tasks import RequestStatus


def at(*paths: str) -> ObjectList:
    return ObjectList(tuple(DriveLetterInfo(path=path, storage_id=1) for path in paths))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lab.objects"


def said(path: Path) -> list[tuple[str, str]]:
    """By another process."""
    return [
        (each.action.name.lower(), each.object.path)
        for each in ObjectFile(path).untold()
        if isinstance(each.object, DriveLetterInfo)
    ]


def test_there_is_nobody_to_tell_of_a_list_that_begins(path: Path) -> None:
    """Who asks for it has it whole. A task that had ended before is no news later either."""
    ended = TaskInfo(
        id=7,
        storage_id=1,
        percent_complete=100,
        status=RequestStatus.REQ_COMPLETED,
        type=ProgressType.PROGRESS_SYNCHING,
        error=0,
    )
    now = ObjectList(at("/a").objects, tasks=(ended,), newest_task=7)
    listing = ObjectFile(path).refresh(now)
    assert listing.tasks == ()
    assert said(path) == []
    ObjectFile(path).refresh(now)
    assert ObjectFile(path).untold() == ()


def test_changes_wait_until_they_are_told(path: Path) -> None:
    """Those of several operations, in order; another process may tell them."""
    ObjectFile(path).refresh(at("/a"))
    ObjectFile(path).refresh(at("/a", "/b"))
    ObjectFile(path).refresh(at("/b"))
    assert said(path) == [("created", "/b"), ("deleted", "/a")]
    ObjectFile(path).told()
    assert said(path) == []
    ObjectFile(path).refresh(at("/b"))
    assert said(path) == []


def test_numbers_go_on_where_the_list_is_lost(path: Path) -> None:
    """A file that is damaged, or gone with a boot: whoever remembers a number of it is not mistaken for up to date."""
    first = ObjectFile(path).refresh(at("/a", "/b"))
    again = ObjectFile(path).refresh(at("/a", "/b"))
    assert again == first
    path.write_bytes(b"{")
    second = ObjectFile(path).refresh(at("/a", "/b"))
    assert min(item.last_known_state for item in second.objects) > first.sequence


def test_a_list_that_cannot_be_kept_stops_nothing(tmp_path: Path) -> None:
    """It is begun anew each time."""
    (tmp_path / "file").touch()
    unwritable = ObjectFile(tmp_path / "file" / "lab.objects")
    assert [item.last_known_state > 0 for item in unwritable.refresh(at("/a")).objects] == [True]
    assert unwritable.untold() == ()
    unwritable.told()
