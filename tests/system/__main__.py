"""In the guest: python -m tests.system WHEEL PACKAGE PART... runs these parts, and leaves what each has noted."""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from tests.system.machine import PARTS, Json


def main() -> None:
    wheel, package, *parts = sys.argv[1:]
    reports: dict[str, Json] = {}
    for part in parts:
        try:
            reports[part] = getattr(import_module(f"tests.system.{PARTS[part]}"), part)(wheel, package)
        except Exception:
            # What others have noted is worth as much as before.
            reports[part] = {"failure": traceback.format_exc()}
    Path(os.environ["BLKRECOV_VM_OUT"], "report.json").write_text(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
