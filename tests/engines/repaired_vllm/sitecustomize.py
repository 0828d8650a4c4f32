"""Repairs vLLM 0.32's CPU build in whatever process has this folder on its PYTHONPATH.

Its replacement of the Triton kernel that repeats each request's temperature for its draft tokens converts both tensors
to integers first, and writes the copy: the temperatures that divide the target's logits are then whatever lay in that
memory, and almost nothing is accepted. `vllm/utils/cpu_triton_utils.py`, `_expand_kernel_impl`.
"""

import importlib.abc
import importlib.util
import sys

BROKEN = "vllm.utils.cpu_triton_utils"


def expand(output, input_val, cu_num_tokens, replace_from, replace_to, MAX_NUM_TOKENS=None):
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1)).long()
    values = input_val.masked_fill(input_val == replace_from, replace_to)
    output.copy_(values.repeat_interleave(counts))


class Repair(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name != BROKEN:
            return None
        sys.meta_path.remove(self)
        self.spec = importlib.util.find_spec(name)
        return importlib.util.spec_from_loader(name, self, origin=self.spec.origin)

    def create_module(self, spec):
        return importlib.util.module_from_spec(self.spec)

    def exec_module(self, module):
        self.spec.loader.exec_module(module)
        module._expand_kernel_impl = expand


sys.meta_path.insert(0, Repair())
