"""Which way a product of spikes is computed: by what each step costs, as ``bench/spike_products.py`` measured it.

For a group of samples of which A inputs spike at all, in R rows, and P panels of 32 neurons:

    tables  TABLE * A * (R + TABLE_ROWS) * P
    lists   (LIST * P + ENTRY) * spikes, and for the gradient TABLE * A * INPUT_ROWS * P
    dense   is faster for a few rows alone, whose weights cost more to lay out than to read once
"""

from typing import Literal, get_args

from fastsnn.kernels.numba.bits import WIDE
from fastsnn.kernels.numba.spike_products.layout import Shape

Way = Literal["auto", "tables", "lists", "dense"]
WAYS: tuple[str, ...] = get_args(Way)

TABLE = 0.1
"""Nanoseconds of a row and an input in the tables of one panel."""
TABLE_ROWS = 35
"""What making a table costs, in rows that are read from it."""
LIST = 0.75
"""Nanoseconds of a spike in a list, for one panel."""
ENTRY = 5.0
"""Nanoseconds that writing a spike to a list takes."""
INPUT_ROWS = 5
"""What beginning and ending an input's list costs, in rows of a table."""
DENSE_ROWS = 4
"""Rows (time steps times samples) up to which a product is dense."""


def threshold(way: Way, shape: Shape, forward: bool) -> float | None:
    """Share of spikes in a group below which it takes lists, else tables; None for a dense product.

    The share is that among the group's rows and the inputs that spike at all. Raises ValueError for an unknown way.
    """
    if way not in WAYS:
        raise ValueError(f"way is {way!r}; allowed: {', '.join(WAYS)}")
    if way == "dense" or (way == "auto" and shape.T * shape.B <= DENSE_ROWS):
        return None
    if way != "auto":
        return {"tables": -1.0, "lists": 2.0}[way]
    rows, panels = min(shape.rows, shape.T * shape.B), shape.N / WIDE
    saved = rows + TABLE_ROWS - (0 if forward else INPUT_ROWS)
    return TABLE * saved / rows * panels / (LIST * panels + ENTRY)
