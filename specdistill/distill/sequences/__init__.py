"""Which sequences a method trains on, step by step."""
