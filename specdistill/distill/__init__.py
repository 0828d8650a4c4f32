"""Making drafts: cutting one out of the target (`cutting`), and distilling it toward the target (`train_draft`).

A method (`methods`) says whose text is trained on and which divergence is minimised there. Each room knows only those
below it:

    train_draft     the command, from two names to a directory
    ending          what it leaves behind: summary, model card
    config          its settings, made of the parts that the rooms below read
    training        loss, step, loop, held-out scores, checkpoints
    sequences       the examples of each step, by method
    target          where the target is, and what it says about an example
    answers         answers on disk: generate, annotate, best-of-n
    processes       shares of work and of weights
    presets         settings for a purpose
"""
