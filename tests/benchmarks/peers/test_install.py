from pathlib import Path

import pytest

from benchmarks.peers import install


def test_an_environment_is_remade_when_its_requirements_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "ENVIRONMENTS", tmp_path)
    assert not install.is_installed("ray")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "installed.txt").write_text("ray==1.0\n")
    assert not install.is_installed("ray")
