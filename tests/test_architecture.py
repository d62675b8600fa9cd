"""The arrows between the programs: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"service", "encoders", "training", "model_export", "hear", "benchmarks", "tests", "models"}

# package → what else of ours it may import
MAY_IMPORT: dict[str, set[str]] = {
    "service": set(),
    "encoders": set(),
    "training": {"encoders", "service"},
    "model_export": {"encoders", "service"},
    "hear": {"encoders", "service"},
}
NOT_IN_THE_SERVER = {"torch", "torchaudio", "onnx", "sklearn", "librosa"}


def imports_of(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def modules_of(package: str) -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem not in ("__init__", "__main__")
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_its_arrows_allow(package: str) -> None:
    forbidden = PACKAGES - {package} - MAY_IMPORT[package]
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = forbidden & set(imports_of(path))
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_server_does_not_name_the_training_libraries() -> None:
    for path in sorted((ROOT / "service").rglob("*.py")):
        wrong = NOT_IN_THE_SERVER & set(imports_of(path))
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_server_in_a_fresh_interpreter_has_no_torch() -> None:
    program = "import sys, importlib\n"
    program += "".join(f"importlib.import_module({name!r})\n" for name in modules_of("service"))
    program += f"print(*sorted(set(sys.modules) & {NOT_IN_THE_SERVER!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_models_is_data_alone() -> None:
    assert not list((ROOT / "models").rglob("*.py"))
