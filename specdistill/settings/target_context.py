"""Settings of the text that only the target sees. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.errors import ConfigError

FLAGS = "--target-system, --target-examples or --target-hint"


@dataclass(frozen=True, kw_only=True)
class ContextSettings:
    """Text around a prompt that the target sees and the draft does not: context distillation."""

    target_system: str | None = None
    """Text file with a system prompt that only the target sees. The draft learns to answer without it as the target
    does with it. A prompt's own system turn follows in the same turn."""
    target_examples: str | None = None
    """Prompts with answers, in the forms of --prompts, that only the target sees as earlier turns, in their order."""
    target_hint: str | None = None
    """Text behind each prompt's last turn of the user that only the target sees; {answer} in it stands for the prompt's
    field answer, as in 'The right answer is {answer}.'"""

    def __post_init__(self) -> None:
        if self.target_hint is not None and "{answer}" not in self.target_hint:
            raise ConfigError(
                f"--target-hint must hold {{answer}}, where the prompt's answer goes, got {self.target_hint!r}; text "
                "that is the same for every prompt belongs into --target-system"
            )

    @property
    def adds_something(self) -> bool:
        """Whether the target sees more than the draft."""
        return any(value is not None for value in (self.target_system, self.target_examples, self.target_hint))
