"""Where the machine is in its life: in normal operation, still in its initramfs, or brought up for repairs.

A restore overwrites LUNs. Windows refuses one in WinPE and in Safe Mode; their like are the initramfs, and the rescue and
emergency modes.

systemd knows which targets it has reached, and an administrator may leave rescue mode without a restart. So its word counts
where it runs; else there is the kernel's command line, which says only how the machine was booted.
"""

import re
import subprocess
from enum import StrEnum, unique
from pathlib import Path
from typing import Final

from blkrecov.errors import BadState

INITRAMFS: Final = Path("/etc/initrd-release")
SYSTEMD: Final = Path("/run/systemd/system")  # sd_booted(3)
COMMAND_LINE: Final = Path("/proc/cmdline")


@unique
class Mode(StrEnum):
    """A mode for repairs. The values are people's words for it."""

    RESCUE = "rescue"
    EMERGENCY = "emergency"

    @property
    def target(self) -> str:
        return f"{self}.target"


_MODE_OF_TARGET: Final = {mode.target: mode for mode in Mode}
_WORDS: Final[dict[str, Mode | None]] = {
    "emergency": Mode.EMERGENCY,
    "-b": Mode.EMERGENCY,
    **dict.fromkeys(("rescue", "single", "-s", "s", "S", "1"), Mode.RESCUE),
    **dict.fromkeys(("2", "3", "4", "5"), None),
}
# A word ends at a space that is not quoted; a quote that is never closed reaches to the end.
_WORD: Final = re.compile(r"""(?:"[^"]*(?:"|$)|'[^']*(?:'|$)|[^\s"'])+""")


def booted_into(command_line: str) -> Mode | None:
    """The mode for repairs that a kernel command line asks for; None for normal operation. The last word about it counts.

    Words that begin with "rd." are for the initramfs, and mean nothing outside.

    systemd: src/core/main.c, parse_proc_cmdline_item(); src/basic/unit-file.c, runlevel_to_target(); src/basic/proc-cmdline.c.
    """
    mode = None
    for quoted in _WORD.findall(command_line):
        word = re.sub("[\"']", "", quoted)
        key, _, unit = word.partition("=")
        mode = _MODE_OF_TARGET.get(unit) if key == "systemd.unit" and unit else _WORDS.get(word, mode)
    return mode


def refuse_unless_normal() -> None:
    """Raises: BadState, saying in which mode the machine is and how to leave it."""
    if INITRAMFS.exists():
        raise BadState(
            f"the machine is still in its initramfs: there is {INITRAMFS}",
            remedy="let it boot into its own system, and try again there",
        )
    active = _active_modes() if SYSTEMD.exists() else None
    if active is None:
        booted = booted_into(COMMAND_LINE.read_text(errors="replace"))
        if booted:
            raise BadState(
                f"the machine is in {booted} mode: the kernel's command line asks for it",
                remedy="restart the machine without the word for it on the kernel's command line",
            )
    elif active:
        raise BadState(
            f"the machine is in {active[0]} mode: {active[0].target} is active",
            remedy="leave it with: systemctl default",
        )


def _active_modes() -> list[Mode] | None:
    """The modes whose targets are active, as systemctl says; None where it gives no answer.

    Its exit status is no help: in a chroot it does nothing, and says that it did well.
    """
    try:
        done = subprocess.run(["systemctl", "is-active", *_MODE_OF_TARGET], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    states = done.stdout.split()
    if len(states) != len(Mode):
        return None
    return [mode for mode, state in zip(Mode, states, strict=True) if state == "active"]
