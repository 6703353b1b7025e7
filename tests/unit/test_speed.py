"""md's two sysctls, as files of a directory of the test's own: what is set, what is remembered, what is put back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blkrecov import pressure
from blkrecov.dm.speed import SpeedLimits
from blkrecov.errors import ProviderFailure
from blkrecov.governor import CEILING, Limits
from blkrecov.units import KIB, MIB, Bytes

STOCK = Limits(minimum=Bytes(1000 * KIB), maximum=Bytes(200000 * KIB))
OURS = Limits(minimum=Bytes(2 * MIB), maximum=Bytes(64 * MIB))
OTHERS = Limits(minimum=Bytes(2 * MIB), maximum=Bytes(8 * MIB))


@pytest.fixture
def sysctls(tmp_path: Path) -> Path:
    directory = tmp_path / "raid"
    directory.mkdir()
    (directory / "speed_limit_min").write_text("1000\n")
    (directory / "speed_limit_max").write_text("200000\n")
    return directory


@pytest.fixture
def speed(sysctls: Path, tmp_path: Path) -> Callable[[], SpeedLimits]:
    """A process: it knows what the files say, and nothing else."""
    return lambda: SpeedLimits(sysctls, tmp_path / "run")


def test_what_was_there_before_comes_back(speed: Callable[[], SpeedLimits], sysctls: Path) -> None:
    """By another process than the one that changed it: that one may have been killed. In KiB/s, as the kernel has it."""
    assert speed().read() == STOCK
    speed().apply(OURS)
    speed().apply(Limits(minimum=OURS.minimum, maximum=CEILING))
    assert (sysctls / "speed_limit_max").read_text() == "1073741824\n"
    assert speed().usual() == STOCK
    speed().restore()
    assert speed().read() == STOCK
    speed().restore()
    assert speed().read() == STOCK


def test_setting_the_same_again_writes_nothing(speed: Callable[[], SpeedLimits], sysctls: Path, tmp_path: Path) -> None:
    """It is called about once a second."""
    speed().apply(OURS)
    files = [*sysctls.iterdir(), tmp_path / "run/speed-limits.json"]
    before = [file.stat().st_mtime_ns for file in files]
    speed().apply(OURS)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_what_somebody_else_has_set_meanwhile_is_what_comes_back(
    speed: Callable[[], SpeedLimits], sysctls: Path
) -> None:
    """An operator's word is newer than our memory."""
    speed().apply(OURS)
    (sysctls / "speed_limit_max").write_text("8192\n")
    speed().restore()
    assert speed().read() == Limits(minimum=STOCK.minimum, maximum=OTHERS.maximum)
    speed().apply(OURS)
    (sysctls / "speed_limit_max").write_text("4096\n")
    speed().apply(OURS)
    assert speed().read() == OURS
    speed().restore()
    assert speed().read() == Limits(minimum=STOCK.minimum, maximum=Bytes(4 * MIB))


@pytest.mark.parametrize("written", ["nothing", "minimum", "both"])
def test_a_process_that_dies_while_it_sets_them_loses_nothing(
    speed: Callable[[], SpeedLimits], sysctls: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """The memory is written first, so each value is either ours or what was before, wherever it stops."""
    speed().apply(OURS)
    dying = speed()
    cut = {"nothing": 0, "minimum": 1, "both": 2}[written]

    def set_some(knobs: dict[str, int]) -> None:
        for name, value in list(knobs.items())[:cut]:
            (sysctls / name).write_text(f"{value}\n")

    monkeypatch.setattr(dying, "_set", set_some)
    dying.apply(Limits(minimum=Bytes(3 * MIB), maximum=Bytes(5 * MIB)))
    assert speed().usual() == STOCK
    speed().restore()
    assert speed().read() == STOCK


@pytest.mark.parametrize("memory", [b"", b"{}", b'{"boot": "x", "before": {}, "ours": {}}', b"\0" * 64])
def test_a_memory_that_is_none_is_not_believed(speed: Callable[[], SpeedLimits], tmp_path: Path, memory: bytes) -> None:
    """Of an earlier boot, or damaged: then what is there is what was there."""
    speed().apply(OURS)
    (tmp_path / "run/speed-limits.json").write_bytes(memory)
    assert speed().usual() == OURS
    speed().restore()
    assert speed().read() == OURS


def test_without_md_there_are_no_limits(tmp_path: Path) -> None:
    """The directory comes with the module, and so does whatever could be synchronised."""
    speed = SpeedLimits(tmp_path / "nowhere", tmp_path / "run")
    assert (speed.read(), speed.usual()) == (None, None)
    speed.apply(OURS)
    speed.restore()


def test_a_kernel_that_does_not_let_us_is_told_of(
    speed: Callable[[], SpeedLimits], sysctls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container /proc/sys is read-only."""

    def refuse(path: Path, text: str) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(ProviderFailure, match="speed_limit_min cannot be set to 2048: Read-only file system"):
        speed().apply(OURS)


def test_pressure_is_the_share_of_ten_seconds_in_which_some_task_waited(tmp_path: Path) -> None:
    """Linux 6.12, Debian: /proc/pressure/io. Debian's user-mode Linux has no PSI."""
    psi = tmp_path / "io"
    psi.write_text(
        "some avg10=1.16 avg60=2.74 avg300=1.42 total=88007618\nfull avg10=1.07 avg60=2.15 avg300=0.98 total=60340034\n"
    )
    assert pressure.io_pressure(psi) == 1.16
    assert pressure.io_pressure(tmp_path / "nowhere") is None
