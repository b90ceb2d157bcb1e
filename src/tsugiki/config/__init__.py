"""Every schema: task, run and study file. Frozen, strict; `toml` reads files into them."""
