"""One run: plan, work, outcome, kept."""
