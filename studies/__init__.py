"""Where trials are kept and how a study is read: storage, fingerprints, export, report."""
