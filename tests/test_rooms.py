"""The drawing of docs/code.md, held against the imports of the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lyap_optuna"
TOOLS = {path.stem for path in PACKAGE.glob("_*.py")} - {"__init__"}
APART = {"data", "py"}  # files and what reads them


def drawn() -> dict[str, int]:
    """Return the row of each room, counted from the bottom."""
    page = (ROOT / "docs" / "code.md").read_text()
    rows = page.partition("```text\n")[2].partition("```")[0].splitlines()
    return {room: row for row, line in enumerate(reversed(rows)) for room in line.split()}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "lyap_optuna":
            found = [f"lyap_optuna.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or ""]
            assert node.level == 0, f"{path}: import by the whole name"
        else:
            continue
        yield from (name for name in found if name.startswith("lyap_optuna."))


def files() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGE).with_suffix("").parts[0], path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.stem != "__init__"
    ]


def test_every_room_is_drawn_once() -> None:
    page = (ROOT / "docs" / "code.md").read_text().partition("```text\n")[2].partition("```")[0]
    rooms = {room for room, _ in files()} - TOOLS - APART
    assert sorted(page.split()) == sorted(rooms)


@pytest.mark.parametrize("room", sorted({room for room, _ in files()} - TOOLS - APART))
def test_a_room_imports_only_from_rows_below(room: str) -> None:
    rows, package = drawn(), __import__("lyap_optuna")
    for owner, path in files():
        if owner != room:
            continue
        for module in imports(path):
            other = room_of(module)
            other = package._HOMES.get(other, other).split(".")[0]  # `from lyap_optuna import X`
            if other not in TOOLS | APART | {room}:
                assert rows[other] < rows[room], f"{path.relative_to(ROOT)} imports {module}"


def test_tools_use_no_room() -> None:
    for owner, path in files():
        if owner in TOOLS:
            assert {room_of(module) for module in imports(path)} <= TOOLS, path


def test_parent_workers_and_pools_of_a_campaign_know_of_no_exponents() -> None:
    knowing = {"dynamics", "spectrum", "probe", "prediction", "pruner"}
    found = {
        path.stem
        for owner, path in files()
        if owner == "campaign" and knowing & {room_of(module) for module in imports(path)}
    }
    assert found == {"_status"}  # which shows what is predicted; pruners are made by their names
