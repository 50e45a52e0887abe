"""What has been measured is remembered beside the model, so that a second search runs it no more."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from elastic.selection.measured import Quality
from elastic.space import Subnet

CACHE_NAME = "measured.json"
FORMAT_VERSION = 1


class MeasuredCache:
    """Qualities by subnet, for one set of weights and one set of data; kept in ``measured.json``.

    A file that is damaged is not read, and a folder that cannot be written to only costs time.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Open the cache of a folder.

        Args:
            folder: of the universal model.
            key: everything that a quality depends on besides the subnet: weights, data, metric.
        """
        self._path = folder / CACHE_NAME
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self._found = self._read()

    def _read(self) -> dict[Subnet, Quality]:
        found: dict[Subnet, Quality] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self._path.read_text())
            if data["format_version"] == FORMAT_VERSION:
                for entry in data["measured"].get(self._key, []):
                    found[Subnet.from_dict(entry["subnet"])] = Quality.from_dict(entry["quality"])
        return found

    def get(self, subnet: Subnet) -> Quality | None:
        """Return the quality that was measured, or None."""
        return self._found.get(subnet)

    def items(self) -> list[tuple[Subnet, Quality]]:
        """Return everything that was measured."""
        return list(self._found.items())

    def put(self, subnet: Subnet, quality: Quality) -> None:
        """Remember a quality (see `update`)."""
        self.update({subnet: quality})

    def update(self, measured: Mapping[Subnet, Quality]) -> None:
        """Remember qualities, and write the file, whole or not at all; entries of other weights and data stay."""
        self._found |= measured
        others: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self._path.read_text())
            if data["format_version"] == FORMAT_VERSION:
                others = dict(data["measured"])
        others[self._key] = [{"subnet": s.to_dict(), "quality": q.to_dict()} for s, q in self._found.items()]
        with suppress(OSError):
            beside = self._path.with_name(f".{CACHE_NAME}.{uuid.uuid4().hex}")
            beside.write_text(json.dumps({"format_version": FORMAT_VERSION, "measured": others}))
            beside.replace(self._path)
