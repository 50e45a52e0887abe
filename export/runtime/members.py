"""Runs a bundle with several subnets: one that is named, or the best one that meets a deadline."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .backend import Backend, choose_backend
from .deadline import Latencies
from .errors import BundleError
from .generate import with_cache
from .manifest import Manifest, Member, check_files, read_manifest, weights_of
from .session import Bundle, choose_member

Array = np.ndarray[Any, Any]


@dataclass
class Session:
    """An open bundle; each graph is loaded when a subnet needs it first, and stays loaded.

    Several threads may use one session. A bundle of one fixed graph has one nameless subnet, which is ``None``.
    """

    folder: Path
    manifest: Manifest
    backend: Backend
    latencies: Latencies = field(default_factory=Latencies)
    clock: Callable[[], float] = time.perf_counter
    """What calls are timed by, in seconds."""
    _graphs: dict[str, Any] = field(default_factory=dict, init=False)
    _bundles: dict[str | None, Bundle] = field(default_factory=dict, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    @classmethod
    def open(
        cls, folder: Path, *, threads: int | None = None, spinning: bool = True, backend: str | None = None
    ) -> Session:
        """Open a bundle after checking that its weights are the exported ones; no graph is loaded yet.

        Raises:
            BundleError: if the folder is not a bundle that this runtime runs.
            VerificationError: if the weights are not what the manifest says.
        """
        manifest = read_manifest(folder)
        choose_member(manifest, None)
        check_files(folder, manifest, weights_of(manifest))
        return cls(folder, manifest, choose_backend(folder, manifest, backend, threads=threads, spinning=spinning))

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """The members that run here, largest first: for TensorRT those whose engines are built, else all."""
        found = [one for one in self.manifest.members if self.backend.has(self.folder, self.manifest.of(one))]
        return tuple(found) or self.manifest.members

    @property
    def names(self) -> tuple[str | None, ...]:
        """The subnets that run here, largest first."""
        return tuple(member.name for member in self.members) or (None,)

    def bundle(self, subnet: str | None = None) -> Bundle:
        """Return one subnet (by default the largest that runs here), loaded.

        Raises:
            BundleError: if there is no such subnet, or its graph cannot be loaded.
            VerificationError: if its graph is not the exported one.
        """
        member = choose_member(self.manifest, subnet or self.names[0])
        name, one = (None, self.manifest) if member is None else (member.name, self.manifest.of(member))
        with self._lock:
            if one.graph not in self._graphs:
                check_files(self.folder, self.manifest, [one.graph])
                self._graphs[one.graph] = self.backend.open(self.folder, one)
            if name not in self._bundles:
                session = self._graphs[one.graph]
                self._bundles[name] = Bundle.of(self.folder, self.manifest, member, session, self.backend.name)
            return self._bundles[name]

    def run(
        self, inputs: dict[str, Array], *, subnet: str | None = None, deadline_ms: float | None = None
    ) -> dict[str, Array]:
        """Run one subnet: the one that is named, the best one that is expected to meet the deadline, or the largest.

        A decoder that is given no cache begins with an empty one. A cache fits the subnet that returned it, so name
        that with it.

        Raises:
            BundleError: if both are given, there is no such subnet, or the inputs do not fit.
        """
        if deadline_ms is not None:
            if subnet is not None:
                raise BundleError("give either a subnet or a deadline, not both.")
            subnet = self.choose(inputs, deadline_ms)
        bundle = self.bundle(subnet)
        inputs = with_cache(bundle.manifest, inputs)
        sizes = bundle.sizes(inputs)
        started = self.clock()
        outputs = bundle.compute(inputs)
        milliseconds = 1e3 * (self.clock() - started)
        self.latencies.record(subnet or self.names[0], sizes, milliseconds)
        return outputs

    def choose(self, inputs: dict[str, Array], deadline_ms: float) -> str | None:
        """Return the best of the subnets that take these inputs and are expected to meet the deadline.

        If none is expected to, it is the fastest. Until something has been measured, it is the cheapest; `warm_up`
        measures all of them.

        Raises:
            BundleError: if the deadline is not above 0, or no subnet takes the inputs.
        """
        if not deadline_ms > 0:
            raise BundleError(f"a deadline is a number of milliseconds above 0, not {deadline_ms}.")
        members = self._that_take(inputs)
        if not members:
            return None
        first = self.manifest.of(members[0])
        sizes = Bundle(self.folder, first, None).sizes(with_cache(first, inputs))
        return self.latencies.choose(members, sizes, deadline_ms).name

    def warm_up(
        self, inputs: dict[str, Array], subnets: Sequence[str] | None = None, *, rounds: int = 3
    ) -> dict[str, float]:
        """Load subnets (by default all that take these inputs) and measure them.

        Returns:
            The milliseconds that a call of each is expected to stay below.
        """
        names = [member.name for member in self._that_take(inputs)] if subnets is None else list(subnets)
        for _ in range(rounds + 1):  # The first call of a subnet is not recorded.
            for name in names:
                self.run(inputs, subnet=name)
        expected = {}
        for name in names:
            manifest = self.bundle(name).manifest
            sizes = self.bundle(name).sizes(with_cache(manifest, inputs))
            expected[name] = self.latencies.expected(name, sizes) or math.inf
        return expected

    def _that_take(self, inputs: dict[str, Array]) -> list[Member]:
        """Return the members that take inputs of these names and constant sizes; the largest if none does."""
        found = [member for member in self.members if _takes(self.manifest.of(member), inputs)]
        return found or list(self.members[:1])


def _takes(manifest: Manifest, inputs: dict[str, Array]) -> bool:
    complete = with_cache(manifest, inputs)
    return complete.keys() == {spec.name for spec in manifest.inputs} and all(
        complete[spec.name].ndim == len(spec.shape)
        and all(isinstance(d, str) or d == s for d, s in zip(spec.shape, complete[spec.name].shape, strict=True))
        for spec in manifest.inputs
    )
