"""PostgreSQL in containers. (in progress: the docker tier is not there yet)"""

from pgqueue_ref.harness.binaries import ProvisionError
from pgqueue_ref.harness.server import Server

DEFAULT_IMAGE = "postgres:18"


class DockerServer(Server):
    """Not there yet."""

    def __init__(self, image: str, settings: dict[str, str]) -> None:
        raise ProvisionError("docker: not there yet")

    def start(self) -> None: ...
    def restart(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...
