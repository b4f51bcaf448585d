"""A process apart, for rigs that are not Python; the protocol is in PROTOCOL.md."""

from neurodeploy_runtime.serving._client import RigClient
from neurodeploy_runtime.serving._server import RigServer, ServerSettings
from neurodeploy_runtime.serving._wire import Hello, ProtocolError, Welcome

__all__ = [
    "Hello",
    "ProtocolError",
    "RigClient",
    "RigServer",
    "ServerSettings",
    "Welcome",
]
