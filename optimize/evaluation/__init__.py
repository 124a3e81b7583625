"""What a trial does: relevance, ranking, pruned networks, accuracy over what is pruned."""
