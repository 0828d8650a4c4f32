"""Gives a model the vocabulary of another one: each token gets the row of the model's own token for the same text."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from specdistill.errors import ModelError
from specdistill.models import vocabulary
from specdistill.models.checkpoint import tokenizer_files
from specdistill.models.language_model import LanguageModel
from specdistill.models.load import ModelSource
from specdistill.models.spelling import Spelling, spell
from specdistill.models.stop_ids import eos_ids, stored_generation_config
from specdistill.settings.chat import TemplateArguments

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAMPLE = "It's 12345 o'clock, isn't it?\n\n    def f(x): return x + 1  # w1 w2\n"
_ANSWER, _QUESTION = "specdistill4answer", "specdistill4question"


@dataclass(frozen=True)
class VocabularyMap:
    """For each id of the target, the ids of the donor whose rows are averaged; none takes the mean of all rows."""

    sources: Sequence[Sequence[int]]

    def shares(self, token_ids: Iterable[int]) -> tuple[float, float, float]:
        """Shares of these ids of the target whose row is one of the donor's, a mean of several, and the mean of all."""
        sizes = [min(len(self.sources[token_id]), 2) for token_id in token_ids]
        one, several, none = (sizes.count(size) / max(len(sizes), 1) for size in (1, 2, 0))
        return one, several, none

    def rows(self, weight: Tensor, donor_ids: int, rows: int) -> Tensor:
        """Rows for the target's ids, [rows, hidden].

        Args:
            weight: Embedding or head of the donor, [at least donor_ids, hidden].
            donor_ids: Number of ids of the donor; further rows are padding.
            rows: Rows to make; those beyond the map are the mean of all.
        """
        new = weight[:donor_ids].mean(0).expand(rows, -1).clone()
        single = [(number, ids[0]) for number, ids in enumerate(self.sources) if len(ids) == 1]
        if single:
            places, sources = torch.tensor(single, device=weight.device).T
            new[places] = weight[sources]
        for number, ids in enumerate(self.sources):
            if len(ids) > 1:
                new[number] = weight[list(ids)].mean(0)
        return new


def map_vocabulary(
    target: ModelSource, donor: ModelSource, arguments: TemplateArguments | None = None
) -> VocabularyMap:
    """Finds the donor's tokens for every id of the target.

    In this order: the donor's token of the same bytes or name; for control tokens the one of the same role, for
    others the pieces into which the donor splits the text.

    Args:
        target: The vocabulary that is wanted.
        donor: The model that gets it.
        arguments: Arguments of the target's chat template.

    Raises:
        ModelError: A tokenizer can't be compared.
    """
    if vocabulary.same_tokens(target.tokenizer, donor.tokenizer, target.rows, donor.rows):
        return VocabularyMap([[number] if number < donor.vocab_size else [] for number in range(target.vocab_size)])
    wanted = spell(target.tokenizer, target.vocab_size, f"--target {target.name}")
    own = spell(donor.tokenizer, donor.vocab_size, f"--donor {donor.name}")
    found = _pieces(wanted, own)
    found |= _same_role(_roles(target, wanted, arguments or {}), _roles(donor, own, {}))
    found |= _same_text(wanted, own)
    return VocabularyMap([found.get(number, ()) for number in range(target.vocab_size)])


def _same_text(wanted: Spelling, own: Spelling) -> dict[int, Sequence[int]]:
    ids, spare = own.named_ids(), {byte: number for number, byte in own.spare_bytes.items()}
    texts = wanted.texts | {number: name.encode() for number, name in wanted.special.items()}
    found: dict[int, Sequence[int]] = {number: [ids[text]] for number, text in texts.items() if text in ids}
    return found | {number: [spare[byte]] for number, byte in wanted.spare_bytes.items() if byte in spare}


def _pieces(wanted: Spelling, own: Spelling) -> dict[int, Sequence[int]]:
    """Pieces of the texts that no single token of the donor stands for; parts of characters are split into bytes."""
    ids = own.ids()
    missing = {number: text for number, text in wanted.texts.items() if text and text not in ids}
    whole = {number: text.decode() for number, text in missing.items() if _is_text(text)}
    found: dict[int, Sequence[int]] = dict(zip(whole, own.split(list(whole.values())), strict=True))
    for number, text in missing.items():
        if number not in whole:
            found[number] = [ids[byte] for byte in (bytes([value]) for value in text) if byte in ids]
    return found


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _same_role(wanted: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[int]]) -> dict[int, Sequence[int]]:
    """Control tokens by what they do. A donor that lacks a role gives the next best: a base model has no turns."""
    instead = {"turn end": ("eos",), "turn start": ("bos", "eos"), "bos": ("eos",), "pad": ("eos",)}
    found: dict[int, Sequence[int]] = {}
    for role, numbers in wanted.items():
        donors = next((own[each] for each in (role, *instead.get(role, ())) if own.get(each)), ())
        for number in numbers:
            if donors and number not in found:
                found[number] = donors[:1]
    return found


def _roles(source: ModelSource, spelling: Spelling, arguments: TemplateArguments) -> dict[str, list[int]]:
    """Role -> control tokens that have it, those first that say most about what a token does."""
    tokenizer = source.tokenizer
    markers = [number for number in _between_turns(tokenizer, arguments) if number in spelling.special]
    ends = [*eos_ids(tokenizer), *eos_ids(stored_generation_config(source.location)), *eos_ids(source.config)]
    named = {
        "turn end": markers[:1],
        "turn start": markers[1:2],
        "bos": [tokenizer.bos_token_id],
        "eos": ends,
        "pad": [tokenizer.pad_token_id],
        "unk": [tokenizer.unk_token_id],
    }
    return {role: [number for number in ids if number in spelling.special] for role, ids in named.items()}


def _between_turns(tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments) -> list[int]:
    """Ids that the chat template writes between an answer and the next question; none without a template."""
    if not tokenizer.chat_template:
        return []
    options: Any = dict(arguments)
    turns = [("user", "Hi"), ("assistant", _ANSWER), ("user", _QUESTION)]
    try:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:
        # Templates may refuse anything, in whatever way their author chose: such a one names no markers.
        return []
    _, _, rest = text.partition(_ANSWER)
    between, found, _ = rest.partition(_QUESTION)
    return list(tokenizer(between, add_special_tokens=False)["input_ids"]) if found else []


def check_donor(donor: ModelSource, target: ModelSource, say: Callable[[str], None] = print) -> None:
    """Refuses donors that can't follow another vocabulary. Reads no weights.

    Args:
        donor: The model that would get the target's vocabulary.
        target: The vocabulary that is wanted.
        say: Called with a line where transformers would split text differently beside the donor's configuration.

    Raises:
        ModelError: Layers look tokens up too, or transformers would read other tokens from the target's files.
    """
    where, kind = f"--donor {donor.name}", donor.config.model_type
    if getattr(donor.config, "hidden_size_per_layer_input", 0):
        raise ModelError(
            f"{where}: its layers have embeddings of their own (hidden_size_per_layer_input), which can't follow "
            "another vocabulary; take a donor without them"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, file in tokenizer_files(target).items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, Path(folder) / name)
        donor.config.save_pretrained(folder)
        try:
            read = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception:
            # Each kind of tokenizer refuses the files of another in its own way.
            read = None
    if read is None or read.get_vocab() != target.tokenizer.get_vocab():
        raise ModelError(
            f"{where} is of type {kind!r}, for which transformers can't read the tokenizer of {target.name}; take a "
            "donor of another type"
        )
    if read(_SAMPLE)["input_ids"] != target.tokenizer(_SAMPLE)["input_ids"]:
        say(
            f"transformers splits text by rules of its own for checkpoints of type {kind!r}: encode text for this "
            "draft with the target's tokenizer, as engines do"
        )


def transplant(donor: LanguageModel, target: LanguageModel, mapping: VocabularyMap) -> LanguageModel:
    """Gives a donor the target's vocabulary.

    Embedding and head get their rows apart, each from the donor's own; where the donor ties them they stay one.

    Args:
        donor: Changed in place: it has no use afterwards.
        target: Source of the tokenizer, the number of rows and the stop ids.
        mapping: Result of `map_vocabulary`.

    Returns:
        The donor's model with the target's tokenizer, in eval mode.
    """
    model, rows = donor.model, target.head_weight.shape[0]
    with torch.no_grad():
        made = [mapping.rows(weight.detach(), donor.vocab_size, rows) for weight in _vocabulary_weights(model)]
        model.resize_token_embeddings(rows, mean_resizing=False)
        for weight, new in zip(_vocabulary_weights(model), made, strict=True):
            weight.copy_(new)
    _take_token_ids(model.config, target.config)
    model.generation_config = target.model.generation_config
    vocabulary.resize_to(model, rows, target.vocab_size)
    return LanguageModel(
        model.eval(),
        target.tokenizer,
        f"{donor.name} with the vocabulary of {target.name}",
        None,
        target.vocab_size,
        stored_dtype=donor.stored_dtype,
    )


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and head are one matrix."""
    return len(_vocabulary_weights(model)) == 1


def _vocabulary_weights(model: PreTrainedModel) -> list[Tensor]:
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight
    head = cast(nn.Linear, model.get_output_embeddings()).weight
    return [embedding] if head is embedding else [embedding, head]


def _take_token_ids(config: PretrainedConfig, target: PretrainedConfig) -> None:
    for name in _TOKEN_IDS:
        setattr(config, name, getattr(target, name, None))
