"""From configurations to tables: the main path is `study/run.py`."""
