"""`--prompts self:N`: turns it into a file of prompts that the target wrote, and lets it write what is missing."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from specdistill.data.opening import Opening, find_opening
from specdistill.data.readers import read_text
from specdistill.data.self_draws import Draw, SortedDraws
from specdistill.data.self_store import DRAWS_PER_SHARD, Identity, SelfStore
from specdistill.decoding.autoregressive import generate_plain
from specdistill.decoding.generation import Generation
from specdistill.decoding.sampling import Sampling
from specdistill.errors import ConfigError, DataError, out_of_memory_named
from specdistill.files import locks
from specdistill.files.cache import cache_root
from specdistill.models import LanguageModel, load
from specdistill.models.content import content_hash
from specdistill.models.pair import resolve_device, resolve_dtype
from specdistill.progress import Progress
from specdistill.settings.chat import ChatSettings
from specdistill.settings.self_prompts import Half, SelfPromptSettings, SelfSource, self_source

_RECENT, _FEWEST = 8, 6
"""The target is given up on when this many shards in a row bring fewer new prompts than that."""
_PAUSE = 1.0


@dataclass(frozen=True)
class Weights:
    """How the target is loaded to write prompts."""

    device: str = "auto"
    dtype: str = "auto"
    keep: str = "whole"


def prompts_file(
    source: str,
    half: Half,
    settings: SelfPromptSettings,
    chat: ChatSettings,
    target: str,
    weights: Weights | None,
    progress: Progress,
    at_most: int = 0,
    base: str | None = None,
) -> str:
    """Turns `self:N` into the name of a file of prompts; every other source stays as it is.

    The prompts are kept in the cache, by the target's content and all settings. A larger N goes on with the same draws,
    and so does a run after a kill.

    Args:
        source: --prompts.
        half: Side of the split where `source` names none.
        settings: How prompts are sampled.
        chat: How prompts are rendered.
        target: Name of the model that writes them.
        weights: How it is loaded; None where it is not there, so that only prompts that it wrote before can be used.
        progress: Where a bar and remarks go.
        at_most: Prompts that are used of them, so that no more are written; 0 uses all.
        base: Base of the model where it is an adapter, as the user named it.

    Raises:
        SpecdistillError: `source` is malformed, the model has nothing to continue or writes too few usable prompts, or
            prompts are missing that it can't write here.
    """
    wanted = self_source(source, half)
    if wanted is None:
        return source
    if at_most:
        wanted = replace(wanted, count=min(wanted.count, at_most))
    author = _Author(wanted, settings, chat, target, base, progress.say)
    file = author.store.file(wanted)
    if not file.exists():
        with _waiting_lock(author.store.directory, progress.say):
            if not file.exists():
                author.write(weights, progress)
    progress.say(author.store.remark(wanted))
    return str(file)


def written_before(
    source: str, half: Half, settings: SelfPromptSettings, chat: ChatSettings, target: str, base: str | None
) -> Path | None:
    """The file of `self:N` where it is there already; None where it is not, or where `source` is something else."""
    wanted = self_source(source, half)
    if wanted is None:
        return None
    file = _Author(wanted, settings, chat, target, base, lambda text: None).store.file(wanted)
    return file if file.exists() else None


class _Author:
    """The target as a writer of prompts, with the folder that they are kept in."""

    def __init__(
        self,
        wanted: SelfSource,
        settings: SelfPromptSettings,
        chat: ChatSettings,
        target: str,
        base: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._wanted, self._say = wanted, say
        self._source = found = load.find(target, "target", say, base)
        system = _read_system(settings.self_system)
        named = [getattr(part, "bos_token_id", None) for part in (found.tokenizer, found.config)]
        bos = next((token for token in named if isinstance(token, int)), None)
        opening = find_opening(found.tokenizer, chat, system, bos)
        template = found.tokenizer.chat_template
        self._identity = identity = Identity(
            target=content_hash(found),
            template=None if opening.raw else hashlib.sha256(json.dumps(template).encode()).hexdigest(),
            chat_template_kwargs=chat.chat_template_kwargs,
            raw_prompts=chat.raw_prompts,
            system=system,
            temperature=settings.self_temperature,
            top_p=settings.self_top_p,
            max_tokens=settings.max_tokens(opening.raw),
            seed=settings.self_seed,
        )
        self.store = SelfStore(_folder(identity.key, target), identity)
        self._opening = self.store.opening(opening)
        needed = len(self._opening.ids) + identity.max_tokens
        if needed > found.max_context:
            raise ConfigError(
                f"--self-max-tokens {identity.max_tokens} does not fit the context of {target}: with the text before "
                f"it that makes {needed} tokens of {found.max_context}; lower it"
            )

    def write(self, weights: Weights | None, progress: Progress) -> None:
        """Writes the prompts file, from draws that are there and as many more as it takes."""
        wanted, sorted_out, recent = self._wanted, SortedDraws(), deque[int](maxlen=_RECENT)
        tokenizer = self._source.tokenizer
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        markers = {token for token in {*tokenizer.all_special_tokens, *added} if token.strip()}
        model: LanguageModel | None = None
        with progress.task("target writes prompts", wanted.count, "prompts") as task:
            for number in itertools.count():
                draws = self.store.shard(number)
                if draws is None:
                    model = model or self._load(weights)
                    self.store.begin(self._opening)
                    draws = self._draw(model, number)
                    self.store.write_shard(number, draws)
                before = len(sorted_out.prompts[wanted.half])
                done = sorted_out.add_until(draws, wanted.half, wanted.count, markers, raw=self._opening.raw)
                recent.append(len(sorted_out.prompts[wanted.half]) - before)
                task.advance(recent[-1])
                if done:
                    break
                if len(recent) == _RECENT and sum(recent) < _FEWEST:
                    raise DataError(self._too_few(sorted_out))
        self.store.finish(wanted, sorted_out)
        del model
        if torch.cuda.is_available():
            # An engine that starts next takes memory that torch would keep.
            torch.cuda.empty_cache()

    def _load(self, weights: Weights | None) -> LanguageModel:
        name = self._source.name
        if weights is None:
            raise ConfigError(
                f"--prompts self:{self._wanted.count}: the weights of --target {name} are not loaded here, so it can't "
                "write prompts; run 'specdistill generate' with these --prompts where they are, and name the prompts "
                "file that it prints"
            )
        device = resolve_device(weights.device)
        dtype = resolve_dtype(weights.dtype, device)
        return load.load_model(self._source, "target", device=device, dtype=dtype, keep=weights.keep, say=self._say)

    def _draw(self, model: LanguageModel, shard: int) -> list[Draw]:
        identity, opening = self._identity, self._opening
        numbers = range(shard * DRAWS_PER_SHARD, (shard + 1) * DRAWS_PER_SHARD)
        with out_of_memory_named("lower --self-max-tokens"):
            written = generate_plain(
                model,
                [list(opening.ids)] * DRAWS_PER_SHARD,
                sampling=Sampling(temperature=identity.temperature, top_p=identity.top_p),
                max_new_tokens=identity.max_tokens,
                seeds=[_seed(identity.seed, number) for number in numbers],
                stop_strings=(opening.end,),
            )
        return [_as_draw(number, each, opening, model) for number, each in zip(numbers, written, strict=True)]

    def _too_few(self, found: SortedDraws) -> str:
        counts, half = found.counts(), self._wanted.half
        dropped = ", ".join(f"{name} {counts[name]}" for name in found.dropped)
        return (
            f"--prompts self:{self._wanted.count}:{half}: {self._source.name} wrote {counts[half]} usable ones of that "
            f"half in {counts['draws']} draws and hardly any new ones lately (dropped: {dropped or 'none'}); ask for "
            f"fewer, raise --self-temperature, or name a file of prompts (draws: {self.store.directory})"
        )


def _folder(key: str, target: str) -> Path:
    """Folder of the prompts: found by the key, whatever the target was called when it was made."""
    root = cache_root() / "prompts"
    return next(root.glob(f"*-{key}"), root / f"{Path(target).name.removesuffix('.gguf') or 'target'}-{key}")


def _as_draw(number: int, written: Generation, opening: Opening, model: LanguageModel) -> Draw:
    ids = written.token_ids
    if written.finish_reason == "eos":
        ids = ids[:-1]
    # Special tokens inside stay visible: such a text is no user's.
    text = str(model.tokenizer.decode(ids, skip_special_tokens=False))
    if written.finish_reason == "stop":
        text = text.partition(opening.end)[0]
    return Draw(number, text, ended=written.finish_reason != "length")


def _seed(seed: int, number: int) -> int:
    """A draw's own seed."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, "self", number]).encode()).digest()[:6])


def _read_system(path: str | None) -> str | None:
    if path is None:
        return None
    text = read_text(Path(path)).strip()
    if not text:
        raise DataError(f"--self-system {path} is empty; leave it away, or write the system prompt into it")
    return text


@contextlib.contextmanager
def _waiting_lock(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the folder; waits while another process writes there, such as another rank of this run."""
    said = False
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(locks.output_lock(directory, say))
                break
            except locks.BusyError:
                if not said:
                    say(f"waiting for another run that writes these prompts ({directory})")
                    said = True
                time.sleep(_PAUSE)
        yield
