"""From a model and data to a study: tasks, search spaces, objective and command line."""
