"""A machine that runs systemd, and can be started again: the bench's guest, its root and a disk in a directory of the host's."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 600
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """`home` holds its root, a disk of 300 MiB for drives (/dev/ubda), and the directory that the guest reports to.

    With $BLKRECOV_SUITE it is of another Debian release: BLKRECOV_SUITE=trixie python -m pytest tests/system/test_package.py
    """

    home: Path

    def boot(self, part: str, *words: str) -> Json:
        """Boot, run a part of tests/system/guest.py with these words, shut down in good order, and give what it reports.

        Fails with what the guest said where the part fails.
        """
        out = self.home / "out"
        (out / "report.json").unlink(missing_ok=True)
        command = [str(ROOT / "scripts/vm"), "--systemd", "--keep", "1G", "--mem", "1G", "--disk", "300M"]
        command += ["--state", str(self.home / "state"), "--out", str(out), "--timeout", str(DEADLINE_S)]
        if suite := os.environ.get("BLKRECOV_SUITE"):
            command += ["--suite", suite]
        command += ["--", "python", "-m", "tests.system.guest", part, *words]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        assert done.returncode == 0, f"{part}: status {done.returncode}\n{done.stdout}{done.stderr}"
        report: Json = json.loads((out / "report.json").read_text())
        return report
