"""blkrecov array"""

import click
from msgspec import UNSET

from blkrecov import engine, provision
from blkrecov.array import Array
from blkrecov.catalog import Discovered
from blkrecov.cli import drive, lun
from blkrecov.cli.common import common, opened, options, rates, say, show_json, show_plan, table
from blkrecov.model import Schedule
from blkrecov.settings import Settings
from blkrecov.units import format_size
from blkrecov.views import Json

_AUTO_RECOVER = {"on": True, "off": False, "default": None}


@click.group("array")
def group() -> None:
    """Arrays: sets of drives that know each other."""


@group.command("create")
@click.argument("name")
@common
def create(name: str) -> None:
    """Make an array. It is written onto its drives, from the first one on that is added."""
    array = engine.create_array(Settings.load(), name)
    if options().json:
        show_json({"name": array.name, "uuid": str(array.uuid), "drives": [], "luns": []})
    say(f"array {array.name} made; add drives with: blkrecov drive add PATH --size SIZE")


@group.command("list")
@common
def list_() -> None:
    """Show the arrays of this machine."""
    found = engine.list_arrays(Settings.load())
    if options().json:
        show_json([_row(array) for array in found])
        return
    rows = [_row(array) for array in found]
    table(
        [
            ("array", "left"),
            ("uuid", "left"),
            ("drives", "right"),
            ("found", "right"),
            ("LUNs", "right"),
            ("trouble", "left"),
        ],
        [
            (row["name"], row["uuid"], str(row["drives"]), str(row["found"]), str(row["luns"]), row["trouble"] or "")
            for row in rows
        ],
    )


def _row(array: Discovered) -> Json:
    document = array.document
    return {
        "name": array.name,
        "uuid": str(array.uuid),
        "drives": len(document.drives) if document else 0,
        "found": len(array.drives),
        "luns": len(document.luns) if document else 0,
        "trouble": array.trouble[0].message if array.trouble else None,
    }


@group.command("show")
@common
def show() -> None:
    """Show an array with its drives and LUNs. Brings up what is down."""
    with opened() as array:
        view = array_view(array)
    if options().json:
        show_json(view)
        return
    say(f"array {view['name']}  {view['uuid']}  configuration {view['sequence']}")
    say(f"  {_settings(view)}")
    drive.show_table(view["drives"])
    lun.show_table(view["luns"])


def array_view(array: Array) -> Json:
    document = array.document
    return {
        "name": document.name,
        "uuid": str(document.array),
        "sequence": document.sequence,
        "auto_recover": document.auto_recover,
        "scrub": document.scrub.value,
        "rate_min": document.rate_min,
        "rate_max": document.rate_max,
        "drives": [drive.view(array, item) for item in document.drives],
        "luns": [array.lun_json(item) for item in document.luns],
    }


def _settings(view: Json) -> str:
    auto = {None: "where there is a hot spare", True: "on", False: "off"}[view["auto_recover"]]
    rates = [
        f"at {word} {format_size(view[key])}/s"
        for word, key in (("least", "rate_min"), ("most", "rate_max"))
        if view[key]
    ]
    return f"recovers by itself: {auto}; scrubs by itself: {view['scrub']}; rate: {', '.join(rates) or 'default'}"


@group.command("set")
@click.option(
    "--auto-recover",
    type=click.Choice(list(_AUTO_RECOVER)),
    help="Whether lost members are recovered without being asked for; by default where there is a hot spare.",
)
@click.option("--scrub", type=click.Choice([item.value for item in Schedule]), help="How often LUNs are scrubbed.")
@rates
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def set_(auto_recover: str | None, scrub: str | None, rate_min: int | None, rate_max: int | None, plan: bool) -> None:
    """Change how an array looks after itself. What is not given stays as it is."""
    if (auto_recover, scrub, rate_min, rate_max) == (None, None, None, None):
        raise click.UsageError("nothing to set: give at least one option")
    with opened() as array:
        proposal = provision.configure(
            array.document,
            auto_recover=UNSET if auto_recover is None else _AUTO_RECOVER[auto_recover],
            scrub=UNSET if scrub is None else Schedule(scrub),
            rate_min=UNSET if rate_min is None else rate_min,
            rate_max=UNSET if rate_max is None else rate_max,
        )
        if plan:
            show_plan(array.plan(proposal))
            return
        array.carry_out(proposal)
        view = array_view(array)
    if options().json:
        show_json(view)
    say(f"array {view['name']}  {_settings(view)}")


@group.command("stop")
@common
def stop() -> None:
    """Take an array out of the kernel in good order. The next command that needs it brings it up again."""
    with opened() as array:
        array.stop()
        if options().json:
            show_json({"name": array.document.name, "uuid": str(array.document.array)})
        say(f"array {array.document.name} stopped")
