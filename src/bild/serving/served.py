"""What the guard and the server around an application need of what is served."""

from __future__ import annotations

from typing import Protocol

from bild.serving.settings import Settings


class Requests(Protocol):
    """How much is being done."""

    @property
    def requests(self) -> int:
        """Requests, or sessions, that a server which is told to stop would wait for."""


class Worked(Protocol):
    """What does the work, in a thread of its own."""

    @property
    def alive(self) -> bool:
        """Whether it can work."""

    @property
    def draining(self) -> bool:
        """Whether it takes on nothing more."""

    @property
    def load(self) -> Requests:
        """What there is to do."""

    def healthy(self) -> bool:
        """Whether it works as it should."""

    def drain(self) -> None:
        """Take on nothing more."""

    def stop(self) -> None:
        """Stop soon."""


class Counted(Protocol):
    """What counts answers."""

    def page(self) -> bytes:
        """All counts, as Prometheus reads them."""

    def answered(self, status: int) -> None:
        """Count one."""


class Served(Protocol):
    """Something behind an engine of its own."""

    @property
    def settings(self) -> Settings:
        """What the server was told."""

    @property
    def engine(self) -> Worked:
        """What does the work."""

    @property
    def board(self) -> Counted:
        """What counts."""
