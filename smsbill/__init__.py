"""The roof: the `smsbill` command and the assembly of the services into one stack."""

import os

# gRPC would handle every fork of a process, and start threads in the child: that can crash a child on its way to become
# another program, the only thing that we fork for. It reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
