"""blkrecov page83"""

import click

from blkrecov.bus.interfaces import LUN
from blkrecov.cli import access, complete
from blkrecov.cli.access import request
from blkrecov.cli.common import common, options, reached, show_json, table
from blkrecov.errors import ObjectNotFound
from blkrecov.page83 import sysfs
from blkrecov.page83.designator import Designator, Naa, eligible
from blkrecov.views import Json


@click.group("page83")
def group() -> None:
    """Identities: what disks answer when they are asked who they are (SPC, VPD page 83h)."""


@group.command("show")
@click.argument("what", metavar="[LUN|DEVICE]", required=False, shell_complete=complete.luns)
@common
def show(what: str | None) -> None:
    """Show the designators of a LUN's SCSI disk, of any SCSI disk, or of all LUNs."""
    if what is not None and what.startswith("/dev/"):
        disks = {what: what}
    else:
        with reached() as array:
            luns = [access.lun(array, what)] if what else list(array.luns())
            disks = {lun["name"]: lun["device"] for lun in luns if lun["device"] is not None}
            if what and not disks:
                raise ObjectNotFound(f"LUN {what!r} has no SCSI disk", remedy="it was made with --no-export")
    rows = [row for name, disk in disks.items() for row in _rows(name, disk)]
    if options().json:
        show_json(rows)
        return
    table(
        [
            ("of", "left"),
            ("disk", "left"),
            ("type", "left"),
            ("association", "left"),
            ("counts", "left"),
            ("designator", "left"),
        ],
        [
            (
                row["name"],
                row["device"],
                row["type"],
                row["association"],
                "yes" if row["eligible"] else "no",
                row["text"],
            )
            for row in rows
        ],
    )


def _rows(name: str, disk: str) -> list[Json]:
    page = sysfs.read_page(disk)
    if page is None:
        raise ObjectNotFound(f"{disk} has no page 83", remedy="it is no SCSI disk, or one that tells no identity")
    return [
        {
            "name": name,
            "device": disk,
            "type": _word(designator.kind),
            "association": _word(designator.association),
            "eligible": eligible(designator),
            "text": _text(designator),
            "identifier": designator.identifier.hex(),
        }
        for designator in page.designators
    ]


def _word(value: object) -> str:
    name = getattr(value, "name", None)
    return str(name).lower().replace("_", " ") if name else f"reserved ({value})"


def _text(designator: Designator) -> str:
    if int(designator.kind) == 3:
        return f"naa.{Naa.parse(designator.identifier).text}"
    text = designator.identifier.rstrip(b"\0")
    return text.decode("ascii") if text and all(32 <= byte < 127 for byte in text) else designator.identifier.hex()


@group.command("check")
@click.pass_context
@common
def check(context: click.Context) -> None:
    """Ask every witness of every identity: the configuration, sysfs, udev. The exit status is 0 if they agree."""
    rows: list[Json] = []
    with reached() as array:
        for lun in array.luns():
            verified, witnesses, trouble = array.call(request(LUN, "Verify", of=lun["uuid"]))
            rows.append(
                {
                    "name": lun["name"],
                    "verified": verified,
                    "exported": lun["exported"],
                    "trouble": trouble or None,
                    "witnesses": {source: naa or None for source, naa, _ in witnesses},
                }
            )
    if options().json:
        show_json(rows)
    else:
        table(
            [("LUN", "left"), ("verdict", "left"), ("identity", "left")],
            [
                (
                    row["name"],
                    row["trouble"]
                    or ("agreed by configuration, sysfs and udev" if row["verified"] else "no SCSI disk"),
                    f"naa.{row['witnesses']['metadata']}",
                )
                for row in rows
            ],
        )
    context.exit(1 if any(row["trouble"] for row in rows) else 0)
