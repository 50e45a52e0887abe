"""Made-up measurements for tests of what is done with them."""

from __future__ import annotations

from elastic.cost import Cost
from elastic.selection import Measured, Quality
from elastic.space import Subnet


def point(flops=100, value=50.0, *, kind="uniform", name="", higher_is_better=True, width=8):
    cost = Cost(flops, flops // 10, flops // 2, flops // 5, {"pixel_values": (1, 1, 8, 8)})
    quality = Quality("accuracy" if higher_is_better else "loss", value, higher_is_better, "validation", 359)
    return Measured(Subnet((width,), (2,)), cost, quality, kind, name)
