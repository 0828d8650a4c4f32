"""Drafts cut out of the target's own layers (`init-draft`)."""
