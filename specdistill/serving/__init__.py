"""What a serving stack imports beside the kernels."""
