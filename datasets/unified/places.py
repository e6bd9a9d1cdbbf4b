"""Places and groups: cells of a grid over position and heading, as CosPlace defines them."""

from collections.abc import Iterable
from dataclasses import dataclass

MIN_IMAGES = 4  # of a place
Cell = tuple[int, int, int]  # easting and northing in metres, heading in degrees: the lower corner


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells of `cell_size` metres and `heading_step` degrees, divided into groups without neighbouring cells.

    Along each of the two axes, every `cell_groups`-th cell belongs to the same group; of the headings, every
    `heading_groups`-th.
    """

    cell_size: int
    cell_groups: int
    heading_step: int = 60
    heading_groups: int = 2

    def cell(self, easting: float, northing: float, heading: float) -> Cell:
        """The cell of a position in metres and a heading in degrees. Raises ValueError if one is not finite."""
        size, step = self.cell_size, self.heading_step
        return int(easting // size * size), int(northing // size * size), int(heading // step * step)

    def group(self, cell: Cell) -> Cell:
        """The group of a cell: its number along each axis, modulo the groups there."""
        easting, northing, heading = cell
        period = self.cell_size * self.cell_groups
        return (
            easting % period // self.cell_size,
            northing % period // self.cell_size,
            heading % (self.heading_step * self.heading_groups) // self.heading_step,
        )


STREET_GRID = Grid(cell_size=15, cell_groups=3)  # MSLS and Pitts30k
SF_XL_GRID = Grid(cell_size=10, cell_groups=5)


def group_places(cells: Iterable[Cell], grid: Grid) -> list[list[list[int]]]:
    """The places of each group, given the cell of each image in sorted order. A place lists its images' indices.

    Cells with fewer than MIN_IMAGES images are left out. The order of groups and places numbers them.
    """
    images: dict[Cell, list[int]] = {}
    for index, cell in enumerate(cells):
        images.setdefault(cell, []).append(index)
    groups: dict[Cell, set[Cell]] = {}
    for cell, members in images.items():
        if len(members) >= MIN_IMAGES:
            groups.setdefault(grid.group(cell), set()).add(cell)
    # The original numbers places in the order of a set of integer tuples, which is the same on every run and machine.
    return [[images[cell] for cell in group] for group in groups.values()]
