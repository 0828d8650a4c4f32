"""The training loop: sequences -> target's hidden states -> fused divergence -> draft gradient -> checkpoint."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from specdistill import atomic_files
from specdistill.data.batch import Sequence, collate
from specdistill.distill.checkpoint import is_fresh_cut, save_draft
from specdistill.distill.config import TrainConfig
from specdistill.distill.heldout import HeldOut, alphas
from specdistill.distill.rollouts import Source
from specdistill.errors import SpecdistillError
from specdistill.evaluation.acceptance import HiddenCache, PromptAcceptance, answer_hidden_states
from specdistill.models import LanguageModel, ModelPair
from specdistill.progress import Progress
from specdistill_kernels import fused_divergence

HISTORY_FILE = "history.jsonl"
_CACHE_BYTES = 2 * 2**30


class DraftTrainer:
    """Trains the pair's draft in place and keeps the best checkpoint, by held-out alpha, in the output directory.

    Args:
        pair: Target and draft; the target is never changed.
        source: Gives each step's sequences.
        reused: Sequences that come again every epoch: the target's hidden states of these are kept in memory.
        heldout: Judges the draft.
        config: Settings.
        output: Directory of the run.
        progress: Where the bar goes.
    """

    def __init__(
        self,
        pair: ModelPair,
        source: Source,
        reused: frozenset[Sequence],
        heldout: HeldOut,
        config: TrainConfig,
        output: Path,
        progress: Progress,
    ) -> None:
        self.target, self.draft = pair.target, pair.draft
        self._source, self._reused, self._heldout = source, reused, heldout
        self._config, self._output, self._progress = config, output, progress
        self._cache: HiddenCache = {}
        self.history: list[dict[str, Any]] = []
        self.best: list[PromptAcceptance] = []
        self.best_step = 0
        self.step = 0
        parameters = [parameter for parameter in self.draft.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate(config, self.draft), weight_decay=config.weight_decay
        )
        self._schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self._optimizer, math.ceil(config.warmup * config.steps), config.steps, min_lr_rate=0.1
        )

    def train(self) -> None:
        """Runs until the last step, until patience ends, or until Ctrl-C, which passes on after saving.

        Raises:
            SpecdistillError: The loss or the gradient is not finite; the best draft so far is on disk.
        """
        config = self._config
        self.start_records = self._look(0, {})
        started = time.perf_counter()
        tokens = 0
        self.draft.model.train()
        with self._progress.task(f"training ({config.method})", config.steps, "steps") as task:
            try:
                for self.step in range(1, config.steps + 1):
                    measured = self._one_step(self._source.next_batch(self.step))
                    tokens += measured.pop("tokens")
                    task.advance()
                    speed = tokens / (time.perf_counter() - started)
                    alpha = f"  alpha {measured['alpha']:.3f}" if "alpha" in measured else ""
                    task.note(f"loss {measured['loss']:.3f}{alpha}  {speed:.0f} tokens/s")
                    if self.step % config.eval_every == 0 or self.step == config.steps:
                        measured["tokens_seen"] = tokens
                        self._look(self.step, measured)
                        self.draft.model.train()
                        stale = (self.step - self.best_step) // config.eval_every
                        if config.patience and stale >= config.patience:
                            self._progress.say(f"stopped at step {self.step}: no new best since step {self.best_step}")
                            break
            except KeyboardInterrupt:
                if self.best_step == 0 and self.step > 1:
                    # No look has found a better draft yet, but what was learned so far must not be lost.
                    save_draft(self.draft, self.target, self._output)
                raise
            finally:
                self.draft.model.eval()
                self.draft.weights_changed()

    def _one_step(self, sequences: list[Sequence]) -> dict[str, Any]:
        config = self._config
        batch = collate(sequences).to(self.draft.device)
        # ce needs no target: its labels are the target's own tokens already.
        target_hidden = None if config.loss == "ce" else torch.cat(self._target_states(sequences))
        hidden = self.draft.hidden_states(batch.input_ids, batch.attention_mask)[batch.predicting]
        count = hidden.shape[0]
        output = fused_divergence(
            hidden,
            self.draft.head_weight,
            target_hidden,
            None if target_hidden is None else self.target.head_weight,
            torch.full((count,), 1 / count, device=hidden.device),
            kind=config.loss,
            beta=config.beta,
            eta=config.eta,
            temperature=config.temperature or 1.0,
            labels=batch.labels,
            vocab_size=self.target.vocab_size,
            draft_softcap=self.draft.softcap,
            target_softcap=self.target.softcap,
        )
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.draft.model.parameters(), config.max_grad_norm)
        loss = float(output.loss.detach())
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            names = ", ".join(sequence.prompt_id for sequence in sequences)
            raise SpecdistillError(
                f"loss {loss} with gradient norm {float(norm)} at step {self.step} (prompts {names}); "
                f"lower --learning-rate; the best draft so far (step {self.best_step}) is in {self._output}"
            )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.draft.weights_changed()
        return {
            "loss": loss,
            **({} if target_hidden is None else {"alpha": float(output.alpha.mean())}),
            "grad_norm": float(norm),
            "learning_rate": self._schedule.get_last_lr()[0],
            "tokens": count,
        }

    def _target_states(self, sequences: list[Sequence]) -> list[torch.Tensor]:
        """The target's hidden states; those of sequences that come again are kept while they fit."""
        states = answer_hidden_states(self.target, sequences, self._cache)
        held = sum(rows.numel() * rows.element_size() for rows in self._cache.values())
        for sequence in sequences:
            if sequence not in self._reused or held > _CACHE_BYTES:
                self._cache.pop(sequence, None)
        return states

    def _look(self, step: int, measured: dict[str, Any]) -> list[PromptAcceptance]:
        """Scores the held-out answers, writes the history, and saves the draft where it is the best so far."""
        records = self._heldout.score(self.draft)
        now = alphas(records)
        rule = self._config.rule
        self.history.append(
            {"step": step, **measured, **{f"heldout_alpha_{name}": value for name, value in now.items()}}
        )
        lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
        atomic_files.write_text(self._output / HISTORY_FILE, lines)
        if not self.best or now[rule] > alphas(self.best)[rule]:
            self.best, self.best_step = records, step
            if step:
                save_draft(self.draft, self.target, self._output)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in now.items())
        self._progress.say(
            f"step {step}: held-out alpha {shown}" + ("  (best)" if step and self.best_step == step else "")
        )
        return records


def learning_rate(config: TrainConfig, draft: LanguageModel) -> float:
    """The configured peak, or one by the draft's size and whether it was just cut out of the target.

    A model that already predicts well is spoilt above 1e-4 unless it is tiny; a fresh cut has to be mended first and
    learns faster with more (SmolLM2 cut to 4 layers: held-out alpha 0.237 after 60 steps at 1.5e-3, 0.212 at 5e-4).
    """
    if config.learning_rate:
        return config.learning_rate
    tiny, small, large = (1.5e-3, 5e-4, 1e-4) if is_fresh_cut(draft) else (3e-4, 1e-4, 1e-5)
    return tiny if draft.num_parameters < 100e6 else small if draft.num_parameters < 300e6 else large
