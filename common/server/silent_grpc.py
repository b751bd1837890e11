"""Keeps gRPC's C library from writing lines of its own among the records of the log.

Import it before gRPC, which reads the variable when it is loaded. Anybody who reaches a port can make it write, with
a broken handshake. What concerns us it raises besides. GRPC_VERBOSITY that the user has set stands.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
