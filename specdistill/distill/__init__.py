"""Making drafts: cutting one out of the target (`initialise`), and distilling it toward the target (`trainer`).

A method is where sequences come from (`rollouts`, `skd`) and which divergence is minimised on them:

    seqkd           the target's answers           cross entropy
    supervised-kd   given answers                  forward KL
    gkd             draft's and fixed, mixed       JSD
    distillspec     target's, then the draft's     forward KL
    skd             written by both together       forward KL
"""
