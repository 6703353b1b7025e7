"""What is there by way of drives, and waiting until something else is."""

import os
import threading
from pathlib import Path

import pytest

from blkrecov.drives.arrivals import present, wait


@pytest.fixture
def nobody() -> int:
    """The end of a pipe on which nothing comes."""
    return os.pipe()[0]


def test_a_file_that_comes_is_a_difference(tmp_path: Path) -> None:
    """So is one that goes, and one that has other contents."""
    place = str(tmp_path / "d0")
    absent = present([place], [])
    (tmp_path / "d0").write_bytes(b"one")
    first = present([place], [])
    (tmp_path / "d0").write_bytes(b"three")
    assert len({absent, first, present([place], [])}) == 3


def test_a_file_that_is_believed_from_now_on_is_a_difference(tmp_path: Path) -> None:
    """It was there all the time, and others could write to it."""
    place = tmp_path / "d0"
    place.touch(mode=0o600)
    place.chmod(0o666)
    before = present([str(place)], [])
    place.chmod(0o600)
    assert present([str(place)], []) != before


def test_a_new_file_in_a_directory_is_a_difference(tmp_path: Path) -> None:
    before = present([], [str(tmp_path)])
    (tmp_path / "d0").touch()
    assert present([], [str(tmp_path)]) != before


def test_what_has_come_already_is_not_waited_for(tmp_path: Path, nobody: int) -> None:
    """It came between the look and the wait."""
    before = present([], [str(tmp_path)])
    (tmp_path / "d0").touch()
    assert wait(before, [], [str(tmp_path)], nobody, timeout_s=60.0)


def test_a_drive_that_comes_ends_the_wait(tmp_path: Path, nobody: int) -> None:
    """In a directory that was not there before, too."""
    place = tmp_path / "far" / "d0"

    def come() -> None:
        place.parent.mkdir()
        place.touch()

    before = present([str(place)], [])
    later = threading.Timer(0.1, come)
    later.start()
    assert wait(before, [str(place)], [], nobody, timeout_s=60.0)
    later.join()


def test_without_a_difference_the_time_runs_out(tmp_path: Path, nobody: int) -> None:
    assert not wait(present([], [str(tmp_path)]), [], [str(tmp_path)], nobody, timeout_s=0.05)


def test_somebody_who_calls_ends_the_wait(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\n")
    assert wait(present([], []), [], [], reader, timeout_s=60.0)
