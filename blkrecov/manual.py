"""The manual pages and the shells' completions, all from the command line's own tree.

    python -m blkrecov.manual DIR

writes DIR/man8/blkrecov.8 and a page for each group of commands (blkrecov-drive.8, ...), and the completions as
DIR/completions/blkrecov.bash, _blkrecov (zsh) and blkrecov.fish. The same tree gives the same bytes.

A command's help is its description. A paragraph of it that is kept as it is (after a line with only \\b) and begins with
"Examples:" is put into the page's examples.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from blkrecov.cli.main import cli

PROGRAM: Final = "blkrecov"
_SECTION: Final = 8
_AS_IS: Final = "\b"
_EXAMPLES: Final = "Examples:"
# Described once, in the program's own page.
_COMMON: Final = ("array", "as_json", "verbose", "help", "version")

EXIT_STATUS: Final = (
    ("0", "Done. For status: every drive is online and every LUN healthy."),
    (
        "1",
        "Refused or failed: standard error has the code, what happened here, and what to do. For status: something is not well.",
    ),
    ("2", "A mistake of usage."),
    ("130", "Interrupted. A task that had begun goes on; see blkrecov task list."),
)
FILES: Final = (
    (
        "/etc/blkrecov/blkrecov.toml",
        'Where drives are looked for: directories = [...]. Where blkrecovd serves metrics: metrics = "127.0.0.1:9835".',
    ),
    ("/var/lib/blkrecov/drives", "Where they are looked for by default."),
    ("/var/lib/blkrecov", "Where drives were found last, and what happened (events.jsonl). May be lost without harm."),
)
ENVIRONMENT: Final = (
    ("BLKRECOV_DIRECTORIES", "Directories, colons between, in the place of those in the configuration."),
    ("BLKRECOV_STATE", "A directory in the place of /var/lib/blkrecov."),
)


def pages(program: click.Group) -> dict[str, str]:
    """Every page by the name of its file, in roff's man macros."""
    top = click.Context(program, info_name=PROGRAM)
    groups = {name: command for name, command in program.commands.items() if isinstance(command, click.Group)}
    found = {f"{PROGRAM}.{_SECTION}": _program_page(top, program, groups)}
    for name, group in groups.items():
        context = click.Context(group, info_name=name, parent=top)
        others = [PROGRAM, *(f"{PROGRAM}-{other}" for other in groups if other != name)]
        found[f"{PROGRAM}-{name}.{_SECTION}"] = _page(
            f"{PROGRAM}-{name}",
            group,
            ["SYNOPSIS", *_synopses(context, group)],
            ["DESCRIPTION", *_description(group)],
            ["COMMANDS", *_commands(context, group)],
            ["OPTIONS", "Every command takes the options that", rf"\fB{PROGRAM}\fR({_SECTION})", "describes."],
            ["EXIT STATUS", *_definitions(EXIT_STATUS)],
            ["EXAMPLES", *_examples(group)],
            ["SEE ALSO", *_see_also(others)],
        )
    return found


def completions(program: click.Command) -> dict[str, str]:
    """Every shell's completion by the name of its file."""
    files = {"bash": f"{PROGRAM}.bash", "zsh": f"_{PROGRAM}", "fish": f"{PROGRAM}.fish"}
    found = {}
    for shell, name in files.items():
        kind = get_completion_class(shell)
        assert kind is not None, f"click knows no shell {shell}"
        made = kind(program, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
        # Not source(): for bash it would ask this machine's bash for its version.
        found[name] = made.source_template % made.source_vars()
    return found


def write(directory: Path) -> None:
    for folder, files in (("man8", pages(cli)), ("completions", completions(cli))):
        (directory / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / folder / name).write_text(text)


def _program_page(top: click.Context, program: click.Group, groups: dict[str, click.Group]) -> str:
    leaves = click.Group(
        commands={name: command for name, command in program.commands.items() if name not in groups},
    )
    parts = [
        (f"{PROGRAM} {name}", f"{_short(group)} See {PROGRAM}-{name}({_SECTION}).") for name, group in groups.items()
    ]
    options = (parameter for parameter in program.params if parameter.name != "version")
    common = [record for parameter in options if (record := parameter.get_help_record(top))]
    return _page(
        PROGRAM,
        program,
        ["SYNOPSIS", *_usage(top, program)],
        ["DESCRIPTION", *_description(program)],
        ["OPTIONS", "Every command takes these, before or after its own words.", *_definitions(common)],
        ["COMMANDS", *_definitions(parts), *_commands(top, leaves)],
        ["EXIT STATUS", *_definitions(EXIT_STATUS)],
        ["FILES", *_definitions(FILES)],
        ["ENVIRONMENT", *_definitions(ENVIRONMENT)],
        ["EXAMPLES", *_examples(program)],
        ["SEE ALSO", *_see_also([f"{PROGRAM}-{name}" for name in groups])],
    )


def _page(name: str, command: click.Command, *sections: list[str]) -> str:
    title = name.upper().replace("-", r"\-")
    lines = [
        rf'.TH "{title}" "{_SECTION}" "" "{PROGRAM} {version(PROGRAM)}" "System Administration"',
        ".SH NAME",
        rf"{roff(name)} \- {roff(_short(command).rstrip('.'))}",
    ]
    for heading, *content in sections:
        if content:
            lines += [f".SH {heading}", *content]
    return "\n".join(lines) + "\n"


def _usage(context: click.Context, command: click.Command) -> Iterator[str]:
    yield rf"\fB{roff(context.command_path)}\fR {roff(' '.join(command.collect_usage_pieces(context)))}"


def _synopses(context: click.Context, group: click.Group) -> Iterator[str]:
    for number, (name, command) in enumerate(group.commands.items()):
        if number:
            yield ".br"
        yield from _usage(click.Context(command, info_name=name, parent=context), command)


def _commands(context: click.Context, group: click.Group) -> Iterator[str]:
    for name, command in group.commands.items():
        inner = click.Context(command, info_name=name, parent=context)
        yield f".SS {roff(f'{inner.command_path} {_arguments(inner, command)}'.strip())}"
        yield from _description(command)
        records = (item.get_help_record(inner) for item in command.params if item.name not in _COMMON)
        yield from _definitions([record for record in records if record and record[1]])


def _arguments(context: click.Context, command: click.Command) -> str:
    return " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")


def _definitions(rows: "list[tuple[str, str]] | tuple[tuple[str, str], ...]") -> Iterator[str]:
    for term, meaning in rows:
        yield ".TP"
        yield rf"\fB{roff(term)}\fR"
        yield roff(meaning)


def _description(command: click.Command) -> Iterator[str]:
    for number, paragraph in enumerate(part for part in _paragraphs(command) if not _is_example(part)):
        if number:
            yield ".PP"
        if paragraph.startswith(_AS_IS):
            yield from (".nf", *(roff(line) for line in paragraph.splitlines()[1:]), ".fi")
        else:
            yield roff(" ".join(paragraph.split()))


def _examples(command: click.Command) -> Iterator[str]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    for item in (command, *inner):
        for paragraph in filter(_is_example, _paragraphs(item)):
            yield from (".PP", ".nf", *(roff(line.strip()) for line in paragraph.splitlines()[2:]), ".fi")


def _is_example(paragraph: str) -> bool:
    return paragraph.startswith(f"{_AS_IS}\n{_EXAMPLES}")


def _paragraphs(command: click.Command) -> list[str]:
    text = inspect.cleandoc(command.help or "").partition("\f")[0]
    return [part for part in re.split(r"\n\s*\n", text) if part]


def _short(command: click.Command) -> str:
    return " ".join(_paragraphs(command)[0].split())


def _see_also(names: list[str]) -> Iterator[str]:
    for number, name in enumerate(names, start=1):
        yield rf".BR {roff(name)} ({_SECTION}){',' if number < len(names) else ''}"


def roff(text: str) -> str:
    """Text as a line of roff, which shows it as it is."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m blkrecov.manual DIR")
    write(Path(sys.argv[1]))
