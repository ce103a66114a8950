"""`make lock`: write the pins that the image is built from. Needs `uv` and whatever index its settings name.

    steps.txt, serving.txt   what each target needs besides torch, from pyproject.toml
    torch-gpu.txt            torch, torchvision and the CUDA libraries, as PyPI has them
    torch-cpu.txt            torch alone, without CUDA: PyPI has no such build, so pip's settings must name an index
                             that has; where they name none, the file stays as it is
    build.txt                what builds wheels

Every line carries the hashes of all its files, and no file names an index: whoever builds chooses where files come
from, never which. Versions stay as they are unless pyproject.toml forbids them, or `--upgrade` is given.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TORCH_CPU = "torch==2.13.0+cpu"   # newest CPU build that this project was built and run with
EXTRAS = {"steps": ("pipelines", "registry"), "serving": ("serving", "traces")}
OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-|cuda-)")
# What writes a model version and what reads it are the same version in both images.
SHARED = ("torch", "numpy", "safetensors", "mlflow-skinny")
HEADS = {
    "steps": "What the target `steps` needs besides torch.",
    "serving": "What the target `serving` needs besides torch: no kfp, no pandas, no torchvision.",
    "torch-gpu": "torch and torchvision with their CUDA libraries; they run on a machine without a GPU too.",
    "torch-cpu": "torch without CUDA, for Python 3.11 on x86-64. PyPI does not have it: name its index to pip.",
    "build": "What builds wheels, before anything else is installed.",
}

Pins = dict[str, str]


def parse(text: str) -> Pins:
    """Requirement lines with the hashes that follow them, by the package's name.

    One that takes another version for another Python has several, of which a marker lets one hold.
    """
    pins: Pins = {}
    for block in re.split(r"^(?=[a-zA-Z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE):
        if block.strip():
            name = re.match(r"[\w.-]+", block)[0]
            pins[name] = "\n".join([*filter(None, [pins.get(name)]), block.rstrip()])
    return pins


def resolve(arguments: list[str], known: Pins, wanted: str = "", constraints: str = "") -> Pins:
    """Let uv choose versions; `known` ones are kept where they fit."""
    with tempfile.TemporaryDirectory() as folder:
        out, limits = Path(folder) / "out.txt", Path(folder) / "constraints.txt"
        out.write_text("\n".join(known.values()) + "\n")
        limits.write_text(constraints)
        command = [
            "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes",
            "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--constraint", str(limits),
            "--output-file", str(out), *arguments,
        ]
        subprocess.run(command, input=wanted, text=True, check=True, cwd=HERE.parent, stdout=subprocess.DEVNULL)
        return parse(out.read_text())


def read(name: str) -> Pins:
    """The pins as they stand; none where there is no such file yet."""
    file = HERE / f"{name}.txt"
    return parse(file.read_text()) if file.exists() else {}


def write(name: str, pins: Pins) -> None:
    """Write one file, its packages in order of name."""
    lines = [f"# {HEADS[name]}", "# Written by `make lock`; do not edit."] + [pins[key] for key in sorted(pins)]
    (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")
    print(f"requirements/{name}.txt: {len(pins)} packages")


def main() -> int:
    """Write all five files."""
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    torch, constraints = read("torch-gpu"), ""
    for name, extras in EXTRAS.items():
        wanted = ["pyproject.toml", *(f"--extra={extra}" for extra in extras)]
        found = resolve([*wanted, *upgrade], read(name) | torch, constraints=constraints)
        if name == "steps":
            torch = {key: pin for key, pin in found.items() if OF_TORCH.match(key)}
            constraints = "\n".join(re.match(r"[^\s;]+", found[key])[0] for key in SHARED)
        write(name, {key: pin for key, pin in found.items() if not OF_TORCH.match(key)})
    write("torch-gpu", torch)
    write("build", resolve(["-", *upgrade], read("build"), wanted="pip\nsetuptools\nwheel\n"))
    write_cpu()
    return 0


def write_cpu() -> None:
    """Pin the CPU build of torch by the file that pip finds for this machine's Python."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, TORCH_CPU]
        if subprocess.run(command, capture_output=True).returncode:
            print(f"requirements/torch-cpu.txt stays: pip's settings name no index that has {TORCH_CPU}")
            return
        digest = hashlib.file_digest(next(Path(folder).iterdir()).open("rb"), "sha256").hexdigest()
    write("torch-cpu", {"torch": f"{TORCH_CPU} \\\n    --hash=sha256:{digest}"})


if __name__ == "__main__":
    sys.exit(main())
