"""A progress bar, where tqdm is installed (`pip install viola-client[progress]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int | None, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A function to call after every item. total: None where it is not known."""
    if not shown:
        yield lambda: None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs tqdm: pip install 'viola-client[progress]'") from error
    with tqdm(total=total, unit="sound") as bar:
        yield lambda: bar.update() and None
