"""Imports run one way: cli -> rooms that do -> rooms that are -> data_pipelines."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

ALLOWED = {
    "mllm_jax.models": {"mllm_jax.models"},
    "mllm_jax.parallel": {"mllm_jax.parallel"},
    "mllm_jax.checkpoint": {"mllm_jax.checkpoint", "mllm_jax.parallel"},
}
DOERS = ("training", "generation", "evaluation", "interop")
BASES = {"mllm_jax.models", "mllm_jax.parallel", "mllm_jax.checkpoint"}
for room in DOERS:
    ALLOWED[f"mllm_jax.{room}"] = {f"mllm_jax.{name}" for name in DOERS} | BASES
# Training knows no file formats: whoever starts it hands it what is read from files.
ALLOWED["mllm_jax.training"] = {"mllm_jax.training"} | BASES


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_data_pipelines_import_nothing_of_mllm_jax():
    for path in (ROOT / "data_pipelines").rglob("*.py"):
        assert not [m for m in imported_modules(path) if within(m, "mllm_jax")], path


def test_rooms_import_only_what_stands_below_them():
    for room, allowed in ALLOWED.items():
        files = list((ROOT / room.replace(".", "/")).rglob("*.py"))
        assert files, room
        for path in files:
            ours = {m for m in imported_modules(path) if within(m, "mllm_jax")}
            wrong = {m for m in ours if not any(within(m, package) for package in allowed)}
            assert not wrong, f"{path} imports {wrong}"


def test_no_package_file_imports_torch_or_tensorflow():
    for package in ("mllm_jax", "data_pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            heavy = {m for m in imported_modules(path) if m.split(".")[0] in ("torch", "tensorflow", "transformers")}
            assert not heavy, f"{path} imports {heavy}"


def test_help_imports_nothing_heavy():
    code = (
        "import sys, contextlib, io\n"
        "from mllm_jax.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])\n"
        "heavy = {'jax', 'flax', 'numpy', 'pydantic', 'yaml', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
