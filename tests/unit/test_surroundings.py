"""The words by which a kernel command line asks for rescue or emergency mode, as systemd reads them."""

import pytest

from blkrecov.surroundings import Mode, booted_into


@pytest.mark.parametrize("word", ["rescue", "single", "-s", "s", "S", "1", "systemd.unit=rescue.target"])
def test_words_for_rescue_mode(word: str) -> None:
    """System V's words count whoever is init."""
    assert booted_into(f"root=/dev/sda1 ro {word} quiet\n") is Mode.RESCUE


@pytest.mark.parametrize("word", ["emergency", "-b", "systemd.unit=emergency.target"])
def test_words_for_emergency_mode(word: str) -> None:
    """The same without any file system but the root's."""
    assert booted_into(f"root=/dev/sda1 ro {word} quiet\n") is Mode.EMERGENCY


@pytest.mark.parametrize(
    "line",
    [
        "",
        "root=/dev/sda1 ro quiet",
        "systemd.unit=multi-user.target",
        "single=yes crash_1 1s Single -S 6",
        "systemd.unit= systemd.unit",
    ],
)
def test_other_words_mean_nothing(line: str) -> None:
    """A word counts whole, in its own case and without a value."""
    assert booted_into(line) is None


def test_words_for_the_initramfs_mean_nothing_outside() -> None:
    """`rd.break` and its like stop the initramfs; the system that follows is a normal one."""
    assert booted_into("rd.systemd.unit=rescue.target rd.rescue rd.emergency") is None


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("single 5", None),
        ("systemd.unit=rescue.target systemd.unit=graphical.target", None),
        ("3 emergency", Mode.EMERGENCY),
        ("rescue -b", Mode.EMERGENCY),
        ("rescue systemd.unit=", Mode.RESCUE),
    ],
)
def test_the_last_word_counts(line: str, mode: Mode | None) -> None:
    """An administrator adds a word at the end of what the boot loader has configured."""
    assert booted_into(line) is mode


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ('dyndbg="file scsi.c +p; 1 s single" quiet', None),
        ("dyndbg='module loop 1' rescue", Mode.RESCUE),
        ('systemd.unit="rescue.target"', Mode.RESCUE),
        ('"systemd.unit=emergency.target"', Mode.EMERGENCY),
        ('dyndbg="never closed single', None),
    ],
)
def test_what_is_quoted_is_one_word(line: str, mode: Mode | None) -> None:
    """A parameter's value may hold spaces, and words that would mean something outside of it."""
    assert booted_into(line) is mode
