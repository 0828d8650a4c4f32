"""The two sides of a run's prompts, read before any model: those to train on, and those that judge the draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specdistill.data.prompts import Prompt, encode_all, load_prompts, split_prompts
from specdistill.data.texts import TextCounts, check_texts
from specdistill.distill.answers.scorers import Scorer
from specdistill.distill.answers.text_blocks import as_prompt
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.target.place import Stored, TargetPlace


@dataclass(frozen=True)
class RunPrompts:
    """Everything that a run knows of its text before it looks at a model."""

    training: list[Prompt]
    heldout: list[Prompt]
    blocks: Mapping[str, list[int]] = field(default_factory=dict)
    """Ids before each block of labelled text, which stands in a prompt's place; empty where there are prompts."""
    documents: TextCounts | None = None
    """Documents of --text."""
    reward: Scorer | None = None

    @staticmethod
    def read(source: str, settings: SequenceSettings, place: TargetPlace) -> RunPrompts:
        """Reads the prompts, or the names of labelled blocks.

        Args:
            source: --prompts.
            settings: How many are held out, and --text.
            place: Labels of raw text bring their own blocks along.

        Raises:
            DataError: A file is missing, empty or malformed.
        """
        documents = None if settings.text is None else check_texts(settings.text)
        blocks = place.blocks() if isinstance(place, Stored) else {}
        prompts = [as_prompt(name) for name in blocks] if blocks else load_prompts(source)
        training, heldout = split_prompts(prompts, settings.heldout_prompts)
        return RunPrompts(training, heldout, blocks, documents)

    def encode(self, prompts: Sequence[Prompt], tokenizer, room: int, vocab_size: int) -> list[list[int]]:
        """Token ids of one side; see `encode_all`."""
        if self.blocks:
            return [self.blocks[prompt.id] for prompt in prompts]
        return encode_all(prompts, tokenizer, room, vocab_size)
