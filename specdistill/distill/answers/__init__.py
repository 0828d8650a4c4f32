"""Answers on disk: written by the target (`generate`), labelled by it (`annotate`), chosen by scorers."""
