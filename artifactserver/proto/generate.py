"""Make the ``*_pb2.py`` and ``*_pb2.pyi`` beside this file out of the ``.proto`` files beside it.

Run by ``tox -e proto``, which pins ``grpcio-tools``: generated code demands a protobuf at run time that is no older
than the protoc which made it, so the pin is what sets the lowest protobuf in ``setup.cfg``.  Nothing of gRPC is
generated: the dispatcher reads services from their descriptors.
"""

from __future__ import annotations

import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent


def main() -> int:
    """Run protoc over every ``.proto`` here, with paths that make the imports stay inside this package."""
    from importlib.resources import files

    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(ROOT)) for path in FOLDER.glob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
            *sources,
        ]
    )
    for stub in FOLDER.glob("*_pb2.pyi"):
        # protoc 31.0 names datetime in stubs without importing it, and leaves mappings without their types.
        text = stub.read_text().replace("_Mapping]", "_Mapping[str, object]]")
        if "datetime." in text and "import datetime\n" not in text:
            text = "import datetime\n" + text
        stub.write_text(text)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
