"""Where images come from: data sets, the samples drawn from them, decoding, prefetching."""
