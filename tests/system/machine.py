"""A machine that runs systemd, and can be started again: the bench's guest, its root and a disk in a directory of the host's."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 900
# What a guest may be asked to do, and the module that has it.
PARTS: Final = {
    "first": "guest",
    "second": "guest",
    "service": "service",
    "enable": "environment",
    "started": "environment",
}
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """`home` holds its root, a disk of 1 GiB for drives (/dev/ubda), and the directory that the guest reports to.

    With $BLKRECOV_SUITE it is of another Debian release: BLKRECOV_SUITE=trixie python -m pytest tests/system/test_package.py
    """

    home: Path

    def boot(self, built: tuple[Path, Path], *parts: str) -> dict[str, Json]:
        """Boot, run parts in the guest (PARTS) with the wheel and the package, shut down in good order; what each reports.

        A part that failed reports "failure" alone, and what the guest said is printed.
        """
        out = self.home / "out"
        (out / "report.json").unlink(missing_ok=True)
        command = [str(ROOT / "scripts/vm"), "--systemd", "--keep", "1G", "--mem", "1G", "--disk", "1G"]
        command += ["--state", str(self.home / "state"), "--out", str(out), "--timeout", str(DEADLINE_S)]
        if suite := os.environ.get("BLKRECOV_SUITE"):
            command += ["--suite", suite]
        command += ["--", "python", "-m", "tests.system", *map(str, built), *parts]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        print(f"{' '.join(parts)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        assert done.returncode == 0
        reports: dict[str, Json] = json.loads((out / "report.json").read_text())
        return reports
