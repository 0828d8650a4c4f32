"""The answers that came with labels, by the prompts that they answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.soft_labels import LabelStore
from specdistill.data.target_context import TargetView
from specdistill.distill.answers.matching import select_rows


class StoredAnswers:
    """Answers that were labelled, by the prompts that they answer."""

    def __init__(self, store: LabelStore, directory: Path, vocab_size: int, labelled_by: str) -> None:
        self._store, self._directory, self._vocab_size = store, directory, vocab_size
        self.labelled_by = labelled_by
        """Name of the model whose distributions the labels are."""

    def select(
        self, prompts: Sequence[Prompt], encoded: Sequence[list[int]], view: TargetView, copies: int | None = None
    ) -> list[Example]:
        """Finds the answers to some prompts; the store then knows where their labels lie.

        Args:
            prompts, encoded: Whose answers are wanted.
            view: The prompts as the target must have seen them.
            copies: At most this many per prompt, the first ones; None takes all.

        Raises:
            DataError: There are none.
        """
        rows = select_rows(self._store.rows(), self._directory, prompts, encoded, self._vocab_size, copies, view)
        for number, example in rows:
            self._store.place(example, number)
        return [example for _, example in rows]
