"""Where a restore is refused, on a machine made to look so. The guest's init is no systemd; systemctl's words are made here."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from blkrecov.errors import BadState, Code
from blkrecov.surroundings import COMMAND_LINE, INITRAMFS, SYSTEMD, refuse_unless_normal
from tests.kernel.lab import run


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Puts another kernel command line in the place of the real one."""
    with ExitStack() as undo:

        def with_words(words: str) -> None:
            line = tmp_path / "cmdline"
            line.write_text(f"{COMMAND_LINE.read_text().strip()} {words}\n")
            run("mount", "--bind", str(line), str(COMMAND_LINE))
            undo.callback(run, "umount", str(COMMAND_LINE))

        yield with_words


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Has systemd run, and systemctl call certain targets active."""
    assert not SYSTEMD.exists()
    SYSTEMD.mkdir(parents=True)

    def with_active(*targets: str) -> None:
        systemctl = tmp_path / "systemctl"
        systemctl.write_text(
            '#!/bin/sh\n[ "$1" = is-active ] || exit 1\nshift\nfor target; do\n'
            f'    case " {" ".join(targets)} " in *" $target "*) echo active;; *) echo inactive;; esac\ndone\n'
        )
        systemctl.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    yield with_active
    SYSTEMD.rmdir()


def test_a_machine_that_is_up_is_normal() -> None:
    """The guest as it is: no systemd, and no word for another mode on its command line."""
    refuse_unless_normal()


def test_the_initramfs_is_refused() -> None:
    """The arrays that are wanted later may not be there yet, nor what watches them."""
    assert not INITRAMFS.exists()
    INITRAMFS.write_text("ID=debian\n")
    try:
        with pytest.raises(BadState, match="still in its initramfs: there is /etc/initrd-release") as caught:
            refuse_unless_normal()
    finally:
        INITRAMFS.unlink()
    assert caught.value.code is Code.VSS_E_BAD_STATE
    assert caught.value.remedy == "let it boot into its own system, and try again there"


@pytest.mark.parametrize(
    ("words", "mode"), [("single", "rescue"), ("systemd.unit=emergency.target", "emergency"), ("-b", "emergency")]
)
def test_a_machine_that_was_booted_for_repairs_is_refused(boot: Callable[[str], None], words: str, mode: str) -> None:
    """Without systemd nobody tells that such a mode was left, so only a restart leaves it."""
    boot(words)
    with pytest.raises(BadState, match=f"in {mode} mode: the kernel's command line asks for it") as caught:
        refuse_unless_normal()
    assert caught.value.remedy == "restart the machine without the word for it on the kernel's command line"


@pytest.mark.parametrize("mode", ["rescue", "emergency"])
def test_an_active_target_is_refused(systemd: Callable[..., None], mode: str) -> None:
    """`systemctl rescue` leaves no word on the command line."""
    systemd(f"{mode}.target", "sysinit.target")
    with pytest.raises(BadState, match=f"in {mode} mode: {mode}.target is active") as caught:
        refuse_unless_normal()
    assert caught.value.remedy == "leave it with: systemctl default"


def test_rescue_mode_can_be_left_without_a_restart(boot: Callable[[str], None], systemd: Callable[..., None]) -> None:
    """The active targets decide: the command line stays what it was."""
    boot("systemd.unit=rescue.target")
    systemd("multi-user.target")
    refuse_unless_normal()


def test_a_systemd_that_does_not_answer_leaves_the_command_line(
    boot: Callable[[str], None], systemd: Callable[..., None]
) -> None:
    """The guest's own systemctl finds nobody to ask."""
    refuse_unless_normal()
    boot("rescue")
    with pytest.raises(BadState, match="in rescue mode: the kernel's command line"):
        refuse_unless_normal()


def test_a_systemd_without_systemctl_leaves_the_command_line(
    boot: Callable[[str], None], systemd: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's image may have none."""
    boot("emergency")
    with monkeypatch.context() as path:
        path.setenv("PATH", str(tmp_path))
        with pytest.raises(BadState, match="in emergency mode: the kernel's command line"):
            refuse_unless_normal()
