"""Imports run one way: pipelines -> components -> redoubt <- serving."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KFP = {"kfp", "kfp_server_api", "kfp_kubernetes"}
FORBIDDEN = {
    "redoubt": {"components", "pipelines", "serving", "fastapi", "starlette", "uvicorn", "kubernetes", *KFP},
    "components": {"pipelines", "serving", "fastapi", "starlette", "kubernetes"},
    "pipelines": {"serving", "fastapi", "starlette"},
    "serving": {"components", "pipelines", "typer", *KFP},
}
FILES = sorted(file for room in FORBIDDEN for file in (ROOT / room).rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(file):
    room = file.relative_to(ROOT).parts[0]
    assert not imports(file) & FORBIDDEN[room]


@pytest.mark.parametrize("file", [f for f in FILES if f.relative_to(ROOT).parts[0] == "redoubt"],
                         ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_registry_knows_mlflow(file):
    assert "mlflow" not in imports(file) or file.name == "registry.py"


@pytest.mark.parametrize("file", [f for f in FILES if f.relative_to(ROOT).parts[0] == "components"],
                         ids=lambda file: str(file.relative_to(ROOT)))
def test_steps_do_not_know_kfp(file):
    assert not imports(file) & KFP or file.name == "component.py"


@pytest.mark.parametrize("module, absent", [
    ("serving.app", ["kfp", "torchvision", "matplotlib", "components", "pipelines"]),
    ("pipelines.cli", ["torch", "kfp", "mlflow"]),
    ("components.begin.step", ["torch", "mlflow"]),
    ("components.prepare_data.step", ["torch", "mlflow"]),
])
def test_what_a_module_loads(module, absent):
    """Loaded indirectly counts too; neither the command's help nor a run's first steps must wait for torch."""
    code = f"import sys, {module}; print(','.join(m for m in {absent} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
