"""Benchmarks against what one would use instead of fastsnn: ``pytest bench/ --benchmark-only``.

``cases`` says what is measured, ``works`` and ``ours`` how each implementation does it, ``peers/`` who the others are,
``gate`` whether they compute the same, ``race`` how they are timed, ``results`` what is kept, ``report`` the page,
charts and README tables made of it.
"""
