"""The two sides of a run's prompts, read before any model: those to train on, and those that judge the draft."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, check_lengths, encode_all, load_prompts, split_prompts
from specdistill.data.scorers import Scorer, check_scorer, load_function
from specdistill.data.target_context import TargetContext, TargetView
from specdistill.data.texts import TextCounts, check_texts
from specdistill.distill.answers.given import check_answers
from specdistill.distill.answers.matching import fingerprint
from specdistill.distill.answers.same_context import check_same_context, write_context
from specdistill.distill.answers.selection import Judge, build_judge
from specdistill.distill.answers.text_blocks import as_prompt
from specdistill.distill.methods import Method
from specdistill.distill.sequences.fixed import takes_given_answers
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.target.place import Stored, TargetPlace
from specdistill.files import atomic, run_settings
from specdistill.models import LanguageModel
from specdistill.models.pair import FoundPair, find_pair
from specdistill.servers.client import ModelServer
from specdistill.settings.chat import ChatSettings
from specdistill.settings.target_context import ContextSettings


@dataclass(frozen=True)
class FoundRun:
    """Everything that is known of a run before any weights are read."""

    connection: ModelServer | None
    """The target's server, where it is served."""
    pair: FoundPair
    training: list[list[int]]
    """Training prompts in the target's ids."""
    heldout: list[list[int]]
    """Held-out prompts in the target's ids."""
    view: TargetView
    """Both sides as the target sees them."""


@dataclass(frozen=True)
class RunPrompts:
    """Everything that a run knows of its text before it looks at a model."""

    training: list[Prompt]
    heldout: list[Prompt]
    blocks: Mapping[str, list[int]] = field(default_factory=dict)
    """Ids before each block of labelled text, which stands in a prompt's place; empty where there are prompts."""
    documents: TextCounts | None = None
    """Documents of --text."""
    context: TargetContext = field(default_factory=TargetContext)
    """Text that only the target sees."""
    reward: Scorer | None = None
    """Judges the draft's own answers in training."""
    scorer: Scorer | None = None
    """Judges the draft's own answers to the held-out prompts."""
    judge: Judge | None = None
    """Chooses among best-of-n's answers."""

    @property
    def hash(self) -> str:
        """Hash of all prompts with their answers, and of the target's context: a run is resumed on the same only."""
        plain = fingerprint([*self.training, *self.heldout])
        if self.context.is_empty:
            return plain
        return hashlib.sha256((plain + self.context.to_text()).encode()).hexdigest()

    @staticmethod
    def read(
        source: str, chat: ChatSettings, settings: SequenceSettings, place: TargetPlace, context: ContextSettings
    ) -> RunPrompts:
        """Reads the prompts, or the names of labelled blocks, and what only the target sees.

        Args:
            source: --prompts.
            chat: How prompts are rendered.
            settings: How many are held out, and --text.
            place: Labels of raw text bring their own blocks along.
            context: Files that only the target sees; stored answers and labels must have been made with the same.

        Raises:
            DataError: A file is missing, empty or malformed.
        """
        seen = TargetContext.read(context)
        if settings.rollouts is not None:
            check_same_context("--rollouts", Path(settings.rollouts), seen)
        if isinstance(place, Stored):
            check_same_context("--soft-labels", place.directory, seen)
        documents = None if settings.text is None else check_texts(settings.text)
        blocks = place.blocks() if isinstance(place, Stored) else {}
        prompts = [as_prompt(name) for name in blocks] if blocks else load_prompts(source, chat)
        training, heldout = split_prompts(prompts, settings.heldout_prompts)
        return RunPrompts(training, heldout, blocks, documents, seen)

    def judged(
        self, method: Method, settings: SequenceSettings, place: TargetPlace, reward: str | None, watch: str
    ) -> RunPrompts:
        """Finds given answers and scorers, where the run needs some; needs no model.

        Args:
            method: Decides what is needed.
            settings: Scorers.
            place: Stored labels bring their answers along.
            reward: --reward.
            watch: --watch; the loss on given answers needs them on held-out prompts too.

        Raises:
            DataError: A prompt lacks its answer.
            ConfigError: There is no such scorer.
        """
        if takes_given_answers(method, settings, self.training) and place.name != "stored":
            check_answers(self.training, method.name)
            if watch == "loss":
                check_answers(self.heldout, "--watch loss")
        scorer, judge = check_scorer(settings.scorer, self.heldout), None
        if method.name == "best-of-n":
            judge = build_judge(settings.judge, self.training, threshold_needed=settings.keep_correct)
        judges_own = None if reward is None else load_function(reward, "--reward")
        return replace(self, judge=judge, scorer=scorer, reward=judges_own)

    def encode(self, prompts: Sequence[Prompt], tokenizer, room: int, vocab_size: int) -> list[list[int]]:
        """Token ids of one side; see `encode_all`."""
        if self.blocks:
            return [self.blocks[prompt.id] for prompt in prompts]
        return encode_all(prompts, tokenizer, room, vocab_size)

    def find(
        self,
        target: str,
        draft: str,
        place: TargetPlace,
        max_new_tokens: int,
        *,
        other_tokenizer: bool,
        say: Callable[[str], None],
        target_base: str | None = None,
    ) -> FoundRun:
        """Reaches the server, finds the models and encodes both sides, as each model sees them, in this order.

        Args:
            target, draft: Names of the models.
            place: Where the target is.
            max_new_tokens: Room that an answer needs after its prompt.
            other_tokenizer: Whether the draft may have another one.
            say: Called with a line of text when a slow step starts.
            target_base: Base of a target that is an adapter; None takes the adapter's own word.

        Raises:
            SpecdistillError: No server, no model, or a prompt that can't be encoded.
        """
        connection = place.connect(say)
        pair = find_pair(target, draft, other_tokenizer=other_tokenizer, say=say, target_base=target_base)
        tokenizer, vocab_size = pair.target.tokenizer, pair.target.vocab_size
        room = pair.max_context - max_new_tokens
        training, heldout = (self.encode(side, tokenizer, room, vocab_size) for side in (self.training, self.heldout))
        if not pair.same_tokenizer:
            # The draft reads them in its own template, long after the target has answered.
            own, own_room = pair.draft, pair.draft.max_context - max_new_tokens
            encode_all([*self.training, *self.heldout], own.tokenizer, own_room, own.vocab_size)
        room = pair.target.max_context - max_new_tokens
        every, encoded = [*self.training, *self.heldout], [*training, *heldout]
        view = self.context.view(every, encoded, tokenizer, room, vocab_size)
        return FoundRun(connection, pair, training, heldout, view)

    def warn(self, found: FoundRun, target: LanguageModel, say: Callable[[str], None]) -> None:
        """Remarks on prompts that look as if they were meant otherwise; see `warn_about_prompts`."""
        if not self.blocks:
            prompts, encoded = [*self.training, *self.heldout], [*found.training, *found.heldout]
            warn_about_prompts(prompts, encoded, target, say)
        if found.view.ids:
            draft = sum(map(len, [*found.training, *found.heldout])) / len(found.view.ids)
            more = sum(map(len, found.view.ids.values())) / len(found.view.ids)
            say(
                f"the target sees {more:.0f} tokens of a prompt where the draft sees {draft:.0f}; held-out alpha is "
                "measured against the target that sees more"
            )

    def say_split(
        self, method: Method, settings: SequenceSettings, place: TargetPlace, say: Callable[[str], None]
    ) -> None:
        """Says how many prompts are held out, and that given answers are not trained on where the method takes none."""
        if self.blocks or settings.text is not None:
            return
        count = len(self.training) + len(self.heldout)
        asked = "--heldout-prompts"
        if len(self.heldout) < settings.heldout_prompts:
            asked += f" {settings.heldout_prompts}, but at most half"
        line = f"{count} prompts: {len(self.training)} to train on, {len(self.heldout)} held out ({asked})"
        given = sum(prompt.answer is not None for prompt in self.training)
        stored = place.name == "stored" or settings.rollouts is not None
        if given and not stored and not takes_given_answers(method, settings, self.training):
            line += f"; their {given} given answers are not trained on (--method sft does)"
        say(line)

    def check_room(self, found: FoundRun, room: int, target_room: int) -> None:
        """Refuses prompts that a server has no room for: its context may be shorter than the models'.

        Args:
            found: The prompts as each model sees them.
            room: Tokens that a prompt may have that both see.
            target_room: Tokens that a prompt of the target may have.

        Raises:
            DataError: A prompt has more.
        """
        if not self.blocks:
            check_lengths(self.training, found.training, room)
            check_lengths(self.heldout, found.heldout, room)
            found.view.check_room(target_room)

    def keep(self, output: Path) -> None:
        """Keeps in a run's directory what it must find again when it is resumed."""
        atomic.write_text(output / run_settings.PROMPTS_FILE, self.hash + "\n")
        write_context(output, self.context)
