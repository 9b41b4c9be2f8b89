"""The step in Numba: ``step`` is its entrance."""
