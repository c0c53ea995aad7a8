"""The embedded Hub: the Hugging Face Hub's protocol on loopback, over git and a folder of blobs.

    process, leases, state    one server per data folder: run, shared, found
    app                       the routes put together
    account, repos, revisions, files, lfs, commits      one file per group of endpoints
    access                    who asks, and what they may do
    exchange, info, cards     how requests are read and answers worded
    ------------------------------------------------------------ below: no HTTP, only files
    store                     all repositories of a data folder, and the first one
    repository, snapshot      one repository, and one commit of it
    git, trees, content       the only users of dulwich
    blobs, tokens, names, refusals

Importing this package costs no web server and no git; `serve` loads them.
"""

from hubmerge.server.leases import lease
from hubmerge.server.process import serve
from hubmerge.server.state import ServerState, read_state

__all__ = ["ServerState", "lease", "read_state", "serve"]
