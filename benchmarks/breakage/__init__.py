"""Faults that are really made: killed processes, full disks, damaged files, clocks and forks."""
