"""The target's own pass over its answers, where scoring needs more of it than plain hidden states."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.data.batch import Example
from specdistill.decoding import Guidance
from specdistill.evaluation.acceptance import HiddenCache
from specdistill.evaluation.experts import Routing, routed_hidden_states
from specdistill.evaluation.guided_states import guided_hidden_states
from specdistill.evaluation.interruption import Interruption
from specdistill.models import LanguageModel
from specdistill.models.experts import expert_layers
from specdistill.progress import Progress


def target_pass(
    target: LanguageModel,
    answers: Sequence[Example],
    guidance: Guidance | None,
    longest: int,
    progress: Progress,
    stop: Interruption,
) -> tuple[HiddenCache, Routing | None] | None:
    """Reads the answers with guidance, or counts the routing of a mixture of experts.

    Args:
        target: The model.
        answers: Its answers.
        guidance: Guidance of the target.
        longest: Routing is counted over runs of up to this many tokens.
        progress: Where the bar goes.
        stop: Takes a Ctrl-C.

    Returns:
        Hidden states of the answers, of the first ones after a Ctrl-C, and the routing of a mixture without guidance;
        None for a target that needs neither.
    """
    routing = Routing(target, longest) if guidance is None and expert_layers(target) else None
    if guidance is None and routing is None:
        return None
    states: HiddenCache = {}
    name = "target reads its answers" if guidance is None else "guided target reads its answers"
    with stop.caught(), progress.task(name, len(answers), "answers") as task:
        for answer in answers:
            if routing is not None:
                states |= routed_hidden_states(target, answer, routing)
            else:
                states[answer] = guided_hidden_states(target, [answer], guidance)[0]
            task.advance(1)
    return states, routing
