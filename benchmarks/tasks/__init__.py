"""The tasks of `longbench.py`: their records, prompts and metrics."""
