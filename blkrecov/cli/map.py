"""Drives drawn as rows of cells, from the regions of their JSON (views.regions).

    ▒ label and configuration     · free     a data of a LUN     A its superblocks, bitmaps and logs
    a! failed                     a~ being regenerated, or copied to this place

A LUN has the same letter and colour on all drives; the letters alone tell all, where there are no colours. Cells are to scale,
but a region is never too small to be seen, unless a map has more regions than cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Final

from blkrecov.views import Json

# As many as are told apart beside each other. With the letters they make 182 different pairs.
_COLOURS: Final = ("cyan", "yellow", "magenta", "green", "blue", "bright_cyan", "bright_magenta")
_MARKS: Final = {"failed": "!", "regenerating": "~"}
_NOBODYS: Final = {"label": "▒", "free": "·"}


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of one region, in a row. The style is one of rich's."""

    text: str
    style: str


def key(row: Json, luns: Sequence[str]) -> Cells:
    """How one cell of a region is drawn. `luns` are the names of all the array's, which decide the letters."""
    if row["lun"] is None:
        return Cells(_NOBODYS[row["role"]], "dim")
    number = luns.index(row["lun"])
    letter, colour = ascii_lowercase[number % len(ascii_lowercase)], _COLOURS[number % len(_COLOURS)]
    style = "bold white on red" if row["status"] == "failed" else f"black on {colour}"
    return Cells(letter, style) if row["role"] == "data" else Cells(letter.upper(), style)


def legend(row: Json, luns: Sequence[str]) -> Cells:
    """The same, with the mark that follows it where not all is well."""
    one = key(row, luns)
    return Cells(one.text + (_MARKS.get(row["status"], "") if row["lun"] else ""), one.style)


def shares(lengths: Sequence[int], count: int) -> list[int]:
    """How many of `count` cells each length gets: at least one, and otherwise as near to scale as whole cells can be."""
    assert len(lengths) <= count, "there are more lengths than cells"
    total = sum(lengths)
    given = [max(1, length * count // total) for length in lengths]

    def excess(index: int) -> int:
        return given[index] * total - lengths[index] * count

    while sum(given) < count:
        given[min(range(len(given)), key=excess)] += 1
    while sum(given) > count:
        # What the smallest took beyond their share those give that have the most of it to spare.
        given[max((index for index in range(len(given)) if given[index] > 1), key=excess)] -= 1
    return given


def drawn(regions: Sequence[Json], luns: Sequence[str], count: int) -> list[Cells]:
    """A drive in so many cells. Where it has more regions than that, the smallest are left out."""
    largest = sorted(range(len(regions)), key=lambda index: -regions[index]["length"])[:count]
    shown = [regions[index] for index in sorted(largest)]
    cells = []
    for row, share in zip(shown, shares([row["length"] for row in shown], count), strict=True):
        pattern = legend(row, luns)
        cells.append(Cells((pattern.text * share)[:share], pattern.style))
    return cells


def broken(cells: Sequence[Cells], width: int) -> list[list[Cells]]:
    """The same in rows of so many cells."""
    rows: list[list[Cells]] = [[]]
    room = width
    for run in cells:
        text = run.text
        while text:
            if not room:
                rows.append([])
                room = width
            rows[-1].append(Cells(text[:room], run.style))
            text, room = text[room:], max(0, room - len(text))
    return rows


def markup(cells: Sequence[Cells]) -> str:
    """For rich's console and tables."""
    return "".join(f"[{run.style}]{run.text}[/]" for run in cells)
