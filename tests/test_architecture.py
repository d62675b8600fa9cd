"""The arrows between the programs and between their rooms: who may import whom."""

import ast
import re
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
NOT_IN_THE_SERVER = {"torch", "torchaudio", "onnx", "sklearn", "librosa", "transformers"}

# package → room, or file beside the rooms → what else of its package it may import. `None`: anything.
ARROWS: dict[str, dict[str, set[str] | None]] = {
    "service": {
        "errors": set(),
        "settings": set(),
        "healthcheck": set(),
        "sound": {"errors"},
        "process": {"errors", "settings"},
        "inference": {"sound", "process", "errors", "settings"},
        "teaching": {"inference", "sound", "process", "errors", "settings"},
        "http": {"teaching", "inference", "sound", "process", "errors", "settings"},
        "bulk": {"inference", "sound", "process", "errors", "settings"},
        "__main__": None,
    },
    "training": {
        "arguments": set(),
        "errors": set(),
        "corpora": {"errors"},
        "clips": {"corpora", "errors"},
        "logmel": set(),
        "pretrain": {"arguments", "clips", "logmel"},
        "probe": {"pretrain", "arguments", "clips", "corpora", "logmel"},  # `layers` looks into a run
        "__main__": None,
    },
    "model_export": {
        "errors": set(),
        "quiet": set(),
        "clips": {"errors"},
        "folder": {"errors"},
        "hub_card": set(),
        "places": {"folder", "errors"},
        "transfer": {"places", "hub_card", "folder", "errors"},
        "sources": {"errors"},
        "graphs": {"sources", "errors", "quiet"},
        "verify": {"sources", "errors"},
        "export": {"graphs", "sources", "verify", "folder", "errors"},
        "__main__": None,
    },
    "benchmarks": {"harness": set(), "soak": {"harness"}, "peers": {"harness"}},
}
EVERY_FILE_HAS_ARROWS = ("service", "training", "model_export")  # a benchmark may use another one
STANDS_ALONE = ROOT / "benchmarks" / "peers"  # each peer's server runs in an environment of its own


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, in functions and for type checkers alone too; `from a import b`
    may mean the module `a.b`, so that it gives both."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def named_modules(path: Path) -> Iterator[str]:
    """Modules of ours that a file names in a string, for a library to import: `package.module:name`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            if re.fullmatch(r"\w+(\.\w+)+", name) and name.split(".")[0] in PACKAGES:
                yield name


def packages_imported_by(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


def room_of(path: Path) -> str:
    """`service/http/app.py` → `http`; `service/errors.py` → `errors`; `service/__init__.py` → `__init__`."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


def rooms_imported_by(path: Path, package: str) -> set[str]:
    rooms = {folder.name for folder in (ROOT / package).iterdir() if folder.is_dir()}
    rooms |= {file.stem for file in (ROOT / package).glob("*.py")}
    parts = [name.split(".") for name in (*imported_modules(path), *named_modules(path))]
    return {room for first, room, *_ in (each for each in parts if len(each) > 1) if first == package} & rooms


def modules_of(package: str) -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files_of(package)
        if path.stem not in ("__init__", "__main__")
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_its_arrows_allow(package: str) -> None:
    forbidden = PACKAGES - {package} - MAY_IMPORT[package]
    for path in files_of(package):
        wrong = forbidden & packages_imported_by(path)
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize(("package", "room"), [(each, room) for each in ARROWS for room in ARROWS[each]])
def test_a_room_imports_only_what_its_arrows_allow(package: str, room: str) -> None:
    allowed = ARROWS[package][room]
    files = [path for path in files_of(package) if room_of(path) == room]
    assert files
    for path in files if allowed is not None else []:
        wrong = rooms_imported_by(path, package) - {room} - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)} of {package}"


@pytest.mark.parametrize("package", EVERY_FILE_HAS_ARROWS)
def test_every_room_and_every_file_beside_them_has_its_arrows(package: str) -> None:
    assert {room_of(path) for path in files_of(package)} == {*ARROWS[package], "__init__"}


@pytest.mark.parametrize("package", ARROWS)
def test_no_arrow_leads_back(package: str) -> None:
    """Whoever follows the arrows comes to an end: rooms without any are taken away until none is left."""
    left = {room: set(allowed) for room, allowed in ARROWS[package].items() if allowed is not None}
    while left:
        ends = [room for room, allowed in left.items() if not allowed & left.keys()]
        assert ends, f"these import each other in a circle: {sorted(left)}"
        for room in ends:
            del left[room]


@pytest.mark.parametrize("package", sorted({*MAY_IMPORT, "benchmarks"}))
def test_every_room_says_what_comes_in_and_what_goes_out(package: str) -> None:
    folders = {path.parent for path in files_of(package)}
    for folder in folders:
        if folder.parent == STANDS_ALONE:
            continue
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{folder.relative_to(ROOT)} does not say what it is for"


def test_an_import_counts_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("""
if TYPE_CHECKING:
    from service.http.upload import Upload
def late():
    from service import bulk
    import service.sound.audio as audio
LOOP = "service.process.balancing:Loop"
""")
    assert rooms_imported_by(file, "service") == {"http", "bulk", "sound", "process"}


def test_the_server_does_not_name_the_training_libraries() -> None:
    for path in files_of("service"):
        wrong = NOT_IN_THE_SERVER & packages_imported_by(path)
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("modules", [["service.http.app"], modules_of("service")], ids=["app", "all"])
def test_the_server_in_a_fresh_interpreter_has_no_torch(modules: list[str]) -> None:
    program = "import sys, importlib\n"
    program += "".join(f"importlib.import_module({name!r})\n" for name in modules)
    program += f"print(*sorted(set(sys.modules) & {NOT_IN_THE_SERVER!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_models_is_data_alone() -> None:
    assert not list((ROOT / "models").rglob("*.py"))
