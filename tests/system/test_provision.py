"""What `vagrant up` does, and the story on the machine's own kernel, but for the machine: here it is the bench's guest."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.machine import ROOT

IN_THE_MACHINE = """
set -e
mkfs.ext4 -q /dev/ubda
mount /dev/ubda /var/tmp
scripts/provision "$PWD"
scripts/demo --native
systemctl is-active blkrecovd.service
ls -A /var/tmp
blkrecov array list --json
losetup --list
"""


@pytest.mark.long
@pytest.mark.usefixtures("built")
def test_a_machine_is_provisioned_and_tells_the_story(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """The package that is there is installed without a network; the story leaves nothing behind, and the service alone."""
    command = [str(ROOT / "scripts/vm"), "--systemd", "--mem", "2G", "--disk", "3G", "--state", str(tmp_path)]
    command += ["--timeout", "1200", "--", "bash", "-c", IN_THE_MACHINE]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO" not in done.stdout
    assert done.stdout.splitlines()[-3:] == ["active", "lost+found", "[]"]
    figure(next(line for line in done.stdout.splitlines() if "time of the story" in line).strip())
