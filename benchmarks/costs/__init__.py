"""The parts of `latency.py`: a file for each thing that is timed or weighed."""
