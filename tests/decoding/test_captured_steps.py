"""Captured steps give what eager ones give: as CUDA graphs, which are recorded here on a CPU, and compiled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from parallel_drafts import make_parallel
from recorded_graphs import recorded_cuda_graphs
from tiny_models import FAMILIES, make_model, perturbed

from specdistill.decoding import ConfidenceLength, Guidance, Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.captured_steps import CapturedSteps, compiled, cuda_graph, extent_bucket, row_bucket
from specdistill.decoding.draft_kinds import ModelDraft
from specdistill.decoding.free_drafts import FreeDraft, FreeThenModel
from specdistill.decoding.lookup import VllmNgram
from specdistill.decoding.proof import prove
from specdistill.decoding.reader import Reader
from specdistill.errors import ModelError

GREEDY, SAMPLED = Sampling(temperature=0.0), Sampling(temperature=0.8, top_k=20)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21], [30, 31, 32, 33, 34], [9], [40, 41], [7, 7, 7]]
NEW = 60
"""From 64 positions on texts need other graphs."""


def given_runner(model, capture=cuda_graph):
    prove(model)
    model.step_runner = CapturedSteps(capture)
    return model


def plain(model, settings=GREEDY, prompts=PROMPTS, **more):
    seeds = list(range(len(prompts)))
    return generate_plain(model, prompts, sampling=settings, max_new_tokens=NEW, seeds=seeds, **more)


def speculative(target, draft, settings=GREEDY, prompts=PROMPTS, length=4, new=NEW, **more):
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=settings, **more)
    return decoder.generate(prompts, max_new_tokens=new, seeds=list(range(len(prompts))), keep_hidden=True)


def texts(written):
    return [(answer.token_ids, answer.rounds) for answer in written]


def noisy(target):
    return perturbed(target, 0.1 if target.config.model_type == "gpt2" else 0.02)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_write_what_eager_steps_write(family, settings):
    target = make_model(family)
    draft = noisy(target)
    wanted = plain(target, settings), speculative(target, draft, settings)
    assert any(entry.accepted < entry.proposed for answer in wanted[1] for entry in answer.rounds)
    with recorded_cuda_graphs() as graphs:
        given_runner(target), given_runner(draft)
        for written, eager in zip((plain(target, settings), speculative(target, draft, settings)), wanted, strict=True):
            assert texts(written) == texts(eager)
        # States are read while later rounds overwrite a graph's outputs.
        for mine, eager in zip(written, wanted[1], strict=True):
            torch.testing.assert_close(torch.cat(mine.target_hidden), torch.cat(eager.target_hidden))
        made = len(graphs)
        assert made == target.step_runner.costs.graphs + draft.step_runner.costs.graphs > 5
        # The second call takes caches and graphs of the first.
        assert texts(speculative(target, draft, settings)) == texts(wanted[1])
        assert len(graphs) == made


def ways(target):
    """The other ways to draft and to read: a draft and settings of the decoder."""
    trimmed, ngram = noisy(target), FreeDraft(partial(VllmNgram, 1, 3), target.vocab_size)
    trimmed.kept_ids = torch.arange(4, 65)
    return {
        "itself": (target, {}),
        "trimmed": (trimmed, {}),
        "parallel": (make_parallel(layers=2, seed=3), {}),
        "free, then a model": (FreeThenModel(ngram, ModelDraft(noisy(target))), {}),
        "confident": (noisy(target), {"length": ConfidenceLength(6, 0.3)}),
        "guided": (noisy(target), {"guidance": Guidance((8, 9, 10), 0.5)}),
        "block": (noisy(target), {"rule": "block"}),
    }


@pytest.mark.parametrize("way", ["itself", "trimmed", "parallel", "free, then a model", "confident", "guided", "block"])
def test_every_way_to_draft(way):
    target = make_model(layers=2)
    draft, settings = ways(target)[way]
    wanted = speculative(target, draft, SAMPLED, **settings)
    models = [target, draft._model.model if isinstance(draft, FreeThenModel) else draft]
    with recorded_cuda_graphs():
        for model in models:
            given_runner(model)
        assert texts(speculative(target, draft, SAMPLED, **settings)) == texts(wanted)
        assert all(model.step_runner.costs.graphs for model in models)


def test_a_graph_refers_to_weights_its_cache_and_its_inputs_alone():
    """Anything else would be freed when the call ends that the graph was captured in."""
    target = make_model(layers=2)
    draft = noisy(target)
    draft.kept_ids = torch.arange(4, 65)
    with recorded_cuda_graphs() as graphs:
        given_runner(target), given_runner(draft)
        speculative(target, draft, SAMPLED)
        known = {draft.kept_ids.data_ptr(), draft._head.data_ptr()}
        for model in (target, draft):
            known |= {tensor.data_ptr() for tensor in (*model.model.parameters(), *model.model.buffers())}
            (cache,) = model.step_runner._free
            known |= {tensor.data_ptr() for layer in cache.layers for tensor in (layer.keys, layer.values)}
        inputs = 0
        for graph in graphs:
            unknown = [tensor for tensor in graph.from_outside() if tensor.untyped_storage().data_ptr() not in known]
            # Lengths and token ids; a draft's step also has ends, seeds and counters.
            assert len(unknown) in (2, 5) and all(tensor.dtype == torch.int64 for tensor in unknown)
            inputs = max(inputs, len(unknown))
        assert inputs == 5


def test_a_graph_that_keeps_a_number_is_caught(monkeypatch):
    """Planted: positions from the host's lengths, which eager steps may use and a graph keeps for ever."""
    target, real = make_model(layers=1), CachedModel.step
    wanted = texts(plain(target))

    def step(self, name, new, call, *inputs):
        lengths = list(self.lengths)

        def planted(shapes, starts, *inputs):
            return call(shapes, torch.tensor(lengths + [0] * (len(starts) - len(lengths))), *inputs)

        return real(self, name, new, planted, *inputs)

    monkeypatch.setattr(CachedModel, "step", step)
    assert texts(plain(target)) == wanted
    with recorded_cuda_graphs():
        assert texts(plain(given_runner(target))) != wanted


def test_reading_a_value_in_a_graph_is_an_error(monkeypatch):
    target, states = make_model(layers=1), Reader.states

    def reading(self, ids, starts, shapes):
        assert starts.max() >= 0
        return states(self, ids, starts, shapes)

    monkeypatch.setattr(Reader, "states", reading)
    plain(target)
    with recorded_cuda_graphs(), pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        plain(given_runner(target))


def test_a_row_of_nan_leaves_nothing_in_the_cache():
    target = make_model(layers=1)
    wanted = texts(plain(target))
    with recorded_cuda_graphs():
        given_runner(target)
        head = target.model.model.layers[0].self_attn.v_proj.weight
        kept = head.detach().clone()
        with torch.no_grad():
            head.fill_(torch.nan)
        with pytest.raises(ModelError, match="NaN"):
            plain(target)
        with torch.no_grad():
            head.copy_(kept)
        assert texts(plain(target)) == wanted


def test_graphs_read_a_trimmed_head_as_it_was_trained():
    target = make_model(layers=1)
    target.kept_ids = torch.arange(4, 65)
    draft = target
    with recorded_cuda_graphs():
        given_runner(draft)
        speculative(draft, draft)
        made = draft.step_runner.costs.graphs
        with torch.no_grad():
            draft.head_weight.mul_(-1)
        draft.weights_changed()
        written = texts(speculative(draft, draft))
        assert draft.step_runner.costs.graphs == made, "a training step captures nothing again"
    draft.step_runner = None
    draft.weights_changed()
    assert written == texts(speculative(draft, draft))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_every_step_compiles_in_full(family):
    """A break in a graph is an error; the graphs run as they are, since a compiler takes minutes for all of them."""
    target = make_model(family, layers=2)
    draft = noisy(target)
    wanted = texts(speculative(target, draft, SAMPLED, PROMPTS[1:2], new=16))
    for model in (target, draft):
        given_runner(model, partial(compiled, backend="eager"))
    torch._dynamo.reset()
    assert texts(speculative(target, draft, SAMPLED, PROMPTS[1:2], new=16)) == wanted
    assert draft.step_runner.costs.graphs > 1 and target.step_runner.costs.graphs > 1


def test_a_step_with_a_break_does_not_compile(monkeypatch):
    target, states = make_model(layers=1), Reader.states

    def reading(self, ids, starts, shapes):
        return states(self, ids, starts if starts.max() > 3 else starts + 0, shapes)

    monkeypatch.setattr(Reader, "states", reading)
    with pytest.raises(Exception, match=r"(?i)graph break|data.dependent|unsupported"):
        plain(given_runner(target, partial(compiled, backend="eager")))


def test_compiled_code_gives_the_same_states():
    target = make_model(layers=1)
    ids, cached = torch.tensor([[5, 6], [7, 8]]), []
    with torch.inference_mode():
        for runner in (None, CapturedSteps(compiled)):
            target.step_runner = runner
            cached.append(CachedModel(target, 2, 64))
            cached[-1].read([[9, 10, 11], [12]])
        for _ in range(2):
            eager, mine = (each.forward(ids) for each in cached)
            torch.testing.assert_close(mine, eager, rtol=1e-5, atol=1e-5)
            for each in cached:
                each.advance([2, 1])
    assert runner.costs.graphs == 1 and runner.costs.seconds > 0


def test_buckets():
    assert [row_bucket(rows) for rows in (1, 2, 3, 5, 8, 33)] == [1, 2, 4, 8, 8, 64]
    assert [extent_bucket(needed) for needed in (1, 64, 65, 129, 513, 1025, 1200)] == [
        64,
        64,
        128,
        192,
        576,
        1152,
        1280,
    ]
    sizes = {extent_bucket(needed) for needed in range(1024, 2048)}
    assert len(sizes) <= 9 and all(size % 64 == 0 for size in sizes)


def test_scoring_reads_after_graphs_were_captured():
    """It runs outside of inference mode, in which the kept buffers were made and can't be written."""
    model = make_model()
    with torch.no_grad():
        plain = CachedModel(model, 1, 64).read([PROMPTS[0]])
    with recorded_cuda_graphs():
        given_runner(model)
        generate_plain(model, PROMPTS, sampling=GREEDY, max_new_tokens=4, seeds=[0] * len(PROMPTS))
        with torch.no_grad():
            reader = CachedModel(model, 1, 64)
            assert torch.equal(reader.read([PROMPTS[0]]), plain)
            assert reader.read_next(torch.tensor([5])).shape == plain.shape
