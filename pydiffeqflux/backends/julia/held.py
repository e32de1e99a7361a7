"""What Julia holds for Python."""

from __future__ import annotations

from .session import Session


class Held:
    """Something that Julia holds for as long as this object is there."""

    def __init__(self, session: Session, handle: int):
        self.session, self.handle = session, handle

    def __del__(self) -> None:
        self.session.drop(self.handle)
