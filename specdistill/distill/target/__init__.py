"""Where the target is, and what it says about a sequence: hidden states, stored labels, or a server."""
