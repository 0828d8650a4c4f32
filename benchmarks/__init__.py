"""Scripts that measure. A package, so that any script imports `benchmarks.support` once the repository is on the path.

Every script runs as `python benchmarks/<folder>/<script>.py`. README.md lists them.
"""
