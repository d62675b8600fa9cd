"""Files of torch.save that are refused."""

from pathlib import Path

import pytest
import torch

from model_export.errors import ExportError
from model_export.sources.trained import load_file


def test_a_file_of_objects_is_refused_without_the_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1), "config": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(ExportError, match="Python objects or a program beside tensors") as refused:
        load_file(tmp_path / "a.pt")
    assert "weights_only" not in str(refused.value)
