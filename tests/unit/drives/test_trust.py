"""What is believed: by whom it could have been written."""

import os
import stat
from pathlib import Path

import pytest

from blkrecov.drives.store import DriveStore, IoCounter, create_file
from blkrecov.drives.trust import Untrusted, flaw, refuse, way_flaw

FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR


@pytest.mark.parametrize(
    ("owner", "mode", "user"),
    [(0, FILE | 0o600, 0), (0, FILE | 0o644, 1000), (1000, FILE | 0o600, 1000), (0, DIRECTORY | 0o755, 0)],
)
def test_what_root_alone_can_write_to_is_believed(owner: int, mode: int, user: int) -> None:
    """Who may read it is another question. A user who is not root does no harm to anybody else."""
    assert flaw(owner, mode, user) == ""


@pytest.mark.parametrize(
    ("owner", "mode", "why"),
    [
        (65534, FILE | 0o600, "it is not root's, but user 65534's"),
        (0, FILE | 0o664, "others than its owner may write to it (mode 0664)"),
        (0, FILE | 0o602, "others than its owner may write to it (mode 0602)"),
        (0, DIRECTORY | 0o1777, "others than its owner may write to it (mode 1777)"),
    ],
)
def test_what_somebody_else_can_write_to_is_not_believed(owner: int, mode: int, why: str) -> None:
    """A sticky directory keeps files from being taken away, not from being put there."""
    assert flaw(owner, mode) == why


def test_a_way_is_judged_by_each_directory_on_it(tmp_path: Path) -> None:
    """Whoever can write to one of them can put another file there."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    place = str(tmp_path / "a" / "b" / "d0")
    assert way_flaw(place, tmp_path) == ""
    (tmp_path / "a").chmod(0o1777)
    assert way_flaw(place, tmp_path) == (
        f"it lies in {tmp_path}/a, and others than its owner may write to it (mode 1777)"
    )
    assert way_flaw(place, tmp_path / "a" / "b") == ""


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    """Where it leads to is not on the way that is asked."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert way_flaw(str(tmp_path / "link" / "d0"), tmp_path) == f"{tmp_path}/link is no directory"


def test_metadata_is_read_and_written_through_no_file_that_others_can_write_to(tmp_path: Path) -> None:
    """The one door to drives asks the file that it has open."""
    path = str(tmp_path / "d 0")
    create_file(path, 2**24)
    Path(path).chmod(0o666)
    with pytest.raises(Untrusted, match="others than its owner may write to it") as refused:
        DriveStore(path, IoCounter())
    assert refused.value.remedy == f"if what is in it is yours: chown root: '{path}'; chmod go-w '{path}'"
    with pytest.raises(Untrusted):
        refuse(path)
    Path(path).chmod(0o644)
    refuse(path)
    DriveStore(path, IoCounter()).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a file can be given away by root only")
def test_a_file_of_somebody_else_is_no_drive(tmp_path: Path) -> None:
    path = str(tmp_path / "d0")
    create_file(path, 2**24)
    os.chown(path, 65534, 65534)
    with pytest.raises(Untrusted, match="not root's, but user 65534's"):
        DriveStore(path, IoCounter())
