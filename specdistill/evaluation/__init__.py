"""What a draft is worth: acceptance, costs, economics, latency, and their intervals. Computes, never prints."""
