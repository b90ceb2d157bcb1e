"""What makes a model quick, and is undone on leaving: see README.md here."""
