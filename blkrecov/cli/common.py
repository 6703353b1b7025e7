"""What every command has in common: options, output, errors and their exit status.

Exit status: 0 done, 1 refused or failed, 2 usage. An error says its code's name, what happened here, and what to do. With
--json an error is an object on standard error, and results are objects or arrays on standard output.
"""

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar

import click

from blkrecov.array import Array
from blkrecov.cli import complete
from blkrecov.cli.access import Access, Local
from blkrecov.errors import BlkrecovError, Code
from blkrecov.settings import Settings
from blkrecov.units import parse_size

if TYPE_CHECKING:
    from blkrecov.cli.remote import Daemon

P = ParamSpec("P")
R = TypeVar("R")
WIDTH: Final = 110
_BUS: Final = Path("/run/dbus/system_bus_socket")


@dataclass
class Options:
    """The options that every command takes, before or after its name."""

    array: str | None = None
    json: bool = False
    verbose: bool = False


def common(command: Callable[P, R]) -> Callable[..., R]:
    """Give a command the options of all commands. They may also stand before the first word."""

    @click.option(
        "--array",
        metavar="NAME",
        shell_complete=complete.arrays,
        help="The array that is meant, where there are several.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON; sizes are bytes.")
    @click.option("--verbose", "-v", is_flag=True, help="Tell every step that is taken.")
    @functools.wraps(command)
    def wrapped(*args: Any, array: str | None, as_json: bool, verbose: bool, **kwargs: Any) -> R:
        options = click.get_current_context().ensure_object(Options)
        options.array = array or options.array
        options.json = as_json or options.json
        if verbose and not options.verbose:
            options.verbose = True
            logging.getLogger("blkrecov").setLevel(logging.DEBUG)
        return command(*args, **kwargs)

    return wrapped


class Rate(click.ParamType[int]):
    """Bytes per second, in the words of sizes; 0 is none."""

    name = "rate"

    def convert(self, value: object, _param: click.Parameter | None, _context: click.Context | None) -> int:
        text = str(value).strip()
        return 0 if text == "0" else parse_size(text)


def rates(command: Callable[P, R]) -> Callable[P, R]:
    """Give a command --rate-min and --rate-max."""
    least = "What it is given per second and drive whatever else goes on (50M; 0: the default)."
    most = "What it never exceeds per second and drive (200M; 0: the default)."
    command = click.option("--rate-max", type=Rate(), metavar="SIZE", help=most)(command)
    return click.option("--rate-min", type=Rate(), metavar="SIZE", help=least)(command)


def listed(text: str | None) -> tuple[str, ...]:
    """The names in an option's value, which has commas between them."""
    return tuple(word for word in (text or "").split(",") if word)


def options() -> Options:
    return click.get_current_context().ensure_object(Options)


@contextmanager
def opened() -> Iterator[Array]:
    """The array, opened by this command itself. LUNs that could not be brought up are told on standard error, and are no error of
    the command's.
    """
    with Array.opened(Settings.load(), options().array) as array:
        for uuid, error in array.trouble.items():
            warn(f"LUN {array.document.lun_of(uuid).name}: {error.message}")
        yield array


@contextmanager
def reached() -> Iterator[Access]:
    """The array: the daemon's, where that runs, else opened."""
    with daemon() as running:
        if running is None:
            with opened() as array:
                yield Local(array)
            return
        remote = running.array(options().array)
        for row in remote.luns():
            if row["trouble"]:
                warn(f"LUN {row['name']}: {row['trouble']}")
        if remote.stale:
            warn(remote.stale)
        yield remote


@contextmanager
def daemon() -> "Iterator[Daemon | None]":
    """blkrecovd, if it runs."""
    if "DBUS_SYSTEM_BUS_ADDRESS" not in os.environ and not _BUS.exists():
        yield None
        return
    from blkrecov.cli.remote import Daemon

    with Daemon.reached(Settings.load()) as running:
        yield running


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def say(text: str) -> None:
    """A sentence for people; programs that asked for JSON get none."""
    if not options().json:
        click.echo(text)


def warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def show_plan(lines: Sequence[str]) -> None:
    if options().json:
        show_json({"steps": list(lines)})
        return
    click.echo("would, in this order:")
    for line in lines:
        click.echo(f"  {line}")


def table(columns: Iterable[tuple[str, str]], rows: Iterable[Sequence[str]]) -> None:
    """A table. A column is (title, "left", "right", or "whole" for what is never broken into lines)."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title, side in columns:
        justify: Literal["left", "right"] = "right" if side == "right" else "left"
        drawn.add_column(title, justify=justify, overflow="fold", no_wrap=side == "whole")
    for row in rows:
        drawn.add_row(*row)
    console().print(drawn)


def console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDTH, highlight=False)


def error_object(error: BlkrecovError) -> dict[str, str]:
    return {
        "code": error.code.name,
        "hresult": error.code.hresult_text,
        "message": error.message,
        "remedy": error.remedy,
    }


def tell_error(error: BlkrecovError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(error_object(error)), err=True)
        return
    click.echo(f"blkrecov: {error.code.name} ({error.code.hresult_text}): {error.message}", err=True)
    click.echo(f"  what to do: {error.remedy}", err=True)


def tell_usage(message: str, *, as_json: bool) -> None:
    if as_json:
        usage = {
            "code": Code.E_INVALIDARG.name,
            "hresult": Code.E_INVALIDARG.hresult_text,
            "message": message,
            "remedy": "see blkrecov --help",
        }
        click.echo(json.dumps(usage), err=True)
        return
    click.echo(f"blkrecov: {message}", err=True)
    click.echo("  what to do: see blkrecov --help, or --help of the command", err=True)
