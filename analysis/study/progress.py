"""Progress on a terminal: what is prepared or measured, how much of it is done, and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}"


class Progress:
    """A bar on stderr, if that is a terminal.

    Parameters
    ----------
    what
        What is done.
    cells
        How many cells there are.
    work
        How much work all of them are together.
    quiet
        Whether there is no bar on a terminal either.
    """

    def __init__(self, what: str, cells: int, work: float, quiet: bool = False) -> None:
        self._bar = tqdm(total=work, desc=what, disable=quiet or None, leave=False, bar_format=BAR)
        self._cells, self._done, self._began = cells, 0, time.perf_counter()
        self.at("")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def at(self, cell: str) -> None:
        """Show which cell is begun, with how many are done and how many in a second."""
        if self._bar.disable:
            return
        rate = self._done / max(1e-9, time.perf_counter() - self._began)
        said = [f"{self._done} of {self._cells} cells", f"{rate:.3g}/s" if self._done else "", cell]
        late = time.time() - self._bar.last_print_t > self._bar.mininterval
        self._bar.set_postfix_str(", ".join(filter(None, said)), refresh=late or not self._done)

    def done(self, work: float) -> None:
        """Count a cell."""
        self._done += 1
        self._bar.update(work)


@contextmanager
def preparing(what: str, quiet: bool = False) -> Iterator[None]:
    """Show what is prepared, as long as the block takes."""
    with tqdm(desc=what, total=0, disable=quiet or None, leave=False, bar_format="{desc} …"):
        yield
