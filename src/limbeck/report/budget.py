"""How much one page may hold, so that it opens at once on any machine, however many runs stand on it."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_PAGE = 3_000_000


@dataclass(frozen=True)
class Budget:
    """What each run may draw: cells of one matrix, pictures of its gallery."""

    cells: int
    pictures: int

    @classmethod
    def for_runs(cls, runs: int) -> Budget:
        return cls(cells=max(150, 2400 // runs), pictures=max(2, 24 // runs))

    def less(self) -> Budget:
        """Half of it, for a page that came out too large."""
        return Budget(self.cells // 2, self.pictures // 2)
