"""Adapters that drive real engines; the only place that imports them, and only inside functions."""
