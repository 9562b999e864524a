"""A store of zarr that tells of what is not there, which zarr reads as the fill value."""

from __future__ import annotations

from typing import Any

from zarr.storage import WrapperStore


class WatchedStore(WrapperStore[Any]):
    """Gives what another store holds; `absent` holds the first key that was asked for in vain."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.absent: list[str] = []

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return what lies at a key, or None."""
        found = await super().get(key, prototype, byte_range)
        if found is None and not self.absent:  # of a sparse array there may be millions
            self.absent.append(key)
        return found
