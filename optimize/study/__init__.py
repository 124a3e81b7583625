"""A study from beginning to end: prepare it, run it, score its best again, compare and prune."""
