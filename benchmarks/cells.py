"""Finished cells of a long benchmark: kept on disk, keyed by code and data, so that a call that was cut off goes on.

A cell is one training run or one attack, and its result is plain JSON or a tensor file. Comments and docstrings do not
count as code.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
# What trained weights depend on; of the attacks, the file that training and PGD-20 run.
TRAINING_CODE = ("redoubt/training", "redoubt/models", "redoubt/attacks/gradient.py", "redoubt/threat.py")


@cache
def code_key(*paths: str) -> str:
    """Hash of the Python files below `paths` (relative to the project), without comments and docstrings.

    Raises:
        FileNotFoundError: for a path that is not there.
    """
    digest = hashlib.sha256()
    for path in paths:
        where = ROOT / path
        files = sorted(where.rglob("*.py")) if where.is_dir() else [where]
        if not files:
            raise FileNotFoundError(f"no Python files below {path}")
        for file in files:
            digest.update(f"{file.relative_to(ROOT)}\n{_stripped(file.read_text())}\n".encode())
    return digest.hexdigest()


def _stripped(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
                node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def cell_file(name: str, key: dict, suffix: str = ".json") -> Path:
    """Where the cell called `name` with this key lies, or will lie."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return RESULTS / name / f"{digest}{suffix}"


def cell(name: str, key: dict, compute: Callable[[], dict]) -> dict:
    """The cell's result, from disk if it was finished before, else computed and written whole."""
    file = cell_file(name, key)
    if file.exists():
        return json.loads(file.read_text())["result"]
    result = compute()
    write_whole(file, json.dumps({"key": key, "result": result}, indent=1).encode())
    return result


def write_whole(file: Path, content: bytes) -> None:
    """Write `file` so that it is either there complete, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(file)
