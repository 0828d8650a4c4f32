"""One pass of a model over new tokens behind those that a cache holds."""

from __future__ import annotations

import contextlib

from torch import Tensor, arange

from specdistill.decoding.masks import ragged_masks
from specdistill.decoding.ragged_cache import RaggedCache
from specdistill.decoding.step_runner import Shapes
from specdistill.decoding.target_features import TargetFeatures
from specdistill.models import LanguageModel


class Reader:
    """Reads tokens at given positions, and knows no row's length: graphs hold it from one call to the next.

    Args:
        model: The model.
        cache: That its passes write.
    """

    def __init__(self, model: LanguageModel, cache: RaggedCache) -> None:
        self.model, self.cache = model, cache
        self.features: TargetFeatures | None = None
        """Hidden states of its passes, where a head reads them."""
        self._takes_positions = model.takes_positions

    def states(self, token_ids: Tensor, starts: Tensor, shapes: Shapes) -> Tensor:
        """Runs tokens behind each row's first ones. All that may change between two passes is in the tensors.

        Args:
            token_ids: int64 [rows, new].
            starts: int64 [rows], positions of the first of them.
            shapes: Of the step.

        Returns:
            Hidden states [rows, new, hidden].
        """
        positions = starts[:, None] + arange(token_ids.shape[1], device=token_ids.device)
        self.cache.write_next(positions, shapes.extent, shapes.shortest)
        masks = ragged_masks(self.model.config, positions, shapes.extent, self.model.model.dtype)
        return self.run(token_ids, positions, masks)

    def run(
        self,
        token_ids: Tensor,
        positions: Tensor,
        masks: Tensor | dict[str, Tensor | None] | None,
        row: int | None = None,
    ) -> Tensor:
        """Runs tokens that the cache was prepared for (`RaggedCache.write_next`).

        Args:
            token_ids: int64 [rows, new].
            positions: int64 [rows, new].
            masks: Of attention; None for the model's own.
            row: The only row of the pass; None for all.

        Returns:
            Hidden states [rows, new, hidden].
        """
        # Padding may lie beyond the model's last position, where learned position embeddings (GPT-2) end.
        at = {"position_ids": positions.clamp(max=self.model.max_context - 1)} if self._takes_positions else {}
        with contextlib.nullcontext() if self.features is None else self.features.of_pass(positions, row):
            return self.model.base_model(
                input_ids=token_ids, attention_mask=masks, past_key_values=self.cache, use_cache=True, **at
            ).last_hidden_state
