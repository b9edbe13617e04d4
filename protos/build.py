"""Builds what is generated from the contracts: Python modules and stubs, and the descriptor set Envoy and buf read.

Run as `python -m protos.build` to write `protos/gen`, with `--check` to fail when what is committed there is not what
the contracts give.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "gen"
DESCRIPTOR_SET = GENERATED / "tollkeeper.binpb"


def contracts() -> list[str]:
    """Every contract file, as paths below `protos/`, in a stable order."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tollkeeper").rglob("*.proto"))


def _protoc(*arguments: str) -> None:
    """Run the protoc of grpcio-tools over all contracts. Raises SystemExit with its message where it refuses them."""
    # google/api/*.proto comes with googleapis-common-protos, google/protobuf/*.proto with grpcio-tools.
    google = Path(str(importlib.resources.files("google.api"))).parent.parent
    well_known = Path(str(importlib.resources.files("grpc_tools"))) / "_proto"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT}",
        f"-I{google}",
        f"-I{well_known}",
        *arguments,
        *contracts(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stderr.strip() or "protoc failed")


def write_descriptor_set(path: Path, *, with_comments: bool = False) -> None:
    """Write one FileDescriptorSet with all contracts and what they import, with their comments where asked."""
    comments = ["--include_source_info"] if with_comments else []
    _protoc("--include_imports", *comments, f"--descriptor_set_out={path}")


def write_modules(target: Path) -> None:
    """Write messages, gRPC stubs and their type stubs for all contracts below `target`."""
    plugins = Path(sys.executable).parent
    _protoc(
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
    )
    for stubs in (target / "tollkeeper").rglob("*_grpc.pyi"):
        # A servicer may leave RPCs out: the generated base answers for them, and is not abstract at run time.
        stubs.write_text(stubs.read_text().replace("    @_abc_1.abstractmethod\n", ""))
    for folder in [target / "tollkeeper", *(p for p in (target / "tollkeeper").rglob("*") if p.is_dir())]:
        (folder / "__init__.py").touch()
    (target / "tollkeeper" / "py.typed").touch()


def _build(target: Path) -> None:
    write_modules(target)
    write_descriptor_set(target / DESCRIPTOR_SET.name)


def _differences(committed: Path, fresh: Path) -> list[str]:
    def files(root: Path) -> set[str]:
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    old, new = files(committed), files(fresh)
    changed = [name for name in old & new if not filecmp.cmp(committed / name, fresh / name, shallow=False)]
    return sorted([*(old ^ new), *changed])


def main() -> None:
    """Generate, or check that what is committed is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where protos/gen is not current")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        _build(fresh)
        if arguments.check:
            stale = _differences(GENERATED, fresh)
            if stale:
                listing = "\n  ".join(stale)
                raise SystemExit(f"protos/gen is not what the contracts give; run `make protos`:\n  {listing}")
            return
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)


if __name__ == "__main__":
    main()
