"""Which way a product of spikes is computed: by what each step costs, as ``bench/spike_products.py`` measured it.

For a group of samples of which A inputs spike at all, in R rows, and P panels of 32 neurons, in nanoseconds:

    tables  TABLE * P * A * (R + BUILD) for currents, TABLE * P * R * (A + BUILD) for the gradient
    lists   (LIST * P + ENTRY) * spikes, for the gradient and TABLE * P * A * BEGIN
    dense   for a few rows that don't come packed: laying out the weights costs more than reading them once

The group's counts decide in the kernel (``kernels.use_lists``).
"""

from typing import Literal, get_args

from fastsnn.kernels.numba.bits import WIDE
from fastsnn.kernels.numba.spike_products.layout import Shape

Way = Literal["auto", "tables", "lists", "dense"]
WAYS: tuple[str, ...] = get_args(Way)

TABLE = 0.1
"""Nanoseconds of a row and an input in the tables of one panel."""
BUILD = 35
"""What making a table costs, in sums that are read from it."""
LIST = 0.75
"""Nanoseconds of a spike in a list, for one panel."""
ENTRY = 5.0
"""Nanoseconds that writing a spike to a list takes."""
BEGIN = 30
"""What beginning and ending an input's list costs the gradient, in rows of a table."""
DENSE_ROWS = 4
"""Rows (time steps times samples) up to which a product of spikes that don't come packed is dense."""
ALWAYS, NEVER = 1.0, -1.0
"""Shares that stand for lists, or tables, whatever the spikes."""


def list_share(way: Way, shape: Shape, packed: bool) -> float | None:
    """Spikes per addition of the tables below which lists are faster; None for a dense product.

    Raises ValueError for an unknown way.
    """
    if way not in WAYS:
        raise ValueError(f"way is {way!r}; allowed: {', '.join(WAYS)}")
    if way == "dense" or (way == "auto" and not packed and shape.T * shape.B <= DENSE_ROWS):
        return None
    if way != "auto":
        return ALWAYS if way == "lists" else NEVER
    panels = shape.N / WIDE
    return TABLE * panels / (LIST * panels + ENTRY)
