"""A machine that runs systemd, and can be started again: the bench's guest, its root and a disk in a directory of the host's."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 900
# What a guest may be asked to do, and the module that has it.
PARTS: Final = {"first": "guest", "second": "guest", "service": "service"}
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """`home` holds its root, a disk of 1 GiB for drives (/dev/ubda), and the directory that the guest reports to."""

    home: Path

    def boot(self, package: Path, *parts: str) -> dict[str, Json]:
        """Boot, run parts in the guest (PARTS), shut down in good order, and give what each reports.

        A part that failed reports "failure" alone, and what the guest said is printed.
        """
        out = self.home / "out"
        (out / "report.json").unlink(missing_ok=True)
        command = [str(ROOT / "scripts/vm"), "--systemd", "--keep", "1G", "--mem", "1G", "--disk", "1G"]
        command += ["--state", str(self.home / "state"), "--out", str(out), "--timeout", str(DEADLINE_S)]
        command += ["--", "python", "-m", "tests.system", str(package), *parts]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        print(f"{' '.join(parts)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        assert done.returncode == 0
        reports: dict[str, Json] = json.loads((out / "report.json").read_text())
        return reports
