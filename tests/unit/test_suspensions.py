"""Which LUNs we have suspended ourselves."""

from pathlib import Path

from blkrecov.suspensions import Suspensions


def test_what_was_begun_is_known_to_the_next_process(tmp_path: Path) -> None:
    """The one that began it may have died."""
    record = tmp_path / "run" / "a1a1a1a1.suspended"
    Suspensions(record).begin("blkrecov-lab-a")
    Suspensions(record).begin("blkrecov-lab-b")
    assert Suspensions(record).names() == {"blkrecov-lab-a", "blkrecov-lab-b"}


def test_nothing_is_left_of_what_has_ended(tmp_path: Path) -> None:
    """Nor does it matter if it had ended already."""
    suspensions = Suspensions(tmp_path / "a1a1a1a1.suspended")
    suspensions.begin("blkrecov-lab-a")
    suspensions.end("blkrecov-lab-a")
    suspensions.end("blkrecov-lab-a")
    assert suspensions.names() == frozenset()
    assert list(tmp_path.iterdir()) == []
