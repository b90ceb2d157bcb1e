"""Files that ship with the package: tasks, studies, the built-in model."""
