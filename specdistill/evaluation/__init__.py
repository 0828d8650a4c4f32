"""Measures a draft: acceptance, costs, economics, latency, and their intervals. Computes, never prints."""
