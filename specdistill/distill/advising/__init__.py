"""`specdistill advise`: which kind of draft to make for a target, before any is made."""
