"""Client and dialects of OpenAI-compatible model servers. Imports no torch."""
