"""Generate the Python stubs beside protos/**/*.proto, or check that they are up to date.

Run as `make protos`; with `--check` nothing is written and a difference exits 1.

The files are compiled with `protos/` as their root, so that their names in descriptors and reflection are the
canonical ones (`costcenter/v1/…`), and live in the Python package `protos`, so that they do not collide with the
packages of the services. The generated imports are rewritten from the one to the other.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGES = ("costcenter", "smsgateway")
IMPORT = re.compile(rf"^(from|import) ({'|'.join(PACKAGES)})\.", re.MULTILINE)
REFERENCE = re.compile(rf"(?<![\w./\"'])({'|'.join(PACKAGES)})\.v1\.(\w+_pb2)")


def generate(target: Path) -> dict[Path, str]:
    """Return the generated files' paths below `protos/` and their contents."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    include = str(files("grpc_tools") / "_proto")
    # The plugins of this environment, whatever the search path names.
    programs = Path(sys.executable).parent
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{include}",
            f"--plugin=protoc-gen-mypy={programs / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={programs / 'protoc-gen-mypy_grpc'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out={target}",
            f"--mypy_grpc_out={target}",
            *sources,
        ]
    )
    if code != 0:
        sys.exit(code)
    generated = {}
    for path in sorted(target.rglob("*_pb2*.py*")):
        text = IMPORT.sub(r"\1 protos.\2.", path.read_text())
        text = REFERENCE.sub(r"protos.\1.v1.\2", text)
        generated[path.relative_to(target)] = text
    return generated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a stub is out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generated = generate(Path(folder))
    stale = [path for path, text in generated.items() if not _same(PROTOS / path, text)]
    stale += [
        path.relative_to(PROTOS)
        for path in PROTOS.rglob("*_pb2*.py*")
        if path.suffix in {".py", ".pyi"} and path.relative_to(PROTOS) not in generated
    ]
    if check:
        for path in stale:
            print(f"protos/{path} is out of date: run `make protos`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in generated.items():
        (PROTOS / path).write_text(text)
        (PROTOS / path).parent.joinpath("__init__.py").touch()
    return 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
