"""From a task file to batches of token ids: `Example → Prompt → Tokens → Batch`."""
