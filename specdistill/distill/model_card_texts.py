"""Texts of the model card: a draft's, and a student's that is served alone. Names in braces are filled in."""

from __future__ import annotations

DRAFT = """---
{library}tags: [speculative-decoding, draft-model, specdistill]
---

# Draft model for {target}

Proposes tokens for `{target}` in speculative decoding. It is no use on its own: its worth is how often that target
agrees with it. {parameters:,} parameters ({share:.0%} of the target's), {whose} vocabulary and tokenizer files.
{trimmed}{guesses}{context}
## Measured

{measured}{others}
{training}{serving}"""

TRAINING = """## Training

Method `{method}`, divergence `{loss}`, {trained_on}, {steps} steps{ended}, peak learning
rate {learning_rate:g}. Step {kept_step} was kept: {why}. Held-out {watched} was watched. All settings are in
`specdistill.yaml`, the curve in `history.jsonl`.
{preset}{disagreement}{left_out}
"""

STUDENT = """---
{library}tags: [distillation, specdistill]
---

# Student of {target}

Learned from `{target}`, to be served alone. {score}{parameters:,} parameters ({share:.0%} of the target's), {whose}
vocabulary and tokenizer files.
{trimmed}{guesses}{context}
## Measured
{others}
## Serving

```
vllm serve {output}
```

```python
model = AutoModelForCausalLM.from_pretrained("{output}")
```

{training}## As a draft

It can also propose tokens for `{target}` in speculative decoding. {measured}
{serving}"""

CONTEXT = """
The target saw more than the draft: `target_context.json` has what was added to its prompts. Below, alpha compares with
the target that sees it; serve the draft without it.
"""

ADAPTER = """
`{target}` is an adapter of `{base}`, and what was measured is the two merged. Serve the merged model:
`specdistill export --merged-target merged-target` writes it.
"""

ALPHA = """Alpha, the share of draft tokens that verification accepts, on the target's own answers to
{heldout_prompts} held-out prompts (sampled at temperature {temperature}, up to {max_new_tokens} tokens; early stopping
watched these prompts, so run `specdistill bench` on fresh ones before you deploy):

| rule of the server | before | after | paired difference [95 % interval] |
|---|---|---|---|
{rows}

The rules: `greedy` is argmax agreement (temperature 0); `sampled` is sum min(p, q) (transformers, vLLM with
`draft_sample_method: probabilistic`); `argmax_draft` is p_target(argmax q) (vLLM's default, SGLang, llama.cpp above
temperature 0).
{caveat}
Alpha alone does not say whether serving gets faster: that depends on what a draft step costs. Ask
`specdistill bench --target {target} --draft {output}`.
"""

TEXT = """Mean log-likelihood per byte, in nats, of the target's own answers to {heldout_prompts} held-out prompts
(sampled at temperature {temperature}, up to {max_new_tokens} tokens). The two models' tokenizers differ, so there is no
alpha.

| | before | after | paired difference [95 % interval] |
|---|---|---|---|
{rows}
"""

SERVING = """## Serving
{gguf}
```
vllm serve {served} --speculative-config '{engine}'
```

```python
target.generate(**inputs, assistant_model=AutoModelForCausalLM.from_pretrained("{output}"))
```
"""

HEAD_SERVING = """## Serving

```
vllm serve {served} --speculative-config '{engine}'
```

The files are in the flat EAGLE-3 format (`LlamaForCausalLMEagle3`). transformers' assisted generation does not take
heads.
"""

GGUF = """
`{target}` is a .gguf file. For llama.cpp, write this draft with `specdistill export --format gguf`. vLLM and
transformers take checkpoints: TARGET below is the one that the file was made from.
"""

OTHER_TOKENIZER = """## Serving

The tokenizers differ, so vLLM, SGLang and llama.cpp can't use it; transformers can (universal assisted decoding):

```python
target.generate(
    **inputs,
    assistant_model=AutoModelForCausalLM.from_pretrained("{output}"),
    tokenizer=target_tokenizer,
    assistant_tokenizer=AutoTokenizer.from_pretrained("{output}"),
)
```
"""
