"""Compile kernels.c when hubmerge is built or installed, if there is a C compiler.

Without one hubmerge is pure Python and computes the same bytes with numpy; see
hubmerge/merging/kernels.py. `python hatch_build.py` compiles in place, for work on kernels.c.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run by hand
    BuildHookInterface = object

FOLDER = Path(__file__).parent / "hubmerge" / "merging"
SOURCE, LIBRARY = FOLDER / "kernels.c", FOLDER / "libkernels.so"
# Without contraction, as a product and a sum in one step would be rounded once instead of twice.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-trapping-math", "-fPIC", "-shared", "-Wall", "-Wextra"]


def compile_kernels() -> str:
    """Compile the library beside its source; returns why that did not work, or nothing."""
    if sys.platform == "win32":
        return "kernels are not compiled on Windows"
    if os.environ.get("HUBMERGE_KERNELS") == "0":
        return "HUBMERGE_KERNELS=0"
    compiler = os.environ.get("CC") or "cc"
    digest = int.from_bytes(hashlib.sha256(SOURCE.read_bytes()).digest()[:8], "big")
    unfinished = LIBRARY.with_suffix(f".{os.getpid()}")
    command = [*shlex.split(compiler), *FLAGS, f"-DSOURCE_DIGEST={digest}ULL", str(SOURCE)]
    try:
        subprocess.run(
            [*command, "-o", str(unfinished), "-lm"], check=True, capture_output=True, text=True
        )
        unfinished.replace(LIBRARY)
    except OSError as error:
        return f"there is no C compiler: {error}"
    except subprocess.CalledProcessError as error:
        return error.stderr or str(error)
    finally:
        unfinished.unlink(missing_ok=True)
    return ""


class CustomBuildHook(BuildHookInterface):
    """Adds the library to a wheel, which then is one for this platform and any Python."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        if self.target_name != "wheel":
            return
        problem = compile_kernels()
        if problem:
            self.app.display_warning(f"Merges are slower, as nothing was compiled: {problem}")
            return
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"] = ["hubmerge/merging/libkernels.so"]


if __name__ == "__main__":
    sys.exit(compile_kernels() or None)
