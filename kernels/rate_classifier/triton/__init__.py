"""The step in Triton: ``step`` is its entrance."""
