"""Making drafts: cutting one out of the target (`initialise`), and distilling it toward the target (`trainer`).

A method (`methods`) is where sequences come from and which divergence is minimised on them:

    sft             given answers, raw text        cross entropy
    seqkd           the target's answers           cross entropy
    best-of-n       the best of N of them          cross entropy
    supervised-kd   given answers, raw text        forward KL
    gkd             draft's and fixed, mixed       JSD
    distillspec     target's, then the draft's     forward KL
    skd             written by both together       forward KL
    online          a server's rejections          forward KL, soft labels

`rollouts` and `generate` make finished sequences, `sources` and `skd` hand them out step by step, `losses` turns them
into gradients.
"""
