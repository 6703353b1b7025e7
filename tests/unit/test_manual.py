"""The manual pages and the shells' completions: all commands are in them, and the formatters take them without a word."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import manual
from blkrecov.cli import complete
from blkrecov.cli.main import cli

PAGES = manual.pages(cli)


def commands(command: click.Command, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its words."""
    if not isinstance(command, click.Group):
        return [(words, command)]
    return [found for name, inner in command.commands.items() for found in commands(inner, (*words, name))]


def test_there_is_a_page_for_each_group() -> None:
    """And one for the program, that has the commands without a group."""
    groups = [name for name, command in cli.commands.items() if isinstance(command, click.Group)]
    assert set(PAGES) == {"blkrecov.8", *(f"blkrecov-{name}.8" for name in groups)}


@pytest.mark.parametrize(("words", "command"), commands(cli), ids=str)
def test_every_command_is_described(words: tuple[str, ...], command: click.Command) -> None:
    """On its page, with all options that are its own."""
    page = PAGES[f"blkrecov-{words[0]}.8" if len(words) > 1 else "blkrecov.8"]
    heading = manual.roff(f"blkrecov {' '.join(words)}")
    (part,) = [part for part in page.split("\n.SS ")[1:] if part.startswith(heading)]
    assert len(part.splitlines()) > 1
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in ("array", "as_json", "verbose"):
            assert all(manual.roff(word) in part for word in option.opts), option.opts


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_sections(name: str) -> None:
    """In the order that man-pages(7) asks for; exit status and see also on each."""
    headings = [line.removeprefix(".SH ") for line in PAGES[name].splitlines() if line.startswith(".SH ")]
    order = ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "EXIT STATUS", "FILES", "ENVIRONMENT"]
    order += ["EXAMPLES", "SEE ALSO"]
    if name == "blkrecov.8":
        order[3:5] = ["OPTIONS", "COMMANDS"]
    assert headings == [heading for heading in order if heading in headings]
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"} <= set(headings)
    assert PAGES[name].startswith('.TH "BLKRECOV')


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_no_surprise_to_the_formatter(name: str, tmp_path: Path) -> None:
    """Not one warning, where there is one; else at least no line that it would take for an unknown request."""
    known = (".TH ", ".SH ", ".SS ", ".TP", ".PP", ".nf", ".fi", ".br", ".BR ")
    assert all(line.startswith(known) for line in PAGES[name].splitlines() if line.startswith((".", "'")))
    if shutil.which("groff") is None:
        return
    page = tmp_path / name
    page.write_text(PAGES[name])
    command = ["groff", "-man", "-ww", "-Kutf8", "-Tutf8", "-z", str(page)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_examples_come_from_the_help() -> None:
    """Those of the commands without a group, on the program's page; and not a second time in their description."""
    examples = PAGES["blkrecov.8"].split(".SH EXAMPLES\n")[1]
    assert manual.roff("blkrecov events -f") in examples
    assert PAGES["blkrecov.8"].count(manual.roff("blkrecov events -f") + "\n") == 1


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1))
def test_text_is_shown_as_it_is(text: str) -> None:
    """No character of it is a request or an escape."""
    escaped = manual.roff(text)
    assert not escaped.startswith((".", "'"))
    assert escaped.removeprefix(r"\&").replace(r"\-", "-").replace(r"\e", "\\") == text


def test_all_of_it_is_written(tmp_path: Path) -> None:
    """By one command, the same bytes whenever it runs."""
    run = [sys.executable, "-m", "blkrecov.manual", str(tmp_path)]
    subprocess.run(run, check=True)
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    shells = manual.completions(cli)
    assert found == {f"man8/{name}": text for name, text in PAGES.items()} | {
        f"completions/{name}": text for name, text in shells.items()
    }
    assert set(shells) == {"blkrecov.bash", "_blkrecov", "blkrecov.fish"}


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "blkrecov.bash"), ("zsh", "_blkrecov"), ("fish", "blkrecov.fish")]
)
def test_completions_are_scripts_of_their_shells(shell: str, name: str, tmp_path: Path) -> None:
    """Which read them, where they are installed."""
    text = manual.completions(cli)[name]
    assert f"_BLKRECOV_COMPLETE={shell}_complete" in text
    if shutil.which(shell):
        script = tmp_path / name
        script.write_text(text)
        subprocess.run([shell, "-n", str(script)], check=True)


def test_bash_offers_what_it_is_told(tmp_path: Path) -> None:
    """The whole way, as at a prompt."""
    script = tmp_path / "blkrecov.bash"
    script.write_text(manual.completions(cli)[script.name])
    ask = "COMP_WORDS=(blkrecov drive re); COMP_CWORD=2; _blkrecov_completion blkrecov; echo ${COMPREPLY[@]}"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = subprocess.run(
        ["bash", "-c", f"source {script}; {ask}"], capture_output=True, text=True, check=True, env={"PATH": path}
    )
    assert (sorted(found.stdout.split()), found.stderr) == (["reconnect", "remove", "replace"], "")


# What is completed.


@pytest.fixture
def block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two arrays, by what sysfs shows of them."""
    names = ["blkrecov-lab-data", "blkrecov-lab-data-plex", "blkrecov-lab-drive-d0", "blkrecov-lab-drive-d1"]
    names += ["blkrecov-lab-mon--day", "blkrecov-lab-mon--day-shadow", "blkrecov-other-data2", "vg-lv"]
    for number, name in enumerate(names):
        file = tmp_path / f"dm-{number}/dm/name"
        file.parent.mkdir(parents=True)
        file.write_text(f"{name}\n")
    monkeypatch.setattr(complete, "BLOCK", tmp_path)
    return tmp_path


def offered(line: str) -> list[str]:
    *words, incomplete = line.split(" ")
    return [item.value for item in ShellComplete(cli, {}, "blkrecov", "_X").get_completions(words, incomplete)]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("lun show ", ["data", "data2", "mon-day"]),
        ("--array lab recover da", ["data"]),
        ("recover --array lab da", ["data"]),
        ("drive fail ", ["d0", "d1"]),
        ("recover data --spare d", ["d0", "d1"]),
        ("lun create x --drives d1,", ["d1,d0"]),
        ("snapshot delete ", ["mon-day"]),
        ("resync m", ["mon-day"]),
        ("resync mon-day:data2", ["mon-day:data2"]),
        ("status --array ", ["lab", "other"]),
        ("stat", ["status"]),
    ],
)
def test_names_are_completed(block: Path, line: str, names: list[str]) -> None:
    """Of the array that the line names, or of all."""
    assert offered(line) == names


def test_nothing_is_completed_where_nothing_may_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No error: neither where there is no device-mapper, nor where a device goes meanwhile."""
    monkeypatch.setattr(complete, "BLOCK", tmp_path / "nowhere")
    assert offered("lun show ") == []
    gone = tmp_path / "dm-0/dm"
    gone.mkdir(parents=True)
    (gone / "name").symlink_to("gone")
    monkeypatch.setattr(complete, "BLOCK", tmp_path)
    assert offered("lun show ") == []
    if os.geteuid():
        (gone / "name").unlink()
        (gone / "name").touch(mode=0)
        assert offered("lun show ") == []
