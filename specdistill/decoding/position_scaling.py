"""Models that treat positions otherwise once a text is long: each row is then read as if it were alone.

Two kinds exist. Longrope (Phi-3, Phi-4) has one set of frequencies for texts up to a length and another beyond it, for
all their positions: keys of the first kind are no use to the second, so a row that crosses the border is read again,
as `generate` does. Llama 4 scales queries by a position that it counts from the cache's length, the same for all rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from specdistill.decoding.cached_model import WIDEST_STEP, CachedModel, rounded
from specdistill.decoding.masks import ragged_masks
from specdistill.models import LanguageModel


def cached(model: LanguageModel, batch_size: int, capacity: int) -> CachedModel:
    """A model with a cache, of the class that its position scaling needs; arguments as of `CachedModel`."""
    if longrope_border(model.config) is None and _query_border(model.config) is None:
        return CachedModel(model, batch_size, capacity)
    return ScaledModel(model, batch_size, capacity)


def longrope_border(config: PretrainedConfig) -> int | None:
    """Longest text of the short frequencies; None without longrope."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if part.get("rope_type") == "longrope":
            border = part.get("original_max_position_embeddings")
            return int(border or getattr(config, "original_max_position_embeddings", config.max_position_embeddings))
    return None


def _query_border(config: PretrainedConfig) -> int | None:
    """First position whose query is scaled by the cache's length; None for families that don't."""
    scale = getattr(config, "floor_scale", None)
    return int(scale) - 1 if scale and getattr(config, "attn_temperature_tuning", False) else None


class ScaledModel(CachedModel):
    """A `CachedModel` whose rows are read one by one where they would disturb each other."""

    def __init__(self, model: LanguageModel, batch_size: int, capacity: int) -> None:
        super().__init__(model, batch_size, capacity)
        self._border = longrope_border(model.config)
        self._query_border = _query_border(model.config)
        self._texts: list[list[int]] = [[] for _ in range(batch_size)]
        """Tokens that each row keeps, to read them again."""
        self._fed: list[list[int]] = [[] for _ in range(batch_size)]
        """Tokens that each row has read since."""
        self._long = [False] * batch_size
        """Whether a row's keys have the frequencies of long texts."""

    def _pass(self, token_ids: Tensor, offsets: list[int] | None = None, widest: int = WIDEST_STEP) -> Tensor:
        read = offsets or [0] * len(self.lengths)
        fed = zip(self._fed, read, token_ids.tolist(), strict=True)
        self._fed = [before[:offset] + ids for before, offset, ids in fed]
        starts = self._behind(read)
        if self._together(starts, token_ids.shape[1]):
            return super()._pass(token_ids, offsets, widest)
        return torch.stack([self._read_row(row, token_ids[row], start) for row, start in enumerate(starts)])

    def _together(self, starts: list[int], new: int) -> bool:
        """Whether the rows may share a pass."""
        if self._border is not None:
            short = max(starts) + new <= self._border and not any(self._long)
            return short or (min(starts) >= self._border and all(self._long))
        assert self._query_border is not None
        return max(starts) + new <= self._query_border or len(set(starts)) == 1

    def _read_row(self, row: int, token_ids: Tensor, start: int) -> Tensor:
        """Hidden states of a row's new tokens, [new, hidden]: those before the border, then those behind it."""
        border = len(token_ids) if self._border is None else min(max(0, self._border - start), len(token_ids))
        parts = []
        for is_long, first, part in ((False, start, token_ids[:border]), (True, start + border, token_ids[border:])):
            if not len(part):
                continue
            again = self._border is not None and is_long != self._long[row] and first > 0
            kept = (self._texts[row] + self._fed[row])[:first] if again else []
            before = torch.tensor(kept, dtype=token_ids.dtype, device=token_ids.device)
            parts.append(self._alone(row, torch.cat((before, part)), first - len(kept))[len(kept) :])
            self._long[row] = is_long
        return torch.cat(parts)

    def _alone(self, row: int, token_ids: Tensor, start: int) -> Tensor:
        positions = torch.arange(start, start + len(token_ids), device=token_ids.device)[None]
        extent = rounded(start + len(token_ids))
        self._cache.write_next(positions, extent, start, row)
        masks = ragged_masks(self.model.config, positions, extent, self.model.model.dtype)
        return self.reader.run(token_ids[None], positions, masks, row)[0]

    def advance(self, counts: list[int]) -> None:
        super().advance(counts)
        texts = zip(self._texts, self._fed, self.lengths, strict=True)
        self._texts = [(text + fed)[:length] for text, fed, length in texts]
        self._fed = [[] for _ in counts]

    def set_lengths(self, lengths: list[int]) -> None:
        texts = zip(self._texts, self._fed, lengths, strict=True)
        self._texts = [(text + fed)[:length] for text, fed, length in texts]
        self._fed = [[] for _ in lengths]
        super().set_lengths(lengths)

    def select(self, rows: list[int]) -> None:
        super().select(rows)
        self._texts, self._fed = [self._texts[row] for row in rows], [self._fed[row] for row in rows]
        self._long = [self._long[row] for row in rows]
