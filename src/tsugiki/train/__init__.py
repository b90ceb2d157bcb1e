"""One engine for every method: lanes of parameters moved by one loop."""
