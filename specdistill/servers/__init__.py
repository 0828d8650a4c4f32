"""Client and dialects of OpenAI-compatible servers."""
