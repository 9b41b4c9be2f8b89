"""Benchmarks against what one would use instead of fastsnn: ``pytest bench/ --benchmark-only``.

``cases`` says what is measured, ``tasks`` and ``fastsnn_tasks`` how each implementation does it, ``peers/`` who the
others are, ``correctness`` whether they compute the same, ``measure`` how they are timed, ``results`` what is kept,
``report`` the page, charts and README tables made of it.
"""
