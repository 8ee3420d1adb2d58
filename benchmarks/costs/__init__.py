"""The parts of `latency.py`: a file for each measurement."""
