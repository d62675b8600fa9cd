"""Model folders of the field's encoders, for whichever tests want one."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """imported(case) is the folder that `python -m model_export import` makes of random weights under the
    published names, once per session; the cases are in tests/published_files.py."""
    from .published_files import import_case  # torch, which the server's tests do without

    folder = tmp_path_factory.mktemp("imported")
    made: dict[str, Path] = {}

    def of_case(name: str) -> Path:
        if name not in made:
            made[name] = import_case(name, folder)
        return made[name]

    return of_case
