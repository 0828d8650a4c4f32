"""Preparation, training and scoring of the rows of `students.py`. Each part is made once, where it is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.folders import StudyFolder, has_weights, is_finished
from benchmarks.studies.scores import answers_once
from benchmarks.studies.student_results import SCORES_FILE, SECONDS_FILE
from benchmarks.studies.student_rows import ROWS, Answers
from benchmarks.studies.student_tasks import Task
from benchmarks.support.commands import run_command
from benchmarks.support.paths import target_file
from specdistill import AnnotateConfig, GenerateConfig, TrainConfig, annotate, generate, train_draft
from specdistill.data import Example
from specdistill.data.prompts import encode, load_prompts
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.evaluation.acceptance import ALPHA_RULES, HiddenCache, alpha_sums, score
from specdistill.files.atomic import write_text
from specdistill.models import LanguageModel, load, load_model
from specdistill.models.adapters import save_merged
from specdistill.models.gguf import convert
from specdistill.models.pair import resolve_device
from specdistill.progress import Quiet
from specdistill.report.progress import TerminalProgress

SMALL_TEACHER = 8
"""Layers of the small teacher: the warmed-up student of this depth."""
COPIES = 4
"""The teacher's answers to each prompt."""
ANSWERS_SEED = 1234
MICRO_BATCH = 4
"""Answers in memory at a time, in training."""
BATCH = 512
"""Answers that are written at a time."""


@dataclass(frozen=True)
class Scale:
    """Size of the study."""

    finetuning: int
    warming: int
    """Records whose given answers warm the students up; none of them is trained on afterwards."""
    train: int
    heldout: int
    finetuning_share: float
    """Share of the task's steps of fine-tuning, of teacher and students."""
    steps: int
    batch_size: int
    vocab_keep: int
    """Ids of the students' output head, by use in `calibration_prompts` answers; 0: all."""
    calibration_prompts: int


SCALES = {
    "study": Scale(2000, 8000, 512, 128, 1.0, 60, 16, 0, 8),
    # For two CPU cores and some nights.
    "cpu": Scale(1000, 8000, 256, 128, 1.0, 30, 8, 8192, 256),
    # Proves in minutes that every part runs; its numbers mean nothing.
    "try": Scale(16, 16, 12, 4, 0.01, 2, 2, 8192, 8),
}


@dataclass(frozen=True)
class Study:
    """One task's folder and settings."""

    folder: StudyFolder
    task: Task
    scale: Scale
    device: str

    @property
    def teacher(self) -> Path:
        """The fine-tuned target."""
        return self.folder.root / "teacher"

    @property
    def facts(self) -> Path:
        """Where and on how much the study was made."""
        return self.folder.root / "facts.json"

    @property
    def on_gpu(self) -> bool:
        """Whether models run on a GPU: then in bfloat16, with float32 weights of what is trained."""
        return resolve_device(self.device) != "cpu"

    def start(self, depth: int) -> Path:
        """The warmed-up student from which every row goes on."""
        return self.folder.root / f"start-{depth}"

    def stored(self, answers: Answers) -> Path:
        """Folder of stored answers."""
        return self.folder.root / answers.value

    @property
    def labels(self) -> Path:
        """The teacher's stored distributions over its own answers."""
        return self.folder.root / "labels"

    def run(self, row: str, depth: int, seed: int) -> Path:
        """A training run."""
        return self.folder.run(f"{row}-{depth}", seed)

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds: of this process's one thread on a CPU, so that other work on the machine does not count."""
        return time.perf_counter if self.on_gpu else time.process_time

    def train(self, run: Path, start: Path, target: Path | str, prompts: str, steps: int, **settings: Any) -> None:
        """Trains on one thread and keeps the last step; writes how long that took, with loading the models."""
        if is_finished(run):
            return
        clock = self.clock
        shared: dict[str, Any] = {
            "batch_size": self.scale.batch_size,
            "max_new_tokens": self.task.max_new_tokens,
            # A checkpoint now and then, for studies that are cut off.
            "eval_every": min(steps, 50),
            "micro_batch_size": min(self.scale.batch_size, MICRO_BATCH),
        }
        shared["precision"] = "bfloat16" if self.on_gpu else "float32"
        config = TrainConfig.flat(
            draft=str(start), target=str(target), output=str(run), prompts=str(self.folder.prompts(prompts)),
            steps=steps, keep="last", patience=0, heldout_prompts=min(8, self.scale.heldout), rule="greedy",
            resume=True, threads=1, device=self.device, **shared, **settings,
        )  # fmt: skip
        began = clock()
        train_draft(config, TerminalProgress())
        write_text(run / SECONDS_FILE, json.dumps(clock() - began))

    def finetune(
        self, run: Path, start: Path, target: Path | str, prompts: str, whole_steps: int, **settings: Any
    ) -> None:
        """Fine-tunes on given answers for the scale's share of so many steps."""
        self.train(
            run,
            start,
            target,
            prompts,
            max(2, round(whole_steps * self.scale.finetuning_share)),
            method="sft",
            **settings,
        )

    def answer(self, model: Path, answers: Answers, copies: int) -> float:
        """Stores a model's sampled answers to the training prompts, and how long that took, in seconds."""
        folder = self.stored(answers)
        config = GenerateConfig.flat(
            target=str(model), output=str(folder), prompts=str(self.folder.prompts("train")),
            rollouts_per_prompt=copies, max_new_tokens=self.task.max_new_tokens, batch_size=BATCH, shard_size=BATCH,
            threads=1, device=self.device,
        )  # fmt: skip
        return self._timed(folder, lambda: generate(config, TerminalProgress()))

    def label(self) -> float:
        """Stores the teacher's distributions over its answers, and how long that took, in seconds."""
        config = AnnotateConfig.flat(
            target=str(self.teacher), output=str(self.labels), rollouts=str(self.stored(Answers.TARGET)),
            threads=1, device=self.device,
        )  # fmt: skip
        return self._timed(self.labels, lambda: annotate(config, TerminalProgress()))

    def _timed(self, made: Path, make: Callable[[], object]) -> float:
        """Makes a folder once. A part that was cut off is finished, and then only the rest of its time is known."""
        file = made.with_suffix(".seconds.json")
        if not file.exists():
            began = self.clock()
            make()
            write_text(file, json.dumps(self.clock() - began))
        return json.loads(file.read_text())


def prepare(study: Study, depths: Sequence[int]) -> None:
    """Prompts, teacher, its answers, cuts, warmed-up students, and the small teacher's answers."""
    folder, scale = study.folder, study.scale
    seconds = prepare_teacher(study)
    for depth in sorted({*depths, SMALL_TEACHER}):
        if not has_weights(folder.cut(depth)):
            shape = ["--layers", str(depth), "--choose", "even", "--vocab-keep", str(scale.vocab_keep)]
            size = {"prompts": scale.calibration_prompts, "tokens": study.task.max_new_tokens}
            prompts = ["--prompts", str(folder.prompts("train"))]
            prompts += [part for name, number in size.items() for part in (f"--calibration-{name}", str(number))]
            pair = ["--target", str(study.teacher), "--output", str(folder.cut(depth)), "--device", study.device]
            run_command("init-draft", *pair, *shape, *prompts)
        study.finetune(study.start(depth), folder.cut(depth), study.teacher, "warming", study.task.warm_steps)
    copies = small_copies(study)
    seconds["small_answers_seconds"] = study.answer(study.start(SMALL_TEACHER), Answers.SMALL, copies)
    judge = Judge(study)
    for model in (study.teacher, *(study.start(depth) for depth in depths)):
        judge.judge(model)
    device = torch.cuda.get_device_name() if study.on_gpu else "CPU"
    facts = {"device": device, "torch": torch.__version__, "heldout_prompts": len(judge.prompts)}
    facts |= {"teacher_copies": COPIES, "small_teacher_layers": SMALL_TEACHER, "small_teacher_copies": copies}
    facts |= {name: round(value, 1) for name, value in seconds.items()}
    write_text(study.facts, json.dumps(facts))


def prepare_teacher(study: Study) -> dict[str, float]:
    """Prompts, teacher, its answers and their labels; returns what the last two took, in seconds."""
    folder, scale = study.folder, study.scale
    folder.root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("finetuning", "train", "heldout", "warming"), 1):
        study.task.write_records(folder.prompts(name), getattr(scale, name), number)
    make_teacher(study)
    return {"answers_seconds": study.answer(study.teacher, Answers.TARGET, COPIES), "labels_seconds": study.label()}


def make_teacher(study: Study) -> None:
    """Fine-tunes the teacher, or merges a committed adapter."""
    base, adapter = convert(target_file()), study.task.adapter
    if adapter is not None:
        if not has_weights(study.teacher):
            save_merged(load_model(load.find(str(adapter), "target", print, str(base)), "target"), study.teacher)
        return
    study.finetune(study.teacher, base, target_file(), "finetuning", study.task.teacher_steps, learning_rate=2e-4)


def small_copies(study: Study) -> int:
    """Answers per prompt that the small teacher writes for the compute of the teacher's: 2 x parameters x tokens."""
    large, small = (_parameters(model) for model in (study.teacher, study.start(SMALL_TEACHER)))
    return round(COPIES * large / small)


def _parameters(model: Path) -> int:
    return load_model(str(model), "draft").num_parameters


def train_row(study: Study, name: str, depth: int, seed: int) -> None:
    """Trains one seed of a row from the warmed-up student."""
    row = ROWS[name]
    settings = dict(row.settings)
    if row.answers is not Answers.NONE:
        settings["rollouts"] = str(study.stored(row.answers))
    if row.chosen:
        settings |= {"scorer": study.task.scorer, "keep_correct": True}
    if row.rewarded:
        settings |= {"reward": study.task.scorer}
    if row.labelled:
        settings["soft_labels"] = str(study.labels)
    run = study.run(name, depth, seed)
    steps = steps_of(study, name, depth, seed)
    study.train(run, study.start(depth), study.teacher, "train", steps, **settings, seed=seed)


def timed_after(study: Study, name: str, depth: int, seed: int) -> list[Path]:
    """The runs whose times decide a run's number of steps: the row to match, and this one's short form."""
    longer = ROWS[name].as_long_as
    return [study.run(row, depth, seed) for row in (longer, name.removesuffix("-equal-time"))] if longer else []


def steps_of(study: Study, name: str, depth: int, seed: int) -> int:
    """Steps of a run: the study's, or as many as take the time of the row to match."""
    runs = timed_after(study, name, depth, seed)
    times = [json.loads((run / SECONDS_FILE).read_text()) for run in runs]
    return round(study.scale.steps * times[0] / times[1]) if times else study.scale.steps


class Judge:
    """Scores students on the held-out prompts: their own greedy answers, and alpha on the teacher's sampled ones."""

    def __init__(self, study: Study) -> None:
        self._study, self._device = study, resolve_device(study.device)
        self._target = load_model(str(study.teacher), device=self._device)
        self.prompts = load_prompts(str(study.folder.prompts("heldout")))
        self._encoded = [encode(prompt, self._target.tokenizer) for prompt in self.prompts]
        file = study.folder.heldout_answers
        self._answers = answers_once(file, self.prompts, self._encoded, lambda: self._write(self._target, Sampling()))
        self._states: HiddenCache = {}

    def judge(self, model_directory: Path) -> None:
        """Writes SCORES_FILE beside a model: column -> score per prompt, rule -> sums of alpha and of tokens."""
        file = model_directory / SCORES_FILE
        if file.exists():
            return
        model = load_model(str(model_directory), "draft", device=self._device)
        texts = [model.decode(example.answer_ids) for example in self._write(model, Sampling(temperature=0.0))]
        columns = {
            name: [column(prompt, text) for prompt, text in zip(self.prompts, texts, strict=True)]
            for name, column in self._study.task.scores.items()
        }
        records = score(self._target, model, self._answers, Sampling(), target_cache=self._states)
        sums = {rule: [column.tolist() for column in alpha_sums(records, rule)] for rule in ALPHA_RULES}
        write_text(file, json.dumps({"scores": columns, "alpha": sums, "first_answers": texts[:4]}))
        means = {name: round(sum(values) / len(values), 3) for name, values in columns.items()}
        print(f"scored {model_directory.name}: {means}", flush=True)

    def _write(self, model: LanguageModel, sampling: Sampling) -> list[Example]:
        limit = self._study.task.max_new_tokens
        return write_answers(model, self.prompts, self._encoded, sampling, limit, ANSWERS_SEED, Quiet())
