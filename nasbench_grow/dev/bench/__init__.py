"""Measures what the suite promises about time and memory: ``python -m nasbench_grow.dev.bench`` (``make bench``)."""
