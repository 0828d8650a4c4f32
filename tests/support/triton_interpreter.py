"""Repairs that Triton's CPU interpreter needs before its results mean anything for our kernels.

Stock Triton 3.6 to 3.9 does bfloat16 arithmetic on the bit patterns, truncates float32 -> bfloat16, and mangles
bfloat16 subnormals. Our kernels upcast on load, so conversions are repaired and any arithmetic on bfloat16 is an error.
Lanes that a mask switches off are undefined on a GPU but 0 in the interpreter: here they are poison, so that a kernel
which uses them fails. Programs run in a shuffled order, as a GPU promises none.
"""

from __future__ import annotations

import numpy as np

_installed = False


def install() -> None:
    """Repairs the interpreter for this process; needs TRITON_INTERPRET=1 from before triton was imported."""
    global _installed
    if _installed:
        return
    _installed = True
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    _repair_conversions(builder, handle, tl)
    _forbid_bfloat16_arithmetic(builder, handle, interpreter, tl)
    _poison_masked_lanes(builder, handle, interpreter)
    _shuffle_programs(builder)


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bit patterns, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(bits.view(np.float32)), np.uint16(0x7FC0), rounded)


def from_bfloat16_bits(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns -> float32, exact."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _repair_conversions(builder, handle, tl) -> None:
    stock_cast, stock_fp = builder.cast_impl, builder.create_fp_to_fp

    def cast(self, source, target_type):
        have, want = source.dtype.scalar, target_type.scalar
        if tl.bfloat16 not in (have, want) or have == want:
            return stock_cast(self, source, target_type)
        if have == tl.bfloat16:
            wide = handle(from_bfloat16_bits(source.data), tl.float32)
            return wide if want == tl.float32 else stock_cast(self, wide, target_type)
        wide = source.data if have == tl.float32 else stock_cast(self, source, tl.float32).data
        return handle(to_bfloat16_bits(wide), tl.bfloat16)

    def fp_to_fp(self, source, target_type, rounding_mode):
        if tl.bfloat16 in (source.dtype.scalar, target_type.scalar):
            return cast(self, source, target_type)
        return stock_fp(self, source, target_type, rounding_mode)

    stock_dot = builder.create_dot

    def dot(self, a, b, *rest):
        wide = [
            handle(from_bfloat16_bits(operand.data), tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand
            for operand in (a, b)
        ]
        return stock_dot(self, *wide, *rest)

    builder.create_dot = dot
    builder.cast_impl, builder.create_fp_to_fp = cast, fp_to_fp
    builder.get_bf16 = lambda self, value: handle(to_bfloat16_bits(np.array([value], np.float32)), tl.bfloat16)


def _forbid_bfloat16_arithmetic(builder, handle, interpreter, tl) -> None:
    def check(what, operands):
        for operand in operands:
            if isinstance(operand, handle) and operand.dtype.scalar == tl.bfloat16:
                raise TypeError(f"{what} on bfloat16: upcast with .to(tl.float32) on load")

    for name in ("binary_op", "unary_op", "create_fma"):
        stock = getattr(builder, name)

        def guarded(self, *operands, stock=stock, name=name):
            check(name, operands)
            return stock(self, *operands)

        setattr(builder, name, guarded)
    for operations in (interpreter.ReduceOps, interpreter.ScanOps):
        stock_apply = operations.apply_impl

        def apply(self, values, stock_apply=stock_apply):
            check("a reduction", [value.handle for value in values])
            return stock_apply(self, values)

        operations.apply_impl = apply


def _poison_masked_lanes(builder, handle, interpreter) -> None:
    stock = builder.create_masked_load

    def masked_load(self, pointers, mask, other, *rest):
        if other is None and pointers.data.size > 1 and not mask.data.all():
            kind = pointers.get_element_ty()
            numpy_kind = np.dtype(interpreter._get_np_dtype(kind))
            if kind.is_floating():
                poison = np.array(0x7FC0, np.uint16) if numpy_kind == np.uint16 else np.array(np.nan, numpy_kind)
            else:
                poison = np.array(True) if numpy_kind == np.bool_ else np.array(np.iinfo(numpy_kind).max, numpy_kind)
            other = handle(np.full(pointers.data.shape, poison, dtype=numpy_kind), kind)
        return stock(self, pointers, mask, other, *rest)

    builder.create_masked_load = masked_load


def _shuffle_programs(builder) -> None:
    stock_dimensions, stock_index = builder.set_grid_dim, builder.set_grid_idx
    random = np.random.default_rng(0)

    def set_dimensions(self, *sizes):
        stock_dimensions(self, *sizes)
        self.shuffled = random.permutation(int(np.prod(sizes)))

    def set_index(self, x, y, z):
        _, second, third = self.grid_dim
        chosen = int(self.shuffled[(x * second + y) * third + z])
        stock_index(self, chosen // (second * third), chosen // third % second, chosen % third)

    builder.set_grid_dim, builder.set_grid_idx = set_dimensions, set_index
