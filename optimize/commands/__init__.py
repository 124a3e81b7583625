"""The command line: click, printing and progress; nothing else."""
