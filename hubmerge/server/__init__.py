"""The embedded Hub: the Hugging Face Hub's protocol on loopback, over git and a folder of blobs.

    process, leases, state    one server per data folder: run it, share it, find it
    app                       the ASGI application with all routes
    account, repos, revisions, files, lfs, multipart, xet, storage, commits, discussions,
    collections
                              one file per group of endpoints
    access, large_file_access, sessions
                              the user of a request and their permissions; signed-in browsers
    pages                     HTML for people, imported at the first page
    messages, info            reading requests and building responses
    ------------------------------------------------------------ below: no HTTP, only files
    store                     all repositories of a data folder, and the first one
    repository, snapshot      one repository, and one commit of it
    discussion_store          the discussions and pull requests of a repository
    pushes, quarantine        what a git push may bring, and where it waits until it is checked
    git, refs, trees, content with these two, the only users of dulwich
    xorbs, shards             what Xet clients upload, and the files that it becomes
    garbage, reachability     what nothing reaches any more
    blobs, uploads            large files, and which user has uploaded which
    tokens, names, http_errors

Importing this package loads neither a web server nor dulwich; `serve` does.
"""

from hubmerge.server.leases import lease
from hubmerge.server.process import serve
from hubmerge.server.state import ServerState, read_state

__all__ = ["ServerState", "lease", "read_state", "serve"]
