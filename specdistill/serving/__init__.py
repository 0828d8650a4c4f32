"""Real engines: their conditions for a draft, exports, bench inside them, and the online hook."""
