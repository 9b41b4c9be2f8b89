"""Which way a product of spikes is computed: one table, measured by ``bench/spike_products.py``."""

from typing import Literal, get_args

from fastsnn.kernels.numba.spike_products.layout import Shape

Way = Literal["auto", "tables", "lists", "dense"]
WAYS: tuple[str, ...] = get_args(Way)

DENSE_ROWS = 16
"""Up to so many rows (time steps times samples) laying out the weights costs more than it saves."""
LISTS_BELOW = 0.12
"""Share of spikes, among the inputs that spike at all, below which lists are faster than tables of many rows."""
TABLE_ROWS = 35
"""What making a table of sums costs, in rows that are read from it."""


def threshold(way: Way, shape: Shape) -> float | None:
    """Share of spikes in a group below which it takes lists, else tables; None for a dense product.

    Raises ValueError for a way that there isn't.
    """
    if way not in WAYS:
        raise ValueError(f"way is {way!r}; allowed: {', '.join(WAYS)}")
    if way == "dense" or (way == "auto" and shape.T * shape.B <= DENSE_ROWS):
        return None
    if way != "auto":
        return {"tables": -1.0, "lists": 2.0}[way]
    return LISTS_BELOW * (1 + TABLE_ROWS / min(shape.rows, shape.T * shape.B))
