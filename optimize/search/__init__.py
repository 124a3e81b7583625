"""What a study tries next: spaces, samplers, pruners, known composites, and the loop that runs trials."""
